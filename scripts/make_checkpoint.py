"""Write a random checkpoint in the shape of a public model, tensor by tensor, for benchmarks and for trials at size.

The folder holds what a probe reads: `config.json`, the weights in safetensors files and a tokenizer (that of the
bundled reference model, whose ids lie below every vocabulary here). Weights are drawn, not trained: speed and memory
are those of the real model, the answers mean nothing. With `--sparse` the matrices are holes in the file: they read as
zeros and take no disk, so that a model of 145 GB can be walked through on a laptop.

    python scripts/make_checkpoint.py --shape qwen3-1.7b
    python scripts/make_checkpoint.py --shape qwen2.5-72b --sparse
    python scripts/make_checkpoint.py --shape gemma-2-9b --blocks 4 --out checkpoints/gemma-2-9b-short
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from layerscope.errors import CheckpointError

Config = Mapping[str, Any]
"""The content of a `config.json`."""

DTYPES = {"bfloat16": (torch.bfloat16, "BF16"), "float16": (torch.float16, "F16"), "float32": (torch.float32, "F32")}
"""Name on the command line -> (torch's type, safetensors' name)."""

SHARD_BYTES = 4_500_000_000

PERIOD = 33_554_393
"""Elements after which the random weights repeat: 64 MB in bfloat16. A prime, so that no two rows of a matrix start at
the same place of the period: equal rows in an unembedding would be ties in every ranking."""

GAINS_ABOUT_ZERO = frozenset({"gemma2"})
"""Families whose norm multiplies by 1 + weight, so that a neutral gain is 0."""


def _llama(**fields: Any) -> Config:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, **fields}


def _mistral(**fields: Any) -> Config:
    common = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 128}
    sizes = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768}
    return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **common, **sizes, **fields}


def _qwen3(**fields: Any) -> Config:
    common = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "max_position_embeddings": 40960}
    sizes = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
    ids = {"bos_token_id": 151643, "eos_token_id": 151645}
    return {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], **common, **sizes, **ids, **fields}


def _gemma2(**fields: Any) -> Config:
    common = {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}
    sizes = {"vocab_size": 256000, "max_position_embeddings": 8192, "tie_word_embeddings": True}
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], **common, **caps, **sizes, **ids, **fields}


SHAPES: Mapping[str, Config] = {
    "qwen3-0.6b": _qwen3(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        max_window_layers=28,
        tie_word_embeddings=True,
    ),
    "qwen3-1.7b": _qwen3(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        max_window_layers=28,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": _qwen3(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        max_window_layers=36,
        tie_word_embeddings=False,
    ),
    "qwen3-14b": _qwen3(
        hidden_size=5120,
        intermediate_size=17408,
        num_hidden_layers=40,
        num_attention_heads=40,
        max_window_layers=40,
        tie_word_embeddings=False,
    ),
    "qwen2.5-72b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "max_window_layers": 80,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    },
    "gemma-2-9b": _gemma2(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256,
    ),
    "gemma-2-27b": _gemma2(
        hidden_size=4608,
        intermediate_size=36864,
        num_hidden_layers=46,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=144,
    ),
    "llama-3-8b": _llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_theta=500_000.0,
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "llama-3-70b": _llama(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_theta=500_000.0,
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_id=128001,
    ),
    "mistral-7b": _mistral(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        vocab_size=32000,
        rope_theta=10_000.0,
        sliding_window=4096,
        tie_word_embeddings=False,
    ),
    "mistral-small-24b": _mistral(
        hidden_size=5120,
        intermediate_size=32768,
        num_hidden_layers=40,
        vocab_size=131072,
        rope_theta=100_000_000.0,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "yi-34b": _llama(
        hidden_size=7168,
        intermediate_size=20480,
        num_hidden_layers=60,
        num_attention_heads=56,
        num_key_value_heads=8,
        vocab_size=64000,
        max_position_embeddings=4096,
        rope_theta=5_000_000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}
"""Public configurations, field for field as their `config.json` has them."""


@dataclass(frozen=True)
class Weight:
    """One tensor of the checkpoint, known by name and shape alone."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """What will be written, decided before the first byte is."""

    config: Config
    shards: tuple[tuple[Weight, ...], ...]
    """The weights of each file, in the order of the model."""
    dtype: str
    """A key of `DTYPES`."""

    @property
    def parameters(self) -> int:
        """Numbers in the whole checkpoint; a tied head counts once."""
        return sum(weight.elements for shard in self.shards for weight in shard)

    @property
    def size(self) -> int:
        """Bytes of all weights, headers apart."""
        return self.parameters * DTYPES[self.dtype][0].itemsize

    def file_name(self, shard: int) -> str:
        """The name that Transformers expects of a shard, counted from 0."""
        count = len(self.shards)
        return "model.safetensors" if count == 1 else f"model-{shard + 1:05d}-of-{count:05d}.safetensors"


@dataclass(frozen=True)
class Fill:
    """How weights are drawn."""

    sparse: bool = False
    """Leave matrices as holes: they read as zeros. Norm gains and biases are written all the same."""
    seed: int = 316
    scale: float = 0.02
    """Standard deviation of every matrix, bias and gain about its centre."""


def model_weights(config: Config) -> tuple[Weight, ...]:
    """Names and shapes of the model that Transformers builds from `config`, unallocated; a tied head is absent."""
    fields = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**fields))
    model.tie_weights()
    return tuple(Weight(name, tuple(value.shape)) for name, value in model.named_parameters())


def plan_checkpoint(config: Config, dtype: str = "bfloat16", shard_bytes: int = SHARD_BYTES) -> Plan:
    """Deal the weights out to files of at most `shard_bytes`; a single weight above that has a file of its own."""
    itemsize = DTYPES[dtype][0].itemsize
    shards: list[list[Weight]] = [[]]
    filled = 0
    for weight in model_weights(config):
        size = weight.elements * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += size
    return Plan({**config, "dtype": dtype}, tuple(tuple(shard) for shard in shards), dtype)


class RandomStream:
    """Normal numbers without end and without cost: one seeded period is drawn and read round and round."""

    def __init__(self, fill: Fill, dtype: torch.dtype):
        """Draws the period at once: `PERIOD` elements of `dtype`."""
        generator = torch.Generator().manual_seed(fill.seed)
        period = torch.randn(PERIOD, generator=generator).mul_(fill.scale).to(dtype)
        self._bytes = period.view(torch.uint8).numpy().data
        self._next = 0

    def write(self, file: BinaryIO, size: int) -> None:
        """Append the next `size` bytes to `file`."""
        while size > 0:
            chunk = self._bytes[self._next : self._next + size]
            file.write(chunk)
            size -= len(chunk)
            self._next = (self._next + len(chunk)) % len(self._bytes)


def _vector(weight: Weight, family: str, fill: Fill, generator: torch.Generator) -> Tensor:
    """A norm's gain about its neutral value, or a bias about zero; shape and float32."""
    is_gain = "norm" in weight.name and weight.name.endswith(".weight")
    centre = 1.0 if is_gain and family not in GAINS_ABOUT_ZERO else 0.0
    return centre + fill.scale * torch.randn(weight.shape, generator=generator)


