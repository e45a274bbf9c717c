"""The lines of a verdict, as a renderer lays them out: each a label and what is said under it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.curve_shapes import stretches

LINE = 68
"""Characters of a line that is not to be wrapped."""
Weight: TypeAlias = Literal["", "aside", "free", "main", "advise", "block"]
"""How much a line asks for attention; of reasons, their severity."""


@dataclass(frozen=True)
class LabelledLine:
    """A label, and a text that may take several lines."""

    label: str
    text: str
    weight: Weight = ""


def under_one_label(label: str, texts: Sequence[str], weight: Weight = "") -> list[LabelledLine]:
    """Several texts, the first of them labelled."""
    return [LabelledLine("" if place else label, text, weight) for place, text in enumerate(texts)]


def in_one_line(names: Sequence[str]) -> str:
    """As many names as a line holds, and how many more there are."""
    for shown in range(len(names), 0, -1):
        more = f" and {len(names) - shown} more" if shown < len(names) else ""
        line = f"not judged: {', '.join(name.replace('_', ' ') for name in names[:shown])}{more}"
        if len(line) <= LINE:
            return line
    return f"{len(names)} cautions"


def layers(numbers: Sequence[int]) -> str:
    """Layers in words, three neighbours or more drawn together: `layers 4 to 6 and 9`."""
    parts = [
        part
        for run in stretches(sorted(numbers))
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    listed = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    return f"{plural('layer', len(numbers))} {listed}"


def capitalised(sentence: str) -> str:
    """With its first letter in upper case; the others stay."""
    return sentence[:1].upper() + sentence[1:]


def plural(word: str, count: object) -> str:
    """`layer` after a count of one, else `layers`."""
    return word if count == 1 else f"{word}s"


def at_layer(layer: int | None) -> str:
    """`at layer 31`, in words that also suit where there is none."""
    return "at no known layer" if layer is None else f"at layer {layer}"
