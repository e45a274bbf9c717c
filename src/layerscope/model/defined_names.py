"""The names that Transformers' files define, looked up in its sources once for each installation of it.

Transformers reads some 1,600 of its source files whenever it is imported. What it finds is kept as JSON in the user's
cache folder, beside what tells one installation from another.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerscope.cache_folder import cache_folder

Names = dict[Any, Any]
"""By folder, by what they require (a frozenset) and by file: sets of names."""


def remembered(read_names: Callable[[], Names], package: Path, version: str) -> Names:
    """What `read_names` finds in an installed package, or found there before.

    Nothing is kept of a package that no installer wrote, since its files may change at any time, nor where there is no
    cache that can be written.
    """
    try:
        written = (package.parent / f"{package.name}-{version}.dist-info" / "RECORD").stat()
    except OSError:
        return read_names()
    installation = [str(package), written.st_mtime_ns, written.st_size]
    folder = cache_folder()
    if folder is None:
        return read_names()
    file = folder / f"{package.name}-{version}-names.json"
    try:
        kept = json.loads(file.read_bytes())
        if kept["installation"] == installation:
            found: Names = _whole(kept["names"])
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or not whole: it is made again
    names = read_names()
    try:
        text = json.dumps({"installation": installation, "names": _plain(names)})
        if _whole(json.loads(text)["names"]) == names:  # other versions of Transformers may keep what JSON does not
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}")
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)
    except (OSError, TypeError, ValueError):
        pass  # the next start reads them again
    return names


def _plain(names: Any) -> Any:
    """Pairs in place of dicts, whose keys may be sets, and objects in place of sets."""
    if not isinstance(names, dict):
        return {"names": sorted(names)}
    return [[sorted(key) if isinstance(key, frozenset) else key, _plain(value)] for key, value in names.items()]


def _whole(plain: Any) -> Any:
    if isinstance(plain, dict):
        return set(plain["names"])
    return {frozenset(key) if isinstance(key, list) else key: _whole(value) for key, value in plain}
