"""Suites: the built-in ones, both file formats, what identifies a suite, and every refusal."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.errors import SuiteError
from layerscope.suite import Chat, Message, Prompt, Suite, builtin_suites, load_suite
from properties import examples

DOCS = Path(__file__).parent.parent / "docs" / "suites.md"
ORIG = "Give the city name only, plain text. The capital of {} is called simply"
NO_FILLER = "Give the city name only, plain text. The capital of {} is called"
TEMPLATES = '[templates]\norig = "The capital of {subject} is"\nshort = "Capital of {subject}:"\n'
GERMANY = '[[facts]]\nsubject = "Germany"\nanswer = "Berlin"\n'
FRANCE = '[[facts]]\nsubject = "France"\nanswer = "Paris"\n'


@pytest.fixture
def toml(tmp_path):
    def load(text: str, name: str = "asked.toml") -> Suite:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_suite(tmp_path / name)

    return load


@pytest.fixture
def jsonl(tmp_path):
    def load(*lines: object) -> Suite:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "asked.jsonl").write_text("\n".join(texts), encoding="utf-8")
        return load_suite(tmp_path / "asked.jsonl")

    return load


def asked(suite: Suite) -> list[tuple[str, str, tuple[str, ...], str | None]]:
    return [(prompt.prompt_variant, prompt.text, prompt.answers, prompt.fact_key) for prompt in suite.prompts]


# Built-in suites


def test_berlin_asks_the_three_published_prompts():
    control = Prompt("ctl", "orig", ORIG.format("France"), ("Paris",), None, None, ("Berlin",), "France")
    assert load_suite("berlin").prompts == (
        Prompt("pos", "orig", ORIG.format("Germany"), ("Berlin",), "Germany→Berlin", 0, subject="Germany"),
        Prompt("pos", "no_filler", NO_FILLER.format("Germany"), ("Berlin",), "Germany→Berlin", 0, subject="Germany"),
        control,
    )


def test_capitals_asks_five_facts_in_the_published_order_and_the_control_last():
    facts = [("Germany", "Berlin"), ("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Canada", "Ottawa")]
    expected = [
        Prompt("pos", variant, template.format(country), (city,), f"{country}→{city}", index, subject=country)
        for index, (country, city) in enumerate(facts)
        for variant, template in (("orig", ORIG), ("no_filler", NO_FILLER))
    ]
    capitals, berlin = load_suite("capitals"), load_suite("berlin")
    assert capitals.prompts == (*expected, berlin.prompts[-1])
    assert capitals.facts == ("Germany→Berlin", "France→Paris", "Italy→Rome", "Japan→Tokyo", "Canada→Ottawa")


def test_every_built_in_suite_loads_under_its_own_name():
    names = builtin_suites()
    assert {"berlin", "capitals"} <= set(names)
    assert [load_suite(name).name for name in names] == list(names)


SHA256_OF_BUILT_IN = {
    "berlin": "e6d5ad2a73ee4e8695d293158e921090b834d42612f66321dc0d19203bbaa8cb",
    "capitals": "e40bf401593126641303e8a30413003503a9a3a10bb47d8d650452da4714ec38",
    "capitals-20": "9277c5187c066877987fad80699220a277fd5df8fe974adff66d902bfae48dc4",
}


@pytest.mark.parametrize("name", SHA256_OF_BUILT_IN)
def test_a_built_in_suite_asks_what_earlier_runs_recorded(name):
    assert load_suite(name).sha256 == SHA256_OF_BUILT_IN[name]


# TOML


def test_a_fact_may_fill_further_placeholders_and_accept_several_answers(toml):
    suite = toml(
        '[templates]\norig = "{{The}} {role} of {} is"\n'
        '[[facts]]\nsubject = "Italy"\nrole = "capital"\nanswers = ["Rome", " Roma "]\nkey = "it"\n'
    )
    assert asked(suite) == [("orig", "{The} capital of Italy is", ("Rome", " Roma"), "it")]


def test_a_fact_may_carry_wordings_of_its_own_with_the_templates(toml):
    suite = toml(
        TEMPLATES
        + GERMANY
        + '[[facts]]\nprompt = "f(x) = {"\nanswer = "x"\nvariant = "code"\n'
        + '[[facts]]\nsubject = "Peru"\nanswer = "Lima"\n[facts.prompts]\na = "Peru:"\nb = "Peru,"\n'
    )
    assert asked(suite)[2:] == [
        ("code", "f(x) = {", ("x",), "f(x) = {→x"),
        ("a", "Peru:", ("Lima",), "Peru→Lima"),
        ("b", "Peru,", ("Lima",), "Peru→Lima"),
    ]
    assert [prompt.fact_index for prompt in suite.prompts] == [0, 0, 1, 2, 2]


def test_a_control_asks_the_first_template_and_contrasts_the_first_fact_unless_it_says_otherwise(toml):
    control = '[[controls]]\nsubject = "Italy"\nanswer = "Rome"\n'
    short = load_last(toml, control + 'variants = ["short"]\ncontrast = "France"\n')
    assert load_last(toml, control) == Prompt(
        "ctl", "orig", "The capital of Italy is", ("Rome",), None, None, ("Berlin",), "Italy"
    )
    assert short == Prompt("ctl", "short", "Capital of Italy:", ("Rome",), None, None, ("Paris",), "Italy")
    assert load_last(toml, control + 'contrast = "France→Paris"\n').contrast == ("Paris",)


def load_last(toml, control: str) -> Prompt:
    return toml(TEMPLATES + GERMANY + FRANCE + control).prompts[-1]


def test_a_suite_is_named_by_its_file_when_it_does_not_say(toml, jsonl):
    assert toml(TEMPLATES + GERMANY, "my capitals.TOML").name == "my capitals"
    assert toml('name = "other"\n' + TEMPLATES + GERMANY).name == "other"
    assert jsonl({"prompt": "a", "answer": "b"}).name == "asked"


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (TEMPLATES + GERMANY).replace("\n", "\r\n").encode())
    assert [prompt.text for prompt in load_suite(path).prompts] == ["The capital of Germany is", "Capital of Germany:"]


def test_a_prompt_is_asked_as_it_stands_and_a_blank_at_its_end_is_noted_once(toml):
    suite = toml(TEMPLATES.replace(" is", " is ").replace(":", ":\\n") + GERMANY + FRANCE)
    assert [p.text for p in suite.prompts[:2]] == ["The capital of Germany is ", "Capital of Germany:\n"]
    (note,) = suite.notes
    assert note.startswith(
        "suite asked: 2 of 4 prompts end in a blank, first 'The capital of Germany is ' (line 4, fact 1)"
    )


def test_a_fact_without_an_answer_is_asked_and_named_where_others_have_one(toml):
    suite = toml(TEMPLATES + GERMANY + '[[facts]]\nsubject = "Peru"\n')
    assert asked(suite)[2:] == [
        ("orig", "The capital of Peru is", (), "Peru"),
        ("short", "Capital of Peru:", (), "Peru"),
    ]
    assert suite.notes == ("suite asked: 1 fact has no answer, and no answer is judged there (line 7, fact 2)",)
    assert toml(TEMPLATES + '[[facts]]\nsubject = "Peru"\n').notes == ()


def test_form_and_judge_hold_for_a_file_where_a_fact_does_not_say(toml):
    suite = toml(
        'answer_form = "none"\njudge = "whole"\n' + TEMPLATES + GERMANY + FRANCE + 'answer_form = "space"\n'
        'judge = "first_piece"\n'
    )
    assert [(p.answer_form, p.judge) for p in suite.prompts[::2]] == [("none", "whole"), ("space", "first_piece")]
    assert suite.sha256 != toml(TEMPLATES + GERMANY + FRANCE).sha256


ASK = Message("user", "What is the capital of Germany?")


def test_messages_become_a_chat_behind_the_system_message_of_the_file(toml):
    prompts = toml(
        'system = "Be brief."\ntemplate_options = {enable_thinking = false}\n'
        '[templates]\norig = [{role = "user", content = "What is the capital of {subject}?"}]\n'
        + GERMANY
        + '[[facts]]\nanswer = "Berlin"\ncontinue_final_message = true\ntemplate_options = {}\nmessages = [\n'
        '{role = "system", content = "Be kind."}, {role = "user", content = "What is the capital of Germany?"},\n'
        '{role = "assistant", content = "It is"}]\n'
    ).prompts
    assert [p.chat for p in prompts] == [
        Chat((Message("system", "Be brief."), ASK), False, (("enable_thinking", False),)),
        Chat((Message("system", "Be kind."), ASK, Message("assistant", "It is")), True),
    ]
    assert [(p.text, p.fact_key, p.subject) for p in prompts] == [
        (ASK.content, "Germany→Berlin", "Germany"),
        ("It is", "What is the capital of Germany?→Berlin", None),
    ]


def test_what_a_file_says_of_chats_is_noted_where_it_has_none(toml):
    (note,) = toml('system = "Be brief."\n' + TEMPLATES + GERMANY).notes
    assert note == "suite asked: `system` has no effect, since no prompt of the file is a chat"


def test_a_subject_is_known_only_where_it_stands_in_the_prompt(toml):
    suite = toml(
        '[[facts]]\nsubject = "Germany"\n[facts.prompts]\na = "In Germany they speak"\nb = "There they speak"\n'
    )
    assert [p.subject for p in suite.prompts] == ["Germany", None]


# JSONL


def test_each_line_is_one_fact_whatever_its_shape(jsonl):
    suite = jsonl(
        {"name": "mixed", "description": "shapes"},
        "",
        {"prompt": "One plus one is", "answer": " two ", "variant": "plain"},
        {"prompt": "Roma is in", "answers": ["Italy", "Europe"], "subject": "Roma"},
        {"subject": "Peru", "template": "The capital of {} is", "answer": "Lima"},
        {"subject": "Peru", "template": "In {subject} they {relation}", "relation": "speak", "answer": "Spanish"},
    )
    assert (suite.name, suite.description) == ("mixed", "shapes")
    assert asked(suite) == [
        ("plain", "One plus one is", (" two",), "One plus one is→two"),
        ("orig", "Roma is in", ("Italy", "Europe"), "Roma→Italy"),
        ("orig", "The capital of Peru is", ("Lima",), "Peru→Lima"),
        ("orig", "In Peru they speak", ("Spanish",), "Peru→Spanish"),
    ]


PUBLISHED = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this and Yossel goes still and dies. Danielle Darrieux, a native"],
}
FLAT = {"subject": " Danielle Darrieux", "target_true": " French", "target_false": " English", "relation_id": "P103"}
RELATION = {"relation": "The mother tongue of {} is"}
AFFIXES = {"relation_prefix": "The mother tongue of", "relation_suffix": " is"}


@pytest.mark.parametrize(
    "record",
    [
        PUBLISHED,
        FLAT | RELATION,
        FLAT | RELATION | AFFIXES | {"prompt": "The mother tongue of Danielle Darrieux is"},
        FLAT | AFFIXES,
        FLAT | {"prompt": "The mother tongue of {} is", "target_true": {"str": "French"}},
    ],
    ids=["published", "relation", "everything", "affixes", "template in prompt"],
)
def test_every_layout_of_one_counterfact_record_asks_the_same(jsonl, record):
    (prompt,) = jsonl(record).prompts
    assert (prompt.text, prompt.subject) == ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux")
    assert prompt.fact_key == "Danielle Darrieux→French"
    # The flattened records write the answer's space out, and it is taken as written.
    assert prompt.answers == ((" French",) if record.get("target_true") == " French" else ("French",))


def test_counterfact_records_of_one_subject_and_answer_are_told_apart_by_case_or_relation(jsonl):
    second = {**PUBLISHED, "case_id": 12}
    assert jsonl(PUBLISHED, second).facts == ("Danielle Darrieux→French", "Danielle Darrieux→French #12")
    assert jsonl(PUBLISHED, FLAT | RELATION).facts == ("Danielle Darrieux→French", "Danielle Darrieux→French #P103")


def test_a_line_separator_inside_a_string_ends_no_line(jsonl):
    assert jsonl('{"prompt": "one\u2028two", "answer": "three"}').prompts[0].text == "one\u2028two"


# What identifies a suite

words = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join).filter(lambda text: "{subject}" not in text)
facts = st.lists(
    st.fixed_dictionaries(
        {
            "key": words,
            "answers": st.lists(texts, min_size=1, max_size=3, unique=True),
            "prompts": st.dictionaries(words, texts, min_size=1, max_size=3),
        }
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda fact: fact["key"],
)


def quoted(text: str) -> str:
    """A TOML basic string: JSON's, as long as no control character and no escaped surrogate is in it."""
    return json.dumps(text, ensure_ascii=False)


