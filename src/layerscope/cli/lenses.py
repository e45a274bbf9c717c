"""The commands about fitted lenses: fit a tuned or a prism lens, show what there is, import what others fitted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from layerscope.cli.console import (
    Bars,
    LogLines,
    mistakes_in_one_sentence,
    print_line,
    print_parts,
    quieten_transformers,
    usable_folder,
    watching,
)
from layerscope.errors import CorpusError, LensError

if TYPE_CHECKING:  # types alone: help and mistakes need not wait for the tensor library
    import layerscope.fitting.corpus
    import layerscope.lens_record
    import layerscope.lenses.lens_folder
    import layerscope.model.causal_lm

LENSES = Path("lenses")
"""Where fitted lenses go, and are looked for, unless another place is named."""
SEQ_LEN = 512
"""Positions of a sequence, for models that read as many."""
FEWEST_POSITIONS = 3
"""Of a sequence: one that is left out, one to fit to, and the token that follows it."""
PLACEMENTS = ("raw", "normed")
METHODS = ("procrustes_to_final", "by_rank")
LONGEST_NAME = 200
"""Bytes of a lens' own name, so that the hidden folders beside it still have one that a filesystem takes."""
INTERRUPTED = "interrupted: the same command goes on after the layers that were kept"

fit_app = typer.Typer(
    help="Fit a lens to a model on text of your own.",
    epilog="Examples (my.txt holds text of yours):\n\nlayerscope fit prism --text my.txt --seq-len 32\n\n"
    "layerscope fit tuned --help\n\nlayerscope fit prism --help",
    no_args_is_help=True,
)
lens_app = typer.Typer(
    help="Show fitted lenses, and import what others fitted.",
    epilog="Examples (after `layerscope fit tuned`):\n\nlayerscope lens show\n\n"
    "layerscope lens show lenses/reference-tuned\n\nlayerscope lens import --help",
    no_args_is_help=True,
)

