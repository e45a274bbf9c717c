"""What every fit shares: what its result depends on, and the model's own output at some positions."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.fitting.corpus import Corpus
from layerscope.fitting.divergence import DECODED_TOGETHER, Head, Targets
from layerscope.fitting.workspace import Workspace
from layerscope.lens_record import Kind, Settings
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import free_memory


def host_memory(model: CausalLM) -> int:
    """Bytes that text may take beside the model: its budget on a CPU, else half of what the machine has free."""
    if model.placement.device.type == "cpu":
        return model.placement.memory
    return free_memory(torch.device("cpu")) // 2


def device_memory(model: CausalLM) -> int:
    """Bytes of the budget that weights kept on an accelerator leave."""
    return model.placement.memory - (model.checkpoint.bytes_on_disk if model.resident else 0)


def block_bytes(model: CausalLM, n_tokens: int, seq_len: int) -> int:
    """What one block holds while so many tokens pass it: its own parameters, activations, attention scores."""
    return model.largest_block_bytes + 4 * n_tokens * (model.widest_activation + (model.n_heads or 0) * seq_len)


def shortage_message(model: CausalLM) -> str:
    """What to say where a fit runs out of memory."""
    return (
        f"The memory of {model.placement.device} or of the machine ran out during the fit; give fewer --tokens, a "
        "smaller --batch, or a smaller --memory, so that the text goes to the disk."
    )


def settings_record(model: CausalLM, seed: int) -> Settings:
    """Whatever else than text and settings decides the weights."""
    return Settings(
        seed=seed,
        device=model.placement.device.type,
        dtype=model.placement.dtype_name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        layerscope=version("layerscope"),
    )


def fit_key(
    kind: Kind, model: CausalLM, corpus: Corpus, seed: int, settings: Mapping[str, object]
) -> dict[str, object]:
    """Whatever decides the weights of a lens, by name: one and the same for a fit that goes on."""
    return {
        "kind": kind,
        "model": model.fingerprint,
        "blocks": model.blocks_fingerprint,
        "commit": model.source.commit,
        "config": hashlib.sha256((model.source.folder / "config.json").read_bytes()).hexdigest(),
        "transformers": version("transformers"),
        "n_parameters": model.architecture.n_parameters,
        "corpus": corpus.record.sha256,
        **settings,
        **settings_record(model, seed).model_dump(),
    }


def leftovers_said(workspace: Workspace) -> str:
    """Lines that end a plan where folders of other fits of the same lens lie about."""
    return "".join(f"\nan unfinished fit with other settings lies in {path}" for path in workspace.leftovers)


def final_rows(model: CausalLM, finals: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """What the model's own head multiplies, from residuals after the last block."""
    on_device = finals.to(model.placement.device)
    return on_device if model.final_norm is None else model.final_norm(on_device)


def targets_at(model: CausalLM, head: Head, finals: Float[Tensor, "all d_model"], index: Int[Tensor, " n"]) -> Targets:
    """What the model says at some positions."""
    return Targets.joined([head.targets(final_rows(model, finals[i])) for i in torch.split(index, DECODED_TOGETHER)])


def drawn(index: Int[Tensor, " all"], most: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """So many of some positions, in their order; all of them where there are no more."""
    if len(index) <= most:
        return index
    return index[torch.randperm(len(index), generator=generator)[:most]].sort().values
