"""What commands about lenses share: the model, the text, the folder, and what watches the work of a fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.console import Console

from layerscope.cli.console import Bars, LogLines, quieten_transformers, usable_folder, watching
from layerscope.cli.options import option
from layerscope.errors import CorpusError, LensError
from layerscope.fitting.options import FitOptions
from layerscope.model.options import OpenOptions

if TYPE_CHECKING:  # types alone: help and mistakes need not wait for the tensor library
    import layerscope.fitting.corpus
    import layerscope.model.causal_lm

Revision: TypeAlias = Annotated[str | None, option(OpenOptions, "revision")]
TrustRemoteCode: TypeAlias = Annotated[bool, option(OpenOptions, "trust_remote_code")]

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


@dataclass(frozen=True)
class FitRequest:
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
        own_name = folder_name(self.name)
        if not -(2**63) <= self.seed < 2**63:
            raise LensError(f"A seed is a 64-bit integer, but it is {self.seed}.")
        if own_name is not None:
            free(self.out / own_name)
        from layerscope.fitting.corpus import parse_tokens
        from layerscope.fitting.texts import find_sources

        parse_tokens(self.text.tokens)
        find_sources(self.text.text, self.text.field)
        parent_of(self.out)

    def prepare(
        self, observer: Bars | LogLines, check: "Callable[[layerscope.model.causal_lm.CausalLM], object]"
    ) -> "tuple[layerscope.model.causal_lm.CausalLM, layerscope.fitting.corpus.Corpus, Path]":
        """Open the model, refuse what does not go with it, and only then read the text; with them the lens' folder.

        Args:
            observer: is told how the reading goes.
            check: raises what else cannot be had of this model.
        """
        from layerscope.fitting.corpus import parse_tokens, read_corpus

        opened = open_model(self.model, self.opening)
        folder = free(self.out / (folder_name(self.name) or f"{last_part(opened.id)}-{self.suffix or self.kind}"))
        check(opened)
        n_tokens = parse_tokens(self.text.tokens)
        corpus = read_corpus(
            self.text.text,
            opened.tokens,
            n_tokens=n_tokens,
            seq_len=sequence(self.text.seq_len, opened.n_context, self.seq_len),
            n_embeddings=opened.n_embeddings,
            field=self.text.field,
            progress=observer.tokens,
        )
        read = sum(part.n_tokens for part in corpus.record.splits.values())
        if read < n_tokens:  # the text ended first
            observer.tokens(read, read)
        return opened, corpus, folder


def open_model(model: str | None, opening: OpenOptions) -> "layerscope.model.causal_lm.CausalLM":
    """Open a model for a command; the bundled one where none was named."""
    from layerscope.bundled import BUNDLED, BUNDLED_ID
    from layerscope.model.causal_lm import CausalLM

    quieten_transformers()
    return CausalLM.open(BUNDLED if model is None or model == BUNDLED_ID else model, **vars(opening))


def sequence(seq_len: int | None, n_context: int | None, default: int) -> int:
    """Positions of a sequence; a model is not read beyond what it was made for."""
    if seq_len is None:
        return min(default, n_context or default)
    if seq_len < FEWEST_POSITIONS:
        raise CorpusError(f"--seq-len is {seq_len}, but a sequence has at least {FEWEST_POSITIONS} positions.")
    if n_context is not None and seq_len > n_context:
        raise CorpusError(f"--seq-len is {seq_len}, but this model was made to read at most {n_context} tokens.")
    return seq_len


# --- Folders


def last_part(model_id: str) -> str:
    """A model's id behind its last slash."""
    return model_id.rstrip("/").rsplit("/", maxsplit=1)[-1]


def folder_name(name: str | None) -> str | None:
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


def parent_of(out: Path) -> Path:
    """The folder in which a lens' own folder is made.

    Raises:
        LensError: it is a lens' own folder itself.
    """
    from layerscope.lenses.lens_folder import RECORD_NAME

    if (out / RECORD_NAME).exists():
        raise LensError(f"'{out}' is a lens' own folder; give the folder that holds lenses, such as '{out.parent}'.")
    return usable_folder(out)


def free(folder: Path) -> Path:
    """The folder, if nothing is there.

    Raises:
        LensError: something is.
    """
    if folder.exists():
        raise LensError(f"'{folder}' is already there; give another --out or --name, or remove it first.")
    return folder


@contextmanager
def fit_session(request: FitRequest) -> Iterator[Bars | LogLines]:
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
