"""What is seen from close up equals dense formulas on small integers, where ties abound, and the published values.

Tolerances. Logits are given, so that all sums are float64's, of at most some hundred terms: 1e-12 relative, 1e-9 of a
probability whose logarithm is up to 1e3. Where a lens or a model computes them in float32, a product of logits below
20 leaves 1e-5, and twice that of a probability.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lenses import bind_lenses
from layerscope.model.architecture import read_norm
from layerscope.model.causal_lm import CausalLM
from layerscope.readout.position_readout import DecodingView, position_readout
from layerscope.record.measured import OverlapRecord, PositionReadoutRecord, RepeatabilityRecord, ViewRecord
from layerscope.suite import load_suite
from layerscope.unembedding import HeadTransform, Unembedding
from properties import examples
from rounding import DOUBLE

SEEDS = st.integers(0, 2**32 - 1)
N_LAYERS, D_MODEL, D_VOCAB = 3, 6, 90
PLAIN = DecodingView(lambda residual, layer: residual)
ROLLED = DecodingView(lambda residual, layer: residual.roll(layer))
LATE = DecodingView(lambda residual, layer: residual * 2 + residual.flip(-1), frozenset({1, 3}))
EVERYWHERE = {"plain": PLAIN, "rolled": ROLLED}
VIEWS = EVERYWHERE | {"late": LATE}


def _integers(seed: int, *shape: int) -> Tensor:
    """Small integers, whose products are exact in float32 and often equal."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _head(seed: int = 0, **parts: Any) -> Unembedding:
    return Unembedding.of(_integers(seed, D_VOCAB, D_MODEL), None, **parts)


@dataclass(frozen=True)
class _Seen:
    """A readout by the names of its views and by its scales."""

    record: PositionReadoutRecord

    @property
    def views(self) -> dict[str, ViewRecord]:
        return {view.view: view for view in self.record.views}

    @property
    def pairs(self) -> dict[tuple[str, str], OverlapRecord]:
        return {(overlap.view, overlap.against): overlap for overlap in self.record.overlaps}

    @property
    def scaled_p_answer(self) -> dict[float, tuple[float | None, ...]]:
        return {scaled.scale: scaled.p_answer for scaled in self.record.scaled}

    @property
    def gap(self) -> tuple[float | None, ...]:
        return self.record.answer_gap

    @property
    def repeatability(self) -> RepeatabilityRecord:
        return self.record.repeatability


def _look(
    residual: Tensor,
    head: Unembedding,
    *,
    views: Mapping[str, DecodingView] = VIEWS,
    headline: str = "plain",
    answer_ids: tuple[int, ...] = (5,),
    pairs: tuple[tuple[str, str], ...] = (),
    scales: tuple[float, ...] = (),
    lens_transform: HeadTransform | None = None,
) -> _Seen:
    record = position_readout(
        residual,
        views,
        headline=headline,
        answer_ids=answer_ids,
        pairs=pairs,
        scales=scales,
        unembedding=head,
        lens_transform=lens_transform,
    )
    return _Seen(record)


@dataclass(frozen=True)
class _Dense:
    """One row of logits, read by sorting all of it."""

    z: list[float]
    order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", sorted(range(len(self.z)), key=lambda v: (-self.z[v], v)))

    def rank(self, token_id: int) -> int:
        return 1 + sum(other > self.z[token_id] for other in self.z)

    def p(self, token_id: int, scale: float = 1.0) -> float:
        return math.exp(scale * self.z[token_id]) / sum(math.exp(scale * other) for other in self.z)


def _dense(residual: Tensor, view: DecodingView, head: Unembedding, layer: int) -> _Dense:
    row = view.row(residual[layer], layer).double()
    if head.projection is not None:
        row = head.projection.double() @ row
    bias = 0.0 if head.bias is None else head.bias.double()
    return _Dense((head.weight.tensor.double() @ row + bias).tolist())


def _correlation(x: list[int], y: list[int]) -> float | None:
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _overlap(a: list[int], b: list[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b))


