"""The JSON of a published run: read as far as it is whole, its members taken with their types or noted as problems."""

import json
import re
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from layerscope.errors import RunError
from layerscope.lens_record import RecordModel
from layerscope.published.dialect import Fault
from layerscope.published.layout import GENERATION_M, GENERATIONS
from layerscope.published.members import Member
from layerscope.published.read.csv_table import note
from layerscope.record.parts import ProblemRecord

P = TypeVar("P", bound=RecordModel)
T = TypeVar("T")

_MARKERS = {
    "B": ("gold_answer", "raw_lens_check", "ablation_summary"),
    "C": ("diagnostics.prism_summary",),
    "D": ("copy_flag_columns", "diagnostics.copy_soft_config"),
    "E": ("diagnostics.surface_diagnostics_config", "diagnostics.tau_norm_per_layer"),
    "F": ("measurement_guidance", "diagnostics.cos_milestones", "diagnostics.raw_lens_window"),
    "G": ("diagnostics.confirmed_semantics", "diagnostics.raw_lens_full"),
    "H": ("diagnostics.flags", "diagnostics.layer_map", "diagnostics.numeric_health", "provenance"),
    "I": ("evaluation_pack", "diagnostics.gold_alignment_prompts", "diagnostics.norm_trajectory"),
    "J": ("micro_suite", "diagnostics.micro_suite", "diagnostics.semantic_margin"),
    "K": ("diagnostics.semantic_gate",),
    "L": ("diagnostics.lens_consistency", "diagnostics.gate_stability_small_scale", "diagnostics.position_window"),
    "M": ("diagnostics.decoding_point", "diagnostics.repeatability_forward"),
}
"""Members that appeared with a generation."""


class Block:
    """One object of the JSON. A member that is absent or null is None; one of another type is None and a problem."""

    def __init__(self, members: dict[str, object], name: str, file: str, problems: list[ProblemRecord]) -> None:
        self.members = members
        self.name = name
        """Its place in the document, such as `diagnostics.flags`; empty for the document itself."""
        self.file = file
        self.problems = problems

    def text(self, key: str) -> str | None:
        """A text."""
        return self._member(key, "text", str)

    def whole(self, key: str) -> int | None:
        """A whole number of at most 64 bits, which is as much as a seed has."""
        value = self._member(key, "whole number", int)
        if value is None or -(2**63) <= value < 2**64:
            return value
        self.wrong(key, f"should be a whole number of at most 64 bits, but is {_short(value)}; left out")
        return None

    def number(self, key: str) -> float | None:
        """Any finite number, as a float."""
        value = self._member(key, "number", int, float)
        if value is None or abs(value) <= sys.float_info.max:
            return None if value is None else float(value)
        self.wrong(key, f"should be a finite number, but is {_short(value)}; left out")
        return None

    def truth(self, key: str) -> bool | None:
        """True or false."""
        return self._member(key, "truth value", bool)

    def items(self, key: str) -> list[object] | None:
        """A list."""
        return self._member(key, "list", list)

    def block(self, key: str) -> "Block":
        """An object; an empty one where it is absent."""
        return Block(self._member(key, "object", dict) or {}, self._path(key), self.file, self.problems)

    def blocks(self, key: str) -> list["Block"]:
        """A list of objects; items of another type are noted and left out."""
        blocks = []
        for i, item in enumerate(self.items(key) or []):
            name = f"{self._path(key)}[{i}]"
            if isinstance(item, dict):
                blocks.append(Block(item, name, self.file, self.problems))
            else:
                self.note(f"`{name}` should be an object, but is {_short(item)}; left out")
        return blocks

    def has(self, path: str) -> bool:
        """Whether a member is there and not null, by its place: `diagnostics.flags`."""
        value: object = self.members
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value is not None

    def values(self, kind: type[RecordModel], table: Sequence[Member]) -> dict[str, object]:
        """What generation M's members of a table hold, by our names, each of the type that the part has it in."""
        values: dict[str, object] = {}
        for member in table:
            if member.since is GENERATION_M:
                *outer, key = member.key.split("/")
                types = _types(kind.model_fields[member.attribute].annotation)
                take = next(take for of, take in _TAKES.items() if of in types)
                values[member.attribute] = take(reduce(Block.block, outer, self), key)
        return values

    def part(self, kind: type[P], values: dict[str, object]) -> P | None:
        """A part of the record made of values from here; None, and a problem, where they make no sense."""
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors()[:3])
            self.note(f"`{self.name or 'the document'}` makes no {kind.__name__} ({wrong}); left out")
            return None

    def part_of(self, kind: type[P], table: Sequence[Member]) -> P | None:
        """The part of the record that the members of a table make; None of a block that is absent."""
        return self.part(kind, self.values(kind, table)) if self.members else None

    def wrong(self, key: str, message: str) -> None:
        """Note that a member is not what it should be."""
        self.note(f"`{self._path(key)}` {message}")

    def _member(self, key: str, due: str, *types: type[T]) -> T | None:
        """The member if it is of one of these types, a truth value being no number; else None."""
        value: Any = self.members.get(key)
        if value is not None and type(value) not in types:
            article = "an" if due.startswith("o") else "a"
            self.wrong(key, f"should be {article} {due}, but is {_short(value)}; left out")
            value = None
        member: T | None = value
        return member

    def note(self, message: str) -> None:
        """Add a problem of this file."""
        note(self.problems, self.file, [Fault(None, message)])

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


