"""Fit a Jacobian lens: the mean over text of what every layer's residual does to the last block's output.

By a chain, the product of every block's mean Jacobian, whose sums are gathered while the text goes through the blocks
once; or exactly, row by row backwards through all of them. A chain comes with rows that were computed exactly, which
say layer by layer how far it is off.
"""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import LensError, PlacementError
from layerscope.fitting.chain_sums import ChainSums, products, rows_of_chain
from layerscope.fitting.checkpoint import Checkpoint, Gathered
from layerscope.fitting.control_variate import ControlVariate
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.exact_rows import ExactRows, Halves, Spread, relative_difference_and_cosine
from layerscope.fitting.finite import refuse_non_finite
from layerscope.fitting.held_out import HeldOut, measured, same_top
from layerscope.fitting.jacobian_notes import notes
from layerscope.fitting.jacobian_prompts import (
    FEWEST_PROMPTS,
    POSITIONS_RULE,
    JacobianPrompts,
    refuse_coarse,
    rows_memory,
)
from layerscope.fitting.options import JacobianMethod, JacobianSettings
from layerscope.fitting.session import Fit, drawn
from layerscope.fitting.stream import Stream, stream_bytes
from layerscope.lens_record import Correction, JacobianFit, JacobianLayer, ProbeRows, StopRule
from layerscope.lenses.derived import shuffled
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens_folder import FittedLens, jacobian_tensors
from layerscope.lenses.lens_folder_check import PROBE_IDS, PROBE_ROWS
from layerscope.lenses.logit_lens import LogitLens
from layerscope.model.block_anatomy import Anatomist
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.progress import FitObserver, SilentFit

MOST_HELD_OUT = 512
"""Positions at which every layer is measured."""
HELD_OUT_FROM = 1
"""The first position of a sequence attracts attention whatever stands there; nothing is measured at it."""
MOST_PROMPTS = 4
"""Prompts whose rows go back together: after these an exact fit is kept."""
WHOLE, PROBED, HALVES = "block", "probe_block", ("first_block", "second_block")
"""Choices of prompts over which a chain averages: all of them, those with exact rows, and two halves."""


def fit_jacobian(
    model: CausalLM,
    corpus: Corpus,
    out: Path,
    settings: JacobianSettings | None = None,
    *,
    observer: FitObserver | None = None,
) -> FittedLens:
    """Fit a Jacobian lens and write it into a folder.

    While the text of a chain goes through the blocks, it is kept beside `out` how far it has come, and of an exact fit
    after every few prompts; called again with the same model, text and settings after it was interrupted, the fit goes
    on from there.

    Args:
        model: the model.
        corpus: text in three parts; `fit` gives prompts, `held_out` measures. Their length belongs to what is fitted.
        out: folder of the lens, which must not be there yet.
        settings: how; the defaults where not given.
        observer: is told how it goes.

    Raises:
        LensError: `out` is already there; numbers that cannot be; too little text; blocks that compute in less than
            float32.
        ModelError: blocks whose mean Jacobian has no closed form here, and which part is missing; attention that
            cannot be differentiated.
        PlacementError: the matrices or the text do not fit the memory.
        NumericError: a residual that is not finite.
    """
    return _JacobianFitter(model, corpus, out, settings or JacobianSettings(), observer or SilentFit()).run()


