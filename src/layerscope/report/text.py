"""Values and names as people read them."""


def printable(text: str) -> str:
    """Control characters written out, so that a suite cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible(token: str) -> str:
    """A token with its white space shown, and whatever cannot be printed written out."""
    return printable(token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"))
