"""A pass of both models over some of the texts, and what is kept of it: residuals, and how they differ."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.diffing.inputs import FROM, DiffInputs
from layerscope.errors import PlacementError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.model.two_models import BlocksInStep

ROOM_SHARE = 4
"""One part in so many of a model's memory is for activations, and as much for what is kept."""


@dataclass(frozen=True)
class Part:
    """Texts that go through both models together."""

    found: DiffInputs
    """All texts,"""
    texts: range
    """and which of them these are."""

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """Of these texts."""
        return self.found.token_ids[self.texts.start : self.texts.stop]

    @property
    def sequences(self) -> range:
        """Which of them are sequences."""
        return range(self.texts.start, min(self.texts.stop, len(self.found.sequences)))

    @property
    def prompts(self) -> range:
        """Which of the suite's prompts are among them."""
        n = len(self.found.sequences)
        return range(max(0, self.texts.start - n), max(0, self.texts.stop - n))

    @cached_property
    def rows(self) -> range:
        """Which positions are looked at, by their place in the list of all."""
        inside = [i for i, row in enumerate(self.found.rows) if row.text in self.texts]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    @property
    def n_text_rows(self) -> int:
        """How many of those are the sequences'; they come first."""
        return sum(self.found.rows[i].text < len(self.found.sequences) for i in self.rows)

    @property
    def prompt_rows(self) -> list[int]:
        """Of every prompt's last token, by its place among the rows that are here."""
        places = self.found.prompt_rows
        return [places[i] - self.rows.start for i in self.prompts]


@dataclass
class Streams:
    """Residuals of both models over a part of the texts, filled layer by layer; on the CPU, float32."""

    part: Part
    base: Float[Tensor, "layer row d_model"]
    variant: Float[Tensor, "layer row d_model"]
    injected: Float[Tensor, "layer row d_model"]
    """The variant's block on the base's residual; at layer 0 the base's own, for no block has run."""
    base_final: Float[Tensor, "position d_model"]
    """Behind the last block at every measured position of the sequences,"""
    variant_final: Float[Tensor, "position d_model"]
    """and of the variant."""
    following: Int[Tensor, " position"]
    """The token that follows each."""
    modules: dict[tuple[int, str], Float[Tensor, " row"]] = field(default_factory=dict)
    """By layer and path: what one linear layer of the variant changes in the base's block's output, over its norm."""
    first: tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]] | None = None
    """Both models' residuals behind the last block at the last token of the first of these texts,"""
    logits: tuple[Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"]] | None = None
    """and what both say there by their own code."""


def both_streams(
    base: CausalLM, variant: CausalLM, part: Part, *, modules: bool, progress: Callable[[int, int], None]
) -> Streams:
    """Run both models over some of the texts."""
    n_layers, n_rows, d_model = base.n_layers, len(part.rows), base.d_model
    following = part.found.sequences[part.sequences.start : part.sequences.stop, FROM + 1 :].reshape(-1)
    kept = [torch.zeros(n_layers + 1, n_rows, d_model) for _ in range(3)]
    final = [torch.zeros(len(following), d_model) for _ in range(2)]
    streams = Streams(part, kept[0], kept[1], kept[2], final[0], final[1], following)
    streams.logits = base.forward_beside(variant, part.token_ids, _Keeping(streams), modules=modules, progress=progress)
    return streams


@dataclass
class _Keeping:
    """Takes what is wanted of the streams."""

    streams: Streams

    def __call__(self, here: BlocksInStep) -> None:
        """See `Watching`."""
        part, streams = self.streams.part, self.streams
        place = {part.texts[prompt]: row for row, prompt in enumerate(here.prompts)}
        rows = [part.found.rows[i] for i in part.rows]
        wanted = [(i, place[row.text], row.position) for i, row in enumerate(rows) if row.text in place]
        if wanted:
            at, texts, positions = (list(values) for values in zip(*wanted, strict=True))
            base = here.base[texts, positions].cpu()
            streams.base[here.layer, at] = base
            streams.variant[here.layer, at] = here.variant[texts, positions].cpu()
            injected = here.base if here.injected is None else here.injected
            streams.injected[here.layer, at] = injected[texts, positions].cpu()
            for path, stream in here.modules.items():
                errors = streams.modules.setdefault((here.layer, path), torch.zeros(len(rows)))
                errors[at] = (stream[texts, positions].cpu() - base).norm(dim=-1) / base.norm(dim=-1)
        if here.layer == len(streams.base) - 1:
            self._keep_final(here, place)

    def _keep_final(self, here: BlocksInStep, place: dict[int, int]) -> None:
        part, streams = self.streams.part, self.streams
        width = part.found.sequences.shape[1]
        n, positions = width - 1 - FROM, slice(FROM, width - 1)
        for i, text in enumerate(part.sequences):
            if text in place:
                at = slice(i * n, (i + 1) * n)
                streams.base_final[at] = here.base[place[text], positions].cpu()
                streams.variant_final[at] = here.variant[place[text], positions].cpu()
        first = part.texts.start
        if first in place:
            last = len(part.token_ids[0]) - 1
            streams.first = here.base[place[first], last].cpu(), here.variant[place[first], last].cpu()


def parts_of(base: CausalLM, variant: CausalLM, found: DiffInputs) -> list[Part]:
    """Texts one after another, as many at a time as memory has room for; each part reads all weights again.

    Where a second reading costs no disk, prompts have parts of their own: beside sequences they would be padded to the
    same length.

    Raises:
        PlacementError: there is no room for one text.
    """
    n_rows = Counter(row.text for row in found.rows)
    at_hand = not any(model.patches_ride for model in (base, variant))
    apart = len(found.sequences) if at_hand else 0
    starts, load = [0], _Load()
    for text, ids in enumerate(found.token_ids):
        alone = _Load().with_text(len(ids), n_rows[text])
        alone.check_room(
            base,
            "give more --memory, or " + ("shorter prompts" if text >= len(found.sequences) else "a smaller --seq-len"),
        )
        more = load.with_text(len(ids), n_rows[text])
        if text and (text == apart or not more.fits(base)):
            starts.append(text)
            more = alone
        load = more
    bounds = zip(starts, [*starts[1:], len(found.token_ids)], strict=True)
    return [Part(found, range(start, stop)) for start, stop in bounds]


@dataclass(frozen=True)
class _Load:
    """What some texts take in both models."""

    n_texts: int = 0
    width: int = 0
    n_rows: int = 0
    """At which every layer is looked at."""

    def with_text(self, length: int, n_rows: int) -> "_Load":
        return _Load(self.n_texts + 1, max(self.width, length), self.n_rows + n_rows)

    def bytes_of(self, model: CausalLM) -> tuple[int, int]:
        """Of the activations of both and of a block's once more, in a padded batch; and of what is kept."""
        n_tokens = self.n_texts * self.width
        per_token = model.widest_activation + (model.n_heads or 0) * self.width
        kept = 3 * (model.n_layers + 1) * self.n_rows + 2 * n_tokens
        return 3 * n_tokens * per_token * model.placement.dtype.itemsize, 4 * model.d_model * kept

    def fits(self, model: CausalLM) -> bool:
        return max(self.bytes_of(model)) <= model.placement.memory // ROOM_SHARE

    def check_room(self, model: CausalLM, advice: str) -> None:
        """Whether the texts fit into what both models have together, weights aside."""
        needed, room = sum(self.bytes_of(model)), model.placement.memory
        if needed > room:
            raise PlacementError(
                f"A text of {self.width} tokens takes {format_bytes(needed)} while both models run, but each of them "
                f"has {format_bytes(room)}; {advice}."
            )
