"""The commands about fitted lenses: fit one of the four kinds, show what there is, import what others fitted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerscope.cli.answer_rows import TRACK_EXAMPLES, fit_rows, print_answer_rows, track
from layerscope.cli.console import print_line, print_parts
from layerscope.cli.fit_session import (
    FitRequest,
    Revision,
    TrustRemoteCode,
    fit_session,
    folder_name,
    free,
    last_part,
    open_model,
    parent_of,
)
from layerscope.cli.lens_tasks import SCORE_EXAMPLES, score
from layerscope.cli.options import Model, command
from layerscope.errors import LensError
from layerscope.fitting.options import FitOptions, JacobianSettings, PrismSettings, RidgeSettings, TunedSettings
from layerscope.model.options import OpenOptions

if TYPE_CHECKING:  # types alone: help and mistakes need not wait for the tensor library
    import layerscope.lens_record
    import layerscope.lenses.lens_folder

LENSES = Path("lenses")
"""Where fitted lenses go, and are looked for, unless another place is named."""

fit_app = typer.Typer(
    help="Fit a lens to a model on text of your own.",
    epilog="Examples (my.txt holds text of yours):\n\nlayerscope fit prism --text my.txt --seq-len 32\n\n"
    "layerscope fit ridge --text my.txt --seq-len 32\n\nlayerscope fit tuned --help",
    no_args_is_help=True,
)
lens_app = typer.Typer(
    help="Show fitted lenses, score them on tasks of their own, and import what others fitted.",
    epilog="Examples (after `layerscope fit tuned`):\n\nlayerscope lens show\n\n"
    "layerscope lens show lenses/reference-tuned\n\nlayerscope lens import --help",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(help="Folder in which to make the lens' own folder.")]
Name = Annotated[str | None, typer.Option(help="Name of the lens' own folder.", show_default="by model and kind")]


@fit_app.command(
    epilog="Examples (my.txt holds text of yours, blank lines between documents):\n\n"
    "layerscope fit tuned --text my.txt --seq-len 32 --batch 64 --steps 10\n\n"
    "layerscope fit tuned --text my.txt --seq-len 32 --steps 2 --rank 8 --name r8\n\n"
    "layerscope fit tuned --text my.txt --seq-len 32 --steps 4 --rank 0 --out bias"
)
@command(last="seed trust_remote_code", without="first_position rate")
def tuned(
    *,
    model: Model = None,
    text: FitOptions,
    settings: TunedSettings,
    out: Out = LENSES,
    name: Name = None,
    opening: OpenOptions,
) -> None:
    """Fit a tuned lens: for each layer the affine map that brings it nearest to the model's own output."""
    _refuse_below_one(steps=settings.steps, batch=settings.batch)
    request = FitRequest("tuned", model, text, settings.seed, out, name, opening)
    with fit_session(request) as observer:
        from layerscope.fitting.tuned import fit_tuned, rank_of

        model_text_folder = request.prepare(observer, lambda m: rank_of(settings.rank, m.d_model, m.n_layers))
        fitted = fit_tuned(*model_text_folder, settings, observer=observer)
    _print_fitted(fitted)


@fit_app.command(
    epilog="Examples (my.txt holds text of yours, blank lines between documents):\n\n"
    "layerscope fit ridge --text my.txt --seq-len 32\n\n"
    "layerscope fit ridge --text my.txt --seq-len 32 --placement normed --name normed\n\n"
    "layerscope fit ridge --text my.txt --seq-len 32 --tokens 5k --out quick"
)
@command(last="seed trust_remote_code", without="first_position")
def ridge(
    *,
    model: Model = None,
    text: FitOptions,
    settings: RidgeSettings,
    out: Out = LENSES,
    name: Name = None,
    opening: OpenOptions,
) -> None:
    """Fit a ridge lens: for each layer the regression of the final residual on its own, in one pass over the text."""
    request = FitRequest("ridge", model, text, settings.seed, out, name, opening)
    with fit_session(request) as observer:
        from layerscope.fitting.ridge import fit_ridge

        fitted = fit_ridge(*request.prepare(observer, lambda _: None), settings, observer=observer)
    _print_fitted(fitted)


