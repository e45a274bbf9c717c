"""What is asked of every prompt of a run, and the axes on which its numbers lie until they become rows."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope.lenses import Lens


@dataclass(frozen=True)
class PromptQuery:
    """One prompt, as far as a readout needs to know it; ids only."""

    token_ids: tuple[int, ...]
    """What the model read, BOS included."""
    n_special: int
    """How many of them stand before the prompt's own text (the BOS)."""
    positions: tuple[int, ...]
    """Positions to decode, ascending."""
    answer_ids: tuple[int, ...]
    """First ids of the accepted answers that could be aligned."""
    gold_id: int | None
    """First id of the first accepted answer; None where that one could not be aligned."""
    contrast_id: int | None
    """On a control prompt the gold id of the fact it is contrasted with; None elsewhere or where unresolved."""
    is_control: bool
    of_model: bool = False
    """Whether the prompt has no answer, so that the model's own most likely token is followed in its place."""
    whole: tuple[tuple[int, ...], ...] = ()
    """All pieces of every accepted answer, none of which continues another; empty where whole answers are not read."""

    @property
    def control_ids(self) -> tuple[int, ...]:
        """Gold and contrast id of a control whose margin can be said; empty elsewhere."""
        if not self.is_control or self.gold_id is None or self.contrast_id is None:
            return ()
        return (self.gold_id, self.contrast_id)

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The prompt's own ids."""
        return self.token_ids[self.n_special :]


@dataclass(frozen=True)
class Shape:
    """Axes of every array while a run is measured: lens, layer, and the decoded positions of all prompts."""

    lenses: tuple[Lens, ...]
    n_layers: int
    """Number of layers decoded, n_layers + 1 of the model."""
    queries: tuple[PromptQuery, ...]

    @property
    def n_positions(self) -> int:
        """Decoded positions of all prompts."""
        return sum(len(a.positions) for a in self.queries)

    def columns_of(self, prompt: int) -> slice:
        """Where a prompt's positions stand on the position axis."""
        start = sum(len(a.positions) for a in self.queries[:prompt])
        return slice(start, start + len(self.queries[prompt].positions))


@dataclass(frozen=True)
class Echoes:
    """A prompt's content ids, and from which position on each counts as read."""

    ids: tuple[int, ...]
    seen: NDArray[np.bool_]
    """`[position, id]`."""
    upto: tuple[int, ...]
    """For each decoded position the last index of the context read there, -1 on the BOS."""

    @classmethod
    def of(cls, query: PromptQuery, trivial: Set[int]) -> "Echoes":
        """Distinct ids that are not trivial, in order of first occurrence."""
        first: dict[int, int] = {}
        for index, token_id in enumerate(query.context_ids):
            if token_id not in trivial:
                first.setdefault(token_id, index)
        upto = tuple(position - query.n_special for position in query.positions)
        starts = np.array(list(first.values()), dtype=np.int64).reshape(1, -1)
        return cls(tuple(first), starts <= np.array(upto).reshape(-1, 1), upto)
