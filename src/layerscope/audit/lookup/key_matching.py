"""Whether the name that a report gives a value may be the name of a member or column of the files."""

import re
from enum import IntEnum
from functools import lru_cache

from layerscope.report.cited.sources import Entry

_PARTS = re.compile(r"Δ|[a-z]+|\d+(?:\.\d+)?|%")
_ALIASES = {
    "kl": "kl_to_final_bits",
    "kl_to_final": "kl_to_final_bits",
    "kl_final": "kl_to_final_bits",
    "cos": "cos_to_final",
    "cosine": "cos_to_final",
    "rank": "answer_rank",
    "l_sem": "l_semantic",
    "conf_source": "confirmed_source",
    "conf.source": "confirmed_source",
    "mass": "answer_mass",
}
_SHORTEST_PREFIX = 3
_MOST = 0.75
"""Share of a name's words that makes another a renamed one."""


class NameSimilarity(IntEnum):
    """How well two names agree."""

    NONE = 0
    PART = 1
    """One is an abbreviation of the other."""
    SAME = 2


@lru_cache(maxsize=4096)
def last_name(key: str) -> str:
    """`summary` of `raw_lens_check.summary`, but the whole of `first_kl_below_1.0`."""
    key = re.sub(r"\[\w*\]", "", key)
    parts = re.split(r"\.(?!\d)", key)
    return parts[-1]


@lru_cache(maxsize=4096)
def name_parts(key: str) -> tuple[str, ...]:
    """The words and numbers that a name is made of, in lower case."""
    lowered = key.lower().replace("δ", "Δ").replace("Δ", " Δ ")
    return tuple("delta" if part == "Δ" else part for part in _PARTS.findall(lowered))


@lru_cache(maxsize=65536)
def name_similarity(claimed: str, name: str) -> NameSimilarity:
    """How well a claimed name agrees with that of a member or column."""
    last = last_name(claimed).lower()
    if last == name.lower() or _ALIASES.get(last) == name.lower():
        return NameSimilarity.SAME
    claimed_parts, parts = name_parts(_ALIASES.get(last, last)), name_parts(name)
    if not claimed_parts or not parts:
        return NameSimilarity.NONE
    if claimed_parts == parts:
        return NameSimilarity.SAME
    short, long = (claimed_parts, parts) if len(claimed_parts) <= len(parts) else (parts, claimed_parts)
    if len("".join(short)) < _SHORTEST_PREFIX:
        return NameSimilarity.NONE
    return NameSimilarity.PART if _is_abbreviation(short, long) else NameSimilarity.NONE


def entry_similarity(claimed: str, entry: Entry) -> NameSimilarity:
    """How well a claimed name agrees with a member, of which it may name the block too: `Δp25` is `delta/p25`."""
    direct = name_similarity(claimed, entry.key)
    if direct is not NameSimilarity.NONE:
        return direct
    path = entry.path
    if len(path) >= 2 and not path[-1].isdigit():
        claimed_parts, key_parts = name_parts(last_name(claimed)), name_parts(path[-1])
        if (
            key_parts
            and claimed_parts[-len(key_parts) :] == key_parts
            and _is_abbreviation(claimed_parts[: -len(key_parts)], name_parts("_".join(path[:-1])))
        ):
            return NameSimilarity.PART
    if path and path[-1].isdigit() and len(path) >= 2:
        return name_similarity(claimed, path[-2])
    return NameSimilarity.NONE


def shares_words(claimed: str, name: str) -> NameSimilarity:
    """Whether two names share most of their words: `first_norm_only_semantic_layer`, `earliest_norm_only_semantic`."""
    claimed_parts, parts = set(name_parts(last_name(claimed))), set(name_parts(name))
    common = claimed_parts & parts
    numbers = {part for part in claimed_parts ^ parts if part[0].isdigit()}
    close = len(common) >= 2 and len(common) >= _MOST * min(len(claimed_parts), len(parts)) and not numbers
    return NameSimilarity.PART if close else NameSimilarity.NONE


def _is_abbreviation(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether all of one name's parts come in the other in order, each whole or by its first letters."""
    at = 0
    for part in short:
        while at < len(long) and not _is_part(part, long[at]):
            at += 1
        if at == len(long):
            return False
        at += 1
    return True


def _is_part(short: str, long: str) -> bool:
    return short == long or (len(short) >= _SHORTEST_PREFIX and not short[0].isdigit() and long.startswith(short))
