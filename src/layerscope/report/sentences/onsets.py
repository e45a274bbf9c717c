"""The three layers in sentences: first on top, on top for good, clearly ahead; how sure they are, and how blind."""

from collections.abc import Sequence

from layerscope.analysis.chance import TOO_FEW, TOO_FEW_ALIKE, AgainstChance
from layerscope.analysis.handover import Patching, PatchVerdict
from layerscope.analysis.onsets import CLEARLY_AHEAD, Blindness, LayerOverFacts, LayersOfPrompt, LayersOverFacts
from layerscope.report.sentences.lines import plural

FIRST, FOR_GOOD, AHEAD = "first on top", "on top for good", "clearly ahead"
NEVER_AHEAD = f"{AHEAD} to the end from no layer"
AHEAD_UNKNOWN = "how clearly is not known"
WHAT_TELLS = "a tuned lens or a patch would tell"
UNCLEAR = "the patches that were run do not make that clear"


def lens_name(lens: str) -> str:
    """A lens as it is called in a sentence."""
    return f"the {lens} lens"


def of_prompt(layers: LayersOfPrompt, n_layers: int, *, trusted: bool) -> str:
    """Of one prompt whose answer is on top at the output; empty where that is not known of every layer."""
    stable = layers.on_top_for_good
    return template_of_prompt(layers, trusted=trusted).format(
        stable=stable,
        n=n_layers,
        depth="" if stable is None else f"depth {stable / n_layers:.2f}",
        first=layers.first_on_top,
        ahead=layers.clearly_ahead,
    )


def template_of_prompt(layers: LayersOfPrompt, *, trusted: bool) -> str:
    """The same with fields: stable, n, depth, first, ahead."""
    first, stable, ahead = layers.first_on_top, layers.on_top_for_good, layers.clearly_ahead
    if stable is None:
        return ""
    others = [f"{FIRST} at {{first}}"] if first != stable else []
    if not trusted:
        return _joined(FOR_GOOD, others)
    if ahead == stable:
        return _joined(f"{FOR_GOOD} and {AHEAD}", others)
    none = AHEAD_UNKNOWN if CLEARLY_AHEAD in layers.undetermined else NEVER_AHEAD
    return _joined(FOR_GOOD, [*others, none if ahead is None else f"{AHEAD} from {{ahead}}"])


def over_facts(layers: LayersOverFacts, n_layers: int, *, trusted: bool) -> str:
    """Of the facts that are answered: medians, and how they spread; empty where no fact has a layer."""
    stable, ahead = layers.on_top_for_good, layers.clearly_ahead
    first, middle, clear = (layer.summary.median for layer in (layers.first_on_top, stable, ahead))
    if middle is None or stable.median_depth is None:
        return ""
    return template_over_facts(layers, trusted=trusted).format(
        stable=f"{middle:g}",
        n=n_layers,
        depth=f"depth {stable.median_depth:.2f}; {spread(stable)}",
        first=None if first is None else f"{first:g}",
        ahead=None if clear is None else f"{clear:g}",
        some=ahead.summary.n - ahead.summary.n_missing,
    )


def template_over_facts(layers: LayersOverFacts, *, trusted: bool) -> str:
    """The same with fields: stable, n, depth (and spread), first, ahead, some (facts that are clearly ahead)."""
    ahead = layers.clearly_ahead
    first, middle, clear = (
        layer.summary.median for layer in (layers.first_on_top, layers.on_top_for_good, layers.clearly_ahead)
    )
    if middle is None:
        return ""
    others = [f"{FIRST} at {{first}}"] if first is not None and first != middle else []
    if not trusted:
        return _joined(FOR_GOOD, others)
    missing = ahead.summary.n_missing - layers.on_top_for_good.summary.n_missing
    if clear == middle and not missing:
        return _joined(f"{FOR_GOOD} and {AHEAD}", others)
    some = " in {some} of them" if missing else ""
    some += f" ({ahead.n_undetermined} not known)" if ahead.n_undetermined else ""
    none = AHEAD_UNKNOWN if ahead.n_undetermined else NEVER_AHEAD
    return _joined(FOR_GOOD, [*others, none if clear is None else f"{AHEAD} from {{ahead}}{some}"])


def _joined(what: str, others: Sequence[str]) -> str:
    """Where layers coincide, one figure is said."""
    return ", ".join((f"{what} from layer {{stable}} of {{n}} ({{depth}})", *others))


def spread(layer: LayerOverFacts) -> str:
    """How widely a layer varies over the facts that have it."""
    summary, n = layer.summary, layer.summary.n - layer.summary.n_missing
    if n == 1:
        return "1 fact"
    if layer.all_equal:
        return f"the same in {'both' if n == 2 else f'all {n}'}"
    if summary.interval_95 is not None:
        low, high = summary.interval_95
        return f"median of {n}, 95 % {low:g} to {high:g}"
    return f"median of {n}, which range from {layer.least} to {layer.most}"


def blind(blindness: Blindness, read: tuple[str, ...], patching: Patching | None) -> str:
    """That patches find the answer carried before the lens has it; where none were run, that the lens is far from the
    model there. Empty where neither is so."""
    return template_of_blindness(blindness, read, patching).format(
        lens=blindness.lens,
        bits="" if blindness.median_kl_bits is None else f"{blindness.median_kl_bits:.2g}",
        first=blindness.first_layer,
        last=blindness.last_layer,
        handover=None if patching is None else patching.handover.layer,
    )


def template_of_blindness(blindness: Blindness, read: tuple[str, ...], patching: Patching | None) -> str:
    """The same with fields: lens, bits, first, last, handover."""
    if patching is not None and patching.handover.supports_a_claim:
        late = patching.verdict_of(blindness.lens) == PatchVerdict.READS_LATE
        return "By patching the answer is carried at the last token from layer {handover} on." if late else ""
    if not blindness.blind:
        return ""
    one = blindness.first_layer == blindness.last_layer
    where = "layer {first}" if one else "layers {first} to {last}"
    if patching is not None and patching.handover.layer is not None:
        tells = (
            "the facts that were patched are too few for a claim" if patching.handover.is_an_illustration else UNCLEAR
        )
    else:
        tells = "a patch would tell" if "tuned" in read else WHAT_TELLS
    return (
        f"The {{lens}} lens is far from the model before that (median {{bits}} bits at {where}), so the answer may be "
        f"carried earlier; {tells}."
    )


def chance(test: AgainstChance, decisive: str) -> str:
    """Whether the answers are on top more often than answers dealt out at random."""
    if test.above_chance is None:
        answers = f"{test.n_answers} distinct {plural('answer', test.n_answers)}"
        why = f"{test.reason} ({answers} over {test.n_facts} {plural('fact', test.n_facts)})"
        return why if test.reason in (TOO_FEW, TOO_FEW_ALIKE) else str(test.reason)
    at = test.at_milestones.get(decisive)
    if at is None:
        least = min((layer.p_holm for layer in test.by_layer), default=1.0)
        verdict = "above chance at some layer" if test.above_chance else "not above chance at any layer"
        return f"{verdict} (shuffled answers, least {_p(least)})"
    verdict = "above chance" if test.above_chance else "not above chance"
    on_top = f"{at.n_on_top} of {test.n_facts} on top at layer {at.layer}"
    return f"{verdict}: {on_top}; by chance {at.expected:.2g}, {_p(at.p_holm)}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.2g}"
