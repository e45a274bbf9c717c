"""Whole answers equal teacher forcing by concatenation, and cost nothing where every answer has one piece."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from layerscope import CausalLM, Prompt, Run, Suite, probe
from layerscope.errors import SuiteError
from layerscope.probing.encode import encode
from layerscope.probing.whole_answers import Forcing
from layerscope.readout.whole_answers import further_rows, without_longer
from layerscope.record.protocol import PROTOCOLS
from properties import checks_every_type
from rounding import of_residual
from tiny_models import load_resident, reference

WHOLE = ["answer_log_prob_nats_all", "answer_rank_all", "answer_logit_gap_all"]
ASKED = {
    "Germany": ("Munich",),
    "France": ("Berlin", "Berlin Mitte", "name", "city", "Berlin"),
    "Japan": ("Tokyo", "Madrid"),
    "Spain": ("name", "city"),
}
"""One long answer; long and short ones, of which one continues another and one comes twice; two long ones that begin
differently; short ones."""


def _suite(answers: dict[str, tuple[str, ...]], end: str = "", **options: str) -> Suite:
    prompts = [
        Prompt("pos", "orig", f"The capital of {subject} is called{end}", accepted, subject, i, **options)
        for i, (subject, accepted) in enumerate(answers.items())
    ]
    return Suite("whole", "", tuple(prompts))


@pytest.fixture(scope="module", params=["qwen3", "gemma2"])
def folder(request: pytest.FixtureRequest, tiny) -> Path:
    """Of a plain model, and of one with a softcap."""
    return tiny(request.param)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    # Every position, so that the last is picked out of several; behind a quote either form of an answer may be judged.
    return probe(folder, suite=_suite(ASKED, end=' "'), positions="all", lenses="logit,raw", device="cpu")


def _forced(folder: Path, ids: list[int], pieces: tuple[int, ...], lens: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear logits and log-probabilities `[piece, layer, vocabulary]` by plain Transformers, in float64 at the end."""
    model = load_resident(folder)
    residuals = reference(folder, ids + list(pieces[:-1])).residuals[:, len(ids) - 1 :]
    with torch.inference_mode():
        rows = model.model.norm(residuals) if lens == "logit" else residuals
        linear = model.lm_head(rows).double().transpose(0, 1)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return linear, (linear if cap is None else cap * torch.tanh(linear / cap)).log_softmax(-1)


@pytest.mark.parametrize("lens", ["logit", "raw"])
@pytest.mark.parametrize("subject", ASKED)
def test_whole_answers_equal_teacher_forcing_by_concatenation(subject: str, lens: str, folder: Path, run: Run):
    """At every layer; at the last one the logit lens is the model itself."""
    at = list(ASKED).index(subject)
    asked = run.record.suite.prompts[at]
    rows = run.rows.filter(fact_index=at, lens=lens)
    assert all(rows.filter(~pl.col("is_next"))[name].is_null().all() for name in WHOLE)
    found = rows.filter("is_next")
    log_probs, least, most, leads, error = {}, [], [], [], 0.0
    for pieces in {a.answer_ids: None for a in asked.answers}:
        linear, log_p = _forced(folder, list(asked.token_ids), pieces, lens)
        chosen = torch.tensor(pieces)[:, None, None].expand(len(pieces), len(found), 1)
        own, off = linear.gather(-1, chosen), of_residual(4, 64) * float(linear.abs().max())
        error = max(error, 2 * len(pieces) * off)
        log_probs[pieces] = log_p.gather(-1, chosen)[..., 0].sum(0)
        # The worst rank of a piece, with logits that rounding may confuse counted as below and as above it.
        least.append((1 + (linear > own + 2 * off).sum(-1)).amax(0))
        most.append((linear > own - 2 * off).sum(-1).amax(0))
        top = log_p.topk(2, -1).values
        leads.append((top[..., 0] - top[..., 1]).amin(0))
    shortest = [p for p in log_probs if not any(p != other and p[: len(other)] == other for other in log_probs)]
    due = torch.stack([log_probs[pieces] for pieces in shortest]).logsumexp(0)
    np.testing.assert_allclose(found["answer_log_prob_nats_all"], due, rtol=0, atol=error)
    low, high = (torch.stack(ranks).amin(0).tolist() for ranks in (least, most))
    ranks = found["answer_rank_all"].to_list()
    assert all(a <= rank <= b for a, rank, b in zip(low, ranks, high, strict=True))
    assert sum(b - a for a, b in zip(low, high, strict=True)) < 0.1 * sum(ranks)  # most of them are certain
    assert found["answer_logit_gap_all"].is_not_null().to_list() == [rank == 1 for rank in ranks]
    for i in (i for i, rank in enumerate(high) if rank == 1):
        gap = max(float(lead[i]) for lead, rank in zip(leads, most, strict=True) if rank[i] == 1)
        assert found["answer_logit_gap_all"][i] == pytest.approx(gap, abs=error)


