"""What a model does to its logits: as its config declares, or as its own code is seen to where no test vouches."""

from typing import Any

import torch
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.model.families import Family
from layerscope.model.walked_through import FAILURES, stands_in
from layerscope.model.wrapped import head_of
from layerscope.unembedding import HeadTransform

_SLOPE_AT = 2.0**-10
"""Where a softcap changes nothing that float32 could show: its relative error is a third of (scale z / cap)^2."""
_SATURATED = 1e30
_RAMP = (0.0, _SLOPE_AT, -3.0, -1.0, 0.5, 2.0, 7.0, 19.0, -40.0, _SATURATED)
_CLOSE = 1e-5
"""Of what a few operations in float32 make of these."""


def declared_transform(config: Any, family: Family) -> HeadTransform:
    """What the config says about the logits; the identity check has the last word.

    Raises:
        ModelError: a scale, divisor or softcap that is not positive.
    """
    scale, divisor, softcap = (_declared(config, names) for names in (family.scale, family.divisor, family.softcap))
    if divisor is not None and not divisor > 0:
        raise ModelError(f"The head's divisor should be a positive number, but the config says {divisor}.")
    if divisor is not None:
        scale = (1.0 if scale is None else scale) / divisor
    return HeadTransform(scale, softcap)


def _declared(config: Any, names: str | None) -> float | None:
    """The first of several fields that the config has a value for."""
    values = (getattr(config, name, None) for name in (names or "").split("|") if name)
    return next((float(value) for value in values if value is not None), None)


def transform_of(model: Any, family: Family, known: bool) -> HeadTransform:
    """What is declared, where a test covers the family or the model's own forward does the same; else what that does.

    Raises:
        ModelError: what is declared is not positive, or the model gives fewer logits than its head has rows.
    """
    declared = declared_transform(model.config.get_text_config(), family)
    seen = None if known else observed_transform(model)
    return declared if seen is None or _alike(seen, declared) else seen


def _alike(first: HeadTransform, second: HeadTransform) -> bool:
    """Whether two are the same but for rounding."""

    def close(a: float | None, b: float | None) -> bool:
        return a == b if a is None or b is None else abs(a - b) <= _CLOSE * b

    return close(first.scale, second.scale) and close(first.softcap, second.softcap)


def observed_transform(model: Any) -> HeadTransform | None:
    """What a model's own forward does between its last hidden state and its logits, found without any weight.

    Its inner model is made to give a known state, and its head known logits. None where the forward cannot be run so,
    or does something else than scaling and capping; the identity check says then whether what is declared holds.

    Raises:
        ModelError: the model gives fewer logits than its head has rows.
    """
    head, inner = head_of(model), model.base_model
    if inner is model:
        return None
    ramp = torch.zeros(head.out_features)
    n = min(len(_RAMP), len(ramp))
    ramp[:n] = torch.tensor(_RAMP)[:n]
    state = torch.zeros(1, 1, head.in_features)
    state[..., 0] = 1.0
    with (
        torch.inference_mode(),
        stands_in(inner, lambda *args, **kwargs: _Given(state)),
        stands_in(head, lambda x: x[..., :1].float() * ramp),
    ):
        try:
            logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
        except FAILURES:
            return None  # it wants more of its inner model than a state, or has further layers in front of the head
    if logits.shape[-1] < head.out_features:
        raise ModelError(
            f"A '{model.config.model_type}' model gives {logits.shape[-1]} logits, fewer than the "
            f"{head.out_features} rows of its unembedding, which layerscope decodes with whole; set both in the config "
            "to what the vocabulary has."
        )
    return _fitted(ramp[:n], logits.reshape(-1)[:n].float())


def _fitted(given: Tensor, seen: Tensor) -> HeadTransform | None:
    """The scale and softcap that explain what became of logits; None where none do."""
    if not seen.isfinite().all() or len(given) < len(_RAMP):
        return None
    slope, most = float(seen[1] / given[1]), float(seen[-1])
    if not (slope > 0 and most > 0):
        return None
    scale = None if abs(slope - 1) < _CLOSE else slope
    softcap = most if most < _SATURATED * slope / 2 else None
    found = HeadTransform(scale, softcap)
    expected = found.apply_(given.clone())
    return found if bool(((expected - seen).abs() <= _CLOSE * expected.abs()).all()) else None


class _Given(dict[str, Any]):
    """An inner model's output with a last hidden state, and None for whatever else it is asked."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.last_hidden_state = state

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: Any) -> Any:
        return self.last_hidden_state if index in (0, "last_hidden_state") else ()
