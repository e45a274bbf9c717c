"""A comparison read back from the JSON that was written of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from layerscope.analysis.model_diff import ModelDiff
from layerscope.analysis.run_diff import RunDiff
from layerscope.errors import RunError

OF_MODELS, OF_RUNS = "diff.json", "run-diff.json"
_READ: Mapping[str, TypeAdapter[ModelDiff] | TypeAdapter[RunDiff]] = {
    OF_MODELS: TypeAdapter(ModelDiff),
    OF_RUNS: TypeAdapter(RunDiff),
}


def diff_file(folder: Path) -> Path | None:
    """The JSON of a folder that `layerscope diff` wrote; None where it is none."""
    return next((folder / name for name in _READ if (folder / name).is_file()), None)


def read_diff(path: Path) -> ModelDiff | RunDiff:
    """A comparison of two models or two runs.

    Args:
        path: its `diff.json` or `run-diff.json`. What follows from other members is found anew, whatever stands there.

    Raises:
        RunError: the file cannot be read, is no JSON, or lacks a member; naming the first ones.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _READ[path.name].validate_python(_named(content), strict=False)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()[:5]]
        raise RunError(f"{path}: {'; '.join(wrong)}; compare again with `layerscope diff`.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not JSON ({error}); compare again with `layerscope diff`.") from error


def _named(content: Any) -> Any:
    """A prompt's text is under another key in files than in memory."""
    if isinstance(content, dict):
        return {"prompt" if key == "asked" else key: _named(value) for key, value in content.items()}
    return [_named(value) for value in content] if isinstance(content, list) else content
