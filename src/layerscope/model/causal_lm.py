"""CausalLM: tokens in, residual stream out, with the model's final norm, head and own logits beside it."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerscope.bundled import BUNDLED, BUNDLED_ID
from layerscope.errors import ModelError, NumericError, TokenizerError
from layerscope.model.ablation import Ablation, MeanHooks, ablate
from layerscope.model.architecture import Architecture, architecture_of, batches, read_norm, reset_rope
from layerscope.model.attention_in_hand import AttentionRecorder, attention_in_hand
from layerscope.model.block_parts import Order, Sublayers, order_of, sublayers_of
from layerscope.model.blockwise import BlockInHand, Visit, run_blockwise
from layerscope.model.checkpoint import Source, locate
from layerscope.model.config import build_empty
from layerscope.model.families import BosRule, Family, bos_rule, family_bos, family_of
from layerscope.model.in_step import InStep
from layerscope.model.model_files import open_files
from layerscope.model.names import map_names
from layerscope.model.options import OpenOptions
from layerscope.model.packing import Folding, Packed, fold, packed
from layerscope.model.patched_pass import PatchedPass
from layerscope.model.patching import Patch, PatchTrees, why_not_patched
from layerscope.model.placement import Placement, keeps_in_page_cache, place
from layerscope.model.pulled_back import pull_back
from layerscope.model.reading import ReadAhead
from layerscope.model.residuals import Residuals
from layerscope.model.shuffled_weights import Shuffle
from layerscope.model.streaming import Hooks, StreamedLinear, stream_weights
from layerscope.model.sublayers import WriteHooks, Writes
from layerscope.model.tensor_files import TensorFiles
from layerscope.model.tiles import Tiles
from layerscope.model.tokens import Tokens
from layerscope.model.uncached import reads_uncached
from layerscope.options import keywords
from layerscope.stored.weight import DenseWeight, bytes_of
from layerscope.unembedding import Norm, Unembedding

log = logging.getLogger(__name__)

WRITTEN_OUT = 1e-3, 5e-2
"""How far, relative to its norm, the last residual may lie off where attention is written out: rounding over many
blocks in float32, and in a coarser dtype."""


@dataclass(frozen=True, kw_only=True)
class OpenRequest(OpenOptions):
    """The model to open, and how."""

    model: str | Path = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, or a Hub id; default: the bundled model."""


