"""What a fit can be asked for: the text, and the settings of a tuned, a ridge, a prism and a Jacobian lens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.lens_words import Placement

Method: TypeAlias = Literal["procrustes_to_final", "by_rank"]
JacobianMethod: TypeAlias = Literal["chain", "exact"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The text that a lens is fitted on."""

    text: Sequence[str] = ()
    """A .txt, .jsonl or .parquet file, or a data set's id on the Hub; repeatable."""
    field: str = "text"
    """Name of the field that holds a document's text, in all but .txt files."""
    tokens: str = "2M"
    """How much text to read, as 500k or 2M tokens."""
    seq_len: int | None = None
    """Positions of a sequence; default: 512, or 128 for a Jacobian lens, or as many as the model reads if
    that is fewer."""


@dataclass(frozen=True)
class TunedSettings:
    """How a tuned lens is fitted."""

    rank: Literal["auto", "full"] | int = "auto"
    """Rank of the maps: `auto` (full while the lens stays below 1 GiB, then 256 or less), `full`, or a number; 0 for a
    bias alone."""
    placement: Placement = "raw"
    """What is mapped: `raw` (the residual), or `normed` (what the final norm makes of it)."""
    first_position: int = 1
    """First position that is fitted to; whatever stands at the very first attracts attention."""
    steps: int | None = None
    """Most steps of the refinement; default: 50 to 300, enough to see every position three times; 60 where steps draw
    from a large vocabulary."""
    batch: int = 2048
    """Positions of a step."""
    rate: float = 0.5
    """Length of the first steps, as a share of the way that the divergence leaves to go."""
    seed: int = 316
    """Seed of every random draw; recorded."""


@dataclass(frozen=True)
class RidgeSettings:
    """How a ridge lens is fitted."""

    placement: Placement = "raw"
    """What is mapped: `raw` (the residual), or `normed` (what the final norm makes of it)."""
    first_position: int = 1
    """First position that is fitted to; whatever stands at the very first attracts attention."""
    seed: int = 316
    """Seed of every random draw; recorded."""


@dataclass(frozen=True)
class JacobianSettings:
    """How a Jacobian lens is fitted."""

    method: JacobianMethod = "chain"
    """`chain` (the product of every block's mean Jacobian, found in closed form in one pass forward), or `exact`
    (every row pulled back through all blocks, prompt by prompt: hours where the chain takes minutes)."""
    prompts: int = 100
    """Prompts to average over: sequences drawn from the text that is fitted to."""
    first_position: int = 16
    """First position of a prompt that is counted; the last one is not."""
    probe_rows: int = 64
    """Output features, of d_model at most, whose rows are computed exactly too, by which the chain's bias is measured;
    0 for none."""
    probe_prompts: int = 4
    """Prompts on which they are computed."""
    stop_at: float | None = None
    """Read no more prompts once, at every layer asked, the standard error is at most this and halves of the prompts
    have the same token on top at all but this share of held-out positions, as 0.05; only `exact` reads prompts in
    portions, a chain says how far it came. Default: read all."""
    stop_from: int = 0
    """First layer that --stop-at asks of: early layers take many more prompts than late ones."""
    seed: int = 316
    """Seed of every random draw; recorded."""


@dataclass(frozen=True)
class PrismSettings:
    """How a prism lens is fitted."""

    method: Method = "procrustes_to_final"
    """What the rotation pairs: `procrustes_to_final` (each vector with the final one at its position), or `by_rank`."""
    k: int | None = None
    """Directions that are rotated on purpose; default: 512, or d_model if that is less."""
    vectors: int | None = None
    """Vectors to fit on; default: 100,000 to 160,000, by the model's size."""
    seed: int = 316
    """Seed of every random draw; recorded."""
