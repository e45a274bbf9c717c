"""Where the residual stream stands among what a block takes and gives."""

from typing import Any

from torch import Tensor


def stream_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among a block's arguments."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def written_by(output: Any) -> Tensor:
    """What a module adds or hands on, which some give alone and others before what they give beside it."""
    written: Tensor = output[0] if isinstance(output, tuple | list) else output
    return written


def with_written(output: Any, put: Tensor) -> Any:
    """The same output with another tensor in that place."""
    return type(output)((put, *output[1:])) if isinstance(output, tuple | list) else put
