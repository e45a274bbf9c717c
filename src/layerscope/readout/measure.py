"""From residuals to the columns of a run: lenses applied, one sweep, and what follows from its numbers."""

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, fields, replace

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from layerscope.lenses import Lens
from layerscope.readout.columns import Columns
from layerscope.readout.contrast import Contrast, Normaliser, contrast
from layerscope.readout.decode import Engine, Question, Readout, decode, engine_for
from layerscope.readout.geometry import geometry, norm_ratio, row_residual_cosine
from layerscope.readout.prompt_query import Echoes, PromptQuery, Shape
from layerscope.readout.whole_answers import further_rows, known_ids, whole_answers
from layerscope.readout.whole_answers import questions as questions_of
from layerscope.record.protocol import Protocol
from layerscope.record.rows import TOP_SET
from layerscope.unembedding import HeadTransform, Unembedding


@dataclass
class Work:
    """What sweeps over the unembedding did, and in which time."""

    flop: float = 0.0
    """Floating-point operations of products."""
    seconds: float = 0.0
    engines: set[Engine] = field(default_factory=set)

    @property
    def slowest_engine(self) -> Engine | None:
        """Torch's operations where any sweep was taken by them; None before the first."""
        return "torch" if "torch" in self.engines else next(iter(self.engines), None)


def measure(
    residuals: Float[Tensor, "layer row d_model"],
    lenses: Sequence[Lens],
    queries: Sequence[PromptQuery],
    unembedding: Unembedding,
    *,
    protocol: Protocol,
    trivial: Callable[[Set[int]], set[int]],
    top_k: int = 20,
    sweep_bytes: int = 1 << 30,
    final_is_model: bool = True,
    temperatures: Sequence[float | None] | None = None,
    work: Work | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, pl.Series]:
    """Every number of every decoded row, as columns ordered by prompt, lens, layer and position.

    Args:
        residuals: the decoded positions of all prompts side by side, float32; behind them the `further_rows` that
            whole answers need.
        queries: the prompts, in the order of the residuals' rows.
        trivial: which of some ids are blank or punctuation.
        top_k: how many of the largest logits are listed in a row.
        final_is_model: whether the last layer's decode passed the identity check; where not, what is measured against
            it is null.
        temperatures: for each layer what the headline lens' logits are divided by for `kl_to_final_bits_norm_temp`.
        sweep_bytes: memory that decoded rows may take; more lenses and layers are decoded in several sweeps.
        work: is told what the sweeps did.
        progress: called with (vocabulary ids done, ids to do).

    Raises:
        NumericError: the unembedding is not finite.
    """
    shape = Shape(tuple(lenses), residuals.shape[0], tuple(queries))
    echoes = [Echoes.of(a, trivial(set(a.context_ids))) for a in queries]
    further = further_rows(queries)
    asked = [
        Question(len(a.positions), a.answer_ids, (*e.ids, *known_ids(a), *a.control_ids), a.of_model)
        for a, e in zip(queries, echoes, strict=True)
    ]
    questions = [*asked, *questions_of(further)]
    sweeper = _Sweeper(residuals, shape, questions, echoes, unembedding, protocol, max(TOP_SET, top_k))
    readout, extra = sweeper.run(sweep_bytes, progress, Work() if work is None else work)
    compared = sweeper.contrast(readout, temperatures, sweep_bytes)
    own = readout.part(slice(shape.n_positions), slice(len(asked)))
    behind = readout.part(slice(shape.n_positions, None), slice(len(asked), None))
    behind = replace(behind, finite=behind.finite & (extra.pop("further_not_finite") == 0))
    known = [values[..., len(e.ids) :] for values, e in zip(own.known_log_probs, echoes, strict=True)]
    known = [values[..., : len(known_ids(a))] for values, a in zip(known, queries, strict=True)]
    whole = whole_answers(shape, own, behind, further, known)
    return Columns(
        shape, own, extra, compared, echoes, whole, protocol, unembedding.d_vocab, top_k, trivial, final_is_model
    ).build()


