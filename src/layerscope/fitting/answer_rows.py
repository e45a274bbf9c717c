"""Answer rows of the Jacobian lens: what a suite asks about, pulled back exactly; a row a token, not d_model of them.

The answers' directions in front of the final norm start as cotangents of the last block's output and go back through
the blocks, prompts together as far as the memory allows, so that the weights are read once for each such group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.analysis.curve_shapes import ranges
from layerscope.errors import LensError, PlacementError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.exact_rows import Halves, Spread
from layerscope.fitting.finite import refuse_non_finite
from layerscope.fitting.jacobian_notes import LOOSE
from layerscope.fitting.jacobian_prompts import (
    FEWEST_PROMPTS,
    POSITIONS_RULE,
    JacobianPrompts,
    refuse_coarse,
    rows_memory,
)
from layerscope.fitting.options import JacobianSettings
from layerscope.fitting.session import Session
from layerscope.lens_record import (
    ANSWER_ROWS_FORMAT,
    ANSWER_ROWS_VERSION,
    AnswerLayer,
    AnswerRowsRecord,
    AnswerToken,
    utc_stamp,
)
from layerscope.lenses.answer_rows import AnswerRows, write_answer_rows
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.model.signature import model_signature
from layerscope.progress import FitObserver, SilentFit
from layerscope.unembedding import Unembedding

FEWEST_ANSWERS = 2
"""One answer means something only against another."""
MOST_PROMPTS = 8
"""Prompts whose rows go back together: after these a fit is kept."""


@dataclass(frozen=True)
class JudgedToken:
    """A token that stands for answers of a suite."""

    token_id: int
    token: str
    answers: tuple[str, ...]
    """Those that begin with it."""
    n_facts: int
    """Facts whose answer begins with it."""


@dataclass(frozen=True)
class JudgedAnswers:
    """What a suite asks about, in a model's tokens."""

    suite: str
    suite_sha256: str
    tokens: tuple[JudgedToken, ...]
    left_out: tuple[str, ...]
    """Facts whose answer has no token that could be judged."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of every token."""
        return tuple(token.token_id for token in self.tokens)


def against_mean(
    unembedding: Unembedding, token_ids: Sequence[int]
) -> tuple[Float[Tensor, "answer d_model"], Float[Tensor, " answer"]]:
    """How a final residual is read for each of some tokens against the mean of them all, but for the norm's scale.

    Returns:
        Directions in front of the final norm, and what biases add behind it; both float64, on the CPU.
    """
    ids = torch.tensor(list(token_ids))
    rows, constants = unembedding.reading_rows(ids).cpu(), unembedding.reading_constants(ids).cpu()
    rows = rows - rows.mean(0)
    norm = unembedding.final_norm
    return rows if norm is None else norm.pulled_back(rows), constants - constants.mean()


def fit_rows(
    model: CausalLM,
    corpus: Corpus,
    out: Path,
    answers: JudgedAnswers,
    settings: JacobianSettings,
    observer: FitObserver | None = None,
) -> AnswerRows:
    """Pull the directions of a suite's answers back through the model, and write the folder.

    After every few prompts it is kept beside `out` how far it has come; called again with the same model, text, answers
    and settings after it was interrupted, the fit goes on from there.

    Args:
        model: the model.
        corpus: its `fit` part gives prompts. Their length belongs to what is fitted.
        out: folder of the rows, which must not be there yet.
        answers: of the suite.
        settings: `prompts`, `first_position`, `stop_at`, `stop_from` and `seed`, as for an exact fit; the rest has no
            part in it.
        observer: is told how it goes.

    Raises:
        LensError: `out` is already there; fewer than two tokens; numbers that cannot be; too little text; blocks that
            compute in less than float32.
        ModelError: attention that cannot be differentiated.
        PlacementError: the rows do not fit the memory.
        NumericError: a row that is not finite.
    """
    return _AnswerRowsFitter(model, corpus, out, answers, settings, observer or SilentFit()).run()


