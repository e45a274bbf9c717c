"""Ridge lenses: regression and worth by an independent computation, from a fit and from a probe that calibrates.

Tolerances. Residuals of twelve blocks in float32 are 1e-6 off relative to their size; regressions at the penalties
that are tried amplify that by at most the root of the condition number that the penalty leaves, 1e3. Bits are means
over hundreds of positions: 1e-3 relative.
"""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from fit_texts import corpus_for, write_text
from layerscope import Run, fit_ridge, probe, read_fitted_lens
from layerscope.bundled import BUNDLED
from layerscope.errors import CorpusError, LensError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.moments import RIDGES, Moments
from layerscope.lenses.lens_folder import FittedLens, ridge_lens
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.fit_estimate import in_words, passes, regression_work
from layerscope.progress import Silent
from layerscope.published.layout import Dialect
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.evaluation import evaluation
from layerscope.report.synthesis import synthesis
from rounding import of_residual

LAYER = 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def corpus(model: CausalLM, text: Path) -> Corpus:
    return corpus_for(model, text)


@pytest.fixture(scope="module")
def fitted(model: CausalLM, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> FittedLens:
    return fit_ridge(model, corpus, tmp_path_factory.mktemp("lenses") / "ridge")


@pytest.fixture(scope="module")
def calibrated(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return probe(suite="berlin", positions="last", lenses="logit", calibrate=text, tokens="6k")


def test_a_layers_map_is_the_ridge_regression_of_what_is_missing_to_the_final_residual(
    fitted: FittedLens, corpus: Corpus, model: CausalLM
):
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.inference_mode():
        states: list[torch.Tensor] = []
        hook = own.model.layers[-1].register_forward_hook(lambda module, args, out: states.append(out))
        hidden = own(corpus.fit, output_hidden_states=True).hidden_states[LAYER]
        hook.remove()
    x = hidden[:, 1:-1].flatten(0, 1).double().numpy()
    y = states[0][:, 1:-1].flatten(0, 1).double().numpy() - x
    xc, yc = x - x.mean(0), y - y.mean(0)
    covariance = xc.T @ xc / len(x)
    fit = fitted.record.ridge
    assert fit is not None and fit.n_moments == len(x)
    penalty = fit.layers[LAYER].ridge * np.median(np.linalg.eigvalsh(covariance))
    expected = np.linalg.solve(covariance + penalty * np.eye(len(covariance)), xc.T @ yc / len(x))
    lens = ridge_lens(fitted, model.final_norm)
    translate = lens.translators[LAYER]
    assert translate.full is not None
    moved = x[:50] + (x[:50] - x.mean(0)) @ expected + y.mean(0)
    found = translate(torch.tensor(x[:50]).float())
    np.testing.assert_allclose(found, moved, rtol=1e-3, atol=1e-3 * np.abs(moved).max())
    assert lens.source(LAYER) == "ridge (full rank) before model.norm"


def test_its_held_out_bits_are_those_of_transformers_own_logits(fitted: FittedLens, corpus: Corpus, model: CausalLM):
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.inference_mode():
        said = own(corpus.held_out, output_hidden_states=True)
        rows = ridge_lens(fitted, model.final_norm)(said.hidden_states[LAYER], LAYER)
        log_q = own.lm_head(rows).double().log_softmax(-1)[:, 1:-1]
    log_p = said.logits.double().log_softmax(-1)[:, 1:-1]
    bits = float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) / np.log(2)
    fit = fitted.record.ridge
    assert fit is not None
    assert fit.layers[LAYER].ridge_bits == pytest.approx(bits, rel=1e-3)
    assert fit.layers[0].ridge_bits < fit.layers[0].logit_bits
    assert fitted.record.corpus == corpus.record


def test_a_lens_that_was_written_is_read_back_and_another_kind_is_told(fitted: FittedLens, model: CausalLM):
    again = read_fitted_lens(fitted.folder)
    assert again.record == fitted.record
    for name, tensor in fitted.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    from layerscope.lenses.lens_folder import tuned_lens

    with pytest.raises(LensError, match="A tuned lens was expected, but the record is of a ridge lens"):
        tuned_lens(again, model.final_norm)


def test_a_probe_that_calibrates_reads_through_the_lens_and_records_what_it_was_fitted_on(calibrated: Run, text: Path):
    record = calibrated.record
    assert record.protocol.lenses == ("logit", "ridge")
    lens = next(lens for lens in record.measured.fitted_lenses if lens.kind == "ridge")
    assert (lens.kind, lens.status, lens.path) == ("ridge", "loaded", None)
    assert lens.corpus is not None and lens.corpus.sources[0].name == text.name
    assert lens.corpus.seq_len == 128
    assert sum(part.n_tokens for part in lens.corpus.splits.values()) == 6000
    assert lens.ridge is not None and lens.ridge.held_out is not None
    assert len(lens.ridge.penalties) == record.model.n_layers + 1
    assert record.timings is not None and record.timings.calibration_s is not None


def test_reports_say_of_a_ridge_lens_that_its_figures_stand_in_the_verdict(calibrated: Run, tmp_path: Path):
    assert "ridge" in calibrated.verdict.diagnostics.fitted_lenses
    calibrated.save(tmp_path / "run", published=Dialect.EXTENDED)
    evidence = Evidence.of(tmp_path / "run")
    assert "The run was read through the lens ridge too." in markdown(evaluation(evidence))
    assert "A ridge lens was read too for " in markdown(synthesis([evidence]))


def test_a_calibration_leaves_the_rows_of_other_lenses_as_they_are(calibrated: Run):
    """Prompts go through the model alike in both, so rows may differ in the order of sums alone."""
    plain = probe(suite="berlin", positions="last", lenses="logit").rows
    beside = calibrated.rows.filter(pl.col("lens") == "logit")
    assert len(plain) == len(beside) > 0
    numbers = [name for name, dtype in plain.schema.items() if dtype.is_float()]
    others = [name for name in plain.columns if name not in numbers and not plain.schema[name].is_nested()]
    assert plain.select(others).equals(beside.select(others))
    bound = of_residual(calibrated.record.model.n_layers, calibrated.record.model.d_model)
    for name in numbers:
        values = plain[name].to_numpy(), beside[name].to_numpy()
        np.testing.assert_allclose(*values, rtol=bound, atol=bound, err_msg=name)


def test_at_the_last_layer_a_calibrated_probe_is_the_model_itself(calibrated: Run):
    n = calibrated.record.model.n_layers
    last = calibrated.rows.filter(pl.col("layer") == n)
    by_lens = [last.filter(pl.col("lens") == lens)["entropy_bits"].to_list() for lens in ("logit", "ridge")]
    assert by_lens[0] == by_lens[1]


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "5 s"), (41, "40 s"), (80, "1 min"), (700, "12 min"), (5600, "2 h"), (40_000, "11 h")]
)
def test_a_time_is_said_to_two_digits_at_most(seconds: float, words: str):
    assert in_words(float(seconds)) == words


