"""A chain corrected by drawn rows: unbiased, with the error that the formula says, in numbers and in fits.

Means over draws are held to five of their own standard errors.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fit_texts import corpus_for, write_text
from jacobian_reference import TOLERANCE, jacobians, off
from layerscope import fit_jacobian, probe
from layerscope.errors import LensError
from layerscope.fitting.control_variate import ControlVariate
from layerscope.fitting.exact_rows import Spread
from layerscope.fitting.options import JacobianSettings
from layerscope.lenses.lens_folder import FittedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.progress import SilentFit
from layerscope.report.sentences.verdict import VerdictText
from layerscope.terminal.lens_tables import lens_table
from tiny_models import TINY

SEQ_LEN = 24
COUNTED = slice(4, SEQ_LEN - 1)
N_PROMPTS = 8
ROWS = 24
CHAIN = JacobianSettings(prompts=N_PROMPTS, first_position=4, probe_rows=48, probe_prompts=4)
DRAWS = 400


def _matrix(lens: FittedLens, layer: int) -> Tensor:
    return lens.tensors[f"layers.{layer:03d}.jacobian"]


class _Setting:
    """A tiny model of width 48, a text, and the exact Jacobian of every prompt by whole graphs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = CausalLM.open(TINY["gemma3"].build(folder / "model"), device="cpu")
        self.corpus = corpus_for(self.model, write_text(folder / "corpus.txt"), SEQ_LEN)
        order = torch.randperm(len(self.corpus.fit), generator=torch.Generator().manual_seed(CHAIN.seed))
        own = TINY["gemma3"].resident()
        each = [jacobians(own, self.corpus.fit[place][None], COUNTED) for place in order[:N_PROMPTS]]
        self.of_prompt = torch.stack(each).double()  # [prompt, layer, d_out, d_in]

    def fit(self, name: str, settings: JacobianSettings, observer: SilentFit | None = None) -> FittedLens:
        return fit_jacobian(self.model, self.corpus, self.folder / name, settings, observer=observer)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> _Setting:
    return _Setting(tmp_path_factory.mktemp("corrected"))


@pytest.fixture(scope="module")
def chain(setting: _Setting) -> FittedLens:
    return setting.fit("chain", CHAIN)


@pytest.fixture(scope="module")
def corrected(setting: _Setting) -> FittedLens:
    return setting.fit("corrected", replace(CHAIN, correct=ROWS))


def test_its_mean_over_draws_is_the_mean_of_prompts_and_its_error_that_of_the_formula():
    """Two of six rows, three prompts: `(6 / 2 - 1) mean D_p^2 / 3`, D_p the distance of a prompt from the base."""
    generator = torch.Generator().manual_seed(3)
    exact, base = torch.randn(3, 6, 6, generator=generator).double(), torch.randn(6, 6, generator=generator)
    apart = exact - base
    estimates, errors = [], []
    for seed in range(DRAWS):
        variate = ControlVariate.drawn([base], 3, 2, seed)
        parts = [Spread.of(variate.correction(p, exact[p][variate.features[p]][None])) for p in range(3)]
        spread = parts[0].joined(parts[1]).joined(parts[2])
        estimates.append(variate.corrected(spread)[0].double())
        error = variate.error(spread, 0)
        assert error is not None
        errors.append(error)
    found = torch.stack(estimates)
    squared = (found - exact.mean(0)).square().sum((1, 2))
    wanted = float(2 * apart.square().sum((1, 2)).mean() / 3)
    assert float(squared.mean()) == pytest.approx(wanted, abs=5 * float(squared.std()) / math.sqrt(DRAWS))
    assert float((found.mean(0) - exact.mean(0)).norm()) < 5 * math.sqrt(wanted / DRAWS)
    # Drawn prompts would differ besides: the error that it says of itself is the formula's with that spread.
    spread_of_prompts = float((exact - exact.mean(0)).square().sum((1, 2)).sum() / 2 / 3)
    said = math.sqrt((wanted + spread_of_prompts) / float(exact.mean(0).square().sum()))
    assert sum(errors) / DRAWS == pytest.approx(min(1.0, said), rel=0.15)


def test_all_rows_of_every_prompt_give_the_exact_mean_whatever_the_base():
    exact = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(4)).double()
    variate = ControlVariate.drawn([torch.eye(5)], 2, 5, 0)
    assert variate.features.tolist() == [list(range(5))] * 2
    spread = Spread.of(variate.correction(0, exact[:1])).joined(Spread.of(variate.correction(1, exact[1:])))
    torch.testing.assert_close(variate.corrected(spread)[0], exact.mean(0).float())


