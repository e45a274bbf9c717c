"""Lenses on their own tasks: files as published, states where they are read, scores by hand and by Transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import layerscope
from layerscope import CausalLM, read_word_tasks, score_lenses
from layerscope.analysis.pass_at import ahead, pass_at
from layerscope.analysis.task_scores import Ahead, TaskScore, sides
from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, SuiteError
from layerscope.probing.lens_tasks import _read
from layerscope.suite.word_tasks import WordItem

FACTS = [("Germany", "Berlin"), ("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo")]


def hops(folder: Path, name: str = "lens-eval-multihop.json") -> Path:
    """Capitals as two words that a prompt leads to, in the published layout; the last word has no token of its own."""
    items = [
        {"prompt": f"The capital of {country} is called ", "target": city, "intermediates": [city, country]}
        for country, city in FACTS
    ]
    items[-1]["intermediates"].append("Wolkenkuckucksheim")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"items": items}))
    return folder


def test_several_words_of_an_item_count_as_a_share_and_foreign_ones_as_often_as_they_are_asked_for():
    """Three items, three words, two layers and the output; the first word is asked for twice."""
    ranks = np.full((3, 3, 3), 9)
    ranks[0, 0, 1] = ranks[1, 0, 0] = ranks[1, 2, 2] = 1
    found = pass_at("logit", ranks, [[0, 1], [0], [2]], 1)
    assert found.gains == (0.5, 1.0, 0.0) and found.passed == 0.5
    assert found.others == 0.0 and found.at_output == 0.0
    other = pass_at("logit", np.full((3, 3, 3), 9), [[0, 1], [0], [2]], 1)
    difference, (low, high) = ahead(found, other)
    assert (difference, low, high) == (0.5, 0.0, 1.0)  # of three items some draws have the last alone, some the second
    ranks[2, 0, 0] = 1  # asked for by both of the others, and word 1 by one of them
    found = pass_at("logit", ranks, [[0, 1], [0], [2]], 1)
    assert found.gains == (0.5, 1.0, pytest.approx(-2 / 3)) and found.others == pytest.approx((2 / 3) / 3)


def test_the_rank_in_the_band_is_a_median_over_layers_and_no_best_of_them():
    """Eight layers, of which the band is the third to the sixth."""
    ranks = np.array([[[1, 1, 4, 16, 64, 256, 1, 1, 1], [9] * 9], [[9] * 9, [3] * 9], [[9] * 9, [5] * 9]])
    found = pass_at("logit", ranks, [[0], [1], [1]], 3)
    assert found.band == (3, 6)
    assert found.band_rank == pytest.approx(5.0)  # of 40, 3 and 5
    assert (found.passed, found.in_band) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_a_state_is_read_in_front_of_the_target_whatever_its_space_belongs_to():
    tokens = CausalLM.open(BUNDLED, device="cpu").tokens
    item = WordItem("a", "The capital of Germany is called ", (("Berlin",),), "Berlin")
    assert _read(tokens, item, "before_target") == tokens.input_ids("The capital of Germany is called")
    quoted = WordItem("b", 'The capital of Germany is "', (("Berlin",),), "Berlin")
    assert _read(tokens, quoted, "before_target") == tokens.input_ids('The capital of Germany is "')
    lines = WordItem("c", "A couplet:\nThe one\nAnd the", (("x",),), None)
    assert _read(tokens, lines, "last_newline") == tokens.input_ids("A couplet:\nThe one\n")
    assert _read(tokens, lines, "last_token") == tokens.input_ids("A couplet:\nThe one\nAnd the")


def test_published_names_say_where_states_are_read_and_which_words_are_keys(tmp_path: Path):
    def written(name: str, **item: object) -> None:
        given = {"prompt": "a\nb", "intermediates": ["12", "division"], **item}
        (tmp_path / name).write_text(json.dumps({"items": [given]}))

    written("lens-eval-order-ops.json", target="3")
    written("lens-eval-poetry.json")
    written("lens-eval-typo.json")
    (tmp_path / "own.json").write_text(
        json.dumps({"read_at": "last_newline", "items": [{"prompt": "a\nb", "intermediates": [["big", "large"]]}]})
    )
    found = {task.name: task for task in read_word_tasks(tmp_path)}
    newline = dict.fromkeys(("poetry", "own"), "last_newline")
    places = {"order-ops": "before_target", "typo": "last_token"} | newline
    assert {name: task.read_at for name, task in found.items()} == places
    number, operation = found["order-ops"].items[0].words
    assert number == ("12", "twelve") and {"division", "divided", "/"} <= set(operation)
    assert found["typo"].items[0].words == (("12",), ("division",))
    assert found["own"].items[0].words == (("big", "large"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a list of `items`"),
        ("{", "cannot be read as JSON"),
        ('{"items": [{"intermediates": ["a"]}]}', "item 0: `prompt` should be a text"),
        ('{"items": [{"prompt": "a"}]}', "item 0: `intermediates` should be a list"),
        ('{"items": [{"prompt": "a", "intermediates": [[]]}]}', "words that count alike"),
        ('{"items": [{"prompt": "a", "intermediates": ["b"]}], "read_at": "first"}', "should be one of before_target"),
        ('{"items": [{"prompt": "a", "intermediates": ["b"]}], "read_at": "last_newline"}', "item 0 has no line break"),
        ('{"items": [{"prompt": "a", "target": "b", "intermediates": ["b"]}, {"prompt": "a", "intermediates": ["b"]}]}',
         "item 1 has no `target`"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_task_is_named_with_what_is_wrong(text: str, message: str, tmp_path: Path):
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(SuiteError, match=rf"tasks\.json: .*{message}"):
        read_word_tasks(tmp_path)


def test_a_folder_without_tasks_is_refused(tmp_path: Path):
    with pytest.raises(SuiteError, match=r"no \*\.json in it"):
        read_word_tasks(tmp_path)


def test_scores_are_those_of_transformers(tmp_path: Path):
    found = score_lenses(tasks=hops(tmp_path), lenses="logit,tuned", ks=(1, 30))
    (task,) = found.tasks
    assert (task.task, task.n_items, task.n_scored, task.n_words) == ("multihop", 4, 4, 9)
    assert task.skipped == ("Wolkenkuckucksheim",)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    best = np.empty((len(FACTS), 2))
    for i, (country, city) in enumerate(FACTS):
        ids = tokenizer(f"The capital of {country} is called", return_tensors="pt").input_ids
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states
            logits = model.lm_head(torch.stack([model.model.norm(state[0, -1]) for state in states[1:-1]]))
        for j, word in enumerate((city, country)):
            forms = (tokenizer(form, add_special_tokens=False).input_ids for form in (word, f" {word}"))
            own = logits[:, [form[0] for form in forms if len(form) == 1]].amax(1, keepdim=True)
            best[i, j] = int((1 + (logits > own).sum(1)).min())
    for score in task.scores:
        if score.lens == "logit":
            assert score.passed == pytest.approx((best <= score.k).mean())
    assert {score.lens for score in task.scores} == {"logit", "tuned", "tuned_shuffled"}
    logit, tuned = (next(s for s in task.scores if (s.lens, s.k) == (lens, 30)) for lens in ("logit", "tuned"))
    beside = next(one for one in task.over_logit if (one.lens, one.k) == ("tuned", 30))
    assert beside.difference == pytest.approx(tuned.gain - logit.gain)


def test_what_cannot_be_scored_is_refused(tmp_path: Path):
    with pytest.raises(SuiteError, match="ks are ranks"):
        score_lenses(tasks=hops(tmp_path), ks=(0,))
    (tmp_path / "one.json").write_text(json.dumps({"items": [{"prompt": "a", "intermediates": ["Berlin", "Paris"]}]}))
    with pytest.raises(SuiteError, match="'one': every item's words are held against other items'"):
        score_lenses(tasks=tmp_path / "one.json")
    with pytest.raises(SuiteError, match="no such file or folder; give a file of tasks"):
        score_lenses(tasks=tmp_path / "nowhere")
    (tmp_path / "lenses").mkdir()
    with pytest.raises(
        LensError, match=r"No fitted lens of .* to score was found in '.*lenses'; give a folder with one"
    ):
        score_lenses(tasks=hops(tmp_path / "t"), lens_dir=tmp_path / "lenses")


def test_tasks_fall_to_the_side_that_their_interval_leaves():
    def task(name: str, low: float, high: float) -> TaskScore:
        one = Ahead("jacobian", 10, (low + high) / 2, (low, high))
        return TaskScore(name, "last_token", (), (one,), 1, 1, 1, ())

    tasks = [task("typo", 0.1, 0.3), task("poetry", -0.1, 0.1), task("hops", -0.3, -0.1), task("edge", 0.0, 0.2)]
    assert sides(tasks, "jacobian", 10) == (["typo"], ["hops"], ["poetry", "edge"])
    assert sides(tasks, "jacobian", 5) == ([], [], [])


def test_the_command_prints_tasks_and_in_which_a_lens_is_ahead(tmp_path: Path):
    told = layerscope("lens", "score", str(BUNDLED / "lenses"), "--tasks", str(hops(tmp_path)), cwd=tmp_path)
    assert "multihop · 4 of 4 items · read in front of the target · 1 of 9 words are no token" in " ".join(
        told.stdout.split()
    )
    assert "tuned gains over other words, k = 10, beside logit: " in told.stdout
    refused = layerscope("lens", "score", str(BUNDLED / "lenses"), cwd=tmp_path)
    assert refused.returncode == 2 and "name a folder of them, or a file, with --tasks" in refused.stderr
