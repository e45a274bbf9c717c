"""The tuned lens' own audit: numbers worked out by hand, medians by numpy, and the published last rows."""

import math

import numpy as np
import polars as pl
import pytest

from layerscope.analysis.curve import Curve
from layerscope.analysis.tuned_audit import (
    HeadMismatch,
    PositionRow,
    Reading,
    RotationVsTemperature,
    head_mismatch,
    position_rows,
    positions_audit,
    rank_shift,
    rotation_vs_temperature,
    tuned_audit,
    variant_rows,
)
from layerscope.record import COLUMNS
from layerscope.record.measured import LastLayerRecord, TunedVariantRecord, TunedVariantsRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.run import Run

BLANK = {column.name: None for column in COLUMNS}
PRIMARY = PromptKey(0, "pos", "orig")


def curve(lens, kl, ranks=None, entropy=None, first_layer=0, n_layers=4):
    """A curve with these columns; layers follow each other."""
    ranks, entropy = ranks or [None] * len(kl), entropy or [2.0] * len(kl)
    rows = tuple(
        BLANK | {"row": i, "layer": first_layer + i, "kl_to_final_bits": bits, "answer_rank": rank, "entropy_bits": h}
        for i, (bits, rank, h) in enumerate(zip(kl, ranks, entropy, strict=True))
    )
    return Curve(PRIMARY, lens, n_layers, 100, rows)


def parts(rotation, temperature, rotation_ranks=None, temperature_ranks=None):
    """Variants of layers 1 on."""
    blank = [None] * len(rotation)
    return TunedVariantsRecord(
        rotation_only=TunedVariantRecord(
            kl_to_final_bits=(None, *rotation), answer_rank=(None, *(rotation_ranks or blank))
        ),
        temperature_only=TunedVariantRecord(
            kl_to_final_bits=(None, *temperature), answer_rank=(None, *(temperature_ranks or blank))
        ),
    )


BASELINE = curve("logit", [9.0, 8.0, 6.0, 4.0, 0.5], [90, 40, 20, 5, 1], [7.0, 6.0, 5.0, 4.0, 3.0])
TUNED = curve("tuned", [5.0, 4.5, 1.0, 0.5], [10, 21, 2, 1], [5.0, 4.0, 3.0, 3.0], first_layer=1)
PARTS = parts([7.0, 5.0, 3.5, 0.5], [7.5, 7.0, 4.0, 0.5], [30, 20, 6, 1], [40, 20, 5, 1])


def test_each_part_is_held_against_the_headline_lens_layer_by_layer():
    rows = variant_rows(BASELINE, TUNED, PARTS)
    assert [row.layer for row in rows] == [1, 2, 3, 4]
    assert rows[0].baseline == Reading(8.0, 40, 6.0)
    assert rows[0].tuned == Reading(5.0, 10, 5.0)
    assert (rows[0].rotation_only, rows[0].temperature_only) == (Reading(7.0, 30), Reading(7.5, 40))
    # The whole gains 3, 1.5, 3 and 0; the parts 1 + 0.5, 1 - 1, 0.5 + 0 and 0.
    assert [row.interaction_bits for row in rows] == [1.5, 1.5, 2.5, 0.0]
    assert [rank_shift(row.baseline, row.tuned) for row in rows] == [30, -1, 3, 0]
    assert [rank_shift(row.baseline, row.rotation_only) for row in rows] == [10, 0, -1, 0]


def test_quartiles_are_taken_over_all_layers_but_the_embedding():
    found = rotation_vs_temperature(variant_rows(BASELINE, TUNED, PARTS))
    rotation, temperature = [1.0, 1.0, 0.5, 0.0], [0.5, -1.0, 0.0, 0.0]
    for bits, gains in ((found.rotation_bits, rotation), (found.temperature_bits, temperature)):
        assert bits == {f"p{q}": float(np.percentile(gains, q)) for q in (25, 50, 75)}
    assert (found.tuned_bits, found.interaction_bits, found.n_layers) == (2.25, 1.5, 4)


def test_a_layer_that_was_not_finite_is_left_out_of_what_needs_it():
    found = rotation_vs_temperature(variant_rows(BASELINE, TUNED, parts([None, 5.0, 3.5, 0.5], [7.5, None, 4.0, 0.5])))
    assert found.rotation_bits["p50"] == np.median([1.0, 0.5, 0.0])
    assert found.temperature_bits["p50"] == np.median([0.5, 0.0, 0.0])
    assert found.interaction_bits == np.median([2.5, 0.0])
    assert found.tuned_bits == 2.25
    short = variant_rows(BASELINE, curve("tuned", [5.0], first_layer=1), parts([7.0], [7.5]))
    assert [row.tuned.kl_bits for row in short] == [5.0, None, None, None]
    assert [row.rotation_only.kl_bits for row in short] == [7.0, None, None, None]