class CausalLM:
    """A causal language model whose weights stay in their files.

    Transformers' own module computes the forward; its linears multiply memory-mapped tiles, its embedding gathers
    rows. So a pass costs the reading of the weights once and hardly any memory, at any model size.
    """

    id: str
    """Hub id, or the folder's name."""
    family: str
    """The config's `model_type`."""
    n_layers: int
    """Number of blocks."""
    n_heads: int | None
    """Attention heads of a block; None where there are none."""
    d_model: int
    """Width of the residual stream."""
    d_vocab: int
    """Number of logits, padding ids included."""

    def __init__(
        self,
        module: Any,
        source: Source,
        checkpoint: TensorFiles,
        tokens: Tokens,
        placement: Placement,
        family: Family,
        *,
        family_verified: bool,
        trust_remote_code: bool = False,
        shuffle: Shuffle | None = None,
        ablation: Ablation | None = None,
    ) -> None:
        """Take a model on the meta device and let it read its weights from `checkpoint`. Use `open`."""
        self.family_verified = family_verified
        self.source, self.checkpoint, self.tokens, self.placement = source, checkpoint, tokens, placement
        self.trust_remote_code = trust_remote_code
        self._module, self._family = module, family
        self._stored = map_names(module, checkpoint)
        self.architecture: Architecture = architecture_of(module, family, self.family_verified, self._stored)
        self.shuffle = shuffle
        """How the weights are permuted; None of a model as it is."""
        if shuffle is not None:
            matrices = {name for name, p in module.named_parameters(remove_duplicate=False) if p.ndim > 1}
            self._stored = shuffle.apply(self._stored, matrices, self.architecture.blocks)
        self.id, self.family = source.id, self.architecture.family
        self.n_layers, self.n_heads = self.architecture.n_layers, self.architecture.n_heads
        self.d_model, self.d_vocab = self.architecture.d_model, self.architecture.d_vocab
        names = {id(m): path for path, m in module.named_modules()}
        self._head_name = names[id(module.get_output_embeddings())]
        blocks = self.architecture.blocks
        self.resident = placement.holds(checkpoint.bytes_on_disk)
        self._tiles = Tiles(placement.dtype, placement.device)
        self._loaders = stream_weights(
            module, self._stored, blocks, placement.dtype, placement.device, self._tiles, resident=self.resident
        )
        self._reader = ReadAhead(checkpoint)
        self.next_norms = (*map(self._norm, self.architecture.input_norms), self._norm(self.architecture.final_norm))
        projection = None if family.projection is None else _optional(module, family.projection)
        head: StreamedLinear | nn.Linear = module.get_submodule(self._head_name)
        self.unembedding = Unembedding(
            weight=head.stored if isinstance(head, StreamedLinear) else DenseWeight(head.weight.detach()),
            final_norm=self.next_norms[-1],
            bias=None if head.bias is None else head.bias.detach().float(),
            transform=self.architecture.transform,
            projection=None if projection is None else projection.weight.float(),
            device=placement.device,
        )
        _check_head(self.unembedding)
        self.ablation = ablation
        """Which parts of its blocks are put out of action; None of a model as it is."""
        if ablation is not None:
            ablate(ablation, self.sublayers, self.n_heads)

    @staticmethod
    @keywords(OpenRequest)
    def open(request: OpenRequest) -> "CausalLM":
        """Open a model without loading it.

        Raises:
            CheckpointError: files missing, incomplete or damaged.
            ModelError: not a causal language model, or remote code without leave.
            TokenizerError: no tokenizer.
            PlacementError: a device or dtype that cannot be had.
            NumericError: a final norm or a head bias that is not finite.
        """
        placement = place(request.device, request.dtype, request.memory)
        trusted = request.trust_remote_code
        source = locate(request.model, revision=request.revision, with_code=trusted)
        if source.folder == BUNDLED:
            source = Source(BUNDLED, BUNDLED_ID, None, None)
        files = open_files(source, trusted)
        config = files.config
        family, verified = family_of(config)
        rule = bos_rule(request.bos, family_bos(config))
        checkpoint = files.checkpoint
        tokens = Tokens(source.folder, rule, trust_remote_code=trusted, made=files.tokenizer)
        if request.bos == "yes" and tokens.bos_id is None:
            raise TokenizerError("BOS was asked for, but the tokenizer defines none; leave --bos out.")
        return CausalLM(
            build_empty(config, source.folder, placement.dtype, trusted),
            source,
            checkpoint,
            tokens,
            placement,
            family,
            family_verified=verified,
            trust_remote_code=trusted,
        )

    def reading(self, bos: BosRule) -> "CausalLM":
        """The same model, weights and all, under another rule of what begins a prompt."""
        other = copy(self)
        other.tokens = self.tokens.under(bos)
        return other

    def shuffled_twin(self, scope: str, seed: int) -> "CausalLM":
        """This model with the entries of every matrix in random order; its id says so (see `Shuffle`).

        Args:
            scope: `blocks`, or `all`: embedding and unembedding too.
            seed: decides the order.

        Raises:
            ModelError: there is no such scope.
        """
        shuffle = Shuffle(scope, seed)
        return self._twin(shuffle.name, shuffle, self.ablation)

    def ablated(self, ablation: Ablation, token_ids: Sequence[Sequence[int]] = ()) -> "CausalLM":
        """This model with parts of its blocks put out of action; its id says so (see `Ablation`).

        Args:
            ablation: which parts, and by what.
            token_ids: what the model reads, where parts are set to their means over all its tokens.

        Raises:
            ModelError: the model is ablated already, lacks a part, or there is nothing to take a mean over.
        """
        if self.ablation is not None:
            raise ModelError(f"{self.id} is ablated already; name all parts at once.")
        if ablation.by == "mean":
            ablation = replace(ablation, means=self._means(ablation, token_ids))
        return self._twin(ablation.name, self.shuffle, ablation)

    def _twin(self, name: str, shuffle: Shuffle | None, ablation: Ablation | None) -> "CausalLM":
        """Another model over the same checkpoint."""
        folder, dtype = self.source.folder, self.placement.dtype
        return CausalLM(
            build_empty(self._module.config, folder, dtype, self.trust_remote_code),
            replace(self.source, id=f"{self.source.id}-{name}"),
            self.checkpoint,
            self.tokens,
            self.placement,
            self._family,
            family_verified=self.family_verified,
            trust_remote_code=self.trust_remote_code,
            shuffle=shuffle,
            ablation=ablation,
        )

    @torch.inference_mode()
    def _means(self, ablation: Ablation, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """What the parts write in the mean over all tokens of some prompts."""
        hooks = MeanHooks(ablation, self.sublayers, self.n_heads)
        for group in batches(self.architecture.rope, [len(ids) for ids in token_ids]):
            width = max(len(token_ids[i]) for i in group)
            numbers = width * (self.widest_activation + (self.n_heads or 0) * width)
            step = max(1, self.placement.memory // (4 * 4 * numbers))
            for start in range(0, len(group), step):
                prompts = [token_ids[i] for i in group[start : start + step]]
                batch = _Input(_padded(prompts).to(self.placement.device))
                real = (
                    torch.arange(batch.token_ids.shape[1])[None] < torch.tensor([len(ids) for ids in prompts])[:, None]
                )
                kept = torch.zeros(len(prompts), self.n_layers + 1, 1, self.d_model, device=self.placement.device)
                with hooks.hooked(real):
                    self._pass(batch, lambda stream: stream[:, :1], kept, [(0, 0)], lambda done, total: None)
        return hooks.means

    @property
    def is_as_stored(self) -> bool:
        """Whether nothing in it was changed, such as by shuffling weights or putting parts out of action."""
        return self.shuffle is None and self.ablation is None

    @property
    def n_embeddings(self) -> int:
        """How many token ids the model can read."""
        return int(self._module.get_input_embeddings().num_embeddings)

    @property
    def n_context(self) -> int | None:
        """How many tokens the model was made to read at most; None where its config does not say."""
        limit = getattr(self._module.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        return self.next_norms[-1]

    @cached_property
    def second_norms(self) -> tuple[Norm | None, ...]:
        """For every block the norm through which its MLP reads the stream; None where it has none of its own."""
        return tuple(map(self._norm, self.architecture.second_norms))

    @property
    def largest_block_bytes(self) -> int:
        """Memory that the parameters of one block take while it computes, beyond what is streamed."""
        return max((loader.bytes for loader in self._loaders), default=0)

    @cached_property
    def widest_activation(self) -> int:
        """Numbers that one token holds inside a block, roughly: three of a gated layer's width, and the stream."""
        blocks = self._module.get_submodule(self.architecture.blocks)
        widths = [m.out_features for m in blocks.modules() if isinstance(m, StreamedLinear)]
        return 3 * max(widths, default=4 * self.d_model) + 6 * self.d_model

    @cached_property
    def stored_dtype(self) -> str:
        """Dtype of the weights on disk, by the unembedding's."""
        return self.unembedding.weight.storage

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the final norm and the unembedding as stored: what every lens reads through.

        Of an unembedding over 64 MiB, evenly spaced rows are hashed.
        """
        digest = hashlib.sha256()
        weight = self.unembedding.weight
        step = max(1, weight.nbytes // (64 << 20))
        digest.update(f"{weight.shape} torch.{weight.storage} {step}".encode())
        for start in range(0, len(weight), 1024 * step):
            digest.update(weight.raw_rows(slice(start, start + 1024 * step, step)))
        norm = self.final_norm
        digest.update(b"no norm" if norm is None else f"{norm.kind} {norm.eps}".encode())
        at = self.architecture.final_norm
        for name in (f"{self._head_name}.bias", f"{at}.weight", f"{at}.bias"):
            digest.update(bytes_of(self._stored[name].tensor()) if name in self._stored else b"-")
        return digest.hexdigest()

    @cached_property
    def blocks_fingerprint(self) -> str:
        """sha256 over names, shapes and a few rows of every tensor of the blocks: what a layer's lens depends on.

        A fine-tuned model may keep its head to the bit.
        """
        digest = hashlib.sha256()
        for change in (self.shuffle, self.ablation):
            if change is not None:
                digest.update(change.name.encode())
        for mean in () if self.ablation is None else self.ablation.means:  # which the run's own prompts have made
            digest.update(bytes_of(mean))
        prefix = f"{self.architecture.blocks}."
        for name in sorted(name for name in self._stored if name.startswith(prefix)):
            for part in self._stored[name].names:
                digest.update(f"{name} ".encode() + self.checkpoint.excerpt(part))
        return digest.hexdigest()

    def _norm(self, path: str | None) -> Norm | None:
        return None if path is None else read_norm(_optional(self._module, path), path, self.d_model)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        n_logits: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        riding: PatchedPass | None = None,
    ) -> Residuals:
        """Run all prompts through the model together, visiting every weight once.

        What several prompts begin with is computed once where that saves much (`packing`); otherwise they go through
        as one batch, padded to the right. Models whose rotary frequencies depend on a batch's longest prompt take a
        pass for each regime (`batches`).

        Args:
            token_ids: for each prompt what the model reads, BOS included; lengths may differ.
            n_logits: of how many prompts, from the first on, the model's own logits are kept; of all by default.
            progress: called with (blocks done, blocks to do) after every block.
            riding: prompts and copies that go through every block right behind the prompts, while its weights are at
                hand; filled in place.
        """
        lengths = tuple(len(ids) for ids in token_ids)
        device = self.placement.device
        residuals = torch.zeros(len(lengths), self.n_layers + 1, max(lengths), self.d_model, device=device)
        n_logits = len(lengths) if n_logits is None else min(n_logits, len(lengths))
        logits = torch.empty(n_logits, self.d_vocab, device=device)
        groups = batches(self.architecture.rope, lengths)
        for done, group in enumerate(groups):
            wanted = [row for row, i in enumerate(group) if i < n_logits]
            alone = len(groups) == 1  # as a rule: then there is nothing to put together
            width = max(lengths[i] for i in group)
            kept = residuals if alone else residuals.new_zeros(len(group), *residuals.shape[1:])[:, :, :width]
            group_logits = self._forward_group(
                [token_ids[i] for i in group],
                kept,
                wanted or [0],  # the head needs at least one row
                lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
                riding if done == 0 else None,
            )
            if not alone:
                residuals[group, :, :width] = kept
            for row_logits, row in zip(group_logits, wanted, strict=False):
                logits[group[row]] = row_logits
        return Residuals(residuals, lengths, logits)

    def folding(self, token_ids: Sequence[Sequence[int]]) -> Folding | None:
        """How prompts would share what they begin with; None where they go through the model one beside the other."""
        limit = self.architecture.folds_up_to
        longest = max(map(len, token_ids))
        if self.architecture.rope is not None or (limit is not None and longest > limit):
            return None
        return fold(token_ids)

    def activation_numbers(self, token_ids: Sequence[Sequence[int]]) -> int:
        """Numbers that a block holds at once, roughly, while these prompts go through it."""
        folding = self.folding(token_ids)
        width = max(map(len, token_ids)) if folding is None else folding.width
        n_tokens = width * len(token_ids) if folding is None else folding.n_tokens
        scores = (self.n_heads or 0) * width
        return n_tokens * (self.widest_activation + scores + (0 if folding is None else width))

    def _forward_group(
        self,
        token_ids: Sequence[Sequence[int]],
        kept: Float[Tensor, "prompt layer position d_model"],
        wanted: Sequence[int],
        progress: Callable[[int, int], None],
        riding: PatchedPass | None,
    ) -> Float[Tensor, "some d_vocab"]:
        """One pass; fills `kept`, and returns the logits at the last token of the prompts `wanted`."""
        folding = self.folding(token_ids)
        if folding is not None:
            trees = packed(folding)
            last = [(int(trees.tree[row]), int(trees.nodes[row, -1])) for row in wanted]
            logits = self._pass(_Input.of_trees(trees, self.placement), trees.unfold, kept, last, progress, riding)
            riding = None  # it has been where it wanted to go
            if kept.isfinite().all():
                return logits
            # Within a tree one prompt's NaN is every prompt's: zero times NaN is NaN. Alone it is its own.
        last = [(row, len(token_ids[row]) - 1) for row in wanted]
        batch = _Input(_padded(token_ids).to(self.placement.device))
        return self._pass(batch, lambda stream: stream, kept, last, progress, riding)

    def _pass(
        self,
        batch: "_Input",
        unfold: Callable[[Tensor], Tensor],
        kept: Float[Tensor, "prompt layer position d_model"],
        last: Sequence[tuple[int, int]],
        progress: Callable[[int, int], None],
        riding: PatchedPass | None = None,
    ) -> Float[Tensor, "some d_vocab"]:
        reset_rope(self._module)
        with (
            self._past_the_page_cache(twice=riding is not None) as names,
            self._in_step(riding) as other,
            self._watched(kept, unfold, last, progress, names, other),
        ):
            return self._run(batch)[:, 0].float()

    @contextmanager
    def _past_the_page_cache(self, *, twice: bool = False) -> Iterator[Mapping[int, Sequence[str]]]:
        """A weight is wanted once in a pass, so what cannot stay in the page cache need not come there.

        Gives the names of the tensors that are still to be read ahead. Where a block runs twice in turn, its weights
        stay in the page cache in between.
        """
        on_cpu = self.placement.device.type == "cpu"
        uncached = on_cpu and not twice and reads_uncached() and not keeps_in_page_cache(self.checkpoint.bytes_on_disk)
        with self._tiles.uncached() if uncached else nullcontext():
            yield self._loaded_names if uncached else self._block_names

    @torch.inference_mode()
    def forward_patched(
        self,
        token_ids: Sequence[Sequence[int]],
        patches: Sequence[Patch],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, "patch d_model"]]:
        """Run prompts, and for each patch its base with one residual replaced; every weight is visited once.

        Args:
            token_ids: for each prompt what the model reads, BOS included.
            patches: which residuals are replaced, and by what.
            progress: called with (blocks done, blocks to do) after every block.

        Returns:
            The residual after the last block at the last position: of every prompt, and of every patched run; float32.

        Raises:
            ModelError: a patch outside the model or its prompt, or a model whose blocks cannot be resumed.
        """
        return self.run_patched(PatchedPass(token_ids, patches, self.n_layers), progress=progress)

    @torch.inference_mode()
    def run_patched(
        self, run: PatchedPass, *, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, "patch d_model"]]:
        """The same of a pass that is laid out already."""
        reason = why_not_patched(self.architecture, max(run.trees.lengths))
        if reason is not None:
            raise ModelError(f"{self.id} cannot be run with residuals replaced: {reason}.")

        def after(i: int) -> None:
            self._drop(i)
            progress(i + 1, self.n_layers)

        reset_rope(self._module)
        with self._past_the_page_cache() as names, Hooks() as hooks:
            run.hook(hooks, self._blocks, self._head, before=self._lend, after=after)
            with self._reading(names):
                self._run(_Input.of_copies(run.trees, self.placement))
        return run.own, run.patched

    @property
    def patches_ride(self) -> bool:
        """Whether patches had better go in the pass that reads a prompt: the weights would be read again for them."""
        return not (self.resident or keeps_in_page_cache(self.checkpoint.bytes_on_disk))

    @contextmanager
    def _in_step(self, run: PatchedPass | None) -> Iterator[InStep | None]:
        """A second forward over copies, if there is one, whose blocks run behind those of the first."""
        if run is None:
            yield None
            return
        other = InStep(lambda: self._run(_Input.of_copies(run.trees, self.placement)))
        with Hooks() as hooks:
            run.hook(
                hooks,
                self._blocks,
                self._head,
                before=lambda i: None,
                after=lambda i: other.pause(),
                is_this=lambda: other.is_this,
            )
            with other:
                yield other

    @contextmanager
    def _reading(self, names: Mapping[int, Sequence[str]]) -> Iterator[None]:
        """Weights are read ahead and let go of again."""
        self._begin(names)
        try:
            yield
            self._reader.wait()  # for the head, which is wanted next
        finally:
            self._let_go()

    @property
    def _blocks(self) -> list[nn.Module]:
        return list(self._module.get_submodule(self.architecture.blocks).children())

    @property
    def _head(self) -> nn.Module:
        head: nn.Module = self._module.get_submodule(self._head_name)
        return head

    @cached_property
    def sublayers(self) -> tuple[Sublayers, ...]:
        """Of every block the modules whose outputs are added to the stream.

        Raises:
            ModelError: a part that is not known, named; or a stream that is no sum of what is added to it.
        """
        container = self._module.get_submodule(self.architecture.blocks)
        config = self._module.config.get_text_config()
        kind = config.model_type
        return tuple(sublayers_of(block, i, kind, config) for i, block in enumerate(container, start=1))

    @cached_property
    def _norms_behind(self) -> tuple[tuple[Norm | None, Norm | None], ...]:
        """For every block the norms between attention's and the MLP's last matrix and the sum."""

        def norm(i: int, path: str | None) -> Norm | None:
            return None if path is None else self._norm(f"{self.architecture.blocks}.{i}.{path}")

        return tuple((norm(i, part.post_norm), norm(i, part.mlp_norm)) for i, part in enumerate(self.sublayers))

    @property
    def block_order(self) -> Order | None:
        """Whether a block's MLP reads the state that its attention has written to; None where that is not known."""
        config = self._module.config.get_text_config()
        return order_of(config.model_type, config)

    @torch.inference_mode()
    def forward_writes(
        self,
        token_ids: Sequence[Sequence[int]],
        directions: Float[Tensor, "prompt d_model"],
        *,
        n_logits: int = 0,
        neurons: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Writes:
        """Run prompts, and keep at each one's last token what attention and MLP of every block add to the stream.

        Args:
            token_ids: for each prompt what the model reads, BOS included.
            directions: for each prompt what is read in the write of every head, float64.
            n_logits: of how many prompts, from the first on, the model's own logits are kept.
            neurons: whether the directions are read in the write of every MLP neuron too.
            progress: called with (blocks done, blocks to do) after every block.

        Raises:
            ModelError: a part of a block that is not known, named; or a stream that is no sum of what is added to it.
        """
        groups = batches(self.architecture.rope, [len(ids) for ids in token_ids])
        parts = list[tuple[list[int], Writes]]()
        for done, group in enumerate(groups):
            wanted = [row for row, i in enumerate(group) if i < n_logits]
            writes = self._writes_of(
                [token_ids[i] for i in group],
                directions[group],
                wanted,
                neurons,
                lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            )
            parts.append((group, writes))
        return parts[0][1] if len(parts) == 1 else Writes.in_order(parts)

    def _writes_of(
        self,
        token_ids: Sequence[Sequence[int]],
        directions: Float[Tensor, "prompt d_model"],
        wanted: Sequence[int],
        neurons: bool,
        progress: Callable[[int, int], None],
    ) -> Writes:
        """One pass, packed as `_forward_group` packs it."""
        folding = self.folding(token_ids)
        if folding is not None:
            trees = packed(folding)
            rows, nodes = trees.tree.tolist(), trees.nodes[:, -1].tolist()
            places = list(zip(rows, nodes, strict=True))
            writes = self._writes_at(
                _Input.of_trees(trees, self.placement), places, directions, wanted, neurons, progress
            )
            if writes.states.isfinite().all():
                return writes
        batch = _Input(_padded(token_ids).to(self.placement.device))
        places = [(row, len(ids) - 1) for row, ids in enumerate(token_ids)]
        return self._writes_at(batch, places, directions, wanted, neurons, progress)

    def _writes_at(
        self,
        batch: "_Input",
        places: Sequence[tuple[int, int]],
        directions: Float[Tensor, "prompt d_model"],
        wanted: Sequence[int],
        neurons: bool,
        progress: Callable[[int, int], None],
    ) -> Writes:
        """One pass; `places` are row and position of every prompt's last token."""
        shape = batch.token_ids.shape
        rows, positions = (torch.tensor(values) for values in zip(*places, strict=True))

        def pick(values: Tensor) -> Tensor:  # some modules are called with all tokens of a batch in one row
            return values.reshape(*shape, values.shape[-1])[rows, positions]

        hooks = WriteHooks(
            self.sublayers,
            self._norms_behind,
            self.n_heads,
            directions,
            pick,
            torch.finfo(self.placement.dtype).eps / 2,
            replaced=[] if self.ablation is None else self.ablation.blocks_without("attn"),
            without_neurons=None
            if not neurons
            else []
            if self.ablation is None
            else self.ablation.blocks_without("mlp"),
        )
        states = torch.zeros(len(places), self.n_layers + 1, 1, self.d_model, device=self.placement.device)
        last = [places[prompt] for prompt in wanted or [0]]
        with hooks.hooked():
            logits = self._pass(batch, lambda stream: pick(stream)[:, None], states, last, progress)
        return Writes(
            states[:, :, 0],
            torch.stack([hooks.attention[i] for i in range(self.n_layers)], dim=1),
            torch.stack([hooks.mlp[i] for i in range(self.n_layers)], dim=1),
            logits[: len(wanted)],
            hooks.head_shares,
            hooks.neuron_shares,
        )

    def forward_blockwise(
        self,
        token_ids: Int[Tensor, "batch sequence position"],
        residuals: Float[Tensor, "batch sequence position d_model"],
        after: Callable[[int], None],
        *,
        n_blocks: int | None = None,
        reached: int | None = None,
        visit: Visit | None = None,
    ) -> None:
        """Run much text through the model, one block after the other, reading every weight once.

        Args:
            token_ids: batches of sequences of one length, without padding; BOS included where the model has it.
            residuals: float32, filled in place; on the CPU as a rule, where it may be a mapped file.
            after: called with each layer, 0 to n_layers, while `residuals` holds the stream there.
            n_blocks: how many blocks to run; all of them where not given.
            reached: the layer that `residuals` hold already; `after` is then called with those behind it.
            visit: called with every block and batch while `residuals` hold what the block reads, so that the block may
                be called, and differentiated, there.

        Raises:
            ModelError: the model's blocks cannot be run one after the other, or do not read so many positions.
        """
        if self.n_context is not None and token_ids.shape[-1] > self.n_context:
            raise ModelError(
                f"The model reads {self.n_context} positions at most, but sequences of {token_ids.shape[-1]} came; "
                "give shorter ones."
            )
        reset_rope(self._module)
        container = self._module.get_submodule(self.architecture.blocks)
        self._begin(self._block_names)
        try:
            # What is made in inference mode can never be differentiated.
            with torch.inference_mode(visit is None), torch.no_grad():
                run_blockwise(
                    self._module,
                    list(container),
                    token_ids.to(self.placement.device),
                    residuals,
                    lend=self._lend,
                    drop=self._drop,
                    after=after,
                    n_blocks=n_blocks,
                    reached=reached,
                    visit=visit,
                )
        finally:
            self._let_go()

    def pull_back(
        self,
        token_ids: Int[Tensor, "sequence position"],
        rows: Float[Tensor, "row d_model"],
        counted: slice,
        *,
        rows_at_once: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, "layer row sequence d_model"]:
        """How a direction of the last block's output, summed over later positions, depends on every layer's residuals.

        Exact, block by block, with no more than one block's graph in memory.

        Args:
            token_ids: sequences of one length without padding.
            rows: directions `u`.
            counted: positions that are counted as targets and as sources.
            rows_at_once: how many directions go through the blocks together.
            progress: called with (directions done, directions to do).

        Returns:
            For layers 0 to n_layers - 1 the mean over counted positions t of
            `sum_{t' >= t} d (u . h_n[t']) / d h_l[t]`, float64 on the CPU.

        Raises:
            ModelError: attention of a kind that cannot be differentiated here, or that is another where it is written
                out.
        """
        blocks: list[BlockInHand] = []
        inputs: list[Tensor] = []
        device = self.placement.device
        with torch.inference_mode(False):
            residuals, own = (torch.empty(1, *token_ids.shape, self.d_model, device=device) for _ in range(2))
        self.forward_blockwise(token_ids[None], own, lambda layer: None)

        def visit(block: BlockInHand) -> None:
            blocks.append(block)
            inputs.append(residuals[0].clone())

        def pulled(some: Tensor) -> Tensor:
            lend, drop = (lambda i: self._loaders[i].load()), (lambda i: self._loaders[i].drop())
            return pull_back(blocks, inputs, some.to(device), counted, lend=lend, drop=drop)

        with torch.inference_mode(False), torch.no_grad(), attention_in_hand(self._module):
            self.forward_blockwise(token_ids[None], residuals, lambda layer: None, visit=visit)
            self._check_written_out(residuals, own)
            parts = []
            try:
                for some in torch.split(rows.clone(), rows_at_once):
                    parts.append(pulled(some))
                    progress(sum(part.shape[1] for part in parts), len(rows))
            finally:
                self._let_go()
        return torch.cat(parts, 1)

    def _check_written_out(self, residuals: Tensor, own: Tensor) -> None:
        """Some families' plain attention is not the one that they use.

        Raises:
            ModelError: the residuals after the last block are others than the model's own.
        """
        difference = float((residuals - own).norm() / own.norm())
        if not difference <= WRITTEN_OUT[self.placement.dtype != torch.float32]:
            raise ModelError(
                f"With its attention written out, as differentiating it asks for, this '{self.family}' model ends in "
                f"residuals that are {difference:.1%} off its own, so no Jacobian of it can be had."
            )

    @contextmanager
    def attention_in_hand(self) -> Iterator[AttentionRecorder]:
        """Until the end of the `with` the model attends by plain products, and what it attends with may be kept."""
        with attention_in_hand(self._module) as recorder:
            yield recorder

    def _begin(self, names: Mapping[int, Sequence[str]]) -> None:
        # Weights that an accelerator keeps were read when the model was opened, and are not read again.
        names = {i: loader.names for i, loader in enumerate(self._loaders)} if self.resident else names
        self._reader.begin(names, drop=not keeps_in_page_cache(self.checkpoint.bytes_on_disk))

    def _lend(self, i: int) -> None:
        """Give a block its parameters, and begin to read the next one's."""
        self._reader.enter(i)
        self._loaders[i].load()

    def _drop(self, i: int) -> None:
        """Take them back."""
        self._loaders[i].drop()
        self._reader.leave(i)

    def _let_go(self) -> None:
        self._reader.stop()
        for loader in self._loaders:  # a pass that broke off leaves a block's parameters behind
            loader.drop()

    def _run(self, batch: "_Input") -> Tensor:
        """The module's own forward.

        Raises:
            ModelError: a family that no test covers fails on its way.
        """
        try:
            logits: Tensor = self._module(**batch.arguments(), use_cache=False).logits
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if self.family_verified:
                raise  # a fault of ours, to be seen whole
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ModelError(
                f"A '{self.family}' model could not be run with its weights left in their files ({reason}); its family "
                "is not among those that `layerscope models` lists."
            ) from error
        return logits

    @contextmanager
    def _watched(
        self,
        residuals: Tensor,
        unfold: Callable[[Tensor], Tensor],
        last: Sequence[tuple[int, int]],
        progress: Callable[[int, int], None],
        names: Mapping[int, Sequence[str]],
        other: InStep | None,
    ) -> Iterator[None]:
        """Hooks that keep the residual around every block, lend a block its parameters, and read the next one's.

        `last` gives, for the prompts whose logits are wanted, the place of the last token in what the model reads, and
        `unfold` takes the stream there to that of every prompt. `names` are the tensors that are read ahead, and
        `other` is a second forward whose blocks run behind these.
        """

        def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: None if other is not None and other.is_this else hook(*args)

        with Hooks() as hooks:
            for i, block in enumerate(self._blocks):
                hooks.before(block, only_here(self._enter(i, residuals, unfold)))
                hooks.after(block, only_here(self._leave(i, residuals, unfold, progress, other)))
            rows, positions = [row for row, _ in last], [position for _, position in last]
            # The model's own logits are wanted at a prompt's last token alone; whatever it does to them comes after.
            hooks.before(
                self._head, only_here(lambda module, args, kwargs: ((args[0][rows, positions][:, None],), kwargs))
            )
            with self._reading(names):
                yield

    def _enter(self, i: int, residuals: Tensor, unfold: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if i == 0:
                residuals[:, 0] = unfold(args[0] if args else kwargs["hidden_states"])
            self._lend(i)

        return before

    def _leave(
        self,
        i: int,
        residuals: Tensor,
        unfold: Callable[[Tensor], Tensor],
        progress: Callable[[int, int], None],
        other: InStep | None,
    ) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            residuals[:, i + 1] = unfold(output[0] if isinstance(output, tuple) else output)
            if other is not None:
                other.step()
            self._drop(i)
            progress(i + 1, self.n_layers)

        return after

    @cached_property
    def _block_names(self) -> dict[int, list[str]]:
        """Names in the checkpoint of every block's tensors; the head's stand after the last block."""
        names: dict[int, list[str]] = {i: [] for i in range(self.n_layers + 1)}
        prefix = f"{self.architecture.blocks}."
        for target, stored in self._stored.items():
            if target.startswith(prefix):
                names[int(target.removeprefix(prefix).partition(".")[0])] += stored.names
        names[self.n_layers] += self._stored[f"{self._head_name}.weight"].names
        return names

    @property
    def _loaded_names(self) -> dict[int, list[str]]:
        """Of them those that are read at once, not a tile at a time."""
        of_blocks = {i: loader.names for i, loader in enumerate(self._loaders)}
        return of_blocks | {self.n_layers: self._block_names[self.n_layers]}


@dataclass(frozen=True)
class _Input:
    """What the module is called with."""

    token_ids: Int[Tensor, "row position"]
    positions: Int[Tensor, "row position"] | None = None
    """Where they are not counted along the row."""
    mask: Float[Tensor, "row 1 position position"] | None = None
    """What is added to attention scores; the module's own causal mask where None."""

    @classmethod
    def of_trees(cls, trees: Packed, placement: Placement) -> "_Input":
        """Prompts that share what they begin with."""
        device = placement.device
        return cls(trees.token_ids.to(device), trees.positions.to(device), trees.mask(placement.dtype, device))

    @classmethod
    def of_copies(cls, trees: PatchTrees, placement: Placement) -> "_Input":
        """Prompts and copies of them with replaced residuals."""
        device = placement.device
        mask = trees.mask(placement.dtype, device)
        return cls(trees.token_ids.to(device), trees.positions.to(device), mask)

    def arguments(self) -> dict[str, Tensor | None]:
        """By the names that Transformers has for them."""
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return {"input_ids": self.token_ids, "attention_mask": self.mask, **positions}


def _padded(token_ids: Sequence[Sequence[int]]) -> Int[Tensor, "prompt position"]:
    """Prompts as one batch, each followed by its own last token.

    Attention is causal: what stands to the right of a prompt's last token cannot be seen from it. A masked NaN is still
    a NaN, so the padding must not bring in an id that the prompt does not have.
    """
    width = max(map(len, token_ids))
    return torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in token_ids])


def _optional(module: nn.Module, path: str) -> Any:
    """The submodule at a path whose last part may be None in some members of a family."""
    parent, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(parent), leaf)


def _check_head(unembedding: Unembedding) -> None:
    """Refuse what would spoil every logit of every layer; the head's weight is checked while it is swept.

    Raises:
        NumericError: a final norm or a head bias that is not finite.
    """
    parts = {"bias of the unembedding": unembedding.bias}
    if unembedding.final_norm is not None:
        at = f"of the final norm before the head ({unembedding.final_norm.source})"
        parts |= {f"gain {at}": unembedding.final_norm.gain, f"bias {at}": unembedding.final_norm.bias}
    for name, part in parts.items():
        broken = 0 if part is None else int((~torch.isfinite(part)).sum())
        if part is not None and broken:
            raise NumericError(
                f"The {name} should be finite, but {broken} of its {part.numel()} values are NaN or infinite, so no "
                "probability can be trusted; fetch the checkpoint again, or find out where it was damaged."
            )
