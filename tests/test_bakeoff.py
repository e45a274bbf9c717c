"""Lenses held against each other, from the command line and in Python."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import layerscope
from fit_texts import write_text
from layerscope.analysis.bakeoff import Entrant, Seen, Taker, Text, bakeoff_of, bands
from layerscope.analysis.causal_shares import CausalShare, DirectionVerdict
from layerscope.analysis.drawn_facts import Median
from layerscope.analysis.handover import BeyondThird, Handover
from layerscope.cli.main import app
from layerscope.errors import CorpusError, LensError, RunError
from layerscope.fitting.corpus import read_corpus
from layerscope.fitting.held_out_text import held_out_text, own_passages
from layerscope.fitting.ridge import fit_ridge
from layerscope.probing.bakeoff import BakeoffResult, bakeoff, seen_by
from layerscope.record.shares import COMPLEMENT, FULL, KINDS, OTHERS, RANDOM, SHARE_COLUMNS, SPAN
from layerscope.report.sentences.bakeoff import about, how_used
from layerscope.view.charts.bakeoff import bakeoff_charts
from layerscope.view.page.bakeoff_page import COLUMNS, bakeoff_html, write_bakeoff_page


@pytest.fixture(scope="module")
def held() -> BakeoffResult:
    return bakeoff(suite="capitals-20", lenses="raw,logit,tuned", rank=8)


def medians_of(held: BakeoffResult, lens: str, layers: Sequence[int]) -> dict[str, float]:
    """Over pairs, of each pair's mean over layers, straight from the table."""
    rows = held.shares.filter(pl.col("layer").is_in(layers), pl.col("lens").is_null() | (pl.col("lens") == lens))
    effects = {
        kind: np.array(
            [
                of_pair["effect"].to_numpy().mean()
                for _, of_pair in rows.filter(kind=kind).group_by("pair", maintain_order=True)
            ]
        )
        for kind in KINDS
    }
    gain, loss = effects[SPAN] - effects[RANDOM], effects[FULL] - effects[COMPLEMENT]
    return {kind: float(np.median(values)) for kind, values in (effects | {"gain": gain, "loss": loss}).items()}


PROBED = {"raw", "logit", "tuned"}


def test_every_lens_has_its_share_over_the_layers_that_carry_the_answer(held: BakeoffResult):
    found, patching = held.summary, held.run.diagnostics.patching
    assert patching is not None and patching.handover.layer is not None
    assert found.layers == tuple(range(patching.handover.layer, 12))
    assert {lens.lens: lens.of for lens in found.lenses} == dict.fromkeys(PROBED) | {
        "tuned_rank8": "tuned", "tuned_shuffled": "tuned"
    }  # fmt: skip
    off = [abs(lens.share.full.value - lens.share.span.value) for lens in found.lenses if lens.share is not None]
    assert len(off) == 5 and off[:4] == sorted(off[:4])
    assert found.lenses[-1].entrant is Entrant.NULL
    for lens in found.lenses:
        share, due = lens.share, medians_of(held, lens.lens, found.layers)
        assert (share.n_facts, share.n_pairs, share.layers) == (20, 40, found.layers)
        assert share.full.value == pytest.approx(due[FULL]) and share.span.value == pytest.approx(due[SPAN])
        assert share.complement.value == pytest.approx(due[COMPLEMENT])
        assert share.random.value == pytest.approx(due[RANDOM]) and share.others.value == pytest.approx(due[OTHERS])
        assert share.gain.value == pytest.approx(due["gain"]) and share.loss.value == pytest.approx(due["loss"])
        assert share.verdict == "used" and min(share.gain.low, share.loss.low) > 0.1
        if lens.entrant is not Entrant.LENS:
            assert (lens.onset, lens.kl_to_final_bits, lens.top1_agreement) == (None, None, None)
            continue
        assert lens.onset == patching.by_lens[lens.lens]["on_top_for_good"].layer
        assert lens.onset is not None and lens.onset_error_layers == lens.onset - patching.handover.layer


def test_reading_is_measured_on_the_answered_facts_at_these_layers(held: BakeoffResult):
    rows = held.run.rows.filter(
        pl.col("is_next"), pl.col("layer").is_in(held.summary.layers), prompt_id="pos", prompt_variant="orig"
    )
    for lens in (lens for lens in held.summary.lenses if lens.lens in PROBED):
        of_lens = rows.filter(lens=lens.lens)
        assert len(of_lens) == held.summary.n_facts * len(held.summary.layers)
        assert lens.kl_to_final_bits == pytest.approx(of_lens["kl_to_final_bits"].median())
        final = of_lens.select("fact_index").join(
            held.run.rows.filter(pl.col("is_next"), layer=12, lens="logit", prompt_id="pos", prompt_variant="orig"),
            on="fact_index",
        )
        agree = (of_lens["top1_id"] == final["top1_id"]).mean()
        assert lens.top1_agreement == pytest.approx(agree)


