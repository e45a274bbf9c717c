"""Fit a Jacobian lens: the mean over text of what every layer's residual does to the last block's output.

By a chain, the product of every block's mean Jacobian, whose sums are gathered while the text goes through the blocks
once; or exactly, row by row backwards through all of them. A chain comes with rows that were computed exactly, which
say layer by layer how far it is off.
"""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerscope.errors import LensError, PlacementError
from layerscope.fitting.block_means import BlockGatherer, BlockSums
from layerscope.fitting.checkpoint import Checkpoint, Gathered
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.exact_rows import ExactRows, Spread
from layerscope.fitting.finite import refuse_non_finite
from layerscope.fitting.held_out import HeldOut, measured
from layerscope.fitting.options import JacobianMethod, JacobianSettings
from layerscope.fitting.session import Fit, drawn
from layerscope.fitting.stream import Stream, stream_bytes
from layerscope.lens_record import BIASED, JacobianFit, JacobianLayer, ProbeRows
from layerscope.lenses.derived import shuffled
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens_folder import FittedLens, jacobian_tensors
from layerscope.lenses.lens_folder_check import PROBE_IDS, PROBE_ROWS
from layerscope.lenses.logit_lens import LogitLens
from layerscope.model.block_anatomy import Anatomist
from layerscope.model.blockwise import BlockInHand
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes
from layerscope.progress import FitObserver, SilentFit

MOST_HELD_OUT = 512
"""Positions at which every layer is measured."""
HELD_OUT_FROM = 1
"""The first position of a sequence attracts attention whatever stands there; nothing is measured at it."""
ROWS_BYTES = 1 << 30
"""What exact rows on their way back may take, even where there is room for more."""
MOST_PROMPTS = 4
"""Prompts whose rows go back together: after these an exact fit is kept."""
ROW_COPIES = 12
"""Of a row's cotangents while they pass a block, roughly: its own, and those of wider features on the way."""
LOOSE = 0.05
"""Relative standard error above which a mean over prompts is said not to have settled."""
POSITIONS_RULE = (
    "mean over prompts, and over counted source positions, of the effects on the last block's output, summed over "
    "counted target positions"
)


def fit_jacobian(
    model: CausalLM,
    corpus: Corpus,
    out: Path,
    settings: JacobianSettings | None = None,
    *,
    observer: FitObserver | None = None,
) -> FittedLens:
    """Fit a Jacobian lens and write it into a folder.

    While the text of a chain goes through the blocks, it is kept beside `out` how far it has come, and of an exact fit
    after every few prompts; called again with the same model, text and settings after it was interrupted, the fit goes
    on from there.

    Args:
        model: the model.
        corpus: text in three parts; `fit` gives prompts, `held_out` measures. Their length belongs to what is fitted.
        out: folder of the lens, which must not be there yet.
        settings: how; the defaults where not given.
        observer: is told how it goes.

    Raises:
        LensError: `out` is already there; numbers that cannot be; too little text; blocks that compute in less than
            float32.
        ModelError: blocks whose mean Jacobian has no closed form here, and which part is missing; attention that
            cannot be differentiated.
        PlacementError: the matrices or the text do not fit the memory.
        NumericError: a residual that is not finite.
    """
    return _JacobianFitter(model, corpus, out, settings or JacobianSettings(), observer or SilentFit()).run()


