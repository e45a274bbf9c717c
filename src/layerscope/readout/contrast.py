"""Two whole distributions side by side: the headline lens against the raw lens, and tempered against the model's own.

The sweep keeps running sums of one distribution at a time. A mean of two distributions, or a softmax at another
temperature, needs each probability itself, so the unembedding is visited once more, with every row's normaliser known
from the sweep. Logits are float32 as in the sweep, all that follows is float64.

The product that gives the logits here may round otherwise than the sweep's did, so probabilities made with the sweep's
normaliser add up to 1 only within rounding. Divergences would show that difference as their own size; they are taken
from sums over probabilities *and* the sums of the probabilities themselves, in which it cancels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from layerscope.errors import LensError
from layerscope.products import product
from layerscope.readout.compiled import required_kernels
from layerscope.readout.decode import Engine, engine_for, tile_width
from layerscope.readout.vocabulary import KL_FLOOR_NATS, LN2
from layerscope.unembedding import HeadTransform, Unembedding
from layerscope.workers import Workers

ROWS_PER_VISIT = 256
"""Rows multiplied at once: fewer than in the sweep, since each logit becomes several float64 numbers here."""
N_BUFFERS = 5
"""Float64 numbers held for each logit of a block where torch takes the sums."""
TINY = 1e-300
"""Stands for a probability of zero under a logarithm that is multiplied by that zero."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Normaliser:
    """What the sweep already knows of some rows' transformed logits."""

    log_sum_exp: Float[Tensor, "*rows"]
    """Float64, natural log."""
    peak: Float[Tensor, "*rows"]
    """Float64, the largest transformed logit."""


@dataclass(frozen=True)
class Contrast:
    """Divergences of distributions, each `[layer, prompt]`; NaN where a row that it needs is not finite.

    The four that compare with the raw lens are None where no raw rows were given.
    """

    kl_norm_vs_raw_bits: NDArray[np.float64] | None
    """KL(norm || raw), both probabilities floored at 1e-30, so at most 99.66."""
    kl_raw_to_norm_bits: NDArray[np.float64] | None
    """KL(raw || norm), floored likewise."""
    js_divergence_bits: NDArray[np.float64] | None
    """Jensen-Shannon divergence, in [0, 1]."""
    l1_prob_diff: NDArray[np.float64] | None
    """Sum of absolute differences of probabilities, in [0, 2]."""
    kl_to_final_bits_norm_temp: NDArray[np.float64] | None
    """KL(softmax(logits / temperature) || final), final probabilities floored at 1e-30; None without temperatures."""


