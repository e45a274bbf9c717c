"""The lenses of a look: by their names, or objects of the caller's own, held to what a lens has to give."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lens_record import FITTED_NAMES
from layerscope.lenses import Lens
from layerscope.lenses.binding import check_names
from layerscope.lenses.lens import LENS_NAMES
from layerscope.looking.options import LensChoice
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.opening import lens_names


@dataclass(frozen=True)
class OwnLens:
    """A caller's lens, whose every row is checked: one of another shape would be read at the wrong position."""

    lens: Lens
    d_model: int

    @property
    def name(self) -> str:
        """As the caller named it."""
        return self.lens.name

    def source(self, layer: int) -> str:
        """As the caller says."""
        return self.lens.source(layer)

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The caller's row in float32, on the residual's device.

        Raises:
            LensError: something else came than one row for each row.
        """
        # A copy, for what the caller's code does in place is not to reach the residuals of others.
        row = self.lens(residual.clone(), layer)
        if not isinstance(row, Tensor) or row.shape != residual.shape or not row.is_floating_point():
            came = f"{row.dtype} of shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
            raise LensError(
                f"The lens '{self.name}' should give floating-point rows of the residual's shape "
                f"{tuple(residual.shape)}, but at layer {layer} {came} came."
            )
        return row.detach().to(residual.device, torch.float32)


def lenses_of(
    model: CausalLM, lenses: str | LensChoice | Sequence[LensChoice], lens_dir: str | Path | None
) -> tuple[Lens, ...]:
    """The lenses that are meant, in the order asked for.

    Args:
        model: whose norms the named ones are bound to.
        lenses: names, between commas or in a sequence, and objects that are lenses.
        lens_dir: where fitted ones lie.

    Raises:
        LensError: a name that is no lens, one that is not there, an object that is none, or a name that comes twice.
    """
    given = lenses if isinstance(lenses, Sequence) else (lenses,)
    asked: Sequence[LensChoice] = lens_names(lenses) if isinstance(lenses, str) else given
    names = tuple(each for each in asked if isinstance(each, str))
    if names or not asked:
        check_names(names)
    own = {at: _own(each, model.d_model) for at, each in enumerate(asked) if not isinstance(each, str)}
    every = [own[at].name if at in own else each for at, each in enumerate(asked)]
    if len(set(every)) < len(every):
        raise LensError(f"Each lens needs a name of its own, but the list is {', '.join(map(str, every))}.")
    named = iter(choose_lenses(model, names, names, lens_dir).bind(model) if names else ())
    return tuple(own[at] if at in own else next(named) for at in range(len(asked)))


def _own(lens: object, d_model: int) -> OwnLens:
    """Raises LensError of what is no lens, or has the name of another one."""
    if isinstance(lens, type) or not isinstance(lens, Lens):
        came = f"the class {lens.__name__}" if isinstance(lens, type) else f"an object of {type(lens).__name__}"
        raise LensError(
            "A lens of your own should be an object with a name, a source(layer) and a call with residual and layer "
            f"(see layerscope.Lens), but {came} came."
        )
    if not isinstance(lens.name, str) or not lens.name:
        raise LensError(f"A lens' name should be text that is not empty, but {lens.name!r} came.")
    if lens.name in (*LENS_NAMES, *FITTED_NAMES):
        raise LensError(f"'{lens.name}' is the name of a lens that layerscope binds itself; give yours another name.")
    return OwnLens(lens, d_model)