def test_the_whole_of_a_single_answer_of_one_piece_is_the_answer_itself(five_lens_run: Path):
    rows = Run.read(five_lens_run).rows.filter("is_next")
    assert rows["answer_rank_all"].equals(rows["answer_rank"].alias("answer_rank_all"))
    assert rows["answer_logit_gap_all"].equals(rows["answer_logit_gap"].alias("answer_logit_gap_all"), null_equal=True)
    np.testing.assert_allclose(rows["answer_log_prob_nats_all"].exp(), rows["p_answer"], rtol=1e-12)


def test_answers_of_one_piece_cost_no_sequence_and_no_row(tiny):
    model = CausalLM.open(tiny("qwen3"), device="cpu")
    encoded = encode(_suite({"Spain": ("name", "city"), "Italy": ("plain",)}, answer_form="space"), model, "last")
    forcing = Forcing.of(model, encoded, PROTOCOLS["standard"])
    assert (forcing.sequences, forcing.n_rows) == ((), 0)
    assert further_rows(forcing.queries(encoded)) == ()
    assert [len(query.whole) for query in forcing.queries(encoded)] == [2, 1]


def test_a_form_that_would_go_on_the_word_before_costs_no_sequence(tiny):
    model = CausalLM.open(tiny("qwen3"), device="cpu")
    assert [len(model.tokens.forms("is called", "city")[i].answer_ids) for i in (0, 1)] == [1, 3]
    behind_a_word, behind_a_quote = (
        Forcing.of(model, encode(_suite({"Spain": ("city",)}, end=end), model, "last"), PROTOCOLS["standard"])
        for end in ("", ' "')
    )
    assert behind_a_word.sequences == ()
    assert len(behind_a_quote.sequences) == 1


def test_what_continues_an_accepted_answer_is_not_counted_twice():
    assert without_longer([(1, 2), (3,), (1, 2, 4), (3, 1), (2,), (3,)]) == ((1, 2), (3,), (2,))


def test_an_answer_too_long_for_the_context_is_flagged_and_absent(tiny):
    folder = tiny("opt")  # reads 64 tokens
    model = CausalLM.open(folder, device="cpu")
    text = "The capital of Germany is called"
    longest = next(n for n in range(1, 60) if len(model.tokens.input_ids(text * (n + 1))) > model.n_context - 3)
    prompts = (
        Prompt("pos", "orig", text * longest, ("Munich Munich Munich Munich",), "a", 0),
        Prompt("pos", "orig", text, ("Munich",), "b", 1),
    )
    run = probe(model, suite=Suite("long", "", prompts), positions="last", lenses="logit")
    assert run.record.flags["whole_answer_not_read"].startswith("1 of 2 prompts have an answer that was not read")
    long, short = (run.rows.filter(fact_index=i) for i in (0, 1))
    assert long.select(WHOLE).null_count().row(0) == (len(long),) * 3
    assert long["p_answer"].null_count() == 0
    assert short.select(WHOLE[:2]).null_count().row(0) == (0, 0)


def test_the_published_protocol_reads_whole_answers_where_they_are_judged_alone(tiny):
    suite = _suite({"Germany": ("Munich",)})
    plain = probe(tiny("qwen3"), suite=suite, protocol="published", device="cpu")
    assert plain.rows.select(WHOLE).null_count().row(0) == (len(plain.rows),) * 3
    assert plain.record.suite.prompts[0].judge == "first_piece"
    judged = probe(tiny("qwen3"), suite=suite, protocol="published", judge="whole", positions="last", device="cpu")
    assert judged.rows["answer_log_prob_nats_all"].null_count() == 0
    assert judged.record.suite.prompts[0].judge == "whole"
    assert judged.record.suite.sha256 == plain.record.suite.sha256


def test_another_judge_is_refused(tiny, request: pytest.FixtureRequest):
    if checks_every_type(request):
        pytest.skip("a checker of types refuses the word before the probe does")
    with pytest.raises(SuiteError, match="choose from first_piece, whole"):
        probe(tiny("qwen3"), suite=_suite({"Germany": ("Munich",)}), judge="all")
