"""What is measured once, on the bundled model and on small ones with special parts.

Tolerances. Two float32 passes with logits below 30 that are cut into batches differently: 12 blocks of width 96 are
1e-5 of a logit apart, 3e-4 of it a probability (`rounding.of_residual` says how); 1e-3, and 1e-4 where numbers are
small.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from layerscope import CausalLM, Run, load_suite, probe
from layerscope.errors import LensError
from layerscope.probing.auxiliary_inputs import CALIBRATION_ROWS, choose_auxiliary_inputs
from layerscope.probing.encode import encode
from layerscope.probing.primary_prompt import FAILED_IDENTITY
from layerscope.record.protocol import PROTOCOLS
from layerscope.suite.auxiliary_texts import calibration_passage, published_test_prompts
from layerscope.unembedding import HeadTransform

STANDARD, PUBLISHED = PROTOCOLS["standard"], PROTOCOLS["published"]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(device="cpu")


@pytest.fixture(scope="module")
def run(model: CausalLM) -> Run:
    return probe(model, suite="capitals", positions="last")


def test_the_passage_is_no_longer_than_the_prompts_and_asks_none_of_their_facts(model: CausalLM):
    encoded = encode(load_suite("capitals-20"), model, "last")
    (passage,) = choose_auxiliary_inputs(model, encoded, STANDARD).passages
    assert len(passage.token_ids) <= max(len(e.token_ids) for e in encoded)
    assert passage.positions == tuple(range(len(passage.token_ids) - CALIBRATION_ROWS, len(passage.token_ids)))
    words = {answer for e in encoded for answer in e.prompt.answers}
    assert not any(word in calibration_passage() for word in words)


def test_the_published_calibration_is_the_primary_fact_in_both_wordings_and_the_control(model: CausalLM):
    encoded = encode(load_suite("capitals"), model, "last")
    found = choose_auxiliary_inputs(model, encoded, PUBLISHED)
    assert [p.token_ids for p in found.passages] == [encoded[i].token_ids for i in (0, 1, 10)]
    assert [text for text, _ in found.test_prompts] == list(published_test_prompts())
    assert len(published_test_prompts()) == 14 and published_test_prompts()[0] == "Berlin is the capital of"


def test_the_tempered_divergence_is_that_of_softmax_at_the_layers_temperature(model: CausalLM, run: Run):
    tau = run.record.measured.norm_temperature.tau_per_layer
    residuals = model.forward([run.record.suite.prompts[0].token_ids])
    log_final = residuals.logits[0].double().log_softmax(-1)
    own = run.rows.filter(lens="logit", fact_index=0, prompt_variant="orig", is_next=True)
    for layer in range(model.n_layers + 1):
        row = model.final_norm(residuals.values[0, layer, -1][None])
        log_p = (model.unembedding.logits(row)[0].double() / tau[layer]).log_softmax(-1)
        bits = (log_p.exp() * (log_p - log_final)).sum().item() / np.log(2)
        assert own["kl_to_final_bits_norm_temp"][layer] == pytest.approx(bits, rel=1e-3, abs=1e-4)


def test_a_layers_temperature_cannot_be_bettered_on_the_passage(model: CausalLM, run: Run):
    encoded = encode(load_suite("capitals"), model, "last")
    (passage,) = choose_auxiliary_inputs(model, encoded, STANDARD).passages
    residuals = model.forward([passage.token_ids])
    rows = residuals.values[0][:, list(passage.positions)]
    p_final = model.unembedding.logits(model.final_norm(rows[-1])).double().softmax(-1)

    def cross_entropy(layer: int, tau: float) -> float:
        log_p = (model.unembedding.logits(model.final_norm(rows[layer])).double() / tau).log_softmax(-1)
        return -(p_final * log_p).sum(-1).mean().item()

    for layer, tau in enumerate(run.record.measured.norm_temperature.tau_per_layer):
        inside = [t for t in (0.98 * tau, 1.02 * tau) if 0.2 <= t <= 5.0]
        assert inside and all(cross_entropy(layer, tau) <= cross_entropy(layer, t) for t in inside), layer


def test_a_suite_cut_into_passes_has_the_same_measurements(model: CausalLM, run: Run):
    cut = probe(CausalLM.open(device="cpu", memory="120MiB"), suite="capitals", positions="last")
    assert cut.rows.height == run.rows.height
    here, there = cut.record.measured, run.record.measured
    np.testing.assert_allclose(here.norm_temperature.tau_per_layer, there.norm_temperature.tau_per_layer, rtol=1e-3)
    for a, b in zip(here.position_readout.views, there.position_readout.views, strict=True):
        assert (a.view, a.top1_id) == (b.view, b.top1_id)


def test_where_the_identity_check_fails_what_rests_on_it_is_absent_with_the_reason():
    broken = CausalLM.open(device="cpu")
    broken.unembedding = dataclasses.replace(broken.unembedding, transform=HeadTransform(softcap=3.0))
    found = probe(broken, suite="berlin", positions="last")
    measured = found.record.measured
    assert not found.record.identity.ok
    assert measured.norm_temperature is None and measured.final_prediction is None
    assert measured.absent["norm_temperature"] == measured.absent["final_prediction"] == FAILED_IDENTITY
    assert measured.last_layer.kl_to_final_bits > 1e-3  # against the model's own logits, which are at hand
    assert found.rows["kl_to_final_bits_norm_temp"].null_count() == found.rows.height
    assert found.guidance.reasons[0].name == "identity_failed" and found.guidance.suppress_abs_probs


def test_the_views_agree_with_the_rows_at_the_primary_prompt(run: Run):
    for view in run.record.measured.position_readout.views:
        rows = run.rows.filter(lens=view.view, fact_index=0, prompt_variant="orig", is_next=True)
        if rows.height:
            first = rows["layer"][0]  # the tuned lens has no row at layer 0
            assert rows["answer_rank"].to_list() == list(view.answer_rank[first:])
            assert rows["top1_id"].to_list() == list(view.top1_id[first:])
    views = {v.view for v in run.record.measured.position_readout.views}
    assert views == {"logit", "next_norm", "raw", "post_ln2", "tuned", "prism"}


def test_blocks_without_a_second_norm_have_no_post_ln2_and_say_so(tiny: Callable[[str], Path]):
    found = probe(tiny("gptj"), suite="berlin", positions="last", device="cpu").record.measured
    assert "post_ln2" not in {view.view for view in found.position_readout.views}
    assert "second norm" in found.absent["post_ln2"]


def test_a_gemma_s_softcap_is_what_its_published_last_row_lacks(tiny: Callable[[str], Path]):
    found = probe(tiny("gemma2"), suite="berlin", positions="last", device="cpu", protocol="published")
    last = found.record.measured.last_layer
    assert last.softcap is not None and last.kl_to_final_bits > 1e-3
    assert last.kl_after_softcap_bits == pytest.approx(0, abs=1e-8)  # of second order in float32 logits, 1e-5 apart


def test_the_copy_mask_is_every_id_that_is_special_blank_or_punctuation(model: CausalLM, run: Run):
    mask = run.record.measured.copy_mask
    strings = model.tokens.display(range(model.tokens.n_ids))
    plain = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    special = {0}  # the end of a text
    due = [i for i, text in sorted(strings.items()) if i in special or all(c.isspace() or c in plain for c in text)]
    assert mask.ids == due and mask.size == len(due) > 32
    assert mask.sample == tuple(strings[i] for i in due[:16])


def test_a_second_forward_is_made_on_demand_and_repeats(model: CausalLM, run: Run):
    assert run.record.measured.second_forward.mode == "skipped_deterministic"
    again = probe(model, suite="berlin", positions="last", second_forward="always")
    assert again.diagnostics.forward_of_two.agree is True
    assert again.diagnostics.forward_of_two.delta_layers == 0
    own = again.rows.filter(lens="logit", fact_index=0, prompt_variant="orig")
    second = again.record.measured.second_forward
    assert list(second.answer_rank) == own["answer_rank"].to_list()
    assert [list(ids) for ids in second.top_ids] == [ids[:10] for ids in own["top_ids"].to_list()]
    np.testing.assert_allclose(
        np.array(second.answer_logit_gap, dtype=float), own["answer_logit_gap"].to_numpy(), rtol=1e-3, atol=1e-4
    )
    off = probe(model, suite="berlin", positions="last", second_forward="off")
    assert off.record.measured.second_forward.mode == "off" and not off.diagnostics.forward_of_two.enabled
    with pytest.raises(LensError, match="choose from auto, always, off"):
        probe(model, suite="berlin", second_forward="twice")


def test_temperatures_other_than_one_keep_ranks_and_change_entropy(run: Run):
    final, (cold, hot) = run.record.measured.final_prediction, run.record.measured.temperature_exploration
    assert cold.top_ids == final.top_ids[:15] and hot.top_ids == final.top_ids[:15]
    assert cold.entropy_bits < final.entropy_bits < hot.entropy_bits
    teacher = run.rows.filter(fact_index=0, prompt_variant="orig", is_next=True)["teacher_entropy_bits"]
    assert teacher.to_list() == pytest.approx([final.entropy_bits] * len(teacher), rel=1e-3, abs=1e-4)


def test_divergences_from_raw_equal_whole_distributions(model: CausalLM, run: Run):
    residuals = model.forward([run.record.suite.prompts[3].token_ids])
    own = run.rows.filter(lens="logit", fact_index=1, prompt_variant="no_filler", is_next=True)
    floor = torch.tensor(1e-30, dtype=torch.float64).log()
    for layer in range(model.n_layers + 1):
        residual = residuals.values[0, layer, -1][None]
        log_n, log_r = (
            model.unembedding.logits(row)[0].double().log_softmax(-1).clamp_min(floor)
            for row in (model.final_norm(residual), residual)
        )
        n, r = log_n.exp(), log_r.exp()
        m = ((n + r) / 2).log()
        expected = {
            "kl_norm_vs_raw_bits": (n * (log_n - log_r)).sum() / np.log(2),
            "kl_raw_to_norm_bits": (r * (log_r - log_n)).sum() / np.log(2),
            "js_divergence_bits": ((n * (log_n - m)).sum() + (r * (log_r - m)).sum()) / 2 / np.log(2),
            "l1_prob_diff": (n - r).abs().sum(),
        }
        for name, value in expected.items():
            # Raw logits reach thousands, where float32 has steps of 2e-4 to 5e-4.
            assert own[name][layer] == pytest.approx(value.item(), rel=5e-3, abs=2e-3), (layer, name)
    others = run.rows.filter((pl.col("lens") != "logit") | ~pl.col("is_next"))
    assert all(others[name].null_count() == others.height for name in expected)
