"""Which fitted lenses a probe reads through, and what its record says of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError
from layerscope.lens_record import FITTED_NAMES, ImportedLens, Kind, PrismFit, RidgeFit, TunedFit
from layerscope.lenses import Lens, bind_lenses
from layerscope.lenses.lens_folder import FittedLens, find_lens_of, look_for, read_fitted_lens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import TunedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.signature import model_signature
from layerscope.record.measured import (
    FittedLensRecord,
    HeldOutRecord,
    PrismFitRecord,
    RidgeFitRecord,
    SkipLayersRecord,
    TunedFitRecord,
)

BUNDLED_LENSES = BUNDLED / "lenses"
"""Fitted lenses of the bundled model."""
ON_DEMAND: tuple[Kind, ...] = ("ridge",)
"""Kinds whose absence is nothing to tell of: a folder that holds none was made for others."""


@dataclass(frozen=True)
class Chosen:
    """The lenses of a probe."""

    names: tuple[str, ...]
    fitted: dict[str, FittedLens]
    """Of the fitted ones among them."""
    records: tuple[FittedLensRecord, ...]
    """Of those that were read, looked for in vain, or not wanted; empty where none were looked for."""

    def bind(self, model: CausalLM) -> tuple[Lens, ...]:
        """The lenses, bound to the model's norms, on its device."""
        bound = bind_lenses(self.names, final_norm=model.final_norm, next_norms=model.next_norms, fitted=self.fitted)
        device = model.placement.device
        return tuple(lens.to(device) if isinstance(lens, TunedLens | PrismLens) else lens for lens in bound)

    @property
    def without_fit(self) -> bool:
        """Whether no lens that brings layers near to the model's own output was found, or none was looked for."""
        wanted = not self.records or any(lens.status in ("missing", "refused") for lens in self.records)
        return wanted and not {"tuned", "ridge"} & self.fitted.keys()

    @property
    def passed_over(self) -> tuple[str, ...]:
        """For each fitted lens that was looked for and is not used, the reason."""
        in_vain = ("missing", "refused")
        return tuple(f"no {lens.kind} lens: {lens.reason}" for lens in self.records if lens.status in in_vain)


def choose_lenses(
    model: CausalLM,
    names: Sequence[str] | None,
    default: Sequence[str],
    lens_dir: str | Path | None,
    calibrated: FittedLens | None = None,
) -> Chosen:
    """Find the fitted lenses of a model.

    Args:
        names: lenses asked for; a fitted one among them is required. Where not given, the protocol's own, and every
            fitted one that belongs to the model.
        default: the protocol's own.
        lens_dir: folder of fitted lenses, or of one; that of the bundled model where not given.
        calibrated: a lens that was fitted for this probe, which is read whatever names were asked for.

    Raises:
        LensError: a fitted lens that was asked for is not there, damaged, or of another model; `lens_dir` is no folder.
    """
    if lens_dir is not None and not Path(lens_dir).is_dir():
        raise LensError(f"{lens_dir}: no such folder; give one that holds fitted lenses, or a lens' own folder.")
    folder = None if lens_dir is None else Path(lens_dir)
    if folder is None and model.source.folder == BUNDLED and BUNDLED_LENSES.is_dir():
        folder = BUNDLED_LENSES
    given: dict[str, FittedLens] = {} if calibrated is None else {calibrated.record.kind: calibrated}
    if names is not None:
        names = (*names, *(kind for kind in given if kind not in names))  # a name given twice is refused later
    if folder is None:
        made = tuple(fitted_lens_record(lens, named=False) for lens in given.values())
        return Chosen(names if names is not None else (*default, *given), dict(given), made)
    fitted: dict[str, FittedLens] = {}
    records = []
    for kind in FITTED_NAMES:
        if kind in given:
            fitted[kind] = given[kind]
            records.append(fitted_lens_record(given[kind], named=False))
            continue
        if kind in ON_DEMAND and (kind not in names if names is not None else not _holds(folder, kind)):
            continue
        if names is None:
            lens = _if_there(model, kind, folder.resolve())
        elif kind in names:
            lens = _read(model, kind, folder)
        else:
            lens = FittedLensRecord(kind=kind, status="off", reason="it was not asked for")
        if isinstance(lens, FittedLens):
            fitted[kind] = lens
        records.append(fitted_lens_record(lens) if isinstance(lens, FittedLens) else lens)
    return Chosen(tuple(names) if names is not None else (*default, *fitted), fitted, tuple(records))


