"""The whole river on the bundled model: the numbers of a run, held to Transformers, to itself and to its record."""

import getpass
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from layerscope import CausalLM, Run, Suite, load_suite, probe
from layerscope.bundled import BUNDLED
from layerscope.record.rows import COLUMNS
from rounding import SINGLE
from tiny_models import load_resident, reference

KEYS = ["fact_key", "fact_index", "prompt_id", "prompt_variant", "lens", "layer", "position"]
AGAINST_RAW = ["kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", "js_divergence_bits", "l1_prob_diff"]
OVERLAPS = ["topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50"]
REFERENCE_VOCABULARY = 2048
ROUNDING = {"rel_tol": 1e-3, "abs_tol": 1e-4}
"""Of what two passes read through a norm, whose logits are below 30. They lie `of_residual` of 30 apart at most, 2e-3
with its ten standard deviations; a hundred thousand numbers stay within half of that, and most are small."""
ROUNDING_OF_RAW = {"rel_tol": 5e-3, "abs_tol": 5e-3}
"""Of what is read without one: raw logits of this model reach thousands, where float32 has steps of 2e-4 to 5e-4, and a
sum of a hundred products is some ten of them off."""


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(device="cpu")


@pytest.fixture(scope="module")
def run(model: CausalLM) -> Run:
    return probe(model, suite="capitals", positions="all")


