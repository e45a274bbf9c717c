"""When a probability may be quoted: the status of every layer under every lens."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.consistency import MAX_RANK_DEV, SAME_FORWARD, TOP_IDS, Repeatability
from layerscope.analysis.curve import Curve, Curves
from layerscope.analysis.outputs import MODEL_AT_LAST, Output
from layerscope.analysis.percentiles import median
from layerscope.record.measured import MeasuredRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord

NEAR_BITS = 0.5
"""Most by which the medians of divergence and of entropy gap may part an estimate from the model; inclusive."""
MODEL_BITS = 0.01
"""Most by which a last layer that is the model may seem to differ from it, for rounding."""
Status: TypeAlias = Literal["model", "near", "decoded", "withheld"]
"""`model`: the model's own distribution; `near`: an estimate of it; `decoded`: the lens' own, to be named with it;
`withheld`: not to be quoted, nor its rank."""


@dataclass(frozen=True)
class LayerStatus:
    """What the probabilities of one layer under one lens are."""

    layer: int
    status: Status | None
    """None where the lens has no row at this layer."""
    kl_bits_over_prompts: float | None
    """KL(lens || model): the median over the prompts."""
    entropy_gap_bits_over_prompts: float | None
    """Size of the difference between its entropy and the model's: the median over the prompts."""
    reason: str | None
    """Why it is withheld; None where it is not."""


@dataclass(frozen=True)
class Quotability:
    """Every lens, layer by layer."""

    by_lens: Mapping[str, tuple[LayerStatus, ...]]
    """Layers 0 to n_layers."""
    n_prompts: int
    """Prompts that medians are taken over."""
    over_answered: bool
    """Whether these are the answered prompts; where none is, they are all."""

    def status(self, lens: str, layer: int | None) -> Status | None:
        """Of one place; None where there is no row."""
        layers = self.by_lens.get(lens, ())
        return layers[layer].status if layer is not None and layer < len(layers) else None

    def withheld(self, lens: str) -> tuple[int, ...]:
        """The layers of a lens that are not to be quoted."""
        return tuple(layer.layer for layer in self.by_lens.get(lens, ()) if layer.status == "withheld")


def quotability(
    curves: Curves, record: RunRecord, outputs: Mapping[PromptKey, Output], repeat: Repeatability
) -> Quotability:
    """Judge every layer by the medians of the answered prompts, and by what was found of the measurement itself.

    Args:
        outputs: of every prompt.
        repeat: the second decode of the primary prompt.
    """
    # Controls never count; prompts without an answer do where no fact has one that is given.
    facts = {prompt: output for prompt, output in outputs.items() if prompt.is_fact}
    answered = {prompt for prompt, output in facts.items() if output.answered}
    answered = answered or {prompt for prompt, output in facts.items() if output.on_top}
    over = answered or set(outputs)
    unsteady = _unsteady_layers(curves, record, repeat)
    counted = np.array([curve.prompt in over for curve in curves], dtype=bool)[curves.curve_of_row]
    by_lens = {
        lens: _statuses(_values_by_layer(curves, lens, counted), lens, record, unsteady.get(lens, frozenset()))
        for lens in curves.lenses
    }
    return Quotability(by_lens, len(over), bool(answered))


@dataclass(frozen=True)
class _LayerValues:
    """What the rows of one layer say."""

    kl_bits: Sequence[float]
    """Of the prompts that count, where known."""
    entropy_gap_bits: Sequence[float]
    """The same, without a sign."""
    finite: bool
    """Whether all rows are, those of the other prompts too."""


def _values_by_layer(curves: Curves, lens: str, counted: NDArray[np.bool_]) -> dict[int, _LayerValues]:
    """Of one lens; layers without a row are absent.

    Args:
        counted: for each row whether its prompt counts.
    """
    of_lens = np.array([curve.lens == lens for curve in curves], dtype=bool)[curves.curve_of_row]
    layers, finite, kl = (curves.numbers(name) for name in ("layer", "finite", "kl_to_final_bits"))
    gap = np.abs(curves.numbers("entropy_bits") - curves.numbers("teacher_entropy_bits"))
    values = {}
    for layer in np.unique(layers[of_lens]).tolist():
        here = of_lens & (layers == layer)
        known = [of[here & counted & ~np.isnan(of)].tolist() for of in (kl, gap)]
        values[int(layer)] = _LayerValues(known[0], known[1], bool((finite[here] == 1).all()))
    return values


def _statuses(
    values: Mapping[int, _LayerValues], lens: str, record: RunRecord, unsteady: Collection[int]
) -> tuple[LayerStatus, ...]:
    health = record.numeric_health
    flagged = {flag.layer for flag in health.layers_flagged if flag.lens == lens} if health is not None else set()
    failed = record.identity is not None and not record.identity.ok
    statuses = []
    for layer in range(record.model.n_layers + 1):
        here = values.get(layer)
        kl, gap = (None, None) if here is None else (median(here.kl_bits), median(here.entropy_gap_bits))
        why = "the last layer, decoded by us, is not the model's own output" if failed else None
        if layer in flagged or not (here is None or here.finite):
            why = why or "numbers were not finite"
        if layer in unsteady:
            why = why or "a second decode or a second forward pass gave another result"
        status = None if here is None else "withheld" if why else _status(layer, lens, kl, gap, record)
        statuses.append(LayerStatus(layer, status, kl, gap, why if here is not None else None))
    return tuple(statuses)


def _status(layer: int, lens: str, kl: float | None, gap: float | None, record: RunRecord) -> Status:
    last = layer == record.model.n_layers and lens in MODEL_AT_LAST
    # A lens that leaves out the head's softcap, or that has a map for the last layer, is not the model there.
    if last and record.identity is not None and kl is not None and kl <= MODEL_BITS:
        return "model"
    return "near" if kl is not None and gap is not None and max(kl, gap) <= NEAR_BITS else "decoded"


def _unsteady_layers(curves: Curves, record: RunRecord, repeat: Repeatability) -> dict[str, frozenset[int]]:
    """By lens, layers of the primary prompt that were not the same a second time.

    The second decode was of one lens. The second forward pass was read by the headline lens, but another residual is
    another for all.
    """
    measured, lenses = record.measured, curves.lenses
    decoded = _redecoded(measured) if repeat.high_variance else frozenset()
    view = None if measured.position_readout is None else measured.position_readout.headline
    again = _reforwarded(measured, curves.get(curves.primary, record.protocol.headline_lens))
    return {lens: again | (decoded if lens == view else frozenset()) for lens in lenses}


def _redecoded(measured: MeasuredRecord) -> frozenset[int]:
    """Layers whose top token changed, or fell far, in the second decode."""
    if measured.position_readout is None:
        return frozenset()
    second = measured.position_readout.repeatability
    fell = {layer for layer, dev in enumerate(second.rank_dev) if dev is not None and dev > MAX_RANK_DEV}
    return frozenset(fell | {layer for layer, flip in enumerate(second.top1_flip) if flip})


def _reforwarded(measured: MeasuredRecord, curve: Curve | None) -> frozenset[int]:
    """Layers whose ten most likely tokens were mostly others in the second forward pass."""
    second = measured.second_forward
    if second is None or curve is None:
        return frozenset()
    changed = set()
    for layer, ids in enumerate(second.top_ids):
        listed = curve.value("top_ids", layer)
        if not ids or not listed:
            continue
        k = min(TOP_IDS, len(ids), len(listed))
        first, again = set(listed[:k]), set(ids[:k])
        if len(first & again) / len(first | again) < SAME_FORWARD:
            changed.add(layer)
    return frozenset(changed)