def test_on_text_a_lens_is_measured_as_a_softmax_over_the_vocabulary_says(held: BakeoffResult):
    model = layerscope.CausalLM.open(device="cpu")
    ids = own_passages(model)
    found = model.forward(ids.tolist())
    rows = torch.cat([found.of_prompt(i)[:, 1:-1] for i in range(len(ids))], 1)
    assert model.final_norm is not None and held.summary.n_text_positions == rows.shape[1]

    def log_probs(residuals: torch.Tensor, *, normed: bool) -> torch.Tensor:
        row = model.final_norm(residuals) if normed else residuals
        return (row @ model.unembedding.weight.tensor.float().T).double().log_softmax(-1)

    output = log_probs(rows[-1], normed=True)
    for name, normed in (("logit", True), ("raw", False)):
        lens = next(lens for lens in held.summary.lenses if lens.lens == name)
        assert lens.text.seen is Seen.NO_FIT
        for layer in (0, 5, 12):
            read = log_probs(rows[layer], normed=normed)
            bits = float((output.exp() * (output - read)).sum(-1).mean()) / math.log(2)
            assert lens.text.bits[layer] == pytest.approx(bits, rel=1e-4, abs=1e-5)
            agree = float((read.argmax(-1) == output.argmax(-1)).double().mean())
            assert lens.text.top1[layer] == pytest.approx(agree)
        assert lens.text_bits == pytest.approx(sum(lens.text.bits[5:12]) / 7)


def test_a_text_that_a_fit_read_is_measured_where_that_fit_held_it_out(tmp_path: Path):
    text = write_text(tmp_path / "text.txt")
    model = layerscope.CausalLM.open(device="cpu")
    corpus = read_corpus([text], model.tokens, n_tokens=6_000, seq_len=24, n_embeddings=model.n_embeddings)
    lens = fit_ridge(model, corpus, tmp_path / "lens")
    other = lens.record.corpus.model_copy(update={"sources": ()})
    for n_tokens, seen in ((6_000, Seen.HELD_OUT), (8_000, Seen.PERHAPS)):
        read = held_out_text(model, [str(text)], "text", n_tokens).record
        assert seen_by(lens, read) is seen
    assert seen_by(replace(lens, record=lens.record.model_copy(update={"corpus": other})), read) is Seen.OTHER
    assert seen_by(lens, None) is Seen.OTHER and seen_by(None, read) is Seen.NO_FIT


def test_a_span_is_held_against_that_of_the_shuffled_lens_pair_by_pair(held: BakeoffResult):
    of_layers = held.shares.filter(pl.col("layer").is_in(held.summary.layers), kind="span")
    means = of_layers.group_by("lens", "pair").agg(pl.col("effect").mean()).sort("pair")
    tuned, null = (means.filter(lens=name)["effect"] for name in ("tuned", "tuned_shuffled"))
    by_name = {lens.lens: lens for lens in held.summary.lenses}
    over = by_name["tuned"].over_shuffled
    assert over is not None and over.value == pytest.approx((tuned - null).median())
    assert over.low <= over.value <= over.high
    assert [lens.lens for lens in held.summary.lenses if lens.over_shuffled is not None] == ["tuned"]


def test_the_whole_states_effects_are_those_of_the_probes_own_patches(held: BakeoffResult):
    patches = held.run.patches.filter(kind="pair", place="next").sort("pair", "layer")
    full = held.shares.filter(kind=FULL).sort("pair", "layer")
    assert set(full["layer"]) == set(held.summary.layers)
    patches = patches.filter(pl.col("layer").is_in(held.summary.layers))
    assert (patches["effect"] - full["effect"]).abs().max() < 1e-3  # float32 products of differences of several nats


def test_a_folder_holds_summary_exchanges_and_probe(held: BakeoffResult, tmp_path: Path):
    held.save(tmp_path / "one")
    assert (
        json.loads((tmp_path / "one" / "bakeoff.json").read_text())["lenses"][0]["lens"] == held.summary.lenses[0].lens
    )
    shares = pl.read_parquet(tmp_path / "one" / "shares.parquet")
    assert shares.equals(held.shares) and shares.columns == [column.name for column in SHARE_COLUMNS]
    assert layerscope.Run.read(tmp_path / "one" / "run") == held.run
    with pytest.raises(RunError, match="already"):
        held.save(tmp_path / "one")


