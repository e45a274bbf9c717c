"""The commands about fitted lenses: fit one of the four kinds, show what there is, import what others fitted."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from layerscope.cli.console import (
    Bars,
    LogLines,
    print_line,
    print_parts,
    quieten_transformers,
    usable_folder,
    watching,
)
from layerscope.cli.options import Model, command, option
from layerscope.errors import CorpusError, LensError
from layerscope.fitting.options import FitOptions, JacobianSettings, PrismSettings, RidgeSettings, TunedSettings
from layerscope.model.options import OpenOptions

if TYPE_CHECKING:  # types alone: help and mistakes need not wait for the tensor library
    import layerscope.fitting.corpus
    import layerscope.lens_record
    import layerscope.lenses.answer_rows
    import layerscope.lenses.lens_folder
    import layerscope.model.causal_lm

LENSES = Path("lenses")
"""Where fitted lenses go, and are looked for, unless another place is named."""
SEQ_LEN = 512
"""Positions of a sequence, for models that read as many."""
SEQ_LEN_JACOBIAN = 128
"""The same of a Jacobian lens, whose matrices belong to prompts of one length: that of published ones."""
FEWEST_POSITIONS = 3
"""Of a sequence: one that is left out, one to fit to, and the token that follows it."""
LONGEST_NAME = 200
"""Bytes of a lens' own name, so that the hidden folders beside it still have one that a filesystem takes."""
INTERRUPTED = "interrupted: the same command goes on after the layers that were kept"
INTERRUPTED_ANSWERS = "interrupted: the same command goes on after the prompts that were kept"
INTERRUPTED_RIDGE = "interrupted: nothing was kept, and the same command begins anew"

fit_app = typer.Typer(
    help="Fit a lens to a model on text of your own.",
    epilog="Examples (my.txt holds text of yours):\n\nlayerscope fit prism --text my.txt --seq-len 32\n\n"
    "layerscope fit ridge --text my.txt --seq-len 32\n\nlayerscope fit tuned --help",
    no_args_is_help=True,
)
lens_app = typer.Typer(
    help="Show fitted lenses, and import what others fitted.",
    epilog="Examples (after `layerscope fit tuned`):\n\nlayerscope lens show\n\n"
    "layerscope lens show lenses/reference-tuned\n\nlayerscope lens import --help",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(help="Folder in which to make the lens' own folder.")]
Name = Annotated[str | None, typer.Option(help="Name of the lens' own folder.", show_default="by model and kind")]
Revision = Annotated[str | None, option(OpenOptions, "revision")]
TrustRemoteCode = Annotated[bool, option(OpenOptions, "trust_remote_code")]


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
    request = _FitRequest("tuned", model, text, settings.seed, out, name, opening)
    with _fit_session(request) as observer:
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
    request = _FitRequest("ridge", model, text, settings.seed, out, name, opening)
    with _fit_session(request) as observer:
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
    request = _FitRequest("prism", model, text, settings.seed, out, name, opening)
    with _fit_session(request) as observer:
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
    request = _FitRequest("jacobian", model, text, settings.seed, out, name, opening)
    if answers is not None:
        _fit_answer_rows(answers, request, settings)
        return
    with _fit_session(request) as observer:
        from layerscope.fitting.jacobian import fit_jacobian, refuse_settings

        refuse_settings(settings)
        fitted = fit_jacobian(*request.prepare(observer, lambda _: None), settings, observer=observer)
    _print_fitted(fitted)


def _fit_answer_rows(
    answers: str,
    request: "_FitRequest",
    settings: JacobianSettings,
) -> None:
    """The rows of a suite's answers, in a folder named for it unless another name was given."""
    from layerscope.suite import load_suite

    suite = load_suite(answers)  # before the tensor library, so that a mistake in it is said at once
    request = replace(request, suffix="answers")
    with _fit_session(request) as observer:
        from layerscope.fitting.jacobian import refuse_settings
        from layerscope.probing.answer_rows import fit_answer_rows

        refuse_settings(settings)
        model, corpus, folder = request.prepare(observer, lambda _: None)
        rows = fit_answer_rows(model, corpus, suite, folder, settings, observer=observer)
    _print_answer_rows(rows.record)
    print_line(f"answer rows · {rows.folder}")


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
        _print_answer_rows(answer_rows.read_answer_rows(path).record)
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


