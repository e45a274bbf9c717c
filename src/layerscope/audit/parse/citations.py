"""Where a report points to: the files, lines and rows that a line of text cites, in every style met."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from layerscope.audit.parse.statement import Reference

END = 10**9
"""The last line of `841-end`, whatever it is."""
LEAST_BARE = 150
"""Numbers in brackets without a file's name are lines only above this: below it they may be layers or ranks."""
_LONGEST_NAME = 400
_LONGEST_BRACKET = 600
_LONGEST_LIST = 400
_EXTENSION = re.compile(r"\.(?:jsonl|json|csv|tsv|md|py|txt|pt|ya?ml|log)(?![\w/])", re.IGNORECASE)
_IN_NAME = re.compile(r"[\w./…*@+~\-]")
_NUMBER = r"L?(\d{1,7})(?:\s*(?:-|\.\.|\bto\b)\s*L?(\d{1,7}\b|end\b))?"
_ITEM = re.compile(rf"(?:(lines?|rows?|see)\s*)?{_NUMBER}", re.IGNORECASE)
_NEXT = re.compile(r"\s*(?:,|;|&|\band\b)\s*", re.IGNORECASE)
_AFTER_ITEM = re.compile(r"\s*(?:[,;&)\]}`\"]|$|\.(?:\s|$)|\band\b)")
_OPENS = re.compile(r"`?\s{0,2}(?:#|:\s?|,?\s*\(?(?=(?:lines?|rows?)\s|L\d))", re.IGNORECASE)
_KIND_FIRST = re.compile(r"(?:the\s+)?(json|csv)[\s,:]*(?=(?:lines?|rows?|L)?\s*\d)", re.IGNORECASE)
_KIND_LAST = re.compile(r"\s*(?:in|of)\s+(?:the\s+)?(json|csv)\b", re.IGNORECASE)
_MAY_CITE = re.compile(r"[(\[`][^()\[\]]{0,40}\d|\.(?:jsonl|json|csv|tsv|md|py|txt|pt|ya?ml|log)\b", re.IGNORECASE)
_DATE = re.compile(r"(?:19|20)\d\d(?:-\d\d){0,2}")
_GLUE = re.compile(r"[\s`,;:()\[\].]*(?:(?:see|lines?|and|also|cf|in|the|json|csv)\b[\s`,;:()\[\].]*)*", re.IGNORECASE)

_BETWEEN_GROUPS = re.compile(r"[\s`,;+&]*(?:and|also|see|see also|plus|cf\.?)?[\s`]*", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """The references that stand together: those in one bracket, or one by itself."""

    start: int
    end: int
    """The stretch of the line that the group ends a statement with."""
    references: tuple[Reference, ...]
    cuts: tuple[tuple[int, int], ...]
    """What of the line is citation and no claim."""


@dataclass(frozen=True)
class _Lines:
    lines: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, int], ...]
    end: int


@lru_cache(maxsize=512)
def find_groups(line: str, last_file: str | None = None) -> tuple[Group, ...]:
    """The citations of a line in which dashes, spaces and quotes are plain.

    Args:
        line: one line of the report.
        last_file: what was cited before it, which bare line numbers go on with.
    """
    if not _MAY_CITE.search(line):
        return ()
    brackets = _brackets(line)
    references = list(_named(line))
    for start, end in brackets:
        inner = [r for r in references if start < r.start < end]
        if end - start > _LONGEST_BRACKET:
            continue
        taken = [(r.start, r.end) for r in references]
        if inner:
            references += _trailing(line, inner, end - 1, taken)
        elif not any(s < end and start < e for s, e in taken) or line[start] == "[":
            before = [r.file for r in references if r.start < start and r.file]
            bare = _bare(line, start, end, before[-1] if before else last_file)
            references += [bare] if bare is not None else []
    references.sort(key=lambda reference: reference.start)
    references = [r for r in references if r.lines or r.rows or _is_bracketed(r, brackets)]
    return tuple(_grouped(line, brackets, references))


def _is_bracketed(reference: Reference, brackets: list[tuple[int, int]]) -> bool:
    """Whether a bracket holds it and little else: a file that is merely spoken of is no citation."""
    return any(s < reference.start and reference.end < e and e - s < 2 * len(reference.text) + 20 for s, e in brackets)


