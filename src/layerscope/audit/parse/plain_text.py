"""Text with the dashes, spaces and quotes of typewriters, in which each character keeps its place."""

import re
import sys

_TYPED = {
    "-": "‐‑‒–—―−﹣－",
    " ": "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b"
    "\u202f\u205f\u2060\u3000\t\r\ufeff",
    '"': "“”„‟«»",
    "'": "‘’‚‛",
    "Δ": "∆",
    "μ": "µ",
    "≤": "⩽",
    "≥": "⩾",
    ":": "：",
    "~": "∼",
}
_TABLE = str.maketrans({mark: typed for typed, marks in _TYPED.items() for mark in marks})
_TOKEN_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|([nrt\\\"|]))")
_MEANT = {"n": "\n", "r": "\r", "t": "\t"}
_CODE = re.compile(r"(?<![`\\])(`{1,9})(?!`)[^`].{0,2000}?(?<!`)\1(?!`)")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]<>#|~&])")


def plain(text: str) -> str:
    """The text with plain marks; as long as before."""
    return text.translate(_TABLE)


def unescaped(text: str) -> str:
    """Markdown's escapes taken away where they hide a mark of punctuation: `first\\_rank` is `first_rank`.

    In code spans a backslash is one, but before a bar.
    """
    if "\\" not in text:
        return text
    parts, at = list[str](), 0
    for span in _CODE.finditer(text):
        parts += [_ESCAPED.sub(r"\1", text[at : span.start()]), span[0].replace("\\|", "|")]
        at = span.end()
    return "".join(parts) + _ESCAPED.sub(r"\1", text[at:])


def token_meant(text: str) -> str:
    """A token of which a report shows what could not be seen with escapes, such as `\\n` or `\\u{e0041}`."""
    return _TOKEN_ESCAPE.sub(_character, text)


def _character(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return _MEANT.get(escape[2], escape[2])
    code = int(escape[1], 16)
    return chr(code) if code <= sys.maxunicode else escape[0]
