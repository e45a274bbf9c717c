"""How far the lens may be trusted: the head at the last layer, artefact tiers, entropy at half depth."""

from collections.abc import Sequence

from layerscope.analysis.percentiles import depth_layer
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import MARK, Section, Sentence, paragraph, sentence
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.limits import warns
from layerscope.report.synthesis.words import of_runs, run_table, with_values

_LAST = ("diagnostics", "last_layer_consistency")
_FULL = ("diagnostics", "raw_lens_full")
_QUARTERS = ("p25", "p50", "p75")


def head_section(runs: Sequence[Compared]) -> Section:
    """Whether the last layer under the lens is the model's own output, and what explains a difference."""
    header = (
        "last-layer KL | too far | temperature | KL after it | softcap | KL after it | KL <= 1.0 from | KL <= 0.5 from"
    )
    table = run_table(
        runs,
        header,
        lambda run: [
            *(last(run, "kl_to_final_bits", Unit.BITS), _warns(run), last(run, "temp_est", Unit.NUMBER)),
            *(last(run, "kl_after_temp_bits", Unit.BITS), last(run, "softcap", Unit.NUMBER)),
            last(run, "kl_after_softcap_bits", Unit.BITS),
            *(run.milestone(f"first_kl_below_{bits}") for bits in ("1.0", "0.5")),
        ],
    )
    return Section("Head calibration", (table, paragraph(*_head_sentences(runs))))


def last(run: Compared, name: str, unit: Unit) -> Claim | None:
    """A measurement at the last layer."""
    consistency = run.diagnostics.last_layer
    value = None if consistency is None else getattr(consistency.measured, name)
    inner = {
        "softcap": ("cfg_transform", "softcap"),
        "kl_after_softcap_bits": ("kl_after_transform_bits", "softcap"),
    }.get(name, (name,))
    return run.agreed(name, value, unit, (*_LAST, *inner))


def _warns(run: Compared) -> Claim | None:
    kl = last(run, "kl_to_final_bits", Unit.BITS)
    basis = [] if kl is None else [kl]
    path = (*_LAST, "warn_high_last_layer_kl")
    return run.agreed("warn_high_last_layer_kl", warns(run), Unit.TRUTH, path, basis=basis, how="above the threshold")


def _head_sentences(runs: Sequence[Compared]) -> list[Sentence | None]:
    far = [run for run in runs if warns(run)]
    capped, other, open_ = ([run for run in far if _softcap_explains(run) is known] for known in (True, False, None))
    return [
        sentence("Divergences are in bits and belong to one model each."),
        of_runs(
            "The last layer is the model's own output within the threshold in {}.",
            [r for r in runs if warns(r) is False],
        ),
        of_runs(
            "It is not in {}; their milestones of divergence are left out of any comparison, and final "
            "probabilities are to be taken from the head.",
            far,
            lambda run: last(run, "kl_to_final_bits", Unit.BITS),
        ),
        of_runs(
            "The model's own softcap on its logits, which lens rows do not pass, explains it in {}.",
            capped,
            lambda run: last(run, "kl_after_softcap_bits", Unit.BITS),
        ),
        of_runs("The softcap does not explain it in {}.", other),
        of_runs("The files record no softcap that could explain it for {}.", open_),
    ]


def _softcap_explains(run: Compared) -> bool | None:
    """Whether the softcap brings the last layer within the threshold; None where that was not measured."""
    consistency = run.diagnostics.last_layer
    if consistency is None or consistency.measured.kl_after_softcap_bits is None:
        return None
    return consistency.measured.kl_after_softcap_bits < consistency.threshold_bits


# Artefacts


def artefact_section(runs: Sequence[Compared]) -> Section:
    """How much of a reading is the norm's making: two instruments, each by its name."""
    header = (
        "sampled risk | score | tier | tier without last layer | share of layers apart | norm-only layers | "
        "first of them"
    )
    table = run_table(
        runs,
        header,
        lambda run: [
            *(_sampled_risk(run), _score(run), _tier(run), _prefinal(run)),
            _full(run, "pct_layers_kl_ge_1.0", Unit.SHARE),
            _full(run, "n_norm_only_semantics_layers", Unit.COUNT),
            _full(run, "earliest_norm_only_semantic", Unit.LAYER),
        ],
    )
    return Section("Artefact tiers", (table, paragraph(*_artefact_sentences(runs))))


def _artefact_sentences(runs: Sequence[Compared]) -> list[Sentence | None]:
    by_tier = {tier: [run for run in runs if tier_of(run) == tier] for tier in ("low", "medium", "high")}
    apart = [run for run in runs if None not in (tier_of(run), risk_of(run)) and tier_of(run) != risk_of(run)]
    only_last = [run for run in runs if tier_of(run) == "high" and prefinal_tier_of(run) in ("low", "medium")]
    return [
        sentence(
            "Sampled risk looks at a few layers, score and tier at all of them; layers apart are at least one bit from "
            "the raw lens, and norm-only layers give the answer under the headline lens alone.",
        ),
        *(
            sentence("Tier {}: {}.", tier, with_values(of_tier, _score)) if of_tier else None
            for tier, of_tier in by_tier.items()
        ),
        of_runs("The two instruments disagree on {}.", apart),
        of_runs(
            "The tier falls once the last layer, where a raw lens is no meaningful decode, is left out in {}.",
            only_last,
            _prefinal,
        ),
    ]