def as_toml(suite_facts: list[dict], name: str) -> str:
    tables = [f"name = {quoted(name)}"]
    for fact in suite_facts:
        answers = ", ".join(quoted(answer) for answer in fact["answers"])
        prompts = [f"{quoted(variant)} = {quoted(text)}" for variant, text in fact["prompts"].items()]
        tables += ["[[facts]]", f"answers = [{answers}]", f"key = {quoted(fact['key'])}", "[facts.prompts]", *prompts]
    return "\n".join(tables)


@examples(60)
@given(facts)
def test_a_suite_written_as_toml_and_as_jsonl_reads_back_as_the_same_prompts(tmp_path_factory, suite_facts):
    folder = tmp_path_factory.mktemp("suites")
    (folder / "a.toml").write_text(as_toml(suite_facts, "first"), encoding="utf-8")
    lines = [json.dumps(dict(reversed(fact.items()))) for fact in suite_facts]
    (folder / "b.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    expected = tuple(
        Prompt("pos", variant, text, tuple(fact["answers"]), fact["key"], index)
        for index, fact in enumerate(suite_facts)
        for variant, text in fact["prompts"].items()
    )
    from_toml, from_jsonl = load_suite(folder / "a.toml"), load_suite(folder / "b.jsonl")
    assert from_toml.prompts == expected
    assert from_jsonl.prompts == expected
    assert from_toml.name != from_jsonl.name
    assert from_toml.sha256 == from_jsonl.sha256


