"""Our rows of a small trained model against those that an independent implementation published for it.

Where the two differ is listed here, by name:

* `JACCARD_OF_FACT_4` (caveat C6): the next-token table gives the overlaps of the last fact to all facts alike. The
  `-rawlens` table has the right ones.
* `NEARLY_ONE_HOT`: the entropy of a row that is all but sure of one token, and the mass it leaves to the tokens not
  listed, were published from a softmax in float32, which keeps about four digits of them. A float64 computation says
  that ours are nearer.

The whole set of files, JSON included, is compared in test_tiny_reference.py.
"""

import csv
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import layerscope
from rounding import PUBLISHED

RELATIVE, ABSOLUTE = PUBLISHED, 1e-6
"""Two float32 passes: `PUBLISHED` says how far apart a probability may be, and 1e-6 is that of one of a hundredth."""
JACCARD_OF_FACT_4 = ["topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50"]
NEARLY_ONE_HOT = 0.99
"""Top probability from which entropy and rest mass are compared less strictly."""
ABSOLUTE_NEARLY_ONE_HOT = 2e-5
BLURRED = ["entropy", "entropy_bits", "teacher_entropy_bits", "rest_mass"]
NUMBERS = [
    "p_top1", "p_top5", "p_answer", "answer_minus_uniform", "kl_to_final_bits", "cos_to_final", "cos_to_answer",
    "cos_to_prompt_max", "echo_mass_prompt", "answer_mass", "answer_minus_echo_mass", "mass_ratio_ans_over_prompt",
    "topk_prompt_mass@50", "control_margin", "resid_norm_ratio", "delta_resid_cos", "answer_logit_gap",
    "answer_vs_top1_gap",
]  # fmt: skip
EXACT = [
    "answer_rank", "copy_collapse", "copy_strict@0.95", "copy_strict@0.7", "copy_strict@0.8", "copy_strict@0.9",
    "copy_soft_k1@0.5", "copy_soft_k2@0.5", "copy_soft_k3@0.5", "entropy_collapse", "is_answer", "semantic_margin_ok",
    "geom_crossover",
]  # fmt: skip
Key = tuple[int | None, str, str, int, str]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference" / "tiny-qwen3"


@pytest.fixture(scope="module")
def ours(reference: Path) -> pl.DataFrame:
    return layerscope.probe(
        reference / "model", suite="capitals", lenses=("next_norm", "raw"), protocol="published", positions="all"
    ).rows


def _at_next(ours: pl.DataFrame) -> dict[Key, Row]:
    """Our rows at the last position, by what the published tables are keyed with and the lens."""
    return {(*_prompt(r), r["layer"], r["lens"]): r for r in ours.filter("is_next").to_dicts()}


def _prompt(row: Row) -> tuple[int | None, str, str]:
    index = row["fact_index"]
    return None if index in ("", None) else int(index), row["prompt_id"], row["prompt_variant"]


