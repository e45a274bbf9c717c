"""Which fitted lenses a probe reads through, and what its record says of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError
from layerscope.lens_record import FITTED_NAMES, Kind, LensRecord
from layerscope.lenses import Lens, bind_lenses
from layerscope.lenses.lens_folder import FittedLens, find_lens_of, look_for, read_fitted_lens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import TunedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.signature import model_signature
from layerscope.record import measured

BUNDLED_LENSES = BUNDLED / "lenses"
"""Fitted lenses of the bundled model."""


@dataclass(frozen=True)
class Chosen:
    """The lenses of a probe."""

    names: tuple[str, ...]
    sidecars: dict[str, FittedLens]
    """Of the fitted ones among them."""
    records: tuple[measured.FittedLensRecord, ...]
    """Of those that were read, looked for in vain, or not wanted; empty where none were looked for."""

    def bind(self, model: CausalLM) -> tuple[Lens, ...]:
        """The lenses, bound to the model's norms, on its device."""
        bound = bind_lenses(
            self.names, final_norm=model.final_norm, next_norms=model.next_norms, sidecars=self.sidecars
        )
        device = model.placement.device
        return tuple(lens.to(device) if isinstance(lens, TunedLens | PrismLens) else lens for lens in bound)

    @property
    def passed_over(self) -> tuple[str, ...]:
        """For each fitted lens that was looked for and is not used, the reason."""
        return tuple(f"no {one.kind} lens: {one.reason}" for one in self.records if one.status in _IN_VAIN)


_IN_VAIN = ("missing", "refused")


def choose_lenses(
    model: CausalLM,
    names: Sequence[str] | None,
    default: Sequence[str],
    sidecars: str | Path | None,
) -> Chosen:
    """Find the fitted lenses of a model.

    Args:
        model: the model.
        names: lenses asked for; a fitted one among them is required. Where not given, the protocol's own, and every
            fitted one that belongs to the model.
        default: the protocol's own.
        sidecars: folder of fitted lenses, or of one; that of the bundled model where not given.

    Raises:
        LensError: a fitted lens that was asked for is not there, damaged, or of another model; `sidecars` is no folder.
    """
    if sidecars is not None and not Path(sidecars).is_dir():
        raise LensError(f"{sidecars}: no such folder; give one that holds fitted lenses, or a lens' own folder.")
    folder = None if sidecars is None else Path(sidecars)
    if folder is None and model.source.folder == BUNDLED and BUNDLED_LENSES.is_dir():
        folder = BUNDLED_LENSES
    if folder is None:
        return Chosen(tuple(names if names is not None else default), {}, ())
    found: dict[str, FittedLens] = {}
    records = []
    for kind in FITTED_NAMES:
        if names is None:
            looked = _if_there(model, kind, folder.resolve())
        elif kind in names:
            looked = _read(model, kind, folder)
        else:
            looked = measured.FittedLensRecord(kind=kind, status="off", reason="it was not asked for")
        if isinstance(looked, FittedLens):
            found[kind] = looked
        records.append(sidecar_record(looked) if isinstance(looked, FittedLens) else looked)
    wanted = tuple(names) if names is not None else (*default, *found)
    return Chosen(wanted, found, tuple(records))


def _if_there(model: CausalLM, kind: Kind, folder: Path) -> FittedLens | measured.FittedLensRecord:
    """The lens of a kind, or why there is none; nothing that lies in the folder stops a probe that did not ask for it.

    Args:
        model: the model.
        kind: of the lens.
        folder: an absolute path, so that it can be told from all else in a reason.
    """
    try:
        if not any(look_for(folder, kind)):
            return measured.FittedLensRecord(kind=kind, status="missing", reason=f"none is in '{folder.name}'")
        return _read(model, kind, folder)
    except LensError as error:
        # A record names folders and never where they lie.
        reason = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}", lambda _: folder.name, str(error))
        return measured.FittedLensRecord(kind=kind, status="refused", reason=reason)


def _read(model: CausalLM, kind: Kind, folder: Path) -> FittedLens:
    """The model's lens of a kind.

    Raises:
        LensError: it is not there, damaged, of another model, or stands on rows that no lens gives.
    """
    sidecar = read_fitted_lens(find_lens_of(folder, kind, model_signature(model)).folder)
    bind_lenses((kind,), final_norm=model.final_norm, next_norms=model.next_norms, sidecars={kind: sidecar})
    return sidecar


def sidecar_record(sidecar: FittedLens) -> measured.FittedLensRecord:
    """What a run records of a fitted lens that it was read through."""
    said = sidecar.record
    return measured.FittedLensRecord(
        kind=said.kind,
        status="loaded",
        path=sidecar.folder.resolve().name,
        weights_sha256=said.weights_sha256,
        fitted_to=said.model.id,
        created_utc=said.created_utc,
        corpus=_corpus(said),
        settings=None
        if said.settings is None
        else measured.LensSettingsRecord.model_validate(said.settings.model_dump()),
        tuned=_tuned(said),
        prism=_prism(said),
        imported=None
        if said.imported is None
        else measured.ImportedLensRecord.model_validate(said.imported.model_dump(include={"format", "name", "sha256"})),
        notes=said.notes,
    )


def _corpus(said: LensRecord) -> measured.LensCorpusRecord | None:
    return None if said.corpus is None else measured.LensCorpusRecord.model_validate(said.corpus.model_dump())


def _tuned(said: LensRecord) -> measured.TunedFitRecord | None:
    fit = said.tuned
    if fit is None:
        return None
    layers = fit.layers
    held_out = None
    if layers:  # at n_layers the lens is the model itself
        held_out = measured.HeldOutRecord(
            n_positions=fit.n_held_out,
            logit_bits=(*(one.logit_bits for one in layers), 0.0),
            lens_bits=(*(one.tuned_bits for one in layers), 0.0),
            bias_bits=(*(one.bias_bits for one in layers), 0.0),
            closed_form_bits=(*(one.closed_form_bits for one in layers), 0.0),
        )
    return measured.TunedFitRecord(
        placement=fit.placement,
        rank=fit.rank,
        temperatures=fit.temperatures,
        map_norms=(*(one.map_norm for one in layers), None) if layers else (),
        bias_norms=(*(one.bias_norm for one in layers), None) if layers else (),
        first_position=fit.first_position,
        n_moments=fit.n_moments,
        n_refined=fit.n_refined,
        n_select=fit.n_select,
        held_out=held_out,
        skip_layers=tuple(measured.SkipLayersRecord.model_validate(skip.model_dump()) for skip in fit.skip_layers),
    )


def _prism(said: LensRecord) -> measured.PrismFitRecord | None:
    fit = said.prism
    if fit is None:
        return None
    return measured.PrismFitRecord(
        method=fit.method,
        pairing=fit.pairing,
        k=fit.k,
        k_asked=fit.k_asked,
        rank_effective=fit.rank_effective,
        stream=fit.stream,
        rows=fit.rows,
        layers=fit.layers,
        vectors=fit.vectors,
        distinct_vectors=fit.distinct_vectors,
        orthogonality_error=fit.orthogonality_error,
        held_out=measured.HeldOutRecord(
            n_positions=fit.n_held_out, logit_bits=fit.logit_bits, lens_bits=fit.held_out_bits
        ),
    )