def contrast(
    norm_rows: Float[Tensor, "layers prompts d_model"],
    raw_rows: Float[Tensor, "layers prompts d_model"] | None,
    final_rows: Float[Tensor, "prompts d_model"],
    norm: Normaliser,
    raw: Normaliser | None,
    final: Normaliser,
    unembedding: Unembedding,
    *,
    lens_transform: HeadTransform | None = None,
    temperatures: Float[Tensor, " layers"] | None = None,
    tile: int | None = None,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Contrast:
    """Compare whole distributions row by row, one visit of each tile of the unembedding for all of them.

    Args:
        norm_rows: what the headline lens gives at one position of each prompt.
        raw_rows: what the raw lens gives there.
        final_rows: what the model's own head multiplies there.
        norm: of the norm rows, `[layer, prompt]`, after the lens transform.
        raw: of the raw rows likewise; given where `raw_rows` are.
        final: of the final rows, `[prompt]`, after the head's own transform.
        unembedding: the model's head.
        lens_transform: what is done to lens logits; the head's own transform where not given. The final rows always
            go through the head's own.
        temperatures: what the headline lens' transformed logits are divided by, layer by layer.
        tile: vocabulary ids a tile; chosen for the cache where not given. It changes nothing but speed, up to
            float32 rounding.
        engine: what takes the sums, as in the sweep.
        progress: called with (ids done, d_vocab) after every tile.

    Raises:
        LensError: a temperature that is not positive and finite, or raw rows without their normaliser.
    """
    if (raw_rows is None) != (raw is None):
        raise LensError("The raw lens' rows and their normaliser should come together, but only one of them came.")
    if temperatures is not None and not bool((torch.isfinite(temperatures) & (temperatures > 0)).all()):
        raise LensError(
            f"Temperatures should be positive finite numbers, but they are {temperatures.tolist()}; "
            "fit them again or leave them out."
        )
    transform = unembedding.transform if lens_transform is None else lens_transform
    headline = _Rows(norm_rows, norm, unembedding, transform)
    pair = tempered = None
    if raw_rows is not None and raw is not None:
        pair = _PairSums(headline, _Rows(raw_rows, raw, unembedding, transform))
    if temperatures is not None:
        model_rows = _Rows(final_rows[None], final, unembedding, unembedding.transform)
        tempered = _TemperedSums(headline, norm, model_rows, temperatures)
    if engine is None:
        engine = engine_for(norm_rows.shape[0] * norm_rows.shape[1], unembedding)
    _Visit(headline, pair, tempered, unembedding, tile, engine).run(progress)
    kl, kl_back, js, l1 = (None, None, None, None) if pair is None else pair.results()
    return Contrast(kl, kl_back, js, l1, None if tempered is None else tempered.kl_bits())


@dataclass(frozen=True)
class _Tile:
    """A slice of the unembedding."""

    stop: int
    weight: Float[Tensor, "tile d_head"]
    bias: Float[Tensor, " tile"] | None


@dataclass(frozen=True)
class _Block:
    """Rows that are multiplied together."""

    layers: slice
    prompts: slice


class _Rows:
    """Rows ready for the head, with what turns their logits into log-probabilities."""

    def __init__(
        self,
        rows: Float[Tensor, "layers prompts d_model"],
        normaliser: Normaliser,
        unembedding: Unembedding,
        transform: HeadTransform,
    ) -> None:
        self.rows = unembedding.head_input(rows)
        self.shape, self.device = tuple(rows.shape[:2]), rows.device
        self.transform = transform
        self.log_sum_exp = normaliser.log_sum_exp.to(rows.device, torch.float64).view(self.shape)
        # PromptQuery of the rows themselves, since a softcap makes a finite logit of an infinite one.
        self.finite = torch.isfinite(torch.linalg.vector_norm(rows, torch.inf, dim=-1))

    def logits(self, block: _Block, tile: _Tile, out: Float[Tensor, "rows tile"]) -> Float[Tensor, "rows tile"]:
        """Transformed logits of the block's rows in float32; `out` is room for them."""
        logits = product(self.rows[block.layers, block.prompts].reshape(len(out), -1), tile.weight, out=out)
        if tile.bias is not None:
            logits.add_(tile.bias)
        return self.transform.apply_(logits)

    def log_probs(
        self,
        block: _Block,
        tile: _Tile,
        logits: Float[Tensor, "layers prompts tile"],
        out: Float[Tensor, "layers prompts tile"],
    ) -> Float[Tensor, "layers prompts tile"]:
        """Natural logs of the probabilities in float64, in `out`; `logits` is where the float32 product goes."""
        found = self.logits(block, tile, logits.view(-1, logits.shape[-1])).view_as(out)
        return out.copy_(found).sub_(self.log_sum_exp[block.layers, block.prompts][..., None])


class _PairSums:
    """What is kept of two distributions p and q at the same places while they pass by; `[layer, prompt]`."""

    def __init__(self, p_rows: _Rows, q_rows: _Rows) -> None:
        self.p_rows, self.q_rows = p_rows, q_rows
        self.sums = torch.zeros(*p_rows.shape, 6, dtype=torch.float64, device=p_rows.device)
        self.mass_p, self.mass_q, self.gap_p, self.gap_q, self.gap_mean, self.apart = self.sums.unbind(-1)
        """Views of the sums. Of p and of q: 1 up to rounding. Of p (ln p - ln q) and of q (ln q - ln p), logs floored.
        Of p (ln p - ln m) + q (ln q - ln m), m being the mean of p and q. Of |p - q|."""

    def update(
        self,
        block: _Block,
        log_p: Float[Tensor, "layers prompts tile"],
        log_q: Float[Tensor, "layers prompts tile"],
        *spare: Float[Tensor, "layers prompts tile"],
    ) -> None:
        """Take in a tile, with three spare buffers; `log_p` and `log_q` are used up."""
        at = (block.layers, block.prompts)
        p, q = torch.exp(log_p, out=spare[0]), torch.exp(log_q, out=spare[1])
        self.mass_p[at] += p.sum(-1)
        self.mass_q[at] += q.sum(-1)
        self.apart[at] += torch.sub(p, q, out=spare[2]).abs_().sum(-1)
        # No floor here: m is at least p / 2, so a p below 1e-30 adds less than 1e-30 with or without one.
        log_mean = torch.add(p, q, out=spare[2]).mul_(0.5).clamp_min_(TINY).log_()
        self.gap_mean[at] += _dot(p, log_p) + _dot(q, log_q) - _dot(p, log_mean) - _dot(q, log_mean)
        gap = log_p.clamp_min_(KL_FLOOR_NATS).sub_(log_q.clamp_min_(KL_FLOOR_NATS))
        self.gap_p[at] += _dot(p, gap)
        self.gap_q[at] -= _dot(q, gap)

    def take_in(
        self, p: Float[Tensor, "rows tile"], q: Float[Tensor, "rows tile"], places: Int[Tensor, " rows"]
    ) -> None:
        """Take in a tile of transformed logits by compiled loops; `places` says where each row's sums are."""
        lse = (rows.log_sum_exp.reshape(-1).numpy() for rows in (self.p_rows, self.q_rows))
        required_kernels().add_pairs(
            p.numpy(), q.numpy(), *lse, KL_FLOOR_NATS, places.numpy(), self.sums.view(-1, 6).numpy()
        )

    def results(self) -> tuple[_Array, _Array, _Array, _Array]:
        """KL(p || q), KL(q || p) and the Jensen-Shannon divergence (Lin 1991, section IV) in bits; sum of |p - q|."""
        # A logit of -inf hides from the floored sums and from the masses; only this sum becomes NaN by it.
        finite = self.p_rows.finite & self.q_rows.finite & torch.isfinite(self.gap_mean)
        return (
            _array(_divergence_bits(self.gap_p, self.mass_p, self.mass_q), finite),
            _array(_divergence_bits(self.gap_q, self.mass_q, self.mass_p), finite),
            _array((0.5 * self.gap_mean / LN2).clamp(0.0, 1.0), finite),
            _array(self.apart.clamp_max(2.0), finite),
        )


class _TemperedSums:
    """What is kept of tempered rows, w = exp((z - peak) / temperature), beside the model's own distribution q."""

    def __init__(
        self, rows: _Rows, normaliser: Normaliser, final_rows: _Rows, temperatures: Float[Tensor, " layers"]
    ) -> None:
        self.rows, self.final_rows = rows, final_rows
        self.peak = normaliser.peak.to(rows.device, torch.float64).reshape(-1).contiguous()
        self.sharpness = temperatures.to(rows.device, torch.float64).reciprocal()[:, None, None]
        self.lead = (rows.log_sum_exp - normaliser.peak.to(rows.device, torch.float64))[..., None]
        """What lifts a log-probability to a logit relative to the peak."""
        self.sums = torch.zeros(*rows.shape, 2, dtype=torch.float64, device=rows.device)
        self.mass, self.gap = self.sums.unbind(-1)
        """Views of the sums of w and of w (ln w - ln q), ln q floored."""
        self.final_mass = torch.zeros(final_rows.shape, dtype=torch.float64, device=rows.device)
        """Sum of q: 1 up to rounding."""

    def final_log_probs(self, prompts: slice, tile: _Tile) -> Float[Tensor, "one prompts tile"]:
        """Floored log-probabilities of the model's own head; their sum is taken in by the way."""
        block = _Block(slice(0, 1), prompts)
        logits = self.final_rows.rows.new_empty(1, _length(prompts), len(tile.weight), dtype=torch.float32)
        log_q = self.final_rows.log_probs(block, tile, logits, torch.empty_like(logits, dtype=torch.float64))
        self.final_mass[:, prompts] += log_q.exp().sum(-1)
        self.final_rows.finite[:, prompts] &= torch.isfinite(log_q).all(-1)  # -inf would vanish under the floor
        return log_q.clamp_min_(KL_FLOOR_NATS)

    def update(
        self,
        block: _Block,
        log_p: Float[Tensor, "layers prompts tile"],
        floored_log_q: Float[Tensor, "one prompts tile"],
        *spare: Float[Tensor, "layers prompts tile"],
    ) -> None:
        """Take in a tile of the untempered log-probabilities, which are left as they are; two spare buffers.

        Only ln q is floored. Flooring ln p of the tempered p as well would change a term by p ln(1e-30 / p) where
        p < 1e-30, which is never more than 1e-30 / e.
        """
        at = (block.layers, block.prompts)
        log_w = torch.add(log_p, self.lead[at], out=spare[0]).mul_(self.sharpness[block.layers])
        w = torch.exp(log_w, out=spare[1])
        self.mass[at] += w.sum(-1)
        self.gap[at] += _dot(w, log_w.sub_(floored_log_q))

    def take_in(
        self,
        logits: Float[Tensor, "rows tile"],
        floored_log_q: Float[Tensor, "one prompts tile"],
        places: Int[Tensor, " rows"],
    ) -> None:
        """Take in a tile of transformed logits by compiled loops; `places` says where each row's sums are."""
        sharpness = self.sharpness[..., 0].expand(self.rows.shape).reshape(-1)
        required_kernels().add_tempered(
            logits.numpy(),
            floored_log_q[0].numpy(),
            self.peak.numpy(),
            sharpness.numpy(),
            places.numpy(),
            self.sums.view(-1, 2).numpy(),
        )

    def kl_bits(self) -> _Array:
        """KL(tempered || final)."""
        finite = self.rows.finite & self.final_rows.finite
        return _array(_divergence_bits(self.gap, self.mass, self.final_mass), finite)


class _Visit:
    """One visit of the whole vocabulary; `contrast` is its only user."""

    def __init__(
        self,
        norm: _Rows,
        pair: _PairSums | None,
        tempered: _TemperedSums | None,
        unembedding: Unembedding,
        tile: int | None,
        engine: Engine,
    ) -> None:
        self.norm, self.pair, self.tempered = norm, pair, tempered
        self.unembedding, self.compiled = unembedding, engine == "compiled"
        n_layers, n_prompts = norm.shape
        self.prompts = _even_slices(n_prompts, ROWS_PER_VISIT)
        width = _length(self.prompts[0])
        self.layers = _even_slices(n_layers, ROWS_PER_VISIT // width)
        self.largest = width * _length(self.layers[0])
        # Of each logit torch makes float64 numbers, nearly twice the sweep's; the loops leave it as it is.
        self.tile = tile or tile_width((2 if self.compiled else 4) * self.largest, unembedding.d_vocab)
        self.places = torch.arange(n_layers * n_prompts, device=norm.device).view(n_layers, n_prompts)

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Visit every tile with all rows."""
        with Workers(torch.get_num_threads() if self.compiled else 1) as workers:
            rooms: SimpleQueue[tuple[Tensor, ...]] = SimpleQueue()
            for _ in range(workers.n):
                rooms.put(self._room())
            for tile in self._tiles():
                visits = []
                for prompts in self.prompts:
                    final = None if self.tempered is None else self.tempered.final_log_probs(prompts, tile)
                    for layers in self.layers:
                        visits.append(workers.submit(self._visit, _Block(layers, prompts), tile, final, rooms))
                for visit in visits:
                    visit.result()
                progress(tile.stop, self.unembedding.d_vocab)

    def _room(self) -> tuple[Float[Tensor, " logits"], ...]:
        n = self.largest * self.tile
        kinds = [torch.float32] * 2 if self.compiled else [torch.float32] + [torch.float64] * N_BUFFERS
        return tuple(torch.empty(n, dtype=kind, device=self.norm.device) for kind in kinds)

    def _tiles(self) -> Iterator[_Tile]:
        head = self.unembedding
        buffer = torch.empty(self.tile, head.d_head, dtype=torch.float32, device=self.norm.device)
        for start in range(0, head.d_vocab, self.tile):
            stop = min(start + self.tile, head.d_vocab)
            bias = None if head.bias is None else head.bias[start:stop]
            yield _Tile(stop, head.tile(start, stop, out=buffer), bias)

    def _visit(
        self,
        block: _Block,
        tile: _Tile,
        final: Float[Tensor, "one prompts tile"] | None,
        rooms: "SimpleQueue[tuple[Tensor, ...]]",
    ) -> None:
        """One block of rows against one tile."""
        room = rooms.get()
        try:
            shape = (_length(block.layers), _length(block.prompts), len(tile.weight))
            parts = [buffer[: math.prod(shape)].view(shape) for buffer in room]
            if self.compiled:
                self._take_in(block, tile, final, *(part.view(-1, shape[-1]) for part in parts))
            else:
                self._update(block, tile, final, *parts)
        finally:
            rooms.put(room)  # after an error too, or who comes next would wait for ever

    def _take_in(
        self,
        block: _Block,
        tile: _Tile,
        final: Float[Tensor, "one prompts tile"] | None,
        p: Float[Tensor, "rows tile"],
        q: Float[Tensor, "rows tile"],
    ) -> None:
        """By compiled loops, on logits."""
        places = self.places[block.layers, block.prompts].reshape(-1)
        p = self.norm.logits(block, tile, p)
        if self.tempered is not None and final is not None:
            self.tempered.take_in(p, final, places)
        if self.pair is not None:
            self.pair.take_in(p, self.pair.q_rows.logits(block, tile, q), places)

    def _update(
        self,
        block: _Block,
        tile: _Tile,
        final: Float[Tensor, "one prompts tile"] | None,
        logits: Float[Tensor, "layers prompts tile"],
        log_p: Float[Tensor, "layers prompts tile"],
        log_q: Float[Tensor, "layers prompts tile"],
        *spare: Float[Tensor, "layers prompts tile"],
    ) -> None:
        """By torch, on log-probabilities."""
        self.norm.log_probs(block, tile, logits, log_p)
        if self.tempered is not None and final is not None:
            self.tempered.update(block, log_p, final, *spare)
        if self.pair is not None:
            self.pair.q_rows.log_probs(block, tile, logits, log_q)
            self.pair.update(block, log_p, log_q, *spare)


def _even_slices(n: int, most: int) -> list[slice]:
    """Cut `n` into as few parts of at most `most` as there can be, the first the largest and the others hardly less."""
    size = -(-n // -(-n // most))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


def _dot(a: Float[Tensor, "*rows tile"], b: Float[Tensor, "*rows tile"]) -> Float[Tensor, "*rows"]:
    """Row by row, without a buffer for the products."""
    dot: Tensor = torch.linalg.vecdot(a, b)
    return dot


def _divergence_bits(
    gap: Float[Tensor, "*rows"], mass_p: Float[Tensor, "*rows"], mass_q: Float[Tensor, "#*rows"]
) -> Float[Tensor, "*rows"]:
    """KL(p / sum p || q / sum q) in bits from gap = sum of p (ln p - ln q); what rounds beyond a bound is put on it.

    Cover & Thomas, Elements of Information Theory, section 2.3, with the sums of p and of q taken out of the logs. The
    upper bound is the floor's: a floored ln q has no sum to be taken out, and yet takes part in it here.
    """
    nats = gap / mass_p - torch.log(mass_p) + torch.log(mass_q)
    return nats.clamp(0.0, -KL_FLOOR_NATS) / LN2


def _array(values: Float[Tensor, "*rows"], finite: Bool[Tensor, "*rows"]) -> _Array:
    """On the CPU, NaN where not finite."""
    array: _Array = torch.where(finite, values, torch.nan).cpu().numpy()
    return array
