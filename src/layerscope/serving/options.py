"""How the explorer is served: options of `layerscope serve` and of `layerscope.serving.app.make_app`."""

from dataclasses import dataclass
from pathlib import Path

from layerscope.errors import LayerscopeError
from layerscope.model.options import OpenOptions


@dataclass(frozen=True, kw_only=True)
class ServeOptions(OpenOptions):
    """How the explorer is served."""

    lens_dir: Path | str | None = None
    """Folder of fitted lenses, or of a single one (the bundled model has its own)."""
    max_tokens: int = 1024
    """How many tokens a text may have, with all that its chat adds."""

    def __post_init__(self) -> None:
        """Refuse what no text could keep to.

        Raises:
            LayerscopeError: a limit below one token.
        """
        if self.max_tokens < 1:
            raise LayerscopeError(f"max_tokens should be at least 1, but it is {self.max_tokens}.")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server takes on and keeps, so that no client can use up the machine."""

    queued: int = 64
    """Looks that wait for their turn."""
    kept: int = 64
    """Looks that are kept once they are finished."""
    kept_bytes: int = 512 << 20
    """Memory of what is kept, about."""
    body_bytes: int = 256 << 10
    """Of one request."""
    body_s: float = 20.0
    """How long a client may take to send it."""
