"""The models that benchmarks run on, made when first asked for, and the arithmetic that none can do without."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from make_checkpoint import SHAPES, Fill, model_weights, plan_checkpoint, write_checkpoint  # noqa: E402

CHECKPOINTS = ROOT / "checkpoints"
PRETTY = {"qwen3-0.6b": "0.6B", "qwen3-1.7b": "1.7B", "qwen3-8b": "8B", "qwen2.5-72b": "72B"}
BYTES_PER_WEIGHT = 2
"""All are stored in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """A public model's shape, whole or cut short, with random weights or with holes in their place."""

    name: str
    """A key of `make_checkpoint.SHAPES`."""
    blocks: int | None = None
    """Fewer than the shape's own, where given."""
    vocabulary: int | None = None
    """Another than the shape's own, where given."""
    sparse: bool = False
    """Holes read as zeros and take no disk: right for memory and for computing, empty of meaning; no disk's time."""

    @property
    def config(self) -> Mapping[str, Any]:
        """As `config.json` will have it."""
        changed = {"num_hidden_layers": self.blocks, "vocab_size": self.vocabulary}
        config = {**SHAPES[self.name], **{name: value for name, value in changed.items() if value is not None}}
        if self.vocabulary is not None:  # the shape's own special ids may lie beyond it
            config |= {"bos_token_id": None, "eos_token_id": None}
        return config

    @property
    def title(self) -> str:
        """For tables: `8B (4 of 36 blocks), sparse`."""
        own = SHAPES[self.name]["num_hidden_layers"]
        parts = PRETTY[self.name]
        if self.blocks is not None:
            parts += f" ({self.blocks} of {own} blocks)"
        return parts + (", sparse" if self.sparse else "")

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        name = self.name
        name += "" if self.blocks is None else f"-{self.blocks}-blocks"
        name += "" if self.vocabulary is None else f"-{self.vocabulary}-ids"
        return CHECKPOINTS / (name + ("-sparse" if self.sparse else ""))

    def prepare(self) -> Path:
        """The checkpoint's folder, written on the first call."""
        if not self.folder.exists():
            print(f"writing {self.folder.name}", file=sys.stderr, flush=True)
            write_checkpoint(self.folder, plan_checkpoint(self.config), Fill(self.sparse))
        return self.folder

    def arithmetic(self) -> "Arithmetic":
        """Counted from the model's own weights."""
        config = self.config
        weights = model_weights(config)
        matrices = [weight for weight in weights if len(weight.shape) == 2]
        blocks = sum(prod(weight.shape) for weight in matrices if ".layers." in weight.name)
        head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        return Arithmetic(
            parameters=sum(weight.elements for weight in weights),
            in_blocks=blocks,
            in_head=config["hidden_size"] * config["vocab_size"],
            attention_width=config["num_hidden_layers"] * config["num_attention_heads"] * head_dim,
            depths=config["num_hidden_layers"] + 1,
        )


@dataclass(frozen=True)
class Arithmetic:
    """What a shape asks of a machine at the least."""

    parameters: int
    in_blocks: int
    """Of the blocks' matrices, each of which every token is multiplied by."""
    in_head: int
    """Of the unembedding, which every decoded row is multiplied by."""
    attention_width: int
    """Of queries, over all heads and blocks."""
    depths: int
    """Layers that are decoded: every block's output and the embedding."""

    @property
    def bytes_read(self) -> int:
        """Blocks and head, each read once; of the embedding a few rows are read."""
        return BYTES_PER_WEIGHT * (self.in_blocks + self.in_head)

    def forward_flop(self, lengths: list[int]) -> float:
        """Every token through every block's matrices; scores and their mean over what a token may look at."""
        attention = sum(2 * 2 * self.attention_width * n * (n + 1) / 2 for n in lengths)
        return 2 * self.in_blocks * sum(lengths) + attention

    def sweep_flop(self, rows: int) -> float:
        """Every decoded row against the whole unembedding."""
        return 2.0 * rows * self.in_head


@dataclass(frozen=True)
class Floor:
    """The least time that bytes and arithmetic take at the ceilings that were measured."""

    reading_s: float
    computing_s: float

    @property
    def seconds(self) -> float:
        """The larger of the two: reading can go on while there is computing."""
        return max(self.reading_s, self.computing_s)


def floor(bytes_read: float, flop: float, gb_per_s: float, gflops: float) -> Floor:
    """At measured rates."""
    return Floor(bytes_read / gb_per_s / 1e9, flop / gflops / 1e9)
