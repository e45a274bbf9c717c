"""What fits of a map for each layer share: the text in the stream, moments, and positions with what the model says."""

import shutil
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar, get_args

import torch
from torch import Tensor

from layerscope.errors import LensError, PlacementError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.divergence import DECODED_TOGETHER, Head
from layerscope.fitting.finite import refuse_non_finite_at
from layerscope.fitting.moments import Moments, Regression
from layerscope.fitting.objective import Objective, Positions, Problem, Sample, Samples
from layerscope.fitting.options import RidgeSettings, TunedSettings
from layerscope.fitting.sampled import Draws, worth_sampling
from layerscope.fitting.session import Fit, drawn, final_rows, targets_at
from layerscope.fitting.stream import CHUNK, Stream, stream_bytes
from layerscope.lens_record import SplitName
from layerscope.lens_words import Placement
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.progress import FitObserver

MOST_SELECT, MOST_HELD_OUT = 1 << 12, 1 << 14
"""Positions to choose by and to measure at, all ids each;"""
FEW_SELECT, FEW_HELD_OUT = 1 << 9, 1 << 11
"""the same where the vocabulary is so large that steps draw from it: each visit of it costs as much as many steps."""
MATRICES = 16
"""Float64 matrices of d_model x d_model that fitting one layer holds at once, roughly."""

S = TypeVar("S", bound=TunedSettings | RidgeSettings)


