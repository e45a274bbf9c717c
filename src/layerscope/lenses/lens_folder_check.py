"""Whether the tensors of a fitted lens are those that its record speaks of."""

import math

import torch
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lens_record import FITTED_NAMES, FittedModel, JacobianFit, LensRecord, PrismFit, RidgeFit, TunedFit
from layerscope.lenses.tuned_lens import translator_shapes

PROBE_ROWS, PROBE_IDS = "probe.rows", "probe.token_ids"
"""Exact rows of a Jacobian lens, by layer, their mean over prompts; and those prompts."""
_OTHER_DTYPES = {"temperatures": torch.float64, PROBE_IDS: torch.int64}
ORTHOGONAL = 1e-3
"""Largest Frobenius norm of Q^T Q - I at which a matrix counts as a rotation."""


def tuned_fit(record: LensRecord) -> TunedFit:
    """What the record of a tuned lens says of the fit.

    Raises:
        LensError: it is of a lens of another kind.
    """
    if record.kind != "tuned" or record.tuned is None:
        raise LensError(f"A tuned lens was expected, but the record is of a {record.kind} lens.")
    return record.tuned


def prism_fit(record: LensRecord) -> PrismFit:
    """What the record of a prism lens says of the fit.

    Raises:
        LensError: it is of a lens of another kind.
    """
    if record.kind != "prism" or record.prism is None:
        raise LensError(f"A prism lens was expected, but the record is of a {record.kind} lens.")
    return record.prism


def ridge_fit(record: LensRecord) -> RidgeFit:
    """What the record of a ridge lens says of the fit.

    Raises:
        LensError: it is of a lens of another kind.
    """
    if record.kind != "ridge" or record.ridge is None:
        raise LensError(f"A ridge lens was expected, but the record is of a {record.kind} lens.")
    return record.ridge


def jacobian_fit(record: LensRecord) -> JacobianFit:
    """What the record of a Jacobian lens says of the fit.

    Raises:
        LensError: it is of a lens of another kind.
    """
    if record.kind != "jacobian" or record.jacobian is None:
        raise LensError(f"A Jacobian lens was expected, but the record is of a {record.kind} lens.")
    return record.jacobian


def check_tensors(record: LensRecord, tensors: dict[str, Tensor], where: str, *, finite: bool) -> None:
    """Compare tensors with the record.

    Raises:
        LensError: kind, names, shapes, dtypes or temperatures contradict it, or a value is not finite.
    """
    d_model = record.model.d_model
    if any((getattr(record, kind) is not None) != (record.kind == kind) for kind in FITTED_NAMES):
        raise LensError(f"{where}: the record says that it is of a {record.kind} lens, but its parts are not.")
    if record.tuned is not None:
        _check_tuned(record.tuned, record.model, where)
        has_means = any(name.endswith(".mean") for name in tensors)
        _check_shapes(tensors, _tuned_shapes(record.tuned, record.model, has_means), where)
        if tuple(tensors["temperatures"].tolist()) != record.tuned.temperatures:
            raise LensError(f"{where}: the temperatures are not those of its record; fit the lens again.")
    if record.ridge is not None:
        parts = {"full": (d_model, d_model), "bias": (d_model,), "mean": (d_model,)}
        layers = range(record.model.n_layers)
        _check_shapes(tensors, {f"layers.{i:03d}.{part}": parts[part] for i in layers for part in parts}, where)
    if record.jacobian is not None:
        _check_jacobian(record.jacobian, record.model, where)
        _check_shapes(tensors, _jacobian_shapes(record.jacobian, record.model), where)
    if record.prism is not None:
        _check_shapes(tensors, {"mean": (d_model,), "variance": (d_model,), "rotation": (d_model, d_model)}, where)
        if not record.prism.orthogonality_error < ORTHOGONAL:
            error = record.prism.orthogonality_error
            raise LensError(f"{where}: its matrix is no rotation (||Q^T Q - I|| is {error:.3g}); fit the lens again.")
    spoilt = [name for name, tensor in tensors.items() if finite and not bool(torch.isfinite(tensor).all())]
    if spoilt:
        raise LensError(f"{where}: `{spoilt[0]}` holds values that are not finite; fit the lens again.")


def _check_tuned(fit: TunedFit, model: FittedModel, where: str) -> None:
    if not 0 <= fit.rank <= model.d_model:
        raise LensError(f"{where}: the rank is {fit.rank}, which is not between 0 and d_model = {model.d_model}.")
    taus = fit.temperatures
    if len(taus) != model.n_layers + 1:
        raise LensError(f"{where}: {len(taus)} temperatures, but layers 0 to {model.n_layers} each have one.")
    wrong = [i for i, tau in enumerate(taus) if not (tau > 0 and math.isfinite(tau))]
    if wrong:
        raise LensError(f"{where}: the temperature of layer {wrong[0]} is {taus[wrong[0]]}, which is not positive.")
    if taus[-1] != 1.0:
        raise LensError(f"{where}: the last layer is the model itself, but its temperature is {taus[-1]} and not 1.")


def _tuned_shapes(fit: TunedFit, model: FittedModel, has_means: bool) -> dict[str, tuple[int, ...]]:
    """The mean inputs are all there, or none is: a lens fitted elsewhere does not say them."""
    parts = translator_shapes(model.d_model, fit.rank) | ({"mean": (model.d_model,)} if has_means else {})
    named = {f"layers.{i:03d}.{part}": shape for i in range(model.n_layers) for part, shape in parts.items()}
    return {**named, "temperatures": (model.n_layers + 1,)}


def _check_jacobian(fit: JacobianFit, model: FittedModel, where: str) -> None:
    """Every layer before the last has a matrix, but the embedding's may be absent."""
    layers = [layer.layer for layer in fit.layers]
    if layers not in (list(range(model.n_layers)), list(range(1, model.n_layers))):
        raise LensError(
            f"{where}: a Jacobian lens of {model.id} has matrices for layers 0 or 1 to {model.n_layers - 1}, but this "
            f"has them for {', '.join(map(str, layers)) or 'none'}; fit the lens again."
        )


def _jacobian_shapes(fit: JacobianFit, model: FittedModel) -> dict[str, tuple[int, ...]]:
    d_model = model.d_model
    named: dict[str, tuple[int, ...]] = {
        f"layers.{layer.layer:03d}.jacobian": (d_model, d_model) for layer in fit.layers
    }
    if fit.probe is not None:
        named[PROBE_ROWS] = (model.n_layers, len(fit.probe.rows), d_model)
        named[PROBE_IDS] = (fit.probe.n_prompts, fit.seq_len or 0)
    return named


def _check_shapes(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Names, shapes and dtypes: float32, but for the temperatures, which have to equal the record's, and for ids."""
    for words, names in (
        ("lacks", shapes.keys() - tensors.keys()),
        ("should not have", tensors.keys() - shapes.keys()),
    ):
        if names:
            raise LensError(f"{where}: by its record the lens {words} the tensor `{min(names)}`; fit the lens again.")
    for name, shape in shapes.items():
        dtype = _OTHER_DTYPES.get(name, torch.float32)
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            wanted, came = f"{dtype} of shape {shape}", f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise LensError(f"{where}: by its record `{name}` is {wanted}, but it is {came}; fit the lens again.")