class _JacobianFitter(Fit[JacobianSettings]):
    """One fit; `fit_jacobian` is its only user."""

    kind = "jacobian"
    differentiates = True

    def __init__(
        self, model: CausalLM, corpus: Corpus, out: Path, settings: JacobianSettings, observer: FitObserver
    ) -> None:
        refuse_settings(settings)
        if model.placement.dtype != torch.float32:
            raise LensError(
                f"A Jacobian lens is fitted in float32, but the blocks compute in {model.placement.dtype_name}, whose "
                "rounding is larger than what a chain is held to; give --dtype float32."
            )
        _refuse_short(settings, corpus.fit.shape[1])
        super().__init__(model, corpus, out, settings, observer)
        self.counted = slice(settings.first_position, corpus.fit.shape[1] - 1)
        generator = torch.Generator().manual_seed(settings.seed)
        self.prompts = corpus.fit[_in_random_order(len(corpus.fit), settings.prompts, generator)]
        self.n_probes = min(settings.probe_prompts, len(self.prompts)) if settings.probe_rows else 0
        features = torch.randperm(model.d_model, generator=generator)[: settings.probe_rows]
        self.features = features.sort().values
        self.generator = generator

    def fitted(self) -> tuple[JacobianFit, tuple[str, ...], dict[str, Tensor]]:
        """The pass, the product or the rows, and what they are worth."""
        chain = self.settings.method == "chain"
        text = replace(
            self.corpus,
            fit=self.prompts if chain else self.prompts[:0],
            select=self.corpus.select[:0],
            held_out=self.corpus.held_out[: _sequences(MOST_HELD_OUT, self.corpus.fit.shape[1])],
        )
        self._check_room(text)
        stream = Stream(self.model, text, None)
        held_at = drawn(stream.positions("held_out", HELD_OUT_FROM), MOST_HELD_OUT, self.generator)
        gathered = self._pass(stream, held_at, chain)
        held = torch.stack([layer.pop("held") for layer in gathered])
        if chain:
            jacobians = _products([layer.pop("block") for layer in gathered[1:]])
            spread, exact = self._probed([layer.pop("probe_block") for layer in gathered[1:] if "probe_block" in layer])
        else:
            exact, spread = None, self._exact()
            jacobians = [mean.float() for mean in spread.means]
        worth = self._measured(held, jacobians, stream, held_at)
        fit = self._fit_record(jacobians, spread, worth, len(held_at), exact)
        tensors = jacobian_tensors(dict(enumerate(jacobians)))
        if exact is not None:
            tensors |= {PROBE_ROWS: exact.means.float(), PROBE_IDS: self.prompts[: self.n_probes]}
        return fit, _notes(fit, self.settings.prompts), tensors

    # The pass

    def _pass(self, stream: Stream, held_at: Int[Tensor, " held"], chain: bool) -> list[Gathered]:
        """Residuals of held-out positions at every layer, and of a chain every block's mean Jacobian."""
        model = self.model
        per_layer = len(held_at) + (model.d_model * (1 + bool(self.n_probes)) if chain else 0)
        checkpoint = Checkpoint(self.workspace, stream.residuals, model.n_layers, per_layer * (model.n_layers + 1))
        gathered = checkpoint.restore()
        self.observer.plan(self._plan(len(gathered)) + checkpoint.shortage)
        sums = _SumsOfBlock(self, stream) if chain else None

        def after(layer: int) -> None:
            here: Gathered = {"held": stream.rows(held_at).clone()}
            refuse_non_finite(here["held"], f"residuals of the held_out part at layer {layer}")
            if sums is not None and layer > 0:
                here |= sums.matrices()
                refuse_non_finite(here["block"], f"the mean Jacobian of block {layer - 1}")
            gathered.append(here)
            checkpoint.offer(gathered)
            self.observer.blocks(layer, 2 * model.n_layers)

        reached = len(gathered) - 1 if gathered else None
        if sums is None:
            stream.visit(after, reached=reached)
            return gathered
        with model.attention_in_hand() as recorder:
            sums.anatomist = Anatomist(model.id, recorder, model.next_norms[:-1], model.second_norms)
            stream.visit(after, reached=reached, visit=sums.visit)
        return gathered

    # Exact rows

    def _probed(self, blocks: list[Tensor]) -> tuple[Spread | None, ExactRows | None]:
        """Exact rows of a few prompts, and the chain's of the same prompts."""
        if not blocks:
            return None, None
        rows = torch.eye(self.model.d_model)[self.features]
        exact = self._rows(self.prompts[: self.n_probes], rows, 0.0, 1.0)
        return Spread.of(exact), ExactRows.of(exact, _rows_of_chain(blocks, rows))

    def _exact(self) -> Spread:
        """All rows of all prompts, a batch of prompts at a time."""
        spread = Spread.kept(self.workspace) or Spread.none(self.model.n_layers, self.model.d_model)
        rows, n = torch.eye(self.model.d_model), len(self.prompts)
        while spread.n < n:
            batch = self.prompts[spread.n : spread.n + max(1, min(MOST_PROMPTS, self._prompts_at_once))]
            found = self._rows(batch, rows, spread.n / n, (spread.n + len(batch)) / n)
            spread = spread.joined(Spread.of(found))
            spread.keep(self.workspace)
        return spread

    def _rows(
        self, prompts: Tensor, rows: Tensor, begun: float, ended: float
    ) -> Float[Tensor, "layer row sequence d_model"]:
        """Rows of every layer's Jacobian by prompt; progress goes from one share of the second half to another."""
        n = self.model.n_layers

        def told(done: int, total: int) -> None:
            share = begun + (ended - begun) * done / total
            self.observer.blocks(n + int(n * share), 2 * n)

        per_row = 4 * self.model.d_model * prompts.numel() * ROW_COPIES
        at_once = max(1, self._rows_memory // max(1, per_row))
        return self.model.pull_back(prompts, rows, self.counted, rows_at_once=at_once, progress=told)

    @property
    def _rows_memory(self) -> int:
        """Bytes that rows on their way back may take."""
        return min(ROWS_BYTES, self.host_memory() // 4)

    @property
    def _prompts_at_once(self) -> int:
        by_rows = self._rows_memory // (16 * 4 * self.model.d_model * self.corpus.fit.shape[1] * ROW_COPIES)
        return min(by_rows, self.host_memory() // (4 * self._bytes_of_rows))

    @property
    def _bytes_of_rows(self) -> int:
        """Of all rows of all layers of one prompt, in float64."""
        return 8 * self.model.n_layers * self.model.d_model**2

    # What it is worth

    def _measured(
        self, held: Float[Tensor, "layer held d_model"], jacobians: list[Tensor], stream: Stream, held_at: Tensor
    ) -> list[tuple[HeldOut, HeldOut, HeldOut]]:
        """Of every layer before the last the logit lens, this one, and this one with its weights shuffled."""
        final_norm = self.model.final_norm
        lens = JacobianLens(final_norm, tuple(jacobians)).to(self.device)
        lenses = (LogitLens(final_norm), lens, shuffled(lens, self.settings.seed))
        finals = stream.rows(held_at)
        found = measured(self.model, lenses, held[:-1], finals)
        for layer, (logit, jacobian, null) in enumerate(found):
            words = f"held-out KL {jacobian.bits:.3f} bits (logit {logit.bits:.3f}, shuffled {null.bits:.3f})"
            self.observer.layer(layer, words)
        return [(logit, jacobian, null) for logit, jacobian, null in found]

    def _fit_record(
        self,
        jacobians: list[Tensor],
        spread: Spread | None,
        worth: list[tuple[HeldOut, HeldOut, HeldOut]],
        n_held_out: int,
        exact: ExactRows | None,
    ) -> JacobianFit:
        n_prompts = len(self.prompts)
        layers = []
        for layer, (matrix, (logit, jacobian, null)) in enumerate(zip(jacobians, worth, strict=True)):
            sigma = None if spread is None else spread.relative(layer)
            layers.append(
                JacobianLayer(
                    layer=layer,
                    norm=float(matrix.double().norm()) / len(matrix) ** 0.5,
                    beta=None if exact is None else exact.bias(layer),
                    sigma=sigma,
                    standard_error=None if sigma is None else sigma / n_prompts**0.5,
                    logit_bits=logit.bits,
                    jacobian_bits=jacobian.bits,
                    logit_top1=logit.top1,
                    jacobian_top1=jacobian.top1,
                    shuffled_bits=null.bits,
                )
            )
        probe = None if exact is None else ProbeRows(rows=tuple(self.features.tolist()), n_prompts=self.n_probes)
        return JacobianFit(
            method=self.settings.method,
            target_layer=self.model.n_layers,
            seq_len=self.corpus.fit.shape[1],
            first_position=self.settings.first_position,
            positions_rule=POSITIONS_RULE,
            n_prompts=n_prompts,
            prompts_sha256=hashlib.sha256(self.prompts.numpy().astype("<i8").tobytes()).hexdigest(),
            probe=probe,
            transformers=version("transformers"),
            n_held_out=n_held_out,
            layers=tuple(layers),
        )

    # Room

    def _plan(self, n_passed: int) -> str:
        probe = f"{len(self.features)} exact rows on {self.n_probes} of them" if self.n_probes else "no exact rows"
        return (
            f"jacobian lens of {self.model.id} · {self.settings.method} · {len(self.prompts)} prompts of "
            f"{self.corpus.fit.shape[1]}, positions {self.counted.start} to {self.counted.stop - 1}"
            + (f" · {probe}" if self.settings.method == "chain" else "")
            + (f" · goes on behind layer {n_passed - 1}" if n_passed else "")
            + self.leftovers()
        )

    def _check_room(self, text: Corpus) -> None:
        """Refuse what does not fit, before anything is allocated.

        Raises:
            PlacementError: the memory does not hold text and matrices.
        """
        d, n = self.model.d_model, self.model.n_layers
        stream = stream_bytes(text.fit.numel() + text.held_out.numel(), d)
        # Blocks and their products in float32, and once more for the prompts with exact rows; sums of one block.
        if self.settings.method == "chain":
            matrices = 4 * d * d * n * (3 if self.n_probes else 2) + 8 * d * 4 * self.model.widest_activation
        else:
            matrices = (
                4 * self._bytes_of_rows
            )  # their mean, those of a prompt, and both once more where they are joined
        needed = stream + matrices + 3 * self.block_bytes() + 2 * 4 * d * MOST_HELD_OUT * (n + 1) + self._rows_memory
        if needed > self.host_memory():
            raise PlacementError(
                f"Fitting a Jacobian lens needs {format_bytes(needed)} (the text {format_bytes(stream)}, matrices "
                f"{format_bytes(matrices)}), but {format_bytes(self.host_memory())} can be had; give fewer --prompts, "
                "or raise --memory."
            )


class _SumsOfBlock:
    """The sums of the block that the text is passing: of prompts with exact rows, and of the others."""

    anatomist: Anatomist

    def __init__(self, fitter: _JacobianFitter, stream: Stream) -> None:
        self._fitter, self._stream = fitter, stream
        self._begin()

    def _begin(self) -> None:
        self._gatherer = BlockGatherer(self._fitter.counted)
        self._probes, self._others = BlockSums(), BlockSums()

    def visit(self, block: BlockInHand) -> None:
        """Gather what a batch says of a block."""
        first, n_probes, n_prompts = (
            block.batch * self._stream.per_batch,
            self._fitter.n_probes,
            len(self._fitter.prompts),
        )
        place = torch.arange(first, first + self._stream.per_batch)
        kinds: list[tuple[Bool[Tensor, " sequence"], BlockSums]] = [
            (place < n_probes, self._probes),
            ((place >= n_probes) & (place < n_prompts), self._others),
        ]
        if not bool((place < n_prompts).any()):
            return
        stream = self._stream.residuals[block.batch].to(self._fitter.device, copy=True)
        anatomy = self.anatomist.take_apart(block, stream)
        for chosen, sums in kinds:
            if bool(chosen.any()):
                sums.add(self._gatherer.gather(anatomy, chosen.to(self._fitter.device)))

    def matrices(self) -> Gathered:
        """The block's mean Jacobian, over all prompts and over those with exact rows; the next block's sums begin."""
        shape, found = self._gatherer.shape, Gathered()
        if shape is None:
            raise AssertionError("a block was passed without any prompt")
        if self._probes.n:
            found["probe_block"] = self._probes.matrix(shape).float().cpu()
        self._others.add(self._probes)
        found["block"] = self._others.matrix(shape).float().cpu()
        self._begin()
        return found


def _products(blocks: list[Float[Tensor, "d_model d_model"]]) -> list[Float[Tensor, "d_model d_model"]]:
    """From every block's mean Jacobian those of layers 0 to n_layers - 1 to the last block's output, in float32."""
    found: list[Tensor] = []
    product = torch.eye(len(blocks[0]), dtype=torch.float64)
    while blocks:
        product = product @ blocks.pop().double()
        found.append(product.float())
    return found[::-1]


def _rows_of_chain(
    blocks: list[Float[Tensor, "d_model d_model"]], rows: Float[Tensor, "row d_model"]
) -> Float[Tensor, "layer row d_model"]:
    """Some rows of the same, in float64."""
    found, product = [], rows.double()
    for block in reversed(blocks):
        product = product @ block.double()
        found.append(product)
    return torch.stack(found[::-1])


def _in_random_order(n: int, most: int, generator: torch.Generator) -> Int[Tensor, " some"]:
    """So many places of a list, or all; the first of them are as random as the rest."""
    return torch.randperm(n, generator=generator)[:most]


def _sequences(n_positions: int, seq_len: int) -> int:
    """How many sequences give so many positions, a few from each."""
    return max(1, -(-4 * n_positions // seq_len))


def refuse_settings(settings: JacobianSettings) -> None:
    """Refuse numbers that cannot be, whatever the text.

    Raises:
        LensError: no such method, or a number below what makes sense.
    """
    if settings.method not in get_args(JacobianMethod):
        raise LensError(f"There is no method '{settings.method}'; choose from {', '.join(get_args(JacobianMethod))}.")
    for name, least in (("prompts", 1), ("first_position", 0), ("probe_rows", 0), ("probe_prompts", 2)):
        value = getattr(settings, name)
        if value < least:
            raise LensError(f"{name} should be at least {least}, but it is {value}.")


def _refuse_short(settings: JacobianSettings, seq_len: int) -> None:
    if settings.first_position > seq_len - 2:
        raise LensError(
            f"Sequences of {seq_len} positions have none to count from position {settings.first_position} on, the last "
            "being left out; give a larger --seq-len, or a smaller --first-position."
        )


def _notes(fit: JacobianFit, asked: int) -> tuple[str, ...]:
    notes = [
        "It shows what a state disposes the model to say from here on, and is no read-out of the next token: its size "
        "means nothing, and milestones are not taken from it."
    ]
    if fit.n_prompts is not None and fit.n_prompts < asked:
        notes.append(f"The text gave {fit.n_prompts} prompts where {asked} were asked for.")
    approximate = [str(layer.layer) for layer in fit.layers if layer.is_approximate]
    if approximate:
        notes.append(
            f"At layers {', '.join(approximate)} exact rows show the chain to be more than {BIASED:.0%} off: those are "
            "approximate, and nothing should be claimed by them."
        )
    loose = [str(layer.layer) for layer in fit.layers if (layer.standard_error or 0.0) > LOOSE]
    if loose:
        notes.append(
            f"At layers {', '.join(loose)} the standard error over prompts is above {LOOSE:.0%}: other prompts would "
            "give others, and more of them better ones."
        )
    no_better = [
        str(layer.layer)
        for layer in fit.layers
        if layer.jacobian_bits is not None
        and layer.shuffled_bits is not None
        and layer.jacobian_bits >= layer.shuffled_bits
    ]
    if no_better:
        notes.append(
            f"At layers {', '.join(no_better)} it is no nearer to the model on held-out text than the same lens with "
            "its weights shuffled: as a read-out of the next token its matrices say nothing there."
        )
    if fit.method == "chain" and fit.probe is None:
        notes.append("No exact rows were computed, so nobody knows how far the chain is off.")
    unknown = [str(layer.layer) for layer in fit.layers if layer.sigma is None]
    if unknown and (fit.probe is not None or fit.method == "exact"):
        notes.append(
            f"At layers {', '.join(unknown)} prompts differ so much that {_few(fit)} do not tell their mean from the "
            "spread between them; no spread is given there."
        )
    return tuple(notes)


def _few(fit: JacobianFit) -> str:
    return f"the {fit.n_prompts if fit.probe is None else fit.probe.n_prompts} with exact rows"
