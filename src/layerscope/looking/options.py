"""How prompts are looked at: keywords of `layerscope.look`, options of `layerscope look`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from layerscope.model.options import OpenOptions

SHOWN_POSITIONS = 8
"""How many of a prompt's last tokens are looked at where nothing else is asked for."""

LensChoice: TypeAlias = str | Callable[..., Any]
"""A lens' name, or an object that is a `layerscope.Lens`, whose module would load the tensor library here."""


@dataclass(frozen=True, kw_only=True)
class LookOptions(OpenOptions):
    """How prompts are looked at."""

    answer: str | None = None
    """What the model should say: its rank is followed through the layers."""
    track: str | Sequence[str] | None = None
    """Further words to follow, comma-separated; one that begins with a space is taken with it, of another the form
    that the model prefers."""
    chat: bool = False
    """Take each text as a user's message, in the model's own chat template."""
    system: str | None = None
    """What a system message says in front of it."""
    template_options: Mapping[str, bool | int | float | str] | Sequence[str] | None = None
    """Arguments of the chat template, each as enable_thinking=false; repeatable."""
    lenses: str | LensChoice | Sequence[LensChoice] = "logit"
    """Lenses, comma-separated, of logit, next_norm, raw, tuned, ridge, prism and jacobian; a grid for each. In Python
    also objects of your own that are a `Lens`."""
    lens_dir: Path | str | None = None
    """Folder of fitted lenses, or of a single one (the bundled model has its own)."""
    top: int = 5
    """How many tokens are listed at every layer and position, in JSON and in Python."""
    positions: str | None = None
    """Which of the prompt's tokens: `last`, `all`, or places counted from 0, as in 5-9,12; default: the last 8."""
    layers: str | None = None
    """Which layers, as in 0,4,8-; default: all."""
