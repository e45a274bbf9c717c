"""Fit a prism lens: vectors of a few layers' stream, one standardisation, one rotation, measured on held-out text."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
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
from layerscope.fitting.session import (
    block_bytes,
    device_memory,
    drawn,
    fit_key,
    host_memory,
    leftovers_said,
    settings_record,
    shortage_message,
    targets_at,
)
from layerscope.fitting.stream import BATCH_TOKENS, CHUNK, Stream, stream_bytes
from layerscope.fitting.workspace import Workspace
from layerscope.lens_record import FORMAT, SCHEMA_VERSION, LensRecord, PrismFit, utc_stamp
from layerscope.lenses.lens import Lens
from layerscope.lenses.lens_folder import FittedLens, prism_tensors, write_fitted_lens
from layerscope.lenses.logit_lens import LogitLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes, shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.model.signature import model_signature
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


class _PrismFitter:
    """One fit; `fit_prism` is its only user."""

    def __init__(
        self, model: CausalLM, corpus: Corpus, out: Path, settings: PrismSettings, observer: FitObserver
    ) -> None:
        self.workspace = Workspace(out, fit_key("prism", model, corpus, settings.seed, asdict(settings)))
        self.model, self.corpus, self.out, self.settings, self.observer = model, corpus, out, settings, observer
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

    def run(self) -> FittedLens:
        """The pass, the map, what it is worth, and the lens folder."""
        device = self.model.placement.device
        with self.workspace.held():
            with (
                shortage_explained(shortage_message(self.model)),
                reproducible(self.settings.seed, device),
                torch.inference_mode(),
            ):
                prism_map, record = self._fitted()
            tensors = prism_tensors(prism_map.mean, prism_map.variance, prism_map.rotation)
            lens = write_fitted_lens(self.out, record, tensors)
            self.workspace.discard()
        return lens

    def _fitted(self) -> tuple[PrismMap, LensRecord]:
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
        return prism_map, self._record(prism_map, len(vectors), bits, len(held_at))

    def _per_layer(self) -> int:
        return max(1, self.wanted // len(self.rows))

    def _plan(self, per_layer: int, n_passed: int) -> str:
        return (
            f"prism lens of {self.model.id} · {self.settings.method}, k {self.k} · {per_layer * len(self.rows):,} "
            f"vectors from layers {', '.join(map(str, self.rows))} · sequences of {self.corpus.fit.shape[1]}"
            + (f" · goes on behind layer {n_passed - 1}" if n_passed else "")
            + leftovers_said(self.workspace)
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
        d, n, seq_len = self.model.d_model, self.model.n_layers + 1, self.corpus.fit.shape[1]
        stream = stream_bytes(text.fit.numel() + text.held_out.numel(), d)
        vectors = 4 * d * self._per_layer() * (2 * len(self.rows) + 1)
        host = stream + vectors + 2 * 4 * d * MOST_HELD_OUT * n  # twice: layers are joined
        device = max(8 * MATRICES * d * d, block_bytes(self.model, max(BATCH_TOKENS, seq_len), seq_len)) + (128 << 20)
        apart = self.model.placement.device.type != "cpu"
        for needed, there in (
            (host if apart else host + device, host_memory(self.model)),
            (device, device_memory(self.model)),
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
        device = self.model.placement.device
        return torch.cat([self.lens(chunk.to(device), layer).float() for chunk in torch.split(residuals, CHUNK)])

    def _map(
        self,
        vectors: Float[Tensor, "vectors d_model"],
        finals: Float[Tensor, "fit d_model"],
        generator: torch.Generator,
    ) -> PrismMap:
        device = self.model.placement.device
        standardiser = Standardiser()
        for chunk in torch.split(vectors, CHUNK):
            standardiser.update(chunk)
        if self.settings.method == "by_rank":
            some = drawn(torch.arange(len(vectors)), self.reservoir, generator)
            return fit_by_rank(vectors[some], standardiser, self.model.unembedding, k=self.k, device=device)
        last = self._stream_rows(finals, self.model.n_layers).cpu()
        targets = last.repeat(len(self.rows), 1)
        return fit_procrustes_to_final(vectors, targets, standardiser, k=self.k, device=device)

    def _measured(
        self, held: Float[Tensor, "layer held d_model"], prism_map: PrismMap, stream: Stream, held_at: Tensor
    ) -> list[tuple[float, float]]:
        """Mean KL(model || prism) and KL(model || logit lens) in bits at every layer."""
        device = self.model.placement.device
        head = Head(self.model.unembedding)
        prism = PrismLens(self.lens, prism_map.mean, prism_map.variance, prism_map.eps, prism_map.rotation).to(device)
        targets = targets_at(self.model, head, stream.residuals.view(-1, self.model.d_model), held_at)
        bits = []
        for layer, residuals in enumerate(held):
            sums = [0.0, 0.0]
            for chunk in torch.split(torch.arange(len(residuals)), DECODED_TOGETHER):
                rows, at = residuals[chunk].to(device), targets.at(chunk.to(device))
                for i, lens in enumerate((prism, self.lens)):
                    nats = head.divergence(lens(rows, layer), at, gradient=False).nats
                    sums[i] += float(nats.double().sum()) / (LN2 * len(residuals))
            bits.append((sums[0], max(0.0, sums[1])))
        return bits

    def _record(
        self, prism_map: PrismMap, n_vectors: int, bits: Sequence[tuple[float, float]], n_held: int
    ) -> LensRecord:
        return LensRecord(
            format=FORMAT,
            schema_version=SCHEMA_VERSION,
            kind="prism",
            created_utc=utc_stamp(datetime.now(UTC)),
            weights_sha256="",
            model=model_signature(self.model),
            settings=settings_record(self.model, self.settings.seed),
            corpus=self.corpus.record,
            tuned=None,
            prism=PrismFit.of(
                prism_map,
                stream=self.lens.name,
                rows=self.rows,
                layers=tuple("embed" if row == 0 else str(row - 1) for row in self.rows),
                vectors=n_vectors,
                held_out_bits=tuple(prism_bits for prism_bits, _ in bits),
                logit_bits=tuple(logit for _, logit in bits),
                n_held_out=n_held,
            ),
            imported=None,
            notes=prism_map.notes,
        )
