"""What a probe can be asked for: keywords of `layerscope.probe`, options of `layerscope probe`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerscope.model.options import OpenOptions
from layerscope.suite import Suite

RENAMED = {"sidecars": "lens_dir"}
"""Old names of options, which still work."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(OpenOptions):
    """How a model is probed."""

    suite: str | Path | Suite = "capitals"
    """A built-in suite, or a .toml or .jsonl file."""
    lenses: str | Sequence[str] | None = None
    """Lenses, comma-separated, of logit, next_norm, raw, tuned and prism; default: the protocol's own, and the fitted
    ones that `lens_dir` holds for the model."""
    lens_dir: Path | str | None = None
    """Folder of fitted lenses, or of a single one (the bundled model has its own)."""
    positions: str = "auto"
    """`auto` (all of the first prompt, the last of the others; protocol published: all), `last` or `all`."""
    top_k: int = 20
    """How many of the largest logits a row lists."""
    protocol: str = "standard"
    """Definitions: `standard`, or `published` (those of the published tables)."""
    seed: int = 316
    """Seed of every random generator; recorded."""
    control: str = "none"
    """Ask a twin with shuffled weights too: `none`, `shuffled-weights` (those of the blocks), or
    `shuffled-weights:all` (embedding and unembedding too)."""
    second_forward: str = "auto"
    """A second forward pass, to see whether the first repeats: `auto` (where it might not), `always` or `off`."""
