"""Whole prism fits: held-out figures as an independent computation finds them, and the fit's own path to the decode.

Tolerances. Whitening divides by standard deviations down to a hundredth, so float32's 1e-6 becomes 1e-3 of a row
after it and 1e-2 of a logit, a sum of sixteen of those.
"""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fit_texts import corpus_for, write_text
from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, NumericError, PlacementError
from layerscope.fitting import checkpoint
from layerscope.fitting.prism import PrismSettings, fit_prism
from layerscope.fitting.prism_map import Standardiser, fit_procrustes_to_final
from layerscope.lens_record import LensRecord
from layerscope.lenses.lens_folder import prism_lens, read_fitted_lens
from layerscope.lenses.logit_lens import RawLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.model.causal_lm import CausalLM
from layerscope.progress import SilentFit
from properties import slow

FEW = PrismSettings(k=10, vectors=2000)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(scope="module")
def bundled() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


def test_a_planted_rotation_comes_back_through_the_lens_itself():
    generator = torch.Generator().manual_seed(7)
    d_model, n = 24, 4000
    rotation, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))
    stream = torch.randn(n, d_model, generator=generator) * torch.linspace(0.2, 5.0, d_model) + 3.0
    white = (stream - stream.mean(0)) / stream.std(0, correction=0)
    finals = white @ rotation.T
    standardiser = Standardiser()
    standardiser.update(stream)
    found = fit_procrustes_to_final(stream, finals, standardiser, k=d_model)
    lens = PrismLens(RawLens(), found.mean, found.variance, found.eps, found.rotation)
    torch.testing.assert_close(lens(stream, 3), finals, rtol=0, atol=1e-3)
    head = torch.randn(50, d_model, generator=generator)
    torch.testing.assert_close(lens(stream, 3) @ head.T, finals @ head.T, rtol=0, atol=1e-2)
    assert (white @ rotation - finals).abs().max() > 1  # the transposed rotation is another map


@pytest.mark.parametrize("method", ["procrustes_to_final", "by_rank"])
def test_held_out_figures_are_those_of_transformers_own_logits(method: str, bundled: CausalLM, text: Path, tmp_path):
    corpus = corpus_for(bundled, text)
    settings = PrismSettings(method=method, k=20, vectors=8000)  # type: ignore[arg-type]
    fitted_lens = fit_prism(bundled, corpus, tmp_path / "lens", settings)
    lens = prism_lens(read_fitted_lens(tmp_path / "lens"), bundled_logit_lens(bundled))
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.inference_mode():
        said = own(corpus.held_out, output_hidden_states=True)
    log_p = said.logits[:, 1:-1].double().log_softmax(-1)
    fit = fitted_lens.record.prism
    assert fit is not None
    assert len(fit.held_out_bits) == 13
    assert fit.logit_bits[-1] < 1e-4  # the last layer is the model
    weight = bundled.unembedding.weight.tensor.float()
    for layer in (0, 5, 11):
        rows = lens(said.hidden_states[layer], layer)[:, 1:-1]
        log_q = (rows @ weight.T).double().log_softmax(-1)
        expected = float((log_p.exp() * (log_p - log_q)).sum(-1).mean() / torch.log(torch.tensor(2.0)))
        assert fit.held_out_bits[layer] == pytest.approx(expected, rel=1e-3)
    assert fit.rows == (0, 3, 6, 9)
    assert fit.layers == ("embed", "2", "5", "8")
    assert fit.vectors == 8000
    assert fit.orthogonality_error < 1e-3


def bundled_logit_lens(model: CausalLM):
    from layerscope.lenses.logit_lens import LogitLens

    return LogitLens(model.final_norm)


def test_two_fits_of_one_text_are_equal(bundled: CausalLM, text: Path, tmp_path: Path):
    corpus, settings = corpus_for(bundled, text), PrismSettings(k=10, vectors=2000)
    hashes = {fit_prism(bundled, corpus, tmp_path / name, settings).record.weights_sha256 for name in ("one", "two")}
    assert len(hashes) == 1


