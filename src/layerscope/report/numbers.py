"""Numbers in print: how a printed one is read, which values it may stand for, and how values are printed for people."""

import math
import re
from dataclasses import dataclass

ABSENT = "-"
"""A number of a table that is not there."""
_SIGN = "[-+\u2212]"
_EXPONENT = rf"[eE]\s?{_SIGN}?\s?\d{{1,3}}"
NUMBER = rf"{_SIGN}?(?:10\^\d(?!\d)|(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:{_EXPONENT})?|\.\d+(?:{_EXPONENT})?)"
"""Finds a number in running text, commas included; whether these are separators of thousands, `Number.parse` says."""
ENDS = r"(?![\w^%]|[.,]+\d|\s?[-/]\s?\d)"
"""What must hold behind a number that stands alone: `0..1`, `1.2.3`, `3-5`, `3/5` and `5%` are none."""
_PARTS = re.compile(
    rf"(?P<rough>[~\u2248]\s*)?(?P<sign>{_SIGN}?)"
    r"(?:10\^(?P<power>\d)|(?P<whole>\d+|[1-9]\d{0,2}(?:,\d{3})+)?(?:\.(?P<decimals>\d*))?"
    rf"(?:[eE]\s?(?P<exponent>{_SIGN}?\s?\d{{1,3}}))?)(?P<cut>…|\.\.\.)?(?P<percent>\s?%)?"
)
_LONGEST, _LARGEST_POWER = 60, 300
"""Digits and powers of ten beyond which no report prints a number."""
_GIVEN_DIGITS = 6
"""Significant digits with which values are given to whoever writes about a run; one more than reports print."""
_LARGEST = 10.0**_LARGEST_POWER
_EDGE = 1e-9
"""How far decimal fractions may be off in binary, in units of the last digit."""
_RESOLUTION = 2.0**-51
"""The same, as a share of the value."""
_NEARLY_NONE = 0.05
"""What a report may call about zero."""
_ROUGHLY = 0.05
"""How far off, as a share, a rough number may be meant."""
_ROUGH_DIGITS = 2
"""Digits of a number that says no more than about how much."""


@dataclass(frozen=True)
class Number:
    """A printed number."""

    value: int | float
    step: int | float
    """One unit of its last digit: 0.001 of `17.214`, 1e-8 of `4.39e-06`, 0.01 of `50%`."""
    digits: int
    """How many it has that count."""
    is_whole: bool
    """Printed without decimals, exponent and percent sign."""
    is_rough: bool = False
    """Printed with `≈` or `~`, or cut off with `…`."""

    @classmethod
    def parse(cls, text: str, *, rough: bool = False) -> "Number | None":
        """Read a number as printed: `-0.36`, `1,234`, `4.39e-06`, `10^4`, `86.1%`, `≈0.5`; None where it is none.

        A comma separates thousands where groups of exactly three digits follow it and no zero leads; any other, such as
        the decimal comma of `0,01`, makes the text no number, since it cannot be told from the comma of a list.

        Args:
            text: the number alone, perhaps with space around it.
            rough: words before it say that it is rough.
        """
        match = _PARTS.fullmatch(text.strip())
        if match is None or not (match["whole"] or match["decimals"] or match["power"]):
            return None
        whole, decimals = (match["whole"] or "0").replace(",", ""), match["decimals"] or ""
        power = int(re.sub(r"\s", "", match["exponent"]).replace("\u2212", "-")) if match["exponent"] else 0
        if len(whole) + len(decimals) > _LONGEST or abs(power) > _LARGEST_POWER:
            return None
        if match["power"]:
            whole = "1" + "0" * int(match["power"])
        mantissa = ("-" if match["sign"] in ("-", "\u2212") else "") + whole
        is_whole = match["decimals"] is None and match["exponent"] is None and match["percent"] is None
        places = power - len(decimals) - (2 if match["percent"] else 0)
        return cls(
            value=int(mantissa) if is_whole else float(f"{mantissa}{decimals}e{places}"),
            step=1 if is_whole else 10.0**places,
            digits=len((whole + decimals).lstrip("0")),
            is_whole=is_whole,
            is_rough=rough or match["rough"] is not None or match["cut"] is not None,
        )

    @property
    def reach(self) -> int | float:
        """How far a value that this number stands for may be from it at most."""
        return self.step * (1 + 1e-6) + abs(self.value) * 2 * _RESOLUTION

    def stands_for(self, value: int | float) -> bool:
        """Whether a value may be printed as this number.

        It may where it rounds to the number at the printed decimals, half a unit of the last digit going either way:
        `0.41` stands for all from 0.405 to 0.415, `31` for all from 30.5 to 31.5, `4.39e-06` for all from 4.385e-06 to
        4.395e-06, and `50%` for all from 0.495 to 0.505; the ends of these ranges are off by what binary fractions are.
        The value may first have been rounded to six significant digits, with which briefs give it.
        A rough number also stands for a value that is cut to it, `≈0.41` up to 0.42; but `≈0`, which says that there is
        next to nothing, only for a value closer to 0 than 0.05.
        """
        if self._is_next_to_nothing:
            return abs(value) < _NEARLY_NONE
        off, half = self._off(value), self.step / 2 + self.step * _EDGE + abs(self.value) * _RESOLUTION
        if off <= half:
            return True
        if self.is_rough and (value > 0) == (self.value > 0) and abs(self.value) <= abs(value):
            return off < self.step
        if off >= self.step or self.digits >= _GIVEN_DIGITS or not isinstance(value, float):
            return False
        return self._off(given(value)) <= half

    def _off(self, value: int | float) -> int | float:
        """How far a value is from the number; infinitely where it is beyond any number that is printed, or none."""
        return abs(value - self.value) if abs(value) < _LARGEST else math.inf

    @property
    def _is_next_to_nothing(self) -> bool:
        return self.is_rough and self.is_whole and self.value == 0

    def is_near(self, value: int | float) -> bool:
        """Whether a value is within two units of the last digit, so that only the printing may be wrong."""
        return self._off(value) <= (0 if self.is_whole else 2 * self.step * (1 + _EDGE))

    def is_about(self, value: int | float) -> bool:
        """Whether the number is rough, and a value within 5 % of it."""
        return self.is_rough and self._off(value) <= _ROUGHLY * abs(self.value)

    def may_mean(self, value: int | float) -> bool:
        """Whether the number is so rough, in words and in digits, that a value it does not stand for may be meant."""
        return self.digits <= _ROUGH_DIGITS and self.is_about(value)


def given(value: float) -> float:
    """A value as it is given to whoever writes about a run."""
    return float(f"{value:.{_GIVEN_DIGITS}g}")


def full_text(value: float) -> str:
    """A number as reports print it: five significant digits; at least four decimals of what is 1 and above.

    There is an exponent only where one is needed. What is less than 1 prints as 1 only where sums in binary fractions
    leave less than 1e-12 between them.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be printed: what cannot be measured is absent")
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.4e}"
    if size >= 1:
        return f"{value:.4f}"
    decimals = next((d for d in range(5, 13) if round(size, d) < 1), 0)
    return f"{value:.5g}" if decimals == 5 else f"{value:.{decimals}f}"


def short_text(value: float | None) -> str:
    """A number as tables and the page print it: three decimals, or two significant digits where these would be lost."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def amount(value: int | float) -> str:
    """A number as captions print it: three significant digits, whole numbers in full."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