@given(SEEDS)
@examples(25)
def test_every_view_is_read_as_by_sorting_all_of_its_logits(seed):
    head = _head(seed, bias=_integers(seed + 1, D_VOCAB))
    residual = _integers(seed + 2, N_LAYERS + 1, D_MODEL)
    found = _look(residual, head, answer_ids=(5, 70, 31))
    for name, view in VIEWS.items():
        seen = found.views[name]
        for layer in range(N_LAYERS + 1):
            at_layer = (seen.answer_rank, seen.p_answer, seen.top1_id, seen.p_top1)
            if view.layers is not None and layer not in view.layers:
                assert [values[layer] for values in at_layer] == [None] * 4
                continue
            due = _dense(residual, view, head, layer)
            answer = max((5, 31, 70), key=due.z.__getitem__)
            assert seen.answer_rank[layer] == due.rank(answer)
            assert seen.p_answer[layer] == pytest.approx(due.p(answer), rel=1e-9)
            assert seen.top1_id[layer] == due.order[0]
            assert seen.p_top1[layer] == pytest.approx(due.p(due.order[0]), rel=1e-9)


@given(SEEDS)
@examples(25)
def test_pairs_agree_as_far_as_their_sorted_lists_do(seed):
    head, residual = _head(seed), _integers(seed + 1, N_LAYERS + 1, D_MODEL)
    pairs = (("plain", "rolled"), ("rolled", "late"))
    found = _look(residual, head, pairs=pairs)
    for pair in pairs:
        seen = found.pairs[pair]
        for layer in range(N_LAYERS + 1):
            values = [
                column[layer]
                for column in (seen.jaccard_10, seen.jaccard_50, seen.spearman_top50_union, seen.spearman_top50_ref)
            ]
            if "late" in pair and layer not in (1, 3):
                assert values == [None] * 4
                continue
            a, b = (_dense(residual, VIEWS[name], head, layer) for name in pair)
            top_a, top_b = a.order[:50], b.order[:50]
            union = sorted({*top_a, *top_b})
            ranks = [[top.index(v) + 1 if v in top else 51 for v in union] for top in (top_a, top_b)]
            due = [
                _overlap(a.order[:10], b.order[:10]),
                _overlap(top_a, top_b),
                _correlation(*ranks),
                _correlation(list(range(1, 51)), [b.rank(v) for v in top_a]),
            ]
            for value, expected in zip(values, due, strict=True):
                assert value == (None if expected is None else pytest.approx(expected, abs=DOUBLE))


@given(SEEDS)
@examples(25)
def test_scaled_probabilities_and_gap_are_those_of_the_headlines_logits(seed):
    head, residual = _head(seed), _integers(seed + 1, N_LAYERS + 1, D_MODEL)
    scales = (0.9, 1.0, 1.1)
    found = _look(residual, head, headline="rolled", scales=scales)
    for layer in range(N_LAYERS + 1):
        due = _dense(residual, ROLLED, head, layer)
        for scale in scales:
            assert found.scaled_p_answer[scale][layer] == pytest.approx(due.p(5, scale), rel=1e-9)
        rival = max(z for v, z in enumerate(due.z) if v != 5)
        assert found.gap[layer] == pytest.approx(due.z[5] - rival, abs=DOUBLE)
        assert (found.gap[layer] >= 0) == (found.views["rolled"].answer_rank[layer] == 1)
    assert found.scaled_p_answer[1.0] == pytest.approx(found.views["rolled"].p_answer, rel=DOUBLE)


def test_a_view_agrees_wholly_with_itself():
    head, residual = Unembedding.of(_random(0, D_VOCAB, D_MODEL), None), _random(1, N_LAYERS + 1, D_MODEL)
    seen = _look(residual, head, pairs=(("plain", "plain"),)).pairs["plain", "plain"]
    whole = pytest.approx((1.0,) * (N_LAYERS + 1), abs=DOUBLE)
    assert seen.jaccard_10 == seen.jaccard_50 == (1.0,) * (N_LAYERS + 1)
    assert seen.spearman_top50_union == whole
    assert seen.spearman_top50_ref == whole


