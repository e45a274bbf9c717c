"""`layerscope diff`: a variant of a model held against its base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerscope.cli.console import folder_for_runs, free_name, print_line, print_parts, quieten_transformers, watching
from layerscope.cli.options import command
from layerscope.diffing.options import DiffOptions
from layerscope.errors import RunError
from layerscope.model.lean_imports import collection_paused

if TYPE_CHECKING:  # what a command works with is imported where it works, so that no help waits for it
    import layerscope.analysis.diff_limits


@command(last="device dtype memory revision variant_revision bos seed trust_remote_code")
def diff(
    base: Annotated[
        str,
        typer.Argument(
            help="Hub id, GGUF file, or a folder with config.json and *.safetensors: the base. Or a run's folder, or "
            "published files."
        ),
    ],
    variant: Annotated[
        str | None,
        typer.Argument(
            help="Another of the same shape, such as a quantised or fine-tuned one, or the folder of an adapter; of a "
            "run another run of the same prompts.",
            show_default="the base, with --adapter or --variant-revision",
        ),
    ] = None,
    *,
    options: DiffOptions,
    details: Annotated[bool, typer.Option("--details", help="List every layer.")] = False,
    out: Annotated[Path, typer.Option(help="Folder in which the comparison's own folder is made.")] = Path("diffs"),
    fail_above: Annotated[
        str | None,
        typer.Option(
            help="Exit with code 1 where a limit is not kept, as in kl_mean=0.05,flips=0.02. Of kl_mean, kl_median, "
            "kl_p99, kl_max (bits), top1_changed, flips (shares), perplexity_ratio and injected."
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write one page too, with charts, both grids and all tables, into this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Hold a variant of a model against its base: what it says, every layer, and which blocks make the difference."""
    from layerscope.analysis.diff_limits import parse_limits

    limits = {} if fail_above is None else parse_limits(fail_above)  # before the work, not after it
    runs = are_runs(base, variant)
    if runs:
        check_no_model_options(options, page)
    parent = folder_for_runs(out)
    if runs:
        _diff_runs(base, str(variant), limits, parent, details=details, as_json=as_json)
    else:
        _diff_models(base, variant, options, limits, parent, page, details=details, as_json=as_json)


def _diff_models(
    base: str,
    variant: str | None,
    options: DiffOptions,
    limits: dict[str, float],
    parent: Path,
    page: Path | None,
    *,
    details: bool,
    as_json: bool,
) -> None:
    from layerscope.analysis.diff_limits import check_asked, exceeded

    if page is not None:
        from layerscope.view.page.document import check_ours

        check_ours(page)  # before the work, not after it
    options = options.with_suite_read()
    check_asked(limits, suite=options.suite is not None)
    with collection_paused():
        from layerscope.diffing.diff import diff as held
        from layerscope.run_folder import diff_folder_name
        from layerscope.terminal.diff_table import diff_table

        quieten_transformers()
    with watching() as observer:
        found = held(base, variant, observer=observer, **vars(options))
    folder = free_name(parent / diff_folder_name(found.summary))
    found.save(folder)
    if page is not None:
        from layerscope.view.page.diff_page import write_diff_page

        print_line(f"page · {write_diff_page(found.summary, found.rows, page)}", err=as_json)
    if as_json:
        typer.echo(found.json, nl=False)
    else:
        print_parts(diff_table(found.summary, details=details))
    _end(exceeded(found.summary, limits), folder, err=as_json)


def are_runs(base: str, variant: str | None) -> bool:
    """Whether two runs are named, and no models.

    Raises:
        RunError: one of the two is a run and the other is none.
    """
    found = [source is not None and _is_run(Path(source)) for source in (base, variant)]
    if found == [True, False] or found == [False, True]:
        run, other = (base, variant) if found[0] else (variant, base)
        why = "nothing else is named" if other is None else f"{other!r} is none"
        raise RunError(f"'{run}' is a run, and {why}; give two runs, or two models.")
    return found[0]


def _is_run(path: Path) -> bool:
    """Whether a folder or file holds a run: its own, or published files."""
    from layerscope.published.read.reader import holds_published

    if (path / "config.json").exists():
        return False  # a model's own folder, whatever else lies in it
    return (path / "run.json").exists() or holds_published(path)


def check_no_model_options(options: DiffOptions, page: Path | None) -> None:
    """Whether nothing was asked for that two runs cannot answer.

    Raises:
        RunError: something was; naming the first such option.
    """
    plain = vars(DiffOptions())
    asked = [name for name, value in vars(options).items() if value != plain[name] and (value or plain[name])]
    if page is not None:
        raise RunError("--page is of two models; `layerscope view RUN RUN` writes a page of two runs side by side.")
    if asked:
        raise RunError(
            f"--{asked[0].replace('_', '-')} says how two models are compared, and these are two runs; leave it out, "
            "or give the models."
        )


def _diff_runs(
    base: str, variant: str, limits: dict[str, float], parent: Path, *, details: bool, as_json: bool
) -> None:
    from layerscope.analysis.diff_limits import check_of_runs, exceeded
    from layerscope.diffing.runs import diff_runs
    from layerscope.run_folder import run_diff_folder_name
    from layerscope.terminal.run_diff_table import run_diff_table

    check_of_runs(limits)
    found = diff_runs(base, variant)
    folder = free_name(parent / run_diff_folder_name(found.summary))
    found.save(folder)
    if as_json:
        typer.echo(found.json, nl=False)
    else:
        print_parts(run_diff_table(found.summary, details=details))
    _end(exceeded(found.summary, limits), folder, err=as_json)


def _end(over: "list[layerscope.analysis.diff_limits.Exceeded]", folder: Path, *, err: bool) -> None:
    """Say where the comparison is and which limits were not kept, with exit code 1 for the latter."""
    for limit in over:
        print_line(f"above its limit · {limit.measure} is {limit.value:.4g}, the limit {limit.limit:.4g}", err=err)
    print_line(f"diff · {folder}", err=err)
    if over:
        raise typer.Exit(1)
