"""Jacobian lenses: fits against whole graphs, what they say of themselves, and readings through them.

Tolerances are those of `jacobian_reference` for matrices, and bits are means over hundreds of positions in float32:
1e-3 relative.
"""

import math
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fit_texts import corpus_for, write_text
from jacobian_reference import TOLERANCE, jacobians, off
from layerscope import Run, fit_jacobian, probe, read_fitted_lens
from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, ModelError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.exact_rows import Spread, relative_difference_and_cosine
from layerscope.fitting.options import JacobianSettings
from layerscope.lens_record import BIASED
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens_folder import FittedLens, jacobian_lens, write_fitted_lens
from layerscope.lenses.logit_lens import LogitLens
from layerscope.model.causal_lm import CausalLM
from layerscope.progress import SilentFit
from layerscope.published.layout import Dialect
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.evaluation import evaluation
from layerscope.report.sentences.verdict import VerdictText
from layerscope.report.synthesis import synthesis
from layerscope.view.page.view import page_html
from tiny_models import TINY

SEQ_LEN = 24
FEW = JacobianSettings(prompts=4, first_position=8, probe_rows=12, probe_prompts=4)
LAYER = 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def corpus(model: CausalLM, text: Path) -> Corpus:
    """With so little held-out text that every position of it is measured."""
    whole = corpus_for(model, text, SEQ_LEN)
    return replace(whole, held_out=whole.held_out[:20])


@pytest.fixture(scope="module")
def fitted(model: CausalLM, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> FittedLens:
    return fit_jacobian(model, corpus, tmp_path_factory.mktemp("lenses") / "jacobian", FEW)


@pytest.fixture(scope="module")
def probed(fitted: FittedLens) -> Run:
    return probe(suite="berlin", positions="last", lens_dir=fitted.folder)


def _matrix(lens: FittedLens, layer: int) -> torch.Tensor:
    return lens.tensors[f"layers.{layer:03d}.jacobian"]


# The matrices


def test_an_exact_fit_is_the_mean_of_whole_graphs_over_its_prompts(tmp_path: Path, text: Path):
    tiny = CausalLM.open(TINY["qwen3"].build(tmp_path / "model"), device="cpu")
    corpus = corpus_for(tiny, text, 12)
    settings = JacobianSettings(method="exact", prompts=3, first_position=4)
    lens = fit_jacobian(tiny, corpus, tmp_path / "lens", settings)
    fit = lens.record.jacobian
    assert fit is not None and fit.probe is None and fit.n_prompts == 3
    order = torch.randperm(len(corpus.fit), generator=torch.Generator().manual_seed(settings.seed))
    wanted = jacobians(TINY["qwen3"].resident(), corpus.fit[order[:3]], slice(4, 11))
    for layer, matrix in enumerate(wanted):
        assert off(_matrix(lens, layer), matrix) < TOLERANCE
        assert fit.layers[layer].beta is None
        assert fit.layers[layer].norm == pytest.approx(float(matrix.norm()) / math.sqrt(len(matrix)), rel=1e-4)
    first, second = (
        jacobians(TINY["qwen3"].resident(), corpus.fit[order[:3][turn::2]], slice(4, 11)) for turn in (0, 1)
    )
    for layer, (a, b) in enumerate(zip(first.double(), second.double(), strict=True)):
        assert fit.layers[layer].half_difference == pytest.approx(float((a - b).norm() / (a + b).norm()) * 2, rel=1e-3)
        assert fit.layers[layer].half_cosine == pytest.approx(
            float(a.flatten() @ b.flatten() / a.norm() / b.norm()), abs=1e-5
        )


def test_halves_of_a_chain_are_chains_of_half_the_prompts(tmp_path: Path, text: Path):
    """Each fitted once more by itself, and read by Transformers' own norm and head."""
    tiny = CausalLM.open(TINY["qwen3"].build(tmp_path / "model"), device="cpu")
    corpus = corpus_for(tiny, text, 12)
    settings = JacobianSettings(prompts=5, first_position=4, probe_rows=4, probe_prompts=3)
    fit = fit_jacobian(tiny, corpus, tmp_path / "lens", settings).record.jacobian
    assert fit is not None
    order = torch.randperm(len(corpus.fit), generator=torch.Generator().manual_seed(settings.seed))[:5]
    halves = []
    for name, places in (("first", order[:2]), ("second", order[2:])):
        alone = replace(settings, prompts=len(places), probe_rows=0)
        halves.append(fit_jacobian(tiny, replace(corpus, fit=corpus.fit[places]), tmp_path / name, alone))
    own, rows = TINY["qwen3"].resident(), corpus.held_out[:86]
    with torch.inference_mode():
        state = own(rows, output_hidden_states=True).hidden_states[1][:, 1:-1].flatten(0, 1)
        tops = [own.lm_head(own.model.norm(state @ _matrix(half, 1).T)).argmax(-1) for half in halves]
    for layer in fit.layers:
        a, b = (_matrix(half, layer.layer).double() for half in halves)
        assert layer.half_difference == pytest.approx(float((a - b).norm() / (a + b).norm()) * 2, rel=1e-3)
        assert layer.half_cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-5)
    assert fit.layers[1].half_agreement == pytest.approx(float((tops[0] == tops[1]).double().mean()), abs=0.05)


