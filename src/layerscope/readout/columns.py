"""Arithmetic on a sweep's numbers: from arrays by lens, layer and position to the columns of a run."""

from collections.abc import Callable, Set
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from layerscope.readout.contrast import Contrast
from layerscope.readout.copying import Echo, copy_flags
from layerscope.readout.decode import Readout
from layerscope.readout.geometry import jaccard
from layerscope.readout.prompt_query import Echoes, Shape
from layerscope.readout.whole_answers import WholeAnswers
from layerscope.record.protocol import Protocol
from layerscope.record.rows import TOP_SET

RATIO_EPSILON = 1e-9
"""Added to the echo mass before the answer's mass is divided by it."""


def nullable(values: NDArray[Any], valid: NDArray[np.bool_]) -> pl.Series:
    """A column that is null where not valid."""
    return pl.select(pl.when(pl.Series(valid)).then(pl.Series(values))).to_series()


class Columns:
    """Arithmetic on a readout; arrays are `[lens, layer, position]` until `build` lays them out as rows."""

    def __init__(
        self,
        shape: Shape,
        readout: Readout,
        extra: dict[str, NDArray[np.float64]],
        contrast: Contrast | None,
        echoes: list[Echoes],
        whole: WholeAnswers,
        protocol: Protocol,
        d_vocab: int,
        top_k: int,
        trivial: Callable[[Set[int]], set[int]],
        final_is_model: bool,
    ) -> None:
        self.shape, self.readout, self.echoes, self.d_vocab = shape, readout, echoes, d_vocab
        self.whole = whole
        self.headline, self.contrast = protocol.headline, contrast
        """What only the headline lens has, and only at last positions; None where it was not decoded."""
        self.thresholds, self.top_k, self.trivial = protocol.thresholds, top_k, trivial
        self.axes = (len(shape.lenses), shape.n_layers, shape.n_positions)
        self.extra = {name: self._lift(values) for name, values in extra.items()}
        self.finite = self._lift(readout.finite) & (self.extra["any_nan"] + self.extra["any_inf"] == 0)
        # What is measured against a decode that is not the model's would pass for a distance to the model.
        self.against_final = np.broadcast_to(readout.final_finite & final_is_model, self.axes)
        self.names = [lens.name for lens in shape.lenses]
        none = np.zeros(self.axes[1:], np.bool_)
        self.raw_finite = self.finite[self.names.index("raw")] if "raw" in self.names else none
        judged = self._lift(readout.answer_id) >= 0
        self.of_model = judged & np.repeat(
            [q.of_model for q in shape.queries], [len(q.positions) for q in shape.queries]
        )
        """Where the model's own most likely token stands in the answer's place."""
        self.has_answer = judged & ~self.of_model
        self.top_ids = self._lift(readout.top_ids)
        self.top_log_probs = self._lift(readout.top_log_probs)
        self.normed = np.array([name != "raw" for name in self.names])[:, None, None] & np.ones(self.axes, np.bool_)

    def _lift(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(*self.axes, *values.shape[2:])

    def build(self) -> dict[str, pl.Series]:
        """The columns, every one of them as long as there are rows."""
        with np.errstate(invalid="ignore", over="ignore"):  # rows flagged as not finite are nulled, not computed around
            columns = {
                **self._keys(),
                **self._distribution(),
                **self._answer(),
                **self._copying(),
                **self._surface(),
                **self._geometry(),
                **self._overlaps(),
                **self._contrast(),
                **self._control(),
                **self._whole_answer(),
                **self._model_top1(),
            }
        # [lens, layer, position] to prompt, lens, layer, position.
        order = np.concatenate(
            [
                np.arange(np.prod(self.axes)).reshape(self.axes)[:, :, self.shape.columns_of(i)].ravel()
                for i in range(len(self.shape.queries))
            ]
        )
        return {name: series.gather(order).alias(name) for name, series in columns.items()}

    def _keys(self) -> dict[str, pl.Series]:
        n_lenses, n_layers, n_positions = self.axes
        prompt = np.repeat(np.arange(len(self.shape.queries)), [len(a.positions) for a in self.shape.queries])
        position = np.concatenate([np.array(a.positions) for a in self.shape.queries])
        token_id = np.concatenate([np.array(a.token_ids)[list(a.positions)] for a in self.shape.queries])
        is_next = np.concatenate([np.array(a.positions) == len(a.token_ids) - 1 for a in self.shape.queries])
        repeat = n_lenses * n_layers
        return {
            "prompt": pl.Series(np.tile(prompt, repeat)),
            "lens": pl.Series(
                [lens.name for lens in self.shape.lenses for _ in range(n_layers * n_positions)], dtype=pl.String
            ),
            "layer": pl.Series(np.tile(np.repeat(np.arange(n_layers), n_positions), n_lenses)),
            "position": pl.Series(np.tile(position, repeat)),
            "token_id": pl.Series(np.tile(token_id, repeat)),
            "is_next": pl.Series(np.tile(is_next, repeat)),
            "finite": pl.Series(self.finite.ravel()),
            "any_nan": pl.Series(self.extra["any_nan"].ravel() > 0),
            "any_inf": pl.Series(self.extra["any_inf"].ravel() > 0),
            "max_abs_logit": self._column(self._lift(self.readout.max_abs_logit)),
            "min_prob": self._column(np.exp(self._lift(self.readout.min_log_prob))),
        }

    def _whole_answer(self) -> dict[str, pl.Series]:
        whole = self.whole
        valid = self.has_answer & (whole.rank > 0)
        return {
            "answer_log_prob_nats_all": self._column(whole.log_prob, valid),
            "answer_rank_all": self._column(whole.rank, valid),
            "answer_logit_gap_all": self._column(whole.gap, valid & (whole.gap >= 0)),
        }

    def _model_top1(self) -> dict[str, pl.Series]:
        """Of the token that the model itself says; null where the last layer's decode is not the model's."""
        rank = self._lift(self.readout.answer_rank)
        valid = self.of_model & self.against_final
        return {
            "model_top1_rank": self._column(rank, valid),
            "p_model_top1": self._column(np.exp(self._lift(self.readout.answer_log_prob)), valid),
            "model_top1_logit_gap": self._column(self._lead, valid & self._on_top),
        }

    @property
    def _lead(self) -> NDArray[np.float64]:
        """The largest log-probability less the second."""
        second = min(1, self.top_log_probs.shape[-1] - 1)
        lead: NDArray[np.float64] = self.top_log_probs[..., 0] - self.top_log_probs[..., second]
        return lead

    @property
    def _on_top(self) -> NDArray[np.bool_]:
        """Where what a row is judged by has rank 1 and is the most likely id, not one of equals with a larger id."""
        judged = self._lift(self.readout.answer_id)
        on_top: NDArray[np.bool_] = (self._lift(self.readout.answer_rank) == 1) & (self.top_ids[..., 0] == judged)
        return on_top

    def _column(self, values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> pl.Series:
        kept = self.finite if valid is None else self.finite & valid
        return nullable(values.ravel(), kept.ravel())

    def _distribution(self) -> dict[str, pl.Series]:
        entropy = self._lift(self.readout.entropy_bits)
        kl = self._lift(self.readout.kl_to_final_bits)
        probabilities = np.exp(self.top_log_probs)
        listed = min(self.top_k, probabilities.shape[-1])
        teacher = np.broadcast_to(self.readout.final_entropy_bits, self.axes)
        return {
            "entropy_bits": self._column(entropy),
            "teacher_entropy_bits": self._column(teacher, self.against_final),
            "entropy_collapse": self._column(entropy <= self.thresholds.entropy_collapse_bits),
            "kl_to_final_bits": self._column(kl, self.against_final),
            "kl_saturated": self._column(kl > self.thresholds.kl_saturated_bits, self.against_final),
            "top1_id": self._column(self.top_ids[..., 0]),
            "p_top1": self._column(probabilities[..., 0]),
            "p_top5": self._column(np.minimum(1.0, probabilities[..., :5].sum(-1))),
            "rest_mass": self._column(np.maximum(0.0, 1.0 - probabilities[..., :listed].sum(-1))),
            "top_ids": self._lists(self.top_ids[..., :listed].astype(np.int32)),
            "top_probs": self._lists(probabilities[..., :listed]),
        }

    def _lists(self, values: NDArray[Any]) -> pl.Series:
        lists = pl.Series(values.reshape(-1, values.shape[-1])).arr.to_list()
        return pl.select(pl.when(pl.Series(self.finite.ravel())).then(lists)).to_series()

    def _answer(self) -> dict[str, pl.Series]:
        rank = self._lift(self.readout.answer_rank)
        log_p = self._lift(self.readout.answer_log_prob)
        p = np.exp(log_p)
        above_uniform = p - 1.0 / self.d_vocab
        is_answer = rank == 1
        has = self.has_answer
        return {
            "answer_id": self._column(self._lift(self.readout.answer_id), has),
            "p_answer": self._column(p, has),
            "answer_rank": self._column(rank, has),
            "is_answer": self._column(is_answer, has),
            "answer_minus_uniform": self._column(above_uniform, has),
            "semantic_margin_ok": self._column(
                is_answer & (above_uniform >= self.thresholds.semantic_margin), has & self.normed
            ),
            "answer_logit_gap": self._column(self._lead, has & self._on_top),
            "answer_vs_top1_gap": self._column(log_p - self.top_log_probs[..., 0], has & (rank > 1)),
        }

    def _copying(self) -> dict[str, pl.Series]:
        top1 = self.top_ids[..., 0]
        p1 = np.exp(self.top_log_probs[..., 0])
        p2 = np.exp(self.top_log_probs[..., min(1, self.top_log_probs.shape[-1] - 1)])
        columns: dict[str, NDArray[np.bool_]] = {}
        for prompt, (query, echoes) in enumerate(zip(self.shape.queries, self.echoes, strict=True)):
            at = self.shape.columns_of(prompt)
            echo = Echo(query.context_ids, (1, *self.thresholds.copy_soft_windows))
            trivial = self.trivial({int(i) for i in np.unique(top1[:, :, at]) if i >= 0} & set(query.context_ids))
            for lens in range(self.axes[0]):
                flags = copy_flags(
                    top1[lens, :, at], p1[lens, :, at], p2[lens, :, at], echoes.upto, echo, trivial, self.thresholds
                )
                for name, values in flags.items():
                    columns.setdefault(name, np.zeros(self.axes, dtype=np.bool_))[lens, :, at] = values
        return {name: self._column(values) for name, values in columns.items()}

    def _surface(self) -> dict[str, pl.Series]:
        echo_mass = np.zeros(self.axes)
        top_mass = np.zeros(self.axes)
        for prompt, echoes in enumerate(self.echoes):
            at = self.shape.columns_of(prompt)
            known = np.exp(self._known(prompt))
            # Both sums in the same order: then that over some of the ids is, to the last bit, never the larger one.
            for j, token_id in enumerate(echoes.ids):
                p = np.where(echoes.seen[:, j], known[..., j], 0.0)
                echo_mass[:, :, at] += p
                top_mass[:, :, at] += np.where((self.top_ids[:, :, at, :TOP_SET] == token_id).any(-1), p, 0.0)
        answer = np.exp(self._lift(self.readout.answer_log_prob))
        return {
            "echo_mass_prompt": self._column(echo_mass),
            "answer_mass": self._column(answer, self.has_answer),
            "answer_minus_echo_mass": self._column(answer - echo_mass, self.has_answer),
            "mass_ratio_ans_over_prompt": self._column(answer / (echo_mass + RATIO_EPSILON), self.has_answer),
            "topk_prompt_mass@50": self._column(top_mass),
        }

    def _known(self, prompt: int) -> NDArray[np.float64]:
        """Log-probabilities of a prompt's known ids, `[lens, layer, own position, id]`."""
        known = self.readout.known_log_probs[prompt]
        return known.reshape(self.axes[0], self.axes[1], *known.shape[1:])

    def _geometry(self) -> dict[str, pl.Series]:
        to_answer, to_prompt = self.extra["cos_to_answer"], self.extra["cos_to_prompt_max"]
        both = self.has_answer & ~np.isnan(to_prompt)
        return {
            "cos_to_final": self._column(self._lift(self.readout.cos_to_final), self.against_final),
            "cos_to_final_centered": self._column(self._lift(self.readout.cos_to_final_centered), self.against_final),
            "cos_to_answer": self._column(to_answer, self.has_answer),
            "cos_to_prompt_max": self._column(to_prompt, ~np.isnan(to_prompt)),
            "geom_crossover": self._column(to_answer >= to_prompt + self.thresholds.geometry_margin, both),
            "raw_resid_norm": self._column(self.extra["raw_resid_norm"]),
            "resid_norm_ratio": self._column(self.extra["resid_norm_ratio"], self.normed),
            "delta_resid_cos": self._column(self.extra["delta_resid_cos"], self.normed),
        }

    def _overlaps(self) -> dict[str, pl.Series]:
        sets = torch.from_numpy(self.top_ids[..., :TOP_SET])
        with_raw, with_previous = np.zeros(self.axes), np.zeros(self.axes)
        raw = sets[self.names.index("raw")] if "raw" in self.names else None
        for lens in range(len(self.names)):
            for layer in range(self.axes[1]):
                top_set = sets[lens, layer]
                if raw is not None:
                    with_raw[lens, layer] = jaccard(top_set, raw[layer]).numpy()
                if layer > 0:
                    with_previous[lens, layer] = jaccard(top_set, sets[lens, layer - 1]).numpy()
        previous_finite = np.concatenate([np.zeros_like(self.finite[:, :1]), self.finite[:, :-1]], axis=1)
        return {
            "topk_jaccard_raw_norm@50": self._column(with_raw, self.normed & self.raw_finite[None]),
            "topk_jaccard_consecutive@50": self._column(with_previous, previous_finite),
        }

    def _contrast(self) -> dict[str, pl.Series]:
        pairs = ("kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", "js_divergence_bits", "l1_prob_diff")
        columns = {name: self._placed(getattr(self.contrast, name, None), self.raw_finite) for name in pairs}
        tempered = self._placed(getattr(self.contrast, "kl_to_final_bits_norm_temp", None), self.against_final)
        return columns | {"kl_to_final_bits_norm_temp": tempered}

    def _placed(self, values: NDArray[np.float64] | None, valid: NDArray[np.bool_]) -> pl.Series:
        """Values `[layer, prompt]` at the last positions of the headline lens; null elsewhere."""
        placed = np.full(self.axes, np.nan)
        if values is not None:
            lens = self.names.index(self.headline)
            last = [self.shape.columns_of(i).stop - 1 for i in range(len(self.shape.queries))]
            placed[lens][:, last] = values
        return self._column(placed, np.broadcast_to(valid, self.axes) & ~np.isnan(placed))

    def _control(self) -> dict[str, pl.Series]:
        margin, gap = np.zeros(self.axes), np.zeros(self.axes)
        has_margin, has_gap = np.zeros(self.axes, np.bool_), np.zeros(self.axes, np.bool_)
        lead = self._lead
        for prompt, query in enumerate(self.shape.queries):
            if not query.is_control or query.gold_id is None:
                continue
            at = self.shape.columns_of(prompt)
            gap[:, :, at] = lead[:, :, at]
            has_gap[:, :, at] = self.top_ids[:, :, at, 0] == query.gold_id
            if query.contrast_id is not None:
                known = np.exp(self._known(prompt))
                margin[:, :, at] = known[..., -2] - known[..., -1]
                has_margin[:, :, at] = True
        return {
            "control_margin": self._column(margin, has_margin),
            "control_top2_logit_gap": self._column(gap, has_gap),
        }
