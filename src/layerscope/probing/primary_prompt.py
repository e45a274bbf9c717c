"""What is measured beside the rows: temperatures, the last layer, one prompt looked at closely, further prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import ModelError, NumericError
from layerscope.lenses import Lens, bind_lenses
from layerscope.lenses.tuned_lens import TunedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.residuals import Residuals, read_residuals
from layerscope.probing.encode import Encoded
from layerscope.readout.decode import Question, Readout, decode
from layerscope.readout.head import HeadPrediction, head_predictions, transform_checks
from layerscope.readout.position_readout import DecodingView, PositionReadout, Reading, position_readout
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
from layerscope.suite.auxiliary_texts import calibration_passage, published_test_prompts
from layerscope.unembedding import LOGITS_TILE_BYTES, HeadTransform

CALIBRATION_ROWS = 8
"""Positions of the passage at which temperatures are fitted; each is decoded at every layer."""
LONGEST_PASSAGE = 48
"""Tokens of it at most; prompts are padded to the longest text, so it should not outgrow them by much."""
SHORTEST_PASSAGE = 2 * CALIBRATION_ROWS
LISTED_FINAL, LISTED_EXPLORED, LISTED_TEST = 20, 15, 10
"""How many of the most likely tokens are listed for the primary prompt, at other temperatures, for test prompts."""
TEMPERATURES = (0.1, 2.0)
POST_LN2 = "post_ln2"
PAIRS = (("logit", "next_norm"), (POST_LN2, "logit"), (POST_LN2, "next_norm"))
"""Decoding points that are compared with one another, beside the headline lens with `raw`."""
FAILED_IDENTITY = "the last layer's decode is not the model's own output"
CALIBRATION_BYTES = 256 << 20
Predictions: TypeAlias = tuple[
    measured.PredictionRecord | None, tuple[measured.PredictionRecord, ...], tuple[measured.PredictionRecord, ...]
]
_PREDICTIONS = ("final_prediction", "temperature_exploration", "test_prompts")


@dataclass(frozen=True)
class Passage:
    """A text that temperatures are fitted on."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class AuxiliaryInputs:
    """Texts that go through the model behind the prompts of the first part."""

    test_prompts: tuple[tuple[str, tuple[int, ...]], ...]
    passages: tuple[Passage, ...]
    calibration: str
    """What the passages are, in words."""
    absent: dict[str, str]

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """All of them, test prompts first."""
        return [ids for _, ids in self.test_prompts] + [passage.token_ids for passage in self.passages]


@dataclass(frozen=True)
class FirstBatch:
    """What the first pass through the model left."""

    residuals: Residuals
    logits: Float[Tensor, "some d_vocab"]
    """The model's own, at the last positions of the first prompts."""
    n_prompts: int
    """How many prompts of the suite it held; the texts beside it come after them."""

    def last(self, text: int) -> Float[Tensor, "layer d_model"]:
        """The residual stream at the last position of a text."""
        return self.residuals.values[text, :, self.residuals.lengths[text] - 1]


def choose_auxiliary_inputs(model: CausalLM, encoded: Sequence[Encoded], protocol: Protocol) -> AuxiliaryInputs:
    """Choose what goes through the model beside the suite."""
    absent: dict[str, str] = {}
    asked: tuple[tuple[str, tuple[int, ...]], ...] = ()
    if protocol.test_prompts:
        asked = tuple((text, model.tokens.input_ids(text)) for text in published_test_prompts())
        if not all(_readable(model, ids) for _, ids in asked):
            asked, absent["test_prompts"] = (), "the model does not read them: too many tokens or unknown ids"
    else:
        absent["test_prompts"] = f"protocol {protocol.name} asks for none"
    passages, calibration = _own_prompts(encoded) if protocol.temperature_grid else _held_out(model, encoded)
    if not passages:
        absent["norm_temperature"] = calibration
    return AuxiliaryInputs(asked, passages, calibration, absent)