def _header(shard: tuple[Weight, ...], dtype: str) -> bytes:
    """The head of a safetensors file: eight bytes of length, then JSON padded with spaces to eight bytes.

    Source: the format's own page, huggingface/safetensors README.md, "Format".
    """
    torch_dtype, name = DTYPES[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for weight in shard:
        end = begin + weight.elements * torch_dtype.itemsize
        entries[weight.name] = {"dtype": name, "shape": list(weight.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_weights(folder: Path, plan: Plan, fill: Fill) -> None:
    """Write every shard, and the index when there are several, holding one period of random numbers and no model."""
    dtype, _ = DTYPES[plan.dtype]
    stream = None if fill.sparse else RandomStream(fill, dtype)
    vectors = torch.Generator().manual_seed(fill.seed)
    for number, shard in enumerate(plan.shards):
        with (folder / plan.file_name(number)).open("wb") as file:
            file.write(_header(shard, plan.dtype))
            for weight in shard:
                size = weight.elements * dtype.itemsize
                if len(weight.shape) == 1:
                    values = _vector(weight, plan.config["model_type"], fill, vectors).to(dtype)
                    file.write(values.view(torch.uint8).numpy().data)
                elif stream is None:
                    file.seek(size, 1)
                else:
                    stream.write(file, size)
            file.truncate(file.tell())  # a hole at the end has to be claimed
    if len(plan.shards) > 1:
        files = {weight.name: plan.file_name(number) for number, shard in enumerate(plan.shards) for weight in shard}
        index = {"metadata": {"total_size": plan.size}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tokenizer(folder: Path) -> None:
    """Copy the tokenizer of the bundled reference model.

    Raises:
        CheckpointError: when the installed package carries none.
    """
    reference = resources.files("layerscope") / "reference_model"
    files = [file for file in reference.iterdir() if file.name.startswith(("tokenizer", "special_tokens"))]
    if not files:
        raise CheckpointError(f"no tokenizer in {reference}; reinstall layerscope with its reference model")
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())


@contextmanager
def _whole_or_nothing(final: Path) -> Iterator[Path]:
    """A sibling folder to write in, renamed to `final` at the end, removed when anything stops the writing."""
    draft = final.with_name(f".{final.name}.part")
    draft.mkdir()
    try:
        yield draft
        draft.rename(final)
    finally:
        if draft.exists():
            shutil.rmtree(draft)


def write_checkpoint(out: Path, plan: Plan, fill: Fill) -> None:
    """Write the planned checkpoint to the new folder `out`, whole or not at all.

    Raises:
        CheckpointError: when `out` or an unfinished draft of it exists, or the disk has too little room.
    """
    _refuse_unless_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if not fill.sparse and free < plan.size:
        needed, left = f"{plan.size / 1e9:.1f} GB", f"{free / 1e9:.1f} GB"
        raise CheckpointError(f"{needed} needed, {left} free in {out.parent}; make room, or leave holes with --sparse")
    with _whole_or_nothing(out) as draft:
        (draft / "config.json").write_text(json.dumps(plan.config, indent=2) + "\n")
        write_tokenizer(draft)
        write_weights(draft, plan, fill)


def _refuse_unless_new(out: Path) -> None:
    for path in (out, out.with_name(f".{out.name}.part")):
        if path.exists():
            raise CheckpointError(f"a new folder was expected, but {path} exists; remove it or name another with --out")


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", required=True, choices=list(SHAPES))
    parser.add_argument("--out", type=Path, help="new folder; default: checkpoints/ and the shape's name")
    parser.add_argument("--sparse", action="store_true", help="leave matrices as holes (zeros that take no disk)")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--seed", type=int, default=Fill.seed)
    parser.add_argument("--scale", type=float, default=Fill.scale, help="standard deviation (default: %(default)s)")
    parser.add_argument("--blocks", type=int, help="number of blocks, for trials; default: the shape's own")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Plan, say the plan, write; exit code 2 for a user's mistake, 130 for ctrl-C."""
    arguments = _arguments(words)
    config = dict(SHAPES[arguments.shape])
    name = arguments.shape + ("-sparse" if arguments.sparse else "")
    if arguments.blocks is not None:
        config["num_hidden_layers"] = arguments.blocks
        name += f"-{arguments.blocks}-blocks"
    out = arguments.out or Path("checkpoints") / name
    fill = Fill(arguments.sparse, arguments.seed, arguments.scale)
    try:
        _refuse_unless_new(out)
        plan = plan_checkpoint(config, arguments.dtype)
        print(
            f"{arguments.shape}: {config['num_hidden_layers']} blocks, {plan.parameters:,} parameters, "
            f"{plan.size:,} bytes of {plan.dtype} in {len(plan.shards)} file(s){', sparse' if fill.sparse else ''}",
            flush=True,
        )
        write_checkpoint(out, plan, fill)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {out} was not written", file=sys.stderr)
        return 130
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