Model = Annotated[
    str | None,
    typer.Argument(
        help="Hub id, or a folder with config.json, tokenizer and *.safetensors; the bundled model if left out."
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option(help="A .txt, .jsonl or .parquet file, or a data set's id on the Hub; may be given several times."),
]
Field = Annotated[str, typer.Option(help="What a document's text is called, in all but .txt files.")]
TokensWanted = Annotated[str, typer.Option(help="How much text is read, as 500k or 2M tokens.")]
SeqLen = Annotated[
    int | None, typer.Option(help="Positions of a sequence; 512 by default, or what the model reads at most.")
]
Out = Annotated[Path, typer.Option(help="Folder in which the lens' own folder is made.")]
Name = Annotated[str | None, typer.Option(help="Of the lens' own folder; by model and kind if left out.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, or bfloat16 (CUDA only).")]
Memory = Annotated[
    str | None, typer.Option(help="Working memory, as 4GiB; half of what is free by default (CUDA: nine tenths).")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
Bos = Annotated[str, typer.Option(help="Start sequences with BOS: auto (by family), yes or no.")]
Seed = Annotated[int, typer.Option(help="Of every random draw; recorded.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]


@fit_app.command(
    epilog="Examples (my.txt holds text of yours, blank lines between documents):\n\n"
    "layerscope fit tuned --text my.txt --seq-len 32 --batch 64 --steps 10\n\n"
    "layerscope fit tuned --text my.txt --seq-len 32 --steps 2 --rank 8 --name r8\n\n"
    "layerscope fit tuned --text my.txt --seq-len 32 --steps 4 --rank 0 --out bias"
)
def tuned(
    model: Model = None,
    text: Text = None,
    field: Field = "text",
    tokens: TokensWanted = "2M",
    seq_len: SeqLen = None,
    rank: Annotated[
        str, typer.Option(help="Of the maps: auto (full below 1 GiB), full, or a number; 0 for a bias alone.")
    ] = "auto",
    placement: Annotated[
        str, typer.Option(help="What is mapped: raw (the residual), or normed (what the final norm makes of it).")
    ] = "raw",
    steps: Annotated[
        int | None, typer.Option(help="Of the refinement, at most; by default 50 to 300, by the amount of text.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Positions of a step.")] = 2048,
    out: Out = LENSES,
    name: Name = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    memory: Memory = None,
    revision: Revision = None,
    bos: Bos = "auto",
    seed: Seed = 316,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fit a tuned lens: for each layer the affine map after which it comes nearest to the model's own output."""
    with mistakes_in_one_sentence(), _interruption_said():
        opening = _Opening(device, dtype, memory, revision, bos, trust_remote_code)
        wanted = _Wanted("tuned", model, text or (), field, tokens, seq_len, out, name, seed, opening)
        rank_wanted = _rank(rank)
        _refuse_below_one(steps=steps, batch=batch)
        wanted.refuse_early()
        from layerscope.fitting.tuned import TunedSettings, fit_tuned, rank_of

        settings = TunedSettings(
            rank=rank_wanted,
            placement="raw" if _one_of("placement", placement, PLACEMENTS) == "raw" else "normed",
            steps=steps,
            batch=batch,
            seed=seed,
        )
        with watching() as watcher:
            ready = wanted.prepare(watcher, lambda opened: rank_of(rank_wanted, opened.d_model, opened.n_layers))
            sidecar = fit_tuned(ready.model, ready.corpus, ready.folder, settings, observer=watcher)
        _print_lens(sidecar.record)
        print_line(f"lens folder · {sidecar.folder}")


@fit_app.command(
    epilog="Examples (my.txt holds text of yours, blank lines between documents):\n\n"
    "layerscope fit prism --text my.txt --seq-len 32\n\n"
    "layerscope fit prism --text my.txt --seq-len 32 --k 16 --name small\n\n"
    "layerscope fit prism --text my.txt --seq-len 32 --method by_rank --out ranks"
)
def prism(
    model: Model = None,
    text: Text = None,
    field: Field = "text",
    tokens: TokensWanted = "2M",
    seq_len: SeqLen = None,
    method: Annotated[
        str, typer.Option(help="What the rotation pairs: procrustes_to_final (vectors with final ones), or by_rank.")
    ] = "procrustes_to_final",
    k: Annotated[
        int | None, typer.Option(help="Directions that are rotated on purpose; 512 or d_model by default.")
    ] = None,
    vectors: Annotated[
        int | None, typer.Option(help="Vectors to fit on; 100,000 to 160,000 by default, by the model's size.")
    ] = None,
    out: Out = LENSES,
    name: Name = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    memory: Memory = None,
    revision: Revision = None,
    bos: Bos = "auto",
    seed: Seed = 316,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fit a prism lens: one standardisation and one rotation for all layers, a control for what a fit can do."""
    with mistakes_in_one_sentence(), _interruption_said():
        opening = _Opening(device, dtype, memory, revision, bos, trust_remote_code)
        wanted = _Wanted("prism", model, text or (), field, tokens, seq_len, out, name, seed, opening)
        chosen = _one_of("method", method, METHODS)
        _refuse_below_one(k=k, vectors=vectors)
        wanted.refuse_early()
        from layerscope.fitting.prism import PrismSettings, fit_prism
        from layerscope.fitting.prism_map import VECTORS_PER_DIRECTION

        if vectors is not None and vectors < VECTORS_PER_DIRECTION:
            raise LensError(f"A prism lens takes at least {VECTORS_PER_DIRECTION} vectors, but --vectors is {vectors}.")
        settings = PrismSettings(
            method="by_rank" if chosen == "by_rank" else "procrustes_to_final", k=k, vectors=vectors, seed=seed
        )
        with watching() as watcher:
            ready = wanted.prepare(watcher, lambda opened: _refuse_k(k, opened.d_model))
            sidecar = fit_prism(ready.model, ready.corpus, ready.folder, settings, observer=watcher)
        _print_lens(sidecar.record)
        print_line(f"lens folder · {sidecar.folder}")


@lens_app.command(
    epilog="Examples (after `layerscope fit tuned`):\n\nlayerscope lens show\n\n"
    "layerscope lens show lenses/reference-tuned\n\n"
    "layerscope lens show lenses/reference-tuned --model layerscope/reference"
)
def show(
    path: Annotated[Path, typer.Argument(help="A lens' folder, or a folder of several.")] = LENSES,
    model: Annotated[
        str | None,
        typer.Option(help="Also say whether it belongs to this model: a Hub id, a folder, or layerscope/reference."),
    ] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a fitted lens is, is worth and belongs to, and check that its weights are whole; or list several."""
    with mistakes_in_one_sentence():
        from layerscope.lenses.lens_folder import RECORD_NAME, read_fitted_lens
        from layerscope.terminal.lens_tables import lens_list

        found = _found(path)
        single = (path / RECORD_NAME).exists()
        if single:
            _print_lens(found[0].record)
        else:
            print_parts(lens_list(found))
        if model is not None:
            _check_against(found, model, revision, trust_remote_code)
        if single:
            read_fitted_lens(found[0].folder)  # comes last, for what is damaged should be shown all the same


@lens_app.command(
    name="import",
    epilog="Examples (a lens of the tuned-lens library in `theirs`, its model in `model`):\n\n"
    "layerscope lens import theirs --model model\n\n"
    "layerscope lens import theirs/params.safetensors --model model --name by-file\n\n"
    "layerscope lens import theirs --model model --out mine",
)
def import_(
    path: Annotated[Path, typer.Argument(help="A file or folder of the tuned-lens library, or a Jacobian lens' file.")],
    model: Annotated[str | None, typer.Option(help="The model it belongs to: a Hub id or a folder.")] = None,
    out: Out = LENSES,
    name: Name = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open .pt files, of which only tensors and plain values are taken.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Import a lens that another program fitted, as a folder like those of `layerscope fit`."""
    with mistakes_in_one_sentence():
        if model is None:
            raise LensError("A lens belongs to a model; name it with --model, as a Hub id or a folder.")
        if not path.exists():
            raise LensError(f"{path}: no such file or folder; give a lens' file or the folder that holds it.")
        parent, own = _parent(out), _own_name(name)
        from layerscope.lenses.importing import import_lens
        from layerscope.lenses.lens_folder import write_fitted_lens
        from layerscope.model.signature import model_signature

        opened = _open(model, _Opening("cpu", "auto", None, revision, "auto", trust_remote_code))
        record, tensors = import_lens(
            path, model=model_signature(opened), allow_pickle=allow_pickle, unembedding=opened.unembedding.weight
        )
        kind = record.kind if record.imported is None else record.imported.format
        folder = _free(parent / (own or f"{_last_part(opened.id)}-{kind}"))
        sidecar = write_fitted_lens(folder, record, tensors)
        _print_lens(sidecar.record)
        print_line(f"lens folder · {sidecar.folder}")


# --- What a fit is asked for


@dataclass(frozen=True)
class _Opening:
    """How a model is opened."""

    device: str
    dtype: str
    memory: str | None
    revision: str | None
    bos: str
    trust_remote_code: bool


@dataclass(frozen=True)
class _Ready:
    """What a fit needs; nothing that was asked for is left to refuse without computing."""

    model: "layerscope.model.causal_lm.CausalLM"
    corpus: "layerscope.fitting.corpus.Corpus"
    folder: Path


@dataclass(frozen=True)
class _Wanted:
    """What a fit is asked for, whatever its kind."""

    kind: Literal["tuned", "prism"]
    model: str | None
    texts: Sequence[str]
    field: str
    tokens: str
    seq_len: int | None
    out: Path
    name: str | None
    seed: int
    opening: _Opening

    def refuse_early(self) -> None:
        """Refuse what can be refused without the model.

        Raises:
            LensError: a name or number that cannot be, or a lens of that name.
            CorpusError: no such text, or no number of tokens.
            RunError: a place that cannot be written to.
        """
        own = _own_name(self.name)
        if not -(2**63) <= self.seed < 2**63:
            raise LensError(f"A seed is a 64-bit integer, but it is {self.seed}.")
        if own is not None:
            _free(self.out / own)
        from layerscope.fitting.corpus import parse_tokens
        from layerscope.fitting.texts import find_sources

        parse_tokens(self.tokens)
        find_sources(self.texts, self.field)
        _parent(self.out)

    def prepare(
        self, watcher: Bars | LogLines, check: "Callable[[layerscope.model.causal_lm.CausalLM], object]"
    ) -> _Ready:
        """Open the model, refuse what does not go with it, and only then read the text.

        Args:
            watcher: is told how the reading goes.
            check: raises what else cannot be had of this model.
        """
        from layerscope.fitting.corpus import parse_tokens, read_corpus

        opened = _open(self.model, self.opening)
        folder = _free(self.out / (_own_name(self.name) or f"{_last_part(opened.id)}-{self.kind}"))
        check(opened)
        wanted = parse_tokens(self.tokens)
        corpus = read_corpus(
            self.texts,
            opened.tokens,
            n_tokens=wanted,
            seq_len=_sequence(self.seq_len, opened.n_context),
            n_embeddings=opened.n_embeddings,
            field=self.field,
            progress=watcher.tokens,
        )
        read = sum(part.n_tokens for part in corpus.record.splits.values())
        if read < wanted:  # the text ended first
            watcher.tokens(read, read)
        return _Ready(opened, corpus, folder)


def _open(model: str | None, opening: _Opening) -> "layerscope.model.causal_lm.CausalLM":
    from layerscope.bundled import BUNDLED, BUNDLED_ID
    from layerscope.model.causal_lm import CausalLM

    quieten_transformers()
    return CausalLM.open(
        BUNDLED if model in (None, BUNDLED_ID) else model,
        revision=opening.revision,
        device=opening.device,
        dtype=opening.dtype,
        memory=opening.memory,
        trust_remote_code=opening.trust_remote_code,
        bos=opening.bos,
    )


def _rank(text: str) -> int | Literal["auto", "full"]:
    if text in ("auto", "full"):
        return "auto" if text == "auto" else "full"
    if not text.isdecimal():
        raise LensError(f"'{text}' is no rank; give auto, full, or a whole number, 0 for a bias alone.")
    return int(text)


def _one_of(what: str, word: str, choices: tuple[str, ...]) -> str:
    if word not in choices:
        raise LensError(f"There is no {what} '{word}'; choose from {', '.join(choices)}.")
    return word


def _refuse_below_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise LensError(f"--{name} should be at least 1, but it is {number}.")


def _refuse_k(k: int | None, d_model: int) -> None:
    if k is not None and k > d_model:
        raise LensError(f"k should be between 1 and d_model = {d_model}, but it is {k}.")


def _sequence(wanted: int | None, n_context: int | None) -> int:
    """Positions of a sequence; a model is not read beyond what it was made for."""
    if wanted is None:
        return min(SEQ_LEN, n_context or SEQ_LEN)
    if wanted < FEWEST_POSITIONS:
        raise CorpusError(f"--seq-len is {wanted}, but a sequence has at least {FEWEST_POSITIONS} positions.")
    if n_context is not None and wanted > n_context:
        raise CorpusError(f"--seq-len is {wanted}, but this model was made to read at most {n_context} tokens.")
    return wanted


# --- Folders


def _last_part(model_id: str) -> str:
    return model_id.rstrip("/").rsplit("/", maxsplit=1)[-1]


def _own_name(name: str | None) -> str | None:
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
        raise LensError(f"'{folder}' is already there; give another --out or --name, or take it away first.")
    return folder


def _found(path: Path) -> "list[layerscope.lens_record.LensFolder]":
    """The lens that a folder is, or those directly below it, by name.

    Raises:
        LensError: no such folder, no lens in it, or a record that cannot be read.
    """
    from layerscope.lens_record import LensFolder
    from layerscope.lenses.lens_folder import RECORD_NAME, find_lens_folders, read_record

    if (path / RECORD_NAME).exists():
        return [LensFolder(read_record(path), path)]
    found = sorted([*find_lens_folders(path, "tuned"), *find_lens_folders(path, "prism")], key=lambda one: one.folder)
    if not found:
        raise LensError(
            f"{path}: there is no fitted lens in it or directly below it, which would be a folder with {RECORD_NAME}; "
            "make one with `layerscope fit`."
        )
    return found


# --- What is said


def _print_lens(record: "layerscope.lens_record.LensRecord") -> None:
    from layerscope.terminal.lens_tables import lens_lines, lens_table

    print_parts(lens_table(record))
    print_parts(["", lens_lines(record)])


def _check_against(
    found: "Sequence[layerscope.lens_record.LensFolder]",
    model: str,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Say of each lens whether it belongs to a model.

    Raises:
        LensError: none does.
    """
    from layerscope.lenses.lens_folder import mismatch
    from layerscope.model.signature import model_signature

    fitting = model_signature(_open(model, _Opening("cpu", "auto", None, revision, "auto", trust_remote_code)))
    reasons = [mismatch(one.record.model, fitting) for one in found]
    if all(reasons) and len(found) == 1:
        raise LensError(f"{found[0].folder} does not belong to {fitting.id}: it is a lens {reasons[0]}.")
    for one, reason in zip(found, reasons, strict=True):
        print_line(f"{one.folder} · {f'a lens {reason}' if reason else f'belongs to {fitting.id}'}")
    if all(reasons):
        raise LensError(f"None of these lenses belongs to {fitting.id}.")


@contextmanager
def _interruption_said() -> Iterator[None]:
    """An interrupted fit says in a line what becomes of its work."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False, soft_wrap=True).print(INTERRUPTED, style="yellow", markup=False)
        raise typer.Exit(130) from None