def _own_prompts(encoded: Sequence[Encoded]) -> tuple[tuple[Passage, ...], str]:
    """The primary fact in all its wordings and the first control, as published."""
    facts = [e for e in encoded if e.prompt.fact_index == 0]
    controls = [e for e in encoded if e.prompt.prompt_id == "ctl"]
    passages = tuple(Passage(e.token_ids, (len(e.token_ids) - 1,)) for e in [*facts, *controls[:1]])
    return passages, "the primary fact's own prompts and the control, at their last positions"


def _held_out(model: CausalLM, encoded: Sequence[Encoded]) -> tuple[tuple[Passage, ...], str]:
    """A piece of plain prose, about as long as the prompts."""
    width = min(LONGEST_PASSAGE, max(SHORTEST_PASSAGE, *(len(e.token_ids) for e in encoded)))
    token_ids = model.tokens.input_ids(calibration_passage())[:width]
    if len(token_ids) <= CALIBRATION_ROWS or not _readable(model, token_ids):
        return (
            (),
            "the calibration passage has ids that the model does not know, or too many or too few of them",
        )
    positions = tuple(range(len(token_ids) - CALIBRATION_ROWS, len(token_ids)))
    return (Passage(token_ids, positions),), f"{CALIBRATION_ROWS} positions of a passage that no suite asks about"


def _readable(model: CausalLM, token_ids: Sequence[int]) -> bool:
    within = model.n_context is None or len(token_ids) <= model.n_context
    return within and max(token_ids) < model.n_embeddings


def planned_auxiliary_bytes(model: CausalLM, beside: AuxiliaryInputs) -> int:
    """Working memory that this module takes at once: whole logits of few rows."""
    logits = model.d_vocab * (model.n_layers + 1)
    rows = sum(len(passage.positions) for passage in beside.passages)
    calibrating = min(max(CALIBRATION_BYTES, BYTES_PER_LOGIT * rows * model.d_vocab), BYTES_PER_LOGIT * rows * logits)
    calibrating += (BYTES_PER_FITTED_LOGIT + 16) * rows * model.d_vocab  # one layer's, and the model's own
    predicting = 20 * model.d_vocab * max(len(beside.test_prompts), 1 + len(TEMPERATURES))
    return max(3 * 4 * logits, calibrating, predicting) + LOGITS_TILE_BYTES


