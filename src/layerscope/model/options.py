"""How a model is opened: the options of `CausalLM.open`, of a probe and of a fit."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a model is opened."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """What blocks compute in: `auto` (float32 on a CPU, bfloat16 on CUDA), `float32` or `bfloat16` (CUDA only)."""
    memory: str | int | None = None
    """Working memory, as 4GiB or in bytes; default: half of free memory, nine tenths on CUDA."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    bos: str = "auto"
    """Start sequences with BOS: `auto` (as the model's own tokenizer does; protocol published: by family), `yes` or
    `no`."""
    adapter: str | Path | None = None
    """Folder of a LoRA adapter (PEFT; DoRA and rsLoRA too) to apply to the model's weights as they are read."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint; a probe records it."""
