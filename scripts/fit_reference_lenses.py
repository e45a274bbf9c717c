"""Fit the tuned lens and the prism lens that ship with the bundled model.

    python scripts/fit_reference_lenses.py --out lenses

The text is made as the model's own training text was (`train_reference_model.py`), from another seed and without the
prompts of its suite. One thread, so that two machines of a kind give the same weights.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))  # found already when this is run as a script, not when it is imported
from train_reference_model import ROW_TOKENS, documents, fact_prompts

from layerscope.bundled import BUNDLED
from layerscope.fitting.corpus import Corpus, read_corpus
from layerscope.fitting.prism import PrismSettings, fit_prism
from layerscope.fitting.tuned import TunedSettings, fit_tuned
from layerscope.model.causal_lm import CausalLM

TEXT_NAME = "reference-text.txt"


def fresh_documents(seed: int) -> Iterator[str]:
    """Documents without end, the suite's prompts never among them."""
    return documents(random.Random(seed), withheld=[prompt.text for prompt in fact_prompts()])


def made_corpus(model: CausalLM, folder: Path, seed: int, n_tokens: int) -> Corpus:
    """Text of about so many tokens, through a file as any other corpus."""
    source, parts, n = fresh_documents(seed), [], 0
    while n < 1.3 * n_tokens:  # many documents come twice, and the second is left out
        parts.append(next(source))
        n += len(model.tokens.context_ids(parts[-1]))
    path = folder / TEXT_NAME
    path.write_text("\n\n".join(parts), encoding="utf-8")
    return read_corpus(
        [path], model.tokens, n_tokens=n_tokens, seq_len=ROW_TOKENS, n_embeddings=model.n_embeddings,
        held_out_share=0.2,
    )  # fmt: skip


def main() -> None:
    """Fit both and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUNDLED / "lenses", help="folder that gets `tuned` and `prism`")
    parser.add_argument("--seed", type=int, default=2026, help="of the text")
    parser.add_argument("--tokens", type=int, default=700_000, help="to read, all three parts together")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    model = CausalLM.open(BUNDLED, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        corpus = made_corpus(model, Path(folder), given.seed, given.tokens)
    for name, fit in (
        ("tuned", lambda out: fit_tuned(model, corpus, out, TunedSettings(rank="full"))),
        ("prism", lambda out: fit_prism(model, corpus, out, PrismSettings())),
    ):
        start = time.perf_counter()
        fitted = fit(given.out / name)
        print(f"{name}: {time.perf_counter() - start:.0f} s, weights {fitted.record.weights_sha256[:16]}")


if __name__ == "__main__":
    main()