def test_opposite_views_share_no_top_and_correlate_negatively():
    """With 90 ids and none equal, the tops are ids 1..50 and 41..90 of one order: ten are shared."""
    head = Unembedding.of(torch.linspace(-1, 1, D_VOCAB)[:, None], None)
    views = {
        "up": DecodingView(lambda residual, layer: residual),
        "down": DecodingView(lambda residual, layer: -residual),
    }
    seen = _look(torch.ones(1, 1), head, views=views, headline="up", pairs=(("up", "down"),)).pairs["up", "down"]
    assert seen.jaccard_10 == (0.0,)
    assert seen.jaccard_50 == (pytest.approx(10 / 90),)
    assert seen.spearman_top50_ref == (pytest.approx(-1.0, abs=DOUBLE),)
    assert seen.spearman_top50_union[0] < 0


def test_a_view_without_preference_has_no_correlation():
    views = {"plain": PLAIN, "flat": DecodingView(lambda residual, layer: residual * 0)}
    residual = _random(1, 2, D_MODEL)
    seen = _look(residual, _head(), views=views, pairs=(("plain", "flat"),))
    assert seen.views["flat"].top1_id == (0, 0)  # all equal, so the smallest id
    assert seen.views["flat"].answer_rank == (1, 1)
    assert seen.pairs["plain", "flat"].spearman_top50_ref == (None, None)
    assert None not in seen.pairs["plain", "flat"].spearman_top50_union


def test_a_vocabulary_smaller_than_the_lists_is_listed_whole():
    head, residual = Unembedding.of(_random(0, 4, D_MODEL), None), _random(1, 1, D_MODEL)
    seen = _look(residual, head, views=EVERYWHERE, answer_ids=(2,), pairs=(("plain", "rolled"),))
    seen = seen.pairs["plain", "rolled"]
    assert (seen.jaccard_10, seen.jaccard_50) == ((1.0,), (1.0,))
    single = Unembedding.of(_random(0, 1, D_MODEL), None)
    one = _look(residual, single, views=EVERYWHERE, answer_ids=(0,), pairs=(("plain", "plain"),))
    assert one.gap == (None,)  # there is nothing to be ahead of
    assert one.pairs["plain", "plain"].spearman_top50_ref == (None,)


def test_without_an_answer_only_its_numbers_are_absent():
    residual = _random(1, 2, D_MODEL)
    found = _look(residual, _head(), views=EVERYWHERE, answer_ids=(), scales=(0.9,))
    asked = _look(residual, _head(), views=EVERYWHERE)
    assert found.views["plain"].answer_rank == found.views["plain"].p_answer == (None, None)
    assert found.gap == found.scaled_p_answer[0.9] == (None, None)
    assert found.views["plain"].top1_id == asked.views["plain"].top1_id
    assert found.repeatability == asked.repeatability


def test_scaling_all_logits_changes_probabilities_and_no_rank():
    """The head's scale is positive, so it may move nothing but probabilities and gaps."""
    residual, pairs = _random(1, N_LAYERS + 1, D_MODEL), (("plain", "rolled"),)
    plain = _look(residual, _head(), pairs=pairs, scales=(1.5,))
    scaled = _look(residual, _head(), pairs=pairs, lens_transform=HeadTransform(scale=1.5))
    assert scaled.views["plain"].answer_rank == plain.views["plain"].answer_rank
    assert scaled.views["plain"].top1_id == plain.views["plain"].top1_id
    assert scaled.pairs == plain.pairs
    assert scaled.views["plain"].p_answer == pytest.approx(plain.scaled_p_answer[1.5], rel=1e-9)
    assert scaled.gap == pytest.approx([1.5 * gap for gap in plain.gap], rel=1e-9)


def test_order_is_taken_before_a_softcap_that_rounds_logits_to_one_value():
    head = Unembedding.of(torch.tensor([[900.0], [1000.0], [800.0]]), None, transform=HeadTransform(softcap=1.0))
    found = _look(torch.ones(1, 1), head, views=EVERYWHERE, answer_ids=(0,))
    assert found.views["plain"].answer_rank == (2,)
    assert found.views["plain"].top1_id == (1,)
    assert found.views["plain"].p_answer == (pytest.approx(1 / 3),)
    untransformed = _look(torch.ones(1, 1), head, views=EVERYWHERE, answer_ids=(0,), lens_transform=HeadTransform())
    assert untransformed.gap == (-100.0,)


