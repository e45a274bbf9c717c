"""The commands about answer rows: those rows of a Jacobian lens that a suite's answers ask for."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerscope.cli.console import print_line, print_parts
from layerscope.cli.fit_session import FitRequest, Revision, TrustRemoteCode, fit_session, open_model
from layerscope.cli.options import command
from layerscope.errors import LensError
from layerscope.fitting.options import JacobianSettings
from layerscope.model.options import OpenOptions

if TYPE_CHECKING:  # types alone: help and mistakes need not wait for the tensor library
    import layerscope.lens_record

TRACK_EXAMPLES = (
    "Examples (after `layerscope fit jacobian --answers capitals`):\n\n"
    "layerscope lens track lenses/reference-answers\n\n"
    "layerscope lens track lenses/reference-answers --suite capitals --json\n\n"
    "layerscope lens track lenses/reference-answers --model layerscope/reference"
)


def fit_rows(
    answers: str,
    request: FitRequest,
    settings: JacobianSettings,
) -> None:
    """The rows of a suite's answers, in a folder named for it unless another name was given."""
    from layerscope.suite import load_suite

    suite = load_suite(answers)  # before the tensor library, so that a mistake in it is said at once
    request = replace(request, suffix="answers")
    with fit_session(request) as observer:
        from layerscope.fitting.jacobian import refuse_settings
        from layerscope.probing.answer_rows import fit_answer_rows

        refuse_settings(settings)
        model, corpus, folder = request.prepare(observer, lambda _: None)
        rows = fit_answer_rows(model, corpus, suite, folder, settings, observer=observer)
    print_answer_rows(rows.record)
    print_line(f"answer rows · {rows.folder}")


@command()
def track(
    path: Annotated[Path, typer.Argument(help="A folder of answer rows.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that they belong to: a Hub id or a folder.", show_default="the bundled model"),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Whose facts are read: a built-in suite, or a file of facts.", show_default="the one of the rows"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Read a suite's facts through answer rows: by layer, how often the own answer comes first among the answers."""
    from layerscope.lenses.answer_rows import read_answer_rows
    from layerscope.suite import builtin_suites, load_suite
    from layerscope.terminal.answer_table import tracked_table

    rows = read_answer_rows(path)
    if suite is None and rows.record.suite not in builtin_suites():
        raise LensError(
            f"{path}: its answers are those of suite '{rows.record.suite}', which does not come with layerscope; give "
            "that suite's file with --suite."
        )
    asked = load_suite(rows.record.suite if suite is None else suite)
    from layerscope.probing.answer_rows import track_answers

    opened = open_model(model, OpenOptions(device="cpu", revision=revision, trust_remote_code=trust_remote_code))
    found = track_answers(opened, rows, asked)
    if as_json:
        derived = {"by_chance": found.by_chance, "more_than_guesses": found.more_than_guesses}
        typer.echo(json.dumps(asdict(found) | derived, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_parts(tracked_table(found, rows.record))


def print_answer_rows(record: "layerscope.lens_record.AnswerRowsRecord") -> None:
    """Tables and lines of answer rows."""
    from layerscope.terminal.answer_table import answer_lines, answer_rows_table

    print_parts(answer_rows_table(record))
    print_parts(["", answer_lines(record)])