def test_halves_apart_and_alike():
    """(3, 0) and (0, 4): apart by 5, their mean (1.5, 2) of norm 2.5, at right angles."""
    first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert relative_difference_and_cosine(first, second) == (pytest.approx(2.0), 0.0)
    assert relative_difference_and_cosine(first, 2 * first) == (pytest.approx(2 / 3), pytest.approx(1.0))
    assert relative_difference_and_cosine(first, -first) == (None, pytest.approx(-1.0))


def test_an_exact_fit_ends_once_its_mean_has_settled(tmp_path: Path, text: Path):
    tiny = CausalLM.open(TINY["qwen3"].build(tmp_path / "model"), device="cpu")
    corpus = corpus_for(tiny, text, 12)
    exact = JacobianSettings(method="exact", prompts=12, first_position=4, stop_from=3)
    lenses = {at: fit_jacobian(tiny, corpus, tmp_path / str(at), replace(exact, stop_at=at)) for at in (0.4, 0.0001)}
    ended, whole = lenses[0.4].record, lenses[0.0001].record
    assert ended.jacobian is not None and whole.jacobian is not None
    assert (ended.jacobian.n_prompts, whole.jacobian.n_prompts) == (8, 12)
    assert ended.jacobian.prompts_sha256 != whole.jacobian.prompts_sha256
    assert any("ended after 8 of 12 prompts, by the rule" in note for note in ended.notes)
    assert any("at most 0.0001" in note and note.endswith("not reached at layers 3.") for note in whole.notes)
    plain = fit_jacobian(tiny, corpus, tmp_path / "plain", replace(exact, prompts=8))
    assert off(_matrix(lenses[0.4], 0), _matrix(plain, 0)) < TOLERANCE


def test_a_chain_says_that_it_could_not_end_early(tmp_path: Path, text: Path):
    tiny = CausalLM.open(TINY["qwen3"].build(tmp_path / "model"), device="cpu")
    settings = JacobianSettings(prompts=4, first_position=4, probe_rows=4, stop_at=0.0001)
    lens = fit_jacobian(tiny, corpus_for(tiny, text, 12), tmp_path / "lens", settings)
    assert any("could not end early" in note and "not reached at layers 0, 1" in note for note in lens.record.notes)


@pytest.mark.parametrize("name", ["gemma3", pytest.param("phi", marks=pytest.mark.slow)])
def test_at_one_position_of_one_prompt_the_chain_is_exact_at_every_layer(name: str, tmp_path: Path, text: Path):
    tiny = CausalLM.open(TINY[name].build(tmp_path / "model"), device="cpu")
    corpus = corpus_for(tiny, text, 12)
    lens = fit_jacobian(
        tiny, corpus, tmp_path / "lens", JacobianSettings(prompts=1, first_position=10, probe_rows=5, probe_prompts=2)
    )
    fit = lens.record.jacobian
    assert fit is not None and fit.probe is not None and fit.probe.n_prompts == 1
    for layer in fit.layers:
        assert layer.beta is not None and layer.beta < 4 * TOLERANCE
        assert layer.sigma is None  # one prompt says nothing about others