def test_the_order_of_vocabulary_ids_changes_no_number():
    residual, pairs = _random(1, N_LAYERS + 1, D_MODEL), (("plain", "rolled"),)
    weight, order = _random(0, D_VOCAB, D_MODEL), torch.randperm(D_VOCAB, generator=torch.Generator().manual_seed(3))
    new_id = {old: new for new, old in enumerate(order.tolist())}
    options: dict[str, Any] = {"pairs": pairs, "scales": (0.9,)}
    found = _look(residual, Unembedding.of(weight, None), **options)
    moved = _look(residual, Unembedding.of(weight[order].contiguous(), None), answer_ids=(new_id[5],), **options)
    for name in VIEWS:
        a, b = found.views[name], moved.views[name]
        assert b.answer_rank == a.answer_rank
        assert b.top1_id == tuple(None if i is None else new_id[i] for i in a.top1_id)
        for p_a, p_b in zip((*a.p_answer, *a.p_top1), (*b.p_answer, *b.p_top1), strict=True):
            assert p_b == (None if p_a is None else pytest.approx(p_a, rel=1e-4))
    assert moved.pairs["plain", "rolled"] == found.pairs["plain", "rolled"]
    assert moved.gap == pytest.approx(found.gap, rel=1e-4, abs=5e-5)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_layer_that_is_not_finite_says_nothing_and_disturbs_no_other(broken):
    head = _head(transform=HeadTransform(softcap=5.0))
    residual, pairs = _random(1, N_LAYERS + 1, D_MODEL), (("plain", "rolled"),)
    sound = _look(residual, head, pairs=pairs, scales=(0.9,))
    residual[2, 0] = broken
    found = _look(residual, head, pairs=pairs, scales=(0.9,))

    def without_layer_2(values: tuple) -> tuple:
        return (*values[:2], None, *values[3:])

    for field_name in ("answer_rank", "p_answer", "top1_id", "p_top1"):
        due = without_layer_2(getattr(sound.views["plain"], field_name))
        assert getattr(found.views["plain"], field_name) == due
    assert found.gap == without_layer_2(sound.gap)
    assert found.scaled_p_answer[0.9] == without_layer_2(sound.scaled_p_answer[0.9])
    assert found.pairs["plain", "rolled"].jaccard_10 == without_layer_2(sound.pairs["plain", "rolled"].jaccard_10)
    assert found.repeatability.rank_dev == without_layer_2(sound.repeatability.rank_dev)


def test_a_projection_before_the_head_is_part_of_the_logits():
    head = Unembedding.of(_integers(0, D_VOCAB, 4), None, projection=_integers(1, 4, D_MODEL))
    residual = _integers(2, 2, D_MODEL)
    found = _look(residual, head, views=EVERYWHERE)
    due = [_dense(residual, PLAIN, head, layer) for layer in range(2)]
    assert found.views["plain"].answer_rank == tuple(row.rank(5) for row in due)
    assert found.repeatability.rank_dev == (0, 0)


# Repeatability


@given(SEEDS)
@examples(10)
def test_exact_arithmetic_repeats_exactly(seed):
    found = _look(_integers(seed, N_LAYERS + 1, D_MODEL), _head(seed + 1, bias=_integers(seed + 2, D_VOCAB)))
    assert found.repeatability.rank_dev == (0,) * (N_LAYERS + 1)
    assert found.repeatability.top1_flip == (False,) * (N_LAYERS + 1)


