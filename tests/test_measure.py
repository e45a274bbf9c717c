"""The columns of a run on a model made by hand: each against a direct computation, null where nothing can be said."""

import math
from collections.abc import Set
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerscope.lenses import LENS_NAMES, Lens, bind_lenses
from layerscope.readout.measure import measure
from layerscope.readout.prompt_query import PromptQuery
from layerscope.readout.whole_answers import further_rows
from layerscope.record.protocol import PROTOCOLS
from layerscope.unembedding import HeadTransform, Norm, Unembedding
from properties import examples
from rounding import DOUBLE, FLOAT32, SINGLE, ReadoutError, of_readout

D_MODEL, D_VOCAB, N_LAYERS = 6, 80, 3
BOS, COMMA, DOT = 1, 2, 3
BERLIN, BERLIN_TOO, PARIS, TWIN = 20, 21, 22, 5
ASKED = (
    PromptQuery((BOS, 10, 11, COMMA, 10, 12), 1, (0, 1, 2, 3, 4, 5), (BERLIN, BERLIN_TOO), BERLIN, None, False),
    PromptQuery((BOS, 13, 14, 10), 1, (3,), (), None, None, False),  # the answer could not be aligned
    PromptQuery((BOS, 15, 16), 1, (2,), (PARIS,), PARIS, BERLIN, True),
    PromptQuery(
        (BOS, 15, 17), 1, (2,), (PARIS,), PARIS, None, True
    ),  # the fact it is held against could not be aligned
    PromptQuery((BOS, 15, 17), 1, (2,), (), None, BERLIN, True),  # its own answer could not be aligned
    PromptQuery((BOS, COMMA, DOT), 1, (2,), (BERLIN,), BERLIN, None, False),  # nothing but punctuation
)
N_ROWS = sum(len(asked.positions) for asked in ASKED)
AT_NEXT_OF_THE_HEADLINE = [
    "kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", "js_divergence_bits", "l1_prob_diff", "kl_to_final_bits_norm_temp",
]  # fmt: skip
WHOLE = ["answer_log_prob_nats_all", "answer_rank_all", "answer_logit_gap_all"]
OF_MODEL = ["model_top1_rank", "p_model_top1", "model_top1_logit_gap"]
OF_ANSWER = [
    "answer_id", "p_answer", "answer_rank", "is_answer", "answer_minus_uniform", "semantic_margin_ok",
    "answer_logit_gap", "answer_vs_top1_gap", "answer_mass", "answer_minus_echo_mass",
    "mass_ratio_ans_over_prompt", "cos_to_answer", "geom_crossover", *WHOLE,
]  # fmt: skip
ALIKE = {"rtol": 1e-4, "atol": 1e-5}
"""Two float32 readings of one row: logits below 20 in products of 6 terms, 8 x 20 x 2^-24 twice, and twice that for a
log-probability or a divergence; what is added or divided, again."""
KEYS = ["prompt", "lens", "layer", "position", "token_id", "is_next", "finite", "any_nan", "any_inf"]


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _head(**options: Any) -> Unembedding:
    """Rows of length one, so that a residual along one of them has it on top; `TWIN` has the row of `PARIS`."""
    weight = torch.nn.functional.normalize(_random(0, D_VOCAB, D_MODEL), dim=-1)
    weight[TWIN] = weight[PARIS]
    return Unembedding.of(weight, NORMS[-1], **options)


NORMS = tuple(Norm("rms", _random(10 + i, D_MODEL).abs() + 0.5, None, 1e-6, f"norm {i}") for i in range(N_LAYERS + 1))
LENSES = bind_lenses(LENS_NAMES, final_norm=NORMS[-1], next_norms=NORMS)


def _residuals() -> torch.Tensor:
    values = _random(1, N_LAYERS + 1, N_ROWS, D_MODEL) * 3
    # After the norm's gain the last layer points along an answer: the first prompt's, and both controls' own.
    for row, token in ((5, BERLIN), (7, PARIS), (8, BERLIN)):
        values[-1, row] = _head().weight.tensor[token] / NORMS[-1].gain
    return values


