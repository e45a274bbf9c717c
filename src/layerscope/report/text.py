"""Values and names as people read them."""


def printable(text: str) -> str:
    """Control characters written out, so that a suite cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible(token: str) -> str:
    """A token with its white space shown, and whatever cannot be printed written out."""
    return printable(token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"))


def spread(n: int, most: int) -> list[int]:
    """At most so many of n places, evenly spaced, the last one among them: what is shown where not all fit."""
    step = max(1, -(-n // most))
    return list(range((n - 1) % step, n, step))