class _Sweeper:
    """Decodes all groups (lens x layer), in as many sweeps as the memory asks for."""

    def __init__(
        self,
        residuals: Float[Tensor, "layer row d_model"],
        shape: Shape,
        questions: list[Question],
        echoes: list[Echoes],
        unembedding: Unembedding,
        protocol: Protocol,
        k: int,
    ) -> None:
        self.residuals, self.shape, self.questions, self.echoes = residuals, shape, questions, echoes
        self.unembedding = unembedding
        self.headline = protocol.headline
        self.transform = None if protocol.lens_transform else HeadTransform()
        self.k = k
        norm = unembedding.final_norm
        self.final_rows = residuals[-1] if norm is None else norm(residuals[-1])

    def run(
        self, sweep_bytes: int, progress: Callable[[int, int], None], work: Work
    ) -> tuple[Readout, dict[str, NDArray[np.float64]]]:
        """All groups' readouts, and their geometry, `[group, position]`."""
        groups = [(lens, layer) for lens in self.shape.lenses for layer in range(self.shape.n_layers)]
        per_group = 4 * self.residuals.shape[1] * self.residuals.shape[2]
        most = max(1, sweep_bytes // max(1, per_group))
        n_sweeps = -(-len(groups) // most)
        readouts, extras = [], []
        for i in range(n_sweeps):
            part = groups[i * most : (i + 1) * most]
            rows = torch.empty(len(part), *self.residuals.shape[1:], device=self.residuals.device)
            for g, (lens, layer) in enumerate(part):
                rows[g] = lens(self.residuals[layer], layer)
            engine = engine_for(rows.shape[0] * rows.shape[1], self.unembedding)
            began = time.perf_counter()
            readout = decode(
                rows,
                self.final_rows,
                self.questions,
                self.unembedding,
                lens_transform=self.transform,
                top_k=self.k,
                engine=engine,
                progress=lambda done, total, i=i: progress(i * total + done, n_sweeps * total),  # type: ignore[misc]
            )
            work.seconds += time.perf_counter() - began
            n_rows = (rows.shape[0] + 2) * rows.shape[1]  # the model's own rows are read out twice
            work.flop += 2.0 * n_rows * self.unembedding.d_vocab * self.unembedding.d_head
            work.engines.add(engine)
            readouts.append(readout)
            extras.append(self._geometry(rows, [layer for _, layer in part], readout))
        return concatenated(readouts), {name: np.concatenate([e[name] for e in extras]) for name in extras[0]}

    def contrast(
        self, readout: Readout, temperatures: Sequence[float | None] | None, sweep_bytes: int
    ) -> Contrast | None:
        """The headline lens against `raw` and against its own temperature, at last positions; None without it."""
        lenses = {lens.name: i for i, lens in enumerate(self.shape.lenses)}
        if self.headline not in lenses:
            return None
        n_layers = self.shape.n_layers
        columns = [self.shape.columns_of(i).stop - 1 for i in range(len(self.shape.queries))]
        residuals = self.residuals[:, columns]
        final = Normaliser(
            torch.from_numpy(readout.final_log_sum_exp[columns]), torch.from_numpy(readout.final_peak[columns])
        )
        tau = None
        if temperatures is not None:
            tau = torch.tensor([1.0 if t is None else t for t in temperatures], dtype=torch.float64)

        def normaliser(lens: str, layers: slice) -> Normaliser:
            groups = slice(lenses[lens] * n_layers + layers.start, lenses[lens] * n_layers + layers.stop)
            lse = torch.from_numpy(readout.log_sum_exp[groups][:, columns])
            top = torch.from_numpy(readout.top_log_probs[groups][:, columns, 0])
            return Normaliser(lse, lse + top)

        with_raw = "raw" in lenses and self.headline != "raw"
        per_layer = 2 * 4 * residuals.shape[1] * residuals.shape[2]
        most = max(1, sweep_bytes // max(1, per_layer))
        parts = []
        for start in range(0, n_layers, most):
            layers = slice(start, min(start + most, n_layers))
            chosen = range(layers.start, layers.stop)
            headline = self.shape.lenses[lenses[self.headline]]
            parts.append(
                contrast(
                    torch.stack([headline(residuals[layer], layer) for layer in chosen]),
                    residuals[layers] if with_raw else None,
                    self.final_rows[columns],
                    normaliser(self.headline, layers),
                    normaliser("raw", layers) if with_raw else None,
                    final,
                    self.unembedding,
                    lens_transform=self.transform,
                    temperatures=None if tau is None else tau[layers],
                )
            )
        return _without(_joined(parts), [i for i, t in enumerate(temperatures or ()) if t is None])

    def _geometry(
        self, rows: Float[Tensor, "group row d_model"], layers: list[int], readout: Readout
    ) -> dict[str, NDArray[np.float64]]:
        cosines: dict[str, list[Tensor]] = {"cos_to_answer": [], "cos_to_prompt_max": []}
        n = self.shape.n_positions
        for prompt, echo in enumerate(self.echoes):
            columns = self.shape.columns_of(prompt)
            at_prompt = geometry(
                rows[:, columns],
                torch.from_numpy(readout.answer_id[:, columns]),
                torch.tensor(echo.ids, dtype=torch.int64),
                torch.from_numpy(echo.seen),
                self.unembedding,
            )
            cosines["cos_to_answer"].append(at_prompt.cos_to_answer)
            cosines["cos_to_prompt_max"].append(at_prompt.cos_to_prompt_max)
        result = {name: torch.cat(parts, dim=1).numpy() for name, parts in cosines.items()}
        per_group = [
            {
                "raw_resid_norm": residual[:n].double().norm(dim=-1).cpu(),
                "resid_norm_ratio": norm_ratio(row[:n], residual[:n]),
                "delta_resid_cos": row_residual_cosine(row[:n], residual[:n]),
                "any_nan": (torch.isnan(row[:n]) | torch.isnan(residual[:n])).any(-1).double().cpu(),
                "any_inf": (torch.isinf(row[:n]) | torch.isinf(residual[:n])).any(-1).double().cpu(),
                "further_not_finite": (~(torch.isfinite(row[n:]) & torch.isfinite(residual[n:])).all(-1))
                .double()
                .cpu(),
            }
            for row, residual in zip(rows, (self.residuals[layer] for layer in layers), strict=True)
        ]
        return result | {name: torch.stack([of[name] for of in per_group]).numpy() for name in per_group[0]}


def _joined(parts: Sequence[Contrast]) -> Contrast:
    """Contrasts of consecutive layers, one after the other."""
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Contrast)}
    return Contrast(**{name: None if arrays[0] is None else np.concatenate(arrays) for name, arrays in values.items()})


def _without(contrast: Contrast, layers: list[int]) -> Contrast:
    """The same, but for tempered divergences of layers that have no temperature."""
    if contrast.kl_to_final_bits_norm_temp is not None:
        contrast.kl_to_final_bits_norm_temp[layers] = np.nan
    return contrast


def concatenated(readouts: list[Readout]) -> Readout:
    """Readouts of several sweeps over the same positions, group after group."""
    if len(readouts) == 1:
        return readouts[0]
    shared = {"final_entropy_bits", "final_log_sum_exp", "final_peak", "final_finite"}
    values: dict[str, object] = {}
    for column in fields(Readout):
        parts = [getattr(readout, column.name) for readout in readouts]
        if column.name in shared:
            values[column.name] = parts[0]
        elif column.name == "known_log_probs":
            values[column.name] = tuple(np.concatenate(prompt) for prompt in zip(*parts, strict=True))
        else:
            values[column.name] = np.concatenate(parts)
    return Readout(**values)  # type: ignore[arg-type]