class AffineFit(Fit[S]):
    """A fit that takes all text through the blocks, and at each layer asks for a map to the final residual."""

    def __init__(self, model: CausalLM, corpus: Corpus, out: Path, settings: S, observer: FitObserver) -> None:
        check_positions(settings, corpus)
        self.sampling = worth_sampling(model.d_vocab)
        """Whether steps draw ids."""
        super().__init__(model, corpus, out, settings, observer)
        self.objective = Objective(Head(model.unembedding), model.final_norm, settings.placement)

    smaller: ClassVar[str] = ""
    """What else than more memory would help where it does not suffice."""

    @property
    def n_refined(self) -> int:
        """Positions to fit to at which the model's output over the whole vocabulary is kept."""
        return 0

    @property
    def batch(self) -> int:
        """Positions of a step."""
        return 0

    @property
    def draw_bytes(self) -> int:
        """Memory of all steps' draws."""
        return 0

    @property
    @abstractmethod
    def lens_bytes(self) -> int:
        """Of the maps of all layers."""

    @contextmanager
    def layers(self) -> Iterator[tuple[Stream, Tensor, Samples]]:
        """The text after the last block: the stream, its final residuals, positions with what the model says there."""
        with self._buffers() as folder:
            keep = self._in_memory(self.model.n_layers + 2)
            stream = Stream(self.model, self.corpus, folder)
            finals = stream.allocate("finals")
            self.observer.plan(self.plan(stream, folder))
            # Blocks are most of the time of a small model's fit: where memory holds every layer, none runs twice.
            stream.visit(lambda layer: self.observer.blocks(layer, 2 * self.model.n_layers), keep=keep)
            finals.copy_(stream.residuals)
            finals = finals.view(-1, self.model.d_model)
            yield stream, finals, self._samples(stream, finals)

    @abstractmethod
    def plan(self, stream: Stream, folder: Path | None) -> str:
        """One line on what will be done."""

    def planned(self, title: str, stream: Stream, folder: Path | None) -> str:
        """That line, from the words that begin it."""
        where = "in memory" if folder is None else f"on disk ({format_bytes(2 * stream.bytes)})"
        counted = self.corpus.record.splits
        return (
            f"{title} · placement {self.settings.placement} · "
            f"{counted['fit'].n_tokens:,} tokens to fit, {counted['select'].n_tokens:,} to choose by, "
            f"{counted['held_out'].n_tokens:,} held out · sequences of {stream.seq_len} · residuals {where}"
            + self.leftovers()
        )

    def draws(self, stream: Stream, finals: Tensor, samples: Samples, batch: int) -> Draws:
        """Ids and positions of every step."""
        index = samples.fit.index

        def final_rows_at(chosen: Tensor) -> Tensor:
            return final_rows(self.model, finals[index[chosen]])

        return Draws(self.objective.head, final_rows_at, len(index), batch=batch, seed=self.settings.seed)

    def problem(
        self, layer: int, stream: Stream, finals: Tensor, samples: Samples, draws: Draws | None = None
    ) -> Problem:
        """One layer's, which the stream has reached.

        Raises:
            NumericError: a residual that is not finite.
        """
        for part in ("fit", "select", "held_out"):
            index = getattr(samples, part).index
            refuse_non_finite_at(index, stream.rows, f"residuals of the {part} part at layer {layer}")
        return Problem(self.objective, stream.rows, samples, self._regression(stream, finals), draws)

    def _regression(self, stream: Stream, finals: Tensor) -> Regression:
        """Of what is missing to the final row, on the layer's own: a shrunken map then leads to the logit lens."""
        moments = Moments(self.model.d_model, self.device)
        for chunk in torch.split(stream.positions("fit", self.settings.first_position), CHUNK):
            x, final = (self.objective.inputs(part) for part in (stream.rows(chunk), finals[chunk]))
            moments.update(x, final - x)
        return moments.regression()

    def _samples(self, stream: Stream, finals: Tensor) -> Samples:
        """Positions by part, with the model's output over the whole vocabulary where it is asked for."""
        generator = torch.Generator().manual_seed(self.settings.seed)

        def sample(part: SplitName, most: int) -> Sample:
            index = drawn(stream.positions(part, self.settings.first_position), most, generator)
            refuse_non_finite_at(index, lambda some: finals[some], f"final residuals of the {part} part")
            targets = targets_at(self.model, self.objective.head, finals, index)
            return Sample(index, stream.following(index).to(self.device), targets)

        def fit_positions() -> Positions:
            index = stream.positions("fit", self.settings.first_position)
            refuse_non_finite_at(index, lambda some: finals[some], "final residuals of the fit part")
            return Positions(index, stream.following(index).to(self.device))

        fit = sample("fit", self.n_refined) if self.n_refined else fit_positions()
        return Samples(fit, sample("select", self.n_select), sample("held_out", self.n_held_out))

    @property
    def n_select(self) -> int:
        """Positions to choose by, at most."""
        return FEW_SELECT if self.sampling else MOST_SELECT

    @property
    def n_held_out(self) -> int:
        """Positions to measure at, at most."""
        return FEW_HELD_OUT if self.sampling else MOST_HELD_OUT

    @contextmanager
    def _buffers(self) -> Iterator[Path | None]:
        """A folder for buffers that memory has no room for; None where it has."""
        needed, budget = self._working_bytes(), self.device_memory()
        if needed > budget:
            raise PlacementError(
                f"Fitting one layer needs {format_bytes(needed)} beside the text, but the budget leaves "
                f"{format_bytes(budget)}; raise --memory{self.smaller}."
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
        targets = self.target_bytes * (self.n_refined + self.n_select + self.n_held_out)
        rows = 24 * d * max(DECODED_TOGETHER, self.batch)
        fitting = 8 * MATRICES * d * d + 2 * targets + rows + self.draw_bytes + (128 << 20)  # twice: parts are joined
        return self.lens_bytes + max(fitting, targets + self.block_bytes())

    @property
    def target_bytes(self) -> int:
        """Of one position: a row of the head's width, and another where there is a softcap."""
        head = self.model.unembedding
        return 4 * head.d_head * (1 if head.transform.softcap is None else 2) + 12


def check_positions(settings: TunedSettings | RidgeSettings, corpus: Corpus) -> None:
    """Refuse what would leave nothing to fit.

    Raises:
        LensError: no such placement, or sequences too short for the first position.
    """
    if settings.placement not in get_args(Placement):
        raise LensError(f"There is no placement '{settings.placement}'; choose from {', '.join(get_args(Placement))}.")
    seq_len = corpus.fit.shape[1]
    if not 0 <= settings.first_position < seq_len - 1:
        raise LensError(
            f"Of sequences of {seq_len} positions the first {settings.first_position} should be left out, which leaves "
            "none that a token follows; give a smaller first position."
        )
