"""The three layers in sentences: first on top, on top for good, clearly ahead; how sure they are, and how blind."""

from layerscope.analysis.chance import AgainstChance
from layerscope.analysis.onsets import Blindness, LayerOverFacts, LayersOfPrompt, LayersOverFacts
from layerscope.report.numbers import short_text
from layerscope.report.sentences.lines import plural

FIRST, FOR_GOOD, AHEAD = "first on top", "on top for good", "clearly ahead"
WHAT_TELLS = "a tuned lens or a patch would tell"


def lens_name(lens: str) -> str:
    """A lens as it is called in a sentence."""
    return f"the {lens} lens"


def of_prompt(layers: LayersOfPrompt, n_layers: int, *, trusted: bool) -> str:
    """Of one prompt whose answer is on top at the output."""
    stable = layers.on_top_for_good
    if stable is None:
        return ""
    place = f"layer {stable} of {n_layers} ({stable / n_layers:.2f} of the depth)"
    ahead = f"layer {layers.clearly_ahead}" if layers.clearly_ahead is not None else None
    return _three(
        place,
        f"layer {layers.first_on_top}",
        ahead,
        first_is_stable=layers.first_on_top == stable,
        ahead_is_stable=layers.clearly_ahead == stable,
        trusted=trusted,
    )


def over_facts(layers: LayersOverFacts, n_layers: int, *, trusted: bool) -> str:
    """Of the facts that are answered: medians, and how they spread."""
    first, stable, ahead = layers.first_on_top, layers.on_top_for_good, layers.clearly_ahead
    middle = stable.summary.median
    if middle is None or stable.median_depth is None:
        return ""
    place = f"layer {middle:g} of {n_layers} ({stable.median_depth:.2f} of the depth; {spread(stable)})"
    missing, held = ahead.summary.n_missing, ahead.summary.n - ahead.summary.n_missing
    some = f" in {held} of {ahead.summary.n}" if missing else ""
    return _three(
        place,
        f"layer {first.summary.median:g}",
        None if ahead.summary.median is None else f"layer {ahead.summary.median:g}{some}",
        first_is_stable=first.summary.median == middle,
        ahead_is_stable=ahead.summary.median == middle and not missing,
        trusted=trusted,
    )


def _three(
    place: str, first: str, ahead: str | None, *, first_is_stable: bool, ahead_is_stable: bool, trusted: bool
) -> str:
    """Where they coincide, one figure is said."""
    if not trusted:
        return (
            f"{FIRST} and for good from {place}" if first_is_stable else f"{FOR_GOOD} from {place}, {FIRST} at {first}"
        )
    never = f"{AHEAD} to the output from no layer"
    if ahead_is_stable:
        rest = "" if first_is_stable else f", {FIRST} at {first}"
        both = f"{FIRST}, for good and {AHEAD}" if first_is_stable else f"{FOR_GOOD} and {AHEAD}"
        return f"{both} from {place}{rest}"
    last = never if ahead is None else f"{AHEAD} from {ahead}"
    if first_is_stable:
        return f"{FIRST} and for good from {place}, {last}"
    return f"{FOR_GOOD} from {place}, {FIRST} at {first}, {last}"


def spread(layer: LayerOverFacts) -> str:
    """How widely a layer varies over the facts that have it."""
    summary, n = layer.summary, layer.summary.n - layer.summary.n_missing
    if n == 1:
        return "1 fact"
    if layer.all_equal:
        return f"all {n} facts equal"
    if summary.interval_95 is not None:
        low, high = summary.interval_95
        return f"median of {n} facts, 95 % {low:g} to {high:g}"
    return f"median of {n} facts, {layer.least} to {layer.most}"


def blind(blindness: Blindness, read: tuple[str, ...]) -> str:
    """That the lens says little of the layers before the onset; empty where it does."""
    if not blindness.blind or blindness.median_kl_bits is None:
        return ""
    first, last = blindness.first_layer, blindness.last_layer
    where = f"layer {first}" if first == last else f"layers {first} to {last}"
    tells = "a patch would tell" if "tuned" in read else WHAT_TELLS
    return (
        f"{lens_name(blindness.lens).capitalize()} is far from the model before that (median "
        f"{blindness.median_kl_bits:.2g} bits at {where}), so the answer may be carried earlier; {tells}."
    )


def chance(test: AgainstChance, decisive: str) -> str:
    """Whether the answers are on top more often than answers dealt out at random."""
    if test.above_chance is None:
        answers = f"{test.n_answers} distinct {plural('answer', test.n_answers)}"
        why = f"{test.reason} ({answers} over {test.n_facts} {plural('fact', test.n_facts)})"
        return why if test.reason == "too few facts for a test" else str(test.reason)
    at = test.at_milestones.get(decisive)
    if at is None:
        least = min((layer.p_holm for layer in test.by_layer), default=1.0)
        verdict = "above chance at some layer" if test.above_chance else "not above chance at any layer"
        return f"{verdict} (least p {_p(least)}, shuffled answers, Holm over layers)"
    verdict = "above chance" if test.above_chance else "not above chance"
    return (
        f"{verdict}: at layer {at.layer} {at.n_on_top} {plural('fact', at.n_on_top)} on top, {at.expected:.2g} "
        f"expected with answers shuffled (p {_p(at.p_holm)}, Holm over layers)"
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else short_text(p)
