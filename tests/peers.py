"""Other libraries, in an interpreter of their own: the environment of `make peers`."""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = Path(os.environ.get("PEERS", Path(__file__).parent.parent / ".venv-peers")) / "bin" / "python"
"""An interpreter with the libraries of `benchmarks/peers.txt`."""
needs_peers = pytest.mark.skipif(not PYTHON.exists(), reason="needs the environment that `make peers` makes")


def told_by(script: str, *words: object) -> str:
    """What a script of this folder prints there."""
    path = Path(__file__).with_name(script)
    done = subprocess.run([PYTHON, path, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
