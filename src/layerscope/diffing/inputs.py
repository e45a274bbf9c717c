"""What both models read: sequences of text, and a suite's prompts, in the base's own tokens."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from layerscope.diffing.options import DiffOptions
from layerscope.errors import CorpusError, ModelError
from layerscope.fitting.corpus import parse_tokens, read_sequences
from layerscope.fitting.held_out_text import PASSAGES, own_passages
from layerscope.fitting.session import drawn
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.encode import Encoded, encode
from layerscope.suite import Suite

POSITIONS, POSITIONS_OF_LARGE = 64, 32
"""Of the text's, at which every layer is decoded; the second where the vocabulary is large."""
LARGE_VOCABULARY = 100_000
WIDEST = 20
"""So many positions of the first prompt, up to its last, are decoded at every layer: one grid of each model."""
FROM = 1
"""The first position of a sequence attracts attention whatever stands there; nothing is measured at it."""


@dataclass(frozen=True)
class Row:
    """A position at which every layer is decoded."""

    text: int
    """Which of the texts,"""
    position: int
    """and where in it, BOS counted."""


@dataclass(frozen=True)
class DiffInputs:
    """Texts in tokens, sequences first, and where they are looked at."""

    names: tuple[str, ...]
    """Of the files or data sets that the sequences are from."""
    sequences: Int[Tensor, "sequence position"]
    prompts: tuple[Encoded, ...]
    """Of the suite; none where none is asked."""
    rows: tuple[Row, ...]
    """Drawn positions of the sequences, then the last one of every prompt, with those before it in the first prompt."""

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """Of every text."""
        return [*map(tuple, self.sequences.tolist()), *(prompt.token_ids for prompt in self.prompts)]

    @property
    def n_text_rows(self) -> int:
        """How many of the rows are the sequences'."""
        return sum(row.text < len(self.sequences) for row in self.rows)

    @property
    def prompt_rows(self) -> list[int]:
        """Of every prompt's last token, by its place among the rows."""
        last = {row.text: i for i, row in enumerate(self.rows)}
        return [last[text] for text in sorted(last) if text >= len(self.sequences)]

    @property
    def n_measured(self) -> int:
        """Positions of the sequences that have a next token, but for the first."""
        return self.sequences.shape[0] * (self.sequences.shape[1] - 1 - FROM)


def diff_inputs(base: CausalLM, variant: CausalLM, options: DiffOptions, suite: Suite | None) -> DiffInputs:
    """Read text and suite.

    Raises:
        LayerscopeError: text or suite that cannot be read, or ids that the variant does not embed.
    """
    names, sequences = _sequences(base, variant, options)
    prompts = () if suite is None else tuple(encode(_without_control(suite), base, "last"))
    generator = torch.Generator().manual_seed(options.seed)
    most = POSITIONS_OF_LARGE if base.d_vocab > LARGE_VOCABULARY else POSITIONS
    n_sequences, width = sequences.shape
    places = torch.cartesian_prod(torch.arange(n_sequences), torch.arange(FROM, width - 1))
    chosen = places[drawn(torch.arange(len(places)), most, generator)]
    rows = [Row(text, position) for text, position in chosen.tolist()]
    for i, prompt in enumerate(prompts):
        last = len(prompt.token_ids) - 1
        rows += [
            Row(n_sequences + i, position) for position in range(last if i else max(0, last + 1 - WIDEST), last + 1)
        ]
    found = DiffInputs(names, sequences, prompts, tuple(rows))
    _check_ids(found, base, variant)
    return found


def _sequences(
    base: CausalLM, variant: CausalLM, options: DiffOptions
) -> tuple[tuple[str, ...], Int[Tensor, "sequence position"]]:
    longest = min(options.seq_len, *(model.n_context or options.seq_len for model in (base, variant)))
    if not options.text:
        defaults = DiffOptions()
        given = [name for name in ("field", "tokens") if getattr(options, name) != getattr(defaults, name)]
        if given:
            raise CorpusError(
                f"{' and '.join(given)} say how a text is read, but none was given; name one as text, or leave "
                f"{'them' if given[1:] else 'it'} out."
            )
        names: tuple[str, ...] = (PASSAGES,)
        sequences = own_passages(base, longest)
    else:
        names, sequences = read_sequences(
            options.text,
            base.tokens,
            n_tokens=parse_tokens(options.tokens),
            seq_len=longest,
            n_embeddings=base.n_embeddings,
            field=options.field,
        )
    if sequences.shape[1] < FROM + 2:
        raise CorpusError(
            f"The text gives sequences of {sequences.shape[1]} tokens, but {FROM + 2} are needed; give more text."
        )
    return names, sequences


def _without_control(suite: Suite) -> Suite:
    """Its facts; the control prompt is there to be held against one of them, and would be counted as one more."""
    return replace(suite, prompts=tuple(prompt for prompt in suite.prompts if prompt.prompt_id != "ctl"))


def _check_ids(found: DiffInputs, base: CausalLM, variant: CausalLM) -> None:
    most = max(max(ids) for ids in found.token_ids)
    if most >= variant.n_embeddings:
        raise ModelError(
            f"The base's tokenizer gives token id {most}, but {variant.id} embeds {variant.n_embeddings} ids; give a "
            "variant with the same vocabulary."
        )
    # Of these the rank of every token that follows is told, at the places where every layer is looked at.
    first = max(found.prompts[0].token_ids) if found.prompts else 0
    followed, model = max(int(found.sequences.max()), first), min(base, variant, key=lambda model: model.d_vocab)
    if followed >= model.d_vocab:
        raise ModelError(
            f"The text holds token id {followed}, but {model.id} has {model.d_vocab} logits and so no probability for "
            "it; give other text, or another first prompt."
        )


def tokens_differ(found: DiffInputs, variant: CausalLM) -> int:
    """In how many prompts the variant's own tokenizer gives other tokens than the base's, which both models read."""
    own = (tuple(variant.tokens.input_ids(p.text)) for p in found.prompts if p.chat is None)
    return sum(ids != p.token_ids for ids, p in zip(own, (p for p in found.prompts if p.chat is None), strict=True))
