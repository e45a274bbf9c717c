"""Words and marks of reports: plain text, and which quantity and layers a stretch names, how firmly it speaks."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from layerscope.report.numbers import ENDS, NUMBER

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
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2009\u202f\u2007", " "),
        **dict.fromkeys("‐‑‒–—−", "-"),
        **dict.fromkeys("‘’", "'"),
        **dict.fromkeys("“”", '"'),
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        "→": "->",
        "∆": "Δ",
        "`": "",
        "*": "",
    }
)

LAYER = r"(?:layers?\s*=?\s*|blocks?\s*|L\s?=?\s?)(\d+)(?!\d|\.\d|[/%])"
"""A layer named as such; its number is the group."""
LAYER_ALONE = r"(?<!\w)(?:layers?\s*=?\s*|L\s?=?\s?)(?P<layer>\d{1,3})\b(?!\.\d|\s?[-/]\s?\d|%)"
"""The same where it is neither the start of a range nor part of a share."""
NUMBER_ALONE = rf"(?P<number>(?:~\s?|(?<![\w.-])){NUMBER}){ENDS}"
"""A number that stands alone."""

REACH = 1000
"""Characters on either side of a place beyond which nothing belongs to its sentence."""

QUANTITIES = {
    "kl_to_final_bits": r"KL(?:[_ -]to[_ -]final(?:_bits)?)?|kl_to_final(?:_bits)?",
    "entropy_bits": r"entropy",
    "answer_rank": r"(?:answer[_ ]|gold[_ ])?rank",
    "cos_to_final": r"cos(?:ine)?(?:[_ -]to[_ -](?:the[_ -])?final)?(?:[_ -](?:similarity|alignment))?",
    "p_top1": r"p_top1|top-?1 prob(?:ability|\.)?",
    "p_answer": r"p_answer|answer prob(?:ability|\.)?|p\(answer\)",
    "rest_mass": r"rest[_ -]?mass",
    "echo_mass_prompt": r"echo[_ -]mass",
    "answer_mass": r"answer[_ -]mass",
}
"""What texts call the columns of our rows."""
QUANTITY = "|".join(QUANTITIES.values())

ELSEWHERE = re.compile(
    r"raw[- ]?vs|vs[-_. ]?raw|norm_vs_raw|teacher|_temp|\bT\s?=|temperature|control|kl_norm|entropy gap|entropy drift|"
    r"positions|skip[- _]?layers|median",
    re.IGNORECASE,
)
"""What marks a clause as not being about the rows of the first prompt under one lens."""
OTHER_PROMPT = re.compile(
    r"no[-_ ]?filler|ablat\w*|\bremov\w*|test prompts?|\bctl\b|control prompt|negative control|micro[- ]suite|"
    r"\bfacts?\b|"
    r"important[- ]word|\bpos\s?=",
    re.IGNORECASE,
)
"""What marks a whole statement, or the section it stands in, as being about other prompts or positions too."""
HEDGE = re.compile(
    r"\b(?:tend\w*|broad\w*|general\w*|rough\w*|most|mostly|largely|overall|typical\w*|qualitative\w*|often|usual\w*|"
    r"some|somewhat|partly|partially|may|might|could|appear\w*|seem\w*|if|expected|should|would|unless|can)\b",
    re.IGNORECASE,
)
NEGATION = re.compile(
    r"\b(?:no|not|never|none|without|neither|nor|lacks?|rarely|non|cannot|absent|null|rather than|fails?|n't)\b|"
    r"n't\b|\u2717",
    re.IGNORECASE,
)


def plain_marks(text: str) -> str:
    """The text with the dashes, spaces and quotes of typewriters; each character keeps its place."""
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


def plain(text: str) -> str:
    """A text with one form of each dash, space, quote and sign of comparison, and without marks of emphasis."""
    return text.translate(_PLAIN).replace("=>", "->")


@dataclass(frozen=True)
class Stretch:
    """A part of a statement's plain text."""

    text: str
    start: int
    end: int


def clause(text: str, start: int, end: int) -> Stretch:
    """The clause around a place: from one semicolon, full stop or dash between spaces to the next."""
    return _between(_BREAK, text, start, end)


def sentence(text: str, start: int, end: int) -> Stretch:
    """The sentence around a place."""
    return _between(_STOP, text, start, end)


def _between(mark: re.Pattern[str], text: str, start: int, end: int) -> Stretch:
    """From the last mark before a place to the first after it, each within reach."""
    first, last = max(0, start - REACH), min(len(text), end + REACH)
    before = max((match.end() for match in mark.finditer(text, first, start)), default=first)
    after = mark.search(text, end, last)
    stop = after.start() if after else last
    return Stretch(text[before:stop], before, stop)


_STOP = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.?!](?=\s|$)")
_BREAK = re.compile(r";|(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.?!](?=\s|$)|\s-\s|\bwhile\b|\bwhereas\b|\bbut\b")


def column_of(words: str, columns: Mapping[str, str] = QUANTITIES) -> str | None:
    """The column that words mean; None for other words."""
    return next((name for name, form in columns.items() if re.fullmatch(form, words.strip(), re.IGNORECASE)), None)


def listed(text: str) -> list[str]:
    """The parts of `{10, 5, 1}`, `[a, b]`, `10/5/1`; of anything else the text itself."""
    inner = text.strip().strip("{}[]()").strip()
    return [part.strip() for part in re.split(r"[,/]", inner)] if inner else []


def spans(text: str) -> list[tuple[int, int]]:
    """Ranges of layers that a text names: `L0-3`, `layers 20-28`, `L 20 to L 28`."""
    ranges = re.finditer(r"\b(?:layers?|L)\s?(\d+)\s*(?:-|to|through|\.\.)\s*(?:layers?\s*|L\s?)?(\d+)\b", text)
    return [(int(m.group(1)), int(m.group(2))) for m in ranges if int(m.group(1)) <= int(m.group(2))]
