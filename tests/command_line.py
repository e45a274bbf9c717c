"""The command line, in this process or in one of its own, as a shell would start it."""

import os
import shlex
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from layerscope.cli.main import app

Done = subprocess.CompletedProcess[str]
ENVIRONMENT = {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def layerscope(*words: str, cwd: Path) -> Done:
    """A command in this process: each new one would load the tensor library anew."""
    with chdir(cwd):
        found = CliRunner(env=ENVIRONMENT).invoke(app, list(words))
    return subprocess.CompletedProcess(words, found.exit_code, found.stdout, found.stderr)


def in_a_process(*words: str, cwd: Path) -> Done:
    """A command in a process of its own."""
    command = (sys.executable, "-m", "layerscope", *words)
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def from_a_shell(line: str, cwd: Path) -> Done:
    """A line as it stands in a help text: by a shell if it redirects, else here with its `*` filled in."""
    if ">" in line or "|" in line:
        binary = str(Path(sys.executable).with_name("layerscope"))
        environment = {**os.environ, **ENVIRONMENT}
        line = line.replace("layerscope", binary, 1)
        return subprocess.run(line, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    words = []
    for word in shlex.split(line)[1:]:
        words += sorted(path.relative_to(cwd).as_posix() for path in cwd.glob(word)) if "*" in word else [word]
    return layerscope(*words, cwd=cwd)
