"""Text beside a suite on which lenses are measured: read, run through the model once, and read through every lens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import CorpusError
from layerscope.fitting.corpus import read_corpus
from layerscope.fitting.held_out import HeldOut, measured
from layerscope.fitting.session import drawn
from layerscope.lens_record import CorpusRecord
from layerscope.lenses.lens import Lens
from layerscope.model.causal_lm import CausalLM
from layerscope.suite.auxiliary_texts import check_prompts

SEQ_LEN = 128
"""Positions of a sequence, for models that read as many."""
POSITIONS, POSITIONS_OF_LARGE = 512, 128
"""At which every lens is measured at every layer; the second where the vocabulary is large."""
LARGE_VOCABULARY = 100_000
SEQUENCES_OVER = 4
"""Positions are drawn from sequences that have so many times as many."""
FROM = 1
"""The first position of a sequence attracts attention whatever stands there; nothing is measured at it."""
PASS_BYTES = 1 << 28
"""Of the residuals of all layers that a pass may hold."""
PASSAGES = "passages of layerscope"
"""What the text is called where none was given."""


@dataclass(frozen=True)
class HeldOutText:
    """Sequences to measure on, and where they are from."""

    names: tuple[str, ...]
    """Of files or data sets; `PASSAGES` where none was given."""
    token_ids: Int[Tensor, "sequence position"]
    record: CorpusRecord | None
    """Of all parts of a text that was given, of which `held_out` alone is used."""


def held_out_text(model: CausalLM, texts: Sequence[str], field: str, n_tokens: int) -> HeldOutText:
    """The part of some texts that a fit on them holds out; four passages of our own where none are given.

    Args:
        model: whose tokenizer reads them.
        texts: files or data sets, see `find_sources`.
        field: what a document's text is called in all but .txt files.
        n_tokens: how much of them to read; as much as a fit read gives the same parts as that fit's.

    Raises:
        CorpusError: a text that cannot be found or read, or too little of it; a model that reads too few positions.
    """
    if model.n_context is not None and model.n_context < FROM + 2:
        raise CorpusError(
            f"{model.id} reads {model.n_context} positions at a time, but measuring a lens on text takes {FROM + 2}."
        )
    if not texts:
        return HeldOutText((PASSAGES,), own_passages(model), None)
    corpus = read_corpus(
        texts,
        model.tokens,
        n_tokens=n_tokens,
        seq_len=min(SEQ_LEN, model.n_context or SEQ_LEN),
        seq_len_fixed=True,
        n_embeddings=model.n_embeddings,
        field=field,
    )
    return HeldOutText(tuple(source.name for source in corpus.record.sources), corpus.held_out, corpus.record)


def own_passages(model: CausalLM, longest: int = SEQ_LEN) -> Int[Tensor, "prompt position"]:
    """Four passages of plain prose of our own, cut to the length of the shortest.

    Args:
        model: whose tokenizer reads them.
        longest: tokens of a passage, BOS included.
    """
    begin = list(model.tokens.begins.ids)
    most = longest if model.n_context is None else min(longest, model.n_context)
    ids = [[*begin, *model.tokens.context_ids(text)][:most] for text in check_prompts()]
    n = min(map(len, ids))
    return torch.tensor([one[:n] for one in ids])


def measured_on_text(
    model: CausalLM, lenses: Sequence[Lens], text: HeldOutText, seed: int
) -> tuple[int, list[tuple[HeldOut, ...]]]:
    """Number of positions, and for every layer from 0 to n_layers what each lens is worth there.

    Args:
        model: the text goes through it once.
        lenses: bound to it, on its device.
        text: to draw positions from.
        seed: of the draw.
    """
    most = POSITIONS_OF_LARGE if model.d_vocab > LARGE_VOCABULARY else POSITIONS
    generator = torch.Generator().manual_seed(seed)
    n_sequences, seq_len = text.token_ids.shape
    rows = drawn(torch.arange(n_sequences), max(1, -(-SEQUENCES_OVER * most // seq_len)), generator)
    places = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(FROM, seq_len - 1))
    places = places[drawn(torch.arange(len(places)), most, generator)]
    held = _residuals(model, text.token_ids[rows], places)
    return len(places), measured(model, lenses, held, held[-1])


def _residuals(
    model: CausalLM, token_ids: Int[Tensor, "sequence position"], places: Int[Tensor, "n 2"]
) -> Float[Tensor, "layer n d_model"]:
    """At some places, each a sequence and a position, in the order of sequences; a few sequences at a time."""
    bytes_each = 4 * token_ids.shape[1] * (model.n_layers + 1) * model.d_model
    at_once = max(1, min(PASS_BYTES, model.placement.memory // 8) // bytes_each)
    parts = []
    for start in range(0, len(token_ids), at_once):
        ids = token_ids[start : start + at_once].tolist()
        found = model.forward(ids, n_logits=1)
        parts += [found.of_prompt(i)[:, places[places[:, 0] == start + i, 1]].cpu() for i in range(len(ids))]
    return torch.cat(parts, 1)
