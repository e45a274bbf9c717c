"""Fit a tuned lens while the weights stream: one pass for what the model says, one to fit each layer's translator."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from layerscope.errors import LensError
from layerscope.fitting.affine import AffineFit
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.divergence import DECODED_TOGETHER
from layerscope.fitting.finite import refuse_non_finite
from layerscope.fitting.layer import fit_layer
from layerscope.fitting.objective import Problem, Samples
from layerscope.fitting.options import TunedSettings
from layerscope.fitting.refine import Budget
from layerscope.fitting.sampled import IDS, KEPT_BYTES, Draws
from layerscope.fitting.session import final_rows
from layerscope.fitting.stream import Stream
from layerscope.lens_record import LayerFit, SkipLayers, TunedFit
from layerscope.lenses.lens_folder import FittedLens, tuned_tensors
from layerscope.lenses.tuned_lens import Translator
from layerscope.model.causal_lm import CausalLM
from layerscope.progress import FitObserver, SilentFit

FULL_MAPS_BYTES = 1 << 30
"""A lens keeps whole matrices while all of them together are no larger."""
MOST_REFINED = 1 << 17
"""Positions to fit to at which the model's own output over the whole vocabulary is kept."""
TARGETS_BYTES = 2 << 30
"""What the model's output at positions to fit to may take; wide models have fewer. No other budget decides it, so that
a fit is the same in any memory."""
ENOUGH_SKIPPED, MOST_SKIPPED = 128_000, 1 << 17
"""Tokens that a loss with skipped blocks should rest on, and rests on at most."""
VISITS = 3
"""How often refinement sees a position at most, on average."""
FEWEST_STEPS, MOST_STEPS = 50, 300
SAMPLED_STEPS = 60
"""Where steps draw ids."""
SKIPPED_BLOCKS = (2, 4, 8)
LARGEST_LOSS = 700.0
"""In nats; the exponential of more is no float."""
Fitted: TypeAlias = tuple[Translator, LayerFit, SkipLayers | None]
"""One layer: its translator, what it is worth, and what it costs to put it in the place of the blocks after it."""


def rank_of(rank: int | Literal["auto", "full"], d_model: int, n_layers: int) -> int:
    """The rank that is meant.

    Raises:
        LensError: a rank below 0 or above d_model.
    """
    if rank == "full" or (rank == "auto" and 4 * n_layers * d_model**2 <= FULL_MAPS_BYTES):
        return d_model
    if rank == "auto":
        return 256 if d_model >= 4096 else min(256, max(64, d_model // 32))
    if not 0 <= int(rank) <= d_model:
        raise LensError(f"The rank of a tuned lens is between 0 and d_model = {d_model}, but {rank} was asked for.")
    return int(rank)


def steps_of(n_refined: int, batch: int, *, sampled: bool) -> int:
    """Most steps of a layer's refinement, where none were asked for.

    Args:
        n_refined: positions that it draws from.
        batch: positions of a step.
        sampled: whether steps draw ids.
    """
    if sampled:
        return SAMPLED_STEPS
    return min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(VISITS * n_refined / batch)))


def fit_tuned(
    model: CausalLM,
    corpus: Corpus,
    out: Path,
    settings: TunedSettings | None = None,
    *,
    observer: FitObserver | None = None,
) -> FittedLens:
    """Fit a tuned lens and write it into a folder.

    Every layer that is finished is kept beside `out`; called again with the same model, text and settings after it was
    interrupted, the fit goes on behind them and ends with the same weights.

    Args:
        model: the model.
        corpus: text in three parts.
        out: folder of the lens, which must not be there yet.
        settings: how; the defaults where not given.
        observer: is told how it goes.

    Raises:
        LensError: a rank or a number of steps that cannot be; `out` is already there.
        PlacementError: neither memory nor disk has room.
        NumericError: a residual that is not finite.
    """
    return _TunedFitter(model, corpus, out, settings or TunedSettings(), observer or SilentFit()).run()


