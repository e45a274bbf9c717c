"""One pass of both models, and what is kept of it: residuals at chosen positions, and how they differ."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.diffing.inputs import FROM, DiffInputs
from layerscope.model.causal_lm import CausalLM
from layerscope.model.two_models import BlocksInStep

ROOM_SHARE = 8
"""One part in so many of memory is for activations."""


@dataclass
class Streams:
    """Residuals of both models, filled layer by layer; on the CPU, float32."""

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
    """Both models' residuals behind the last block at the last token of the first text,"""
    logits: tuple[Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"]] | None = None
    """and what both say there by their own code."""


def both_streams(
    base: CausalLM, variant: CausalLM, found: DiffInputs, *, modules: bool, progress: Callable[[int, int], None]
) -> Streams:
    """Run both models over all texts, as many at a time as memory has room for."""
    texts = found.token_ids
    n_layers, n_rows, d_model = base.n_layers, len(found.rows), base.d_model
    kept = [torch.zeros(n_layers + 1, n_rows, d_model) for _ in range(3)]
    final = [torch.zeros(found.n_measured, d_model) for _ in range(2)]
    width = found.sequences.shape[1]
    streams = Streams(kept[0], kept[1], kept[2], final[0], final[1], found.sequences[:, FROM + 1 :].reshape(-1))
    parts = _parts(base, texts)
    for done, part in enumerate(parts):
        keeping = _Keeping(streams, found, part, width)
        logits = base.forward_beside(
            variant,
            [texts[i] for i in part],
            keeping,
            modules=modules,
            progress=lambda i, n, k=done: progress(k * n + i, len(parts) * n),  # type: ignore[misc]
        )
        if 0 in part:
            streams.logits = logits
    return streams


@dataclass
class _Keeping:
    """Takes what is wanted of some texts' streams."""

    streams: Streams
    found: DiffInputs
    part: list[int]
    """Which texts these are."""
    width: int

    def __call__(self, here: BlocksInStep) -> None:
        """See `Watching`."""
        place = {self.part[prompt]: row for row, prompt in enumerate(here.prompts)}
        wanted = [(i, place[row.text], row.position) for i, row in enumerate(self.found.rows) if row.text in place]
        if wanted:
            rows, texts, positions = (list(values) for values in zip(*wanted, strict=True))
            base = here.base[texts, positions].cpu()
            self.streams.base[here.layer, rows] = base
            self.streams.variant[here.layer, rows] = here.variant[texts, positions].cpu()
            injected = here.base if here.injected is None else here.injected
            self.streams.injected[here.layer, rows] = injected[texts, positions].cpu()
            for path, stream in here.modules.items():
                errors = self.streams.modules.setdefault((here.layer, path), torch.zeros(len(self.found.rows)))
                errors[rows] = (stream[texts, positions].cpu() - base).norm(dim=-1) / base.norm(dim=-1)
        if here.layer == len(self.streams.base) - 1:
            self._keep_final(here, place)
            if 0 in place:
                last = len(self.found.token_ids[0]) - 1
                self.streams.first = here.base[place[0], last].cpu(), here.variant[place[0], last].cpu()

    def _keep_final(self, here: BlocksInStep, place: dict[int, int]) -> None:
        n = self.width - 1 - FROM
        for text in range(len(self.found.sequences)):
            if text in place:
                at = slice(text * n, (text + 1) * n)
                positions = slice(FROM, self.width - 1)
                self.streams.base_final[at] = here.base[place[text], positions].cpu()
                self.streams.variant_final[at] = here.variant[place[text], positions].cpu()


def _parts(model: CausalLM, texts: list[tuple[int, ...]]) -> list[list[int]]:
    """Texts one after another, as many as an eighth of memory has room for; each part reads all weights again."""
    room = model.placement.memory // ROOM_SHARE // 4
    parts: list[list[int]] = [[]]
    for i in range(len(texts)):
        # Both models' activations, and the block once more.
        if parts[-1] and 3 * model.activation_numbers([texts[k] for k in (*parts[-1], i)]) > room:
            parts.append([])
        parts[-1].append(i)
    return parts
