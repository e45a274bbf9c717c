"""CausalLM: tokens in, residual stream out, with the model's final norm, head and own logits beside it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.bundled import BUNDLED, BUNDLED_ID
from layerscope.errors import ModelError, TokenizerError
from layerscope.model.ablation import Ablation, ablate
from layerscope.model.adapter import Adapter, adapter_notes, with_base
from layerscope.model.architecture import Architecture, architecture_of, as_walked_through
from layerscope.model.attention_in_hand import AttentionRecorder, attention_in_hand
from layerscope.model.block_parts import Order, Sublayers
from layerscope.model.blockwise import Visit, run_blockwise
from layerscope.model.checkpoint import Source, locate
from layerscope.model.config import build_empty
from layerscope.model.decoding_head import unembedding_of
from layerscope.model.families import BosRule, Family, bos_rule, family_bos, family_of
from layerscope.model.fingerprints import blocks_fingerprint, head_fingerprint
from layerscope.model.lent_weights import LentWeights
from layerscope.model.model_files import open_files
from layerscope.model.names import map_names
from layerscope.model.options import OpenOptions
from layerscope.model.packing import Folding, folding_of
from layerscope.model.patched_pass import PatchedPass, run_patched
from layerscope.model.patching import Patch
from layerscope.model.placement import Placement, place
from layerscope.model.pulled_back import pull_back_through
from layerscope.model.residual_pass import forward_residuals
from layerscope.model.residuals import Residuals
from layerscope.model.shuffled_weights import Shuffle
from layerscope.model.streamed_module import Progress, StreamedModule, no_progress
from layerscope.model.sublayers import Writes
from layerscope.model.tensor_files import TensorFiles
from layerscope.model.tokens import Tokens
from layerscope.model.two_models import Watching, check_same_shape, run_in_step
from layerscope.model.wrapped import head_of
from layerscope.model.write_pass import forward_writes, mean_writes
from layerscope.options import keywords
from layerscope.unembedding import Norm


@dataclass(frozen=True, kw_only=True)
class OpenRequest(OpenOptions):
    """The model to open, and how."""

    model: str | Path = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a GGUF file, or a Hub id; default: the bundled model."""


