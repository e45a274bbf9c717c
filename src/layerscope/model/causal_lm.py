"""CausalLM: tokens in, residual stream out, with the model's final norm, head and own logits beside it."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from layerscope.errors import CheckpointError, ModelError, NumericError
from layerscope.model.architecture import Architecture, batches, describe, read_norm, reset_rope
from layerscope.model.checkpoint import Checkpoint, Source, locate
from layerscope.model.families import bos_rule, family_of
from layerscope.model.placement import Placement, place
from layerscope.model.streaming import Hooks, Prefetcher, StreamedLinear, map_names, stream_weights
from layerscope.model.tokens import Tokens
from layerscope.unembedding import Norm, Unembedding

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent.parent / "reference_model"
"""The small trained model that ships with the package."""
BUNDLED_ID = "layerscope/reference"


@dataclass(frozen=True)
class Forward:
    """What one pass leaves."""

    residuals: Float[Tensor, "prompt layer position d_model"]
    """float32; layer 0 is what enters block 0, layer n_layers leaves the last block unnormed. Right-padded: positions
    past a prompt's length hold nothing meant."""
    lengths: tuple[int, ...]
    logits: Float[Tensor, "prompt d_vocab"]
    """The model's own logits at each prompt's last token, head transform included, float32."""


class CausalLM:
    """A causal language model whose weights stay in their files.

    Transformers' own module computes the forward; its linears multiply memory-mapped tiles, its embedding gathers
    rows. So a pass costs the reading of the weights once and hardly any memory, at any model size.
    """

    def __init__(
        self,
        module: Any,
        source: Source,
        checkpoint: Checkpoint,
        tokens: Tokens,
        placement: Placement,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        """Take a model on the meta device and let it read its weights from `checkpoint`. Use `open`."""
        family, self.family_verified = family_of(module.config)
        self.source, self.checkpoint, self.tokens, self.placement = source, checkpoint, tokens, placement
        self.trust_remote_code = trust_remote_code
        self._module = module
        self._stored = map_names(module, checkpoint)
        self.architecture: Architecture = describe(module, family, self.family_verified, self._stored)
        names = {id(m): path for path, m in module.named_modules()}
        self._head_name = names[id(module.get_output_embeddings())]
        blocks = self.architecture.blocks
        self.resident = placement.holds(checkpoint.bytes_on_disk)
        self._loaders = stream_weights(
            module, self._stored, blocks, placement.dtype, placement.device, resident=self.resident
        )
        self._prefetcher = Prefetcher(checkpoint)
        self.next_norms = (*map(self._norm, self.architecture.input_norms), self._norm(self.architecture.final_norm))
        projection = None if family.projection is None else _optional(module, family.projection)
        head: StreamedLinear | nn.Linear = module.get_submodule(self._head_name)
        head_weight = self._stored[f"{self._head_name}.weight"].tensor()
        self.unembedding = Unembedding(
            weight=head_weight.to(placement.device) if self.resident else head_weight,
            final_norm=self.next_norms[-1],
            bias=None if head.bias is None else head.bias.detach().float(),
            transform=self.architecture.transform,
            projection=None if projection is None else projection.weight.float(),
            device=placement.device,
        )
        _check_head(self.unembedding)

    @classmethod
    def open(
        cls,
        model: str | Path = BUNDLED,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        memory: int | None = None,
        trust_remote_code: bool = False,
        bos: str = "auto",
    ) -> "CausalLM":
        """Open a model without loading it.

        Args:
            model: a folder with config.json, tokenizer and safetensors, or a Hub id; the bundled model by default.
            revision: branch, tag or commit of a Hub id.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            dtype: dtype the blocks compute in; `auto` is float32 on a CPU and bfloat16 on CUDA.
            memory: budget in bytes for everything but the weights' pages.
            trust_remote_code: run Python code that comes with the checkpoint; it is recorded.
            bos: whether prompts start with BOS: `auto` (by family), `yes` or `no`.

        Raises:
            CheckpointError: files missing, incomplete or damaged.
            ModelError: not a causal language model, or remote code without leave.
            TokenizerError: no tokenizer.
            PlacementError: a device or dtype that cannot be had.
            NumericError: a final norm or a head bias that is not finite.
        """
        placement = place(device, dtype, memory)
        source = locate(model, revision=revision, with_code=trust_remote_code)
        if source.folder == BUNDLED:
            source = Source(BUNDLED, BUNDLED_ID, None, None)
        config = _read_config(source.folder, trust_remote_code)
        family, _ = family_of(config.get_text_config())
        checkpoint = Checkpoint(source.folder)
        tokens = Tokens(source.folder, bos_rule(family, bos), trust_remote_code=trust_remote_code)
        with init_empty_weights(include_buffers=False):
            module = AutoModelForCausalLM.from_config(
                config,
                dtype=placement.dtype,
                # Only the plain implementation caps attention scores; elsewhere Transformers' choice is the reference.
                attn_implementation="eager" if getattr(config, "attn_logit_softcapping", None) else None,
                trust_remote_code=trust_remote_code,
            )
        module.eval()
        return cls(module, source, checkpoint, tokens, placement, trust_remote_code=trust_remote_code)

    @property
    def id(self) -> str:
        """Hub id, or the folder's name."""
        return self.source.id

    @property
    def family(self) -> str:
        """The config's `model_type`."""
        return self.architecture.family

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.architecture.n_layers

    @property
    def n_heads(self) -> int | None:
        """Attention heads of a block; None where there are none."""
        return self.architecture.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.architecture.d_model

    @property
    def d_vocab(self) -> int:
        """Number of logits, padding ids included."""
        return self.architecture.d_vocab

    @property
    def n_context(self) -> int | None:
        """How many tokens the model was made to read at most; None where its config does not say."""
        limit = getattr(self._module.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def final_norm(self) -> Norm | None:
        """The norm before the unembedding."""
        return self.next_norms[-1]

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
        return str(self.unembedding.weight.dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over shape, dtype and values of the final norm and of the unembedding: what a fitted lens depends on.

        Of an unembedding over 64 MiB, evenly spaced rows are hashed.
        """
        digest = hashlib.sha256()
        weight = self.unembedding.weight
        step = max(1, weight.numel() * weight.element_size() // (64 << 20))
        digest.update(f"{tuple(weight.shape)} {weight.dtype} {step}".encode())
        for start in range(0, len(weight), 1024 * step):
            rows = weight[start : start + 1024 * step : step].contiguous()
            digest.update(rows.cpu().view(torch.uint8).numpy().data)
        for part in (self.final_norm.gain, self.final_norm.bias) if self.final_norm else ():
            digest.update(b"-" if part is None else part.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _norm(self, path: str | None) -> Norm | None:
        return None if path is None else read_norm(_optional(self._module, path), path)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Forward:
        """Run all prompts through the model in one right-padded batch, visiting every weight once.

        Models whose rotary frequencies depend on a batch's longest prompt take a pass for each regime (`batches`).

        Args:
            token_ids: for each prompt what the model reads, BOS included; lengths may differ.
            progress: called with (blocks done, blocks to do) after every block.
        """
        lengths = tuple(len(ids) for ids in token_ids)
        device = self.placement.device
        residuals = torch.zeros(len(lengths), self.n_layers + 1, max(lengths), self.d_model, device=device)
        logits = torch.empty(len(lengths), self.d_vocab, device=device)
        groups = batches(self.architecture.rope, lengths)
        for done, group in enumerate(groups):
            own = [lengths[i] for i in group]
            # Attention is causal: what stands to the right of a prompt's last token cannot be seen from it. A prompt is
            # padded with its own last token, because a masked NaN is still a NaN: that of an unused id stays out.
            batch = torch.empty(len(group), max(own), dtype=torch.int64, device=device)
            for row, i in enumerate(group):
                batch[row, : lengths[i]] = torch.tensor(token_ids[i], device=device)
                batch[row, lengths[i] :] = token_ids[i][-1]
            last = torch.tensor(own, device=device) - 1
            reset_rope(self._module)
            alone = len(groups) == 1  # as a rule: then there is nothing to put together
            kept = residuals if alone else residuals.new_zeros(len(group), *residuals.shape[1:])[:, :, : max(own)]
            with self._watched(
                kept,
                last,
                lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            ):
                own_logits = self._module(input_ids=batch, attention_mask=None, use_cache=False).logits
            if not alone:
                residuals[group, :, : max(own)] = kept
            logits[group] = own_logits[:, 0].float()
        self._prefetcher.wait()
        return Forward(residuals, lengths, logits)

    @contextmanager
    def _watched(self, residuals: Tensor, last: Tensor, progress: Callable[[int, int], None]) -> Iterator[None]:
        """Hooks that keep the residual around every block, lend a block its parameters, and read the next one's."""
        container = self._module.get_submodule(self.architecture.blocks)
        head = self._module.get_submodule(self._head_name)
        with Hooks() as hooks:
            for i, block in enumerate(container):
                hooks.before(block, self._enter(i, residuals))
                hooks.after(block, self._leave(i, residuals, progress))
            rows = torch.arange(len(last), device=last.device)
            # The model's own logits are wanted at each prompt's last token alone; whatever it does to them comes after.
            hooks.before(head, lambda module, args, kwargs: ((args[0][rows, last][:, None],), kwargs))
            yield

    def _enter(self, i: int, residuals: Tensor) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if i == 0:
                residuals[:, 0] = args[0] if args else kwargs["hidden_states"]
            self._prefetcher.start(self._names_of(i + 1))
            self._loaders[i].load()

        return before

    def _leave(self, i: int, residuals: Tensor, progress: Callable[[int, int], None]) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            residuals[:, i + 1] = output[0] if isinstance(output, tuple) else output
            self._loaders[i].drop()
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

    def _names_of(self, block: int) -> list[str]:
        return self._block_names.get(block, [])


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


def _read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The model's config, refused where it is no causal language model.

    Raises:
        CheckpointError: no readable config.json.
        ModelError: an encoder, an encoder-decoder, remote code without leave.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The folder '{folder.name}' holds no config.json; give a folder with config.json, a tokenizer and "
            "*.safetensors."
        )
    try:
        json.loads((folder / "config.json").read_bytes())
    except ValueError as error:  # Transformers would say less of where it is broken
        raise CheckpointError(
            f"config.json of '{folder.name}' should hold JSON, but it is broken ({error}); fetch it again."
        ) from error
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _config_error(folder, error) from error
    wants_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (wants_code and trust_remote_code):
        if wants_code:
            raise _remote_code(config.model_type)
        raise ModelError(
            f"A '{config.model_type}' model is no causal language model, so there is no next token to read; give a "
            "decoder-only model."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"This '{config.model_type}' model is an encoder-decoder, but layerscope probes decoders only; give a "
            "decoder-only model."
        )
    classes = set(config.architectures or ())
    causal = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_names(names)}
    if classes and not classes & causal and not wants_code:
        raise ModelError(
            f"The checkpoint is a {', '.join(sorted(classes))}, no causal language model, so there is no next token "
            "to read; give a checkpoint with a language modelling head."
        )
    if config.model_type in _ENCODERS and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"This '{config.model_type}' model is an encoder, but layerscope probes decoders only; give a decoder-only "
            "model."
        )
    return config


_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra", "megatron-bert", "ernie", "rembert"})
"""Types that Transformers also offers as causal models but whose attention looks both ways unless they are decoders."""


def _as_names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _remote_code(model_type: str) -> ModelError:
    return ModelError(
        f"A '{model_type}' model brings Python code of its own, which is not run by default; read the code, then pass "
        "--trust-remote-code (trust_remote_code=True), which the run records."
    )


def _config_error(folder: Path, error: Exception) -> Exception:
    text = str(error)
    if "trust_remote_code" in text:
        return _remote_code(folder.name)
    reason = " ".join(text.strip().partition("\n\n")[0].split()) or type(error).__name__
    return ModelError(
        f"config.json of '{folder.name}' could not be understood ({reason}); give a model that the installed "
        f"Transformers ({transformers.__version__}) knows, with the config.json that came with it."
    )
