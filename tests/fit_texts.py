"""A small corpus for fits in tests."""

import itertools
from pathlib import Path

from layerscope.bundled import BUNDLED
from layerscope.fitting.corpus import Corpus, read_corpus
from layerscope.fitting.tuned import TunedSettings, fit_tuned
from layerscope.model.causal_lm import CausalLM

FEW = TunedSettings(steps=12, batch=128)
"""A short fit of a tuned lens, which yet comes nearer to the model than the logit lens."""
TEXT, LENS = "corpus.txt", "tuned"
"""Files of the fixture `fitted_once`."""

COUNTRIES = ["Germany", "France", "Japan", "Italy", "Russia", "China", "Canada", "Spain", "Turkey", "Egypt", "Poland"]
PLACES = ["river", "house", "market", "museum", "bridge", "garden", "station", "street"]


def write_text(path: Path) -> Path:
    """Some 9,000 tokens in documents of one sentence."""
    sentences = [
        f"The oldest {place} of {country} is number {i}, and nobody in {other} knows its name."
        for i, (country, other, place) in enumerate(itertools.product(COUNTRIES, COUNTRIES[:4], PLACES))
        if country != other
    ]
    path.write_text("\n\n".join(sentences), "utf-8")
    return path


def corpus_for(model: CausalLM, text: Path, seq_len: int = 24) -> Corpus:
    """6,000 tokens of it, a tenth to choose by and a tenth held out."""
    return read_corpus(
        [text],
        model.tokens,
        n_tokens=6000,
        seq_len=seq_len,
        n_embeddings=model.n_embeddings,
        select_share=0.1,
        held_out_share=0.1,
    )


def fit_once(folder: Path) -> None:
    """The bundled model's tuned lens under `FEW`, and the text that it was fitted on."""
    folder.mkdir()
    model = CausalLM.open(BUNDLED, device="cpu")
    fit_tuned(model, corpus_for(model, write_text(folder / TEXT)), folder / LENS, FEW)