def assert_same_rows(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Equal up to float32 sums in another order; ids, ranks and flags exactly."""
    for lens in expected["lens"].unique(maintain_order=True):
        ours, theirs = found.filter(lens=lens), expected.filter(lens=lens)
        coarse = theirs.columns if lens == "raw" else AGAINST_RAW
        fine = [name for name in theirs.columns if name not in (*coarse, *OVERLAPS)]
        assert_frame_equal(ours.select(fine), theirs.select(fine), **ROUNDING)
        coarse = [name for name in coarse if name not in OVERLAPS and name in theirs.columns]
        assert_frame_equal(ours.select(coarse), theirs.select(coarse), **ROUNDING_OF_RAW)
        # The 50th and 51st of a raw row can change places, and one id of the union is up to a fiftieth.
        assert_frame_equal(ours.select(OVERLAPS), theirs.select(OVERLAPS), abs_tol=0.05)


def prompts_of(run: Run) -> pl.DataFrame:
    """Rows by prompt, in the suite's order: how many positions each has decoded."""
    names = ["fact_index", "prompt_id", "prompt_variant"]
    return run.rows.group_by(names, maintain_order=True).agg(pl.col("position").unique().sort())


def test_the_bundled_model_is_itself_and_raises_no_caution(run: Run):
    assert run.record.identity.ok
    assert run.record.flags == {}
    assert run.record.model.id == "layerscope/reference"
    assert run.record.suite.gold_alignment_rate == 1.0


@pytest.mark.parametrize("prompt", [0, 1, 10], ids=["longest", "shorter", "control"])
def test_rows_equal_transformers_own_modules_at_every_layer_and_position(prompt: int, run: Run):
    """Residuals of hooked blocks, through the resident model's own norm and head, in float64 from there on."""
    asked = run.record.suite.prompts[prompt]
    theirs = reference(BUNDLED, list(asked.token_ids))
    resident = load_resident(BUNDLED)
    with torch.inference_mode():
        logits = resident.lm_head(resident.model.norm(theirs.residuals)).double()
    log_p, log_f = logits.log_softmax(-1), theirs.logits.double().log_softmax(-1)
    gold = asked.answers[0].first_id
    expected = {
        "entropy_bits": -(log_p.exp() * log_p).sum(-1) / torch.tensor(2.0).log(),
        "teacher_entropy_bits": (-(log_f.exp() * log_f).sum(-1) / torch.tensor(2.0).log()).expand(len(log_p), -1),
        "kl_to_final_bits": (log_p.exp() * (log_p - log_f)).sum(-1) / torch.tensor(2.0).log(),
        "p_top1": log_p.exp().amax(-1),
        "p_top5": log_p.exp().topk(5).values.sum(-1),
        "p_answer": log_p[..., gold].exp(),
        "cos_to_final": torch.cosine_similarity(logits, theirs.logits.double()[None], dim=-1),
        "raw_resid_norm": theirs.residuals.double().norm(dim=-1),
    }
    identity = {"prompt_id": asked.prompt_id, "prompt_variant": asked.prompt_variant}
    own = pl.col("fact_index").eq_missing(asked.fact_index)
    rows = run.rows.filter(own, lens="logit", **identity)
    assert rows.select("layer", "position").rows() == [
        (layer, position) for layer in range(len(log_p)) for position in range(len(asked.token_ids))
    ]
    for name, values in expected.items():
        found = torch.tensor(rows[name].to_list(), dtype=torch.float64).view(values.shape)
        torch.testing.assert_close(found, values, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert rows["top1_id"].to_list() == logits.argmax(-1).flatten().tolist()
    assert rows["answer_rank"].to_list() == (1 + (logits > logits[..., [gold]]).sum(-1)).flatten().tolist()
    assert rows["token_id"].to_list() == list(asked.token_ids) * len(log_p)


def test_the_logit_lens_at_the_last_layer_is_the_model(run: Run):
    last = run.rows.filter(lens="logit", layer=run.record.model.n_layers)
    assert last["entropy_bits"].to_numpy() == pytest.approx(last["teacher_entropy_bits"].to_numpy(), abs=1e-4)
    assert last["kl_to_final_bits"].abs().max() < 1e-6  # of second order in the difference
    # Sums of squares of 2048 float32 products, in float64: each product is SINGLE off at most.
    assert last["cos_to_final"].to_numpy() == pytest.approx(1.0, abs=2 * SINGLE)
    assert last["cos_to_final_centered"].to_numpy() == pytest.approx(1.0, abs=2 * SINGLE)


def test_two_probes_give_the_same_rows_and_fingerprints(run: Run):
    again = probe(suite="capitals", positions="all", device="cpu")
    assert again.rows.equals(run.rows)
    mine, theirs = again.record, run.record
    assert (mine.model.fingerprint, mine.model.tokenizer_sha256) == (
        theirs.model.fingerprint,
        theirs.model.tokenizer_sha256,
    )
    told_apart = {"run_id", "created_utc", "timings", "provenance"}
    assert mine.model_dump(exclude=told_apart) == theirs.model_dump(exclude=told_apart)


def test_another_unembedding_has_another_fingerprint(model: CausalLM, tiny):
    assert len({model.fingerprint, *(CausalLM.open(tiny(n)).fingerprint for n in ("gpt2", "llama-biases"))}) == 3


@pytest.mark.parametrize("positions", ["auto", "last", "all"])
def test_the_positions_asked_for_have_a_row_for_each_lens_and_layer(positions: str, run: Run, model: CausalLM):
    found = run if positions == "all" else probe(model, suite="capitals", positions=positions)
    for i, (asked, own) in enumerate(zip(found.record.suite.prompts, prompts_of(found)["position"], strict=True)):
        length = len(asked.token_ids)
        whole = positions == "all" or (positions == "auto" and i == 0)
        assert own.to_list() == (list(range(length)) if whole else [length - 1])
        assert asked.decoded_positions == tuple(own)
    n_decoded = sum(len(prompt.decoded_positions) for prompt in found.record.suite.prompts)
    n_lenses, n_layers = len(found.record.protocol.lenses), found.record.model.n_layers
    without_layer_0 = "tuned" in found.record.protocol.lenses
    by_position = n_lenses * (n_layers + 1) - without_layer_0
    assert found.rows.height == n_decoded * by_position
    assert found.rows.select(KEYS).n_unique() == found.rows.height
    lengths = pl.Series([len(p.token_ids) for p in found.record.suite.prompts])
    assert found.rows.filter("is_next").height == len(lengths) * by_position
    assert found.record.positions == positions


def test_the_last_position_reads_the_same_whatever_else_is_decoded(run: Run, model: CausalLM):
    alone = probe(model, suite="capitals", positions="last")
    assert_same_rows(alone.rows, run.rows.filter("is_next"))


def test_prompts_read_together_equal_prompts_read_one_by_one(run: Run, model: CausalLM):
    lengths = [len(p.token_ids) for p in run.record.suite.prompts]
    one_of_each_length = sorted(map(lengths.index, set(lengths)))
    assert len(one_of_each_length) > 1  # else nothing would be padded
    prompts = load_suite("capitals").prompts
    together = run.rows.partition_by(["fact_index", "prompt_id", "prompt_variant"], maintain_order=True)
    for i in one_of_each_length:
        alone = probe(model, suite=Suite("one", "", (prompts[i],)), positions="all")
        assert_same_rows(alone.rows, together[i])


def test_every_column_is_filled_somewhere(run: Run):
    assert run.rows.columns == [column.name for column in COLUMNS]
    empty = [name for name in run.rows.columns if run.rows[name].null_count() == run.rows.height]
    of_model = ["model_top1_rank", "p_model_top1", "model_top1_logit_gap"]
    assert empty == of_model  # every prompt has an answer
    numbers = [c.name for c in COLUMNS if c.dtype == pl.Float64 and c.name not in of_model]
    assert [name for name in numbers if run.rows[name].n_unique() < 9] == []


@pytest.mark.parametrize("top_k", [1, 7, 60])
def test_as_many_tokens_are_listed_as_asked_for(top_k: int, run: Run, model: CausalLM):
    found = probe(model, suite="berlin", positions="last", top_k=top_k, lenses=("logit", "raw"))
    assert found.record.top_k == top_k
    for name in ("top_ids", "top_tokens", "top_probs"):
        assert found.rows[name].list.len().unique().to_list() == [top_k]
    rows = found.rows.with_columns(total=pl.col("top_probs").list.sum() + pl.col("rest_mass"))
    assert rows["total"].to_numpy() == pytest.approx(1.0, abs=SINGLE)
    assert (rows["top_ids"].list.first() == rows["top1_id"]).all()
    assert (rows["top_tokens"].list.first() == rows["top1"]).all()
    assert rows["top_probs"].list.eval(pl.element().diff() <= 0).list.all().all()
    assert rows["top_ids"].list.n_unique().unique().to_list() == [top_k]


def test_no_more_tokens_are_listed_than_there_are(model: CausalLM):
    found = probe(model, suite="berlin", positions="last", top_k=REFERENCE_VOCABULARY + 1, lenses=("logit",))
    assert found.rows["top_ids"].list.len().unique().to_list() == [model.d_vocab] == [REFERENCE_VOCABULARY]
    # The probabilities' exponentials are float64, and only their normaliser has seen float32: one exponential's error.
    assert found.rows["rest_mass"].to_numpy() == pytest.approx(0.0, abs=5 * SINGLE)


def test_lenses_come_in_the_order_asked_for_and_the_first_is_the_headline_where_logit_is_none(model: CausalLM):
    found = probe(model, suite="berlin", lenses=("raw", "next_norm"))
    assert found.record.protocol.lenses == ("raw", "next_norm")
    assert found.record.protocol.headline_lens == "raw"
    assert found.rows["lens"].unique(maintain_order=True).to_list() == ["raw", "next_norm"]
    assert set(found.record.lens_sources) == {"raw", "next_norm"}


def test_a_lens_reads_the_same_whatever_other_lenses_are_read(run: Run, model: CausalLM):
    alone = probe(model, suite="capitals", positions="all", lenses=("next_norm",))
    with_others = run.rows.filter(lens="next_norm")
    assert alone.rows[OVERLAPS[0]].null_count() == alone.rows.height  # nothing raw to overlap with
    headline = "kl_to_final_bits_norm_temp"  # measured for the first lens of the two runs, which is not the same
    with_others = with_others.with_columns(pl.lit(None, pl.Float64).alias(OVERLAPS[0])).drop(headline)
    assert_same_rows(alone.rows.drop(headline), with_others)


def test_a_probe_leaves_the_generators_and_kernels_as_they_were(model: CausalLM):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe(model, suite="berlin", positions="last")
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_is_read_back_as_it_was_saved(run: Run, tmp_path: Path):
    run.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == run


def test_a_record_names_no_folder_user_or_host(tmp_path: Path):
    folder = tmp_path / "own-model"
    shutil.copytree(BUNDLED, folder)
    found = probe(folder, suite="berlin", positions="last", device="cpu")
    found.save(tmp_path / "run")
    text = (tmp_path / "run" / "run.json").read_text()
    assert json.loads(text)["model"]["id"] == "own-model"
    for private in (str(tmp_path), str(Path.home()), getpass.getuser(), socket.gethostname(), str(BUNDLED.parent)):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text)
    assert not re.search(r'"/\w', text)


def test_the_published_protocol_decodes_lenses_without_the_head_s_transform(tiny):
    """Its rows at the last layer miss the softcap, as the published Gemma rows do; the model's own output keeps it."""
    suite = load_suite("berlin")
    asked = {"suite": suite, "positions": "last", "device": "cpu", "bos": "yes"}  # its tokenizer would add none
    standard = probe(tiny("gemma2"), **asked)
    published = probe(tiny("gemma2"), **asked, protocol="published")
    assert published.record.protocol.headline_lens == "next_norm"
    last = {"lens": "next_norm", "layer": standard.record.model.n_layers}
    assert standard.rows.filter(**last)["kl_to_final_bits"].max() < 1e-6
    assert published.rows.filter(**last)["kl_to_final_bits"].min() > 1e-3
    teacher = [
        found.rows.filter(lens="next_norm")["teacher_entropy_bits"].to_numpy() for found in (published, standard)
    ]
    np.testing.assert_allclose(*teacher, rtol=1e-4)  # texts beside the suite change a batch's rounding: `of_residual`
    top1 = [found.rows.filter(lens="next_norm", is_next=True)["top1_id"] for found in (published, standard)]
    assert top1[0].equals(top1[1])
    assert published.record.identity.ok  # which is about the model, not about the protocol