def test_the_command_prints_a_line_a_lens_within_eighty_columns(tmp_path: Path):
    words = ["bakeoff", "--suite", "capitals", "--lens", "raw,logit", "--out", str(tmp_path)]
    words += ["--page", str(tmp_path / "page.html"), "--all-layers"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(line.startswith(("raw ", "logit ")) for line in lines) == 4  # how each reads, and what is used
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line and "·" not in line)
    (table,) = tmp_path.glob("*/shares.parquet")
    assert set(pl.read_parquet(table)["layer"]) == set(range(13))
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "Effects by lens, layers 5 to 11" in html
    told = " ".join(done.output.split())
    for text in (told, html):  # five facts
        assert "(an illustration: a claim takes 10 facts)" in text
        assert "undetermined: under 10 facts there is no interval" in text and "used:" not in text
        assert "they have no interval" in text
    assert "shuffled" not in told  # no lens is, and no column is for them


def test_the_legend_explains_the_verdicts_that_occur_and_no_other(held: BakeoffResult):
    some = held.summary.lenses[0]

    def told(*verdicts: DirectionVerdict, **changes: object) -> str:
        lenses = tuple(replace(some, share=replace(some.share, verdict=verdict)) for verdict in verdicts)
        return how_used(replace(held.summary, lenses=lenses, **changes))

    for verdict in DirectionVerdict:
        _, _, legend = told(verdict).partition("other answers' directions. ")
        assert legend.startswith(f"{verdict}: ") and legend.count(": ") == 1
    assert told(*DirectionVerdict).count(": ") == 4 + len(DirectionVerdict)  # span, rest, random, others
    assert "not known: no pair has" in how_used(replace(held.summary, lenses=(replace(some, share=None),)))
    unclear = held.summary.handover
    third = replace(unclear.beyond_third, is_clear=False)
    assert "its own answer or takes the other away" in told(
        DirectionVerdict.UNDETERMINED, handover=replace(unclear, beyond_third=third)
    )


def test_it_says_that_the_answer_is_carried_only_where_it_is(held: BakeoffResult):
    at = held.summary.handover
    assert about(held.summary).startswith(
        f"The answer is carried at the last token from layer 5 on (median over 20 facts in 40 pairs; 95 % {at.low} to"
    )
    assert "illustration" not in about(held.summary) and "held against" not in about(held.summary)
    unclear = replace(at, beyond_third=replace(at.beyond_third, is_clear=False))
    told = about(replace(held.summary, handover=unclear))
    assert "carried" not in told and "takes the other away is not clear; over layers 5 to 11" in told
    shares = [lens.share for lens in bakeoff_of(held.run, unclear, held.shares, [Taker("raw")], text_of(held)).lenses]
    assert [share.verdict for share in shares] == ["undetermined"]
    untested = about(replace(held.summary, handover=replace(at, beyond_third=None)))
    assert "from layer 5 on" in untested and "could be held against that; over layers" in untested


def test_where_no_layer_before_the_output_carries_the_answer_it_is_refused_in_true_words(monkeypatch):
    third = BeyondThird(n_pairs=40, n_facts=20, gap=0.5, low=-0.1, high=0.6, at_the_output=0.5, is_clear=False)
    at = Handover(12, None, None, None, n_pairs=40, n_layers=12, n_facts=20, effect_from=9, beyond_third=third)
    monkeypatch.setattr("layerscope.analysis.handover.handover", lambda patches, n_layers: at)
    with pytest.raises(
        RunError, match=r"From layer 9 on a patch .* is not clear, so there is no layer before the output"
    ):
        bakeoff(suite="capitals", lenses="logit")


