"""Fit a tuned lens while the weights stream: one pass for what the model says, one to fit each layer's translator."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from layerscope.errors import LensError, PlacementError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.divergence import DECODED_TOGETHER, Head
from layerscope.fitting.finite import refuse_non_finite, refuse_non_finite_at
from layerscope.fitting.layer import fit_layer
from layerscope.fitting.moments import Moments, Regression
from layerscope.fitting.objective import Objective, Problem, Sample, Samples
from layerscope.fitting.options import TunedSettings
from layerscope.fitting.refine import Budget
from layerscope.fitting.session import Fit, drawn, final_rows, targets_at
from layerscope.fitting.stream import CHUNK, Stream, stream_bytes
from layerscope.lens_record import LayerFit, SkipLayers, SplitName, TunedFit
from layerscope.lens_words import Placement
from layerscope.lenses.lens_folder import FittedLens, tuned_tensors
from layerscope.lenses.tuned_lens import Translator
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.progress import FitObserver, SilentFit

FULL_MAPS_BYTES = 1 << 30
"""A lens keeps whole matrices while all of them together are no larger."""
MOST_REFINED, MOST_SELECT, MOST_HELD_OUT = 1 << 17, 1 << 12, 1 << 14
"""Positions at which the model's own output is kept, to fit to, to choose by and to measure."""
TARGETS_BYTES = 2 << 30
"""What the model's output at positions to fit to may take; wide models have fewer. No other budget decides it, so that
a fit is the same in any memory."""
ENOUGH_SKIPPED, MOST_SKIPPED = 128_000, 1 << 17
"""Tokens that a loss with skipped blocks should rest on, and rests on at most."""
VISITS = 3
"""How often refinement sees a position at most, on average."""
FEWEST_STEPS, MOST_STEPS = 50, 300
SKIPPED_BLOCKS = (2, 4, 8)
LARGEST_LOSS = 700.0
"""In nats; the exponential of more is no float."""
MATRICES = 16
"""Float64 matrices of d_model x d_model that fitting one layer holds at once, roughly."""

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


