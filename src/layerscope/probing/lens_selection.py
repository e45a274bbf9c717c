"""Which fitted lenses a probe reads through, and what its record says of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError
from layerscope.lens_record import FITTED_NAMES, ImportedLens, JacobianFit, Kind, PrismFit, RidgeFit, TunedFit
from layerscope.lenses import Lens, bind_lenses
from layerscope.lenses.binding import check_names
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens_folder import FittedLens, find_lens_of, look_for, read_fitted_lens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import TunedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.signature import model_signature
from layerscope.record.measured import (
    FittedLensRecord,
    HeldOutRecord,
    JacobianFitRecord,
    PrismFitRecord,
    RidgeFitRecord,
    SkipLayersRecord,
    TunedFitRecord,
)

BUNDLED_LENSES = BUNDLED / "lenses"
"""Fitted lenses of the bundled model."""
ON_DEMAND: tuple[Kind, ...] = ("ridge", "jacobian")
"""Kinds whose absence is nothing to tell of: a folder that holds none was made for others."""
CALIBRATED: Kind = "ridge"
"""The kind that is fitted for a single probe."""


@dataclass(frozen=True)
class Chosen:
    """The lenses of a probe."""

    names: tuple[str, ...]
    fitted: dict[str, FittedLens]
    """Of the fitted ones among them."""
    records: tuple[FittedLensRecord, ...]
    """Of those that were read, looked for in vain, or not wanted; empty where none were looked for."""
    unread: str | None = None
    """What is said of a stored lens that the one fitted for this probe stands in place of."""

    def with_calibrated(self, lens: FittedLens) -> "Chosen":
        """The same with the lens that was fitted for this probe."""
        kind, record = lens.record.kind, fitted_lens_record(lens, named=False)
        return replace(self, fitted=self.fitted | {kind: lens}, records=(*self.records, record))

    def bind(self, model: CausalLM) -> tuple[Lens, ...]:
        """The lenses, bound to the model's norms, on its device."""
        bound = bind_lenses(self.names, final_norm=model.final_norm, next_norms=model.next_norms, fitted=self.fitted)
        device = model.placement.device
        return tuple(
            lens.to(device) if isinstance(lens, TunedLens | PrismLens | JacobianLens) else lens for lens in bound
        )

    @property
    def without_fit(self) -> bool:
        """Whether no lens that brings layers near to the model's own output was found, or none was looked for."""
        wanted = not self.records or any(lens.status in ("missing", "refused") for lens in self.records)
        return wanted and not {"tuned", "ridge"} & self.fitted.keys()

    @property
    def passed_over(self) -> tuple[str, ...]:
        """For each fitted lens that was looked for, or lies there, and is not used, the reason."""
        in_vain = ("missing", "refused")
        vain = (f"no {lens.kind} lens: {lens.reason}" for lens in self.records if lens.status in in_vain)
        return (*vain, *((self.unread,) if self.unread else ()))


def choose_lenses(
    model: CausalLM,
    names: Sequence[str] | None,
    default: Sequence[str],
    lens_dir: str | Path | None,
    *,
    calibrating: bool = False,
) -> Chosen:
    """Find the fitted lenses of a model.

    Args:
        names: lenses asked for; a fitted one among them is required. Where not given, the protocol's own, and every
            fitted one that belongs to the model.
        default: the protocol's own.
        lens_dir: folder of fitted lenses, or of one; that of the bundled model where not given.
        calibrating: whether a ridge lens will be fitted for this probe. It is among the names whatever was asked for,
            and `with_calibrated` adds it: all that is wrong with the others is found before the time of its fit.

    Raises:
        LensError: a fitted lens that was asked for is not there, damaged, or of another model; `lens_dir` is no folder;
            a name that is no lens, or given twice.
    """
    if lens_dir is not None and not Path(lens_dir).is_dir():
        raise LensError(f"{lens_dir}: no such folder; give one that holds fitted lenses, or a lens' own folder.")
    folder = None if lens_dir is None else Path(lens_dir)
    if folder is None and model.source.folder == BUNDLED and BUNDLED_LENSES.is_dir():
        folder = BUNDLED_LENSES
    made = (CALIBRATED,) if calibrating else ()
    if names is not None:
        names = (*names, *(kind for kind in made if kind not in names))
        check_names(names)
    fitted: dict[str, FittedLens] = {}
    records: tuple[FittedLensRecord, ...] = ()
    if folder is not None:
        fitted, records = _in_folder(model, names, folder, [kind for kind in FITTED_NAMES if kind not in made])
    unread = None
    if folder is not None and calibrating and _holds(folder, CALIBRATED):
        unread = f"a {CALIBRATED} lens in '{folder.name}' is not read: the one that --calibrate fits stands for it"
    chosen = Chosen(tuple(names) if names is not None else (*default, *fitted, *made), fitted, records, unread)
    if calibrating and (others := [name for name in chosen.names if name not in made]):
        replace(chosen, names=tuple(others)).bind(model)  # raises for one that is not there
    return chosen


def _in_folder(
    model: CausalLM, names: Sequence[str] | None, folder: Path, kinds: Sequence[Kind]
) -> tuple[dict[str, FittedLens], tuple[FittedLensRecord, ...]]:
    """Of these kinds the lenses that a folder holds for a model, and what is recorded of each kind.

    Raises:
        LensError: one that was asked for is not there, damaged, or of another model.
    """
    fitted: dict[str, FittedLens] = {}
    records = []
    for kind in kinds:
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
    return fitted, tuple(records)


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
        jacobian=None if record.jacobian is None else _jacobian_record(record.jacobian, record.model.n_layers),
        imported=None if record.imported is None else ImportedLens.of(record.imported),
    )


def _by_layer(layers: Sequence[object], name: str, last: float | None) -> tuple[float | None, ...]:
    """A figure of every layer of a fit, and what it is at n_layers; empty where the fit tells of no layer."""
    return (*(getattr(layer, name) for layer in layers), last) if layers else ()


def _tuned_record(fit: TunedFit) -> TunedFitRecord:
    by_layer = partial(_by_layer, fit.layers)
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
    by_layer = partial(_by_layer, fit.layers)
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


def _jacobian_record(fit: JacobianFit, n_layers: int) -> JacobianFitRecord:
    of_layer = {layer.layer: layer for layer in fit.layers}

    def by_layer(name: str, last: float | None) -> tuple[float | None, ...]:
        return (*(getattr(of_layer.get(layer), name, None) for layer in range(n_layers)), last)

    held_out = HeldOutRecord(  # at n_layers the lens is the model itself
        n_positions=fit.n_held_out,
        logit_bits=by_layer("logit_bits", 0.0),
        lens_bits=by_layer("jacobian_bits", 0.0),
        logit_top1=by_layer("logit_top1", 1.0),
        lens_top1=by_layer("jacobian_top1", 1.0),
    )
    return JacobianFitRecord.of(
        fit,
        n_probe_rows=None if fit.probe is None else len(fit.probe.rows),
        n_probe_prompts=None if fit.probe is None else fit.probe.n_prompts,
        norms=by_layer("norm", None),
        betas=by_layer("beta", None),
        sigmas=by_layer("sigma", None),
        held_out=None if fit.n_held_out is None else held_out,
    )