@fit_app.command(
    epilog="Examples (my.txt holds text of yours, blank lines between documents):\n\n"
    "layerscope fit prism --text my.txt --seq-len 32\n\n"
    "layerscope fit prism --text my.txt --seq-len 32 --k 16 --name small\n\n"
    "layerscope fit prism --text my.txt --seq-len 32 --method by_rank --out ranks"
)
@command(last="seed trust_remote_code")
def prism(
    *,
    model: Model = None,
    text: FitOptions,
    settings: PrismSettings,
    out: Out = LENSES,
    name: Name = None,
    opening: OpenOptions,
) -> None:
    """Fit a prism lens: one standardisation and one rotation for all layers, a control for what a fit can do."""
    _refuse_below_one(k=settings.k, vectors=settings.vectors)
    request = FitRequest("prism", model, text, settings.seed, out, name, opening)
    with fit_session(request) as observer:
        from layerscope.fitting.prism import fit_prism
        from layerscope.fitting.prism_map import VECTORS_PER_DIRECTION

        if settings.vectors is not None and settings.vectors < VECTORS_PER_DIRECTION:
            raise LensError(
                f"A prism lens takes at least {VECTORS_PER_DIRECTION} vectors, but --vectors is {settings.vectors}."
            )
        model_text_folder = request.prepare(observer, lambda m: _refuse_k(settings.k, m.d_model))
        fitted = fit_prism(*model_text_folder, settings, observer=observer)
    _print_fitted(fitted)


@fit_app.command(
    epilog="Examples (my.txt holds text of yours, blank lines between documents):\n\n"
    "layerscope fit jacobian --text my.txt --seq-len 32 --first-position 8 --probe-rows 8\n\n"
    "layerscope fit jacobian --text my.txt --seq-len 24 --prompts 4 --method exact --out exact\n\n"
    "layerscope fit jacobian --text my.txt --seq-len 24 --answers capitals"
)
@command(last="seed trust_remote_code")
def jacobian(
    *,
    model: Model = None,
    text: FitOptions,
    settings: JacobianSettings,
    answers: Annotated[
        str | None,
        typer.Option(
            help="Compute no whole matrices, but the rows that a suite's answers ask for, exactly (--method, --correct "
            "and the probe rows have no part in it): a built-in suite, or a file of facts.",
            show_default="the whole lens",
        ),
    ] = None,
    out: Out = LENSES,
    name: Name = None,
    opening: OpenOptions,
) -> None:
    """Fit a Jacobian lens: for each layer what its residual does, on average, to the model's output from there on.

    With --answers only what a suite asks about, exactly: a row for each of its answers' tokens.
    """
    _refuse_below_one(prompts=settings.prompts)
    request = FitRequest("jacobian", model, text, settings.seed, out, name, opening)
    if answers is not None:
        fit_rows(answers, request, settings)
        return
    with fit_session(request) as observer:
        from layerscope.fitting.jacobian import fit_jacobian, refuse_settings

        refuse_settings(settings)
        fitted = fit_jacobian(*request.prepare(observer, lambda _: None), settings, observer=observer)
    _print_fitted(fitted)


