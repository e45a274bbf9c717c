"""Fit a prism lens: vectors of a few layers' stream, one standardisation, one rotation, measured on held-out text."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import LensError, NumericError, PlacementError
from layerscope.fitting.checkpoint import Checkpoint, Gathered
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.divergence import DECODED_TOGETHER, Head
from layerscope.fitting.finite import refuse_non_finite
from layerscope.fitting.objective import LN2
from layerscope.fitting.options import Method, PrismSettings
from layerscope.fitting.prism_map import PrismMap, Standardiser, fit_by_rank, fit_procrustes_to_final
from layerscope.fitting.session import Fit, drawn, targets_at
from layerscope.fitting.stream import CHUNK, Stream, stream_bytes
from layerscope.lens_record import PrismFit
from layerscope.lenses.lens import Lens
from layerscope.lenses.lens_folder import FittedLens, prism_tensors
from layerscope.lenses.logit_lens import LogitLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.progress import FitObserver, SilentFit

LARGE, VERY_LARGE = 14 * 10**9, 34 * 10**9
"""Parameters above which more vectors are taken."""
VECTORS = (100_000, 130_000, 160_000)
RESERVOIR = (20_000, 25_000, 30_000)
DEFAULT_K = 512
MOST_HELD_OUT = 2048
SPREAD = 4
"""A sequence gives one in so many of its positions, so that vectors come from many contexts."""
MATRICES = 9
"""Float64 matrices of d_model x d_model that finding the rotation holds at once."""
FIRST_POSITION = 1
"""The first position of a sequence attracts attention whatever stands there; no vector is taken from it."""


def fit_prism(
    model: CausalLM,
    corpus: Corpus,
    out: Path,
    settings: PrismSettings | None = None,
    *,
    observer: FitObserver | None = None,
) -> FittedLens:
    """Fit a prism lens and write it into a folder.

    While the text goes through the blocks, it is kept beside `out` how far it has come; called again with the same
    model, text and settings after it was interrupted, the fit goes on from there and ends with the same weights.

    Args:
        model: the model; all text goes through it once, block by block.
        corpus: text in three parts; `fit` gives vectors, `held_out` measures.
        out: folder of the lens, which must not be there yet.
        settings: how; the defaults where not given.
        observer: is told how it goes.

    Raises:
        LensError: k outside 1..d_model, too few distinct vectors, `out` is already there.
        PlacementError: the vectors do not fit the memory.
        NumericError: a residual that is not finite.
    """
    return _PrismFitter(model, corpus, out, settings or PrismSettings(), observer or SilentFit()).run()


class _PrismFitter(Fit[PrismSettings]):
    """One fit; `fit_prism` is its only user."""

    kind = "prism"

    def __init__(
        self, model: CausalLM, corpus: Corpus, out: Path, settings: PrismSettings, observer: FitObserver
    ) -> None:
        super().__init__(model, corpus, out, settings, observer)
        self.k = min(DEFAULT_K, model.d_model) if settings.k is None else settings.k
        if settings.method not in get_args(Method):
            raise LensError(f"There is no method '{settings.method}'; choose from {', '.join(get_args(Method))}.")
        if not 1 <= self.k <= model.d_model:
            raise LensError(f"k should be between 1 and d_model = {model.d_model}, but it is {self.k}.")
        n, size = model.n_layers, model.architecture.n_parameters
        self.rows = tuple(sorted({0, n // 4, n // 2, 3 * n // 4}))
        tier = (size > LARGE) + (size > VERY_LARGE)
        self.wanted = VECTORS[tier] if settings.vectors is None else settings.vectors
        self.reservoir = RESERVOIR[tier]
        self.lens: Lens = LogitLens(model.final_norm)

    def fitted(self) -> tuple[PrismFit, tuple[str, ...], dict[str, Tensor]]:
        """The pass, the map, and what it is worth."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        text = self._enough_text(generator)
        self._check_room(text)
        stream = Stream(self.model, text, None)
        fit_at = drawn(stream.positions("fit", FIRST_POSITION), self._per_layer(), generator)
        held_at = drawn(stream.positions("held_out", FIRST_POSITION), MOST_HELD_OUT, generator)
        n_gathered = len(held_at) * (self.model.n_layers + 1) + len(fit_at) * len(self.rows)
        checkpoint = Checkpoint(self.workspace, stream.residuals, self.model.n_layers, n_gathered)
        gathered = checkpoint.restore()
        self.observer.plan(self._plan(len(fit_at), len(gathered)) + checkpoint.shortage)
        self._pass(stream, fit_at, held_at, checkpoint, gathered)
        # Taken away, not copied: together they are larger than the text.
        vectors = torch.cat([layer.pop("vectors") for layer in gathered if "vectors" in layer])
        held = torch.stack([layer.pop("held") for layer in gathered])
        try:
            prism_map = self._map(vectors, stream.rows(fit_at), generator)
        except (LensError, NumericError):
            self.workspace.discard()  # the same command would come to the same
            raise
        bits = self._measured(held, prism_map, stream, held_at)
        fit = PrismFit.of(
            prism_map,
            stream=self.lens.name,
            rows=self.rows,
            layers=tuple("embed" if row == 0 else str(row - 1) for row in self.rows),
            vectors=len(vectors),
            held_out_bits=tuple(prism_bits for prism_bits, _ in bits),
            logit_bits=tuple(logit for _, logit in bits),
            n_held_out=len(held_at),
        )
        return fit, prism_map.notes, prism_tensors(prism_map.mean, prism_map.variance, prism_map.rotation)

    def _per_layer(self) -> int:
        return max(1, self.wanted // len(self.rows))

    def _plan(self, per_layer: int, n_passed: int) -> str:
        return (
            f"prism lens of {self.model.id} · {self.settings.method}, k {self.k} · {per_layer * len(self.rows):,} "
            f"vectors from layers {', '.join(map(str, self.rows))} · sequences of {self.corpus.fit.shape[1]}"
            + (f" · goes on behind layer {n_passed - 1}" if n_passed else "")
            + self.leftovers()
        )

    def _enough_text(self, generator: torch.Generator) -> Corpus:
        """A corpus of only so many sequences that a few positions of each give all vectors."""
        per_sequence = max(1, (self.corpus.fit.shape[1] - 1 - FIRST_POSITION) // SPREAD)

        def some(part: Int[Tensor, "sequence position"], positions: int) -> Int[Tensor, "fewer position"]:
            return part[drawn(torch.arange(len(part)), -(-positions // per_sequence), generator)]

        return replace(
            self.corpus,
            fit=some(self.corpus.fit, self._per_layer()),
            select=self.corpus.select[:0],
            held_out=some(self.corpus.held_out, MOST_HELD_OUT),
        )

    def _check_room(self, text: Corpus) -> None:
        """Refuse what does not fit, before anything is allocated.

        Raises:
            PlacementError: the machine's memory does not hold text and vectors, or the device's not the matrices.
        """
        d, n = self.model.d_model, self.model.n_layers + 1
        stream = stream_bytes(text.fit.numel() + text.held_out.numel(), d)
        vectors = 4 * d * self._per_layer() * (2 * len(self.rows) + 1)
        host = stream + vectors + 2 * 4 * d * MOST_HELD_OUT * n  # twice: layers are joined
        device = max(8 * MATRICES * d * d, self.block_bytes()) + (128 << 20)
        apart = self.device.type != "cpu"
        for needed, there in (
            (host if apart else host + device, self.host_memory()),
            (device, self.device_memory()),
        ):
            if needed > there:
                raise PlacementError(
                    f"Fitting a prism lens needs {format_bytes(needed)} (the text {format_bytes(stream)}, vectors "
                    f"{format_bytes(vectors)}), but {format_bytes(there)} can be had; give fewer --vectors, or raise "
                    "--memory."
                )

    def _pass(
        self,
        stream: Stream,
        fit_at: Int[Tensor, " fit"],
        held_at: Int[Tensor, " held"],
        checkpoint: Checkpoint,
        gathered: list[Gathered],
    ) -> None:
        """Add to `gathered` the residuals of held-out positions at every layer, and the vectors of a few layers."""

        def after(layer: int) -> None:
            layer_rows: Gathered = {"held": stream.rows(held_at).clone()}
            refuse_non_finite(layer_rows["held"], f"residuals of the held_out part at layer {layer}")
            if layer in self.rows:
                layer_rows["vectors"] = self._stream_rows(stream.rows(fit_at), layer).cpu()
            gathered.append(layer_rows)
            checkpoint.offer(gathered)
            self.observer.blocks(layer, self.model.n_layers)

        stream.visit(after, reached=len(gathered) - 1 if gathered else None)

    def _stream_rows(self, residuals: Float[Tensor, "n d_model"], layer: int) -> Float[Tensor, "n d_model"]:
        """One code path for fit and decode: whatever the prism lens will standardise."""
        return torch.cat([self.lens(chunk.to(self.device), layer).float() for chunk in torch.split(residuals, CHUNK)])

    def _map(
        self,
        vectors: Float[Tensor, "vectors d_model"],
        finals: Float[Tensor, "fit d_model"],
        generator: torch.Generator,
    ) -> PrismMap:
        standardiser = Standardiser()
        for chunk in torch.split(vectors, CHUNK):
            standardiser.update(chunk)
        if self.settings.method == "by_rank":
            some = drawn(torch.arange(len(vectors)), self.reservoir, generator)
            return fit_by_rank(vectors[some], standardiser, self.model.unembedding, k=self.k, device=self.device)
        last = self._stream_rows(finals, self.model.n_layers).cpu()
        targets = last.repeat(len(self.rows), 1)
        return fit_procrustes_to_final(vectors, targets, standardiser, k=self.k, device=self.device)

    def _measured(
        self, held: Float[Tensor, "layer held d_model"], prism_map: PrismMap, stream: Stream, held_at: Tensor
    ) -> list[tuple[float, float]]:
        """Mean KL(model || prism) and KL(model || logit lens) in bits at every layer."""
        head = Head(self.model.unembedding)
        prism = PrismLens(self.lens, prism_map.mean, prism_map.variance, prism_map.eps, prism_map.rotation).to(
            self.device
        )
        targets = targets_at(self.model, head, stream.residuals.view(-1, self.model.d_model), held_at)
        bits = []
        for layer, residuals in enumerate(held):
            sums = [0.0, 0.0]
            for chunk in torch.split(torch.arange(len(residuals)), DECODED_TOGETHER):
                rows, at = residuals[chunk].to(self.device), targets.at(chunk.to(self.device))
                for i, lens in enumerate((prism, self.lens)):
                    nats = head.divergence(lens(rows, layer), at, gradient=False).nats
                    sums[i] += float(nats.double().sum()) / (LN2 * len(residuals))
            bits.append((sums[0], max(0.0, sums[1])))
        return bits
