"""A report as Markdown: every sentence and table row ends with the places of its claims; tokens stay text."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Citation, Claim, Unit, merged, merged_lines
from layerscope.report.cited.document import claims_of

SOURCE = "source"
LINE_OF = "line of"
"""How the last column of a table is headed whose rows all cite one file."""
MARKS = {True: "✓", False: "✗", None: "n.a."}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_LIST_MARK = re.compile(r"^(\d*)([.)+=-])(?=\s|$|=|-)")
"""What would begin a list, or make a heading of the line before."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode categories that show as nothing, or turn what stands around them about."""


def markdown(report: doc.Report) -> str:
    """The whole report; it ends with a line feed."""
    blocks = [f"# {plain(report.title)}", _paragraph(report.opening)]
    for section in report.sections:
        blocks += _section(section, 2)
    return "\n\n".join(blocks) + "\n"


def plain(text: str) -> str:
    """Words that show as they are, whatever Markdown or HTML would make of them."""
    shown = "".join(map(_unhidden, " ".join(text.split())))
    return _LIST_MARK.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", shown))


def token_text(text: str) -> str:
    """A token between quotes, with escapes for what would not be seen: `" Berlin"`, `"\\n"`."""
    return '"' + "".join(map(_visible, text)) + '"'


def _visible(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    hidden = unicodedata.category(character) in _HIDDEN or (character != " " and character.isspace())
    return f"\\u{{{ord(character):x}}}" if hidden else character


def _unhidden(character: str) -> str:
    """The same for words, whose quotes and backslashes stand for themselves."""
    return character if character in '"\\' else _visible(character)


def code(text: str, *, in_table: bool = False) -> str:
    """A code span that holds the text as it is; only there do angle brackets and stars stand for themselves."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padded = f" {text} " if text.startswith("`") or text.endswith("`") else text
    if in_table:
        padded = padded.replace("|", "\\|")
    return f"{fence}{padded}{fence}"


def _section(section: doc.Section, level: int) -> list[str]:
    blocks = [f"{'#' * level} {plain(section.title)}"]
    blocks += [_block(block) for block in section.blocks]
    for inner in section.sections:
        blocks += _section(inner, level + 1)
    return blocks


def _block(block: doc.Block) -> str:
    match block:
        case doc.Paragraph():
            return _paragraph(block)
        case doc.Bullets(items):
            return "\n".join(f"- {_sentence(item)}" for item in items)
        case doc.Checklist(checks):
            return "\n".join(_check(check) for check in checks)
        case doc.Table():
            return _table(block)


def _paragraph(block: doc.Paragraph) -> str:
    return "\n".join(_sentence(sentence) for sentence in block.sentences)


def _check(check: doc.Check) -> str:
    note = _sentence(check.note)
    return f"- {MARKS[check.holds]} {plain(check.label)}" + (f": {note}" if note else "")


def _sentence(sentence: doc.Sentence) -> str:
    words = _parts(sentence.parts, in_table=False)
    citations = _citations(claims_of(sentence.parts))
    if not citations:
        return words
    bracket = f"[{code(merged(citations))}]"
    return f"{words[:-1]} {bracket}." if words.endswith(".") else f"{words} {bracket}"


def _parts(parts: Iterable[doc.Part], *, in_table: bool) -> str:
    return "".join(_part(part, in_table=in_table) for part in parts)


def _part(part: doc.Part, *, in_table: bool) -> str:
    match part:
        case doc.Text(text):
            return _SPECIAL.sub(r"\\\1", text)
        case doc.Name(text):
            return _name(text, in_table=in_table)
        case doc.Token(text):
            return code(token_text(text), in_table=in_table)
        case doc.Strong(parts):
            return f"**{_parts(parts, in_table=in_table)}**"
        case doc.Basis():
            return ""
        case Claim():
            return _value(part, in_table=in_table)


def _name(text: str, *, in_table: bool) -> str:
    """Plain, or as code where Markdown would take a character for its own."""
    shown = "".join(character if character == '"' else _visible(character) for character in " ".join(text.split()))
    return code(shown, in_table=in_table) if re.search(r"[_*@<>|`#/\[\]\\]", shown) else plain(shown)


def _value(claim: Claim, *, in_table: bool) -> str:
    if isinstance(claim.value, str):
        if claim.unit is Unit.TOKEN:
            return code(token_text(claim.value), in_table=in_table)
        return _name(claim.value, in_table=in_table)
    return claim.text


def _table(table: doc.Table) -> str:
    common = _one_file(table.rows)
    header = [plain(name) for name in table.header]
    header.append(f"{LINE_OF} {code(common)}" if common else SOURCE)
    lines = [header, _alignment(table), *(_cells(row, common) for row in table.rows)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text if table.caption is None else f"{_sentence(table.caption)}\n\n{text}"


def _alignment(table: doc.Table) -> list[str]:
    """Numbers to the right, words to the left."""
    columns = [[row.cells[i] for row in table.rows] for i in range(len(table.header))]
    numbers = [bool(cells) and all(map(_is_number, cells)) for cells in columns]
    return ["---:" if right else "---" for right in numbers] + ["---"]


def _is_number(cell: Sequence[doc.Part]) -> bool:
    flat = [part for outer in cell for part in (outer.parts if isinstance(outer, doc.Strong) else (outer,))]
    return len(flat) == 1 and isinstance(flat[0], Claim) and not isinstance(flat[0].value, str | bool)


def _cells(row: doc.Row, common: str | None) -> list[str]:
    cells = [_parts(cell, in_table=True) for cell in row.cells]
    citations = _citations([claim for cell in row.cells for claim in claims_of(cell)])
    if common:
        return [*cells, merged_lines(citations)]
    return [*cells, code(merged(citations), in_table=True) if citations else ""]


def _citations(claims: Iterable[Claim]) -> list[Citation]:
    return list(dict.fromkeys(citation for claim in claims for citation in claim.citations))


def _one_file(rows: Sequence[doc.Row]) -> str | None:
    """The file that all rows cite, where there is one and there are rows enough to make it worth a column."""
    files = {c.file for row in rows for cell in row.cells for c in _citations(claims_of(cell))}
    return files.pop() if len(files) == 1 and len(rows) > 1 else None