def test_the_bias_is_the_chains_distance_from_exact_rows_that_the_lens_keeps(fitted: FittedLens, model: CausalLM):
    """Fit and exact rows rest on the same four prompts, so the lens' own matrices are what the bias is of."""
    fit = fitted.record.jacobian
    assert fit is not None and fit.probe is not None
    rows, ids = fitted.tensors["probe.rows"], fitted.tensors["probe.token_ids"]
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    some = [3, 9]
    wanted = jacobians(own, ids, slice(8, SEQ_LEN - 1), some)[:, list(fit.probe.rows)]
    assert off(rows[some], wanted) < TOLERANCE
    for layer in fit.layers:
        chain = _matrix(fitted, layer.layer)[list(fit.probe.rows)]
        assert layer.beta == pytest.approx(off(chain, rows[layer.layer]), rel=1e-3, abs=1e-5)
    betas = [layer.beta for layer in fit.layers]
    assert betas[-1] is not None and betas[-1] < BIASED
    approximate = [layer.layer for layer in fit.layers if layer.is_approximate]
    assert approximate and any(
        f"At layers {', '.join(map(str, approximate))} exact rows" in n for n in fitted.record.notes
    )


def test_the_spread_is_that_of_prompts_without_the_bias_of_few():
    """Rows 3 +- 1 in one place: mean 3, variance 2 of two prompts; of the mean's square 9, 2 / 2 is the spread's."""
    rows = torch.tensor([2.0, 4.0]).view(1, 1, 2, 1)
    assert Spread.of(rows).relative(0) == pytest.approx(math.sqrt(2 / 8))
    assert Spread.of(torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1)).relative(0) is None
    assert Spread.of(rows[:, :, :1]).relative(0) is None
    many = torch.tensor([1.0, 2.0, 4.0, 5.0]).view(1, 1, 4, 1)
    joined = Spread.of(many[:, :, :1]).joined(Spread.of(many[:, :, 1:]))
    assert joined.relative(0) == pytest.approx(Spread.of(many).relative(0))


def test_a_killed_chain_goes_on_and_ends_with_the_same_lens(
    fitted: FittedLens, model: CausalLM, corpus: Corpus, tmp_path: Path
):
    class Killed(SilentFit):
        def blocks(self, done: int, total: int) -> None:
            if done == LAYER:
                raise KeyboardInterrupt

    out = tmp_path / "jacobian"
    with pytest.raises(KeyboardInterrupt):
        fit_jacobian(model, corpus, out, FEW, observer=Killed())
    plans: list[str] = []

    class Told(SilentFit):
        def plan(self, text: str) -> None:
            plans.append(text)

    again = fit_jacobian(model, corpus, out, FEW, observer=Told())
    assert "goes on behind layer" in plans[0]
    assert again.record.weights_sha256 == fitted.record.weights_sha256
    assert not list(tmp_path.glob(".jacobian*"))


def test_a_killed_exact_fit_goes_on_behind_the_prompts_that_are_done(tmp_path: Path, text: Path):
    tiny = CausalLM.open(TINY["phi"].build(tmp_path / "model"), device="cpu")
    corpus = corpus_for(tiny, text, 12)
    settings = JacobianSettings(method="exact", prompts=6, first_position=4)
    whole = fit_jacobian(tiny, corpus, tmp_path / "whole", settings)
    shares: list[float] = []

    class Killed(SilentFit):
        def blocks(self, done: int, total: int) -> None:
            if done == total:  # the last rows have come back, and are not kept yet
                raise KeyboardInterrupt

    class Told(SilentFit):
        def blocks(self, done: int, total: int) -> None:
            shares.append(done / total)

    with pytest.raises(KeyboardInterrupt):
        fit_jacobian(tiny, corpus, tmp_path / "lens", settings, observer=Killed())
    assert [path.name for path in tmp_path.glob(".lens.fit-*/rows-*")] == ["rows-000004.safetensors"]
    again = fit_jacobian(tiny, corpus, tmp_path / "lens", settings, observer=Told())
    behind = [share for share in shares if share > 0.5]
    assert min(behind) >= 0.5 + 0.5 * 4 / 6
    assert again.record.weights_sha256 == whole.record.weights_sha256
    (part,) = [fit_jacobian(tiny, corpus, tmp_path / "part", replace(settings, prompts=2))]
    assert off(_matrix(part, 0), _matrix(whole, 0)) > TOLERANCE  # other prompts, another mean


# What it says of itself


