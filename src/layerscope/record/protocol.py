"""Protocols: named, versioned bundles of definitions, so that a number says by which rules it was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import count, takewhile
from typing import Any

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
    semantic_gap: float = 0.5
    """Lead over the second logit that a strong answer has; inclusive."""
    geometry_margin: float = 0.02
    surface_margin: float = 0.05
    """Probability by which the answer outweighs the prompt's tokens; inclusive."""
    topk_prompt_mass: float = 0.33
    """Mass of prompt tokens among the 50 most likely at which the echo counts as gone; inclusive."""
    kl_to_final_bits: tuple[float, ...] = (1.0, 0.5)
    answer_rank: tuple[int, ...] = (1, 5, 10)
    p_top1: tuple[float, ...] = (0.30, 0.60)
    """Exceeded strictly."""
    answer_gap: tuple[float, ...] = (0.5, 1.0)
    cos_to_final: tuple[float, ...] = (0.2, 0.4, 0.6)
    gate_scales: tuple[float, ...] = (0.90, 0.95, 1.05, 1.10)
    """Factors on the logits under which a gate should hold."""
    last_layer_kl_bits: float = 0.25
    kl_saturated_bits: float = 95.0

    @classmethod
    def from_dict(cls, flat: Mapping[str, float]) -> "Thresholds":
        """What `as_dict` gave; thresholds that an older record does not name have today's values."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if isinstance(field.default, tuple):
                kind = type(field.default[0])
                names = takewhile(lambda name: name in flat, (f"{field.name}[{i}]" for i in count()))
                stated = [kind(flat[name]) for name in names]
                values |= {field.name: tuple(stated)} if stated else {}
            elif field.name in flat:
                values[field.name] = flat[field.name]
        return cls(**values)

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
    lenses: tuple[str, ...] = ("logit", "next_norm", "raw")
    """What is decoded unless other lenses are asked for."""
    all_positions: bool = False
    """Whether every position of every prompt is decoded unless fewer are asked for, not the first prompt's alone."""
    temperature_grid: bool = False
    """Whether norm temperatures are the best of 25 on the primary fact's own prompts; exact and held out if not."""
    test_prompts: bool = False
    """Whether further prompts about the primary fact are sent to the model's own head."""
    absolute_spikes: bool = False
    """Whether guidance counts a norm ratio over 3 as a spike, rather than one over 3 times its neighbours'."""
    form_of_model: bool = True
    """Whether an answer is judged in the form, after a space or without one, that the model itself prefers at the last
    position; if not, after a space wherever that can be aligned."""
    bos_of_tokenizer: bool = True
    """Whether prompts begin as the model's own tokenizer has them; if not, as a table of families says."""
    whole_answers: bool = True
    """Whether answers are also read to their last piece; if not, only where a prompt is judged by them."""
    thresholds: Thresholds = Thresholds()


PROTOCOLS = {
    "standard": Protocol("standard", "3", headline="logit", lens_transform=True),
    "published": Protocol(
        "published",
        "2",
        headline="next_norm",
        lens_transform=False,
        lenses=("next_norm", "raw"),
        all_positions=True,
        temperature_grid=True,
        test_prompts=True,
        absolute_spikes=True,
        form_of_model=False,
        bos_of_tokenizer=False,
        whole_answers=False,
    ),
}


def protocol_of(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        RunError: no such protocol; the choices are listed.
    """
    if name not in PROTOCOLS:
        raise RunError(f"There is no protocol '{name}'; choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
