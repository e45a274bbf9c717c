"""Numbers as reports print them, and which values they may stand for."""

import math
import re
from dataclasses import dataclass

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE]\s?[-+]?\s?\d{1,3})?|[-+]?\.\d+"
_PARTS = re.compile(r"([-+]?)([\d,]*)(?:\.(\d+))?(?:[eE]\s?([-+]?)\s?(\d{1,3}))?")
_EDGE = 1e-9
"""How far binary floats may be off, in units of the last digit."""
_NEARLY_NONE = 0.05
"""What a report may call about zero."""

_ROUGHLY = 0.05
"""How far off, as a share, `≈` may mean."""


@dataclass(frozen=True)
class Number:
    """A printed number."""

    value: int | float
    step: int | float
    """One unit of its last digit."""
    digits: int
    """How many it has that count."""
    is_whole: bool
    """Printed without decimals and without an exponent."""
    is_rough: bool = False
    """Printed with `≈`."""

    @property
    def reach(self) -> float:
        """How far a value that this number stands for may be from it at most."""
        return max(float(self.step), _NEARLY_NONE if self.is_rough and self.value == 0 else 0.0) * (1 + 1e-6)

    def stands_for(self, value: int | float) -> bool:
        """Whether a value prints as this number, rounded or cut off."""
        if not math.isfinite(value):
            return False
        if self.value == 0 and self.is_rough:
            return abs(value) < _NEARLY_NONE
        off = abs(value - self.value)
        if self.is_whole and value == int(value):
            return off == 0
        cut = abs(self.value) <= abs(value) < abs(self.value) + self.step and value * self.value >= 0
        return off <= self.step * (0.5 + _EDGE) or (cut and not self.is_whole) or (cut and self.is_rough)

    def is_near(self, value: int | float) -> bool:
        """Whether a value is so close that only the printing may be at fault."""
        if not math.isfinite(value):
            return False
        return (abs(value - self.value) <= 2 * self.step and not self.is_whole) or (
            self.digits <= 2 and self.is_about(value)
        )

    def is_about(self, value: int | float) -> bool:
        """Whether `≈` may mean a value, however many digits are printed."""
        return self.is_rough and abs(value - self.value) <= _ROUGHLY * abs(self.value)


def number(text: str, *, rough: bool = False) -> Number | None:
    """A number in a text's words; None where it is none."""
    found = _PARTS.fullmatch(text.strip())
    if found is None or not (found[2] or found[3]):
        return None
    sign, whole, decimals, exponent_sign, exponent = found.groups()
    mantissa = (whole or "0").replace(",", "") + ("." + decimals if decimals else "")
    power = int(f"{exponent_sign or ''}{exponent}") if exponent else 0
    if len(mantissa) > 60 or abs(power) > 300:
        return None
    is_whole = decimals is None and exponent is None
    value: int | float = int(sign + mantissa) if is_whole else float(f"{sign}{mantissa}e{power}")
    step: int | float = 1 if is_whole else 10.0 ** (power - len(decimals or ""))
    digits = len(mantissa.replace(".", "").lstrip("0"))
    return Number(value, step, digits, is_whole, rough)