def _medians(rotation, temperature, tuned):
    three = [dict.fromkeys(("p25", "p50", "p75"), value) for value in (rotation, temperature)]
    return RotationVsTemperature(*three, interaction_bits=0.0, tuned_bits=tuned, n_layers=4)


@pytest.mark.parametrize(
    ("rotation", "temperature", "tuned", "flag", "hint"),
    [
        (0.1, 1.0, 1.0, True, "tuned_for_calibration_only"),
        (0.1, 0.8, 1.0, True, "tuned_for_calibration_only"),  # four fifths are enough
        (0.1, 0.79, 1.0, False, "tuned"),
        (0.2, 1.0, 1.0, False, "tuned"),  # the map is worth something
        (0.0, 0.0, 0.2, False, "logit"),  # more than this is asked of the whole
        (0.0, 0.0, 0.0, False, "logit"),
        (-1.0, -0.5, -0.5, False, "logit"),  # a loss is no calibration, though the second condition holds
        (-0.03, 0.48, 0.48, True, "tuned_for_calibration_only"),
        (0.88, 0.01, 3.63, False, "tuned"),
        (None, 1.0, 1.0, None, "logit"),
        (0.1, None, 1.0, None, "logit"),
        (0.1, 1.0, None, None, "logit"),
    ],
)
def test_a_tuned_lens_that_is_a_temperature_is_flagged(rotation, temperature, tuned, flag, hint):
    found = _medians(rotation, temperature, tuned)
    assert found.calibration_only is flag
    assert found.hint("logit") == hint


def test_without_its_parts_there_is_no_audit_of_them_but_a_reason():
    found = tuned_audit(BASELINE, TUNED, None, [], None)
    assert (found.rotation_vs_temperature, found.hint, found.calibration_only) == (None, None, None)
    assert found.reason == "the tuned lens was not decoded in parts"
    whole = tuned_audit(BASELINE, TUNED, PARTS, [], None)
    assert (whole.reason, whole.hint, whole.calibration_only) == (None, "tuned", False)


# Along the prompt


def _rows(places: dict[tuple[str, int, int], tuple[float, int]]) -> pl.DataFrame:
    """A table with those divergences and ranks, by lens, layer and position."""
    return pl.DataFrame(
        [
            {"fact_index": 0, "prompt_id": "pos", "prompt_variant": "orig", "lens": lens, "layer": layer,
             "position": position, "kl_to_final_bits": kl, "answer_rank": rank, "entropy_bits": 1.0}
            for (lens, layer, position), (kl, rank) in places.items()
        ],
        schema_overrides={"fact_index": pl.Int32},
    )  # fmt: skip


def test_positions_of_the_grid_are_compared_layer_by_layer_with_ranks_everywhere():
    lens_rows = {
        (lens, layer, position): (8.0 - layer - (lens == "tuned") * (1 + position / 8), 50 - layer - position)
        for lens in ("logit", "tuned", "raw")
        for layer in (0, 1, 2)
        for position in range(11)
        if (lens, layer) != ("tuned", 0)
    }
    others = _rows(lens_rows).with_columns(prompt_variant=pl.lit("no_filler"), kl_to_final_bits=pl.lit(99.0))
    rows = position_rows(pl.concat([others, _rows(lens_rows)]), PRIMARY, "logit", 2, 10)
    # The last index is 10, so 0.92 leads to 9 and 0.96 to 10: that label is the first of those that do.
    grid = [(2, 0.2), (4, 0.4), (6, 0.6), (8, 0.8), (9, 0.92), (10, 0.96)]
    assert [(row.layer, row.position, row.fraction) for row in rows] == [
        (layer, *place) for layer in (1, 2) for place in grid
    ]
    assert [row.baseline.kl_bits for row in rows] == [7.0] * 6 + [6.0] * 6
    assert [row.tuned.kl_bits for row in rows[:2]] == [5.75, 5.5]
    assert [row.baseline.answer_rank for row in rows[:6]] == [50 - 1 - position for position, _ in grid]
    audit = positions_audit(rows)
    early = [1 + position / 8 for position in (2, 4, 6, 8, 9)] * 2
    assert audit.in_dist_le_0_92_bits == np.median(early)
    assert (audit.ood_ge_0_96_bits, audit.gap_bits) == (2.25, 2.25 - np.median(early))
    assert (audit.n_in_dist, audit.n_ood, audit.grid) == (10, 2, (0.2, 0.4, 0.6, 0.8, 0.92, 0.96))


def test_places_that_were_not_read_have_no_gain_and_those_of_the_headline_lens_no_row():
    rows = position_rows(_rows({("logit", 1, 10): (4.0, 3), ("tuned", 1, 8): (1.0, 2)}), PRIMARY, "logit", 4, 10)
    assert rows == (PositionRow(0.96, 10, 1, Reading(4.0, 3, 1.0), Reading()),)
    audit = positions_audit(rows)
    assert (audit.in_dist_le_0_92_bits, audit.ood_ge_0_96_bits, audit.gap_bits) == (None, None, None)


