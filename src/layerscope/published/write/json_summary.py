"""Blocks that gather others: facts beside each other, guidance, and the pack that evaluations start from."""

from itertools import takewhile

from layerscope.analysis.facts import MicroSuite
from layerscope.analysis.guidance import IDENTITY_FAILED, Guidance
from layerscope.analysis.percentiles import depth_fraction
from layerscope.analysis.tuned_audit import CALIBRATION_ONLY
from layerscope.published import members
from layerscope.published.layout import (
    GENERATION_M,
    NEXT_TOKEN,
    POSITIONS_TUNED_AUDIT,
    RAWLENS,
    TUNED_VARIANTS,
    csv_name,
)
from layerscope.published.write.json_fitted_lenses import TUNED, audit_summary, has_raw_tables, has_variants, is_read
from layerscope.published.write.json_source import Source, Tree, gold_of, label_of
from layerscope.published.write.json_stability import rank_deviations
from layerscope.record.milestone_names import ONSET

FRACTION_DIGITS = 4
"""Of the pack, where `depth_fractions` has three."""
CONTROL_NOTE = "control is {control}; other positives do not add new controls"
_PACK_FACT = (
    "fact_key", "fact_index", "L_copy_strict", "L_semantic_norm", "L_semantic_confirmed", "L_semantic_margin_ok_norm",
    "delta_hat",
)  # fmt: skip
_PACK_AGGREGATES = ("L_semantic_confirmed_median", "delta_hat_median", "n_missing", "n")


def published_micro_suite(suite: MicroSuite, lens: str = "norm") -> Tree:
    """Every fact once, and the middle of each milestone over them, with the roundings of published files.

    Args:
        lens: What keys call the headline lens.
    """
    semantic, delta_hat = suite.L_semantic, suite.delta_hat_median
    return {
        "facts": [members.block_of(members.PUBLISHED_FACT, fact, GENERATION_M, lens=lens) for fact in suite.facts],
        "aggregates": {
            **members.block_of(members.FACT_AGGREGATES, suite, GENERATION_M, lens=lens),
            "delta_hat_median": None if delta_hat is None else round(delta_hat, FRACTION_DIGITS),
            f"L_semantic_{lens}_iqr": [semantic.p25_rounded, semantic.p75_rounded],
            "n_missing": suite.n_missing,
        },
        "citations": {"fact_rows": {fact.fact_key: fact.row_in_file for fact in suite.facts}},
    }


def micro_suite(source: Source) -> Tree:
    """The block `micro_suite`; the extended dialect has names that say what a fact's row is counted in."""
    suite = source.diagnostics.micro_suite
    block = published_micro_suite(suite, source.label if source.extended else "norm")
    aggregates = {**block["aggregates"], "notes": _control_note(source)}
    # Published files before there were several facts name none.
    rows: Tree = {fact.fact_key: fact.row_in_file for fact in suite.facts if fact.fact_key is not None}
    if not source.extended:
        return {"facts": block["facts"], "aggregates": aggregates, "citations": {"fact_rows": rows}}
    return {
        "facts": [source.block((*members.FACT, *members.FACT_ROWS), fact) for fact in suite.facts],
        "aggregates": aggregates,
        "medians_unrounded": source.block(members.FACT_MEDIANS, suite),
        "citations": {"file": csv_name(source.stem, NEXT_TOKEN), "fact_rows": rows},
    }


def _control_note(source: Source) -> str | None:
    """Which control there is, by the key of the fact that has its text; None without one."""
    control = source.control
    if control is None:
        return None
    same = [prompt.fact_key for prompt in source.record.suite.prompts if prompt.text == control.text]
    key = next((key for key in same if key is not None), None)
    return CONTROL_NOTE.format(control=key or control.text or "of another fact")


def published_guidance(guidance: Guidance) -> Tree:
    """How the numbers may be quoted, in the words of published files.

    A reason that those files do not know still counts in the two booleans. Their word for a headline lens is `norm`.
    """
    hint = guidance.preferred_semantics_lens_hint
    block: Tree = {
        **members.block_of(members.GUIDANCE, guidance, GENERATION_M),
        "reasons": [reason.name for reason in guidance.reasons if reason.name != IDENTITY_FAILED],
        "notes": guidance.notes,
        "preferred_lens_for_reporting": "tuned" if guidance.preferred_lens == "tuned" else "norm",
        "use_confirmed_semantics": bool(guidance.use_confirmed),
        "notes_append": guidance.notes_append,
    }
    if hint is not None:
        block["preferred_semantics_lens_hint"] = hint if hint in ("tuned", CALIBRATION_ONLY) else "norm"
    return block


def measurement_guidance(source: Source) -> Tree:
    """The same; the extended dialect gives the weight of each reason, and what is not known."""
    guidance = source.run.guidance
    block = published_guidance(guidance)
    if not source.extended:
        return block
    if guidance.preferred_semantics_lens_hint is not None:
        block["preferred_semantics_lens_hint"] = label_of(guidance.preferred_semantics_lens_hint)
    return {
        **block,
        "reasons": [reason.name for reason in guidance.reasons],
        "preferred_lens_for_reporting": label_of(guidance.preferred_lens),
        "severity": {reason.name: reason.severity for reason in guidance.reasons},
        "text": {reason.name: reason.text for reason in guidance.reasons},
        "undetermined": list(guidance.undetermined),
    }