def _trivial(ids: Set[int]) -> set[int]:
    return set(ids) & {COMMA, DOT}


def _measure(
    residuals: torch.Tensor | None = None,
    *,
    lenses: tuple[Lens, ...] = LENSES,
    asked: tuple[PromptQuery, ...] = ASKED,
    head: Unembedding | None = None,
    protocol: str = "standard",
    **options: Any,
) -> pl.DataFrame:
    columns = measure(
        _residuals() if residuals is None else residuals,
        lenses,
        asked,
        head or _head(),
        protocol=PROTOCOLS[protocol],
        trivial=_trivial,
        **options,
    )
    return pl.DataFrame(columns)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return _measure()


@pytest.fixture(scope="module")
def rows(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, each with its distribution over the vocabulary, directly in float64, under `p`."""
    residuals = _residuals()
    starts = np.cumsum([0, *(len(asked.positions) for asked in ASKED)])
    found = table.to_dicts()
    for row in found:
        asked = ASKED[row["prompt"]]
        at = int(starts[row["prompt"]]) + asked.positions.index(row["position"])
        residual = residuals[row["layer"], at].double()
        norm = {"logit": NORMS[-1], "next_norm": NORMS[row["layer"]], "raw": None}[row["lens"]]
        row["residual"], row["decoded"] = residual, residual
        if norm is not None:
            row["decoded"] = residual / (residual.square().mean() + norm.eps).sqrt() * norm.gain
        row["log_p"] = (_head().weight.tensor.double() @ row["decoded"]).log_softmax(-1)
        row["p"] = row["log_p"].exp()
        row["asked"] = asked
        row["read"] = set(asked.token_ids[1 : row["position"] + 1]) - {COMMA, DOT}
    return found


def _error(*rows: dict[str, Any]) -> ReadoutError:
    """Of float32 logits: the norm before the head adds its own few roundings to the product's."""
    return of_readout(_head(), *(row["decoded"][None] for row in rows)) * 2


def _nulls(table: pl.DataFrame, column: str) -> list[bool]:
    return table[column].is_null().to_list()


def test_rows_are_ordered_by_prompt_lens_layer_and_position(table):
    due = [
        (i, lens.name, layer, position, asked.token_ids[position], position == len(asked.token_ids) - 1)
        for i, asked in enumerate(ASKED)
        for lens in LENSES
        for layer in range(N_LAYERS + 1)
        for position in asked.positions
    ]
    assert table.select(KEYS[:6]).rows() == due
    assert table["finite"].all() and not table["any_nan"].any() and not table["any_inf"].any()


def test_the_distributions_numbers_equal_a_direct_computation(rows):
    final = {(r["prompt"], r["position"]): r for r in rows if r["lens"] == "logit" and r["layer"] == N_LAYERS}
    for r in rows:
        p, q = r["p"], final[r["prompt"], r["position"]]
        top = p.sort(descending=True).values
        error = _error(r, q)
        rel, kl = error.relative, (p * (p / q["p"]).log2()).sum().item()
        assert r["entropy_bits"] == pytest.approx(-(p * p.log2()).sum().item(), rel=rel)
        assert r["teacher_entropy_bits"] == pytest.approx(-(q["p"] * q["p"].log2()).sum().item(), rel=rel)
        assert r["kl_to_final_bits"] == pytest.approx(kl, rel=rel, abs=error.bits)
        assert r["p_top1"] == pytest.approx(top[0].item(), rel=rel)
        assert r["p_top5"] == pytest.approx(top[:5].sum().item(), rel=rel)
        assert r["rest_mass"] == pytest.approx(1 - top[:20].sum().item(), abs=rel)
        assert len(r["top_ids"]) == 20 and r["top_ids"][0] == r["top1_id"]
        assert r["top_probs"] == pytest.approx(p[r["top_ids"]].tolist(), rel=rel)
        assert r["top_probs"] == pytest.approx(top[:20].tolist(), rel=rel)
        assert r["min_prob"] == pytest.approx(p.min().item(), rel=rel)
        largest = (_head().weight.tensor.double() @ r["decoded"]).abs().max().item()
        assert r["max_abs_logit"] == pytest.approx(largest, abs=error.logit)
        assert r["entropy_collapse"] == (r["entropy_bits"] <= 1.0)
        assert r["kl_saturated"] is False


def test_after_the_last_block_the_logit_lens_is_the_model(rows):
    last = [r for r in rows if r["lens"] == "logit" and r["layer"] == N_LAYERS]
    assert len(last) == N_ROWS
    for r in last:
        # What the docstring of `kl_to_final_bits` says of its rounding: 7 u times entropy plus cross-entropy.
        assert r["kl_to_final_bits"] == pytest.approx(0.0, abs=7 * FLOAT32 * 2 * r["entropy_bits"])
        assert r["entropy_bits"] == pytest.approx(r["teacher_entropy_bits"], rel=_error(r).relative)
        # Sums of squares of `D_VOCAB` float32 products, in float64.
        assert r["cos_to_final"] == pytest.approx(1.0, abs=SINGLE)
        assert r["cos_to_final_centered"] == pytest.approx(1.0, abs=SINGLE)


def test_after_the_last_block_next_norm_equals_logit(table):
    window_over_depth = ["topk_jaccard_consecutive@50", "copy_soft_k2@0.5", "copy_soft_k3@0.5"]
    a, b = (
        table.filter((pl.col("lens") == lens) & (pl.col("layer") == N_LAYERS)).drop(
            "lens", *window_over_depth, *AT_NEXT_OF_THE_HEADLINE
        )
        for lens in ("logit", "next_norm")
    )
    for name in a.columns:
        if a[name].dtype == pl.Float64:
            assert a[name].is_null().equals(b[name].is_null())
            np.testing.assert_allclose(a[name].drop_nulls(), b[name].drop_nulls(), **ALIKE, err_msg=name)
        elif name != "top_probs":
            assert a[name].equals(b[name]), name


def test_the_answers_numbers_equal_a_direct_computation(rows):
    seen = set()
    for r in rows:
        if not r["asked"].answer_ids:
            continue
        p, log_p = r["p"], r["log_p"]
        best = max(r["asked"].answer_ids, key=lambda i: p[i].item())
        # Rounding cannot tell the twins apart, which are one by definition.
        larger = [v for v in range(D_VOCAB) if p[v] > p[best] and {v, best} != {TWIN, PARIS}]
        assert r["answer_id"] == best
        assert r["p_answer"] == r["answer_mass"] == pytest.approx(p[best].item(), rel=_error(r).relative)
        assert r["answer_rank"] == 1 + len(larger)
        assert r["is_answer"] == (not larger)
        assert r["answer_minus_uniform"] == pytest.approx(p[best].item() - 1 / D_VOCAB, abs=_error(r).relative)
        order = log_p.sort(descending=True).values
        if larger:
            assert r["answer_logit_gap"] is None
            assert r["answer_vs_top1_gap"] == pytest.approx((log_p[best] - order[0]).item(), abs=_error(r).log_prob)
        else:
            assert r["answer_vs_top1_gap"] is None
            if r["top1_id"] == best:
                assert r["answer_logit_gap"] == pytest.approx((order[0] - order[1]).item(), abs=_error(r).log_prob)
            else:
                assert r["answer_logit_gap"] is None
        seen.add((not larger, r["top1_id"] == best, r["answer_id"]))
    assert (True, True, BERLIN) in seen and (False, False, BERLIN_TOO) in seen
    assert (True, False, PARIS) in seen  # a tie with a smaller id: rank 1, but not the token on top


def test_where_the_answer_is_unresolved_whatever_needs_it_is_null(table):
    unresolved = table.filter(pl.col("prompt").is_in([1, 4]))
    for name in OF_ANSWER + OF_MODEL:
        assert unresolved[name].is_null().all(), name
    for name in set(table.columns) - {*OF_ANSWER, *OF_MODEL, "control_margin", "control_top2_logit_gap"}:
        due = {"topk_jaccard_consecutive@50": unresolved["layer"] == 0}.get(name)
        if name in ("topk_jaccard_raw_norm@50", "resid_norm_ratio", "delta_resid_cos"):
            due = unresolved["lens"] == "raw"
        if name in AT_NEXT_OF_THE_HEADLINE:
            due = (unresolved["lens"] != "logit") | ~unresolved["is_next"]
        if name == "kl_to_final_bits_norm_temp":  # no temperatures were given
            due = pl.Series([True] * len(unresolved))
        assert unresolved[name].is_null().sum() == (0 if due is None else due.sum()), name


def test_whether_the_answer_stands_out_is_not_judged_under_the_raw_lens(table):
    resolved = table.filter(pl.col("answer_id").is_not_null())
    raw = resolved["lens"] == "raw"
    assert resolved["semantic_margin_ok"].is_null().equals(raw.rename("semantic_margin_ok"))
    judged = resolved.filter(~raw)
    due = (judged["answer_rank"] == 1) & (judged["answer_minus_uniform"] >= 0.002)
    assert judged["semantic_margin_ok"].to_list() == due.to_list()
    assert due.any() and not due.all()


def test_what_a_norm_did_is_said_of_lenses_with_a_norm_alone(rows):
    for r in rows:
        residual, decoded = r["residual"], r["decoded"]
        assert r["raw_resid_norm"] == pytest.approx(residual.norm().item(), rel=SINGLE)
        if r["lens"] == "raw":
            assert r["resid_norm_ratio"] is None and r["delta_resid_cos"] is None
        else:
            assert r["resid_norm_ratio"] == pytest.approx((decoded.norm() / residual.norm()).item(), rel=2 * SINGLE)
            cosine = torch.cosine_similarity(residual, decoded, dim=0).item()
            assert r["delta_resid_cos"] == pytest.approx(cosine, abs=SINGLE)


def test_masses_are_sums_over_the_prompts_content_read_so_far(rows):
    for r in rows:
        echo = sum(r["p"][i].item() for i in r["read"])
        assert r["echo_mass_prompt"] == pytest.approx(echo, rel=_error(r).relative)
        if r["asked"].answer_ids:
            answer = max(r["p"][i].item() for i in r["asked"].answer_ids)
            assert r["answer_minus_echo_mass"] == pytest.approx(answer - echo, abs=2 * _error(r).relative)
            assert r["mass_ratio_ans_over_prompt"] == pytest.approx(answer / (echo + 1e-9), rel=2 * _error(r).relative)


def test_the_prompts_mass_among_the_top_fifty_is_a_part_of_its_mass(rows):
    missed = 0
    for r in rows:
        fifty = set(r["p"].topk(50).indices.tolist())
        due = sum(r["p"][i].item() for i in r["read"] & fifty)
        assert r["topk_prompt_mass@50"] == pytest.approx(due, rel=_error(r).relative)
        assert r["topk_prompt_mass@50"] <= r["echo_mass_prompt"] * (1 + _error(r).relative)
        missed += bool(r["read"] - fifty)
    assert missed  # else both masses would be one


@examples(40)
@given(st.integers(0, 2**32 - 1), st.none() | st.floats(0.5, 30.0), st.floats(0.1, 100.0))
def test_a_part_of_the_prompts_mass_is_never_more_than_all_of_it(seed, softcap, size):
    """Once the two came from different products, and the part could be larger by 1e-4."""
    asked = (PromptQuery((BOS, 10, 11, 12, 13, 14, 15, 16), 1, (0, 3, 7), (BERLIN,), BERLIN, None, False),)
    residuals = _random(seed, N_LAYERS + 1, 3, D_MODEL) * size
    head = _head(transform=HeadTransform(softcap=softcap))
    found = _measure(residuals, asked=asked, head=head)
    assert (found["topk_prompt_mass@50"] <= found["echo_mass_prompt"]).all()
    assert found["topk_prompt_mass@50"].sum() > 0


def test_of_a_prompt_without_an_answer_the_models_own_token_is_followed(rows):
    asked = tuple(replace(a, answer_ids=(), gold_id=None, of_model=i in (0, 1)) for i, a in enumerate(ASKED))
    found = _measure(asked=asked)
    assert found.filter(pl.col("prompt") > 1).select(OF_MODEL).null_count().row(0) == (3 * 4 * 4,) * 3
    for name in OF_ANSWER:
        assert found[name].is_null().all(), name
    own = {(r["prompt"], r["position"]): r["p"] for r in rows if (r["lens"], r["layer"]) == ("logit", N_LAYERS)}
    on_top = 0
    for r, due in zip(found.to_dicts(), rows, strict=True):
        if r["prompt"] > 1:
            continue
        said = own[r["prompt"], r["position"]].argmax().item()
        larger = [v for v in range(D_VOCAB) if due["p"][v] > due["p"][said] and {v, said} != {TWIN, PARIS}]
        assert r["model_top1_rank"] == 1 + len(larger)
        assert r["p_model_top1"] == pytest.approx(due["p"][said].item(), rel=_error(due).relative)
        if larger or r["top1_id"] != said:
            assert r["model_top1_logit_gap"] is None
        else:
            top = due["log_p"].topk(2).values
            assert r["model_top1_logit_gap"] == pytest.approx((top[0] - top[1]).item(), abs=_error(due).log_prob)
            on_top += 1
        if r["lens"] == "logit" and r["layer"] == N_LAYERS:
            assert r["model_top1_rank"] == 1
    assert on_top > 10


def test_what_the_model_says_is_not_told_by_a_decode_that_is_not_the_models():
    asked = tuple(replace(a, answer_ids=(), gold_id=None, of_model=True) for a in ASKED)
    found = _measure(asked=asked, final_is_model=False)
    assert found.select(OF_MODEL).null_count().row(0) == (len(found),) * 3


def test_a_whole_answer_is_as_good_as_its_worst_piece_and_leads_by_the_least_of_them():
    """Under the raw lens a residual along three ids makes logits of 3, 2 and 1, so all can be worked out by hand."""
    head = Unembedding.of(torch.eye(40), None)
    whole = ((10, 11), (10, 12, 13), (14,))
    asked = (PromptQuery((BOS, 30), 1, (1,), (10, 14), 10, None, False, whole=whole),)
    read = {("prompt", ()): 0}
    for row in further_rows(asked):
        read.setdefault((row.read, row.piece), len(read))
    # By layer and row: the ids with logits 3, 2 and 1.
    said = {
        0: {"all": (20, 21, 22)},  # nothing of an answer
        1: {"all": (10, 20, 21), ((10,), 11): (11, 21, 22), ((10,), 12): (11, 12, 20), ((10, 12), 13): (13, 20, 21)},
        2: {"all": (14, 10, 20), ((10,), 11): (20, 11, 21), ((10,), 12): (12, 20, 21), ((10, 12), 13): (13, 20, 21)},
    }
    residuals = torch.zeros(3, len(read), 40)
    for layer, rows in said.items():
        for row, at in read.items():
            for size, token in zip((3.0, 2.0, 1.0), rows.get(row, rows["all"]), strict=True):
                residuals[layer, at, token] = size
    residuals[1, read[(10,), 11]] *= 0.5  # its lead is 0.5, less than the first piece's
    found = _measure(residuals, lenses=LENSES[2:], asked=asked, head=head)
    log_p = residuals.double().log_softmax(-1)

    def due(layer: int, pieces: tuple[int, ...]) -> float:
        rows = [0, *(read[pieces[:i], pieces[i]] for i in range(1, len(pieces)))]
        return sum(log_p[layer, row, piece].item() for row, piece in zip(rows, pieces, strict=True))

    totals = [math.log(sum(math.exp(due(layer, pieces)) for pieces in whole)) for layer in range(3)]
    assert found["answer_log_prob_nats_all"].to_list() == pytest.approx(totals, rel=SINGLE)
    # Zeros tie: 10 comes after three larger logits, and so do 11, 12 and 13.
    assert found["answer_rank_all"].to_list() == [4, 1, 1]
    assert found["answer_logit_gap_all"].to_list() == [None, 0.5, 1.0]

    residuals[1, read[(10, 12), 13], 5] = torch.nan
    broken = _measure(residuals, lenses=LENSES[2:], asked=asked, head=head)
    assert broken["answer_rank_all"].to_list() == [4, None, 1]
    assert broken["answer_log_prob_nats_all"].is_null().to_list() == [False, True, False]
    assert broken["finite"].all() and broken["p_answer"].equals(found["p_answer"])


def test_directions_equal_a_direct_computation(rows):
    weight = _head().weight.tensor.double()
    for r in rows:
        cosines = torch.cosine_similarity(weight, r["decoded"][None], dim=-1)
        to_answer = cosines[r["answer_id"]].item() if r["asked"].answer_ids else None
        to_prompt = max((cosines[i].item() for i in r["read"]), default=None)
        assert r["cos_to_answer"] == (None if to_answer is None else pytest.approx(to_answer, abs=SINGLE))
        assert r["cos_to_prompt_max"] == (None if to_prompt is None else pytest.approx(to_prompt, abs=SINGLE))
        if to_answer is None or to_prompt is None:
            assert r["geom_crossover"] is None
        else:
            assert r["geom_crossover"] == (r["cos_to_answer"] >= r["cos_to_prompt_max"] + 0.02)
    assert {r["geom_crossover"] for r in rows} == {True, False, None}


def test_nothing_is_said_of_the_prompts_direction_where_no_content_has_been_read(table):
    empty = (table["prompt"] == 5) | ((table["prompt"] == 0) & (table["position"] == 0))
    assert _nulls(table, "cos_to_prompt_max") == empty.to_list()
    assert (table.filter(empty)["echo_mass_prompt"] == 0.0).all()


def test_overlaps_are_jaccard_indices_of_the_fifty_on_top():
    found = _measure(top_k=50).to_dicts()
    fifty = {(r["prompt"], r["lens"], r["layer"], r["position"]): set(r["top_ids"]) for r in found}
    for (prompt, lens, layer, position), r in zip(fifty, found, strict=True):
        own = fifty[prompt, lens, layer, position]
        others = {
            "topk_jaccard_raw_norm@50": None if lens == "raw" else fifty[prompt, "raw", layer, position],
            "topk_jaccard_consecutive@50": fifty.get((prompt, lens, layer - 1, position)),
        }
        for name, other in others.items():
            due = None if other is None else pytest.approx(len(own & other) / len(own | other), rel=DOUBLE)
            assert r[name] == due


def test_without_the_raw_lens_there_is_no_overlap_with_it():
    only = _measure(lenses=LENSES[:1])
    assert only["topk_jaccard_raw_norm@50"].is_null().all()
    assert only["topk_jaccard_consecutive@50"].is_null().sum() == N_ROWS


def test_a_control_is_held_against_its_fact_and_nothing_else_is(rows):
    for r in rows:
        if r["prompt"] == 2:
            due = (r["p"][PARIS] - r["p"][BERLIN]).item()
            assert r["control_margin"] == pytest.approx(
                due, abs=2 * _error(r).relative * max(r["p"][PARIS], r["p"][BERLIN]).item()
            )
        else:
            assert r["control_margin"] is None
        gap = r["control_top2_logit_gap"]
        if r["prompt"] in (2, 3) and r["top1_id"] == PARIS:
            top = r["log_p"].topk(2).values
            assert gap == pytest.approx((top[0] - top[1]).item(), abs=_error(r).log_prob)
        else:
            assert gap is None


def test_the_controls_lead_is_said_where_its_answer_is_on_top():
    head = _head()
    head.weight.tensor[TWIN] = -head.weight.tensor[TWIN]  # no tie now
    found = _measure(head=head).filter((pl.col("lens") == "logit") & (pl.col("layer") == N_LAYERS))
    # Row 7 points along Paris, row 8 along Berlin.
    assert _nulls(found.filter(pl.col("prompt") == 2), "control_top2_logit_gap") == [False]
    assert found.filter(pl.col("prompt") == 2)["control_top2_logit_gap"].item() > 0
    assert _nulls(found.filter(pl.col("prompt") == 3), "control_top2_logit_gap") == [True]


def _sharp(tokens_by_layer: list[int]) -> pl.DataFrame:
    """The raw lens on a prompt 1 10 11 2 12 (BOS first, 2 is a comma) whose layers are sure of these tokens."""
    head = Unembedding.of(torch.eye(D_VOCAB), None)
    residuals = torch.stack([100.0 * torch.eye(D_VOCAB)[token].repeat(5, 1) for token in tokens_by_layer])
    asked = (PromptQuery((BOS, 10, 11, COMMA, 12), 1, (0, 1, 2, 3, 4), (), None, None, False),)
    return _measure(residuals, lenses=LENSES[2:], asked=asked, head=head)


def test_copy_flags_follow_the_tokens_read_so_far_over_depth():
    found = _sharp([10, 11, BOS, COMMA, 12])

    def flag(name: str, position: int) -> list[bool]:
        return found.filter(pl.col("position") == position)[name].to_list()

    for name in ("copy_strict@0.7", "copy_strict@0.95", "copy_collapse", "copy_soft_k1@0.5"):
        assert flag(name, 0) == [False] * 5  # on the BOS nothing has been read
        assert flag(name, 1) == [True, False, False, False, False]
        assert flag(name, 2) == [True, True, False, False, False]
        assert flag(name, 4) == [True, True, False, False, True]  # neither BOS nor comma is ever copied
    assert flag("copy_soft_k2@0.5", 1) == [False] * 5
    assert flag("copy_soft_k2@0.5", 2) == [False, True, False, False, False]
    assert flag("copy_soft_k3@0.5", 4) == [False] * 5
    # The comma is a part of what was read, though not itself a copy.
    assert _sharp([11, COMMA, 12]).filter(pl.col("position") == 4)["copy_soft_k3@0.5"].to_list() == [False, False, True]


def test_an_entropy_of_exactly_the_threshold_has_collapsed():
    # Two equal logits: exactly one bit.
    head = Unembedding.of(torch.ones(2, 4), None)
    asked = (PromptQuery((0, 1), 0, (1,), (0,), 0, None, False),)
    found = _measure(torch.ones(2, 1, 4), lenses=LENSES[2:], asked=asked, head=head)
    assert found["entropy_bits"].to_list() == [1.0, 1.0]
    assert found["entropy_collapse"].to_list() == [True, True]
    assert found["topk_jaccard_consecutive@50"].to_list() == [None, 1.0]  # fewer ids than fifty


def test_a_divergence_decided_by_its_floor_is_flagged():
    head = Unembedding.of(torch.eye(3), None)
    residuals = torch.tensor([[[0.0, 300.0, 0.0]], [[300.0, 0.0, 0.0]]])
    found = _measure(
        residuals, lenses=LENSES[2:], asked=(PromptQuery((0, 1), 0, (1,), (), None, None, False),), head=head
    )
    assert found["kl_saturated"].to_list() == [True, False]
    assert found["kl_to_final_bits"].to_list() == pytest.approx([math.log2(1e30), 0.0], rel=SINGLE)


def test_as_many_tokens_are_listed_as_were_asked_for():
    found = _measure(top_k=3)
    assert found["top_ids"].list.len().to_list() == [3] * len(found)
    np.testing.assert_allclose(found["rest_mass"], 1 - found["top_probs"].list.sum(), atol=DOUBLE)
    # `p_top5` and the sets of fifty do not depend on how many are listed.
    more = _measure(top_k=70)
    assert more["top_ids"].list.len().to_list() == [70] * len(more)
    for name in ("p_top5", "topk_prompt_mass@50", "topk_jaccard_consecutive@50"):
        assert found[name].equals(more[name], null_equal=True), name


def test_the_published_protocol_decodes_lenses_without_the_heads_transform():
    head = _head(transform=HeadTransform(scale=3.0, softcap=2.0))
    plain = _measure()
    standard, published = (_measure(head=head, protocol=name) for name in ("standard", "published"))
    np.testing.assert_allclose(published["entropy_bits"], plain["entropy_bits"], **ALIKE)
    np.testing.assert_allclose(published["teacher_entropy_bits"], standard["teacher_entropy_bits"], **ALIKE)
    assert published["answer_rank"].equals(standard["answer_rank"], null_equal=True)
    last = (pl.col("lens") == "logit") & (pl.col("layer") == N_LAYERS)
    assert standard.filter(last)["kl_to_final_bits"].max() < 1e-9
    assert published.filter(last)["kl_to_final_bits"].min() > 0.01


@pytest.mark.parametrize("sweep_bytes", [1, 4 * N_ROWS * D_MODEL * 5])
def test_several_sweeps_give_what_one_gives(table, sweep_bytes):
    found = _measure(sweep_bytes=sweep_bytes)
    assert found.columns == table.columns
    for name in table.columns:
        a, b = table[name], found[name]
        if a.dtype == pl.List(pl.Float64):
            a, b = a.explode(empty_as_null=True), b.explode(empty_as_null=True)
        if a.dtype == pl.Float64:
            assert a.is_null().equals(b.is_null()), name
            np.testing.assert_allclose(a.drop_nulls(), b.drop_nulls(), **ALIKE, err_msg=name)
        else:
            assert a.equals(b, null_equal=True), name


def test_progress_counts_all_sweeps():
    calls: list[tuple[int, int]] = []
    _measure(sweep_bytes=4 * N_ROWS * D_MODEL * 5, progress=lambda done, total: calls.append((done, total)))
    # Twelve groups, five a sweep.
    assert calls == [(D_VOCAB * i, 3 * D_VOCAB) for i in (1, 2, 3)]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_residual_that_is_not_finite_has_a_row_without_numbers(table, broken):
    residuals = _residuals()
    residuals[1, 3] = broken  # the first prompt's position 3
    found = _measure(residuals)
    here = (pl.col("prompt") == 0) & (pl.col("layer") == 1) & (pl.col("position") == 3)
    spoilt = found.filter(here)
    assert spoilt["finite"].to_list() == [False] * 3
    assert (spoilt["any_nan"] | spoilt["any_inf"]).all()
    for name in set(found.columns) - set(KEYS):
        assert spoilt[name].is_null().all(), name
    after = (pl.col("prompt") == 0) & (pl.col("layer") == 2) & (pl.col("position") == 3)
    assert found.filter(after)["topk_jaccard_consecutive@50"].is_null().all()
    # A window over depth starts anew; the rest of the table is as before.
    windows = ["copy_soft_k2@0.5", "copy_soft_k3@0.5"]
    a, b = (frame.filter(~here).drop("topk_jaccard_consecutive@50", *windows) for frame in (table, found))
    assert a.equals(b, null_equal=True)


def test_where_the_models_own_row_is_not_finite_nothing_is_compared_with_it(table):
    residuals = _residuals()
    residuals[-1, 3] = math.nan
    found = _measure(residuals)
    here = (pl.col("prompt") == 0) & (pl.col("position") == 3)
    spoilt = found.filter(here & (pl.col("layer") < N_LAYERS))
    for name in ("teacher_entropy_bits", "kl_to_final_bits", "kl_saturated", "cos_to_final", "cos_to_final_centered"):
        assert spoilt[name].is_null().all(), name
        assert found.filter(~here)[name].equals(table.filter(~here)[name]), name
    assert spoilt["finite"].all()
    assert spoilt["entropy_bits"].equals(table.filter(here & (pl.col("layer") < N_LAYERS))["entropy_bits"])


def test_measuring_twice_gives_the_same_bits(table):
    assert _measure().equals(table, null_equal=True)


def test_measuring_changes_no_residual():
    residuals = _residuals()
    _measure(residuals)
    assert torch.equal(residuals, _residuals())
