"""Answers of several pieces as the model reads them: sequences behind a batch's prompts, and where in them to look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from layerscope.errors import SuiteError
from layerscope.model.answer_forms import Alignment
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.encode import Encoded
from layerscope.readout.prompt_query import PromptQuery
from layerscope.readout.whole_answers import Pieces, further_rows, rows_of, without_longer
from layerscope.record.protocol import Protocol
from layerscope.suite.suite import Judge

JUDGES = ("first_piece", "whole")


def judged_by(encoded: Sequence[Encoded], judge: Judge | None) -> list[Encoded]:
    """The same prompts, all of them judged in this way; as the suite has it where None.

    Raises:
        SuiteError: there is no such way.
    """
    if judge is None:
        return list(encoded)
    if judge not in JUDGES:
        raise SuiteError(f"There is no judge '{judge}'; choose from {', '.join(JUDGES)}.")
    return [replace(e, prompt=replace(e.prompt, judge=judge)) for e in encoded]


@dataclass(frozen=True)
class Forcing:
    """What is sent through the model behind a batch's prompts, so that their answers can be read to the end.

    Which form of an answer is judged may be settled by the pass itself, so every form that may be takes part in it.
    """

    sequences: tuple[Pieces, ...]
    """Prompts with all but the last piece of an answer."""
    places: Mapping[tuple[int, Pieces], tuple[int, int]]
    """By prompt and the pieces read behind it: which sequence, and which position in it."""
    readable: Mapping[int, frozenset[Pieces]]
    """By prompt the answers that can be read to the end."""

    @classmethod
    def of(cls, model: CausalLM, prompts: Sequence[Encoded], protocol: Protocol) -> "Forcing":
        """All that some prompts need."""
        sequences: dict[Pieces, int] = {}
        places: dict[tuple[int, Pieces], tuple[int, int]] = {}
        readable: dict[int, frozenset[Pieces]] = {}
        for prompt, e in enumerate(prompts):
            if not is_read_whole(e, protocol):
                continue
            readable[prompt] = frozenset(pieces for pieces in _candidates(e) if fits(model, e, pieces))
            for pieces in sorted(readable[prompt]):
                if len(pieces) == 1:
                    continue
                own = sequences.setdefault((*e.token_ids, *pieces[:-1]), len(sequences))
                for i in range(1, len(pieces)):
                    places.setdefault((prompt, pieces[:i]), (own, len(e.token_ids) - 1 + i))
        return cls(tuple(sequences), places, readable)

    @property
    def n_rows(self) -> int:
        """The most rows beside the prompts' own that are decoded."""
        return sum(len(rows_of(prompt, sorted(answers))) for prompt, answers in self.readable.items())

    def queries(self, prompts: Sequence[Encoded]) -> list[PromptQuery]:
        """What the readout needs to know of the prompts, once the form of every answer is settled."""
        return [replace(e.query, whole=self._whole(prompt, e)) for prompt, e in enumerate(prompts)]

    def _whole(self, prompt: int, e: Encoded) -> tuple[Pieces, ...]:
        """The accepted answers; none where one of them cannot be read to the end, and a sum would lack it."""
        answers = without_longer([a.answer_ids for a in e.answers if a.first_id is not None])
        return answers if set(answers) <= self.readable.get(prompt, frozenset()) else ()

    def decoded(self, first_sequence: int, queries: Sequence[PromptQuery]) -> list[tuple[int, tuple[int, ...]]]:
        """Text and positions of every row that is decoded: the prompts' own, and behind them what whole answers need.

        Args:
            first_sequence: where in the batch the sequences begin.
        """
        places: list[tuple[int, tuple[int, ...]]] = [(i, query.positions) for i, query in enumerate(queries)]
        for row in further_rows(queries):
            if row.read:
                sequence, position = self.places[row.prompt, row.read]
                places.append((first_sequence + sequence, (position,)))
            else:
                places.append((row.prompt, (len(queries[row.prompt].token_ids) - 1,)))
        return places


def is_read_whole(e: Encoded, protocol: Protocol) -> bool:
    """Whether a prompt's answers are wanted to the end."""
    return protocol.whole_answers or e.prompt.judge == "whole"


def fits(model: CausalLM, e: Encoded, pieces: Pieces) -> bool:
    """Whether the model reads and says every piece behind the prompt."""
    n = len(e.token_ids) + len(pieces) - 1
    within = model.n_context is None or n <= model.n_context
    return within and max(pieces) < model.d_vocab and max(pieces[:-1], default=0) < model.n_embeddings


def unread(model: CausalLM, encoded: Sequence[Encoded], protocol: Protocol) -> int:
    """How many prompts have an accepted answer that could not be read to the end."""
    wanted = (e for e in encoded if is_read_whole(e, protocol))
    return sum(not all(_is_read(model, e, answer) for answer in e.answers if answer.answer_ids) for e in wanted)


def _is_read(model: CausalLM, e: Encoded, answer: Alignment) -> bool:
    return answer.answer_ids in _forms(answer, e) and fits(model, e, answer.answer_ids)


def _candidates(e: Encoded) -> list[Pieces]:
    """The pieces of every answer in every form that may be judged."""
    return [pieces for answer in e.answers for pieces in _forms(answer, e)]


def _forms(answer: Alignment, e: Encoded) -> list[Pieces]:
    """The pieces of every form that may be judged, but for odd cases.

    Behind a letter of an alphabet with capitals, or a digit, a word begins with a space. Where it is one piece so, the
    several pieces in which it would go on the word before are not worth a sequence: half of the pass, for most suites.
    """
    if not answer.forms or e.answer_form != "auto":
        return [answer.answer_ids] if answer.answer_ids else []
    known = {form.variant: form.answer_ids for form in answer.forms if form.first_id is not None}
    spaced, last = known.get("with_space", ()), e.text[-1:]
    if len(spaced) == 1 and (last.isdigit() or last.lower() != last.upper()):
        known = {variant: pieces for variant, pieces in known.items() if len(pieces) == 1}
    return list(dict.fromkeys(known.values()))
