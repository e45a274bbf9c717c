"""Lenses held against each other, from the command line and in Python."""

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import layerscope
from layerscope.analysis.causal_shares import causal_share
from layerscope.cli.main import app
from layerscope.errors import LensError, RunError
from layerscope.probing.bakeoff import BakeoffResult, bakeoff
from layerscope.record.shares import FULL, SHARE_COLUMNS


@pytest.fixture(scope="module")
def held() -> BakeoffResult:
    return bakeoff(suite="capitals", lenses="raw,logit,tuned")


def test_every_lens_has_its_share_over_the_layers_that_carry_the_answer(held: BakeoffResult):
    found, patching = held.summary, held.run.diagnostics.patching
    assert patching is not None and patching.handover.layer is not None
    assert found.layers == tuple(range(patching.handover.layer, 12))
    assert {lens.lens for lens in found.lenses} == {"raw", "logit", "tuned"}
    off = [abs(lens.share.full.value - lens.share.span.value) for lens in found.lenses if lens.share is not None]
    assert len(off) == 3 and off == sorted(off)
    for lens in found.lenses:
        assert lens.share == causal_share(held.shares, lens.lens, found.layers)
        assert lens.onset == patching.by_lens[lens.lens]["on_top_for_good"].layer
        assert lens.onset is not None and lens.onset_error_layers == lens.onset - patching.handover.layer


def test_reading_is_measured_on_the_answered_facts_at_these_layers(held: BakeoffResult):
    rows = held.run.rows.filter(
        pl.col("is_next"), pl.col("layer").is_in(held.summary.layers), prompt_id="pos", prompt_variant="orig"
    )
    for lens in held.summary.lenses:
        of_lens = rows.filter(lens=lens.lens)
        assert len(of_lens) == held.summary.n_facts * len(held.summary.layers)
        assert lens.kl_to_final_bits == pytest.approx(of_lens["kl_to_final_bits"].median())
        final = of_lens.select("fact_index").join(
            held.run.rows.filter(pl.col("is_next"), layer=12, lens="logit", prompt_id="pos", prompt_variant="orig"),
            on="fact_index",
        )
        agree = (of_lens["top1_id"] == final["top1_id"]).mean()
        assert lens.top1_agreement == pytest.approx(agree)


def test_the_whole_states_effects_are_those_of_the_probes_own_patches(held: BakeoffResult):
    patches = held.run.patches.filter(kind="pair", place="next").sort("pair", "layer")
    full = held.shares.filter(kind=FULL).sort("pair", "layer")
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
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(line.startswith(("raw ", "logit ")) for line in lines) == 2
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line and "·" not in line)
    assert len(list(tmp_path.glob("*/shares.parquet"))) == 1


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"suite": "berlin"}, RunError, "there are none to exchange: no two facts of one template"),
        ({"suite": "capitals", "lenses": "logit,lamp"}, LensError, "lamp"),
        ({"suite": "capitals", "lenses": "logit,tuned", "lens_dir": "nowhere"}, LensError, "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(asked, error, words):
    with pytest.raises(error, match=words):
        bakeoff(**asked)