def test_a_tuned_headline_lens_has_nothing_beside_itself():
    places = {("tuned", layer, 10): (4.0 - layer, 3) for layer in (1, 2)}
    rows = position_rows(_rows(places), PRIMARY, "tuned", 2, 10)
    assert [(row.layer, row.baseline.kl_bits, row.tuned) for row in rows] == [(1, 3.0, Reading()), (2, 2.0, Reading())]
    audit = positions_audit(rows)
    assert (audit.n_in_dist, audit.n_ood) == (0, 0)


# The last row

LAST = LastLayerRecord(
    kl_to_final_bits=0.5, temp_est=2.5, kl_after_temp_bits=0.25, temp_est_refined=2.625,
    kl_after_temp_refined_bits=0.125, kl_after_softcap_bits=0.0625,
)  # fmt: skip


def test_the_last_row_of_the_tuned_lens_is_the_headline_lens_one_and_has_its_temperature():
    assert head_mismatch(BASELINE, TUNED, LAST) == HeadMismatch(0.5, 2.625, 0.125, 0.0625, None)
    coarse = LAST.model_copy(update={"temp_est_refined": None, "kl_after_temp_refined_bits": None})
    assert head_mismatch(BASELINE, TUNED, coarse) == HeadMismatch(0.5, 2.5, 0.25, 0.0625, None)


def test_another_last_row_has_no_temperature_but_a_reason():
    other = curve("tuned", [5.0, 4.5, 1.0, 0.75], entropy=[5.0, 4.0, 3.0, 3.0], first_layer=1)
    sharper = curve("tuned", [5.0, 4.5, 1.0, 0.5], entropy=[5.0, 4.0, 3.0, 2.0], first_layer=1)
    for tuned, kl in ((other, 0.75), (sharper, 0.5)):
        found = head_mismatch(BASELINE, tuned, LAST)
        assert (found.kl_bits, found.temperature, found.kl_after_temperature_bits) == (kl, None, None)
        assert "is not the headline lens' one" in found.reason
    assert head_mismatch(BASELINE, TUNED, None).reason == "the last layer was not measured"
    assert (
        head_mismatch(BASELINE, curve("tuned", [5.0], first_layer=1), LAST).reason == "the tuned lens has no last row"
    )


PUBLISHED_LAST = {
    "Mistral-7B-v0.1": (0.0, 0.0),
    "Meta-Llama-3-8B": (0.0, 0.0),
    "Qwen3-8B": (0.0, 0.0),
    "gemma-2-9b": (1.0129, 0.3391),
    "Qwen3-14B": (0.0, 0.0),
    "gemma-2-27b": (1.1352, 0.5131),
    "Yi-34B": (0.0003, 0.0003),
    "Mistral-Small-24B-Base-2501": (0.0, 0.0),
}
"""KL of the last tuned row in bits, and after the best temperature, as printed."""


@pytest.mark.parametrize("model", PUBLISHED_LAST)
def test_published_last_rows_are_as_far_from_the_head_as_printed(shared, model):
    """The temperature of these files is of a coarser grid, so it leaves a little more than the printed best one."""
    run = Run.read(shared / "reference" / "run-20251004-1804", model=model)
    found = run.diagnostics.tuned_audit.head_mismatch
    kl, after = PUBLISHED_LAST[model]
    assert found.reason is None
    assert found.kl_bits == pytest.approx(kl, abs=5e-5)
    assert -5e-5 <= found.kl_after_temperature_bits - after < 0.06


def test_published_runs_of_that_sweep_hold_no_parts_so_nothing_is_hinted(shared):
    run = Run.read(shared / "reference" / "run-20251004-1804", model="Qwen3-8B")
    audit = run.diagnostics.tuned_audit
    assert (audit.hint, audit.reason) == (None, "the tuned lens was not decoded in parts")
    assert "tuned_is_calibration_only" in run.guidance.undetermined
    # Records hold no divergences, so only the last position, labelled 0.98, has gains: one a layer, at its end.
    positions = audit.positions
    assert (positions.n_in_dist, positions.n_ood, positions.in_dist_le_0_92_bits) == (0, 36, None)
    norm, tuned = (
        {row["layer"]: row["kl_to_final_bits"] for row in run.rows.filter(
            pl.col("is_next"), lens=lens, prompt_id="pos", prompt_variant="orig").to_dicts()}
        for lens in ("next_norm", "tuned")
    )  # fmt: skip
    gains = [norm[layer] - tuned[layer] for layer in range(1, 37)]
    assert math.isclose(positions.ood_ge_0_96_bits, float(np.median(gains)), rel_tol=1e-12)