@dataclass(frozen=True)
class _Drifting(Unembedding):
    """A head whose weight reads differently from the second sweep on: three ids overtake the first."""

    sweeps: list[int] = field(default_factory=list)

    def tile(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        self.sweeps.append(start)
        weight = super().tile(start, stop, out)
        return weight if len(self.sweeps) == 1 else weight + torch.tensor([[0.0], [3.0], [4.0], [5.0]])


def test_a_second_decode_that_differs_is_reported():
    head = _Drifting.of(torch.tensor([[3.0], [2.0], [1.0], [0.5]]))
    found = _look(torch.ones(2, 1), head, views={"plain": PLAIN}, answer_ids=())
    assert len(head.sweeps) == 2
    assert found.views["plain"].top1_id == (0, 0)
    assert found.repeatability.rank_dev == (3, 3)
    assert found.repeatability.top1_flip == (True, True)


def test_the_second_decode_takes_its_rows_one_by_one(monkeypatch):
    products, mv = [], torch.mv

    def counted(weight, row, **kwargs):
        products.append(tuple(row.shape))
        return mv(weight, row, **kwargs)

    monkeypatch.setattr(torch, "mv", counted)
    _look(_random(1, N_LAYERS + 1, D_MODEL), _head())
    assert products == [(D_MODEL,)] * (N_LAYERS + 1)


# Cost and refusals


def test_the_unembedding_is_swept_once_a_view_and_once_more_for_a_pair_given_backwards(monkeypatch):
    residual, head = _random(1, N_LAYERS + 1, D_MODEL), Unembedding.of(_random(0, D_VOCAB, D_MODEL), None)
    sweeps, logits = [], Unembedding.logits

    def counted(self, rows, *args):
        sweeps.append(len(rows))
        return logits(self, rows, *args)

    monkeypatch.setattr(Unembedding, "logits", counted)
    _look(residual, head, pairs=(("plain", "rolled"), ("plain", "late"), ("rolled", "late")))
    assert sweeps == [4, 4, 2]
    sweeps.clear()
    backwards = _look(residual, head, pairs=(("rolled", "plain"), ("late", "plain"), ("plain", "late")))
    assert sweeps == [4, 4, 2, 4]
    reordered = {name: VIEWS[name] for name in ("rolled", "late", "plain")}
    forwards = _look(residual, head, views=reordered, pairs=(("rolled", "plain"), ("late", "plain")))
    for pair in forwards.pairs:
        assert backwards.pairs[pair] == forwards.pairs[pair]


def test_names_and_layers_that_do_not_exist_are_refused():
    residual, head = _random(1, 3, D_MODEL), _head()  # VIEWS["late"] knows a layer 3
    with pytest.raises(LensError, match="'late' is defined at layer 3, but layers go from 0 to 2"):
        _look(residual, head)
    with pytest.raises(LensError, match="no view called 'tuned'; the views given are plain"):
        _look(residual, head, views={"plain": PLAIN}, headline="tuned")
    with pytest.raises(LensError, match="no view called 'rolled'"):
        _look(residual, head, views={"plain": PLAIN}, pairs=(("plain", "rolled"),))


# The published model


@pytest.fixture(scope="module")
def tiny_qwen3(shared: Path) -> CausalLM:
    return CausalLM.open(shared / "reference" / "tiny-qwen3" / "model")


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "reference" / "tiny-qwen3" / "published"


@pytest.fixture(scope="module")
def diagnostics(published: Path) -> dict:
    return json.loads((published / "output-tiny-qwen3.json").read_text())["diagnostics"]


@pytest.fixture(scope="module")
def seen(tiny_qwen3: CausalLM) -> _Seen:
    """The first prompt's last position: the norm lens, no norm, and the second norm of the block before."""
    model = tiny_qwen3
    prompt = load_suite("capitals").prompts[0]
    residuals = model.forward([model.tokens.input_ids(prompt.text)], n_logits=1)
    lens, raw = bind_lenses(("next_norm", "raw"), final_norm=model.final_norm, next_norms=model.next_norms)
    second_norms = [
        read_norm(block.post_attention_layernorm, f"blocks[{i}].ln2", model.d_model)
        for i, block in enumerate(model._module.model.layers)
    ]
    views = {
        "post_ln2": DecodingView(lambda residual, layer: second_norms[layer - 1](residual), frozenset(range(1, 9))),
        "next_norm": DecodingView(lens),
        "raw": DecodingView(raw),
    }
    return _look(
        residuals.select([[residuals.lengths[0] - 1]])[:, 0],
        model.unembedding,
        views=views,
        headline="next_norm",
        answer_ids=(1369,),
        pairs=(("post_ln2", "next_norm"), ("next_norm", "raw")),
        scales=(0.9, 0.95, 1.05, 1.1),
    )


def _near(value: float) -> Any:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def test_the_published_comparison_of_decoding_points_is_ours(seen, diagnostics):
    a, b, pair = seen.views["post_ln2"], seen.views["next_norm"], seen.pairs["post_ln2", "next_norm"]
    targets = diagnostics["decoding_point"]["per_target"]
    assert len(targets) == 2
    for target in targets:
        layer = target["layer"]
        for name, view in (("post_ln2", a), ("next_ln1", b)):
            assert view.answer_rank[layer] == target[f"answer_rank_{name}"]
            assert view.top1_id[layer] == target[f"top1_id_{name}"]
            assert view.p_answer[layer] == _near(target[f"p_answer_{name}"])
            assert view.p_top1[layer] == _near(target[f"p_top1_{name}"])
        assert pair.jaccard_10[layer] == _near(target["jaccard@10"])
        assert pair.jaccard_50[layer] == _near(target["jaccard@50"])
        assert pair.spearman_top50_union[layer] == _near(target["spearman_top50"])
    assert a.answer_rank[0] is None  # no block has written yet


def test_the_published_consistency_of_lenses_is_ours(seen, diagnostics):
    pair = seen.pairs["next_norm", "raw"]
    targets = diagnostics["lens_consistency"]["norm_vs_raw"]["at_targets"]
    assert targets
    for target in targets:
        assert pair.jaccard_10[target["layer"]] == _near(target["jaccard@10"])
        assert pair.jaccard_50[target["layer"]] == _near(target["jaccard@50"])
        assert pair.spearman_top50_ref[target["layer"]] == _near(target["spearman_top50"])


def test_the_published_stability_of_the_gates_follows_from_the_scaled_probabilities(seen, diagnostics):
    block = diagnostics["gate_stability_small_scale"]
    target = block["per_target"]["L_semantic_norm"]
    layer, scales = target["layer"], block["scales"]
    margin = [seen.scaled_p_answer[scale][layer] - 1 / 4096 >= 0.002 for scale in scales]
    gap = [scale * seen.gap[layer] >= 0.5 for scale in scales]
    assert sum(margin) / 4 == target["uniform_margin_pass_frac"]
    assert sum(gap) / 4 == target["top2_gap_pass_frac"]
    assert sum(a and b for a, b in zip(margin, gap, strict=True)) / 4 == target["both_gates_pass_frac"]
    # The layer before would not have passed, so the fractions say something.
    assert seen.gap[layer - 1] < 0


def test_the_published_second_decode_and_ours_move_no_token(seen, diagnostics):
    block = diagnostics["repeatability"]
    assert len(seen.repeatability.rank_dev) == block["layers_checked"]
    assert max(seen.repeatability.rank_dev) == block["max_rank_dev"]
    assert sum(seen.repeatability.top1_flip) / 9 == block["top1_flip_rate"]


def test_the_published_rows_of_both_lenses_are_ours(seen, published):
    def table(name: str) -> list[dict]:
        with (published / f"output-tiny-qwen3-{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, escapechar="\\")
            return [r for r in rows if (r["fact_index"], r["prompt_id"], r["prompt_variant"]) == ("0", "pos", "orig")]

    both, norm = table("pure-next-token-rawlens"), table("pure-next-token")
    assert len(both) == len(norm) == 9
    for row in both:
        layer = int(row["layer"])
        for lens, name in (("norm", "next_norm"), ("raw", "raw")):
            view = seen.views[name]
            assert view.answer_rank[layer] == int(row[f"answer_rank_{lens}"])
            assert view.p_answer[layer] == _near(float(row[f"p_answer_{lens}"]))
            assert view.p_top1[layer] == _near(float(row[f"p_top1_{lens}"]))
        overlap = seen.pairs["next_norm", "raw"].jaccard_50[layer]
        assert overlap == _near(float(row["topk_jaccard_raw_norm@50"]))
    for row in norm:
        gap = row["answer_logit_gap"] or row["answer_vs_top1_gap"]
        assert seen.gap[int(row["layer"])] == _near(float(gap))


def test_a_frozen_view_can_be_restricted_to_some_layers():
    residual = _integers(0, N_LAYERS + 1, D_MODEL)
    whole = _look(residual, _head(), views={"plain": PLAIN})
    part = _look(residual, _head(), views={"plain": replace(PLAIN, layers=frozenset({0, 2}))})
    assert part.gap == (whole.gap[0], None, whole.gap[2], None)
    assert part.repeatability.rank_dev == (0, None, 0, None)
