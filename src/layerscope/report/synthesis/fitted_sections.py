"""Fitted lenses across models: whether each is nearer to the model, and earlier, than the headline lens."""

from collections.abc import Sequence

from layerscope.analysis.fitted_lens_audit import FittedLensAudit
from layerscope.analysis.percentiles import QUARTERS, depth_layer
from layerscope.record.milestone_names import ONSET, rank_within
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Name, Paragraph, Section, Sentence, Text, paragraph, sentence
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.words import listed, names, of_runs, remarks, run_table

_PLACES = {
    "prism": ("diagnostics", "prism_summary", "metrics"),
    "tuned": ("tuned_lens", "summary", "metrics"),
}
"""Where the JSON has what a fitted lens gains."""
_QUARTERS = tuple(f"p{q * 100:.0f}" for q in QUARTERS)
_VERDICTS = ("helpful", "neutral", "mixed", "regressive")


def fitted_section(runs: Sequence[Compared]) -> Section:
    """Prism and tuned lens, each in a table."""
    signs = sentence(
        "Signs: a change of divergence is the headline lens less the fitted one, so positive is nearer to the model; a "
        "change of a layer is the fitted lens less the headline one, so negative is earlier. Changes in bits belong to "
        "one model each.",
    )
    untabled = [
        of_runs(
            f"A {name} lens was read too for {{}}; published files have no table of its rows, so no figure of it "
            "stands here.",
            [run for run in runs if kind in run.diagnostics.fitted_lenses],
        )
        for kind, name in (("ridge", "ridge"), ("jacobian", "Jacobian"))
    ]
    return Section(
        "Prism and tuned lenses",
        (paragraph(signs), *remarks(*untabled)),
        tuple(_lens_section(runs, lens) for lens in ("prism", "tuned")),
    )


def _lens_section(runs: Sequence[Compared], lens: str) -> Section:
    title = f"{lens.capitalize()} lens"
    having = [run for run in runs if lens in run.diagnostics.fitted_lenses]
    missing = of_runs("Not read for {}.", [run for run in runs if run not in having])
    if not having:
        return Section(title, (paragraph(sentence("No run was read through this lens.")),))
    header = (
        "rank 1, fitted | Δ rank <= 10 | Δ rank <= 5 | Δ rank 1 | ΔKL at 25 % | ΔKL at 50 % | ΔKL at 75 % | verdict"
    )
    table = run_table(
        having,
        header,
        lambda run: [
            run.milestone(ONSET, lens=lens),
            *(_layers(run, lens, rank) for rank in (10, 5, 1)),
            *(gain(run, lens, quarter) for quarter in _QUARTERS),
            _audit(run, lens).verdict,
        ],
    )
    return Section(title, (table, *_sentences(having, lens, missing)))


def _sentences(having: Sequence[Compared], lens: str, missing: Sentence | None) -> tuple[Paragraph, ...]:
    gains = {run: bits for run in having if (bits := _gains(run, lens))}
    nearer = [run for run, bits in gains.items() if min(bits) > 0]
    farther = [run for run, bits in gains.items() if max(bits) < 0]
    audits = {run: _audit(run, lens).rank_milestones[1] for run in having}
    never = [run for run, pair in audits.items() if pair.baseline is not None and pair.fitted is None]
    later = [run for run, pair in audits.items() if pair.delta is not None and pair.delta > 0]
    earlier = [run for run, pair in audits.items() if pair.delta is not None and pair.delta < 0]
    of_verdict = {verdict: [run for run in having if _audit(run, lens).verdict == verdict] for verdict in _VERDICTS}
    groups = listed([[Name(verdict), Text(" for "), *names(runs)] for verdict, runs in of_verdict.items() if runs])
    return remarks(
        of_runs("Nearer to the model at all three depths: {}.", nearer),
        of_runs("Farther at all three: {}.", farther),
        of_runs("Through it rank 1 comes earlier in {}.", earlier),
        of_runs("Through it rank 1 comes later in {}.", later),
        of_runs("Through it rank 1 is never reached in {}.", never),
        sentence("By the whole: {}.", groups) if groups else None,
        missing,
    )


def _audit(run: Compared, lens: str) -> FittedLensAudit:
    return run.diagnostics.fitted_lenses[lens]


def _gains(run: Compared, lens: str) -> list[float]:
    """Changes at the three depths; none where one is not known."""
    deltas = [_audit(run, lens).kl_bits_at_percentiles[quarter].delta for quarter in _QUARTERS]
    known = [bits for bits in deltas if bits is not None]
    return known if len(known) == len(deltas) else []


def _layers(run: Compared, lens: str, rank: int) -> Claim | None:
    """Fitted less headline, in layers."""
    delta = _audit(run, lens).rank_milestones[rank].delta
    ends = [run.milestone(rank_within(rank)), run.milestone(rank_within(rank), lens=lens)]
    return run.agreed(
        f"delta_first_rank_le_{rank}",
        delta,
        Unit.COUNT,
        (*_PLACES[lens], "rank_milestones", "delta", f"le_{rank}"),
        basis=[end for end in ends if end is not None],
        how="difference of layers",
    )


def gain(run: Compared, lens: str, quarter: str) -> Claim | None:
    """Headline less fitted at a depth, in bits."""
    delta = _audit(run, lens).kl_bits_at_percentiles[quarter].delta
    layer = depth_layer(QUARTERS[_QUARTERS.index(quarter)], run.n_layers)
    cells = [run.cell("kl_to_final_bits", layer, Unit.BITS, lens=of) for of in (None, lens)]
    return run.agreed(
        f"delta_kl_{lens}_{quarter}",
        delta,
        Unit.BITS,
        (*_PLACES[lens], "kl_bits_at_percentiles", "delta", quarter),
        basis=[cell for cell in cells if cell is not None],
        how="difference",
    )