class PrimaryPromptAnalysis:
    """Measures one first part; `probing` is its only user."""

    def __init__(
        self,
        model: CausalLM,
        encoded: Sequence[Encoded],
        lenses: Sequence[Lens],
        protocol: Protocol,
        beside: AuxiliaryInputs,
        part: FirstBatch,
        final_is_model: bool,
    ) -> None:
        """Take what the first pass left; `final_is_model` says whether the identity check held."""
        self.model, self.encoded, self.protocol, self.beside, self.part = model, encoded, protocol, beside, part
        self.final_is_model = final_is_model
        self.transform = None if protocol.lens_transform else HeadTransform()
        named = bind_lenses(("logit", "next_norm", "raw"), final_norm=model.final_norm, next_norms=model.next_norms)
        self.lenses = {lens.name: lens for lens in (*named, *lenses)}
        self.headline = self.lenses[protocol.headline]
        self.absent = dict(beside.absent)
        self.primary = next((i for i, e in enumerate(encoded) if e.prompt.prompt_id == "pos"), None)
        if self.primary is not None and self.primary >= len(part.logits):
            self.primary = None  # a suite made in Python may ask very many controls first; a file asks facts first
        self.temperatures = self._temperatures()

    @property
    def tau(self) -> tuple[float | None, ...] | None:
        """The temperature of each layer; None where none were fitted."""
        return None if self.temperatures is None else self.temperatures.tau

    def _temperatures(self) -> NormTemperatures | None:
        if not self.beside.passages:
            return None
        if not self.final_is_model:
            self.absent["norm_temperature"] = FAILED_IDENTITY
            return None
        first = self.part.n_prompts + len(self.beside.test_prompts)
        values = self.part.residuals.values
        residuals = torch.cat([values[first + i, :, list(p.positions)] for i, p in enumerate(self.beside.passages)], 1)
        rows = torch.stack([self.headline(residual, layer) for layer, residual in enumerate(residuals)])
        try:
            return fit_norm_temperatures(
                rows,
                self._final(residuals[-1]),
                self.model.unembedding,
                lens_transform=self.transform,
                legacy=self.protocol.temperature_grid,
                budget_bytes=CALIBRATION_BYTES,
            )
        except NumericError as error:  # some texts may be spoilt and the suite's not; the sweep judges the head
            self.absent["norm_temperature"] = str(error)
            return None

    def _final(self, residual: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """What the model's own head multiplies."""
        norm = self.model.final_norm
        return residual if norm is None else norm(residual)

    def record(self, wish: str, progress: Callable[[int, int], None]) -> measured.MeasuredRecord:
        """Everything, for the record; `wish` says whether a second forward pass is made, whose blocks are told."""
        found = self._first_pass()
        if self.primary is None:
            return found
        primary = self.encoded[self.primary]
        again = second_forward(self.model, primary, self.protocol, tuple(self.lenses.values()), wish, found, progress)
        return found.model_copy(update={"second_forward": again})

    def _first_pass(self) -> measured.MeasuredRecord:
        norms = self.model.next_norms
        last_layer, looked_at = None, None
        if self.primary is None:
            self.absent["last_layer"] = self.absent["close_up"] = "no fact stands among the first prompts of the suite"
        else:
            last_layer, looked_at = self._last_layer(self.primary), self._close_up(self.primary)
        final, explored, tested = self._predictions()
        return measured.MeasuredRecord(
            stack=self._stack(),
            first_block_norm=None if norms[0] is None else _KIND[norms[0].kind],
            final_norm=None if norms[-1] is None else _KIND[norms[-1].kind],
            unembed_bias=self._unembed_bias(),
            copy_mask=self._copy_mask(),
            norm_temperature=self._temperature_record(),
            last_layer=last_layer,
            close_up=looked_at,
            tuned_variants=None if self.primary is None else self._tuned_variants(self.primary),
            second_forward=None,
            final_prediction=final,
            temperature_exploration=explored,
            test_prompts=tested,
            absent=self.absent,
        )

    def _stack(self) -> Literal["pre_norm", "post_norm"] | None:
        """How blocks are built; None where no norm was found in front of them, and the family is not known."""
        if any(norm is not None for norm in self.model.next_norms[:-1]):
            return "pre_norm"
        return "post_norm" if self.model.family_verified else None

    def _temperature_record(self) -> measured.NormTemperatureRecord | None:
        if self.temperatures is None:
            return None
        return measured.NormTemperatureRecord(
            lens=self.headline.name,
            method="grid" if self.protocol.temperature_grid else "exact",
            calibration=self.beside.calibration,
            n_rows=sum(len(passage.positions) for passage in self.beside.passages),
            tau_per_layer=self.temperatures.tau,
            bound_hits=self.temperatures.bound_hits,
        )

    def _unembed_bias(self) -> measured.UnembedBiasRecord:
        bias = self.model.unembedding.bias
        if bias is None:
            return measured.UnembedBiasRecord(present=False, l2_norm=0.0, max_abs=0.0)
        wide = bias.double()
        return measured.UnembedBiasRecord(present=True, l2_norm=float(wide.norm()), max_abs=float(wide.abs().max()))

    def _copy_mask(self) -> measured.CopyMaskRecord:
        tokens = self.model.tokens
        ids = sorted(tokens.trivial(range(min(tokens.n_ids, self.model.d_vocab))))
        strings = tokens.display(ids[:16])
        return measured.CopyMaskRecord(
            size=len(ids), id_ranges=_ranges(ids), sample=tuple(strings[i] for i in ids[:16])
        )

    def _last_layer(self, prompt: int) -> measured.LastLayerRecord | None:
        """The headline lens at the last layer beside what the model itself said; None where either is not finite."""
        model, residual = self.model, self.part.last(prompt)[-1:]
        linear = model.unembedding.logits(model.unembedding.head_input(self.headline(residual, model.n_layers)))[0]
        if not bool(linear.isfinite().all() and self.part.logits[prompt].isfinite().all()):
            self.absent["last_layer"] = "the last layer or the model's own output is not finite"
            return None
        transform = model.unembedding.transform if self.transform is None else self.transform
        lens_logits = transform.apply_(linear.double())
        log_p = torch.log_softmax(lens_logits, -1)
        log_final = torch.log_softmax(self.part.logits[prompt].double(), -1)
        fitted = last_layer_temperature(lens_logits, log_final)
        checks = transform_checks(linear, log_final, model.unembedding.transform)
        answers = self.encoded[prompt].asked.answer_ids
        answer = max(sorted(set(answers)), key=lambda i: float(linear[i]), default=None)
        return measured.LastLayerRecord(
            kl_to_final_bits=float(kl_bits(log_p, log_final)),
            top1_agree=bool(linear.argmax() == log_final.argmax()),
            p_top1_lens=float(log_p.max().exp()),
            p_top1_model=float(log_final.max().exp()),
            p_answer_lens=None if answer is None else float(log_p[answer].exp()),
            answer_rank_lens=None if answer is None else 1 + int((linear > linear[answer]).sum()),
            temp_est=fitted.temp_est,
            kl_after_temp_bits=fitted.kl_after_temp_bits,
            temp_est_refined=fitted.temp_est_refined,
            kl_after_temp_refined_bits=fitted.kl_after_temp_refined_bits,
            scale=model.unembedding.transform.scale,
            softcap=model.unembedding.transform.softcap,
            kl_after_scale_bits=checks.scale_bits,
            kl_after_softcap_bits=checks.softcap_bits,
            kl_after_scale_then_softcap_bits=checks.scale_then_softcap_bits,
        )

    def _close_up(self, prompt: int) -> measured.PositionReadoutRecord:
        name = self.headline.name
        post_ln2 = self._post_ln2()
        views = {} if post_ln2 is None else {POST_LN2: post_ln2}  # in the order of the pairs: fewer sweeps of the head
        views |= {other: DecodingView(lens) for other, lens in self.lenses.items()}
        pairs = [(name, other) for other in views if other not in (name, "logit", "next_norm", POST_LN2)]
        pairs += [pair for pair in PAIRS if set(pair) <= set(views)]
        found = position_readout(
            self.part.last(prompt),
            views,
            headline=name,
            answer_ids=self.encoded[prompt].asked.answer_ids,
            pairs=pairs,
            scales=self.protocol.thresholds.gate_scales,
            unembedding=self.model.unembedding,
            lens_transform=self.transform,
        )
        return close_up_record(found, name)

    def _tuned_variants(self, prompt: int) -> measured.TunedVariantsRecord | None:
        """The prompt's last position under parts of the tuned lens; None without one."""
        lens = self.lenses.get("tuned")
        if not isinstance(lens, TunedLens):
            return None
        if self.headline is lens:
            self.absent["tuned_variants"] = "the tuned lens is the headline lens itself"
            return None
        if not self.final_is_model:
            self.absent["tuned_variants"] = FAILED_IDENTITY
            return None
        residual = self.part.last(prompt)
        tau = lens.temperatures
        ways: dict[str, Callable[[Tensor, int], Tensor]] = {
            "rotation_only": replace(lens, variant="rotation_only"),
            "temperature_only": lambda row, layer: self.headline(row, layer) / tau[layer],
        }
        if lens.has_means:
            ways["bias_only"] = replace(lens, variant="bias_only")
        rows = torch.stack([way(own[None], layer) for way in ways.values() for layer, own in enumerate(residual)])
        found = decode(
            rows,
            self._final(residual[-1:]),
            [Question(1, self.encoded[prompt].asked.answer_ids)],
            self.model.unembedding,
            lens_transform=self.transform,
        )
        n = len(residual)
        parts = {
            name: _variant(found, range(i * n, (i + 1) * n), bool(found.final_finite[0])) for i, name in enumerate(ways)
        }
        return measured.TunedVariantsRecord(temperatures=(None, *tau[1:]), **parts)

    def _post_ln2(self) -> DecodingView | None:
        """The second norm of the block that wrote last, where blocks have one."""
        try:
            norms = self.model.second_norms
        except ModelError as error:
            self.absent[POST_LN2] = str(error)
            return None
        layers = frozenset(i + 1 for i, norm in enumerate(norms) if norm is not None)
        if not layers:
            self.absent[POST_LN2] = "blocks have no second norm that reads the stream, or none that is known"
            return None

        def row(residual: Tensor, layer: int) -> Tensor:
            norm = norms[layer - 1]
            if norm is None:
                raise ModelError(f"Block {layer - 1} has no second norm; the view is defined at {sorted(layers)}.")
            return norm(residual)

        return DecodingView(row, layers)

    def _predictions(self) -> Predictions:
        """The primary prompt's own output, the same at other temperatures, and what test prompts give."""
        if not self.final_is_model:
            self.absent |= dict.fromkeys(_PREDICTIONS, FAILED_IDENTITY)
            return None, (), ()
        try:
            return self._heard()
        except NumericError as error:
            self.absent |= dict.fromkeys(_PREDICTIONS, str(error))
            return None, (), ()

    def _heard(self) -> Predictions:
        """The same, of a model whose head gives finite logits.

        Raises:
            NumericError: it does not.
        """
        head = self.model.unembedding
        final: measured.PredictionRecord | None = None
        explored: tuple[measured.PredictionRecord, ...] = ()
        tested: tuple[measured.PredictionRecord, ...] = ()
        if self.primary is not None:
            row = self._final(self.part.last(self.primary)[-1:])
            divisors = (1.0, *TEMPERATURES)
            answers = self.encoded[self.primary].asked.answer_ids
            said = head_predictions(row.expand(len(divisors), -1), head, LISTED_FINAL, divisors, answers)
            final = self._prediction(said[0], LISTED_FINAL, 1.0)
            explored = tuple(
                self._prediction(one, LISTED_EXPLORED, t) for one, t in zip(said[1:], TEMPERATURES, strict=True)
            )
        if self.beside.test_prompts:
            last = torch.stack(
                [self.part.last(self.part.n_prompts + i)[-1] for i in range(len(self.beside.test_prompts))]
            )
            said = head_predictions(self._final(last), head, LISTED_TEST)
            tested = tuple(
                self._prediction(one, LISTED_TEST, 1.0, text)
                for one, (text, _) in zip(said, self.beside.test_prompts, strict=True)
            )
        return final, explored, tested

    def _prediction(
        self, said: HeadPrediction, listed: int, temperature: float, prompt: str | None = None
    ) -> measured.PredictionRecord:
        ids = said.top_ids[:listed]
        strings = self.model.tokens.display(ids)
        return measured.PredictionRecord(
            prompt=prompt,
            temperature=temperature,
            entropy_bits=said.entropy_bits,
            top_ids=ids,
            top_tokens=tuple(strings[i] for i in ids),
            top_probs=said.top_probs[:listed],
            answer_rank=said.answer_rank,
            p_answer=said.p_answer,
        )


_KIND = {"rms": "RMSNorm", "layer": "LayerNorm"}


def second_forward(
    model: CausalLM,
    primary: Encoded,
    protocol: Protocol,
    lenses: Sequence[Lens],
    wish: str,
    found: measured.MeasuredRecord,
    progress: Callable[[int, int], None],
) -> measured.SecondForwardRecord:
    """Send the primary prompt through the model once more, alone, and read it under the headline lens.

    Args:
        model: the model.
        primary: the prompt.
        protocol: names the headline lens.
        lenses: the bound lenses.
        wish: `always`, `off`, or `auto`: not where kernels are deterministic and a second decode of the first pass
            agreed with the first to the rank.
        found: what the first pass gave.
        progress: called with (blocks done, blocks to do).
    """
    if wish == "off":
        return measured.SecondForwardRecord(mode="off")
    repeat = None if found.close_up is None else found.close_up.repeatability
    if (
        wish == "auto"
        and torch.are_deterministic_algorithms_enabled()
        and repeat is not None
        and not any(repeat.rank_dev)
    ):
        return measured.SecondForwardRecord(mode="skipped_deterministic")
    residuals, _ = read_residuals(model, [primary.token_ids], n_logits=0, progress=progress)
    named = {lens.name: lens for lens in lenses}
    name = protocol.headline
    again = position_readout(
        residuals.values[0, :, -1],
        {name: DecodingView(named[name])},
        headline=name,
        answer_ids=primary.asked.answer_ids,
        pairs=(),
        scales=(),
        unembedding=model.unembedding,
        lens_transform=None if protocol.lens_transform else HeadTransform(),
    )
    read = again.views[name]
    leads = zip(again.gap, read.answer_rank, strict=True)
    return measured.SecondForwardRecord(
        mode="always" if wish == "always" else "auto",
        answer_rank=read.answer_rank,
        p_answer=read.p_answer,
        answer_logit_gap=tuple(gap if rank == 1 else None for gap, rank in leads),
        top_ids=tuple(ids or () for ids in read.top_10),
    )


def close_up_record(found: PositionReadout, headline: str) -> measured.PositionReadoutRecord:
    """A close-up as the record keeps it."""
    repeat = found.repeatability
    return measured.PositionReadoutRecord(
        headline=headline,
        views=tuple(_view(name, reading) for name, reading in found.views.items()),
        overlaps=tuple(
            measured.OverlapRecord(
                view=view,
                against=against,
                jaccard_10=pair.jaccard_10,
                jaccard_50=pair.jaccard_50,
                spearman_top50_union=pair.spearman_top50_union,
                spearman_top50_ref=pair.spearman_top50_ref,
            )
            for (view, against), pair in found.pairs.items()
        ),
        answer_gap=found.gap,
        scaled=tuple(
            measured.ScaledRecord(scale=scale, p_answer=values) for scale, values in found.scaled_p_answer.items()
        ),
        repeatability=measured.RepeatabilityRecord(status="ok", rank_dev=repeat.rank_dev, top1_flip=repeat.top1_flip),
    )


def _variant(found: Readout, groups: Sequence[int], final_finite: bool) -> measured.TunedVariantRecord:
    """One way of decoding, by layer; layer 0 is left out like the tuned lens' rows there."""
    usable = [layer > 0 and final_finite and bool(found.finite[group, 0]) for layer, group in enumerate(groups)]
    asked = [int(found.answer_rank[group, 0]) or None for group in groups]
    return measured.TunedVariantRecord(
        kl_to_final_bits=tuple(
            float(found.kl_to_final_bits[group, 0]) if ok else None for group, ok in zip(groups, usable, strict=True)
        ),
        answer_rank=tuple(rank if ok else None for rank, ok in zip(asked, usable, strict=True)),
    )


def _view(name: str, reading: Reading) -> measured.ViewRecord:
    return measured.ViewRecord(
        view=name,
        answer_rank=reading.answer_rank,
        p_answer=reading.p_answer,
        top1_id=reading.top1_id,
        p_top1=reading.p_top1,
    )


def _ranges(ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending ids as [first, last] ranges."""
    ranges: list[tuple[int, int]] = []
    for i in ids:
        if ranges and ranges[-1][1] == i - 1:
            ranges[-1] = (ranges[-1][0], i)
        else:
            ranges.append((i, i))
    return tuple(ranges)
