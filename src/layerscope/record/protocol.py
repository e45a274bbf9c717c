"""Protocols: named, versioned bundles of definitions, so that a number says by which rules it was measured."""

from dataclasses import dataclass, fields

from layerscope.errors import RunError


@dataclass(frozen=True)
class Thresholds:
    """Where a yes begins; probabilities, bits and cosines."""

    entropy_collapse_bits: float = 1.0
    copy_strict: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95)
    """Top-1 probability that a strict copy exceeds."""
    copy_collapse: float = 0.95
    copy_margin: float = 0.10
    """Lead over the second probability that a strict copy has."""
    copy_soft: float = 0.5
    copy_soft_windows: tuple[int, ...] = (1, 2, 3)
    """Numbers of consecutive layers whose top tokens spell a piece of the prompt."""
    semantic_margin: float = 0.002
    """Probability above uniform."""
    geometry_margin: float = 0.02
    kl_saturated_bits: float = 95.0

    def as_dict(self) -> dict[str, float]:
        """Flat names and numbers for the record."""
        flat: dict[str, float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                flat.update({f"{field.name}[{i}]": float(v) for i, v in enumerate(value)})
            else:
                flat[field.name] = float(value)
        return flat


@dataclass(frozen=True)
class Protocol:
    """One set of definitions."""

    name: str
    version: str
    headline: str
    """The lens that tables show first and plain milestone names mean."""
    lens_transform: bool
    """Whether lens logits go through the head's softcap and scale, as the model's own do."""
    thresholds: Thresholds = Thresholds()


PROTOCOLS = {
    "standard": Protocol("standard", "1", headline="logit", lens_transform=True),
    "published": Protocol("published", "1", headline="next_norm", lens_transform=False),
}


def protocol_of(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        RunError: no such protocol; the choices are listed.
    """
    if name not in PROTOCOLS:
        raise RunError(f"There is no protocol '{name}'; choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
