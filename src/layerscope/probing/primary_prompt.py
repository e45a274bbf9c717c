"""What is measured once: temperatures, the last layer, the primary prompt through several views, predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.analysis.curve_shapes import stretches
from layerscope.errors import ModelError, NumericError
from layerscope.lenses import LENS_NAMES, Lens, TunedLens, bind_lenses
from layerscope.model.causal_lm import CausalLM
from layerscope.model.residuals import Residuals
from layerscope.probing.auxiliary_inputs import AuxiliaryInputs
from layerscope.probing.encode import Encoded
from layerscope.probing.outcome import Absent, reasons, value_of
from layerscope.probing.second_forward import second_forward
from layerscope.readout.decode import Question, Readout, decode
from layerscope.readout.head import HeadPrediction, head_predictions, transform_checks
from layerscope.readout.position_readout import DecodingView, position_readout
from layerscope.readout.temperature import (
    BYTES_PER_FITTED_LOGIT,
    BYTES_PER_LOGIT,
    NormTemperatures,
    fit_norm_temperatures,
    kl_bits,
    last_layer_temperature,
)
from layerscope.record import measured
from layerscope.record.protocol import Protocol
from layerscope.unembedding import LOGITS_TILE_BYTES, HeadTransform

LISTED_FINAL, LISTED_EXPLORED, LISTED_TEST = 20, 15, 10
"""How many of the most likely tokens are listed for the primary prompt, at other temperatures, for test prompts."""
TEMPERATURES = (0.1, 2.0)
POST_LN2 = "post_ln2"
PAIRS = (("logit", "next_norm"), (POST_LN2, "logit"), (POST_LN2, "next_norm"))
"""Decoding points that are compared with one another; the headline lens is compared with `raw` as well."""
FAILED_IDENTITY = "the last layer's decode is not the model's own output"
CALIBRATION_BYTES = 256 << 20
Predictions: TypeAlias = tuple[
    measured.PredictionRecord | None, tuple[measured.PredictionRecord, ...], tuple[measured.PredictionRecord, ...]
]
_NORM_KINDS = {"rms": "RMSNorm", "layer": "LayerNorm"}


@dataclass(frozen=True)
class FirstBatch:
    """What the first pass through the model left."""

    residuals: Residuals
    n_prompts: int
    """How many prompts of the suite it held; auxiliary texts come after them."""

    def last(self, text: int) -> Float[Tensor, "layer d_model"]:
        """The residual stream at the last position of a text."""
        return self.residuals.values[text, :, self.residuals.lengths[text] - 1]


def planned_auxiliary_bytes(model: CausalLM, auxiliary: AuxiliaryInputs) -> int:
    """Working memory that this module takes at once: whole logits of few rows."""
    logits = model.d_vocab * (model.n_layers + 1)
    rows = sum(len(passage.positions) for passage in auxiliary.passages)
    calibrating = min(max(CALIBRATION_BYTES, BYTES_PER_LOGIT * rows * model.d_vocab), BYTES_PER_LOGIT * rows * logits)
    calibrating += (BYTES_PER_FITTED_LOGIT + 16) * rows * model.d_vocab  # one layer's, and the model's own
    predicting = 20 * model.d_vocab * max(len(auxiliary.test_prompts), 1 + len(TEMPERATURES))
    return max(3 * 4 * logits, calibrating, predicting) + LOGITS_TILE_BYTES


@dataclass(frozen=True)
class PrimaryPromptAnalysis:
    """Measures one first batch, and the suite's primary prompt in it; `probing` is its only user."""

    model: CausalLM
    encoded: Sequence[Encoded]
    probed_lenses: Sequence[Lens]
    """Those that the probe reads through."""
    protocol: Protocol
    auxiliary: AuxiliaryInputs
    batch: FirstBatch
    final_is_model: bool
    """Whether the identity check held."""

    @cached_property
    def lenses(self) -> dict[str, Lens]:
        """By name: those that need no fitting, and those of the probe."""
        model = self.model
        plain = bind_lenses(LENS_NAMES, final_norm=model.final_norm, next_norms=model.next_norms)
        return {lens.name: lens for lens in (*plain, *self.probed_lenses)}

    @property
    def headline(self) -> Lens:
        """The protocol's headline lens."""
        return self.lenses[self.protocol.headline]

    @property
    def lens_transform(self) -> HeadTransform | None:
        """What is done to a lens' logits; the head's own transform where None."""
        return None if self.protocol.lens_transform else HeadTransform()

    @property
    def primary(self) -> int | None:
        """Which prompt is the primary one; None where the first batch holds no fact."""
        index = next((i for i, e in enumerate(self.encoded) if e.prompt.prompt_id == "pos"), None)
        # A suite made in Python may ask very many controls first; a file asks facts first.
        return None if index is None or index >= len(self.batch.residuals.logits) else index

    @property
    def tau(self) -> tuple[float | None, ...] | None:
        """The temperature of each layer; None where none were fitted."""
        return None if isinstance(self.temperatures, Absent) else self.temperatures.tau

    @cached_property
    def temperatures(self) -> NormTemperatures | Absent:
        """The temperature of each layer, and how many of them a bound decided."""
        passages = self.auxiliary.passages
        if not passages:
            return Absent(self.auxiliary.calibration)
        if not self.final_is_model:
            return Absent(FAILED_IDENTITY)
        first = self.batch.n_prompts + len(self.auxiliary.test_prompts)
        values = self.batch.residuals.values
        residuals = torch.cat([values[first + i, :, list(p.positions)] for i, p in enumerate(passages)], 1)
        rows = torch.stack([self.headline(residual, layer) for layer, residual in enumerate(residuals)])
        try:
            return fit_norm_temperatures(
                rows,
                self._final(residuals[-1]),
                self.model.unembedding,
                lens_transform=self.lens_transform,
                legacy=self.protocol.temperature_grid,
                budget_bytes=CALIBRATION_BYTES,
            )
        except NumericError as error:  # some texts may be spoilt and the suite's not; the sweep judges the head
            return Absent(str(error))

    def _final(self, residual: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """What the model's own head multiplies."""
        norm = self.model.final_norm
        return residual if norm is None else norm(residual)

    def record(self, mode: str, progress: Callable[[int, int], None]) -> measured.MeasuredRecord:
        """Everything, for the record.

        Args:
            mode: whether a second forward pass is made (see `second_forward`).
            progress: called with that pass's (blocks done, blocks to do).
        """
        temperatures = self._temperature_record()
        last_layer: measured.LastLayerRecord | Absent
        readout: measured.PositionReadoutRecord | Absent
        post_ln2: DecodingView | Absent | None = None
        variants: measured.TunedVariantsRecord | Absent | None = None
        second: measured.SecondForwardRecord | None = None
        if self.primary is None:
            last_layer = readout = Absent("no fact stands among the first prompts of the suite")
        else:
            prompt, residual = self.encoded[self.primary], self.batch.last(self.primary)
            last_layer, post_ln2 = self._last_layer(self.primary), self._post_ln2()
            readout = self._position_readout(prompt, residual, value_of(post_ln2))
            variants = self._tuned_variants(prompt, residual)
            second = second_forward(
                self.model, prompt, self.headline, self.lens_transform, mode, readout.repeatability, progress
            )
        predictions = self._predictions()
        final, explored, tested = (predictions,) * 3 if isinstance(predictions, Absent) else predictions
        outcomes = {
            "norm_temperature": temperatures,
            "last_layer": last_layer,
            "position_readout": readout,
            POST_LN2: post_ln2,
            "final_prediction": final,
            "temperature_exploration": explored,
            "test_prompts": tested,
            "tuned_variants": variants,
        }
        present: dict[str, Any] = {
            name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, Absent) and name != POST_LN2
        }
        norms = self.model.next_norms
        return measured.MeasuredRecord(
            stack=self._stack(),
            first_block_norm=None if norms[0] is None else _NORM_KINDS[norms[0].kind],
            final_norm=None if norms[-1] is None else _NORM_KINDS[norms[-1].kind],
            unembed_bias=self._unembed_bias(),
            copy_mask=self._copy_mask(),
            second_forward=second,
            absent={**self.auxiliary.absent, **reasons(outcomes)},
            **present,
        )

    def _stack(self) -> Literal["pre_norm", "post_norm"] | None:
        """How blocks are built; None where no norm was found in front of them, and the family is not known."""
        if any(norm is not None for norm in self.model.next_norms[:-1]):
            return "pre_norm"
        return "post_norm" if self.model.family_verified else None

    def _temperature_record(self) -> measured.NormTemperatureRecord | Absent:
        temperatures = self.temperatures
        if isinstance(temperatures, Absent):
            return temperatures
        return measured.NormTemperatureRecord(
            lens=self.headline.name,
            method="grid" if self.protocol.temperature_grid else "exact",
            calibration=self.auxiliary.calibration,
            n_rows=sum(len(passage.positions) for passage in self.auxiliary.passages),
            tau_per_layer=temperatures.tau,
            bound_hits=temperatures.bound_hits,
        )

    def _unembed_bias(self) -> measured.UnembedBiasRecord:
        bias = self.model.unembedding.bias
        if bias is None:
            return measured.UnembedBiasRecord(present=False, l2_norm=0.0, max_abs=0.0)
        wide = bias.double()
        return measured.UnembedBiasRecord(present=True, l2_norm=float(wide.norm()), max_abs=float(wide.abs().max()))

    def _copy_mask(self) -> measured.CopyMaskRecord:
        tokens = self.model.tokens
        masked = tokens.trivial_or_special if self.protocol.bos_of_tokenizer else tokens.trivial
        ids = sorted(masked(range(min(tokens.n_ids, self.model.d_vocab))))
        strings = tokens.display(ids[:16])
        ranges = tuple((run[0], run[-1]) for run in stretches(ids))
        return measured.CopyMaskRecord(size=len(ids), id_ranges=ranges, sample=tuple(strings[i] for i in ids[:16]))

    def _last_layer(self, prompt: int) -> measured.LastLayerRecord | Absent:
        """The headline lens at the last layer, compared with the model's own output."""
        model, residual = self.model, self.batch.last(prompt)[-1:]
        linear = model.unembedding.logits(model.unembedding.head_input(self.headline(residual, model.n_layers)))[0]
        if not bool(linear.isfinite().all() and self.batch.residuals.logits[prompt].isfinite().all()):
            return Absent("the last layer or the model's own output is not finite")
        declared = model.unembedding.transform
        lens_logits = (self.lens_transform or declared).apply_(linear.double())
        log_p = torch.log_softmax(lens_logits, -1)
        log_final = torch.log_softmax(self.batch.residuals.logits[prompt].double(), -1)
        answers = self.encoded[prompt].query.answer_ids
        answer = max(sorted(set(answers)), key=lambda i: float(linear[i]), default=None)
        return measured.LastLayerRecord(
            kl_to_final_bits=float(kl_bits(log_p, log_final)),
            top1_agree=bool(linear.argmax() == log_final.argmax()),
            p_top1_lens=float(log_p.max().exp()),
            p_top1_model=float(log_final.max().exp()),
            p_answer_lens=None if answer is None else float(log_p[answer].exp()),
            answer_rank_lens=None if answer is None else 1 + int((linear > linear[answer]).sum()),
            **vars(last_layer_temperature(lens_logits, log_final)),
            **vars(declared),
            **vars(transform_checks(linear, log_final, declared)),
        )

    def _position_readout(
        self, prompt: Encoded, residual: Float[Tensor, "layer d_model"], post_ln2: DecodingView | None
    ) -> measured.PositionReadoutRecord:
        name = self.headline.name
        views = {} if post_ln2 is None else {POST_LN2: post_ln2}  # in the order of the pairs: fewer sweeps of the head
        views |= {other: DecodingView(lens) for other, lens in self.lenses.items()}
        pairs = [(name, other) for other in views if other not in (name, "logit", "next_norm", POST_LN2)]
        pairs += [pair for pair in PAIRS if set(pair) <= set(views)]
        return position_readout(
            residual,
            views,
            headline=name,
            answer_ids=prompt.query.answer_ids,
            pairs=pairs,
            scales=self.protocol.thresholds.gate_scales,
            unembedding=self.model.unembedding,
            lens_transform=self.lens_transform,
        )

    def _tuned_variants(
        self, prompt: Encoded, residual: Float[Tensor, "layer d_model"]
    ) -> measured.TunedVariantsRecord | Absent | None:
        """The prompt's last position under parts of the tuned lens; None without one."""
        lens = self.lenses.get("tuned")
        if not isinstance(lens, TunedLens):
            return None
        if self.headline is lens:
            return Absent("the tuned lens is the headline lens itself")
        if not self.final_is_model:
            return Absent(FAILED_IDENTITY)
        tau = lens.temperatures
        variants: dict[str, Callable[[Tensor, int], Tensor]] = {
            "rotation_only": replace(lens, variant="rotation_only"),
            "temperature_only": lambda row, layer: self.headline(row, layer) / tau[layer],
        }
        if lens.has_means:
            variants["bias_only"] = replace(lens, variant="bias_only")
        rows = [variant(row[None], layer) for variant in variants.values() for layer, row in enumerate(residual)]
        readout = decode(
            torch.stack(rows),
            self._final(residual[-1:]),
            [Question(1, prompt.query.answer_ids)],
            self.model.unembedding,
            lens_transform=self.lens_transform,
        )
        n, finite = len(residual), bool(readout.final_finite[0])
        records = {name: _variant(readout, range(i * n, (i + 1) * n), finite) for i, name in enumerate(variants)}
        return measured.TunedVariantsRecord(temperatures=(None, *tau[1:]), **records)

    def _post_ln2(self) -> DecodingView | Absent:
        """The second norm of the block that wrote last, where blocks have one."""
        try:
            norms = self.model.second_norms
        except ModelError as error:
            return Absent(str(error))
        layers = frozenset(i + 1 for i, norm in enumerate(norms) if norm is not None)
        if not layers:
            return Absent("blocks have no second norm that reads the stream, or none that is known")

        def row(residual: Tensor, layer: int) -> Tensor:
            norm = norms[layer - 1]
            if norm is None:
                raise ModelError(f"Block {layer - 1} has no second norm; the view is defined at {sorted(layers)}.")
            return norm(residual)

        return DecodingView(row, layers)

    def _predictions(self) -> Predictions | Absent:
        """The primary prompt's own output, the same at other temperatures, and what test prompts give."""
        if not self.final_is_model:
            return Absent(FAILED_IDENTITY)
        try:
            final, *explored = (None,) if self.primary is None else self._of_primary(self.primary)
            return final, tuple(explored), self._of_test_prompts()
        except NumericError as error:
            return Absent(str(error))

    def _of_primary(self, primary: int) -> list[measured.PredictionRecord]:
        """What the model says of the primary prompt, at temperature 1 first.

        Raises:
            NumericError: its head does not give finite logits.
        """
        row = self._final(self.batch.last(primary)[-1:])
        temperatures = (1.0, *TEMPERATURES)
        predictions = head_predictions(
            row.expand(len(temperatures), -1),
            self.model.unembedding,
            LISTED_FINAL,
            temperatures,
            self.encoded[primary].query.answer_ids,
        )
        return [
            self._prediction(prediction, LISTED_FINAL if i == 0 else LISTED_EXPLORED, temperature)
            for i, (prediction, temperature) in enumerate(zip(predictions, temperatures, strict=True))
        ]

    def _of_test_prompts(self) -> tuple[measured.PredictionRecord, ...]:
        """What the model says of them.

        Raises:
            NumericError: its head does not give finite logits.
        """
        prompts = self.auxiliary.test_prompts
        if not prompts:
            return ()
        last = torch.stack([self.batch.last(self.batch.n_prompts + i)[-1] for i in range(len(prompts))])
        predictions = head_predictions(self._final(last), self.model.unembedding, LISTED_TEST)
        return tuple(
            self._prediction(prediction, LISTED_TEST, 1.0, text)
            for prediction, (text, _) in zip(predictions, prompts, strict=True)
        )

    def _prediction(
        self, prediction: HeadPrediction, listed: int, temperature: float, prompt: str | None = None
    ) -> measured.PredictionRecord:
        ids = prediction.top_ids[:listed]
        strings = self.model.tokens.display(ids)
        return measured.PredictionRecord.of(
            prediction,
            prompt=prompt,
            temperature=temperature,
            top_ids=ids,
            top_tokens=tuple(strings[i] for i in ids),
            top_probs=prediction.top_probs[:listed],
        )


def _variant(readout: Readout, groups: Sequence[int], final_finite: bool) -> measured.TunedVariantRecord:
    """One way of decoding, by layer; layer 0 is left out like the tuned lens' rows there."""
    usable = [
        group if layer > 0 and final_finite and bool(readout.finite[group, 0]) else None
        for layer, group in enumerate(groups)
    ]
    return measured.TunedVariantRecord(
        kl_to_final_bits=tuple(None if i is None else float(readout.kl_to_final_bits[i, 0]) for i in usable),
        answer_rank=tuple(None if i is None else int(readout.answer_rank[i, 0]) or None for i in usable),
    )
