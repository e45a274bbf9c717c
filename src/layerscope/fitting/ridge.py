"""Fit a ridge lens: for each layer the regression of the final residual on its own, and nothing after it."""

import math
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from layerscope.errors import NumericError
from layerscope.fitting.affine import AffineFit
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.layer import closed_form, identity_of
from layerscope.fitting.objective import Problem
from layerscope.fitting.options import RidgeSettings
from layerscope.fitting.stream import Stream
from layerscope.lens_record import RidgeFit, RidgeLayer
from layerscope.lenses.lens_folder import FittedLens, ridge_tensors
from layerscope.lenses.tuned_lens import Translator
from layerscope.model.causal_lm import CausalLM
from layerscope.progress import FitObserver, SilentFit

SELECT, HELD_OUT = 128, 512
"""Positions to choose by and to measure at where the vocabulary is large: visits of it at every layer should not cost
more than the pass over the text."""


def fit_ridge(
    model: CausalLM,
    corpus: Corpus,
    out: Path,
    settings: RidgeSettings | None = None,
    *,
    observer: FitObserver | None = None,
) -> FittedLens:
    """Fit a ridge lens and write it into a folder.

    Args:
        model: the model; all text goes through it once, block by block, or twice where memory does not hold the
            residuals of every layer.
        corpus: text in three parts: to regress on, to choose each layer's penalty by, to measure on.
        out: folder of the lens, which must not be there yet.
        settings: how; the defaults where not given.
        observer: is told how it goes.

    Raises:
        LensError: `out` is already there; no such placement; sequences that are too short.
        PlacementError: neither memory nor disk has room.
        NumericError: a residual that is not finite, or a regression that is not.
    """
    return _RidgeFitter(model, corpus, out, settings or RidgeSettings(), observer or SilentFit()).run()


class _RidgeFitter(AffineFit[RidgeSettings]):
    """One fit; `fit_ridge` is its only user."""

    kind = "ridge"

    def fitted(self) -> tuple[RidgeFit, tuple[str, ...], dict[str, Tensor]]:
        """The pass, and a regression at every layer."""
        translators: list[Translator] = []
        layers: list[RidgeLayer] = []
        n_layers = self.model.n_layers
        with self.layers() as (stream, finals, samples):

            def after(layer: int) -> None:
                translator, fit = fit_ridge_layer(layer, self.problem(layer, stream, finals, samples))
                translators.append(translator.to("cpu"))
                layers.append(fit)
                words = f"held-out KL {fit.ridge_bits:.3f} bits (logit {fit.logit_bits:.3f})"
                self.observer.layer(layer, words)
                self.observer.blocks(n_layers + layer + 1, 2 * n_layers)

            stream.visit_again(after)
        fit = RidgeFit.of(
            self.settings,
            n_moments=len(samples.fit),
            n_select=len(samples.select),
            n_held_out=len(samples.held_out),
            layers=tuple(layers),
        )
        worse = [str(layer.layer) for layer in layers if layer.ridge_bits > layer.logit_bits]
        notes = [f"At layers {', '.join(worse)} the lens is further from the model than the logit lens."]
        return fit, tuple(notes if worse else ()), ridge_tensors(translators)

    @property
    def n_select(self) -> int:
        """Positions to choose by, at most."""
        return SELECT if self.sampling else super().n_select

    @property
    def n_held_out(self) -> int:
        """Positions to measure at, at most."""
        return HELD_OUT if self.sampling else super().n_held_out

    @property
    def lens_bytes(self) -> int:
        """Of the maps of all layers."""
        return 4 * self.model.n_layers * self.model.d_model**2

    def plan(self, stream: Stream, folder: Path | None) -> str:
        """One line on what will be done."""
        return self.planned(f"ridge lens of {self.model.id}", stream, folder)


def fit_ridge_layer(layer: int, problem: Problem) -> tuple[Translator, RidgeLayer]:
    """The regression of one layer, and what it is worth.

    Raises:
        NumericError: none of the penalties gives a finite divergence.
    """
    penalty, closed = closed_form(problem)
    translator = replace(closed.translator, mean=problem.regression.mean_x.float())
    held_out = problem.samples.held_out
    if not math.isfinite(closed.bits):
        raise NumericError(
            f"The regression at layer {layer} should give a finite divergence from the model, but it is {closed.bits} "
            "bits at every penalty; leave out the text that the residuals come from."
        )
    return translator, RidgeLayer(
        layer=layer,
        ridge=penalty,
        map_norm=translator.map_norm,
        bias_norm=float(translator.bias.double().norm()),
        logit_bits=problem.bits(identity_of(problem), held_out),
        ridge_bits=problem.bits(translator, held_out),
    )
