"""Where the package keeps what is worth keeping from one command to the next."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path | None:
    """The package's folder among the user's caches; None where the user has no such place, and nothing is kept.

    XDG_CACHE_HOME where it is set; else LOCALAPPDATA on Windows, ~/Library/Caches on macOS, ~/.cache elsewhere.
    """
    stated = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    if stated:
        return Path(stated) / "layerscope"
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in the system's list of users
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "layerscope"
