"""Files of facts as they are published or kept, and how much of one is taken."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from layerscope.errors import SuiteError
from layerscope.suite import Chat, Message, Suite, load_suite

DOCS = Path(__file__).parent.parent / "docs" / "suites.md"

COUNTERFACT = {
    "case_id": 3,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} was invented in",
        "relation_id": "P495",
        "target_new": {"str": "Peru", "id": "Q419"},
        "target_true": {"str": "Italy", "id": "Q38"},
        "subject": "The espresso machine",
    },
    "paraphrase_prompts": ["They met once. The espresso machine comes from"],
}
KNOWN = {
    "known_id": 5,
    "subject": "Mount Erebus",
    "attribute": "Antarctica",
    "template": "{} is found in",
    "prediction": " Antarctica, on an island",
    "prompt": "Mount Erebus is found in",
    "relation_id": "P30",
}
ZSRE = {
    "subject": "Tower Hall",
    "src": "Who designed Tower Hall?",
    "pred": "Nobody",
    "rephrase": "Which architect drew Tower Hall?",
    "alt": "Ada Other",
    "answers": ["Ada Right", "A. Right"],
    "loc": "nq question: who sang it",
    "loc_ans": "Bo",
    "cond": "Nobody >> Ada Other || Who designed Tower Hall?",
}
EASYEDIT = {
    "case_id": 0,
    "prompt": "Tower Hall was designed by",
    "target_new": "Ada Other",
    "ground_truth": "Ada Right",
    "rephrase_prompt": "The architect of Tower Hall was",
    "subject": "Tower Hall",
}
LAMA = {"uuid": "u1", "sub_label": "Ada Right", "obj_label": "Lima", "predicate_id": "P19"}
LRE = {
    "name": "capital",
    "prompt_templates": ["The capital of {} is", "{}'s capital is"],
    "prompt_templates_zs": ["What is the capital of {}? It is"],
    "properties": {"relation_type": "factual"},
    "samples": [{"subject": "Peru", "object": "Lima"}, {"subject": "Cuba", "object": "Havana"}],
}
SAMPLE = {
    "doc_id": 4,
    "doc": {"question": "Which?", "choices": ["red", "blue"]},
    "target": "1",
    "arguments": {
        "gen_args_0": {"arg_0": "Question: Which?\nAnswer:", "arg_1": " red"},
        "gen_args_1": {"arg_0": "Question: Which?\nAnswer:", "arg_1": " blue"},
    },
    "resps": [[["-1.5", "False"]], [["-0.5", "True"]]],
    "acc": 1.0,
}
POPQA = (
    "id\tsubj\tprop\tobj\ts_pop\tquestion\tpossible_answers\n"
    '8\tAda\toccupation\tpoet\t9\tWhat is Ada\'s occupation?\t"[""poet"", ""bard""]"\n'
    '9\tAda\tfather\tpoet\t9\tWhat was Ada\'s father?\t["poet"]\n'
)


def lines(*records: object) -> str:
    return "\n".join(json.dumps(record) for record in records)


FILES = {
    "prompts.txt": "The capital of Peru is\n\n  Two plus two is\r\nThe capital of Peru is\n",
    "facts.csv": 'prompt,answer,topic\n"Rome, as they say, is in",Italy,geography\nOne and one is,,sums\n',
    "many.csv": 'template,answers,subject\n{} is in,"[""Italy"", ""Europe""]",Rome\n',
    "quiz.csv": "frage;antwort;land\nDie Hauptstadt Perus ist;Lima;Peru\n",
    "trivia.jsonl": lines({"question": "Which sea?", "answer": {"value": "Red Sea", "aliases": []}}),
    "questions.jsonl": lines({"question": "Which sea?", "answer": ["Red Sea", "the Red Sea"]}),
    "counterfact.json": json.dumps([COUNTERFACT]),
    "known_1000.json": json.dumps([KNOWN]),
    "zsre_mend_eval.json": json.dumps([ZSRE]),
    "easyedit.json": json.dumps([EASYEDIT]),
    "relations.jsonl": lines({"relation": "P19", "template": "[X] was born in [Y] .", "type": "N-1"}),
    "TREx/P19.jsonl": lines(LAMA),
    "country_capital_city.json": json.dumps(LRE, indent=1),
    "popqa.tsv": POPQA,
    "samples_arc.jsonl": lines(SAMPLE, {**SAMPLE, "filter": "another"}),
    "chats.jsonl": lines({"messages": [{"role": "user", "content": "Which sea?"}], "answer": "Red Sea"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.fixture
def file(tmp_path):
    def load(name: str, text: str, **how: object) -> Suite:
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return load_suite(tmp_path / name, **how)

    return load


def asked(suite: Suite) -> list[tuple[str, tuple[str, ...], str | None, str | None]]:
    return [(p.text, p.answers, p.fact_key, p.subject) for p in suite.prompts]


CAPITALS = ("The capital of {} is", "{}'s capital is", "What is the capital of {}? It is")
TAKEN = {
    "prompts.txt": [
        ("The capital of Peru is", (), "The capital of Peru is", None),
        ("  Two plus two is", (), "  Two plus two is", None),
    ],
    "facts.csv": [
        ("Rome, as they say, is in", ("Italy",), "Rome, as they say, is in→Italy", None),
        ("One and one is", (), "One and one is", None),
    ],
    "many.csv": [("Rome is in", ("Italy", "Europe"), "Rome→Italy", "Rome")],
    "questions.jsonl": [("Which sea?", ("Red Sea", "the Red Sea"), "Which sea?→Red Sea", None)],
    "counterfact.json": [
        (
            "The espresso machine was invented in",
            ("Italy",),
            "The espresso machine→Italy",
            "The espresso machine",
        )
    ],
    "known_1000.json": [("Mount Erebus is found in", ("Antarctica",), "Mount Erebus→Antarctica", "Mount Erebus")],
    "zsre_mend_eval.json": [
        (text, ("Ada Right", "A. Right"), "Tower Hall→Ada Right", "Tower Hall")
        for text in ("Who designed Tower Hall?", "Which architect drew Tower Hall?")
    ],
    "easyedit.json": [
        (text, ("Ada Right",), "Tower Hall→Ada Right", "Tower Hall")
        for text in ("Tower Hall was designed by", "The architect of Tower Hall was")
    ],
    "TREx/P19.jsonl": [("Ada Right was born in", ("Lima",), "Ada Right→Lima", "Ada Right")],
    "country_capital_city.json": [
        (template.format(country), (city,), f"{country}→{city}", country)
        for country, city in (("Peru", "Lima"), ("Cuba", "Havana"))
        for template in CAPITALS
    ],
    "popqa.tsv": [
        ("What is Ada's occupation?", ("poet", "bard"), "Ada→poet", "Ada"),
        ("What was Ada's father?", ("poet",), "Ada→poet #9", "Ada"),
    ],
    "samples_arc.jsonl": [("Question: Which?\nAnswer:", (" blue",), "doc 4→blue", None)],
    "chats.jsonl": [("Which sea?", ("Red Sea",), "Which sea?→Red Sea", None)],
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_published_file_is_read_as_it_is(folder, name):
    assert asked(load_suite(folder / name)) == TAKEN[name]


def test_wordings_of_a_relation_are_variants_of_its_facts(folder):
    prompts = load_suite(folder / "country_capital_city.json").prompts
    assert [(p.prompt_variant, p.fact_index) for p in prompts] == [
        (variant, fact) for fact in (0, 1) for variant in ("orig", "template_2", "zero_shot")
    ]


def test_a_header_of_lines_settles_how_answers_of_every_shape_are_judged(file):
    records = ({"answer_form": "none", "judge": "whole"}, KNOWN, {"prompt": "a", "answer": "b", "judge": "first_piece"})
    asked_for = [("none", "whole"), ("none", "first_piece")]
    assert [(p.answer_form, p.judge) for p in file("a.jsonl", lines(*records)).prompts] == asked_for
    named = file("b.jsonl", lines(*records), columns="prompt=prompt,answer=attribute")
    assert [(p.answer_form, p.judge) for p in named.prompts] == [("none", "whole")] * 2


@pytest.mark.parametrize("name", ["counterfact.json", "known_1000.json", "zsre_mend_eval.json"])
def test_an_array_its_lines_and_a_list_ask_the_same(folder, file, name):
    records = json.loads(FILES[name])
    whole = load_suite(folder / name)
    for other in (file("a.jsonl", lines(*records)), file("b.jsonl", FILES[name]), load_suite(records)):
        assert other.sha256 == whole.sha256
    assert file("c.json", lines(*records, {"prompt": "a"})).facts == (*whole.facts, "a")


def test_records_of_one_key_are_told_apart_by_number_or_place_and_equal_ones_asked_once(file):
    other = {**ZSRE, "src": "By whom is Tower Hall?", "rephrase": None}
    suite = file("zsre.jsonl", lines(ZSRE, ZSRE, other, KNOWN, {**KNOWN, "known_id": 6, "prompt": "Erebus is in"}))
    assert suite.facts == (
        "Tower Hall→Ada Right",
        "Tower Hall→Ada Right #line 3",
        "Mount Erebus→Antarctica",
        "Mount Erebus→Antarctica #6",
    )
    assert suite.notes == (
        "suite zsre: 1 of 5 records was left out: 1 because an earlier record asks the same (line 2)",
    )
    named = file("a.csv", "q,a\nOne?,1\nTwo?,2\nTwo?,zwei\n", columns="prompt=q,answer=a,key=q")
    assert named.facts == ("One?", "Two?", "Two? #line 4")


def test_the_tables_of_a_suite_may_be_written_as_json(file):
    tables = {
        "templates": {"orig": "The capital of {subject} is"},
        "facts": [{"subject": "Peru", "answer": "Lima"}],
        "controls": [{"subject": "Cuba", "answer": "Havana"}],
    }
    suite = file("capitals.json", json.dumps(tables, indent=2))
    assert [(p.prompt_id, p.text, p.contrast) for p in suite.prompts] == [
        ("pos", "The capital of Peru is", ()),
        ("ctl", "The capital of Cuba is", ("Lima",)),
    ]


def test_a_cloze_is_asked_as_far_as_its_gap_and_left_out_where_words_follow(file):
    suite = file(
        "lama.jsonl",
        lines(
            LAMA | {"template": "[X] was born in [Y] ."},
            LAMA | {"template": "[Y] is where [X] was born ."},
            LAMA | {"template": "In [Y] once lived [X] ."},
            LAMA | {"sub_label": "Bo", "template": None, "masked_sentences": ["[MASK] it is.", "Bo's town is [MASK]."]},
        ),
    )
    assert [p.text for p in suite.prompts] == ["Ada Right was born in", "Bo's town is"]
    assert suite.notes == (
        "suite lama: 2 of 4 records were left out: 2 because its gap does not end the sentence (line 2; line 3)",
    )


def test_a_file_of_which_nothing_can_be_asked_is_refused(file):
    with pytest.raises(SuiteError, match=r"lama\.jsonl: 1 of 1 record was left out: 1 because its gap does not end"):
        file("lama.jsonl", lines(LAMA | {"template": "[Y] is where [X] was born ."}))


def test_a_cloze_without_any_sentence_says_where_templates_are(file):
    with pytest.raises(SuiteError, match=r"line 1, field `template`: it is missing; put the relations\.jsonl"):
        file("P19.jsonl", lines(LAMA))


ARGUMENTS = "Question: Which?\nAnswer:"
SAMPLES = {
    "older layout": (SAMPLE | {"arguments": [[ARGUMENTS, " red"], [ARGUMENTS, " blue"]], "target": 0}, " red"),
    "one choice kept": (SAMPLE | {"arguments": [[ARGUMENTS, " red"]]}, " blue"),
    "target in words": (SAMPLE | {"target": "blue"}, " blue"),
    "generation": (SAMPLE | {"arguments": [[ARGUMENTS, {"until": ["\n"]}]], "target": 72}, "72"),
    "generation without settings": (SAMPLE | {"arguments": {"gen_args_0": {"arg_0": ARGUMENTS}}, "target": "x"}, "x"),
    "space before the gap": (
        SAMPLE | {"arguments": [[f"{ARGUMENTS} ", "red"], [f"{ARGUMENTS} ", "blue"]]},
        " blue",
    ),
}


@pytest.mark.parametrize(("sample", "answer"), SAMPLES.values(), ids=SAMPLES)
def test_a_sample_log_gives_context_and_right_continuation_as_they_were_joined(file, sample, answer):
    (prompt,) = file("samples.jsonl", lines(sample)).prompts
    assert (prompt.text, prompt.answers) == (ARGUMENTS, (answer,))


def test_a_sample_of_a_chat_endpoint_is_a_chat(file):
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "It is"}]
    for context in (json.dumps(messages), [json.dumps(messages)]):
        sample = SAMPLE | {"arguments": {"gen_args_0": {"arg_0": context, "arg_1": {"until": []}}}, "target": "red"}
        (prompt,) = file("samples.jsonl", lines(sample)).prompts
        assert prompt.chat == Chat((Message("user", "Which?"), Message("assistant", "It is")), True)
        assert (prompt.text, prompt.answers, prompt.fact_key) == ("It is", ("red",), "doc 4→red")


def test_samples_that_hold_no_answer_behind_their_context_are_left_out(file):
    contexts = SAMPLE | {"arguments": [["The red one", " fits."], ["The blue one", " fits."]]}
    rolling = SAMPLE | {"arguments": [["A whole text."]], "target": "A whole text."}
    other = SAMPLE | {"target": "[0.1]"}
    (note,) = file("samples.jsonl", lines(SAMPLE, contexts, rolling, other)).notes
    assert "3 of 4 records were left out" in note
    for reason in ("(line 2)", "(line 3)", "(line 4)"):
        assert reason in note


def test_columns_are_taken_by_name_and_a_prompt_may_be_made_of_several(folder):
    named = load_suite(folder / "quiz.csv", columns="prompt=frage,answer=antwort,subject=land")
    assert asked(named) == [("Die Hauptstadt Perus ist", ("Lima",), "Peru→Lima", "Peru")]
    made = load_suite(folder / "popqa.tsv", columns="prompt=Q: {question}, A:,answer=possible_answers")
    assert [(p.text, p.answers) for p in made.prompts] == [
        ("Q: What is Ada's occupation?, A:", ("poet", "bard")),
        ("Q: What was Ada's father?, A:", ("poet",)),
    ]
    within = load_suite(folder / "trivia.jsonl", columns={"prompt": "question", "answer": "answer.value"})
    assert [p.answers for p in within.prompts] == [("Red Sea",)]


BROKEN = {
    "unknown column": ("a.csv", "q,a\nx,y\n", {"columns": "prompt=question"}, "no column `question`.*`q`, `a`"),
    "columns without a prompt": ("a.csv", "q,a\nx,y\n", {"columns": "answer=a"}, "should name the prompt's"),
    "columns that are no columns": ("a.csv", "q,a\nx,y\n", {"columns": "q"}, "should be written as prompt=question,"),
    "columns of texts": ("a.json", '["x"]', {"columns": "prompt=q"}, "texts came; leave the columns out"),
    "columns of a text": ("a.txt", "x\n", {"columns": "prompt=q"}, "neither; leave them out"),
    "unknown header": ("a.csv", "q,a\nx,y\n", {}, "line 2: no known shape .* `q`, `a`; .*--columns"),
    "too many cells": ("a.csv", "prompt,answer\nx,y,z\n", {}, "line 2: expected 2 cells, .* 3 came"),
    "broken quotes": ("a.tsv", 'prompt\tanswer\n"x" is\ty\n', {}, "line 2: the table's quotes are broken"),
    "empty table": ("a.csv", "\n", {}, "a.csv: the table is empty"),
    "two columns of a name": ("a.csv", "prompt,prompt\nx,y\n", {}, "two columns have one name"),
    "broken array": ("a.json", '[{"prompt": "a"},\n {"prompt": ]', {}, "line 2: the JSON is broken"),
    "number": ("a.json", "3", {}, "expected an array of facts or one object, but int came"),
    "array of numbers": ("a.json", "[3]", {}, "record 1: expected an object, but int came"),
    "wrong type in a record": ("a.json", json.dumps([KNOWN, {**KNOWN, "attribute": 3}]), {}, "record 2, field `attr"),
    "missing in a record": ("a.jsonl", lines({"src": "Who?"}), {}, "line 1, field `answers`: it is missing"),
    "relation without a slot": (
        "a.json",
        json.dumps(LRE | {"prompt_templates": ["The capital is"]}),
        {},
        r"field `prompt_templates\[0\]`: expected a template with \{\}",
    ),
    "arguments of another shape": ("a.jsonl", lines({"doc": {}, "arguments": 3}), {}, "field `arguments`: expected"),
    "answer in a field within": (
        "a.jsonl",
        FILES["trivia.jsonl"],
        {},
        "line 1, field `answer`: .*dict.*as in --columns prompt=question,answer=answer.value",
    ),
    "no facts": ("a.csv", "prompt\nx\n", {"limit": 0}, "At least one fact has to be asked, but 0"),
    "limit and sample": ("a.csv", "prompt\nx\n", {"limit": 1, "sample": 1}, "give one of the two"),
}


@pytest.mark.parametrize(("name", "text", "how", "sentence"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_understood_is_named_with_its_place(file, name, text, how, sentence):
    with pytest.raises(SuiteError, match=sentence):
        file(name, text, **how)


def test_a_folder_is_answered_with_the_files_in_it(folder):
    with pytest.raises(SuiteError, match=r"this is a folder; name one of those in it: chats\.jsonl, .*, and \d+ more"):
        load_suite(folder)


def test_blanks_behind_commas_are_no_part_of_cells_where_the_header_has_them(file):
    assert file("a.csv", "prompt, answer\nRome is in, Italy\n").prompts[0].answers == ("Italy",)
    assert file("b.csv", "prompt,answer\nRome is in, Italy\n").prompts[0].answers == (" Italy",)


# Some of the facts


@pytest.mark.parametrize("how", [{"limit": 3}, {"sample": 3, "seed": 5}], ids=["limit", "sample"])
def test_some_facts_keep_their_variants_and_their_order(how):
    whole, some = load_suite("capitals-20"), load_suite("capitals-20", **how)
    keys = list(whole.facts)
    assert len(some.facts) == 3
    assert sorted(some.facts, key=keys.index) == list(some.facts)
    facts = [p for p in some.prompts if p.prompt_id == "pos"]
    assert [(p.fact_index, p.prompt_variant) for p in facts] == [
        (i, v) for i in range(3) for v in ("orig", "no_filler")
    ]
    assert {(p.text, p.answers) for p in facts} <= {(p.text, p.answers) for p in whole.prompts}


def test_a_sample_is_the_same_every_time_and_part_of_a_larger_one():
    samples = [load_suite("capitals-20", sample=n, seed=5) for n in (4, 4, 9)]
    assert samples[0].sha256 == samples[1].sha256
    assert set(samples[0].facts) < set(samples[2].facts)
    whole = load_suite("capitals-20")
    assert len({load_suite(whole, sample=4, seed=seed).facts for seed in range(8)}) > 1


def test_every_fact_is_drawn_about_equally_often():
    # Each of 20 facts is in a sample of 5 with p = 1/4: over 400 seeds 100 times, sd 8.7; 5 sd either way.
    whole = load_suite("capitals-20")
    drawn = [fact for seed in range(400) for fact in load_suite(whole, sample=5, seed=seed).facts]
    assert all(abs(drawn.count(fact) - 100) < 44 for fact in whole.facts)


def test_what_was_taken_is_written_down_and_a_control_goes_with_its_fact():
    first = load_suite("capitals-20", limit=2)
    assert first.prompts[-1].prompt_id == "ctl"
    assert first.description.endswith("and one control (the first 2 of 20 facts)")
    assert first.notes == ("suite capitals-20: the first 2 of 20 facts",)
    seed = next(s for s in range(99) if "Germany→Berlin" not in load_suite("capitals-20", sample=2, seed=s).facts)
    without = load_suite("capitals-20", sample=2, seed=seed)
    assert {p.prompt_id for p in without.prompts} == {"pos"}
    assert without.notes == (
        f"suite capitals-20: 2 of 20 facts, sampled with seed {seed}",
        "suite capitals-20: 1 control is left out, since the fact that it would be compared with is",
    )


def test_a_suite_with_no_more_facts_than_that_is_taken_whole():
    assert load_suite("berlin", limit=1) == load_suite("berlin")
    assert load_suite(load_suite("capitals"), sample=9) == load_suite("capitals")


# Where it is used


def test_a_mistake_in_a_suite_is_said_before_the_tensor_library_is_loaded(tmp_path):
    (tmp_path / "broken.toml").write_text("[[facts]]\nprompt = 3\n", encoding="utf-8")
    script = (
        "import sys\nfrom layerscope.cli.main import app\n"
        "try:\n    app(['probe', '--suite', 'broken.toml'], standalone_mode=False)\n"
        "finally:\n    print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert "broken.toml, line 1, fact 1, field `prompt`" in done.stderr


def calls() -> list[str]:
    return re.findall(
        r"^layerscope probe.*$|(?<=`)layerscope probe --suite[^`]*", DOCS.read_text("utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize("call", calls())
def test_every_call_of_the_page_loads(folder, monkeypatch, call):
    monkeypatch.chdir(folder)
    words = shlex.split(call)[2:]
    given = dict(zip(words[::2], words[1::2], strict=True))
    numbers = {name: int(given[f"--{name}"]) for name in ("limit", "sample", "seed") if f"--{name}" in given}
    assert load_suite(given["--suite"], columns=given.get("--columns"), **numbers).prompts
