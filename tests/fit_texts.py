"""A small corpus for fits in tests."""

import itertools
from pathlib import Path

from layerscope.fitting.corpus import Corpus, read_corpus
from layerscope.model.causal_lm import CausalLM

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