_TAKES = {bool: Block.truth, int: Block.whole, float: Block.number, str: Block.text}


def _types(annotation: object) -> list[object]:
    """A type and all that it is made of."""
    return [annotation, *(inner for argument in get_args(annotation) for inner in _types(argument))]


def generation_of(document: Block) -> str:
    """The latest generation of which the document has a member."""
    for generation in reversed(GENERATIONS):
        if any(document.has(path) for path in _MARKERS[generation]):
            return generation
    return GENERATIONS[0]


def read_document(path: Path, problems: list[ProblemRecord]) -> Block:
    """The document; of one that is damaged, the members that are whole.

    Raises:
        RunError: there is no such file, or it holds no JSON object, saying what it holds: a run that failed left its
            reason there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); a published run's JSON stands beside its tables."
        ) from error
    noted = Block({}, "", path.name, problems)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8-sig", errors="replace")
        noted.note(f"the file has bytes that are not UTF-8, first at byte {error.start}; they were replaced")
    if data.startswith(b"\xef\xbb\xbf"):
        noted.note("the file begins with a byte order mark, which was left out")
    members = _members(text, noted, path)
    if members.get("status") in ("failed", "skipped"):
        reason = members.get("reason")
        raise RunError(f"{path}: the run {members['status']}; the file says: {_start(str(reason or text))}")
    return Block(members, "", path.name, problems)


_MOST_DIGITS = 20
"""Of a whole number with its sign: none of 64 bits has more."""


def _members(text: str, noted: Block, path: Path) -> dict[str, object]:
    """The outermost object's members."""
    odd: list[str] = []

    def constant(name: str) -> None:
        odd.append(name)

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in items]
        odd.extend(f"the key {key!r} twice" for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(items)

    def whole(digits: str) -> int | None:
        if len(digits) <= _MOST_DIGITS:
            return int(digits)
        odd.append(f"a number of {len(digits)} digits")
        return None

    decoder = json.JSONDecoder(parse_int=whole, parse_constant=constant, object_pairs_hook=pairs)
    try:
        members = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        members = _whole_members(text, decoder)
        if not members:
            raise RunError(f"{path}: not JSON ({error}); the file says: {_start(text)}") from error
        noted.note(f"the JSON is damaged ({error}); these members are whole and were read: {', '.join(members)}")
    if odd:
        noted.note(f"the JSON has {', '.join(dict.fromkeys(odd))}; numbers that are none were left out")
    if not isinstance(members, dict):
        raise RunError(f"{path}: expected a JSON object, found a {type(members).__name__}: {_start(text)}")
    if r"\ud" in text.lower():
        whole_text = json.dumps(members, ensure_ascii=False).encode(errors="replace").decode()
        if whole_text != json.dumps(members, ensure_ascii=False):
            noted.note("the JSON has halves of characters (lone surrogates); they were replaced")
            return dict(json.loads(whole_text))
    return members


_FINDABLE = ("model_stats", "final_prediction", "copy_flag_columns", "provenance", "control_prompt")
"""Members whose names occur nowhere else, so that they are known for what they are behind a damaged place too."""


def _whole_members(text: str, decoder: json.JSONDecoder) -> dict[str, object]:
    """The members of an object before the place where its text is damaged, and those known by name behind it."""
    members: dict[str, object] = {}
    at = _skip(text, 0)
    if not text.startswith("{", at):
        return members
    while (member := _member_at(text, at + 1, decoder)) is not None:
        key, value, at = member
        members[key] = value
    for key in _FINDABLE:
        places = [place.start() for place in re.finditer(f'"{key}"\\s*:', text[at:])]
        if key not in members and len(places) == 1:
            member = _member_at(text, at + places[0], decoder)
            members |= {} if member is None else {key: member[1]}
    return members


def _member_at(text: str, at: int, decoder: json.JSONDecoder) -> tuple[str, object, int] | None:
    """Key, value and where both end; None where no whole member begins.

    A number may be cut short, so what ends with the text and not with a comma or brace is not known to be whole.
    """
    try:
        key, at = decoder.raw_decode(text, _skip(text, at))
        at = _skip(text, at)
        if not isinstance(key, str) or not text.startswith(":", at):
            return None
        value, at = decoder.raw_decode(text, _skip(text, at + 1))
    except (ValueError, RecursionError):
        return None
    at = _skip(text, at)
    return (key, value, at) if text.startswith((",", "}"), at) else None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _start(text: str) -> str:
    stripped = text.strip()
    return stripped[:200] + ("..." if len(stripped) > 200 else "") if stripped else "nothing, it is empty"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