class Killed(SilentFit):
    """Stands for a power cut once a layer is reached."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reached: list[int] = []

    def blocks(self, done: int, total: int) -> None:
        self.reached.append(done)
        if done == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(bundled: CausalLM, text: Path, tmp_path_factory: pytest.TempPathFactory) -> LensRecord:
    return fit_prism(bundled, corpus_for(bundled, text), tmp_path_factory.mktemp("whole") / "lens", FEW).record


@pytest.mark.parametrize(
    ("method", "at"),
    [
        ("procrustes_to_final", 5),
        slow("by_rank", 0),
        ("by_rank", 12),
        slow("procrustes_to_final", 0),
        slow("procrustes_to_final", 12),
        slow("by_rank", 5),
    ],
)
def test_an_interrupted_fit_goes_on_behind_the_layer_reached_to_the_same_lens(
    at: int, method: str, bundled: CausalLM, text: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "SHARE", 0)  # every layer is kept, however little time it took
    corpus, settings = corpus_for(bundled, text), replace(FEW, method=method)
    with pytest.raises(KeyboardInterrupt):
        fit_prism(bundled, corpus, tmp_path / "lens", settings, observer=Killed(at))
    assert not (tmp_path / "lens").exists()
    again = Killed(-1)
    found = fit_prism(bundled, corpus, tmp_path / "lens", settings, observer=again).record
    assert again.reached == list(range(at + 1, 13))
    expected = fit_prism(bundled, corpus, tmp_path / "whole", settings).record
    assert found.weights_sha256 == expected.weights_sha256
    assert found.prism == expected.prism
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lens", "whole"]


KILLED = """
import os, signal, sys
from pathlib import Path

import torch

sys.path.insert(0, {tests!r})
from fit_texts import corpus_for
from layerscope.fitting import checkpoint
from layerscope.fitting.prism import PrismSettings, fit_prism
from layerscope.bundled import BUNDLED
from layerscope.model.causal_lm import CausalLM
from layerscope.progress import SilentFit
from properties import slow

class Killer(SilentFit):
    def blocks(self, done, total):
        if done == 7:
            os.kill(os.getpid(), signal.SIGKILL)

checkpoint.SHARE = 0
torch.set_num_threads({threads})
model = CausalLM.open(BUNDLED, device="cpu")
fit_prism(model, corpus_for(model, Path({text!r})), Path({out!r}), PrismSettings(k=10, vectors=2000), observer=Killer())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_process_that_is_killed_leaves_what_another_goes_on_with(
    undisturbed: LensRecord, bundled: CausalLM, text: Path, tmp_path: Path
):
    words = {"tests": str(Path(__file__).parent), "threads": torch.get_num_threads(), "text": str(text)}
    script = KILLED.format(**words, out=str(tmp_path / "lens"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = Killed(-1)
    found = fit_prism(bundled, corpus_for(bundled, text), tmp_path / "lens", FEW, observer=again).record
    assert again.reached == list(range(8, 13))
    assert found.weights_sha256 == undisturbed.weights_sha256


def test_a_residual_that_is_not_finite_is_named(bundled: CausalLM, text: Path, tmp_path: Path, monkeypatch):
    real = CausalLM.forward_blockwise

    def broken(self, token_ids, residuals, after, **options):
        def spoiled(layer: int) -> None:
            if layer == 3:
                residuals[..., 7] = torch.inf
            after(layer)

        real(self, token_ids, residuals, spoiled, **options)

    monkeypatch.setattr(CausalLM, "forward_blockwise", broken)
    with pytest.raises(NumericError, match="residuals of the held_out part at layer 3 should be finite"):
        fit_prism(bundled, corpus_for(bundled, text), tmp_path / "lens", FEW)


def test_a_fit_that_cannot_end_well_leaves_nothing(bundled: CausalLM, text: Path, tmp_path: Path):
    with pytest.raises(LensError, match="distinct"):
        fit_prism(bundled, corpus_for(bundled, text), tmp_path / "lens", PrismSettings(vectors=8))
    assert list(tmp_path.iterdir()) == []


def test_too_few_vectors_reduce_k_and_say_so(bundled: CausalLM, text: Path, tmp_path: Path):
    fit = fit_prism(bundled, corpus_for(bundled, text), tmp_path / "lens", PrismSettings(k=96, vectors=400))
    assert fit.record.prism is not None
    assert fit.record.prism.k < 96 == fit.record.prism.k_asked
    assert fit.record.prism.k <= fit.record.prism.distinct_vectors // 20
    assert any("k" in note for note in fit.record.notes)


def test_what_cannot_be_is_refused(bundled: CausalLM, text: Path, tmp_path: Path):
    corpus = corpus_for(bundled, text)
    with pytest.raises(LensError, match="between 1 and d_model = 96, but it is 97"):
        fit_prism(bundled, corpus, tmp_path / "lens", PrismSettings(k=97))
    (tmp_path / "there").mkdir()
    with pytest.raises(LensError, match="already there"):
        fit_prism(bundled, corpus, tmp_path / "there")
    with pytest.raises(PlacementError, match="raise --memory"):
        fit_prism(CausalLM.open(BUNDLED, device="cpu", memory="100KiB"), corpus, tmp_path / "lens")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