def test_its_held_out_figures_are_those_of_transformers_own_logits(fitted: FittedLens, corpus: Corpus):
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.inference_mode():
        said = own(corpus.held_out, output_hidden_states=True)
        state = said.hidden_states[LAYER]
        log_p = said.logits.double().log_softmax(-1)[:, 1:-1]
        moved = own.model.norm(state @ _matrix(fitted, LAYER).T)
        read = {"jacobian": own.lm_head(moved), "logit": own.lm_head(own.model.norm(state))}
        added = _matrix(fitted, LAYER) - torch.eye(own.config.hidden_size)
        order = torch.randperm(len(added), generator=torch.Generator().manual_seed(316 + LAYER))
        read["shuffled"] = own.lm_head(own.model.norm(state + state @ added[order].T))
    fit = fitted.record.jacobian
    assert fit is not None and fit.n_held_out == log_p[..., 0].numel()
    for name, logits in read.items():
        log_q = logits.double().log_softmax(-1)[:, 1:-1]
        bits = float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) / math.log(2)
        same = float((log_q.argmax(-1) == log_p.argmax(-1)).double().mean())
        assert getattr(fit.layers[LAYER], f"{name}_bits") == pytest.approx(bits, rel=1e-3)
        if name != "shuffled":
            assert getattr(fit.layers[LAYER], f"{name}_top1") == pytest.approx(same, abs=2 / fit.n_held_out)


def test_a_layer_that_reads_no_better_than_shuffled_is_named(fitted: FittedLens):
    fit = fitted.record.jacobian
    assert fit is not None
    for layer in fit.layers:
        assert layer.shuffled_bits is not None and layer.shuffled_bits != layer.jacobian_bits
    said = [note for note in fitted.record.notes if "weights shuffled" in note]
    named = [layer.layer for layer in fit.layers if layer.jacobian_bits >= layer.shuffled_bits]
    assert [f"At layers {', '.join(map(str, named))} it is no nearer" in note for note in said] == [True] * bool(named)