def _published(reference: Path, table: str) -> list[Row]:
    with (reference / "published" / f"output-tiny-qwen3-{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, escapechar="\\"))


def _value(cell: str) -> float | bool | None:
    if cell in ("True", "False"):
        return cell == "True"
    return None if cell == "" else float(cell)


def _near(published: float | None, found: float | None, absolute: float = ABSOLUTE) -> bool:
    if published is None or found is None:
        return published is found
    return math.isclose(found, published, rel_tol=RELATIVE, abs_tol=absolute)


def _absolute(name: str) -> float:
    """A difference of two float32 logits of size 8 to 32 cannot be had more exactly than 1e-5."""
    return 1e-5 if name in ("answer_logit_gap", "answer_vs_top1_gap") else ABSOLUTE


def _blur(row: Row) -> float:
    return ABSOLUTE_NEARLY_ONE_HOT if row["p_top1"] > NEARLY_ONE_HOT else ABSOLUTE


def _entropy_and_top_differ(theirs: Row, own: Row, listed: int) -> list[str]:
    """Which of the columns that next-token and records tables share differ; `listed` tokens are written."""
    differing = [
        name for name in ("entropy", "entropy_bits") if not _near(float(theirs[name]), own["entropy_bits"], _blur(own))
    ]
    if not _near(float(theirs["rest_mass"]), max(0.0, 1 - sum(own["top_probs"][:listed])), _blur(own)):
        differing.append("rest_mass")
    for i in range(20):
        name, probability = theirs[f"top{i + 1}"], _value(theirs[f"prob{i + 1}"])
        if i >= listed:
            agree = name == "" and probability is None
        else:
            agree = name == own["top_tokens"][i] and _near(probability, own["top_probs"][i])
        if not agree:
            differing.append(f"top{i + 1}")
    return differing


def test_the_next_token_table_is_ours(reference, ours):
    at_next, table = _at_next(ours), _published(reference, "pure-next-token")
    assert len(table) == 99
    differing = []
    for theirs in table:
        key = (*_prompt(theirs), int(theirs["layer"]), "next_norm")
        own = at_next[key]
        names = _entropy_and_top_differ(theirs, own, 5)
        last = at_next[(*key[:3], 8, "next_norm")]
        if not _near(float(theirs["teacher_entropy_bits"]), own["teacher_entropy_bits"], _blur(last)):
            names.append("teacher_entropy_bits")
        names += [name for name in NUMBERS if not _near(_value(theirs[name]), own[name], _absolute(name))]
        names += [name for name in EXACT if _value(theirs[name]) != own[name]]
        names += [name for name in ("fact_key", "prompt_id") if theirs[name] != (own[name] or "")]
        differing += [(key, name) for name in names]
    assert differing == []


def test_every_column_of_the_next_token_table_is_compared(reference):
    names = set(_published(reference, "pure-next-token")[0])
    listed = {f"{what}{i}" for what in ("top", "prob") for i in range(1, 21)}
    keys = {"fact_key", "fact_index", "prompt_id", "prompt_variant", "layer", "pos", "token"}
    assert names - listed - keys - set(NUMBERS) - set(EXACT) - set(BLURRED) - set(JACCARD_OF_FACT_4) == {
        "kl_to_final_bits_norm_temp"
    }


def test_the_next_token_tables_overlaps_are_those_of_fact_4(reference, ours):
    at_next = _at_next(ours)
    right = dict.fromkeys(JACCARD_OF_FACT_4, 0)
    for theirs in _published(reference, "pure-next-token"):
        index, *variant = _prompt(theirs)
        for name in JACCARD_OF_FACT_4:
            layer = int(theirs["layer"])
            of_fact_4 = at_next[(4 if variant[0] == "pos" else None, *variant, layer, "next_norm")]
            assert _near(_value(theirs[name]), of_fact_4[name]), (index, variant, layer, name)
            right[name] += _near(_value(theirs[name]), at_next[(index, *variant, layer, "next_norm")][name])
    # Of 99 rows the fact's own overlap is met only where both agree: a guard against overlaps that never vary.
    assert all(count < 60 for count in right.values()), right


def test_the_raw_lens_table_is_ours(reference, ours):
    at_next, table = _at_next(ours), _published(reference, "pure-next-token-rawlens")
    assert len(table) == 99
    differing = []
    for theirs in table:
        key = (*_prompt(theirs), int(theirs["layer"]))
        norm, raw = at_next[(*key, "next_norm")], at_next[(*key, "raw")]
        names = []
        for lens, own in (("norm", norm), ("raw", raw)):
            names += [
                f"{name}_{lens}"
                for name in ("p_top1", "p_answer")
                if not _near(float(theirs[f"{name}_{lens}"]), own[name])
            ]
            if not _near(float(theirs[f"entropy_bits_{lens}"]), own["entropy_bits"], _blur(own)):
                names.append(f"entropy_bits_{lens}")
            exact = {"top1_token_id": own["top1_id"], "top1_token_str": own["top1"], "answer_rank": own["answer_rank"]}
            names += [f"{name}_{lens}" for name, value in exact.items() if theirs[f"{name}_{lens}"] != str(value)]
        gap = norm["entropy_bits"] - norm["teacher_entropy_bits"]
        if not _near(float(theirs["entropy_gap_bits"]), gap, ABSOLUTE_NEARLY_ONE_HOT):
            names.append("entropy_gap_bits")
        names += [name for name in JACCARD_OF_FACT_4 if not _near(_value(theirs[name]), norm[name], 1e-12)]
        if _value(theirs["norm_only_semantics"]) != (norm["is_answer"] and not raw["is_answer"]):
            names.append("norm_only_semantics")
        differing += [(key, name) for name in names]
    assert differing == []


def test_the_records_table_is_ours_at_every_position(reference, ours):
    rows = ours.filter(pl.col("lens") == "next_norm").to_dicts()
    by_position = {(*_prompt(r), r["layer"], r["position"]): r for r in rows}
    table = _published(reference, "records")
    differing = []
    for theirs in table:
        key = (*_prompt(theirs), int(theirs["layer"]), int(theirs["pos"]))
        own = by_position.pop(key)
        names = _entropy_and_top_differ(theirs, own, 20 if theirs["top20"] else 5)
        if theirs["token"] != own["token"]:
            names.append("token")
        differing += [(key, name) for name in names]
    assert differing == []
    assert len(table) == 1638 and not by_position


def test_of_a_nearly_one_hot_row_our_entropy_is_nearer_to_float64(reference, ours):
    """The model's own output for the first prompt, computed in float64 by Transformers from end to end."""
    from transformers import AutoModelForCausalLM

    own = _at_next(ours)[(0, "pos", "orig", 8, "next_norm")]
    prompt = ours.filter(
        (pl.col("fact_index") == 0) & (pl.col("prompt_variant") == "orig") & (pl.col("layer") == 0)
        & (pl.col("lens") == "raw")
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(reference / "model", dtype=torch.float64).eval()
    with torch.inference_mode():
        log_p = model(torch.tensor([prompt["token_id"].to_list()])).logits[0, -1].log_softmax(-1)
    assert log_p.dtype == torch.float64
    p = log_p.exp()
    assert p.max() > NEARLY_ONE_HOT
    theirs = next(
        row
        for row in _published(reference, "pure-next-token")
        if _prompt(row) == (0, "pos", "orig") and row["layer"] == "8"
    )
    truth = {"entropy_bits": -(p * log_p).sum().item() / math.log(2), "rest_mass": 1 - p.topk(5).values.sum().item()}
    found = {"entropy_bits": own["entropy_bits"], "rest_mass": 1 - own["p_top5"]}
    for name, value in truth.items():
        assert abs(found[name] - value) < 0.05 * abs(float(theirs[name]) - value), name
        assert found[name] == pytest.approx(value, rel=PUBLISHED), name