@lens_app.command(
    epilog="Examples (after `layerscope fit jacobian --answers capitals`):\n\n"
    "layerscope lens track lenses/reference-answers\n\n"
    "layerscope lens track lenses/reference-answers --suite capitals --json\n\n"
    "layerscope lens track lenses/reference-answers --model layerscope/reference"
)
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

    opened = _open(model, OpenOptions(device="cpu", revision=revision, trust_remote_code=trust_remote_code))
    found = track_answers(opened, rows, asked)
    if as_json:
        derived = {"by_chance": found.by_chance, "more_than_guesses": found.more_than_guesses}
        typer.echo(json.dumps(asdict(found) | derived, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_parts(tracked_table(found, rows.record))


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
    parent, folder_name = _parent(out), _folder_name(name)
    from layerscope.lenses.importing import import_lens
    from layerscope.lenses.lens_folder import write_fitted_lens
    from layerscope.model.signature import model_signature

    opened = _open(model, OpenOptions(device="cpu", revision=revision, trust_remote_code=trust_remote_code))
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
    folder = _free(parent / (folder_name or f"{_last_part(opened.id)}-{kind}"))
    _print_fitted(write_fitted_lens(folder, record, tensors))


# --- What a fit is given


@dataclass(frozen=True)
class _FitRequest:
    """What every fit is given, whatever its kind."""

    kind: Literal["tuned", "prism", "ridge", "jacobian"]
    model: str | None
    text: FitOptions
    seed: int
    out: Path
    name: str | None
    opening: OpenOptions
    suffix: str | None = None
    """What ends the folder's name where none was given; the kind if not said."""

    @property
    def seq_len(self) -> int:
        """Positions of a sequence where none were asked for."""
        return SEQ_LEN_JACOBIAN if self.kind == "jacobian" else SEQ_LEN

    def refuse_early(self) -> None:
        """Refuse what can be refused without the model.

        Raises:
            LensError: a name or number that cannot be, or a lens of that name.
            CorpusError: no such text, or no number of tokens.
            RunError: a place that cannot be written to.
        """
        folder_name = _folder_name(self.name)
        if not -(2**63) <= self.seed < 2**63:
            raise LensError(f"A seed is a 64-bit integer, but it is {self.seed}.")
        if folder_name is not None:
            _free(self.out / folder_name)
        from layerscope.fitting.corpus import parse_tokens
        from layerscope.fitting.texts import find_sources

        parse_tokens(self.text.tokens)
        find_sources(self.text.text, self.text.field)
        _parent(self.out)

    def prepare(
        self, observer: Bars | LogLines, check: "Callable[[layerscope.model.causal_lm.CausalLM], object]"
    ) -> "tuple[layerscope.model.causal_lm.CausalLM, layerscope.fitting.corpus.Corpus, Path]":
        """Open the model, refuse what does not go with it, and only then read the text; with them the lens' folder.

        Args:
            observer: is told how the reading goes.
            check: raises what else cannot be had of this model.
        """
        from layerscope.fitting.corpus import parse_tokens, read_corpus

        opened = _open(self.model, self.opening)
        folder = _free(self.out / (_folder_name(self.name) or f"{_last_part(opened.id)}-{self.suffix or self.kind}"))
        check(opened)
        n_tokens = parse_tokens(self.text.tokens)
        corpus = read_corpus(
            self.text.text,
            opened.tokens,
            n_tokens=n_tokens,
            seq_len=_sequence(self.text.seq_len, opened.n_context, self.seq_len),
            n_embeddings=opened.n_embeddings,
            field=self.text.field,
            progress=observer.tokens,
        )
        read = sum(part.n_tokens for part in corpus.record.splits.values())
        if read < n_tokens:  # the text ended first
            observer.tokens(read, read)
        return opened, corpus, folder


def _open(model: str | None, opening: OpenOptions) -> "layerscope.model.causal_lm.CausalLM":
    from layerscope.bundled import BUNDLED, BUNDLED_ID
    from layerscope.model.causal_lm import CausalLM

    quieten_transformers()
    return CausalLM.open(BUNDLED if model is None or model == BUNDLED_ID else model, **vars(opening))


def _refuse_below_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise LensError(f"--{name} should be at least 1, but it is {number}.")


def _refuse_k(k: int | None, d_model: int) -> None:
    if k is not None and k > d_model:
        raise LensError(f"k should be between 1 and d_model = {d_model}, but it is {k}.")


def _sequence(seq_len: int | None, n_context: int | None, default: int) -> int:
    """Positions of a sequence; a model is not read beyond what it was made for."""
    if seq_len is None:
        return min(default, n_context or default)
    if seq_len < FEWEST_POSITIONS:
        raise CorpusError(f"--seq-len is {seq_len}, but a sequence has at least {FEWEST_POSITIONS} positions.")
    if n_context is not None and seq_len > n_context:
        raise CorpusError(f"--seq-len is {seq_len}, but this model was made to read at most {n_context} tokens.")
    return seq_len


# --- Folders


def _last_part(model_id: str) -> str:
    return model_id.rstrip("/").rsplit("/", maxsplit=1)[-1]


def _folder_name(name: str | None) -> str | None:
    """A name that is one folder directly below another, where lenses are looked for.

    Raises:
        LensError: it is empty, hidden, a path, too long, or has characters that cannot be seen.
    """
    if name is None:
        return None
    one_folder = name and name == Path(name).name and not name.startswith(".")
    if not one_folder or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise LensError(f"{name!r} is no name of a folder; give one word without slashes, and the place with --out.")
    return name


def _parent(out: Path) -> Path:
    from layerscope.lenses.lens_folder import RECORD_NAME

    if (out / RECORD_NAME).exists():
        raise LensError(f"'{out}' is a lens' own folder; give the folder that holds lenses, such as '{out.parent}'.")
    return usable_folder(out)


def _free(folder: Path) -> Path:
    if folder.exists():
        raise LensError(f"'{folder}' is already there; give another --out or --name, or remove it first.")
    return folder


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


def _print_answer_rows(record: "layerscope.lens_record.AnswerRowsRecord") -> None:
    from layerscope.terminal.answer_table import answer_lines, answer_rows_table

    print_parts(answer_rows_table(record))
    print_parts(["", answer_lines(record)])


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

    signature = model_signature(_open(model, opening))
    reasons = [mismatch(owner, signature) for _, owner in owners]
    if all(reasons) and len(owners) == 1:
        raise LensError(f"{owners[0][0]} does not belong to {signature.id}: it is a lens {reasons[0]}.")
    for (folder, _), reason in zip(owners, reasons, strict=True):
        print_line(f"{folder} · {f'a lens {reason}' if reason else f'belongs to {signature.id}'}")
    if all(reasons):
        raise LensError(f"None of these lenses belongs to {signature.id}.")


@contextmanager
def _fit_session(request: _FitRequest) -> Iterator[Bars | LogLines]:
    """What watches a fit that can be made; an interrupted one says in a line what becomes of its work."""
    try:
        request.refuse_early()
        with watching() as observer:
            yield observer
    except KeyboardInterrupt:
        of_kind = {"ridge": INTERRUPTED_RIDGE, "answers": INTERRUPTED_ANSWERS}
        words = of_kind.get(request.suffix or request.kind, INTERRUPTED)
        Console(stderr=True, highlight=False, soft_wrap=True).print(words, style="yellow", markup=False)
        raise typer.Exit(130) from None