class _TunedFitter(AffineFit[TunedSettings]):
    """One fit; `fit_tuned` is its only user."""

    kind = "tuned"
    smaller = ", or give a smaller --batch"

    def __init__(
        self, model: CausalLM, corpus: Corpus, out: Path, settings: TunedSettings, observer: FitObserver
    ) -> None:
        _check(settings)
        self.rank = rank_of(settings.rank, model.d_model, model.n_layers)
        super().__init__(model, corpus, out, settings, observer)

    def fitted(self) -> tuple[TunedFit, tuple[str, ...], dict[str, Tensor]]:
        """Both passes."""
        with self.layers() as (stream, finals, samples):
            draws = self.draws(stream, finals, samples, self.batch) if self.sampling else None
            done = self._second_pass(stream, finals, samples, draws)
            translators, layers, skips = zip(*done, strict=True)
        losses = sorted((skip for skip in skips if skip is not None), key=lambda skip: skip.blocks)
        fit = TunedFit.of(
            self.settings,
            rank=self.rank,
            temperatures=(*(layer.temperature for layer in layers), 1.0),
            steps=self._steps(samples),
            ids=None if draws is None else draws.ids,
            n_moments=len(stream.positions("fit", self.settings.first_position)),
            n_refined=len(samples.fit),
            n_select=len(samples.select),
            n_held_out=len(samples.held_out),
            layers=layers,
            skip_layers=tuple(losses),
        )
        return fit, _notes(layers, losses), tuned_tensors([translator.to("cpu") for translator in translators])

    @property
    def n_refined(self) -> int:
        """Positions at which the model's output is kept: those that refinement draws from with the whole vocabulary."""
        return 0 if self.sampling else min(MOST_REFINED, self.corpus.fit.numel(), TARGETS_BYTES // self.target_bytes)

    @property
    def batch(self) -> int:
        """Positions of a step."""
        return self.settings.batch

    @property
    def lens_bytes(self) -> int:
        """Of the maps of all layers."""
        return 4 * self.model.n_layers * self.model.d_model * min(self.model.d_model, 2 * self.rank)

    @property
    def draw_bytes(self) -> int:
        """Memory of all steps' draws."""
        return KEPT_BYTES if self.sampling else 0

    def plan(self, stream: Stream, folder: Path | None) -> str:
        """One line on what will be done."""
        rank = "full rank" if self.rank == self.model.d_model else f"rank {self.rank}"
        ids = f" · {IDS:,} of {self.model.d_vocab:,} ids a step" if self.sampling else ""
        return self.planned(f"tuned lens of {self.model.id} · {rank}{ids}", stream, folder)

    def _second_pass(self, stream: Stream, finals: Tensor, samples: Samples, draws: Draws | None) -> list[Fitted]:
        fitted: list[Fitted] = []
        n_layers = self.model.n_layers

        def after(layer: int) -> None:
            kept = self.workspace.finished(layer)
            if kept is None:
                problem = self.problem(layer, stream, finals, samples, draws)
                translator, fit = self._fit(layer, problem)
                skip = self._skip(layer, translator, stream, finals)
                self.workspace.keep(layer, translator, fit, skip)
            else:
                translator, fit, skip = kept[0], kept[1].fit, kept[1].skip
            fitted.append((translator, fit, skip))
            self.observer.layer(layer, in_words(fit))
            self.observer.blocks(n_layers + layer + 1, 2 * n_layers)

        stream.visit_again(after)
        return fitted

    def _fit(self, layer: int, problem: Problem) -> tuple[Translator, LayerFit]:
        settings = self.settings
        return fit_layer(
            layer,
            problem,
            rank=self.rank,
            budget=Budget(self._steps(problem.samples), settings.batch, settings.rate),
            seed=settings.seed,
        )

    def _steps(self, samples: Samples) -> int:
        return self.settings.steps or steps_of(len(samples.fit), self.settings.batch, sampled=self.sampling)

    def _skip(self, layer: int, translator: Translator, stream: Stream, finals: Tensor) -> SkipLayers | None:
        """The loss on held-out text where this layer's translator stands for all blocks that follow."""
        blocks = self.model.n_layers - layer
        if blocks not in SKIPPED_BLOCKS or layer == 0:
            return None
        index = stream.positions("held_out", self.settings.first_position)[:MOST_SKIPPED]
        lens = model = 0.0
        for chunk in torch.split(index, DECODED_TOGETHER):
            gold = stream.following(chunk).to(self.device)
            residuals = stream.rows(chunk)
            refuse_non_finite(residuals, f"residuals of the held_out part at layer {layer}")
            x = self.objective.inputs(residuals)
            row = self.objective.row(translator(x), translator.temperature)
            lens -= float(self.objective.head.log_probs(row, gold).double().sum())
            final = final_rows(self.model, finals[chunk])
            model -= float(self.objective.head.log_probs(final, gold).double().sum())
        n = len(index)
        return SkipLayers(
            blocks=blocks,
            layer=layer,
            n_tokens=n,
            perplexity_lens=math.exp(min(LARGEST_LOSS, lens / n)),
            perplexity_model=math.exp(min(LARGEST_LOSS, model / n)),
        )


def in_words(fit: LayerFit) -> str:
    """What a layer's lens is worth, for progress."""
    return (
        f"held-out KL {fit.tuned_bits:.3f} bits (logit {fit.logit_bits:.3f}, bias {fit.bias_bits:.3f}, closed form "
        f"{fit.closed_form_bits:.3f})"
    )


def _check(settings: TunedSettings) -> None:
    """Refuse a number that cannot be.

    Raises:
        LensError: it is below one, or a rate not above zero.
    """
    for name in ("steps", "batch"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise LensError(f"The number of {name} should be at least 1, but it is {value}.")
    if not settings.rate > 0:
        raise LensError(f"The learning rate should be above 0, but it is {settings.rate}.")


def _notes(layers: Sequence[LayerFit], skips: Sequence[SkipLayers]) -> tuple[str, ...]:
    diverged = [str(fit.layer) for fit in layers if fit.stopped == "diverged"]
    notes = []
    if diverged:
        notes.append(
            f"Refinement ran away at layers {', '.join(diverged)}, as it does on little text; the best translator "
            "before that was kept."
        )
    worse = [str(fit.layer) for fit in layers if fit.tuned_bits > fit.logit_bits]
    if worse:
        notes.append(f"At layers {', '.join(worse)} the lens is further from the model than the logit lens.")
    if skips and skips[0].n_tokens < ENOUGH_SKIPPED:
        notes.append(
            f"The losses with skipped blocks rest on {skips[0].n_tokens:,} held-out tokens; {ENOUGH_SKIPPED:,} or more "
            "would be better."
        )
    return tuple(notes)
