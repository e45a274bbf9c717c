"""What is asked of a model: facts in all their variants, controls, accepted answers; read from TOML and JSONL files."""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from layerscope.errors import SuiteError
from layerscope.suite.counterfact import is_counterfact, read_counterfact
from layerscope.suite.entries import Control, Place, Question, Word, check_templates, read_control, read_fact, validated

AnswerForm: TypeAlias = Literal["auto", "space", "none"]
"""How an answer follows its prompt: as the model itself prefers, after a space, or without one."""
Judge: TypeAlias = Literal["first_piece", "whole"]
"""What is judged of an answer of several tokens."""


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """Messages that the model's own chat template makes a prompt of."""

    messages: tuple[Message, ...]
    continue_final_message: bool = False
    """Whether the model continues the last message, rather than answering it."""
    template_options: tuple[tuple[str, bool | int | float | str], ...] = ()
    """Further arguments of the template, such as ("enable_thinking", False), sorted by name."""


@dataclass(frozen=True)
class Prompt:
    """One text for the model to continue, and what it should say, if that is known."""

    prompt_id: str
    """"pos" for a fact, "ctl" for a control."""
    prompt_variant: str
    """Name of the template it was made from: "orig", "no_filler", ..."""
    text: str
    """What the model continues; of a chat the last message, which says what it is about until it is rendered."""
    answers: tuple[str, ...]
    """Accepted answers, the first of them the gold one; none where it is not known what the model should say. One that
    begins with white space is taken as it is written."""
    fact_key: str | None
    """"Germany→Berlin"; None for a control."""
    fact_index: int | None
    """Counted from 0 in the order of the file; None for a control."""
    contrast: tuple[str, ...] = ()
    """Of a control: accepted answers of the fact that it is contrasted with. Empty for a fact."""
    subject: str | None = None
    """What the fact is about, as it stands in the text; None where that is not known."""
    answer_form: AnswerForm = "auto"
    judge: Judge = "first_piece"
    chat: Chat | None = None
    """Where the prompt is a chat; None for plain text."""

    @property
    def asked(self) -> dict[str, object]:
        """What is asked, for the suite's digest: fields that a prompt leaves at their default are left out."""
        core = ("prompt_id", "prompt_variant", "text", "answers", "fact_key", "fact_index", "contrast")
        values = asdict(self)
        others = {f.name for f in fields(self)} - {*core, "subject"}  # a subject changes nothing that is asked
        defaults = {f.name: f.default for f in fields(self)}
        return {n: values[n] for n in (*core, *sorted(n for n in others if getattr(self, n) != defaults[n]))}


