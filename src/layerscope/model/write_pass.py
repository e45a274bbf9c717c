"""Passes that catch what parts of the blocks write: at one position of each prompt, or in the mean over all tokens."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.model.ablation import Ablation, MeanHooks
from layerscope.model.architecture import batches
from layerscope.model.model_input import Batch
from layerscope.model.packing import folding_of
from layerscope.model.residual_pass import run_pass
from layerscope.model.streamed_module import Progress, StreamedModule, no_progress
from layerscope.model.sublayers import WriteHooks, Writes


def forward_writes(
    streamed: StreamedModule,
    ablation: Ablation | None,
    token_ids: Sequence[Sequence[int]],
    directions: Float[Tensor, "prompt d_model"],
    *,
    n_logits: int,
    neurons: bool,
    progress: Progress,
) -> Writes:
    """Keep at each prompt's last token what is added to the stream: `CausalLM.forward_writes`."""
    groups = batches(streamed.architecture.rope, [len(ids) for ids in token_ids])
    parts = list[tuple[list[int], Writes]]()
    for done, group in enumerate(groups):
        reader = _WriteReader(streamed, ablation, directions[group], neurons)
        writes = reader.read(
            [token_ids[i] for i in group],
            [row for row, i in enumerate(group) if i < n_logits],
            lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
        )
        parts.append((group, writes))
    return parts[0][1] if len(parts) == 1 else Writes.in_order(parts)


class _WriteReader:
    """Runs prompts of one regime, and catches their writes."""

    def __init__(
        self,
        streamed: StreamedModule,
        ablation: Ablation | None,
        directions: Float[Tensor, "prompt d_model"],
        neurons: bool,
    ) -> None:
        self._streamed, self._directions = streamed, directions
        self._replaced = [] if ablation is None else ablation.blocks_without("attn")
        without = [] if ablation is None else ablation.blocks_without("mlp")
        self._without_neurons = without if neurons else None

    def read(self, token_ids: Sequence[Sequence[int]], wanted: Sequence[int], progress: Progress) -> Writes:
        """Folded where that is worth it; each prompt by itself where one of them is not finite."""
        folding = folding_of(token_ids, self._streamed.architecture)
        if folding is not None:
            writes = self._read(Batch.folded(folding, self._streamed.placement), wanted, progress)
            if writes.states.isfinite().all():
                return writes
        return self._read(Batch.padded(token_ids, self._streamed.placement), wanted, progress)

    def _read(self, batch: Batch, wanted: Sequence[int], progress: Progress) -> Writes:
        streamed, shape = self._streamed, batch.input.token_ids.shape
        rows, positions = (torch.tensor(values) for values in zip(*batch.last, strict=True))

        def pick(values: Tensor) -> Tensor:  # some modules are called with all tokens of a batch in one row
            return values.reshape(*shape, values.shape[-1])[rows, positions]

        hooks = WriteHooks(
            streamed.sublayers,
            streamed.norms_behind,
            streamed.n_heads,
            self._directions,
            pick,
            torch.finfo(streamed.placement.dtype).eps / 2,
            replaced=self._replaced,
            without_neurons=self._without_neurons,
        )
        n, device = len(batch.last), streamed.placement.device
        states = torch.zeros(n, streamed.n_layers + 1, 1, streamed.d_model, device=device)
        picked = replace(batch, unfold=lambda stream: pick(stream)[:, None])
        with hooks.hooked():
            logits = run_pass(streamed, picked, states, wanted or [0], progress)
        return Writes(
            states[:, :, 0],
            torch.stack([hooks.attention[i] for i in range(streamed.n_layers)], dim=1),
            torch.stack([hooks.mlp[i] for i in range(streamed.n_layers)], dim=1),
            logits[: len(wanted)],
            hooks.head_shares,
            hooks.neuron_shares,
        )


def mean_writes(
    streamed: StreamedModule, ablation: Ablation, token_ids: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, " features"], ...]:
    """What each part of an ablation writes in the mean over all tokens of some prompts, float32."""
    hooks = MeanHooks(ablation, streamed.sublayers, streamed.n_heads)
    placement = streamed.placement
    for group in batches(streamed.architecture.rope, [len(ids) for ids in token_ids]):
        width = max(len(token_ids[i]) for i in group)
        numbers = width * (streamed.widest_activation + (streamed.n_heads or 0) * width)
        step = max(1, placement.memory // (4 * 4 * numbers))
        for start in range(0, len(group), step):
            prompts = [token_ids[i] for i in group[start : start + step]]
            lengths = torch.tensor([len(ids) for ids in prompts])
            batch = Batch.padded(prompts, placement)
            real = torch.arange(batch.input.token_ids.shape[1])[None] < lengths[:, None]
            first = replace(batch, unfold=lambda stream: stream[:, :1], last=((0, 0),))
            kept = torch.zeros(len(prompts), streamed.n_layers + 1, 1, streamed.d_model, device=placement.device)
            with hooks.hooked(real):
                run_pass(streamed, first, kept, [0], no_progress)
    return hooks.means