def text_of(held: BakeoffResult) -> Text:
    summary = held.summary
    return Text(summary.text, summary.n_text_positions, {lens.lens: lens.text for lens in summary.lenses})


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"suite": "berlin"}, RunError, "there are none to exchange: in the wording orig no two facts of one template"),
        ({"suite": "capitals", "lenses": "logit,lamp"}, LensError, "lamp"),
        ({"suite": "capitals", "lenses": "logit,tuned", "lens_dir": "nowhere"}, LensError, "nowhere"),
        ({"rank": -1}, LensError, "at least 1, or 0 for none, but it is -1"),
        ({"text": ["nowhere.txt"], "tokens": "some"}, CorpusError, "'some' is no number of tokens"),
        ({"tokens": "100k"}, CorpusError, "--tokens says what to read of a text, but no text was given; name one with"),
        ({"field": "body", "tokens": 9}, CorpusError, "--field and --tokens say .* leave --field and --tokens out"),
        ({"text": ["nowhere.txt"]}, CorpusError, "no file 'nowhere.txt'"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(asked, error, words):
    with pytest.raises(error, match=words):
        bakeoff(**asked)


def test_layers_are_cut_into_bands_of_neighbours():
    assert bands(tuple(range(5, 12))) == ((5, 6, 7), (8, 9), (10, 11))
    assert bands((3, 4)) == ((3,), (4,)) and bands((3,)) == ()


def test_charts_draw_every_lens_with_its_interval_and_its_distance(held: BakeoffResult):
    *shares, text = bakeoff_charts(held.summary)
    assert [chart.name for chart in shares] == [f"bakeoff-shares-{ends}" for ends in ("5-11", "5-7", "8-9", "10-11")]
    for chart, layers in zip(shares, ((5, 12), (5, 8), (8, 10), (10, 12)), strict=True):
        assert len(chart.table) == 5 * 7 and not chart.table.null_count().sum_horizontal().item()
        for lens in held.summary.lenses:
            due = medians_of(held, lens.lens, range(*layers))
            of_lens = {row["part"]: row for row in chart.table.filter(lens=lens.lens).iter_rows(named=True)}
            for part, kind in (("rest", COMPLEMENT), ("span", SPAN), ("gain", "gain"), ("loss", "loss")):
                assert of_lens[part]["median"] == pytest.approx(due[kind])
                assert of_lens[part]["low"] <= of_lens[part]["median"] <= of_lens[part]["high"]
    drawn = text.chart.to_dict()  # valid, for it is checked here
    series = {row["series"] for rows in drawn["datasets"].values() for row in rows if "series" in row}
    assert series == {"raw", "logit", "tuned", "tuned, rank 8"}  # a null's distance is in the table alone
    assert set(text.table["lens"]) == {lens.lens for lens in held.summary.lenses}
    assert "bits: raw" in " ".join(drawn["title"]["subtitle"])


def test_what_is_far_off_at_the_embedding_alone_does_not_flatten_the_chart(held: BakeoffResult):
    def drawn(first: float) -> dict[str, Any]:
        """The logit lens at so many bits from the model at the embedding."""
        lenses = tuple(
            replace(lens, text=replace(lens.text, bits=(first, *lens.text.bits[1:]))) if lens.lens == "logit" else lens
            for lens in held.summary.lenses
        )
        *_, text = bakeoff_charts(replace(held.summary, lenses=lenses))
        return text.chart.to_dict()

    later = max(
        max(lens.text.bits[1:]) for lens in held.summary.lenses if lens.lens in ("logit", "tuned", "tuned_rank8")
    )
    for first, names in ((2.9 * later, " bits: raw"), (3.1 * later, " bits: raw; logit; tuned, rank 8")):
        assert " ".join(drawn(first)["title"]["subtitle"]).endswith(names)


def test_a_chart_of_few_facts_has_no_bars(held: BakeoffResult):
    def few(share: CausalShare) -> CausalShare:
        bare = {name: Median(getattr(share, name).value, None, None) for name in ("full", "span", "complement")}
        return replace(share, n_facts=9, **bare)

    lenses = tuple(replace(lens, share=few(lens.share)) for lens in held.summary.lenses)
    chart, *_ = bakeoff_charts(replace(held.summary, lenses=lenses))
    drawn = chart.chart.to_dict()
    assert "no interval" in str(drawn["title"])
    assert not [row for rows in drawn["datasets"].values() for row in rows if "low" in row]


def test_the_page_holds_the_table_and_says_what_it_is_measured_on(held: BakeoffResult, tmp_path: Path):
    path = write_bakeoff_page(held.summary, tmp_path / "page.html")
    html = path.read_text("utf-8")
    share = next(lens.share for lens in held.summary.lenses if lens.lens == "tuned")
    assert share is not None
    assert f">{share.span.value:.2f}\n[{share.span.low:.2f}, {share.span.high:.2f}]</td>" in html
    for words in ('<th scope="row">tuned, shuffled</th>', "504 positions of passages of layerscope", "default-src"):
        assert words in html
    assert html.count("<figure") == 5
    assert html.count("</button></th>") == len(COLUMNS)
    bare = tuple(replace(lens, over_shuffled=None) for lens in held.summary.lenses)
    assert ">over shuffled<" not in bakeoff_html(replace(held.summary, lenses=bare))
    assert write_bakeoff_page(held.summary, path) == path  # one of ours is replaced
    (tmp_path / "theirs.html").write_text("mine")
    with pytest.raises(RunError, match="not written as a view by layerscope"):
        write_bakeoff_page(held.summary, tmp_path / "theirs.html")
