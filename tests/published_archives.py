"""Published folders as evidence, each read once in a session: reading ten models with checked calls takes a while."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from layerscope.report.cited.archive import Archive
from made_sweep import MADE
from properties import slow
from published import SHARED


@cache
def archive_of(folder: Path) -> Archive:
    """The archive of a folder that nobody writes to."""
    return Archive(folder)


def with_made(*published: str, made: tuple[str, ...] = MADE) -> tuple[str, ...]:
    """Models to test with: self-made ones, and published ones where they are present."""
    return (*made, *(published if SHARED.is_dir() else ()))


def slowly(*published: str) -> list[Any]:
    """Published models, where they are present, that are left to where all is tested."""
    return [slow(model) for model in with_made(*published, made=())]


def folder_of(stem: str, request: pytest.FixtureRequest, sweep: str = "run-20251004-1804") -> Path:
    """The folder of a self-made model, or of a published one."""
    if stem in MADE:
        return Path(request.getfixturevalue("made_sweep"))
    return Path(request.getfixturevalue("shared")) / "reference" / sweep