def evaluation_pack(source: Source) -> Tree:
    """What evaluations start from; nothing here is computed anew."""
    guidance, gold = measurement_guidance(source), gold_of(source.primary_prompt)
    decodes = source.diagnostics.repeatability
    return {
        "model": source.stem,
        "n_layers": source.n_layers,
        "preferred_lens_for_reporting": guidance["preferred_lens_for_reporting"],
        "use_confirmed_semantics": guidance["use_confirmed_semantics"],
        "milestones": _pack_milestones(source),
        "artifact": source.known(members.PACK_ARTEFACT, source.diagnostics.raw_full) or {},
        "repeatability": {
            **rank_deviations(source),
            "flag": "high_variance" if decodes.high_variance else decodes.status,
        },
        "alignment": {
            "gold_alignment_rate": source.record.suite.gold_alignment_rate,
            "variant": None if gold is None else gold.variant,
        },
        "norm_trajectory": source.known(members.TRAJECTORY, source.diagnostics.trajectory) or {},
        "entropy": source.block(members.PACK_ENTROPY, source.diagnostics.entropy_gap),
        "tuned_audit": audit_summary(source) or {},
        "citations": {"layers": _cited_layers(source), "files": _cited_files(source)},
        "micro_suite": _pack_micro_suite(source),
    }


def _pack_milestones(source: Source) -> Tree:
    confirmation = source.diagnostics.confirmation
    facts, k = source.diagnostics.micro_suite.facts, softest_copy(source)
    delta_hat = next((fact.delta_hat for fact in facts if fact.prompt == source.diagnostics.primary), None)
    return {
        "L_copy_strict": source.layer("L_copy"),
        "L_copy_soft": {"k": k, "layer": None if k is None else source.layer(f"L_copy_soft_k{k}")},
        f"L_semantic_{source.label}": source.layer(ONSET),
        "L_semantic_confirmed": {
            "layer": None if confirmation is None else confirmation.layer,
            "source": "none" if confirmation is None else confirmation.source,
        },
        "depth_fractions": {
            "copy_strict_frac": depth_fraction(source.layer("L_copy"), source.n_layers, FRACTION_DIGITS),
            "semantic_frac": depth_fraction(source.layer(ONSET), source.n_layers, FRACTION_DIGITS),
            "delta_hat": None if delta_hat is None else round(delta_hat, FRACTION_DIGITS),
        },
    }


def softest_copy(source: Source) -> int | None:
    """The window whose soft copy comes first, the shorter of two; None where none ever copies."""
    layers = {k: source.layer(f"L_copy_soft_k{k}") for k in source.thresholds.copy_soft_windows}
    return min((k for k, layer in layers.items() if layer is not None), key=lambda k: (layers[k], k), default=None)


def _cited_layers(source: Source) -> Tree:
    """The row of each milestone among the primary prompt's rows; the extended dialect adds that in the whole file."""
    k, confirmation = softest_copy(source), source.diagnostics.confirmation
    layers = {
        "L_copy_strict": source.layer("L_copy"),
        "L_copy_soft": None if k is None else source.layer(f"L_copy_soft_k{k}"),
        f"L_semantic_{source.label}": source.layer(ONSET),
        "L_semantic_confirmed": None if confirmation is None else confirmation.layer,
    }
    rows = {name: row_in_pass(source, layer) for name, layer in layers.items()}
    if not source.extended:
        return {f"{name}_row": row for name, row in rows.items()}
    start = _rows_before(source)
    return {
        name: {
            "file": csv_name(source.stem, NEXT_TOKEN),
            "row_in_pass": row,
            "row_in_file": None if row is None else start + row,
        }
        for name, row in rows.items()
    }


def row_in_pass(source: Source, layer: int | None) -> int | None:
    """The place of a layer among the primary prompt's rows under the headline lens, counted from 0."""
    rows = () if source.curve is None else source.curve.rows
    return next((place for place, row in enumerate(rows) if row["layer"] == layer), None)


def _rows_before(source: Source) -> int:
    """How many rows stand before the primary prompt's in the table of the headline lens at last positions."""
    curves = source.run.verdict.curves
    earlier = takewhile(lambda prompt: prompt != source.diagnostics.primary, curves.passes)
    return sum(len(curve.rows) for prompt in earlier if (curve := curves.get(prompt, source.headline)))


def _cited_files(source: Source) -> Tree:
    tuned = is_read(source, TUNED)
    return {
        "pure_csv": csv_name(source.stem, NEXT_TOKEN),
        "tuned_pure_csv": csv_name(source.stem, NEXT_TOKEN, TUNED) if tuned else None,
        "rawlens_full_csv": csv_name(source.stem, RAWLENS) if has_raw_tables(source) else None,
        "tuned_variants_csv": csv_name(source.stem, TUNED_VARIANTS) if has_variants(source) else None,
        "positions_audit_csv": csv_name(source.stem, POSITIONS_TUNED_AUDIT) if tuned or source.extended else None,
    }


def _pack_micro_suite(source: Source) -> Tree:
    """Less of the block `micro_suite`; only generation M has it here."""
    whole = published_micro_suite(source.diagnostics.micro_suite)
    return {
        "facts": [{key: fact[key] for key in _PACK_FACT} for fact in whole["facts"]],
        "aggregates": {key: whole["aggregates"][key] for key in _PACK_AGGREGATES},
        "citations": micro_suite(source)["citations"],
    }
