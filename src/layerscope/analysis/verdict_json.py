"""`verdict.json`: milestones, diagnostics and guidance for other programs; made from a run, never read back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

from layerscope.analysis.diagnostics import Verdict
from layerscope.analysis.milestones import Milestones
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord


def verdict_text(verdict: Verdict, record: RunRecord) -> str:
    """What `verdict.json` holds: the milestones of the primary prompt under every lens, and all that follows."""
    lenses = record.protocol.lenses
    document: dict[str, object] = {
        "run_id": record.run_id,
        "protocol": record.protocol.name,
        "model": record.model.id,
        "n_layers": record.model.n_layers,
        "judge": verdict.diagnostics.judge,
        "milestones": {lens: plain_milestones(verdict.milestones.of(lens)) for lens in lenses},
        "diagnostics": verdict.diagnostics,
        "guidance": verdict.guidance,
    }
    return json_text(document)


def json_text(value: object) -> str:
    """A value as the text of a JSON file; see `plain` for what it may hold."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain_milestones(milestones: Milestones) -> dict[str, dict[str, object]]:
    """Milestones by name, without what their place says already."""
    return {
        name: {field.name: plain(getattr(m, field.name)) for field in fields(m) if field.name not in _KNOWN}
        for name, m in milestones.items()
    }


_KNOWN = ("name", "lens", "prompt")
_WRITTEN = {"prompt": "asked", "fitted_lenses": "sidecars", "fitted": "sidecar"}
"""Fields that have another key in the file."""


def plain(value: object) -> object:
    """A value as JSON has it; field names and keys stay, a prompt is written in words.

    Raises:
        TypeError: something that is neither a dataclass, a mapping, a sequence nor a plain value.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PromptKey):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        derived = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        names = [*(field.name for field in fields(value)), *derived]
        return {_WRITTEN.get(name, name): plain(getattr(value, name)) for name in names}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {f"{key:g}" if isinstance(key, float) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form")