class _TunedFitter(Fit[TunedSettings]):
    """One fit; `fit_tuned` is its only user."""

    kind = "tuned"

    def __init__(
        self, model: CausalLM, corpus: Corpus, out: Path, settings: TunedSettings, observer: FitObserver
    ) -> None:
        _check(settings, corpus)
        self.rank = rank_of(settings.rank, model.d_model, model.n_layers)
        super().__init__(model, corpus, out, settings, observer)
        self.objective = Objective(Head(model.unembedding), model.final_norm, settings.placement)

    def fitted(self) -> tuple[TunedFit, tuple[str, ...], dict[str, Tensor]]:
        """Both passes."""
        with self._buffers() as folder:
            keep = self._in_memory(self.model.n_layers + 2)
            stream = Stream(self.model, self.corpus, folder)
            finals = stream.allocate("finals")
            self.observer.plan(self._plan(stream, folder))
            # Blocks are most of the time of a small model's fit: where memory holds every layer, none runs twice.
            stream.visit(lambda layer: self.observer.blocks(layer, 2 * self.model.n_layers), keep=keep)
            finals.copy_(stream.residuals)
            finals = finals.view(-1, self.model.d_model)
            samples = self._samples(stream, finals)
            translators, layers, skips = zip(*self._second_pass(stream, finals, samples), strict=True)
        losses = sorted((skip for skip in skips if skip is not None), key=lambda skip: skip.blocks)
        fit = TunedFit.of(
            self.settings,
            rank=self.rank,
            temperatures=(*(layer.temperature for layer in layers), 1.0),
            steps=self._steps(samples),
            n_moments=len(stream.positions("fit", self.settings.first_position)),
            n_refined=len(samples.fit),
            n_select=len(samples.select),
            n_held_out=len(samples.held_out),
            layers=layers,
            skip_layers=tuple(losses),
        )
        return fit, _notes(layers, losses), tuned_tensors([translator.to("cpu") for translator in translators])

    @contextmanager
    def _buffers(self) -> Iterator[Path | None]:
        """A folder for buffers that memory has no room for; None where it has."""
        needed, budget = self._working_bytes(), self.device_memory()
        if needed > budget:
            raise PlacementError(
                f"Fitting one layer needs {format_bytes(needed)} beside the text, but the budget leaves "
                f"{format_bytes(budget)}; raise --memory, or give a smaller --batch."
            )
        if self._in_memory(2):
            yield None
            return
        folder = self.workspace.room() / "buffers"
        shutil.rmtree(folder, ignore_errors=True)  # of a fit that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            # Some network filesystems keep a mapped file's name until it is let go; the folder goes with the whole fit.
            shutil.rmtree(folder, ignore_errors=True)

    def _in_memory(self, n_layers: int) -> bool:
        """Whether memory has room for so many layers' residuals beside the fit of one layer."""
        n_tokens = sum(part.numel() for part in (self.corpus.fit, self.corpus.select, self.corpus.held_out))
        apart = self.device.type != "cpu"  # then the text has the machine's memory, and the fit the accelerator's
        needed = n_layers * stream_bytes(n_tokens, self.model.d_model) + (0 if apart else self._working_bytes())
        return needed <= self.host_memory()

    def _working_bytes(self) -> int:
        """Memory of one layer's fit: moments and their decompositions, targets, one batch of logits and rows."""
        d = self.model.d_model
        targets = self._target_bytes() * (self._n_refined() + MOST_SELECT + MOST_HELD_OUT)
        rows = 24 * d * max(DECODED_TOGETHER, self.settings.batch)
        lens = 4 * self.model.n_layers * d * min(d, 2 * self.rank)
        fitting = 8 * MATRICES * d * d + 2 * targets + rows + (128 << 20)  # twice: parts are joined
        return lens + max(fitting, targets + self.block_bytes())

    def _target_bytes(self) -> int:
        """Of one position: a row of the head's width, and another where there is a softcap."""
        head = self.model.unembedding
        return 4 * head.d_head * (1 if head.transform.softcap is None else 2) + 12

    def _n_refined(self) -> int:
        """Positions that refinement draws from."""
        return min(MOST_REFINED, self.corpus.fit.numel(), TARGETS_BYTES // self._target_bytes())

    def _plan(self, stream: Stream, folder: Path | None) -> str:
        where = "in memory" if folder is None else f"on disk ({format_bytes(2 * stream.bytes)})"
        rank = "full rank" if self.rank == self.model.d_model else f"rank {self.rank}"
        counted = self.corpus.record.splits
        return (
            f"tuned lens of {self.model.id} · {rank} · placement {self.settings.placement} · "
            f"{counted['fit'].n_tokens:,} tokens to fit, {counted['select'].n_tokens:,} to choose by, "
            f"{counted['held_out'].n_tokens:,} held out · sequences of {stream.seq_len} · residuals {where}"
            + self.leftovers()
        )

    def _samples(self, stream: Stream, finals: Tensor) -> Samples:
        """Positions whose targets are kept, by part."""
        generator = torch.Generator().manual_seed(self.settings.seed)

        def sample(part: SplitName, most: int) -> Sample:
            index = drawn(stream.positions(part, self.settings.first_position), most, generator)
            refuse_non_finite_at(index, lambda some: finals[some], f"final residuals of the {part} part")
            targets = targets_at(self.model, self.objective.head, finals, index)
            return Sample(index, targets, stream.following(index).to(self.device))

        return Samples(
            sample("fit", self._n_refined()), sample("select", MOST_SELECT), sample("held_out", MOST_HELD_OUT)
        )

    def _second_pass(self, stream: Stream, finals: Tensor, samples: Samples) -> list[Fitted]:
        fitted: list[Fitted] = []
        n_layers = self.model.n_layers

        def after(layer: int) -> None:
            kept = self.workspace.finished(layer)
            if kept is None:
                translator, fit, skip = self._fit(layer, stream, finals, samples)
                self.workspace.keep(layer, translator, fit, skip)
            else:
                translator, fit, skip = kept[0], kept[1].fit, kept[1].skip
            fitted.append((translator, fit, skip))
            self.observer.layer(layer, in_words(fit))
            self.observer.blocks(n_layers + layer + 1, 2 * n_layers)

        stream.visit_again(after)
        return fitted

    def _fit(self, layer: int, stream: Stream, finals: Tensor, samples: Samples) -> Fitted:
        settings = self.settings
        for part in ("fit", "select", "held_out"):
            index = getattr(samples, part).index
            refuse_non_finite_at(index, stream.rows, f"residuals of the {part} part at layer {layer}")
        translator, fit = fit_layer(
            layer,
            Problem(self.objective, stream.rows, samples, self._regression(stream, finals)),
            rank=self.rank,
            budget=Budget(self._steps(samples), settings.batch, settings.rate),
            seed=settings.seed,
        )
        return translator, fit, self._skip(layer, translator, stream, finals)

    def _steps(self, samples: Samples) -> int:
        enough = math.ceil(VISITS * len(samples.fit) / self.settings.batch)
        return self.settings.steps or min(MOST_STEPS, max(FEWEST_STEPS, enough))

    def _regression(self, stream: Stream, finals: Tensor) -> Regression:
        """Of what is missing to the final row, on the layer's own: a shrunken map then leads to the logit lens."""
        moments = Moments(self.model.d_model, self.device)
        for chunk in torch.split(stream.positions("fit", self.settings.first_position), CHUNK):
            x, final = (self.objective.inputs(part) for part in (stream.rows(chunk), finals[chunk]))
            moments.update(x, final - x)
        return moments.regression()

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


def _check(settings: TunedSettings, corpus: Corpus) -> None:
    """Refuse what would leave nothing to fit.

    Raises:
        LensError: too few positions, or a word or number that cannot be.
    """
    if settings.placement not in get_args(Placement):
        raise LensError(f"There is no placement '{settings.placement}'; choose from {', '.join(get_args(Placement))}.")
    seq_len = corpus.fit.shape[1]
    if not 0 <= settings.first_position < seq_len - 1:
        raise LensError(
            f"Of sequences of {seq_len} positions the first {settings.first_position} should be left out, which leaves "
            "none that a token follows; give a smaller first position."
        )
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