def test_templates_and_written_out_prompts_have_one_sha256(toml, jsonl):
    prompts = {"orig": "The capital of Germany is", "short": "Capital of Germany:"}
    by_hand = jsonl({"subject": "Germany", "answer": "Berlin", "prompts": prompts})
    assert toml(TEMPLATES + GERMANY).sha256 == by_hand.sha256


@pytest.mark.parametrize(
    "change",
    [{"text": "b"}, {"answers": ("2",)}, {"fact_key": "k2"}, {"prompt_variant": "v"}, {"contrast": ("3",)}],
    ids=lambda change: next(iter(change)),
)
def test_the_sha256_changes_with_anything_that_is_asked(change):
    prompt = Prompt("pos", "orig", "a", ("1",), "k", 0)
    assert Suite("s", "", (prompt,)).sha256 != Suite("s", "", (dataclasses.replace(prompt, **change),)).sha256


def test_the_sha256_is_over_canonical_json():
    canonical = (
        '[{"answers":["é"],"contrast":[],"fact_index":0,"fact_key":"k→é","prompt_id":"pos",'
        '"prompt_variant":"orig","text":"a"}]'
    )
    suite = Suite("any", "thing", (Prompt("pos", "orig", "a", ("é",), "k→é", 0),))
    assert suite.sha256 == hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def test_a_suite_refuses_prompts_whose_rows_could_not_be_told_apart():
    prompt = Prompt("ctl", "orig", "a", ("1",), None, None, ("2",))
    with pytest.raises(SuiteError, match="could not be told apart"):
        Suite("s", "", (prompt, dataclasses.replace(prompt, text="b")))