def test_its_record_says_what_belongs_to_a_jacobian_lens(fitted: FittedLens, corpus: Corpus):
    record, fit = fitted.record, fitted.record.jacobian
    assert fit is not None
    assert (fit.method, fit.seq_len, fit.first_position, fit.n_prompts) == ("chain", SEQ_LEN, 8, 4)
    assert fit.target_layer == record.model.n_layers == len(fit.layers)
    assert record.corpus == corpus.record and fit.transformers
    assert read_fitted_lens(fitted.folder).record == record
    for layer in fit.layers:
        if layer.sigma is not None:
            assert layer.standard_error == pytest.approx(layer.sigma / 2)
    loose = [str(layer.layer) for layer in fit.layers if (layer.standard_error or 0) > 0.05]
    assert loose and any(f"At layers {', '.join(loose)} the standard error" in note for note in record.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (JacobianSettings(prompts=0), "prompts should be at least 1"),
        (JacobianSettings(probe_prompts=1), "probe_prompts should be at least 2"),
        (JacobianSettings(stop_at=1.5), "stop_at is a share between 0 and 1"),
        (JacobianSettings(stop_at=0.1, stop_from=99), "stop_from should be a layer from 0 to"),
        (JacobianSettings(first_position=SEQ_LEN - 1), "have none to count from position 23 on"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    settings: JacobianSettings, message: str, model: CausalLM, corpus: Corpus, tmp_path: Path
):
    with pytest.raises(LensError, match=message):
        fit_jacobian(model, corpus, tmp_path / "lens", settings)


def test_blocks_that_compute_in_less_than_float32_are_refused(model: CausalLM, corpus: Corpus, tmp_path: Path):
    """As an accelerator's may; on a CPU all models compute in float32."""
    coarse = copy(model)
    coarse.placement = replace(model.placement, dtype=torch.bfloat16)
    with pytest.raises(LensError, match="fitted in float32, but the blocks compute in bfloat16"):
        fit_jacobian(coarse, corpus, tmp_path / "lens", FEW)


def test_a_model_without_a_closed_form_is_refused_by_the_chain_and_fitted_exactly(tmp_path: Path, text: Path):
    tiny = CausalLM.open(TINY["mixtral"].build(tmp_path / "model"), device="cpu")
    corpus = corpus_for(tiny, text, 12)
    settings = JacobianSettings(prompts=1, first_position=4)
    with pytest.raises(ModelError, match="block 0 of model has not; use --method exact"):
        fit_jacobian(tiny, corpus, tmp_path / "lens", settings)
    exact = JacobianSettings(method="exact", prompts=1, first_position=4)
    assert fit_jacobian(tiny, corpus, tmp_path / "lens", exact).record.jacobian is not None


# Readings


def test_with_identities_it_is_the_logit_lens_to_the_bit(model: CausalLM):
    n = model.n_layers
    residuals = model.forward([[5, 6, 7, 8]]).values
    logit = LogitLens(model.final_norm)
    lens = JacobianLens(model.final_norm, (torch.eye(model.d_model),) * (n - 1) + (None,))
    for layer in range(n + 1):
        assert torch.equal(lens(residuals[:, layer], layer), logit(residuals[:, layer], layer))
    assert [lens.source(layer) for layer in (0, n - 1, n)] == ["jacobian before model.norm", "model.norm", "model.norm"]


def test_the_size_of_its_matrices_means_nothing(fitted: FittedLens, model: CausalLM):
    lens = jacobian_lens(fitted, model.final_norm)
    larger = JacobianLens(model.final_norm, tuple(None if m is None else 8 * m for m in lens.jacobians))
    residuals = model.forward([[5, 6, 7, 8]]).values
    for layer in range(1, model.n_layers + 1):
        row = lens(residuals[:, layer], layer)
        torch.testing.assert_close(larger(residuals[:, layer], layer), row, rtol=1e-4, atol=1e-4)


def test_a_probe_reads_through_it_and_takes_its_headline_elsewhere(probed: Run, fitted: FittedLens):
    record = probed.record
    assert record.protocol.headline_lens == "logit" and "jacobian" in record.protocol.lenses
    said = next(lens for lens in record.measured.fitted_lenses if lens.kind == "jacobian")
    assert said.status == "loaded" and said.jacobian is not None and said.notes == fitted.record.notes
    n = record.model.n_layers
    fit = fitted.record.jacobian
    assert fit is not None
    assert said.jacobian.betas == (*(layer.beta for layer in fit.layers), None)
    assert said.jacobian.held_out is not None and said.jacobian.held_out.lens_top1[-1] == 1.0
    rows = probed.rows
    assert sorted(rows.filter(lens="jacobian")["layer"].unique()) == list(range(1, n + 1))
    last = [rows.filter(lens=lens, layer=n)["entropy_bits"].to_list() for lens in ("jacobian", "logit")]
    assert last[0] == last[1]
    middle = [rows.filter(lens=lens, layer=LAYER)["entropy_bits"].to_list() for lens in ("jacobian", "logit")]
    assert middle[0] != middle[1]


@pytest.mark.slow  # probes once more
def test_no_verdict_of_a_run_comes_from_it(probed: Run):
    without = probe(suite="berlin", positions="last", lenses="logit,next_norm,raw")
    assert replace(probed.milestones, by_curve={}) == replace(without.milestones, by_curve={})
    assert probed.guidance.preferred_lens == without.guidance.preferred_lens != "jacobian"


def test_the_verdict_names_layers_that_are_only_approximate(probed: Run, fitted: FittedLens):
    fit = fitted.record.jacobian
    assert fit is not None
    rough = [layer.layer for layer in fit.layers if layer.is_approximate]
    assert rough == list(range(len(rough)))
    text = VerdictText(probed.verdict, probed.record)
    shown = " ".join(line.text for line in (*text.summary(), *text.circumstances()))
    assert f"jacobian approximate at layers 0 to {rough[-1]}: its chain is more than 10% off there" in shown
    layers = probed.diagnostics.layers_by_lens["jacobian"].on_top_for_good.summary.median
    assert layers is not None
    assert (f"jacobian {layers:g} (approximate)" in shown) == (int(layers) in rough)


def test_a_run_read_through_it_is_saved_reported_and_shown(probed: Run, tmp_path: Path):
    probed.save(tmp_path / "run", published=Dialect.EXTENDED)
    again = Run.read(tmp_path / "run")
    assert again.record == probed.record
    assert '"jacobian"' in page_html([again])
    evidence = Evidence.of(tmp_path / "run")
    assert "The run was read through the lens jacobian too." in markdown(evaluation(evidence))
    assert "A Jacobian lens was read too for " in markdown(synthesis([evidence]))


def test_a_lens_of_another_model_is_refused_by_name(fitted: FittedLens, tmp_path: Path):
    other = fitted.record.model.model_copy(update={"id": "house/other", "fingerprint": "0" * 64})
    write_fitted_lens(tmp_path / "other", fitted.record.model_copy(update={"model": other}), fitted.tensors)
    with pytest.raises(LensError, match="of house/other, the same shapes but another head or final norm"):
        probe(suite="berlin", positions="last", lenses="logit,jacobian", lens_dir=tmp_path / "other")