def test_a_layers_regressions_take_about_the_time_that_is_said_of_them():
    """Within ten times either way: threads share a decomposition less well than a product, and other work disturbs."""
    d_model = 512
    moments = Moments(d_model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    moments.update(torch.randn(2 * d_model, d_model, generator=draw), torch.randn(2 * d_model, d_model, generator=draw))
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        regression = moments.regression()
        for penalty in RIDGES:
            regression.ridge(penalty)
        taken.append(time.perf_counter() - start)
    said = regression_work(d_model).seconds(torch.device("cpu"))
    assert said / 10 < min(taken) < 10 * said


def test_a_second_pass_is_counted_where_memory_does_not_hold_every_layer(model: CausalLM):
    """Fourteen times 20,000 residuals of 96 numbers are 102 MiB."""
    assert passes(model, 20_000) == 1
    assert passes(CausalLM.open(BUNDLED, device="cpu", memory="90MiB"), 20_000) == 2


class Lines(Silent):
    """Keeps what a probe plans aloud."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def plan(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("asked", "error"),
    [({"lens_dir": "nowhere"}, "no such folder"), ({"lenses": "logit,prism"}, "layerscope fit prism")],
)
def test_a_lens_that_cannot_be_read_is_refused_before_the_text_goes_through_the_model(
    asked: dict[str, str], error: str, tiny, text: Path
):
    observer = Lines()
    with pytest.raises(LensError, match=error):
        probe(tiny("qwen3"), suite="berlin", calibrate=text, tokens="6k", observer=observer, **asked)
    assert observer.lines == []


def test_a_stored_ridge_lens_that_a_calibration_stands_for_is_told_of(fitted: FittedLens, text: Path):
    observer = Lines()
    asked = {"lens_dir": fitted.folder, "lenses": "logit", "calibrate": text, "tokens": "6k"}
    probe(suite="berlin", limit=1, positions="last", observer=observer, **asked)
    assert observer.lines.count("a ridge lens in 'ridge' is not read: the one that --calibrate fits stands for it") == 1


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"tokens": "5k"}, "no text was given; name one with --calibrate"),
        ({"tokens": "abc"}, "no text was given; name one with --calibrate"),
        ({"tokens": "abc", "calibrate": "nothing.txt"}, "'abc' is no number of tokens"),
    ],
)
def test_tokens_that_say_nothing_are_refused_before_a_model_is_looked_for(asked: dict[str, str], error: str):
    with pytest.raises(CorpusError, match=error):
        probe("no/such/model/anywhere", suite="berlin", **asked)


def test_a_text_too_short_for_a_calibration_is_told_without_an_option_that_a_probe_has_not(tmp_path: Path):
    (tmp_path / "short.txt").write_text("One.\n\nTwo.\n\nThree.")
    with pytest.raises(CorpusError, match=r"one sequence needs 12[78]; give more text and tokens\.$"):
        probe(suite="berlin", calibrate=tmp_path / "short.txt")


@pytest.mark.parametrize(("lenses", "said"), [(None, 1), ("logit", 0)])
def test_a_probe_that_found_no_fitted_lens_says_in_one_line_how_long_one_would_take(
    lenses: str | None, said: int, tmp_path: Path
):
    folder = shutil.copytree(BUNDLED, tmp_path / "model", ignore=shutil.ignore_patterns("lenses"))
    observer = Lines()
    probe(folder, suite="berlin", limit=1, positions="last", lenses=lenses, observer=observer)
    found = [line for line in observer.lines if line.startswith("no tuned or ridge lens of this model was read")]
    assert len(found) == said
    time = r"about \d+ (s|min|h)"
    assert all(
        re.search(rf"{time} here with --calibrate TEXT, or {time} with `layerscope fit tuned`", x) for x in found
    )