def _holds(folder: Path, kind: Kind) -> bool:
    """Whether lenses of a kind lie in a folder; not in one that cannot be listed, of which the other kinds tell."""
    try:
        return bool(look_for(folder, kind)[0])
    except LensError:
        return False


def _if_there(model: CausalLM, kind: Kind, folder: Path) -> FittedLens | FittedLensRecord:
    """The lens of a kind, or why there is none; nothing that lies in the folder stops a probe that did not ask for it.

    Args:
        folder: an absolute path, so that it can be told from all else in a reason.
    """
    try:
        if not any(look_for(folder, kind)):
            return FittedLensRecord(kind=kind, status="missing", reason=f"none is in '{folder.name}'")
        return _read(model, kind, folder)
    except LensError as error:
        # A record names folders and never where they lie.
        reason = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}", lambda _: folder.name, str(error))
        return FittedLensRecord(kind=kind, status="refused", reason=reason)


def _read(model: CausalLM, kind: Kind, folder: Path) -> FittedLens:
    """The model's lens of a kind.

    Raises:
        LensError: it is not there, damaged, of another model, or stands on rows that no lens gives.
    """
    lens = read_fitted_lens(find_lens_of(folder, kind, model_signature(model)).folder)
    bind_lenses((kind,), final_norm=model.final_norm, next_norms=model.next_norms, fitted={kind: lens})
    return lens


def fitted_lens_record(lens: FittedLens, *, named: bool = True) -> FittedLensRecord:
    """What a run records of a fitted lens that it was read through.

    Args:
        named: whether the lens has a folder of its own.
    """
    record = lens.record
    return FittedLensRecord.of(
        record,
        status="loaded",
        path=lens.folder.resolve().name if named else None,
        fitted_to=record.model.id,
        tuned=None if record.tuned is None else _tuned_record(record.tuned),
        prism=None if record.prism is None else _prism_record(record.prism),
        ridge=None if record.ridge is None else _ridge_record(record.ridge),
        imported=None if record.imported is None else ImportedLens.of(record.imported),
    )


def _tuned_record(fit: TunedFit) -> TunedFitRecord:
    def by_layer(name: str, last: float | None) -> tuple[float | None, ...]:
        return (*(getattr(layer, name) for layer in fit.layers), last) if fit.layers else ()

    held_out = HeldOutRecord(  # at n_layers the lens is the model itself
        n_positions=fit.n_held_out,
        logit_bits=by_layer("logit_bits", 0.0),
        lens_bits=by_layer("tuned_bits", 0.0),
        bias_bits=by_layer("bias_bits", 0.0),
        closed_form_bits=by_layer("closed_form_bits", 0.0),
    )
    return TunedFitRecord.of(
        fit,
        n_ids=fit.ids,
        map_norms=by_layer("map_norm", None),
        bias_norms=by_layer("bias_norm", None),
        held_out=held_out if fit.layers else None,
        skip_layers=tuple(map(SkipLayersRecord.of, fit.skip_layers)),
    )


def _prism_record(fit: PrismFit) -> PrismFitRecord:
    held_out = HeldOutRecord(n_positions=fit.n_held_out, logit_bits=fit.logit_bits, lens_bits=fit.held_out_bits)
    return PrismFitRecord.of(fit, held_out=held_out)


def _ridge_record(fit: RidgeFit) -> RidgeFitRecord:
    def by_layer(name: str, last: float | None) -> tuple[float | None, ...]:
        return (*(getattr(layer, name) for layer in fit.layers), last)

    held_out = HeldOutRecord(  # at n_layers the lens is the model itself
        n_positions=fit.n_held_out, logit_bits=by_layer("logit_bits", 0.0), lens_bits=by_layer("ridge_bits", 0.0)
    )
    return RidgeFitRecord.of(
        fit,
        penalties=by_layer("ridge", None),
        map_norms=by_layer("map_norm", None),
        bias_norms=by_layer("bias_norm", None),
        held_out=held_out,
    )
