"""Lenses by name, bound to a model's norms and, where they are fitted, to what was read of them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from layerscope.errors import LensError
from layerscope.lens_record import FITTED_NAMES
from layerscope.lenses.lens import LENS_NAMES, Lens
from layerscope.lenses.lens_folder import FittedLens, jacobian_lens, prism_lens, ridge_lens, tuned_lens
from layerscope.lenses.lens_folder_check import prism_fit
from layerscope.lenses.logit_lens import LogitLens, NextNormLens, RawLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.unembedding import Norm

_NONE: Mapping[str, FittedLens] = MappingProxyType({})


def bind_lenses(
    names: Sequence[str],
    *,
    final_norm: Norm | None,
    next_norms: tuple[Norm | None, ...],
    fitted: Mapping[str, FittedLens] = _NONE,
) -> tuple[Lens, ...]:
    """The lenses of that name, bound to a model's norms, in the order asked for.

    Args:
        names: of `LENS_NAMES` and, where a fitted lens is given, of `FITTED_NAMES`.
        final_norm: the model's final norm.
        next_norms: for each layer 0..n_layers the norm that reads it.
        fitted: the fitted lenses of this model by name. Their tensors stay where they are; move a
            lens with its `to`.

    Raises:
        LensError: a name that is no lens, one given twice, or no name at all; a fitted lens that is not given, or
            is of another kind or depth.
    """
    check_names(names)
    plain: dict[str, Lens] = {
        "logit": LogitLens(final_norm),
        "next_norm": NextNormLens(next_norms),
        "raw": RawLens(),
    }
    n_layers = len(next_norms) - 1
    chosen = {name: _fitted_lens(name, fitted, n_layers) for name in names if name in FITTED_NAMES}
    made: dict[str, Lens] = dict(plain)
    if "tuned" in chosen:
        made["tuned"] = tuned_lens(chosen["tuned"], final_norm)
    if "ridge" in chosen:
        made["ridge"] = ridge_lens(chosen["ridge"], final_norm)
    if "jacobian" in chosen:
        made["jacobian"] = jacobian_lens(chosen["jacobian"], final_norm)
    if "prism" in chosen:
        made["prism"] = _prism_lens(chosen["prism"], plain)
    return tuple(made[name] for name in names)


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no list of lenses, whether or not those that have to be fitted are there.

    Raises:
        LensError: a name that is no lens, one given twice, or no name at all.
    """
    choices = ", ".join((*LENS_NAMES, *FITTED_NAMES))
    if not names:
        raise LensError(f"No lens was asked for; choose from {choices}.")
    if len(set(names)) < len(names):
        raise LensError(f"Each lens can be asked for once, but the list is {', '.join(names)}.")
    unknown = [name for name in names if name not in LENS_NAMES and name not in FITTED_NAMES]
    if unknown:
        raise LensError(f"There is no lens called '{unknown[0]}'; choose from {choices}.")


def _fitted_lens(name: str, fitted: Mapping[str, FittedLens], n_layers: int) -> FittedLens:
    if name not in fitted:
        raise LensError(
            f"The lens '{name}' has to be fitted to a model first, by "
            f"`layerscope fit {name} MODEL --text FILE --out FOLDER`; then give its place with `--lens-dir FOLDER`."
        )
    record = fitted[name].record
    if record.kind != name:
        raise LensError(f"{fitted[name].folder}: a {name} lens was asked for, but this is a {record.kind} lens.")
    if record.model.n_layers != n_layers:
        raise LensError(
            f"{fitted[name].folder}: the lens was fitted to {record.model.id} with {record.model.n_layers} layers, "
            f"but this model has {n_layers}; fit one to this model."
        )
    return fitted[name]


def _prism_lens(lens: FittedLens, plain: Mapping[str, Lens]) -> PrismLens:
    named = prism_fit(lens.record).stream
    if named not in plain:
        raise LensError(
            f"{lens.folder}: a prism lens stands on the rows of {', '.join(plain)}, but this one names '{named}'; "
            "fit it again."
        )
    return prism_lens(lens, plain[named])