class CausalLM:
    """A causal language model whose weights stay in their files.

    Transformers' own module computes the forward; its linears multiply memory-mapped tiles, its embedding gathers
    rows. So a pass costs the reading of the weights once and hardly any memory, at any model size.
    """

    id: str
    """Hub id, or the folder's or the GGUF file's name."""
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
        adapter: Adapter | None = None,
    ) -> None:
        """Take a model on the meta device and let it read its weights from `checkpoint`. Use `open`."""
        self.family_verified = family_verified
        self.source, self.checkpoint, self.tokens, self.placement = source, checkpoint, tokens, placement
        self.trust_remote_code = trust_remote_code
        self._module, self._family = module, family
        self._stored = map_names(module, checkpoint)
        self.adapter = adapter
        """What changes the weights as they are read; None of a model as it is stored."""
        if adapter is not None:
            self._stored = adapter.apply(self._stored, module)
        self.architecture: Architecture = architecture_of(module, family, self.family_verified, self._stored)
        self.shuffle = shuffle
        """How the weights are permuted; None of a model as it is."""
        if shuffle is not None:
            matrices = {name for name, p in module.named_parameters(remove_duplicate=False) if p.ndim > 1}
            self._stored = shuffle.apply(self._stored, matrices, self.architecture.blocks)
        self.id, self.family = source.id, self.architecture.family
        self.n_layers, self.n_heads = self.architecture.n_layers, self.architecture.n_heads
        self.d_model, self.d_vocab = self.architecture.d_model, self.architecture.d_vocab
        head = {id(m): path for path, m in module.named_modules()}[id(head_of(module))]
        weights = LentWeights(module, self._stored, checkpoint, placement, blocks=self.architecture.blocks, head=head)
        if not family_verified:
            self.architecture = as_walked_through(self.architecture, module, head, placement.device)
        self._streamed = StreamedModule(module, self.architecture, head, weights, placement, family_verified)
        norms = (*self.architecture.input_norms, self.architecture.final_norm)
        self.next_norms = tuple(map(self._streamed.norm, norms))
        self.unembedding = unembedding_of(self._streamed, family, self.final_norm)
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
        model, adapter = with_base(request.model, request.adapter)
        placement = place(request.device, request.dtype, request.memory)
        trusted = request.trust_remote_code
        source = locate(model, revision=request.revision, with_code=trusted)
        if source.folder == BUNDLED:
            source = Source(BUNDLED, BUNDLED_ID, None, None)
        files = open_files(source, trusted)
        if adapter is not None:
            source = replace(source, id=f"{source.id}-{adapter.name}")
        config = files.config
        family, verified = family_of(config)
        rule = bos_rule(request.bos, family_bos(config))
        checkpoint = files.checkpoint
        tokens = Tokens(source.folder, rule, trust_remote_code=trusted, made=files.tokenizer)
        if request.bos == "yes" and tokens.bos_id is None:
            raise TokenizerError("BOS was asked for, but the tokenizer defines none; leave --bos out.")
        return CausalLM(
            build_empty(config, source.folder, placement.dtype, trusted, source.gguf),
            source,
            checkpoint,
            tokens,
            placement,
            family,
            family_verified=verified,
            trust_remote_code=trusted,
            adapter=adapter,
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
            with torch.inference_mode():
                ablation = replace(ablation, means=mean_writes(self._streamed, ablation, token_ids))
        return self._twin(ablation.name, self.shuffle, ablation)

    def _twin(self, name: str, shuffle: Shuffle | None, ablation: Ablation | None) -> "CausalLM":
        """Another model over the same checkpoint."""
        folder, dtype = self.source.folder, self.placement.dtype
        return CausalLM(
            build_empty(self._module.config, folder, dtype, self.trust_remote_code, self.source.gguf),
            replace(self.source, id=f"{self.source.id}-{name}"),
            self.checkpoint,
            self.tokens,
            self.placement,
            self._family,
            family_verified=self.family_verified,
            trust_remote_code=self.trust_remote_code,
            shuffle=shuffle,
            ablation=ablation,
            adapter=self.adapter,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken off names, set aside or applied when its files were read, in sentences."""
        return (*self.checkpoint.notes, *adapter_notes(self.source.folder, self.adapter))

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
        return self._streamed.n_context

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        return self.next_norms[-1]

    @cached_property
    def second_norms(self) -> tuple[Norm | None, ...]:
        """For every block the norm through which its MLP reads the stream; None where it has none of its own."""
        return tuple(map(self._streamed.norm, self.architecture.second_norms))

    @property
    def resident(self) -> bool:
        """Whether an accelerator keeps the weights."""
        return self._streamed.weights.resident

    @property
    def resident_bytes(self) -> int:
        """What an accelerator holds of the weights; zero where it keeps none."""
        return self.checkpoint.bytes_kept(self.placement.dtype.itemsize) if self.resident else 0

    @property
    def largest_block_bytes(self) -> int:
        """Memory that the parameters of one block take while it computes, beyond what is streamed."""
        return self._streamed.weights.largest_block_bytes

    @property
    def largest_differentiated_bytes(self) -> int:
        """The same while the block is differentiated, which keeps every expert that a token was sent to."""
        return self._streamed.weights.largest_differentiated_bytes

    @property
    def widest_activation(self) -> int:
        """Numbers that one token holds inside a block, roughly: three of a gated layer's width, and the stream."""
        return self._streamed.widest_activation

    @cached_property
    def stored_dtype(self) -> str:
        """What the weights are stored as: the forms of quantised ones, else the dtypes; most bytes first."""
        return self.checkpoint.storage or self.unembedding.weight.storage

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the final norm and the unembedding as stored: what every lens reads through."""
        norm = self.architecture.final_norm
        names = (f"{self._streamed.head_name}.bias", f"{norm}.weight", f"{norm}.bias")
        return head_fingerprint(self.unembedding.weight, self.final_norm, map(self._stored.get, names))

    @property
    def changed(self) -> str | None:
        """What was done to the model after it was read, as what follows its name; None where nothing was."""
        done = [] if self.shuffle is None else [f"shuffled weights ({self.shuffle.name})"]
        if self.ablation is not None:
            done.append(f"parts put out of action ({self.ablation.name})")
        return f"has {' and '.join(done)}" if done else None

    @cached_property
    def blocks_fingerprint(self) -> str:
        """sha256 over names, shapes and a few rows of every tensor of the blocks: what a layer's lens depends on.

        Of a GGUF file also over what its header says of how they compute.

        A fine-tuned model may keep its head to the bit.
        """
        return blocks_fingerprint(
            self._stored,
            f"{self.architecture.blocks}.",
            self.checkpoint,
            [
                *([] if self.adapter is None else [self.adapter.fingerprint]),
                *(change.name for change in (self.shuffle, self.ablation) if change is not None),
            ],
            () if self.ablation is None else self.ablation.means,  # which the run's own prompts have made
        )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        n_logits: int | None = None,
        progress: Progress = no_progress,
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
        return forward_residuals(self._streamed, token_ids, n_logits, progress, riding)

    def folding(self, token_ids: Sequence[Sequence[int]]) -> Folding | None:
        """How prompts would share what they begin with; None where they go through the model one beside the other."""
        return folding_of(token_ids, self.architecture)

    def activation_numbers(self, token_ids: Sequence[Sequence[int]]) -> int:
        """Numbers that a block holds at once, roughly, while these prompts go through it."""
        folding = self.folding(token_ids)
        width = max(map(len, token_ids)) if folding is None else folding.width
        n_rows = len(token_ids) + (not self.family_verified)  # with a witness (`one_stream`)
        n_tokens = width * n_rows if folding is None else folding.n_tokens
        scores = (self.n_heads or 0) * width
        return n_tokens * (self.widest_activation + scores + (0 if folding is None else width))

    @torch.inference_mode()
    def forward_patched(
        self,
        token_ids: Sequence[Sequence[int]],
        patches: Sequence[Patch],
        *,
        progress: Progress = no_progress,
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
        self, run: PatchedPass, *, progress: Progress = no_progress
    ) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, "patch d_model"]]:
        """The same of a pass that is laid out already."""
        run_patched(self._streamed, run, self.id, progress)
        return run.own, run.patched

    @torch.inference_mode()
    def forward_beside(
        self,
        variant: "CausalLM",
        token_ids: Sequence[Sequence[int]],
        watching: Watching,
        *,
        modules: bool = False,
        progress: Progress = no_progress,
    ) -> tuple[Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"]]:
        """Run this model and a variant of it over the same prompts, block by block; every weight of both is read once.

        Args:
            variant: a model of as many blocks as wide as these, opened by itself.
            token_ids: for each prompt what both read, BOS included.
            watching: is told of both streams at every layer, and of the variant's block on this model's stream.
            modules: whether every linear layer of the variant is put into this model's block alone, too.
            progress: called with (blocks done, blocks to do) after every block.

        Returns:
            Both models' own logits at the last token of the first prompt, float32.

        Raises:
            ModelError: the two are not of one shape.
        """
        check_same_shape(self._streamed, variant._streamed, (self.id, variant.id))
        return run_in_step(self._streamed, variant._streamed, token_ids, watching, progress, modules=modules)

    @property
    def patches_ride(self) -> bool:
        """Whether patches had better go in the pass that reads a prompt: the weights would be read again for them."""
        return not (self.resident or self._streamed.weights.stay_in_page_cache)

    @property
    def sublayers(self) -> tuple[Sublayers, ...]:
        """Of every block the modules whose outputs are added to the stream.

        Raises:
            ModelError: a part that is not known, named; or a stream that is no sum of what is added to it.
        """
        return self._streamed.sublayers

    @property
    def block_order(self) -> Order | None:
        """Whether a block's MLP reads the state that its attention has written to; None where that is not known."""
        return self._streamed.block_order

    @torch.inference_mode()
    def forward_writes(
        self,
        token_ids: Sequence[Sequence[int]],
        directions: Float[Tensor, "prompt d_model"],
        *,
        n_logits: int = 0,
        neurons: bool = False,
        progress: Progress = no_progress,
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
        return forward_writes(
            self._streamed,
            self.ablation,
            token_ids,
            directions,
            n_logits=n_logits,
            neurons=neurons,
            progress=progress,
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
        run_blockwise(self._streamed, token_ids, residuals, after, n_blocks=n_blocks, reached=reached, visit=visit)

    def pull_back(
        self,
        token_ids: Int[Tensor, "sequence position"],
        rows: Float[Tensor, "row *own d_model"],
        counted: slice,
        *,
        rows_at_once: int,
        progress: Progress = no_progress,
    ) -> Float[Tensor, "layer row sequence d_model"]:
        """How a direction of the last block's output, summed over later positions, depends on every layer's residuals.

        Exact, block by block, with no more than one block's graph in memory.

        Args:
            token_ids: sequences of one length without padding.
            rows: directions `u`; `[row, sequence, d_model]` where each sequence has its own.
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
        return pull_back_through(self._streamed, token_ids, rows, counted, rows_at_once=rows_at_once, progress=progress)

    @contextmanager
    def attention_in_hand(self) -> Iterator[AttentionRecorder]:
        """Until the end of the `with` the model attends by plain products, and what it attends with may be kept."""
        with attention_in_hand(self._module) as recorder:
            yield recorder
