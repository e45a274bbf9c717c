"""`layerscope diff`: a variant of a model held against its base."""

from pathlib import Path
from typing import Annotated

import typer

from layerscope.cli.console import folder_for_runs, free_name, print_line, print_parts, quieten_transformers, watching
from layerscope.cli.options import command
from layerscope.diffing.options import DiffOptions
from layerscope.model.lean_imports import collection_paused


@command(last="device dtype memory revision variant_revision bos seed trust_remote_code")
def diff(
    base: Annotated[
        str, typer.Argument(help="Hub id, GGUF file, or a folder with config.json and *.safetensors: the base.")
    ],
    variant: Annotated[
        str | None,
        typer.Argument(
            help="Another of the same shape, such as a quantised or fine-tuned one, or the folder of an adapter.",
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
    from layerscope.analysis.diff_limits import check_asked, exceeded, parse_limits

    limits = {} if fail_above is None else parse_limits(fail_above)  # before the work, not after it
    parent = folder_for_runs(out)
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
    over = exceeded(found.summary, limits)
    for limit in over:
        print_line(f"above its limit · {limit.measure} is {limit.value:.4g}, the limit {limit.limit:.4g}", err=as_json)
    print_line(f"diff · {folder}", err=as_json)
    if over:
        raise typer.Exit(1)