# Refusals


def test_an_unknown_name_is_answered_with_the_choices():
    with pytest.raises(
        SuiteError, match=r"no suite 'berlyn': .*berlin, capitals.*must end in \.toml, \.jsonl, .* or \.txt"
    ):
        load_suite("berlyn")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SuiteError, match=r"nowhere\.toml: the suite cannot be read \(No such file.*check the path"):
        load_suite(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xe9", "answer": "c"}')
    with pytest.raises(SuiteError, match=r"latin\.jsonl, line 2: the file is not UTF-8; save it again as UTF-8"):
        load_suite(tmp_path / "latin.jsonl")


FRENCH_CONTROL = '[[controls]]\nsubject = "France"\nanswer = "Paris"\n'
BROKEN_TOML = {
    "syntax": (TEMPLATES + "a = \n", "the TOML is broken: .*at line 4, column 5"),
    "no facts": (TEMPLATES, "there are no facts; add at least one"),
    "facts in single brackets": (TEMPLATES + GERMANY.replace("[[facts]]", "[facts]"), "`facts`: .*dict.*headed"),
    "unknown field of the file": ('titel = "x"\n' + TEMPLATES + GERMANY, "field `titel`: it is unknown; .*`name`"),
    "slash in the name": ('name = "a/b"\n' + TEMPLATES + GERMANY, "field `name`: .*no slash.*'a/b' came"),
    "wrong type of a template": ("[templates]\norig = 3\n" + GERMANY, "field `templates.orig`: .*valid string.*int 3"),
    "empty answer": (
        TEMPLATES + '[[facts]]\nsubject = "Peru"\nanswer = " "',
        "line 4, fact 1, field `answer`: .*empty",
    ),
    "one of the answers empty": (
        TEMPLATES + '[[facts]]\nsubject = "Peru"\nanswers = ["a", ""]',
        r"`answers\[1\]`: .*empty",
    ),
    "no answers": (TEMPLATES + '[[facts]]\nsubject = "Peru"\nanswers = []', "field `answers`: it is empty"),
    "answer and answers": (TEMPLATES + GERMANY + 'answers = ["Bonn"]', "field `answer`: `answers` is there too"),
    "wrong type of an answer": (
        TEMPLATES + '[[facts]]\nsubject = "Peru"\nanswer = ["Lima"]',
        r"line 4, fact 1, field `answer`: .*valid string, but list \['Lima'\] came; several answers go into `answers`",
    ),
    "empty subject": (
        TEMPLATES + '[[facts]]\nsubject = ""\nanswer = "Lima"',
        "line 4, fact 1, field `subject`: .*empty",
    ),
    "missing subject": (
        TEMPLATES + '[[facts]]\nanswer = "Lima"',
        "field `subject`: .*missing, and `templates.orig` has",
    ),
    "unfilled placeholder": (
        TEMPLATES.replace("The capital", "The {role}") + GERMANY,
        "line 4, fact 1, field `role`: it is missing, and `templates.orig` has {role} to be filled; add it",
    ),
    "placeholder filled by a number": (
        TEMPLATES.replace("The capital", "The {role}") + GERMANY + "role = 3",
        "field `role`: expected a text for the placeholder {role}, but 3 came",
    ),
    "unknown field of a fact": (TEMPLATES + GERMANY + 'anwser = "x"', "line 4, fact 1, field `anwser`: it is unknown"),
    "empty template": ('[templates]\norig = ""\n' + GERMANY, "line 1, field `templates.orig`: the prompt is empty"),
    "template without placeholder": (
        '[templates]\nname = "late"\n' + GERMANY,
        "line 1, field `templates.name`: 'late' would ask every fact the same; add {subject}",
    ),
    "lone brace": ('[templates]\norig = "{ {}"\n' + GERMANY, r"line 1, field `templates.orig`: .*write {{ or }}"),
    "format": ('[templates]\norig = "{subject:>9}"\n' + GERMANY, "`templates.orig`: {subject} in .* has a format"),
    "empty prompt": ('[[facts]]\nprompt = ""\nanswer = "b"', "line 1, fact 1, field `prompt`: the prompt is empty"),
    "control without answer": (
        TEMPLATES + GERMANY + '[[controls]]\nsubject = "France"',
        "line 7, control 1, field `answer`: it is missing; a control's answer is compared",
    ),
    "contrast without answer": (
        TEMPLATES + '[[facts]]\nsubject = "Germany"\n' + FRENCH_CONTROL,
        "line 6, control 1, field `contrast`: the contrasted fact has no answer",
    ),
    "no such form": (TEMPLATES + GERMANY + 'answer_form = "spaced"', "fact 1, field `answer_form`: .*'auto', 'space'"),
    "no such judge": ('judge = "all"\n' + TEMPLATES + GERMANY, "field `judge`: .*'first_piece' or 'whole'"),
    "message without content": (
        '[[facts]]\nmessages = [{role = "user"}]',
        r"line 1, fact 1, field `messages\[0\]\.content`: it is missing",
    ),
    "empty last message": (
        '[[facts]]\nmessages = [{role = "user", content = ""}]',
        r"field `messages\[0\]\.content`: the prompt is empty",
    ),
    "no message": ("[[facts]]\nmessages = []", "field `messages`: expected a list of messages"),
    "chat that answers itself": (
        '[[facts]]\nmessages = [{role = "assistant", content = "Berlin"}]',
        "field `messages`: .*set continue_final_message = true.*or move what it says into `answer`",
    ),
    "option of a chat for a text": (
        '[[facts]]\nprompt = "a"\ntemplate_options = {enable_thinking = false}',
        "field `template_options`: it is about a chat",
    ),
    "placeholder in a message": (
        '[[facts]]\nmessages = [{role = "user", content = "Where is {subject}?"}]',
        r"field `messages\[0\]\.content`: .*not filled in.*call it `template`",
    ),
    "chat template without placeholder": (
        '[templates]\norig = [{role = "user", content = "Where?"}]\n' + GERMANY,
        "line 1, field `templates.orig`: 'Where\\?' would ask every fact the same",
    ),
    "no prompts": ('[[facts]]\nprompts = {}\nanswer = "b"', "line 1, fact 1, field `prompts`: it is empty"),
    "nothing to ask with": (GERMANY, "line 1, fact 1, field `prompt`: it is missing, and there is no template"),
    "two wordings": (GERMANY + 'prompt = "a"\ntemplate = "{}"', "field `template`: `prompt` is there too.*keep one"),
    "placeholder in a prompt": (
        GERMANY + 'prompt = "{subject} is"',
        "field `prompt`: .*not filled in.*call it `template`",
    ),
    "variant of nothing": (TEMPLATES + GERMANY + 'variant = "a"', "field `variant`: .*leave it out"),
    "repeated key": (
        TEMPLATES + GERMANY + FRANCE + GERMANY,
        r"line 10, fact 3, field `key`: the fact 'Germany→Berlin' is already at .*asked\.toml, line 4, fact 1;",
    ),
    "unknown contrast": (
        TEMPLATES + GERMANY + FRENCH_CONTROL + 'contrast = "Spain"',
        "line 7, control 1, field `contrast`: no fact has the subject or key 'Spain'; the facts are Germany→Berlin",
    ),
    "ambiguous contrast": (
        TEMPLATES + GERMANY + GERMANY.replace("Berlin", "Bonn") + FRENCH_CONTROL + 'contrast = "Germany"',
        "field `contrast`: several facts have the subject 'Germany'; .*Germany→Berlin, Germany→Bonn",
    ),
    "contrast with the same answer": (
        TEMPLATES + GERMANY + FRANCE + FRENCH_CONTROL + 'contrast = "France"',
        "line 10, control 1, field `answer`: the contrasted fact accepts 'Paris' too",
    ),
    "unknown variant of a control": (
        TEMPLATES + GERMANY + FRENCH_CONTROL + 'variants = ["long"]',
        "line 7, control 1, field `variants`: there is no variant `long`; .*`orig`, `short`",
    ),
    "two controls of one variant": (
        TEMPLATES + GERMANY + FRENCH_CONTROL + FRENCH_CONTROL,
        "line 10, control 2, field `variants`: .*line 7, control 1 has `orig` already",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), BROKEN_TOML.values(), ids=BROKEN_TOML)
def test_a_toml_suite_that_could_not_be_asked_is_refused(toml, text, sentence):
    with pytest.raises(SuiteError, match=rf"asked\.toml\b.*{sentence}"):
        toml(text)


def test_no_line_is_claimed_for_a_table_that_has_no_header_of_its_own(toml):
    with pytest.raises(SuiteError, match=r"asked\.toml, fact 1, field `answer`: it is empty"):
        toml('facts = [{ prompt = "a", answer = "" }]')
    with pytest.raises(SuiteError, match=r"asked\.toml, fact 1, field `answer`: it is empty"):
        toml('description = """\n[[facts]]\n"""\n[[facts]]\nprompt = "a"\nanswer = ""')


GOOD = {"prompt": "a", "answer": "b"}
BROKEN_LINES = {
    "syntax": ('{"prompt": ', "the JSON is broken: .*each line must be one whole object"),
    "no object": ("[1]", "expected an object, but list came; write one fact"),
    "repeated field": ('{"prompt": "a", "prompt": "b"}', "the JSON is broken: 'prompt' is there twice"),
    "header below the first line": ({"name": "late"}, "field `name`: it is unknown"),
    "nothing to ask": ({"answer": "c"}, "field `prompt`: it is missing"),
    "fields of no known shape": (
        {"frage": "c", "antwort": "d"},
        r"no known shape of facts has the fields `frage`, `antwort`; .*--columns .*CounterFact.*LAMA: `sub_label`",
    ),
    "empty answer": ({"prompt": "c", "answer": ""}, "field `answer`: it is empty"),
    "wrong type": ({"prompt": 3, "answer": "x"}, "field `prompt`: .*valid string, but int 3 came"),
    "unknown field": ({"prompt": "c", "answer": "d", "anwser": "e"}, "field `anwser`: it is unknown"),
    "empty prompt": ({"prompt": "", "answer": "d"}, "field `prompt`: the prompt is empty"),
    "half a character": ({"prompt": "\ud800", "answer": "d"}, "field `prompt`: .*half of a character"),
    "unfilled placeholder": (
        {"template": "{} of {x}", "subject": "a", "answer": "d"},
        "field `x`: .*`template` has {x}",
    ),
    "repeated key": (GOOD, r"field `key`: the fact 'a→b' is already at .*asked\.jsonl, line 1; take one away"),
    "published record without answer": (
        {"requested_rewrite": {"prompt": "{} is", "subject": "a"}},
        "field `requested_rewrite.target_true`: it is missing",
    ),
    "published record of a wrong type": ({"requested_rewrite": "x"}, "field `requested_rewrite`: expected an object"),
    "flattened record without answer": ({"subject": "a", "relation": "{} is"}, "field `target_true`: it is missing"),
    "flattened record without wording": ({"subject": "a", "target_true": "b"}, "field `prompt`: there is no `prompt`"),
    "relation without a slot": (
        {"subject": "a", "target_true": "b", "relation": "P103"},
        "field `relation`: expected a template with {} for the subject, but 'P103' came",
    ),
}


@pytest.mark.parametrize(("line", "sentence"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_line_that_could_not_be_asked_is_refused_by_its_number(jsonl, line, sentence):
    with pytest.raises(SuiteError, match=rf"asked\.jsonl, line 3[:,] {sentence}"):
        jsonl(GOOD, "", line)


def test_repeated_records_that_nothing_tells_apart_are_refused(jsonl):
    with pytest.raises(SuiteError, match=r"line 3, field `key`: .*Darrieux→French #0' is already at .*line 2;"):
        jsonl(PUBLISHED, PUBLISHED, PUBLISHED)


def test_a_file_of_blank_lines_and_a_header_has_no_facts(jsonl):
    with pytest.raises(SuiteError, match=r"asked\.jsonl: there are no facts"):
        jsonl({"name": "empty"}, "", "")


# The page for users


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chats, mixed = blocks("jsonl")
    Path("oceans.toml").write_text(blocks("toml")[0], encoding="utf-8")
    Path("mixed.jsonl").write_text(mixed, encoding="utf-8")
    Path("chats.jsonl").write_text(chats, encoding="utf-8")
    Path("popqa.tsv").write_text("question\tobj\nWhich?\tthis\nWho?\tshe\n", encoding="utf-8")
    names: dict[str, Any] = {}
    for script in blocks("python"):
        exec(compile(script, str(DOCS), "exec"), names)
    assert [p.answers for p in names["facts"].prompts] == [("Berlin",), ("4", " four")]
    assert names["some"].description == "1 of 2 facts, sampled with seed 7"
    assert load_suite("oceans.toml").facts == ("Portugal→Atlantic", "Peru, west coast", "Madagascar lies in the→Indian")
    assert load_suite("oceans.toml").prompts[-1].contrast == ("Atlantic",)
    assert len(load_suite("mixed.jsonl").facts) == 5
    asked_in_chat = load_suite("chats.jsonl")
    assert asked_in_chat.facts == ("Germany→Berlin", "And of Peru?→Lima", "Chile→Spanish")
    assert {p.chat.messages[0] for p in asked_in_chat.prompts if p.chat} == {Message("system", "Answer with one word.")}


def test_the_error_of_the_page_is_the_one_that_comes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("oceans.toml").write_text(blocks("toml")[0].replace('"Atlantic"', '""', 1), encoding="utf-8")
    with pytest.raises(SuiteError) as error:
        load_suite("oceans.toml")
    assert str(error.value) == blocks("text")[0].strip()
