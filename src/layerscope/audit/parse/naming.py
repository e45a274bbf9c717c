"""Which models a text or a file's name speaks of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

_FILE = re.compile(
    r"(?:output|evaluation)-(.+?)(?:-records|-pure-next-token|-milestones|-artifact-audit|-positions|\.)"
)
_VENDOR = re.compile(r"^(?:Meta|google|mistralai|meta-llama|Qwen|01-ai)-", re.IGNORECASE)
_TAIL = re.compile(r"-(?:v\d[\d.]*|Base|base|hf|pt|it|Instruct|\d{4})$")
_SIZED = re.compile(r"\d+(?:\.\d+)?[bBmM]\b")


@dataclass(frozen=True)
class Models:
    """The models of an archive, and the names by which a text may call them."""

    stems: tuple[str, ...]

    def of_file(self, name: str) -> str | None:
        """The model that a file is of; one that the archive lacks by the name in the file's name."""
        known = [s for s in self.stems if re.match(rf"(?:output|evaluation)-{re.escape(s)}[-.]", name, re.IGNORECASE)]
        if known:
            return max(known, key=len)
        match = _FILE.match(name)
        return match[1] if match and not re.search(r"[*{…]", match[1]) else None

    def named_in(self, text: str) -> tuple[str, ...]:
        """The models that a text names, in the order of the archive."""
        if self._pattern is None:
            return ()
        named = {_squeezed(name) for name in self._pattern.findall(text)}
        return tuple(stem for stem in self.stems if named & self._names[stem])

    @cached_property
    def _names(self) -> dict[str, set[str]]:
        names = {stem: {_squeezed(name) for name in _aliases(stem)} for stem in self.stems}
        return {
            stem: {n for n in aliases if not any(n in names[other] for other in self.stems if other != stem)}
            for stem, aliases in names.items()
        }

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        names = sorted({name for stem in self.stems for name in _aliases(stem)}, key=len, reverse=True)
        if not names:
            return None
        loose = "|".join(_loose(name) for name in names)
        return re.compile(rf"(?<![\w.])(?:{loose})(?![\w])(?!\.\d)", re.IGNORECASE)


def _aliases(stem: str) -> Sequence[str]:
    """A model's name, without its maker, and without what follows its size."""
    names = [stem]
    shorter = stem
    while _TAIL.search(shorter):
        shorter = _TAIL.sub("", shorter)
        names.append(shorter)
    names += [bare for name in names if (bare := _VENDOR.sub("", name)) != name and re.search("[A-Za-z]{3}", bare)]
    return [name for name in names if _SIZED.search(name) or name == stem]


def _loose(name: str) -> str:
    parts = re.findall(r"[A-Za-z]+|\d+(?:\.\d+)*[A-Za-z]?", name)
    return r"[-_ .]?".join(re.escape(part) for part in parts)


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
