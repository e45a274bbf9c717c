"""The sweep: rows of all lenses and layers against each tile of the unembedding, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from layerscope.errors import LensError, NumericError
from layerscope.products import product
from layerscope.readout.compiled import CompiledStatistics, kernels
from layerscope.readout.known_logits import KnownLogits
from layerscope.readout.statistics_for import statistics_for
from layerscope.readout.vocabulary import KL_FLOOR_NATS, Tile, TorchStatistics, references
from layerscope.record.rows import TOP_SET
from layerscope.unembedding import HeadTransform, Unembedding
from layerscope.workers import Workers

ROWS_PER_BLOCK = 1024
"""Rows multiplied at once: enough to reach the matrix product's peak."""
ROWS_PER_THREAD = 512
"""The same for one thread by itself."""
TILE_BYTES = 4 << 20
"""Size of one block's logits: they are read about ten times while hot, so they should fit in a core's cache."""
TILE_BYTES_PER_THREAD = 2 << 20
"""The same for one thread by itself, whose loops read them twice."""
TILE_BYTES_ON_DEVICE = 64 << 20
"""The same on an accelerator, where every tile costs some launches and waits, and no cache would hold it anyway."""
LEAST_COMPILED = 1 << 25
"""Logits for which it pays to load compiled loops: half a second, as long as torch's own operations take for these."""
EVEN_BLOCKS = 4
"""Blocks come in multiples of this many, so that the usual numbers of threads share them evenly."""

Engine = Literal["compiled", "torch"]
"""What takes the statistics: compiled loops, several threads beside one another, or torch, operation by operation."""


@dataclass(frozen=True)
class Question:
    """What is asked of the decoded positions of one prompt."""

    n_positions: int
    """How many of the prompt's positions are decoded."""
    answer_ids: tuple[int, ...] = ()
    """First ids of the accepted answers; empty where no answer could be aligned."""
    known_ids: tuple[int, ...] = ()
    """Further ids whose log-probabilities are wanted at every row of the prompt."""
    of_model: bool = False
    """Whether, in place of an answer, the model's own most likely id at each position is judged."""

    def __post_init__(self) -> None:
        if self.of_model and self.answer_ids:
            raise LensError("A position is judged by an accepted answer or by the model's own token; ask for one.")


@dataclass(frozen=True)
class Readout:
    """Numbers of every decoded row; arrays are `[group, position]`, a group being one lens at one layer.

    Positions of all prompts stand side by side, in the order of the questions. Where `finite` is False nothing else
    in the row means anything.
    """

    entropy_bits: NDArray[np.float64]
    kl_to_final_bits: NDArray[np.float64]
    """KL(row || final), reference probabilities floored at 1e-30."""
    log_sum_exp: NDArray[np.float64]
    cos_to_final: NDArray[np.float64]
    cos_to_final_centered: NDArray[np.float64]
    top_ids: NDArray[np.int64]
    """`[group, position, k]`, largest logit first, ties by id."""
    top_log_probs: NDArray[np.float64]
    """Natural logs of the probabilities of `top_ids`."""
    answer_id: NDArray[np.int64]
    """The accepted answer with the largest logit in that row, or the model's own most likely id where a question is
    about that; -1 where there is none."""
    answer_rank: NDArray[np.int64]
    """1 + number of ids with a larger logit; ties share the best rank. 0 where there is no answer."""
    answer_log_prob: NDArray[np.float64]
    known_log_probs: tuple[NDArray[np.float64], ...]
    """For each question `[group, position, known id]`; of the very logits that `top_log_probs` come from."""
    max_abs_logit: NDArray[np.float64]
    min_log_prob: NDArray[np.float64]
    """Natural log of the smallest probability."""
    finite: NDArray[np.bool_]
    final_entropy_bits: NDArray[np.float64]
    """`[position]`: entropy of the model's own distribution."""
    final_log_sum_exp: NDArray[np.float64]
    """`[position]`: of the model's own logits."""
    final_peak: NDArray[np.float64]
    """`[position]`: the largest of them."""
    final_finite: NDArray[np.bool_]

    def part(self, positions: slice, questions: slice) -> "Readout":
        """The numbers of some questions, whose positions these are."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "known_log_probs":
                values[field.name] = value[questions]
            else:
                values[field.name] = value[positions] if field.name.startswith("final_") else value[:, positions]
        return Readout(**values)

    def of_groups(self, groups: slice) -> "Readout":
        """The numbers of some groups."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if name == "known_log_probs":
                values[name] = tuple(known[groups] for known in value)
            elif not name.startswith("final_"):
                values[name] = value[groups]
        return Readout(**values)