def test_a_corrected_chain_is_nearer_than_the_chain_and_than_drawn_rows_alone(
    setting: _Setting, chain: FittedLens, corrected: FittedLens
):
    """At layer 0, where the chain is biased; half of all rows, drawn again here, of the same prompts."""
    exact, d_model = setting.of_prompt.mean(0), 48
    drawn = ControlVariate.drawn([torch.zeros(d_model, d_model)], N_PROMPTS, ROWS, CHAIN.seed)
    parts = [drawn.correction(p, setting.of_prompt[p, :1][:, drawn.features[p]]) for p in range(N_PROMPTS)]
    alone = torch.cat(parts, 2).mean(2)[0]
    by_correction = off(_matrix(corrected, 0), exact[0])
    assert by_correction < off(_matrix(chain, 0), exact[0])
    assert by_correction < off(alone, exact[0]) / 2
    for layer in range(setting.model.n_layers):
        apart = (setting.of_prompt[:, layer] - _matrix(chain, layer).double()).square().sum((1, 2)).mean()
        expected = math.sqrt(float((d_model / ROWS - 1) * apart / N_PROMPTS)) / float(exact[layer].norm())
        assert off(_matrix(corrected, layer), exact[layer]) == pytest.approx(expected, rel=0.25)  # of one draw


@pytest.mark.slow  # fits once more
def test_with_all_rows_it_is_the_exact_fit(setting: _Setting):
    lens = setting.fit("all", replace(CHAIN, probe_rows=0, correct=48))
    for layer, matrix in enumerate(setting.of_prompt.mean(0)):
        assert off(_matrix(lens, layer), matrix) < TOLERANCE


def test_it_says_what_it_is_and_how_noisy(setting: _Setting, chain: FittedLens, corrected: FittedLens):
    fit, plain = corrected.record.jacobian, chain.record.jacobian
    assert fit is not None and plain is not None and fit.correction is not None
    assert (fit.method, fit.correction.rows, fit.correction.n_prompts) == ("chain", ROWS, N_PROMPTS)
    assert plain.correction is None
    for layer, before in zip(fit.layers, plain.layers, strict=True):
        assert layer.beta is None and layer.base_beta == before.beta
        assert layer.corrected_error is not None and layer.half_difference is not None
        # Halves are apart by twice the error, here of one division of eight prompts.
        assert layer.half_difference == pytest.approx(2 * layer.corrected_error, rel=0.4)
        assert layer.is_approximate == (layer.corrected_error > 0.1)
    rough = [str(layer.layer) for layer in fit.layers if layer.is_approximate]
    said = f"At layers {', '.join(rough)} the standard error of the corrected chain is above 10%"
    assert rough and any(said in note for note in corrected.record.notes)
    assert any("bring in more noise than the bias" in note for note in corrected.record.notes)
    assert str(next(iter(lens_table(corrected.record)))).endswith("chain, corrected by 24 rows a prompt")


def test_a_run_has_its_noise_and_calls_noisy_layers_approximate(setting: _Setting, corrected: FittedLens):
    fit = corrected.record.jacobian
    assert fit is not None
    run = probe(setting.folder / "model", suite="berlin", positions="last", lens_dir=corrected.folder)
    (said,) = [lens.jacobian for lens in run.record.measured.fitted_lenses if lens.jacobian is not None]
    assert said.n_corrected_rows == ROWS and said.corrected_errors == (*(x.corrected_error for x in fit.layers), None)
    assert set(said.betas) == {None}
    assert said.approximate == tuple(layer.layer for layer in fit.layers if layer.is_approximate)
    shown = " ".join(line.text for line in VerdictText(run.verdict, run.record).circumstances())
    assert "the standard error of its corrected chain is above 10% there" in shown


@pytest.mark.slow  # fits once more
def test_one_that_was_killed_ends_with_the_same_lens(setting: _Setting, corrected: FittedLens):
    class Killed(SilentFit):
        def blocks(self, done: int, total: int) -> None:
            if done == total:  # the last rows have come back, and are not kept yet
                raise KeyboardInterrupt

    settings = replace(CHAIN, correct=ROWS)
    with pytest.raises(KeyboardInterrupt):
        setting.fit("killed", settings, Killed())
    assert list(setting.folder.glob(".killed.fit-*/rows-000004.safetensors"))
    assert setting.fit("killed", settings).record.weights_sha256 == corrected.record.weights_sha256


@pytest.mark.slow  # fits once more
def test_drawing_ends_once_the_estimate_has_settled(setting: _Setting):
    lens = setting.fit("early", replace(CHAIN, prompts=12, probe_rows=0, correct=ROWS, stop_at=0.4, stop_from=3))
    fit = lens.record.jacobian
    assert fit is not None and fit.correction is not None
    assert (fit.n_prompts, fit.correction.n_prompts) == (12, 8)
    assert any("Drawing of exact rows ended after 8 of 12 prompts" in note for note in lens.record.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(CHAIN, correct=49), "correct should be at most d_model = 48"),
        (replace(CHAIN, correct=-1), "correct should be at least 0"),
        (replace(CHAIN, correct=2, prompts=1), "corrected on two prompts at least"),
        (replace(CHAIN, correct=2, method="exact"), "An exact fit has no bias to correct"),
    ],
)
def test_what_cannot_be_is_refused(setting: _Setting, settings: JacobianSettings, message: str):
    with pytest.raises(LensError, match=message):
        setting.fit("refused", settings)