def fence_reference(info: str) -> Reference | None:
    """The reference in a code fence's header: `7:13:folder/file.txt`."""
    match = re.fullmatch(r"\s*(\d{1,7}):(\d{1,7}):(\S+)\s*", info)
    if match is None:
        return None
    first, last, path = int(match[1]), int(match[2]), match[3]
    return Reference(info.strip(), _base(path), ((first, max(first, last)),), (), 0, len(info))


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _brackets(line: str) -> list[tuple[int, int]]:
    """Round and square brackets, inner ones first, each as where it begins and ends."""
    stack: list[tuple[str, int]] = []
    brackets: list[tuple[int, int]] = []
    for at, mark in enumerate(line):
        if mark in "([":
            stack.append((mark, at))
        elif mark in ")]":
            opening = "(" if mark == ")" else "["
            # A bracket that is never closed, such as one in a token, must not hide the one around it.
            near = next((i for i in range(len(stack) - 1, max(-1, len(stack) - 9), -1) if stack[i][0] == opening), None)
            if near is not None:
                brackets.append((stack[near][1], at + 1))
                del stack[near:]
    return brackets


def _named(line: str) -> Iterator[Reference]:
    """References that name a file."""
    floor = 0
    for match in _EXTENSION.finditer(line):
        start = _name_start(line, match.start(), floor)
        path = line[start : match.end()]
        if not re.search(r"\w|…", path[: match.start() - start]):
            continue
        numbers = _numbers_after(line, match.end())
        end = match.end() if numbers is None else numbers.end
        lines, rows = ((), ()) if numbers is None else (numbers.lines, numbers.rows)
        yield Reference(line[start:end], _base(path), lines, rows, start, end)
        floor = end


def _name_start(line: str, at: int, floor: int) -> int:
    start = at
    while start > max(floor, at - _LONGEST_NAME):
        before = line[start - 1]
        if before == "}":
            opening = line.rfind("{", max(floor, start - _LONGEST_NAME), start)
            if opening < 0 or " " in line[opening:start].replace(", ", ","):
                break
            start = opening
        elif _IN_NAME.fullmatch(before):
            start -= 1
        else:
            break
    return start


def _numbers_after(line: str, at: int) -> _Lines | None:
    opening = _OPENS.match(line, at)
    return None if opening is None else _list(line, opening.end(), first_is_sure=True)


def _list(line: str, at: int, *, first_is_sure: bool) -> _Lines | None:
    """Line numbers and ranges from a place on: `10-20, 30; 40`."""
    lines: list[tuple[int, int]] = []
    rows: list[tuple[int, int]] = []
    end, in_rows, limit = at, False, at + _LONGEST_LIST
    while at < limit:
        item = _ITEM.match(line, at)
        if item is None:
            break
        sure = first_is_sure and not lines and not rows
        if re.match(r"\.\d|[\w%/=≈]|:\S", line[item.end() :][:2]) or (
            not sure and not _AFTER_ITEM.match(line, item.end())
        ):
            break
        word = (item[1] or "").lower()
        in_rows = word.startswith("row") or (in_rows and not word)
        first = int(item[2])
        last = END if (item[3] or "").lower() == "end" else int(item[3] or first)
        (rows if in_rows else lines).append((first, last) if last >= first else (first, _completed(first, last)))
        end = item.end()
        following = _NEXT.match(line, end)
        if following is None:
            break
        at = following.end()
    return _Lines(tuple(lines), tuple(rows), end) if lines or rows else None


def _completed(first: int, last: int) -> int:
    """`7081-83` means 7083; a range that runs backwards is its first line."""
    digits = str(last)
    whole = int(str(first)[: -len(digits)] + digits) if len(digits) < len(str(first)) else first
    return max(first, whole)


