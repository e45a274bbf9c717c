"""A comparison of two models in words."""

from statistics import median

from layerscope.analysis.model_diff import FactDiff, ModelDiff, OutputDiff, SuiteDiff
from layerscope.report.sentences.lines import LabelledLine, plural

MOST = 5
"""How many blocks, modules and facts are named."""
NOISE_TIMES = 10
"""A mean divergence of fewer times what rounding alone makes is told beside that, and in no other way."""


def title(found: ModelDiff) -> str:
    """Which two, and how they are stored."""
    base, variant = found.base, found.variant
    with_adapter = "" if variant.adapter is None else f" with {variant.adapter}"
    return f"diff · {base.id} ({base.storage}) → {variant.id} ({variant.storage}{with_adapter})"


def headline(found: ModelDiff) -> str:
    """How far they are apart, in a sentence."""
    if found.is_identical:
        return f"Nothing differs, at {found.output.n_positions} positions of text and at every layer."
    output, noise = found.output, found.noise
    if output.kl_max_bits == 0:
        return f"Both say the same at {output.n_positions} positions of text; on the way there residuals differ."
    if noise is not None and output.kl_mean_bits < NOISE_TIMES * noise.kl_mean_bits:
        return (
            f"The two differ by {bits(output.kl_mean_bits)} bits in the mean, less than {NOISE_TIMES} times what the "
            f"base differs from itself by with its sequences batched otherwise ({bits(noise.kl_mean_bits)})."
        )
    same = f"{100 * output.top1_agreement:.1f} %"
    return (
        f"The variant is {bits(output.kl_mean_bits)} bits from the base in the mean, and has the same token on top at "
        f"{same} of {output.n_positions} positions."
    )


def in_lines(found: ModelDiff) -> list[LabelledLine]:
    """Output, perplexity, facts, blocks and rounding, a line each."""
    lines = [LabelledLine("output", _output(found)), LabelledLine("perplexity", _perplexity(found))]
    if found.suite is not None:
        lines.append(LabelledLine("facts", facts(found.suite)))
        flips = dict.fromkeys(flipped(fact) for fact in found.suite.prompts if fact.flips)  # some prompts stand twice
        lines += [LabelledLine("", text) for text in flips][:MOST]
    if not found.is_identical:
        lines.append(LabelledLine("blocks", _blocks(found)))
    if found.modules and not found.is_identical:
        named = ", ".join(f"{one.layer} {one.module} {share(one.injected)}" for one in found.modules[:MOST])
        lines.append(LabelledLine("modules", f"alone in the base's block, the most: {named}"))
    if found.noise is not None:
        lines.append(LabelledLine("rounding", _noise(found)))
    return [*lines, *(LabelledLine("note", note) for note in found.notes)]


def how_to_read(found: ModelDiff) -> str:
    """What the columns of the table of layers are."""
    return (
        f"At {found.n_rows} positions of text. change: of the residual. injected: what the variant's block does "
        "to the base's residual beyond the base's block; inherited: the rest of the difference. All three are medians, "
        "over the norm of the base's residual. lens KL, top 1: of both models' own logit lens; to output: KL of each "
        "one's lens from its own output (means)."
    )


def facts(suite: SuiteDiff) -> str:
    """How many facts each answers, and which way they flip."""
    n = len(suite.judged)
    if not n:
        return f"no prompt of {suite.name} has an answer that is judged{_kl_of(suite)}"
    told = f"of {n} {plural('prompt', n)} of {suite.name} the base answers {suite.n_answered_by_base}, the variant "
    told += f"{suite.n_answered_by_variant}"
    if suite.n_lost or suite.n_won:
        n_once = len(suite.once)
        once = "" if n_once == n else f" over {n_once} {plural('fact', n_once)} in the first wording"
        told += f": {suite.n_lost} lost, {suite.n_won} won (McNemar p {suite.mcnemar_p:.2g}{once})"
    told += _kl_of(suite)
    shifts = suite.onset_shifts
    return f"{told}; {onset_shift(shifts)}" if shifts else told


def _kl_of(suite: SuiteDiff) -> str:
    return "" if suite.kl_mean_bits is None else f"; KL {bits(suite.kl_mean_bits)} bits in the mean"


def onset_shift(shifts: tuple[int, ...]) -> str:
    """By how many layers answers are on top for good later, over the prompts that both models answer."""
    n, middle = len(shifts), median(shifts)
    if not any(shifts):
        return f"on top for good from the same layer on in {'it' if n == 1 else f'all {n} that both answer'}"
    moved = "at the same layer" if middle == 0 else f"{abs(middle):g} layers {'later' if middle > 0 else 'earlier'}"
    return f"on top for good {moved} (median over {n} that both answer; {min(shifts):+d} to {max(shifts):+d})"


def flipped(fact: FactDiff) -> str:
    """One fact that one of the two alone answers."""
    which, ranks = "lost" if fact.base_rank == 1 else "won", f"{fact.base_rank} → {fact.variant_rank}"
    return f"{which}: {fact.answer!r} after {fact.prompt!r}, rank {ranks}"


def bits(value: float) -> str:
    """A divergence to three digits."""
    return "0" if value == 0 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A relative error to two digits."""
    return "" if value is None else "0" if value == 0 else f"{value:.2g}"


def _output(found: ModelDiff) -> str:
    o = found.output
    return (
        f"KL {bits(o.kl_mean_bits)} ± {bits(o.kl_mean_standard_error)} bits in the mean, median "
        f"{bits(o.kl_median_bits)}, 99 % {bits(o.kl_p99_bits)}, largest {bits(o.kl_max_bits)}; same token on top at "
        f"{100 * o.top1_agreement:.1f} % ({o.n_positions} positions of {', '.join(found.text)})"
    )


def _perplexity(found: ModelDiff) -> str:
    o = found.output
    return (
        f"{_perplexities(o)}; the base alone has the token that follows on top "
        f"{o.n_right_in_base_only} times, the variant alone {o.n_right_in_variant_only} (McNemar p {o.mcnemar_p:.2g})"
    )


def _perplexities(o: OutputDiff) -> str:
    base, variant = ("beyond 1e308" if of is None else f"{of:.4g}" for of in (o.base_perplexity, o.variant_perplexity))
    if o.perplexity_ratio is None or o.perplexity_ratio_standard_error is None:
        return f"{base} → {variant}"
    ratio, error = o.perplexity_ratio, o.perplexity_ratio_standard_error
    return f"{base} → {variant}, {times(ratio)} ± {times(error)} times"


def times(ratio: float) -> str:
    """A ratio or its error to four decimals, or to four digits where it is large."""
    return f"{ratio:.4f}" if ratio < 1000 else f"{ratio:.4g}"


def _blocks(found: ModelDiff) -> str:
    worst = [layer for layer in found.worst_blocks if layer.injected][:MOST]
    if not worst:
        return "no block adds to the difference; it stands in the embedding, or behind the last block"
    named = ", ".join(f"{layer.layer} ({share(layer.injected)})" for layer in worst)
    n = sum(bool(layer.injected) for layer in found.layers)
    last = found.layers[-1]
    return (
        f"{n} of {len(found.layers) - 1} inject an error; the largest, over the residual's norm: {named}; at the last "
        f"layer the residuals differ by {share(last.relative_change)}"
    )


def _noise(found: ModelDiff) -> str:
    assert found.noise is not None
    noise = found.noise
    return (
        f"the base against itself, its first sequences in another batch: KL {bits(noise.kl_mean_bits)} bits in the "
        f"mean, residuals {share(noise.relative_change) or '0'} at most"
    )