@dataclass(frozen=True)
class Suite:
    """Prompts in the order in which a model is asked: each fact with all its variants, then the controls.

    No two prompts agree in (fact_index, prompt_id, prompt_variant), since rows are told apart by these three alone;
    SuiteError otherwise.
    """

    name: str
    description: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        seen = set()
        for prompt in self.prompts:
            identity = (prompt.fact_index, prompt.prompt_id, prompt.prompt_variant)
            if identity in seen:
                raise SuiteError(
                    f"suite {self.name!r}: two prompts have (fact_index, prompt_id, prompt_variant) = {identity}, "
                    "so their rows could not be told apart; name one variant otherwise"
                )
            seen.add(identity)

    @property
    def sha256(self) -> str:
        """Hex digest of what is asked: equal for equal prompts, whatever the suite is called and how it was written.

        Over the prompts as JSON in UTF-8 with sorted keys, no spaces and no escapes beyond those JSON demands.
        """
        prompts = [prompt.asked for prompt in self.prompts]
        canonical = json.dumps(prompts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def facts(self) -> tuple[str, ...]:
        """Distinct fact keys in order."""
        return tuple(dict.fromkeys(prompt.fact_key for prompt in self.prompts if prompt.fact_key is not None))


def _fit_for_a_folder(name: str) -> str:
    if re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError("the name becomes part of a folder's name, so it may have no slash and no control character")
    return name


class _Heading(BaseModel):
    """Name and description, with which a file may open."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[Word, AfterValidator(_fit_for_a_folder)]
    description: Annotated[str, StringConstraints(strip_whitespace=True)] = ""


_Table: TypeAlias = dict[str, object]


class _SuiteTables(_Heading):
    templates: dict[Word, str] = Field(default_factory=dict)
    facts: list[_Table] = Field(default_factory=list)
    controls: list[_Table] = Field(default_factory=list)


def builtin_suites() -> tuple[str, ...]:
    """Names of the suites that ship with the package, sorted."""
    return tuple(sorted(_builtin_files()))


def load_suite(name_or_path: str | Path) -> Suite:
    """The built-in suite of that name, or the suite in that `.toml` or `.jsonl` file.

    Raises SuiteError, with file, line, field and remedy, for a name that is neither, a file that cannot be read, and
    anything in it that could not be asked as it stands.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in (built_in := _builtin_files()):
        return _read_toml(built_in[name].read_text(encoding="utf-8"), f"{name}.toml", name)
    match path.suffix.lower():
        case ".toml":
            return _read_toml(_text_of(path), str(path), path.stem)
        case ".jsonl":
            return _read_jsonl(_text_of(path), str(path), path.stem)
    choices = ", ".join(sorted(built_in))
    raise SuiteError(
        f"no suite {name!r}: expected a built-in suite ({choices}) or a path; a path must end in .toml or .jsonl"
    )


def _builtin_files() -> dict[str, Traversable]:
    shipped = resources.files("layerscope.suite").joinpath("builtin").iterdir()
    return {file.name.removesuffix(".toml"): file for file in shipped if file.name.endswith(".toml")}


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SuiteError(f"{path}: the suite cannot be read ({error.strerror}); check the path") from error
    try:
        return content.decode("utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Place(str(path), line=line).error(None, "the file is not UTF-8; save it again as UTF-8") from error


def _read_toml(text: str, file: str, stem: str) -> Suite:
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{file}: the TOML is broken: {error}; mend the syntax there") from error
    tables = validated(_SuiteTables, {"name": stem, **fields}, Place(file))
    check_templates(tables.templates, Place(file, line=_header_lines(text, r"\[templates\]", 1)[0]))
    facts = [read_fact(table, tables.templates, place) for table, place in _placed(tables.facts, "fact", text, file)]
    controls = [
        read_control(table, tables.templates, place) for table, place in _placed(tables.controls, "control", text, file)
    ]
    return _assembled(tables, facts, controls, file)


def _placed(tables: Sequence[_Table], kind: str, text: str, file: str) -> list[tuple[_Table, Place]]:
    lines = _header_lines(text, rf"\[\[[ \t]*{kind}s[ \t]*\]\]", len(tables))
    places = [Place(file, f"{kind} {number}", line) for number, line in enumerate(lines, start=1)]
    return list(zip(tables, places, strict=True))


def _header_lines(text: str, header: str, count: int) -> Sequence[int | None]:
    """The line of each of `count` table headers.

    tomllib keeps no lines, so the headers are looked for in the text. When there are not as many as tables (inline
    tables, a header inside a string) no line is claimed.
    """
    lines = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(rf"^[ \t]*{header}", text, re.MULTILINE)]
    return lines if len(lines) == count else [None] * count


def _read_jsonl(text: str, file: str, stem: str) -> Suite:
    heading = validated(_Heading, {"name": stem}, Place(file))
    facts: list[Question] = []
    first = True
    # Not splitlines(): JSON allows U+2028 and its like inside a string, and they end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(file, line=number)
        fields = _json_object(line, place)
        if first and fields and fields.keys() <= _Heading.model_fields.keys():
            heading = validated(_Heading, {"name": stem, **fields}, place)
        elif is_counterfact(fields):
            facts.append(read_counterfact(fields, place))
        else:
            facts.append(read_fact(fields, {}, place))
        first = False
    return _assembled(heading, facts, [], file)


def _json_object(line: str, place: Place) -> dict[str, object]:
    try:
        fields = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise place.error(None, f"the JSON is broken: {error}; each line must be one whole object") from error
    if not isinstance(fields, dict):
        raise place.error(
            None, f"expected an object, but {type(fields).__name__} came; write one fact, {{...}}, a line"
        )
    return fields


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


def _assembled(heading: _Heading, facts: Sequence[Question], controls: Sequence[Control], file: str) -> Suite:
    if not facts:
        raise SuiteError(f"{file}: there are no facts; add at least one, as a [[facts]] table or a JSONL line")
    by_key = _keyed(facts)
    prompts = [
        Prompt("pos", variant, text, fact.answers, key, index)
        for index, (key, fact) in enumerate(by_key.items())
        for variant, text in fact.texts.items()
    ]
    places: dict[str, Place] = {}
    for control in controls:
        question, contrast = control.question, _contrasted(control, by_key)
        for variant, text in question.texts.items():
            if variant in places:
                sentence = f"{places[variant]} has `{variant}` already, and rows could not tell the two apart; keep one"
                raise question.place.error("variants", sentence)
            places[variant] = question.place
            prompts.append(Prompt("ctl", variant, text, question.answers, None, None, contrast.answers))
    return Suite(heading.name, heading.description, tuple(prompts))


def _keyed(facts: Sequence[Question]) -> dict[str, Question]:
    by_key: dict[str, Question] = {}
    for fact in facts:
        key = fact.spare_key if fact.key in by_key and fact.spare_key is not None else fact.key
        if key in by_key:
            sentence = (
                f"the fact {key!r} is already at {by_key[key].place}; take one away, give one a `key` of its own, "
                "or make them variants of one fact in `prompts`"
            )
            raise fact.place.error("key", sentence)
        by_key[key] = fact
    return by_key


def _contrasted(control: Control, facts: Mapping[str, Question]) -> Question:
    """The fact whose answers a control is compared with, named by key or subject; the first fact when none is named."""
    place, wanted = control.question.place, control.contrast
    if wanted is None:
        chosen = [next(iter(facts.values()))]
    elif wanted in facts:
        chosen = [facts[wanted]]
    else:
        chosen = [fact for fact in facts.values() if fact.subject is not None and fact.subject.strip() == wanted]
    if not chosen:
        raise place.error("contrast", f"no fact has the subject or key {wanted!r}; the facts are {', '.join(facts)}")
    if len(chosen) > 1:
        keys = ", ".join(key for key, fact in facts.items() if fact in chosen)
        raise place.error("contrast", f"several facts have the subject {wanted!r}; name one by its key: {keys}")
    if shared := set(control.question.answers) & set(chosen[0].answers):
        sentence = f"the contrasted fact accepts {min(shared)!r} too, so there is no contrast; choose another fact"
        raise place.error("answer", sentence)
    return chosen[0]