class _AnswerRowsFitter(Session[JacobianSettings]):
    """One fit; `fit_rows` is its only user."""

    kind = "answer_rows"
    differentiates = True

    def __init__(
        self,
        model: CausalLM,
        corpus: Corpus,
        out: Path,
        answers: JudgedAnswers,
        settings: JacobianSettings,
        observer: FitObserver,
    ) -> None:
        refuse_coarse(model)
        if len(answers.tokens) < FEWEST_ANSWERS:
            raise LensError(
                f"Answer rows take answers of at least {FEWEST_ANSWERS} different tokens, for one means something only "
                f"against another, but suite '{answers.suite}' has {len(answers.tokens)} in {model.id}'s tokens; "
                "give a suite with others."
            )
        if settings.correct:
            raise LensError("Answer rows are exact and have no bias to correct; leave out --correct.")
        if settings.stop_from >= model.n_layers:
            raise LensError(
                f"stop_from should be a layer from 0 to {model.n_layers - 1}, those that have rows, but it is "
                f"{settings.stop_from}."
            )
        self.answers = answers
        super().__init__(model, corpus, out, settings, observer)
        self.drawn = JacobianPrompts.drawn(corpus, settings, torch.Generator().manual_seed(settings.seed))
        self.directions, self.constants = against_mean(model.unembedding, answers.token_ids)
        self._check_room()

    def key(self) -> dict[str, object]:
        """With the answers, which decide the rows too."""
        return super().key() | {"answers": list(self.answers.token_ids)}

    def run(self) -> AnswerRows:
        """Fit, then write the folder."""
        with self.workspace.held():
            with self.at_work():
                spread = self._pulled()
            record = self._record(spread)
            for layer in record.layers:
                self.observer.layer(layer.layer, _in_words(layer))
            rows = write_answer_rows(self.out, record, spread.means.float(), self.directions.float())
            self.workspace.discard()
        return rows

    def _pulled(self) -> Spread:
        """The mean over prompts, until all are read or it has settled."""
        model, n = self.model, len(self.drawn.token_ids)
        rows = self.directions.float()
        halves = Halves.kept(self.workspace) or Halves.none(model.n_layers, len(rows), model.d_model)
        self.observer.plan(self._plan(halves.n))
        while halves.n < n and not self._settled(halves):
            first = halves.n
            batch = self.drawn.token_ids[first : first + self._prompts_at_once]
            at_once = max(1, self._rows_memory // (len(batch) * self.drawn.bytes_of_row(model.d_model)))

            def told(done: int, total: int, first: int = first, some: int = len(batch)) -> None:
                self.observer.blocks(int(model.n_layers * (first + some * done / total)), model.n_layers * n)

            found = model.pull_back(batch, rows, self.drawn.counted, rows_at_once=at_once, progress=told)
            refuse_non_finite(found.flatten(0, 2), f"the rows of prompts {first} to {first + len(batch) - 1}")
            halves = halves.with_prompts(found)
            halves.keep(self.workspace)
        return halves.whole

    def _settled(self, halves: Halves) -> bool:
        """Whether the standard error of every answer is small enough at every layer that is asked."""
        at, whole = self.settings.stop_at, halves.whole
        if at is None or halves.n < FEWEST_PROMPTS:
            return False
        places = [
            (i, a) for i in range(self.settings.stop_from, self.model.n_layers) for a in range(len(self.directions))
        ]
        errors = [whole.standard_error(layer, answer) for layer, answer in places]
        return all(error is not None and error <= at for error in errors)

    # What it says

    def _record(self, spread: Spread) -> AnswerRowsRecord:
        answers = range(len(self.answers.tokens))
        layers = tuple(
            AnswerLayer(
                layer=layer,
                sigma=tuple(spread.relative(layer, answer) for answer in answers),
                standard_error=tuple(spread.standard_error(layer, answer) for answer in answers),
            )
            for layer in range(self.model.n_layers)
        )
        stop_at = self.settings.stop_at
        return AnswerRowsRecord(
            format=ANSWER_ROWS_FORMAT,
            schema_version=ANSWER_ROWS_VERSION,
            created_utc=utc_stamp(datetime.now(UTC)),
            weights_sha256="",
            model=model_signature(self.model),
            settings=self.machine,
            corpus=self.corpus.record,
            suite=self.answers.suite,
            suite_sha256=self.answers.suite_sha256,
            against="mean_of_answers",
            target_layer=self.model.n_layers,
            seq_len=self.corpus.fit.shape[1],
            first_position=self.settings.first_position,
            positions_rule=POSITIONS_RULE,
            n_prompts=spread.n,
            prompts_sha256=self.drawn.sha256(spread.n),
            stop_at=stop_at,
            stop_from=None if stop_at is None else self.settings.stop_from,
            transformers=version("transformers"),
            answers=tuple(
                AnswerToken.of(token, constant=float(constant))
                for token, constant in zip(self.answers.tokens, self.constants, strict=True)
            ),
            layers=layers,
            notes=tuple(self._notes(spread.n, layers)),
        )

    def _notes(self, n_prompts: int, layers: Sequence[AnswerLayer]) -> list[str]:
        """What a reader has to know, in sentences."""
        given, asked = len(self.drawn.token_ids), self.settings.prompts
        notes = [
            "Tracked logits are known up to the final norm's scale, which differs from state to state: at one state "
            "they order these answers, and tell neither ranks among the vocabulary nor probabilities."
        ]
        if given < asked:
            notes.append(f"The text gave {given} prompts where {asked} were asked for.")
        if self.settings.stop_at is not None:
            end = f"It ended after {n_prompts} of {given} prompts" if n_prompts < given else f"All {given} were read"
            notes.append(
                f"{end}; no more were to be read once the standard error of every answer is at most "
                f"{self.settings.stop_at:g} from layer {self.settings.stop_from} on."
            )
        shared = [
            f"{_listed(token.answers)} ({token.token!r})" for token in self.answers.tokens if len(token.answers) > 1
        ]
        if shared:
            notes.append(f"These answers begin with the same token and cannot be told apart: {'; '.join(shared)}.")
        if self.answers.left_out:
            notes.append(f"No token stands for the answers of {_listed(self.answers.left_out)}; they are left out.")
        largest = float(self.constants.abs().max())
        if largest > 0:
            notes.append(
                f"Biases of the final norm or the head move answers by up to {largest:.2g} nats from their mean; "
                "tracked logits leave that out, for it does not grow with the norm's scale."
            )
        loose = [layer.layer for layer in layers if _median(layer.standard_error, default=2 * LOOSE) > LOOSE]
        if loose and n_prompts > 1:
            notes.append(
                f"At layers {ranges(loose)} the standard error over prompts is above {LOOSE:.0%} for half of the "
                "answers or more, or not to be told: other prompts would give others, and more of them better ones."
            )
        if n_prompts == 1:
            notes.append("One prompt does not tell how much prompts differ, so no spread is given.")
        return notes

    # Room

    def _plan(self, n_done: int) -> str:
        prompts, counted = self.drawn.token_ids, self.drawn.counted
        n_rows = len(self.directions)
        return (
            f"answer rows of {self.model.id} · {n_rows} tokens of suite '{self.answers.suite}', {n_rows} rows where a "
            f"whole exact fit has {self.model.d_model} · {len(prompts)} prompts of {prompts.shape[1]}, positions "
            f"{counted.start} to {counted.stop - 1}"
            + (f" · goes on behind prompt {n_done}" if n_done else "")
            + self.leftovers()
        )

    def _check_room(self) -> None:
        """Refuse what does not fit, before anything is allocated.

        Raises:
            PlacementError: the memory does not hold the rows.
        """
        # Means of halves, of both and of one being joined, beside those of a prompt on its way back.
        needed = 6 * self._bytes_of_rows + self._rows_memory + 3 * self.block_bytes()
        if needed > self.host_memory():
            raise PlacementError(
                f"Answer rows of {len(self.directions)} tokens need {format_bytes(needed)}, but "
                f"{format_bytes(self.host_memory())} can be had; give a suite with fewer answers, or raise --memory."
            )

    @property
    def _rows_memory(self) -> int:
        return rows_memory(self.host_memory())

    @property
    def _bytes_of_rows(self) -> int:
        """Of all rows of all layers of one prompt, in float64."""
        return 8 * self.model.n_layers * len(self.directions) * self.model.d_model

    @property
    def _prompts_at_once(self) -> int:
        """So many that all rows of all of them pass a block together; at least one."""
        model = self.model
        inputs = 4 * (model.n_layers + 1) * self.drawn.token_ids.shape[1] * model.d_model
        a_prompt = len(self.directions) * self.drawn.bytes_of_row(model.d_model) + inputs + self._bytes_of_rows
        return max(1, min(MOST_PROMPTS, self._rows_memory // a_prompt))


def _in_words(layer: AnswerLayer) -> str:
    known = [error for error in layer.standard_error if error is not None]
    if not known:
        return "standard error not to be told"
    return f"standard error {median(known):.3f} (median over answers), {max(known):.3f} at most"


def _median(values: Sequence[float | None], default: float) -> float:
    """Of values of which those that are not known count as `default`."""
    return median(default if value is None else value for value in values)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
