"""Texts that go through a model beside a suite: prompts for its head, a passage to fit temperatures on, and checks."""

from importlib import resources


def published_test_prompts() -> tuple[str, ...]:
    """The published paraphrases of the question for Germany's capital, one of them the other way round."""
    return tuple(_text("test_prompts.txt").splitlines())


def calibration_passage() -> str:
    """Plain prose that no suite asks about."""
    return _text("calibration.txt").strip()


def check_prompts() -> tuple[str, ...]:
    """Four passages of plain prose, of some 130 words each, on which an imported Jacobian lens is checked."""
    return tuple(_text("check_prompts.txt").strip().split("\n\n"))


def _text(name: str) -> str:
    return resources.files("layerscope.suite").joinpath("builtin", name).read_text(encoding="utf-8")