@lens_app.command(
    epilog="Examples (after `layerscope fit tuned`):\n\nlayerscope lens show\n\n"
    "layerscope lens show lenses/reference-tuned\n\n"
    "layerscope lens show lenses/reference-tuned --model layerscope/reference"
)
@command()
def show(
    path: Annotated[Path, typer.Argument(help="A lens' folder, or a folder of several.")] = LENSES,
    model: Annotated[
        str | None,
        typer.Option(help="Also check whether it belongs to this model: a Hub id, a folder, or layerscope/reference."),
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a fitted lens: what it is, how good it is, its model, whether its weights are whole; or list several."""
    from layerscope.lenses import answer_rows
    from layerscope.lenses.lens_folder import RECORD_NAME, read_fitted_lens
    from layerscope.terminal.lens_tables import lens_list

    single, rows = (path / RECORD_NAME).exists(), answer_rows.find_answer_rows(path)
    lenses = _lenses_in(path) if single or not rows else _lenses_below(path)
    if single:
        _print_lens(lenses[0].record)
    elif (path / answer_rows.RECORD_NAME).exists():
        print_answer_rows(answer_rows.read_answer_rows(path).record)
    else:
        print_parts(lens_list(lenses) if lenses else ())
        for folder, record in rows:
            n = len(record.answers)
            print_line(f"{folder} · answer rows, {n} tokens of suite '{record.suite}' · {record.model.id}")
    if model is not None:
        owners = [(lens.folder, lens.record.model) for lens in lenses]
        owners += [(folder, record.model) for folder, record in rows]
        _compare_with(owners, model, OpenOptions(device="cpu", revision=revision, trust_remote_code=trust_remote_code))
    if single:
        read_fitted_lens(lenses[0].folder)  # comes last, for what is damaged should be shown all the same


lens_app.command(epilog=TRACK_EXAMPLES)(track)
lens_app.command(epilog=SCORE_EXAMPLES)(score)


@lens_app.command(
    name="import",
    epilog="Examples (a lens of the tuned-lens library in `theirs`, its model in `model`):\n\n"
    "layerscope lens import theirs --model model\n\n"
    "layerscope lens import theirs/params.safetensors --model model --name by-file\n\n"
    "layerscope lens import theirs --model model --out mine",
)
@command()
def import_(
    path: Annotated[Path, typer.Argument(help="A file or folder of the tuned-lens library, or a Jacobian lens' file.")],
    model: Annotated[str | None, typer.Option(help="The model it belongs to: a Hub id or a folder.")] = None,
    out: Out = LENSES,
    name: Name = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open .pt files, of which only tensors and plain values are taken.")
    ] = False,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Take a Jacobian lens that is still being fitted as far as it has come."),
    ] = False,
    check: Annotated[
        bool, typer.Option(help="Hold a Jacobian lens against exact rows of the model: 16 of them on four prompts.")
    ] = True,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Import a lens that another program fitted, as a folder like those of `layerscope fit`."""
    if model is None:
        raise LensError("A lens belongs to a model; name it with --model, as a Hub id or a folder.")
    if not path.exists():
        raise LensError(f"{path}: no such file or folder; give a lens' file or the folder that holds it.")
    parent, own_name = parent_of(out), folder_name(name)
    from layerscope.lenses.importing import import_lens
    from layerscope.lenses.lens_folder import write_fitted_lens
    from layerscope.model.signature import model_signature

    opened = open_model(model, OpenOptions(device="cpu", revision=revision, trust_remote_code=trust_remote_code))
    record, tensors = import_lens(
        path,
        model=model_signature(opened),
        allow_pickle=allow_pickle,
        unembedding=opened.unembedding.weight,
        unfinished=unfinished,
    )
    if record.kind == "jacobian":
        from layerscope.fitting.imported_check import OwnRows, check_jacobian

        note = "It was not held against exact rows: nothing shows that it belongs to these weights."
        if check:
            note = check_jacobian(OwnRows.of(opened), record, tensors, str(path)).in_words
        record = record.model_copy(update={"notes": (*record.notes, note)})
    kind = record.kind if record.imported is None else record.imported.format
    folder = free(parent / (own_name or f"{last_part(opened.id)}-{kind}"))
    _print_fitted(write_fitted_lens(folder, record, tensors))


def _refuse_below_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise LensError(f"--{name} should be at least 1, but it is {number}.")


def _refuse_k(k: int | None, d_model: int) -> None:
    if k is not None and k > d_model:
        raise LensError(f"k should be between 1 and d_model = {d_model}, but it is {k}.")


def _lenses_in(path: Path) -> "list[layerscope.lens_record.LensFolder]":
    """The lens that a folder is, or those directly below it, by name.

    Raises:
        LensError: no such folder, no lens in it, or a record that cannot be read.
    """
    from layerscope.lens_record import LensFolder
    from layerscope.lenses.lens_folder import RECORD_NAME, read_record

    if (path / RECORD_NAME).exists():
        return [LensFolder(read_record(path), path)]
    lenses = _lenses_below(path)
    if not lenses:
        raise LensError(
            f"{path}: there is no fitted lens in it or directly below it, which would be a folder with {RECORD_NAME}; "
            "make one with `layerscope fit`."
        )
    return lenses


def _lenses_below(path: Path) -> "list[layerscope.lens_record.LensFolder]":
    """Those directly below a folder, by name, or none."""
    from layerscope.lens_record import FITTED_NAMES
    from layerscope.lenses.lens_folder import find_lens_folders

    lenses = [lens for kind in FITTED_NAMES for lens in find_lens_folders(path, kind)]
    return sorted(lenses, key=lambda lens: lens.folder)


# --- What is printed


def _print_lens(record: "layerscope.lens_record.LensRecord") -> None:
    from layerscope.terminal.lens_tables import lens_lines, lens_table

    print_parts(lens_table(record))
    print_parts(["", lens_lines(record)])


def _print_fitted(lens: "layerscope.lenses.lens_folder.FittedLens") -> None:
    _print_lens(lens.record)
    print_line(f"lens folder · {lens.folder}")


def _compare_with(
    owners: "Sequence[tuple[Path, layerscope.lens_record.FittedModel]]", model: str, opening: OpenOptions
) -> None:
    """Print of each lens' folder whether it belongs to a model.

    Args:
        owners: folders, each with the model that it was fitted to.
        model: the one that is asked for.
        opening: how it is opened.

    Raises:
        LensError: none does.
    """
    from layerscope.lenses.lens_folder import mismatch
    from layerscope.model.signature import model_signature

    signature = model_signature(open_model(model, opening))
    reasons = [mismatch(owner, signature) for _, owner in owners]
    if all(reasons) and len(owners) == 1:
        raise LensError(f"{owners[0][0]} does not belong to {signature.id}: it is a lens {reasons[0]}.")
    for (folder, _), reason in zip(owners, reasons, strict=True):
        print_line(f"{folder} · {f'a lens {reason}' if reason else f'belongs to {signature.id}'}")
    if all(reasons):
        raise LensError(f"None of these lenses belongs to {signature.id}.")
