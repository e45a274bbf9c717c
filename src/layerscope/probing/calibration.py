"""A ridge lens fitted for one probe, in a pass of its own over a text before the suite goes through the model."""

import tempfile
from pathlib import Path

from layerscope.errors import CorpusError
from layerscope.fitting.corpus import parse_tokens, read_corpus
from layerscope.fitting.options import RidgeSettings
from layerscope.fitting.ridge import fit_ridge
from layerscope.lenses.lens_folder import FittedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.options import ProbeOptions
from layerscope.progress import FitObserver, Observer

SEQ_LEN = 128
"""Positions of a sequence: prompts are short, and so may the text be."""
TOKENS = 20_000
"""How much of the text is read where nothing is said of it."""


class _AsProbe(FitObserver):
    """Tells a probe's observer how its calibration goes."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def plan(self, text: str) -> None:
        """Pass it on."""
        self._observer.plan(f"calibration · {text}")

    def blocks(self, done: int, total: int) -> None:
        """Pass it on."""
        self._observer.blocks(done, total)

    def layer(self, layer: int, summary: str) -> None:
        """Thirty lines would hide the plan of the probe; the run's record has the figures."""


def tokens_to_read(options: ProbeOptions) -> int:
    """How much of the text a calibration reads.

    Raises:
        CorpusError: no such number, or one without a text to read so much of.
    """
    if options.tokens is None:
        return TOKENS
    if options.calibrate is None:
        raise CorpusError(
            "--tokens says how much of a text to fit a lens on, but no text was given; name one with --calibrate, or "
            "leave --tokens out."
        )
    return parse_tokens(options.tokens)


def calibrated(model: CausalLM, text: str | Path, n_tokens: int, seed: int, observer: Observer) -> FittedLens:
    """A ridge lens of the model, which lies in no folder.

    Args:
        text: a file or a data set, see `find_sources`; the field `text` of all but .txt files is read.
        n_tokens: how much of it to read.
        seed: of every random draw.
        observer: is told how it goes.

    Raises:
        CorpusError: no such text, or too little of it.
        PlacementError: neither memory nor disk has room.
        NumericError: a residual that is not finite.
    """
    corpus = read_corpus(
        [text],
        model.tokens,
        n_tokens=n_tokens,
        seq_len=min(SEQ_LEN, model.n_context or SEQ_LEN),
        seq_len_fixed=True,
        n_embeddings=model.n_embeddings,
    )
    with tempfile.TemporaryDirectory(prefix="layerscope-") as folder:
        return fit_ridge(model, corpus, Path(folder) / "ridge", RidgeSettings(seed=seed), observer=_AsProbe(observer))