@dataclass
class _Block:
    """Rows that are multiplied together: some groups at some positions."""

    groups: slice
    positions: slice
    rows: Float[Tensor, "rows d_head"]
    statistics: TorchStatistics | CompiledStatistics


@dataclass(frozen=True)
class _Judged:
    """What each row is judged by, `[group, position]`."""

    token_id: Int[Tensor, "groups positions"]
    """-1 where there is nothing."""
    logit: Float[Tensor, "groups positions"]
    """Of a product of its own, with which the sweep's are compared; -inf where there is nothing."""
    place: Int[Tensor, "groups positions"]
    """Which of the ids that the question allows it is."""
    allowed: tuple[Int[Tensor, "_ _"], ...]
    """Question by question `[position, id]`, the ids that there are to choose from."""


def _first_alike(columns: Float[Tensor, "answers d_head"], bias: Float[Tensor, " answers"] | None) -> tuple[int, ...]:
    """For each answer the first that has the same row of the head to the bit, bias included; itself, as a rule."""
    rows = columns if bias is None else torch.cat([columns, bias[:, None].to(columns)], dim=1)
    first: dict[bytes, int] = {}
    return tuple(first.setdefault(sha256(row).digest(), i) for i, row in enumerate(rows.cpu().numpy()))


def tile_width(rows: int, d_vocab: int, tile_bytes: int = TILE_BYTES) -> int:
    """Vocabulary ids a tile, so that the logits of a block stay in the cache."""
    width = tile_bytes // (4 * max(1, rows))
    return min(d_vocab, max(256, min(8192, width // 64 * 64)))


def decode(
    rows: Float[Tensor, "groups positions d_model"],
    final_rows: Float[Tensor, "positions d_model"],
    questions: Sequence[Question],
    unembedding: Unembedding,
    *,
    lens_transform: HeadTransform | None = None,
    top_k: int = TOP_SET,
    tile: int | None = None,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Readout:
    """Read every row out through the unembedding, one visit of each tile for all of them.

    Args:
        rows: what the lenses give, group by group (a group is one lens at one layer).
        final_rows: what the model's own head multiplies at the same positions.
        questions: what is asked, prompt by prompt; their positions add up to the rows' position axis.
        unembedding: the model's head.
        lens_transform: what is done to lens logits; the head's own transform where not given. The final rows always
            go through the head's own.
        top_k: how many of the largest logits to keep.
        tile: vocabulary ids a tile; chosen for the cache where not given. It changes nothing but speed, up to
            float32 rounding.
        engine: what takes the statistics; `engine_for` these rows where not given. Either gives the same up to
            float32 rounding.
        progress: called with (ids done, d_vocab) after every tile.

    Raises:
        NumericError: the unembedding itself is not finite.
    """
    if engine is None:
        engine = engine_for(rows.shape[0] * rows.shape[1], unembedding)
    sweep = _Sweep(rows, final_rows, questions, unembedding, lens_transform, top_k, tile, engine)
    sweep.visit_final()
    sweep.visit_rows(sweep.judge(), progress)
    return sweep.readout()


def engine_for(n_rows: int, unembedding: Unembedding) -> Engine:
    """What takes the statistics of so many rows fastest: loops where they can be had and are worth loading."""
    return "compiled" if pays(n_rows, unembedding) and kernels() is not None else "torch"


def pays(n_rows: int, unembedding: Unembedding) -> bool:
    """Whether compiled loops would be worth loading for so many rows."""
    return unembedding.device.type == "cpu" and n_rows * unembedding.d_vocab >= LEAST_COMPILED


class _Sweep:
    """One visit of the whole vocabulary; `decode` is its only user."""

    def __init__(
        self,
        rows: Float[Tensor, "groups positions d_model"],
        final_rows: Float[Tensor, "positions d_model"],
        questions: Sequence[Question],
        unembedding: Unembedding,
        lens_transform: HeadTransform | None,
        top_k: int,
        tile: int | None,
        engine: Engine,
    ) -> None:
        self.unembedding = unembedding
        self.lens_transform = unembedding.transform if lens_transform is None else lens_transform
        self.questions, self.engine = questions, engine
        self.n_groups, self.n_positions, _ = rows.shape
        self.k = min(top_k, unembedding.d_vocab)
        self.head_rows = unembedding.head_input(rows)
        self.final_rows = unembedding.head_input(final_rows)
        compiled = engine == "compiled"
        self.rows_per_block = ROWS_PER_THREAD if compiled else ROWS_PER_BLOCK
        self.slices = self._slices(max(EVEN_BLOCKS, torch.get_num_threads()) if compiled else 1)
        self.largest = max((g.stop - g.start) * (p.stop - p.start) for g, p in self.slices)
        tile_bytes = TILE_BYTES if rows.device.type == "cpu" else TILE_BYTES_ON_DEVICE
        tile_bytes = TILE_BYTES_PER_THREAD if compiled else tile_bytes
        self.tile = tile or tile_width(self.largest, unembedding.d_vocab, tile_bytes)
        self.model_top1 = torch.full((self.n_positions,), -1, dtype=torch.int64, device=rows.device)
        """The model's own most likely id at each position, the smaller of equal ones; -1 where it is not finite."""
        self.final = self._statistics(self.n_positions, 1, self.model_top1.float(), self.model_top1)

    def _statistics(
        self, n_rows: int, k: int, threshold: Float[Tensor, " rows"], judged: Int[Tensor, " rows"]
    ) -> TorchStatistics | CompiledStatistics:
        return statistics_for(threshold.device, self.engine)(n_rows, k, threshold, judged)

    def _slices(self, multiple: int) -> list[tuple[slice, slice]]:
        """Groups and positions that are multiplied together; where there are enough, a multiple of so many."""
        slices = []
        for at in range(0, self.n_positions, self.rows_per_block):
            positions = slice(at, min(at + self.rows_per_block, self.n_positions))
            width = positions.stop - positions.start
            n_blocks = -(-self.n_groups // max(1, self.rows_per_block // width))
            n_blocks = min(self.n_groups, -(-n_blocks // multiple) * multiple)
            per_block = -(-self.n_groups // n_blocks)  # even blocks: a small last one would run below peak
            for first in range(0, self.n_groups, per_block):
                slices.append((slice(first, min(first + per_block, self.n_groups)), positions))
        return slices

    def judge(self) -> list[_Block]:
        """Settle what each row is judged by, and begin the statistics of every block."""
        self.judged = _judged(self.head_rows, self.questions, self.model_top1, self.unembedding)
        ids = self.judged.token_id
        self.judged_ids = torch.unique(ids[ids >= 0])
        self.judged_columns = self.unembedding.columns(self.judged_ids)
        self.judged_bias = None if self.unembedding.bias is None else self.unembedding.bias[self.judged_ids]
        self.first_alike = _first_alike(self.judged_columns, self.judged_bias)
        known = [
            torch.tensor(q.known_ids, dtype=torch.int64).expand(q.n_positions, len(q.known_ids)) for q in self.questions
        ]
        self.known = KnownLogits(
            [torch.cat([a.cpu(), k], dim=1) for a, k in zip(self.judged.allowed, known, strict=True)],
            self.n_groups,
            self.rows_per_block,
            range(0, self.unembedding.d_vocab, self.tile),
            self.unembedding.d_vocab,
            self.head_rows.device,
        )
        self.blocks = []
        for groups, positions in self.slices:
            rows = self.head_rows[groups, positions].reshape(-1, self.head_rows.shape[-1]).contiguous()
            token_id = ids[groups, positions].reshape(-1)
            judged = torch.searchsorted(self.judged_ids, token_id.clamp_min(0)).clamp_max(len(self.judged_ids) - 1)
            threshold = self.judged.logit[groups, positions].reshape(-1)
            statistics = self._statistics(len(rows), self.k, threshold, judged)
            self.blocks.append(_Block(groups, positions, rows, statistics))
        return self.blocks

    def visit_final(self) -> None:
        """Visit every tile with the final rows alone.

        Divergences need the final rows' peak and normaliser beforehand, to compare logits relative to their peaks and
        for the floor under their probabilities, and the final rows are few beside the others. Here the model's own
        most likely ids are found too, before any row is judged by them.
        """
        running = []
        buffer = self._tile_buffer()
        room = () if self.engine == "compiled" else self._room(2, self.n_positions)
        for i in range(self.n_tiles):
            start, weight, bias = self._weight(i, buffer)
            linear = self._final_logits(weight, bias)
            spare = (buffer[: linear.numel()].view_as(linear) for buffer in room)
            final = self.unembedding.transform.apply_(linear.clone())
            own = final if bias is None else final - bias
            tile = Tile(i, start, weight, bias, final, own, final, weight.new_empty(0, len(weight), dtype=torch.bool))
            self.final.take_in(linear, tile, slice(0, self.n_positions), self.unembedding.transform, *spare)
            running.append(self.final.peak.clone())
        self.model_top1 = torch.where(self.final.finite(), self.final.top()[1][:, 0], -1)
        self.references = references(torch.stack(running))
        self.floor = self.final.log_sum_exp() + KL_FLOOR_NATS

    def visit_rows(self, blocks: Sequence[_Block], progress: Callable[[int, int], None]) -> None:
        """Visit every tile with all rows; by compiled loops several blocks at once, and the next tile made meanwhile.

        A block's tiles follow one another, so what is summed does not depend on which thread is faster.
        """
        moves = self.references.double().diff(dim=0, prepend=self.references[:1].double())
        moved = (moves != 0).any(-1).tolist()
        compiled = self.engine == "compiled"
        buffers = self._tile_buffer(), self._tile_buffer()
        with Workers(torch.get_num_threads() if compiled else 1) as workers:
            rooms: SimpleQueue[tuple[Tensor, ...]] = SimpleQueue()
            for _ in range(workers.n):
                rooms.put(self._room(1 if compiled else 3, self.largest))
            coming = workers.submit(self._prepare, 0, buffers[0])
            for i in range(self.n_tiles):
                tile = coming.result()
                if i + 1 < self.n_tiles:
                    coming = workers.submit(self._prepare, i + 1, buffers[(i + 1) % 2])
                if moved[i]:
                    for block in blocks:
                        block.statistics.move_reference(moves[i, block.positions])
                for visit in [workers.submit(self._visit, block, tile, rooms) for block in blocks]:
                    visit.result()
                progress(tile.start + len(tile.weight), self.unembedding.d_vocab)

    @property
    def n_tiles(self) -> int:
        """How many tiles there are."""
        return -(-self.unembedding.d_vocab // self.tile)

    def _tile_buffer(self) -> Float[Tensor, "tile d_head"]:
        return self.head_rows.new_empty(self.tile, self.unembedding.d_head, dtype=torch.float32)

    def _room(self, n: int, n_rows: int) -> tuple[Float[Tensor, " logits"], ...]:
        """Room for the logits of rows at a tile, so many times."""
        return tuple(self.head_rows.new_empty(n_rows * self.tile, dtype=torch.float32) for _ in range(n))

    def _weight(
        self, i: int, buffer: Float[Tensor, "tile d_head"]
    ) -> tuple[int, Float[Tensor, "ids d_head"], Float[Tensor, " ids"] | None]:
        """A tile's first id, its weight in float32 (in the buffer), and bias."""
        start = i * self.tile
        stop = min(start + self.tile, self.unembedding.d_vocab)
        bias = None if self.unembedding.bias is None else self.unembedding.bias[start:stop]
        return start, self.unembedding.tile(start, stop, out=buffer), bias

    def _prepare(self, i: int, buffer: Float[Tensor, "tile d_head"]) -> Tile:
        """A tile with all that rows are compared with there."""
        start, weight, bias = self._weight(i, buffer)
        final = self.unembedding.transform.apply_(self._final_logits(weight, bias))
        reference = self.references[i]
        shifted = torch.maximum(final - reference[:, None], (self.floor - reference).float()[:, None])
        own = final if bias is None else final - bias
        return Tile(i, start, weight, bias, final, own, shifted, self._twins(weight, bias))

    def _twins(
        self, weight: Float[Tensor, "tile d_head"], bias: Float[Tensor, " tile"] | None
    ) -> Bool[Tensor, "answers tile"]:
        """Which columns of this tile have the same row of the head, bias included, as a judged answer."""
        few = slice(0, 4)  # hardly any rows agree in these, so few are compared as a whole
        alike = (weight[None, :, few] == self.judged_columns[:, None, few]).all(-1)
        for answer in alike.any(-1).nonzero().squeeze(-1).tolist():
            first = self.first_alike[answer]
            if first < answer:  # as in a head with rows that were never trained
                alike[answer] = alike[first]
                continue
            columns = alike[answer].nonzero().squeeze(-1)
            same = (weight[columns] == self.judged_columns[answer]).all(-1)
            if bias is not None and self.judged_bias is not None:
                same &= bias[columns] == self.judged_bias[answer]
            alike[answer, columns] = same
        return alike

    def _final_logits(
        self, weight: Float[Tensor, "tile d_head"], bias: Float[Tensor, " tile"] | None
    ) -> Float[Tensor, "positions tile"]:
        """The model's own logits of a tile, before the head's transform."""
        logits = product(self.final_rows, weight, out=self.final_rows.new_empty(self.n_positions, len(weight)))
        if bias is not None:
            logits += bias
        return logits

    def _visit(self, block: _Block, tile: Tile, rooms: "SimpleQueue[tuple[Tensor, ...]]") -> None:
        """One block of rows against one tile."""
        room = rooms.get()
        try:
            self._take_in(block, tile, room)
        finally:
            rooms.put(room)  # after an error too, or who comes next would wait for ever

    def _take_in(self, block: _Block, tile: Tile, room: tuple[Tensor, ...]) -> None:
        shape = (len(block.rows), len(tile.weight))
        logits, *spare = (buffer[: shape[0] * shape[1]].view(shape) for buffer in room)
        logits = product(block.rows, tile.weight, out=logits)
        if tile.bias is not None:
            logits.add_(tile.bias)
        width = block.positions.stop - block.positions.start
        block_index = block.positions.start // self.rows_per_block
        self.known.keep(logits.view(-1, width, shape[1]), block.groups, block_index, tile.index, tile.start)
        block.statistics.take_in(logits, tile, block.positions, self.lens_transform, *spare)

    def readout(self) -> Readout:
        """Put the blocks together again."""
        final_norm = self.final.sum_zz
        final_spread = final_norm - self.final.sum_z**2 / self.unembedding.d_vocab
        shape = (self.n_groups, self.n_positions)
        names = ("entropy", "kl", "lse", "cos", "cos_centered", "rank", "largest", "low")
        columns = {name: torch.empty(shape, dtype=torch.float64) for name in names}
        finite = torch.empty(shape, dtype=torch.bool)
        top_ids = torch.empty((*shape, self.k), dtype=torch.int64)
        top_logits = torch.empty((*shape, self.k))
        for block in self.blocks:
            at = (block.groups, block.positions)
            s = block.statistics
            here = (block.groups.stop - block.groups.start, block.positions.stop - block.positions.start)
            finals = (final_norm, final_spread, self.final.tail, self.final.sum_z)
            norm, spread, tail, sum_f = (value[block.positions].repeat(here[0]) for value in finals)
            own_spread = (s.sum_zz - s.sum_z**2 / self.unembedding.d_vocab).clamp_min(0.0)
            shared = s.sum_z_final - s.sum_z * sum_f / self.unembedding.d_vocab
            values = {
                "entropy": s.entropy_bits(),
                "kl": s.kl_to_final_bits(tail),
                "lse": s.log_sum_exp(),
                "cos": s.sum_z_final / (s.sum_zz.sqrt() * norm.sqrt() + 1e-12),
                "cos_centered": shared / (own_spread.sqrt() * spread.clamp_min(0.0).sqrt() + 1e-12),
                "rank": (1 + s.above).double(),
                "largest": torch.maximum(s.peak.abs(), s.low.abs()).double(),
                "low": s.low.double() - s.log_sum_exp(),
            }
            for name, value in values.items():
                columns[name][at] = value.view(here).cpu()
            finite[at] = s.finite().view(here).cpu()
            values_of_top, ids_of_top = s.top()
            top_ids[at] = ids_of_top.view(*here, self.k).cpu()
            top_logits[at] = values_of_top.view(*here, self.k).cpu()
        self._check_head(finite)
        return self._assemble(columns, finite, top_ids, self.lens_transform.apply_(top_logits))

    def _check_head(self, finite: Tensor) -> None:
        """A finite row with non-finite logits means that the head, not the residual, is broken.

        Raises:
            NumericError: naming how many rows are hit.
        """
        sound = torch.stack([torch.isfinite(group).all(-1) for group in self.head_rows]).cpu()
        broken = int((sound & ~finite).sum())
        if broken:
            raise NumericError(
                f"The unembedding gives NaN or infinite logits for {broken} of {sound.sum()} finite rows, so no "
                "probability can be trusted; check the head's weight and bias in the checkpoint."
            )

    def _assemble(
        self,
        columns: dict[str, Tensor],
        finite: Tensor,
        top_ids: Tensor,
        top_logits: Float[Tensor, "groups positions k"],
    ) -> Readout:
        lse = columns["lse"]
        top_log_probs = top_logits.double() - lse[..., None]
        answer_log_prob = torch.full_like(lse, -torch.inf)
        known: list[NDArray[np.float64]] = []
        at = 0
        for logits, allowed in zip(self.known.by_question(), self.judged.allowed, strict=True):
            positions = slice(at, at + logits.shape[1])
            at = positions.stop
            log_probs = self.lens_transform.apply_(logits).double() - lse[:, positions, None]
            if self.lens_transform.softcap is not None:
                ids = self.known.ids_of(len(known))
                _as_listed_(log_probs, ids, top_ids[:, positions], top_log_probs[:, positions])
            n_allowed = allowed.shape[1]
            if n_allowed:
                place = self.judged.place[:, positions, None].cpu()
                answer_log_prob[:, positions] = log_probs[..., :n_allowed].gather(-1, place)[..., 0]
            known.append(log_probs[..., n_allowed:].numpy())
        answer_id = self.judged.token_id.cpu()
        return Readout(
            entropy_bits=columns["entropy"].numpy(),
            kl_to_final_bits=columns["kl"].numpy(),
            log_sum_exp=lse.numpy(),
            cos_to_final=columns["cos"].numpy(),
            cos_to_final_centered=columns["cos_centered"].numpy(),
            top_ids=top_ids.numpy(),
            top_log_probs=top_log_probs.numpy(),
            answer_id=answer_id.numpy(),
            answer_rank=torch.where(answer_id >= 0, columns["rank"].long(), 0).numpy(),
            answer_log_prob=answer_log_prob.numpy(),
            known_log_probs=tuple(known),
            max_abs_logit=columns["largest"].numpy(),
            min_log_prob=columns["low"].numpy(),
            finite=finite.numpy(),
            final_entropy_bits=self.final.entropy_bits().cpu().numpy(),
            final_log_sum_exp=self.final.log_sum_exp().cpu().numpy(),
            final_peak=self.final.peak.double().cpu().numpy(),
            final_finite=self.final.finite().cpu().numpy(),
        )


def _as_listed_(
    log_probs: Float[Tensor, "groups positions ids"],
    ids: Int[Tensor, "positions ids"],
    top_ids: Int[Tensor, "groups positions k"],
    top_log_probs: Float[Tensor, "groups positions k"],
) -> None:
    """Give ids that are listed their listed value, and others no more than the last of them.

    Softcapped logits may be off by a rounding, since a vectorised tanh rounds by a number's place in its array.
    """
    for own, listed, values in zip(log_probs, top_ids, top_log_probs, strict=True):
        hit = ids[..., None] == listed[:, None]
        place = hit.to(torch.uint8).argmax(-1)
        own.copy_(torch.where(hit.any(-1), values.gather(-1, place), torch.minimum(own, values[:, -1:])))


def _judged(
    rows: Float[Tensor, "groups positions d_head"],
    questions: Sequence[Question],
    model_top1: Int[Tensor, " positions"],
    unembedding: Unembedding,
) -> _Judged:
    """For each row the accepted answer with the largest logit, or the model's own most likely id."""
    n_groups, n_positions, _ = rows.shape
    token_id = torch.full((n_groups, n_positions), -1, dtype=torch.int64, device=rows.device)
    logit = torch.full((n_groups, n_positions), -torch.inf, device=rows.device)
    place, allowed, at = torch.zeros_like(token_id), [], 0
    for question in questions:
        positions = slice(at, at + question.n_positions)
        at += question.n_positions
        if question.of_model:
            allowed.append(model_top1[positions, None].clamp_min(0))
            for position in (i for i in range(positions.start, positions.stop) if model_top1[i] >= 0):
                token_id[:, position] = model_top1[position]
                logit[:, position] = unembedding.linear_logits(rows[:, position], model_top1[position, None])[:, 0]
            continue
        ids = torch.tensor(sorted(set(question.answer_ids)), dtype=torch.int64, device=rows.device)
        allowed.append(ids.expand(question.n_positions, len(ids)))
        if not question.answer_ids:
            continue
        here = rows[:, positions]
        best = unembedding.linear_logits(here.reshape(-1, here.shape[-1]), ids).max(-1)
        place[:, positions] = best.indices.view(here.shape[:2])
        token_id[:, positions] = ids[best.indices].view(here.shape[:2])
        logit[:, positions] = best.values.view(here.shape[:2])
    return _Judged(token_id, logit, place, tuple(allowed))