class _JacobianFitter(Fit[JacobianSettings]):
    """One fit; `fit_jacobian` is its only user."""

    kind = "jacobian"
    differentiates = True

    def __init__(
        self, model: CausalLM, corpus: Corpus, out: Path, settings: JacobianSettings, observer: FitObserver
    ) -> None:
        refuse_settings(settings)
        refuse_coarse(model)
        if settings.stop_from >= model.n_layers:
            raise LensError(
                f"stop_from should be a layer from 0 to {model.n_layers - 1}, those that have a matrix, but it is "
                f"{settings.stop_from}."
            )
        if settings.correct > model.d_model:
            raise LensError(
                f"correct should be at most d_model = {model.d_model}, the rows that there are, but it is "
                f"{settings.correct}."
            )
        if settings.correct and min(settings.prompts, len(corpus.fit)) < 2:
            raise LensError(
                "A chain is corrected on two prompts at least, whose rows show its noise; give more --prompts, or text."
            )
        super().__init__(model, corpus, out, settings, observer)
        generator = torch.Generator().manual_seed(settings.seed)
        self.drawn = JacobianPrompts.drawn(corpus, settings, generator)
        self.prompts, self.counted = self.drawn.token_ids, self.drawn.counted
        self.n_probes = min(settings.probe_prompts, len(self.prompts)) if settings.probe_rows else 0
        features = torch.randperm(model.d_model, generator=generator)[: settings.probe_rows]
        self.features = features.sort().values
        self.generator = generator

    def fitted(self) -> tuple[JacobianFit, tuple[str, ...], dict[str, Tensor]]:
        """The pass, the product or the rows, and what they are worth."""
        chain = self.settings.method == "chain"
        text = replace(
            self.corpus,
            fit=self.prompts if chain else self.prompts[:0],
            select=self.corpus.select[:0],
            held_out=self.corpus.held_out[: _sequences(MOST_HELD_OUT, self.corpus.fit.shape[1])],
        )
        self._check_room(text)
        stream = Stream(self.model, text, None)
        held_at = drawn(stream.positions("held_out", HELD_OUT_FROM), MOST_HELD_OUT, self.generator)
        gathered = self._pass(stream, held_at, chain)
        held = torch.stack([layer.pop("held") for layer in gathered])
        found = self._chain(gathered, held) if chain else self._exact(held)
        worth = self._measured(held, found, stream.rows(held_at))
        fit = self._fit_record(found, worth, len(held_at))
        tensors = jacobian_tensors(dict(enumerate(found.matrices)))
        if found.exact is not None:
            tensors |= {PROBE_ROWS: found.exact.means.float(), PROBE_IDS: self.prompts[: self.n_probes]}
        return fit, notes(fit, self.settings.prompts, len(self.prompts)), tensors

    # The pass

    def _pass(self, stream: Stream, held_at: Int[Tensor, " held"], chain: bool) -> list[Gathered]:
        """Residuals of held-out positions at every layer, and of a chain every block's mean Jacobians."""
        model = self.model
        chosen = self._choices if chain else {}
        per_layer = len(held_at) + model.d_model * len(chosen)
        checkpoint = Checkpoint(self.workspace, stream.residuals, model.n_layers, per_layer * (model.n_layers + 1))
        gathered = checkpoint.restore()
        self.observer.plan(self._plan(len(gathered)) + checkpoint.shortage)
        sums = ChainSums(self.counted, chosen, stream) if chain else None

        def after(layer: int) -> None:
            here: Gathered = {"held": stream.rows(held_at).clone()}
            refuse_non_finite(here["held"], f"residuals of the held_out part at layer {layer}")
            if sums is not None and layer > 0:
                here |= sums.matrices()
                refuse_non_finite(here[WHOLE], f"the mean Jacobian of block {layer - 1}")
            gathered.append(here)
            checkpoint.offer(gathered)
            self.observer.blocks(layer, 2 * model.n_layers)

        reached = len(gathered) - 1 if gathered else None
        if sums is None:
            stream.visit(after, reached=reached)
            return gathered
        with model.attention_in_hand() as recorder:
            sums.anatomist = Anatomist(model.id, recorder, model.next_norms[:-1], model.second_norms)
            stream.visit(after, reached=reached, visit=sums.visit)
        return gathered

    @property
    def _choices(self) -> dict[str, slice]:
        """Over which prompts a chain averages: all, those with exact rows, and halves where there are two prompts.

        Of a corrected chain the corrections have halves.
        """
        n = len(self.prompts)
        half = 0 if self.settings.correct else n // 2
        halves = {HALVES[0]: slice(0, half), HALVES[1]: slice(half, n)} if half else {}
        return {WHOLE: slice(0, n)} | halves | ({PROBED: slice(0, self.n_probes)} if self.n_probes else {})

    # The matrices

    def _chain(self, gathered: list[Gathered], held: Float[Tensor, "layer held d_model"]) -> "_Found":
        """Products of block means, and exact rows of a few prompts beside the chain's of the same prompts."""

        def taken(name: str) -> list[Tensor]:
            return [layer.pop(name) for layer in gathered[1:] if name in layer]

        matrices = products(taken(WHOLE))
        first, second = (taken(name) for name in HALVES)
        halves = (products(first), products(second)) if first else None
        found = _Found(matrices, halves, None, len(self.prompts))
        blocks, correct = taken(PROBED), self.settings.correct
        n_probed, n_drawn = len(self.features) * self.n_probes, correct * len(self.prompts)
        if blocks:
            rows = torch.eye(self.model.d_model)[self.features]
            exact = self._rows(self.prompts[: self.n_probes], rows, 0.0, n_probed / (n_probed + n_drawn))
            probed = ExactRows.of(exact, rows_of_chain(blocks, rows))
            found = replace(found, spread=Spread.of(exact), exact=probed)
        if not correct:
            return found
        variate = ControlVariate.drawn(matrices, len(self.prompts), correct, self.settings.seed)
        corrections = self._pulled(held, variate, n_probed / (n_probed + n_drawn))
        whole, errors = corrections.whole, range(self.model.n_layers)
        return replace(
            found,
            matrices=variate.corrected(whole),
            halves=_matrices(corrections, variate),
            errors=[variate.error(whole, layer) for layer in errors],
            correction=Correction(rows=correct, n_prompts=whole.n),
        )

    def _exact(self, held: Float[Tensor, "layer held d_model"]) -> "_Found":
        """The mean of all rows of prompts."""
        halves = self._pulled(held, None, 0.0)
        whole = halves.whole
        return _Found([mean.float() for mean in whole.means], _matrices(halves, None), whole, halves.n)

    def _pulled(
        self, held: Float[Tensor, "layer held d_model"], variate: ControlVariate | None, begun: float
    ) -> Halves:
        """All rows of prompts, or what drawn ones add to a chain, until all prompts are read or the mean has settled.

        Args:
            held: residuals by which lenses of the halves are compared.
            variate: the chain and the rows that are drawn; None for all rows.
            begun: share of the work that is done before.
        """
        model, n = self.model, len(self.prompts)
        halves = Halves.kept(self.workspace) or Halves.none(model.n_layers, model.d_model, model.d_model)
        while halves.n < n and not self._settled(halves, held, variate):
            first = halves.n
            batch = self.prompts[first : first + max(1, min(MOST_PROMPTS, self._prompts_at_once))]
            rows = torch.eye(model.d_model) if variate is None else variate.rows(first, len(batch))
            shares = (begun + (1 - begun) * done / n for done in (first, first + len(batch)))
            found = self._rows(batch, rows, *shares)
            if variate is None:
                halves = halves.with_prompts(found)
            else:
                for i in range(len(batch)):
                    halves = halves.with_prompts(variate.correction(first + i, found[:, :, i]))
            halves.keep(self.workspace)
        return halves

    def _settled(
        self, halves: Halves, held: Float[Tensor, "layer held d_model"], variate: ControlVariate | None
    ) -> bool:
        """Whether at every layer that is asked the mean has settled, and reads the same whichever half it is of."""
        stop_at = self.settings.stop_at
        if stop_at is None or halves.n < FEWEST_PROMPTS:
            return False
        asked, whole = range(self.settings.stop_from, self.model.n_layers), halves.whole
        errors = [whole.standard_error(i) if variate is None else variate.error(whole, i) for i in asked]
        if any(error is None or error > stop_at for error in errors):
            return False
        matrices = _matrices(halves, variate)
        return matrices is not None and min(self._same_top(matrices, held, asked)) >= 1 - stop_at

    def _same_top(self, halves: "_Pair", held: Float[Tensor, "layer held d_model"], layers: range) -> list[float]:
        """At some layers how often lenses of the halves have the same token on top."""
        first, second = (JacobianLens(self.model.final_norm, tuple(half)).to(self.device) for half in halves)
        return same_top(self.model, first, second, held, layers)

    def _rows(
        self, prompts: Tensor, rows: Tensor, begun: float, ended: float
    ) -> Float[Tensor, "layer row sequence d_model"]:
        """Rows of every layer's Jacobian by prompt; progress goes from one share of the second half to another."""
        n = self.model.n_layers

        def told(done: int, total: int) -> None:
            share = begun + (ended - begun) * done / total
            self.observer.blocks(n + int(n * share), 2 * n)

        per_row = len(prompts) * self.drawn.bytes_of_row(self.model.d_model)
        at_once = max(1, self._rows_memory // max(1, per_row))
        return self.model.pull_back(prompts, rows, self.counted, rows_at_once=at_once, progress=told)

    @property
    def _rows_memory(self) -> int:
        """Bytes that rows on their way back may take."""
        return rows_memory(self.host_memory())

    @property
    def _prompts_at_once(self) -> int:
        by_rows = self._rows_memory // (16 * self.drawn.bytes_of_row(self.model.d_model))
        return min(by_rows, self.host_memory() // (4 * self._bytes_of_rows))

    @property
    def _bytes_of_rows(self) -> int:
        """Of all rows of all layers of one prompt, in float64."""
        return 8 * self.model.n_layers * self.model.d_model**2

    # What it is worth

    def _measured(
        self, held: Float[Tensor, "layer held d_model"], found: "_Found", finals: Float[Tensor, "held d_model"]
    ) -> list["_Worth"]:
        """Every layer before the last, as a read-out and as a mean."""
        final_norm, layers = self.model.final_norm, range(self.model.n_layers)
        lens = JacobianLens(final_norm, tuple(found.matrices)).to(self.device)
        lenses = (LogitLens(final_norm), lens, shuffled(lens, self.settings.seed))
        by_layer = measured(self.model, lenses, held[:-1], finals)
        same: list[float] | list[None] = [None] * len(layers)
        if found.halves is not None:
            same = self._same_top(found.halves, held, layers)
        worth = []
        for layer, (logit, jacobian, null) in zip(layers, by_layer, strict=True):
            words = f"held-out KL {jacobian.bits:.3f} bits (logit {logit.bits:.3f}, shuffled {null.bits:.3f})"
            self.observer.layer(layer, words)
            pair = None if found.halves is None else (found.halves[0][layer], found.halves[1][layer])
            worth.append(_Worth(logit, jacobian, null, _compared(pair), same[layer]))
        return worth

    def _fit_record(self, found: "_Found", worth: list["_Worth"], n_held_out: int) -> JacobianFit:
        layers = []
        for layer, (matrix, here) in enumerate(zip(found.matrices, worth, strict=True)):
            sigma = None if found.spread is None else found.spread.relative(layer)
            beta = None if found.exact is None else found.exact.bias(layer)
            layers.append(
                JacobianLayer(
                    layer=layer,
                    norm=float(matrix.double().norm()) / len(matrix) ** 0.5,
                    beta=beta if found.correction is None else None,
                    base_beta=None if found.correction is None else beta,
                    corrected_error=None if found.errors is None else found.errors[layer],
                    sigma=sigma,
                    standard_error=None if sigma is None else sigma / found.n_prompts**0.5,
                    half_difference=here.halves[0],
                    half_cosine=here.halves[1],
                    half_agreement=here.half_agreement,
                    logit_bits=here.logit.bits,
                    jacobian_bits=here.jacobian.bits,
                    logit_top1=here.logit.top1,
                    jacobian_top1=here.jacobian.top1,
                    shuffled_bits=here.shuffled.bits,
                )
            )
        exact, settings = found.exact, self.settings
        return JacobianFit(
            method=settings.method,
            target_layer=self.model.n_layers,
            seq_len=self.corpus.fit.shape[1],
            first_position=settings.first_position,
            positions_rule=POSITIONS_RULE,
            n_prompts=found.n_prompts,
            prompts_sha256=self.drawn.sha256(found.n_prompts),
            probe=None if exact is None else ProbeRows(rows=tuple(self.features.tolist()), n_prompts=self.n_probes),
            correction=found.correction,
            stop=None if settings.stop_at is None else StopRule(at=settings.stop_at, first_layer=settings.stop_from),
            transformers=version("transformers"),
            n_held_out=n_held_out,
            layers=tuple(layers),
        )

    # Room

    def _plan(self, n_passed: int) -> str:
        probe = f"{len(self.features)} exact rows on {self.n_probes} of them" if self.n_probes else "no exact rows"
        return (
            f"jacobian lens of {self.model.id} · {self.settings.method} · {len(self.prompts)} prompts of "
            f"{self.corpus.fit.shape[1]}, positions {self.counted.start} to {self.counted.stop - 1}"
            + (f" · {probe}" if self.settings.method == "chain" else "")
            + (f" · corrected by {self.settings.correct} drawn rows of each" if self.settings.correct else "")
            + (f" · goes on behind layer {n_passed - 1}" if n_passed else "")
            + self.leftovers()
        )

    def _check_room(self, text: Corpus) -> None:
        """Refuse what does not fit, before anything is allocated.

        Raises:
            PlacementError: the memory does not hold text and matrices.
        """
        d, n = self.model.d_model, self.model.n_layers
        stream = stream_bytes(text.fit.numel() + text.held_out.numel(), d)
        # Means of halves and of both, a prompt's, and room to join them.
        pulled = 6 * self._bytes_of_rows if self.settings.correct or self.settings.method == "exact" else 0
        chained = 0
        if self.settings.method == "chain":
            # Blocks and products of all prompts and of halves in float32, blocks of those with exact rows; the sums of
            # one block, of at most three sets of prompts.
            chained = 4 * d * d * n * (4 if self.n_probes else 3) + 8 * d * 6 * self.model.widest_activation
        matrices = chained + pulled
        needed = stream + matrices + 3 * self.block_bytes() + 2 * 4 * d * MOST_HELD_OUT * (n + 1) + self._rows_memory
        if needed > self.host_memory():
            raise PlacementError(
                f"Fitting a Jacobian lens needs {format_bytes(needed)} (the text {format_bytes(stream)}, matrices "
                f"{format_bytes(matrices)}), but {format_bytes(self.host_memory())} can be had; give fewer --prompts, "
                "or raise --memory."
            )


_Pair: TypeAlias = tuple[list[Tensor], list[Tensor]]
"""Matrices of every layer, of two halves of the prompts."""


@dataclass(frozen=True)
class _Found:
    """What was fitted, and what is known of how far it can be trusted."""

    matrices: list[Float[Tensor, "d_model d_model"]]
    halves: _Pair | None
    """Fitted in the same way to halves of the prompts; None of a single prompt."""
    spread: Spread | None
    """Of exact rows between prompts; None where there are none."""
    n_prompts: int
    exact: ExactRows | None = None
    """Beside those of a chain."""
    errors: list[float | None] | None = None
    """Relative standard errors of a corrected chain, by layer;"""
    correction: Correction | None = None
    """and what corrected it."""


@dataclass(frozen=True)
class _Worth:
    """One layer on held-out text, and between the halves of the prompts."""

    logit: HeldOut
    jacobian: HeldOut
    shuffled: HeldOut
    halves: tuple[float | None, float | None]
    """Relative difference and cosine of their matrices."""
    half_agreement: float | None


def _matrices(halves: Halves, variate: ControlVariate | None) -> _Pair | None:
    """In float32; None where one half has no prompt yet."""
    if not halves.second.n:
        return None
    if variate is not None:
        return variate.corrected(halves.first), variate.corrected(halves.second)
    return [mean.float() for mean in halves.first.means], [mean.float() for mean in halves.second.means]


def _compared(halves: tuple[Tensor, Tensor] | None) -> tuple[float | None, float | None]:
    """Relative difference and cosine of two matrices, where there are two and neither is zero."""
    return (None, None) if halves is None else relative_difference_and_cosine(*halves)


def _sequences(n_positions: int, seq_len: int) -> int:
    """How many sequences give so many positions, a few from each."""
    return max(1, -(-4 * n_positions // seq_len))


def refuse_settings(settings: JacobianSettings) -> None:
    """Refuse numbers that cannot be, whatever the text.

    Raises:
        LensError: no such method, or a number below what makes sense.
    """
    if settings.method not in get_args(JacobianMethod):
        raise LensError(f"There is no method '{settings.method}'; choose from {', '.join(get_args(JacobianMethod))}.")
    least = {"prompts": 1, "first_position": 0, "probe_rows": 0, "probe_prompts": 2, "correct": 0, "stop_from": 0}
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value < smallest:
            raise LensError(f"{name} should be at least {smallest}, but it is {value}.")
    if settings.correct and settings.method != "chain":
        raise LensError("An exact fit has no bias to correct; leave out --correct, or choose --method chain.")
    if settings.stop_at is not None and not 0 < settings.stop_at < 1:
        raise LensError(f"stop_at is a share between 0 and 1, as 0.05, but it is {settings.stop_at}.")
