"""Values and names as people read them."""

ABSENT = "-"
"""In place of a value that there is none of."""


def number(value: float | None) -> str:
    """Three decimals, or two significant digits where these would be lost."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def printable(text: str) -> str:
    """Control characters written out, so that a suite cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
