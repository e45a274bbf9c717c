"""The command that scores a lens on tasks of its own."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from layerscope.cli.console import print_parts
from layerscope.cli.fit_session import Revision, TrustRemoteCode, open_model
from layerscope.cli.options import command
from layerscope.errors import LensError, SuiteError
from layerscope.model.options import OpenOptions

SCORE_EXAMPLES = (
    "Examples (the published tasks' files in `tasks`, after `layerscope fit jacobian` of a model):\n\n"
    "layerscope lens score lenses/MODEL-jacobian --tasks tasks --model MODEL\n\n"
    "layerscope lens score lenses/MODEL-jacobian --tasks tasks/lens-eval-typo.json --model MODEL --json\n\n"
    "layerscope lens score lenses --tasks tasks --model MODEL"
)


@command()
def score(
    path: Annotated[Path, typer.Argument(help="A lens' folder, or a folder of several.")],
    tasks: Annotated[
        Path | None, typer.Option(help="A folder of task files (*.json with items), or one of them.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model that it belongs to: a Hub id or a folder.", show_default="the bundled model"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score a lens on tasks of words that a state leads towards: pass@k beside the logit lens, nulls and intervals."""
    from layerscope.suite.word_tasks import read_word_tasks
    from layerscope.terminal.task_table import task_tables

    if tasks is None:
        raise SuiteError("Tasks do not come with layerscope; name a folder of them, or a file, with --tasks.")
    if not path.is_dir():
        raise LensError(f"{path}: no such folder; give a lens' folder, or one that holds lenses.")
    read = read_word_tasks(tasks)  # before the tensor library, so that a mistake in them is said at once
    from layerscope.probing.lens_tasks import score_lenses

    opened = open_model(model, OpenOptions(device="cpu", revision=revision, trust_remote_code=trust_remote_code))
    found = score_lenses(opened, tasks=read, lens_dir=path)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_parts(task_tables(found))
