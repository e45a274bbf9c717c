"""What a model says after a text, and what each of its layers would say, at one look."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lenses import Lens
from layerscope.model.answer_forms import Alignment
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import Identity
from layerscope.probing.encode import Encoded
from layerscope.record.parts import OutputRecord

Cells: TypeAlias = NDArray[np.float64]
"""`[lens, layer, position]`"""


@dataclass(frozen=True, eq=False)
class Tracked:
    """A word that is followed through the layers by its first token."""

    word: str
    alignment: Alignment
    token: str | None
    """The token that is followed; None where the word has none after this text."""
    rank: NDArray[np.int64]
    """`[lens, layer, position]`, from 1; ties share the best. 0 where the row is not finite."""
    log_prob: Cells
    """Natural log; NaN where the row is not finite."""


@dataclass(frozen=True, eq=False, repr=False)
class Look:
    """Numbers of one text; layers count from 0, what enters block 0, to n_layers, what leaves the last block."""

    model: CausalLM
    encoded: Encoded
    """The text as the model reads it."""
    tokens: tuple[str, ...]
    """What the model reads, for people; what begins every prompt included."""
    lenses: tuple[Lens, ...]
    layers: tuple[int, ...]
    """Which layers were read."""
    positions: tuple[int, ...]
    """Which tokens' places were read, counted from 0."""
    residuals: Float[Tensor, "layer position d_model"]
    """Of all layers, 0 to n_layers, at all of the text's tokens; float32."""
    top_ids: NDArray[np.int64]
    """`[lens, layer, position, k]`, most likely first; -1 where the row is not finite."""
    top_tokens: NDArray[np.object_]
    """The same for people."""
    top_probs: NDArray[np.float64]
    """Of them; NaN where the row is not finite, and everywhere where the identity check failed, as below."""
    entropy_bits: Cells
    kl_to_final_bits: Cells
    """KL(layer || model's output) at the same position."""
    tracked: tuple[Tracked, ...]
    """The answer first, if one was given."""
    identity: Identity
    """Whether the last layer, decoded, is the model's own output."""

    @property
    def text(self) -> str:
        """What was tokenised: the text as given, or its chat as the template writes it."""
        return self.encoded.text

    @property
    def output(self) -> OutputRecord | None:
        """What the model itself says next; None where that is not finite."""
        return self.encoded.output

    @property
    def lens_names(self) -> tuple[str, ...]:
        """The lenses' names, in the order in which their numbers stand."""
        return tuple(lens.name for lens in self.lenses)

    @property
    def grid(self) -> pl.DataFrame:
        """A row for each lens, layer and position.

        Columns: lens, layer, position, token (the prompt's own), top_token, p_top, entropy_bits, kl_to_final_bits,
        top_ids, top_tokens, top_probs. What is not known is null.
        """
        shape = self.entropy_bits.shape
        lens, layer, position = (index.ravel() for index in np.indices(shape))
        k = self.top_ids.shape[-1]
        ids, tokens = self.top_ids.reshape(-1, k), self.top_tokens.reshape(-1, k)
        frame = pl.DataFrame(
            {
                "lens": [self.lens_names[i] for i in lens],
                "layer": np.array(self.layers)[layer],
                "position": np.array(self.positions)[position],
                "token": [self.tokens[self.positions[i]] for i in position],
                "top_token": [token if i >= 0 else None for i, token in zip(ids[:, 0], tokens[:, 0], strict=True)],
                "p_top": self.top_probs.reshape(-1, k)[:, 0],
                "entropy_bits": self.entropy_bits.ravel(),
                "kl_to_final_bits": self.kl_to_final_bits.ravel(),
                "top_ids": [row if row[0] >= 0 else None for row in ids.tolist()],
                "top_tokens": [row if i >= 0 else None for i, row in zip(ids[:, 0], tokens.tolist(), strict=True)],
                "top_probs": [None if np.isnan(row).any() else row.tolist() for row in self.top_probs.reshape(-1, k)],
            },
            schema_overrides={"top_probs": pl.List(pl.Float64)},
        )
        return frame.fill_nan(None)

    def top(self, layer: int, position: int = -1, lens: str | None = None) -> list[tuple[str, float]]:
        """The most likely tokens and their probabilities there; empty where the row is not finite.

        Args:
            layer: 0 to n_layers; -1 is the last.
            position: a token's place from 0; -1 is the last, after which the model speaks.
            lens: a lens' name; the first one where not given.

        Raises:
            LensError: a lens, layer or position that was not looked at.
        """
        at = self._at(layer, position, lens)
        if self.top_ids[at][0] < 0:
            return []
        return list(zip(self.top_tokens[at].tolist(), self.top_probs[at].tolist(), strict=True))

    def rank(self, word: str, position: int = -1, lens: str | None = None) -> pl.DataFrame:
        """A tracked word's rank and probability by layer: columns layer, rank, p.

        Raises:
            LensError: a word that was not tracked or has no token here, or a place that was not looked at.
        """
        by_word = [t for t in self.tracked if t.word == word]
        found = next(iter([*by_word, *(t for t in self.tracked if t.token == word)]), None)
        if found is None or found.token is None:
            words = ", ".join(repr(t.word) for t in self.tracked if t.token is not None) or "none"
            raise LensError(f"'{word}' was not followed here (followed: {words}); give it as answer or track.")
        which, _, column = self._at(self.layers[-1], position, lens)
        rank = found.rank[which, :, column]
        frame = {"layer": self.layers, "rank": rank, "p": np.exp(found.log_prob[which, :, column])}
        return pl.DataFrame(frame).with_columns(
            pl.when(pl.col("rank") > 0).then("rank").alias("rank"), pl.col("p").fill_nan(None)
        )

    def residual(self, layer: int, position: int = -1) -> Float[Tensor, " d_model"]:
        """The residual stream there, float32; any layer and any of the text's tokens.

        Raises:
            LensError: a layer or position that there is not.
        """
        return self.residuals[self._place(layer, position)]

    def logits(self, layer: int, position: int = -1, lens: str | None = None) -> Float[Tensor, " d_vocab"]:
        """All logits there, the head's transform included, float32; any layer and position, raises like `residual`."""
        at, head = self._place(layer, position), self.model.unembedding
        with torch.inference_mode():
            row = self.lenses[self._lens(lens)](self.residuals[at][None], at[0])
            return head.transform.apply_(head.logits(head.head_input(row)))[0]

    def to_dict(self) -> dict[str, Any]:
        """All of it but residuals, as JSON takes it; a number that is not there is None."""
        from layerscope.looking.as_json import look_as_json

        return look_as_json(self)

    def __repr__(self) -> str:
        """A line: model, text, what the model says next, and what was read."""
        from layerscope.looking.in_notebook import look_line

        return f"<Look {look_line(self)}>"

    def _repr_html_(self) -> str:
        """For a notebook: what the model says next, a small grid under each lens, and the words that are followed."""
        from layerscope.looking.in_notebook import look_html

        return look_html(self)

    def __str__(self) -> str:
        """As the terminal shows it, 100 columns wide and without colours."""
        from layerscope.looking.screen import look_as_text

        return look_as_text(self)

    def _lens(self, lens: str | None) -> int:
        if lens is None:
            return 0
        if lens not in self.lens_names:
            raise LensError(f"There is no lens '{lens}' here; choose from {', '.join(self.lens_names)}.")
        return self.lens_names.index(lens)

    def _place(self, layer: int, position: int) -> tuple[int, int]:
        """Both counted from 0."""
        n_layers, n_tokens = self.residuals.shape[:2]
        if not -n_layers <= layer < n_layers or not -n_tokens <= position < n_tokens:
            raise LensError(
                f"Layers go from 0 to {n_layers - 1} and positions from 0 to {n_tokens - 1} here, but {layer} and "
                f"{position} came."
            )
        return layer % n_layers, position % n_tokens

    def _at(self, layer: int, position: int, lens: str | None) -> tuple[int, int, int]:
        wanted = self._place(layer, position)
        if wanted[0] not in self.layers or wanted[1] not in self.positions:
            raise LensError(
                f"Layer {layer} at position {position} was not looked at; looked at were layers "
                f"{_spans(self.layers)} at positions {_spans(self.positions)}."
            )
        return self._lens(lens), self.layers.index(wanted[0]), self.positions.index(wanted[1])


def _spans(places: Sequence[int]) -> str:
    """`0-4, 7`."""
    spans: list[list[int]] = []
    for place in places:
        if spans and place == spans[-1][1] + 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