def _trailing(line: str, inner: list[Reference], end: int, taken: list[tuple[int, int]]) -> Iterator[Reference]:
    """Line numbers after a named file in the same bracket: `; 841-end; see 8850-8861`, `; 38 in CSV`."""
    at = min(reference.end for reference in inner)
    pattern = re.compile(r"(?:[;,]\s*|\bsee\s+|\baround\s+)(?=(?:see\s+|lines?\s+|rows?\s+)?L?\d)")
    while at < end:
        match = pattern.search(line, at, end)
        if match is None:
            return
        at = match.end()
        if any(s <= at < e for s, e in taken):
            continue
        numbers = _list(line[: end + 1], at, first_is_sure=True)
        if numbers is None:
            continue
        before = max((r for r in inner if r.start < at), key=lambda r: r.start)
        kind = _KIND_LAST.match(line, numbers.end)
        is_range = any(last > first for first, last in numbers.lines + numbers.rows)
        closes = _AFTER_ITEM.match(line, numbers.end) is not None
        if kind is None and not closes and not is_range:
            continue
        file = before.file if kind is None else _of_kind(kind[1], before.file)
        stop = kind.end() if kind else numbers.end
        yield Reference(line[at:stop], file, numbers.lines, numbers.rows, at, stop)
        at = max(at, stop)


def _of_kind(kind: str, file: str | None) -> str:
    """A file's name where a report says only `JSON` or `CSV`: the last one's where it is of that kind."""
    extension = "." + kind.lower()
    return file if file is not None and file.lower().endswith(extension) else f"*{extension}"


def _bare(line: str, start: int, end: int, last_file: str | None) -> Reference | None:
    """A bracket that holds line numbers and no file's name: `[JSON L807-L809]`, `[rows 2-5]`, `(5959-5964)`."""
    inside = line[start + 1 : end - 1].strip(" `")
    kind = _KIND_FIRST.match(inside)
    at = kind.end() if kind else 0
    numbers = _list(inside, at, first_is_sure=True)
    if numbers is None:
        return None
    after = _KIND_LAST.match(inside, numbers.end)
    kind = kind or after
    if inside[after.end() if after else numbers.end :].strip(" .`"):
        return None
    is_labelled = re.match(r"(lines?|rows?)\s", inside[at:], re.IGNORECASE) is not None
    spans = numbers.lines + numbers.rows
    if kind is None and not is_labelled:
        many = len(spans) > 1 or any(last > first for first, last in spans)
        if last_file is None or not many or max(first for first, _ in spans) < LEAST_BARE or _DATE.fullmatch(inside):
            return None
    if kind is None and last_file is None:
        file: str | None = "*.csv" if numbers.rows else None
    elif kind is None:
        file = _of_kind("csv", last_file) if numbers.rows else last_file
    else:
        file = _of_kind(kind[1], last_file)
    return Reference(line[start:end], file, numbers.lines, numbers.rows, start, end)


def _grouped(line: str, brackets: list[tuple[int, int]], references: list[Reference]) -> list[Group]:
    groups: list[Group] = []
    for members, (start, end) in _by_bracket(brackets, references):
        cuts = tuple((reference.start, reference.end) for reference in members)
        rest = "".join(line[a:b] for a, b in _between(start, end, cuts))
        only = _GLUE.fullmatch(rest) is not None
        group = Group(start, end, tuple(members), ((start, end),) if only else cuts)
        if groups and _BETWEEN_GROUPS.fullmatch(line, groups[-1].end, max(groups[-1].end, start)):
            # Two brackets in a row cite one statement.
            last = groups.pop()
            group = Group(last.start, end, last.references + group.references, last.cuts + group.cuts)
        groups.append(group)
    return groups


def _by_bracket(
    brackets: list[tuple[int, int]], references: list[Reference]
) -> Iterator[tuple[list[Reference], tuple[int, int]]]:
    short = sorted((b for b in brackets if b[1] - b[0] <= _LONGEST_BRACKET), key=lambda b: (b[0], -b[1]))
    members: list[Reference] = []
    place: tuple[int, int] | None = None
    at = 0
    open_now: list[tuple[int, int]] = []
    for reference in references:
        while at < len(short) and short[at][0] <= reference.start:
            open_now.append(short[at])
            at += 1
        open_now = [b for b in open_now if b[1] >= reference.end]
        here = open_now[-1] if open_now else (reference.start, reference.end)
        if place is not None and here != place:
            yield members, place
            members = []
        members.append(reference)
        place = here
    if place is not None:
        yield members, place


def _between(start: int, end: int, cuts: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    at = start
    for first, last in cuts:
        yield at, max(at, first)
        at = max(at, last)
    yield at, max(at, end)