def tier_of(run: Compared) -> str | None:
    """The tier over all layers."""
    full = run.diagnostics.raw_full
    return None if full is None else full.whole.score.tier


def prefinal_tier_of(run: Compared) -> str | None:
    """The tier over all layers but the last."""
    full = run.diagnostics.raw_full
    return None if full is None else full.prefinal.score.tier


def risk_of(run: Compared) -> str | None:
    """The risk by a few sampled layers."""
    sample = run.diagnostics.raw_sample
    return None if sample is None else sample.lens_artifact_risk


def _sampled_risk(run: Compared) -> Claim | None:
    path = ("raw_lens_check", "summary", "lens_artifact_risk")
    return run.agreed("lens_artifact_risk", risk_of(run), Unit.TEXT, path, basis=_both(run))


def _both(run: Compared) -> tuple[Citation, ...]:
    """The rows of both lenses."""
    raw = run.raw_rows()
    return (*run.rows(), *raw) if raw else ()


def _score(run: Compared) -> Claim | None:
    full = run.diagnostics.raw_full
    value = None if full is None else full.whole.score.v1
    path = (*_FULL, "score", "lens_artifact_score")
    return run.agreed("lens_artifact_score", value, Unit.NUMBER, path, basis=_both(run))


def _tier(run: Compared) -> Claim | None:
    return run.agreed("tier", tier_of(run), Unit.TEXT, (*_FULL, "score", "tier"), basis=_both(run))


def _prefinal(run: Compared) -> Claim | None:
    return run.agreed("tier_prefinal", prefinal_tier_of(run), Unit.TEXT, basis=_both(run), how="last layer left out")


def _full(run: Compared, name: str, unit: Unit) -> Claim | None:
    full = run.diagnostics.raw_full
    value = None if full is None else getattr(full.whole, name.replace(".", "_"))
    return run.agreed(name, value, unit, (*_FULL, name), basis=_both(run))


# Entropy


def drift_section(runs: Sequence[Compared]) -> Section:
    """Whether the lens is less certain than the model's own output at half depth."""
    mark = "" if all(run.quotable for run in runs) else MARK
    header = " | ".join(["middle layer", *(name + mark for name in ("drift there", *_QUARTERS)), "may be quoted"])
    table = run_table(
        runs, header, lambda run: [_middle(run), drift(run), *(_gap(run, name) for name in _QUARTERS), run.quotable]
    )
    signs = [(run, _sign(gap)) for run in runs if run.quotable and (gap := drift(run)) is not None]
    kept = [run for run in runs if not run.quotable]
    less, more = ([run for run, sign in signs if sign * way > 0] for way in (1, -1))
    sentences = (
        sentence(
            "Drift is the entropy of the lens less that of the model's own output, in bits; the quartiles are over all "
            "layers. Sizes belong to one model each and compare with no other; the sign is all that is told here.",
        ),
        of_runs(f"Columns with{MARK} are not to be quoted, and no sign is concluded from them, for {{}}.", kept),
        of_runs("At half depth the lens is less certain than the model's output in {}.", less),
        of_runs("At half depth it is more certain in {}.", more),
    )
    return Section("Entropy drift at half depth", (table, paragraph(*sentences)))


def _middle(run: Compared) -> Claim | None:
    size = run.size()
    middle = depth_layer(0.5, run.n_layers)
    return None if size is None else run.derived("middle", middle, Unit.LAYER, [size], "half of the layers")


def drift(run: Compared) -> Claim | None:
    """Entropy of the lens less that of the output at half depth, in bits."""
    middle = depth_layer(0.5, run.n_layers)
    entropy, teacher = (run.cell(name, middle, Unit.BITS) for name in ("entropy_bits", "teacher_entropy_bits"))
    ends = [end for end in (entropy, teacher) if end is not None]
    values = [end.value for end in ends if isinstance(end.value, float)]
    if len(values) < 2:
        return None
    return run.derived("entropy_gap_bits", values[0] - values[1], Unit.BITS, ends, "difference")


def _gap(run: Compared, quarter: str) -> Claim | None:
    gap = run.diagnostics.entropy_gap
    value = None if gap is None else gap.percentiles[quarter]
    path = ("diagnostics", "entropy_gap_bits_percentiles", quarter)
    return run.agreed(f"entropy_gap_{quarter}", value, Unit.BITS, path, basis=run.rows(), how="percentile over layers")


def _sign(claim: Claim) -> float:
    return float(claim.value) if isinstance(claim.value, int | float) else 0.0
