"""A look as the page's grid takes it: the blocks, tokens and words of a run's page, made of one text."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.analysis.quotability import Status
from layerscope.looking.as_json import circumstances_as_json, known
from layerscope.looking.look import Look, Tracked
from layerscope.looking.words import MODEL_AT_THE_END
from layerscope.view.page.blocks import Block, Vocabulary, blocks, listed
from layerscope.view.page.packing import packed
from layerscope.view.page.payload import BlockData, PromptData, RunData, nice_bits

KEY = (0, "pos", "orig")
"""What the one text is called among a run's prompts."""


def page_data(look: Look, *, answered: bool, seconds: float) -> dict[str, Any]:
    """A look for the page, as JSON takes it; described in docs/serving.md.

    Args:
        answered: whether the first word that is followed is an answer, whose rank and probability the grid can show.
        seconds: how long it took.
    """
    answer = look.tracked[0] if answered and look.tracked else None
    rows = _rows(look, answer)
    listing = listed(rows, probabilities=look.identity.ok)
    vocabulary = Vocabulary.of([listing])
    stands = {"probabilities": look.identity.ok, "ranks": True}
    made = blocks(rows, vocabulary.numbered(listing), look.model.n_layers, **stands)
    by_lens = {lens: block for (*_, lens), block in made.items()}
    return {
        "vocabulary": {"texts": vocabulary.texts, "ids": vocabulary.ids},
        "run": asdict(_run(look, answer, vocabulary, by_lens)),
        "blocks": {_block_id(look, lens): packed(block.content) for lens, block in by_lens.items()},
        "layers": look.layers,
        "positions": look.positions,
        "tracked": [_followed(look, tracked, vocabulary) for tracked in look.tracked],
        **circumstances_as_json(look),
        "seconds": seconds,
    }


def _rows(look: Look, answer: Tracked | None) -> pl.DataFrame:
    """The columns of a run's table that blocks are made of."""
    grid = look.grid
    n = len(grid)
    rank = np.zeros(n, np.int32) if answer is None else answer.rank.ravel().astype(np.int32)
    p = np.full(n, np.nan) if answer is None else np.exp(answer.log_prob.ravel())
    fact_index, prompt_id, variant = KEY
    return grid.with_columns(
        pl.lit(fact_index).alias("fact_index"),
        pl.lit(prompt_id).alias("prompt_id"),
        pl.lit(variant).alias("prompt_variant"),
        pl.Series("finite", look.top_ids[..., 0].ravel() >= 0),
        pl.Series("answer_rank", rank).replace(0, None),
        pl.Series("p_answer", p).fill_nan(None),
        pl.col("top_token").alias("top1"),
        pl.col("top_ids").list.first().alias("top1_id"),
        pl.col("p_top").alias("p_top1"),
    )


def _block_id(look: Look, lens: str) -> str:
    return f"block-0-{look.lens_names.index(lens)}"


def _run(look: Look, answer: Tracked | None, vocabulary: Vocabulary, by_lens: Mapping[str, Block]) -> RunData:
    kl = look.kl_to_final_bits[np.isfinite(look.kl_to_final_bits)]
    return RunData(
        label=look.model.id.rsplit("/", 1)[-1],
        model=look.model.id,
        n_layers=look.model.n_layers,
        d_vocab=look.model.d_vocab,
        headline=look.lens_names[0],
        lenses=look.lens_names,
        every="this text",
        ranks=True,
        probabilities=look.identity.ok,
        suppressed=False,
        statuses={lens: _statuses(look, lens) for lens in look.lens_names},
        carried=None,  # a look is of one text, which has nothing to be patched with
        kl_bits=nice_bits(float(np.quantile(kl, 0.98)) or 1.0) if kl.size else 1.0,
        missing=None,
        prompts=(_prompt(look, answer, vocabulary, by_lens),),
    )


def _statuses(look: Look, lens: str) -> tuple[Status | None, ...]:
    """For each layer, 0 to n_layers, whose its probabilities are; None of a layer that was not read."""
    finite = np.all(look.top_ids[look.lens_names.index(lens), ..., 0] >= 0, axis=-1)

    def status(layer: int) -> Status | None:
        if layer not in look.layers:
            return None
        if not look.identity.ok or not finite[look.layers.index(layer)]:
            return "withheld"
        at_the_end = layer == look.model.n_layers and lens in MODEL_AT_THE_END
        return "model" if at_the_end else "decoded"

    return tuple(map(status, range(look.model.n_layers + 1)))


def _prompt(look: Look, answer: Tracked | None, vocabulary: Vocabulary, by_lens: Mapping[str, Block]) -> PromptData:
    fact_index, prompt_id, variant = KEY
    last = len(look.tokens) - 1
    answer_id = None if answer is None or answer.token is None else answer.alignment.first_id
    return PromptData(
        fact_index=fact_index,
        prompt_id=prompt_id,
        variant=variant,
        fact=look.encoded.prompt.text,
        text=look.text,
        tokens=dict(enumerate(look.tokens)),
        last=last if last in look.positions else None,
        answers=() if answer is None else (answer.word,),
        answer_tokens=() if answer_id is None else tuple(vocabulary.by_id.get(answer_id, ())),
        judged_token=next(iter(() if answer_id is None else vocabulary.by_id.get(answer_id, ())), None),
        milestones=_milestones(look, answer),
        blocks={
            lens: BlockData(_block_id(look, lens), block.positions, block.top_k) for lens, block in by_lens.items()
        },
    )


def _milestones(look: Look, answer: Tracked | None) -> dict[str, dict[str, int]]:
    """By lens the first layer of those read at which the answer is on top at the last token."""
    if answer is None or len(look.tokens) - 1 not in look.positions:
        return {}
    column = look.positions.index(len(look.tokens) - 1)
    found = {}
    for i, lens in enumerate(look.lens_names):
        on_top = np.flatnonzero(answer.rank[i, :, column] == 1)
        if on_top.size:
            found[lens] = {"rank_1": look.layers[int(on_top[0])]}
    return found


def _followed(look: Look, tracked: Tracked, vocabulary: Vocabulary) -> dict[str, Any]:
    """A word's ranks and probabilities, by lens as [layer from 0 to n_layers][place among the positions]."""
    found = tracked.alignment
    place = () if found.first_id is None else vocabulary.by_id.get(found.first_id, ())
    return {
        "word": tracked.word,
        "token": tracked.token,
        "id": found.first_id,
        "token_place": next(iter(place), None),
        "n_pieces": len(found.answer_ids),
        "reason": found.reason,
        "rank": _by_lens(look, tracked.rank, lambda rank: rank or None),
        "p": _by_lens(look, np.exp(tracked.log_prob), known),
    }


def _by_lens(look: Look, values: NDArray[Any], as_known: Callable[[Any], Any]) -> dict[str, list[list[Any]]]:
    """Every layer of the model has a row; those that were not read hold None."""
    unread: list[Any] = [None] * len(look.positions)
    every = {}
    for lens, of_lens in zip(look.lens_names, values.tolist(), strict=True):
        by_layer = {layer: [as_known(value) for value in row] for layer, row in zip(look.layers, of_lens, strict=True)}
        every[lens] = [by_layer.get(layer, unread) for layer in range(look.model.n_layers + 1)]
    return every
