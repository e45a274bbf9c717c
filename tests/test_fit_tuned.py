"""Whole fits on real models: figures as an independent computation finds them, interruptions without a trace.

Tolerances. Bits are float32 means over thousands of positions, of divergences whose logits are 1e-5 off: 1e-3
relative where they are small. Perplexities are exponentials of such means: 1e-4.
"""

import json
import shutil
from dataclasses import replace
from itertools import starmap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fit_texts import FEW, LENS, TEXT, corpus_for
from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, ModelError, NumericError, PlacementError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.tuned import TunedSettings, fit_tuned, rank_of
from layerscope.lenses.lens_folder import find_lens_of, read_fitted_lens, tuned_lens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.signature import model_signature
from layerscope.progress import SilentFit
from properties import slow


@pytest.fixture(scope="module")
def text(fitted_once: Path) -> Path:
    return fitted_once / TEXT


@pytest.fixture(scope="module")
def bundled() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def small(tiny) -> CausalLM:
    """For what asks for no trained model."""
    return CausalLM.open(tiny("qwen3"), device="cpu")


@pytest.fixture(scope="module")
def fitted(fitted_once: Path) -> Path:
    return fitted_once / LENS


class Killed(SilentFit):
    """Stands for a power cut after one layer."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.layers: list[int] = []

    def layer(self, layer: int, said: str) -> None:
        self.layers.append(layer)
        if layer == self.at:
            raise KeyboardInterrupt


def held_out_bits(folder: Path, corpus: Corpus, hidden: torch.Tensor, logits: torch.Tensor, layer: int, lens) -> float:
    """Mean KL(model || lens) with whole logits in float64, every held-out position but the first and the last."""
    model = CausalLM.open(folder, device="cpu")
    rows = lens(hidden, layer)
    if model.unembedding.projection is not None:
        rows = rows @ model.unembedding.projection.T
    weight = model.unembedding.weight.tensor.float()
    z = rows @ weight.T
    if model.unembedding.bias is not None:
        z = z + model.unembedding.bias
    cap = model.unembedding.transform.softcap
    z = z.double() * (model.unembedding.transform.scale or 1.0)
    z = z if cap is None else cap * torch.tanh(z / cap)
    log_p, log_q = logits.double().log_softmax(-1), z.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1) / torch.log(torch.tensor(2.0))
    return float(kl[:, 1:-1].mean())


@pytest.mark.parametrize("which", ["bundled", "gemma2", slow("gptj"), slow("opt-projected")])
def test_held_out_figures_are_those_of_transformers_own_logits(which: str, fitted: Path, text: Path, tiny, tmp_path):
    folder = BUNDLED if which == "bundled" else tiny(which)
    model = CausalLM.open(folder, device="cpu")
    corpus = corpus_for(model, text)
    fitted_lens = read_fitted_lens(fitted) if which == "bundled" else fit_tuned(model, corpus, tmp_path / "lens", FEW)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        said = own(corpus.held_out, output_hidden_states=True)
    assert fitted_lens.record.tuned is not None
    lens = tuned_lens(fitted_lens, model.final_norm)
    checked = fitted_lens.record.tuned.layers[:: max(1, model.n_layers // 3)]
    for fit in checked:
        found = held_out_bits(folder, corpus, said.hidden_states[fit.layer], said.logits, fit.layer, lens)
        assert fit.tuned_bits == pytest.approx(found, rel=1e-3, abs=2e-5)
    assert fitted_lens.record.tuned.n_held_out == len(corpus.held_out) * (corpus.held_out.shape[1] - 2)


def test_a_lens_that_moved_says_so_and_comes_nearer_to_the_model(fitted: Path):
    record = read_fitted_lens(fitted).record
    assert record.tuned is not None
    for fit in record.tuned.layers[:6]:
        assert fit.map_norm > 0
        assert fit.tuned_bits < fit.logit_bits
        assert fit.tuned_bits <= fit.bias_bits


@pytest.mark.slow
def test_a_bias_alone_is_as_good_as_another_optimiser_makes_it_however_short_the_fit(
    fitted: Path, bundled: CausalLM, text: Path
):
    """It is what a map has to beat: a bias that had no time to move would make every map look good."""
    layer, corpus = 6, corpus_for(bundled, text)
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    weight = own.lm_head.weight.detach()

    def inputs_and_targets(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            said = own(ids, output_hidden_states=True)
        states, logits = said.hidden_states[layer][:, 1:-1], said.logits[:, 1:-1]
        return states.flatten(0, 1).clone(), logits.flatten(0, 1).log_softmax(-1).clone()

    def bits(bias: torch.Tensor, log_temperature: torch.Tensor, x: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        log_q = (own.model.norm(x + bias) @ weight.T / log_temperature.exp()).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean() / torch.log(torch.tensor(2.0))

    x, log_p = inputs_and_targets(corpus.fit)
    bias, log_temperature = torch.zeros(96, requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([bias, log_temperature], max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = bits(bias, log_temperature, x, log_p)
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        best = float(bits(bias, log_temperature, *inputs_and_targets(corpus.held_out)))
    record = read_fitted_lens(fitted).record.tuned
    assert record is not None and record.steps == FEW.steps
    assert record.layers[layer].bias_bits <= 1.05 * best


@pytest.mark.slow  # as an interrupted one does on the command line
def test_a_killed_fit_goes_on_to_the_same_weights(fitted: Path, bundled: CausalLM, text: Path, tmp_path: Path):
    corpus, folder = corpus_for(bundled, text), tmp_path / "lens"
    with pytest.raises(KeyboardInterrupt):
        fit_tuned(bundled, corpus, folder, FEW, observer=Killed(4))
    assert not folder.exists()
    fit_tuned(bundled, corpus, folder, FEW)
    assert read_fitted_lens(folder).record.weights_sha256 == read_fitted_lens(fitted).record.weights_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["lens"]


def test_layers_that_were_finished_are_not_fitted_again(small: CausalLM, text: Path, tmp_path: Path, monkeypatch):
    corpus, folder = corpus_for(small, text), tmp_path / "lens"
    with pytest.raises(KeyboardInterrupt):
        fit_tuned(small, corpus, folder, FEW, observer=Killed(0))
    again = Killed(1)
    asked: list[int] = []
    from layerscope.fitting import tuned

    real = tuned.fit_layer
    monkeypatch.setattr(
        tuned, "fit_layer", lambda layer, *args, **kw: (asked.append(layer), real(layer, *args, **kw))[1]
    )
    with pytest.raises(KeyboardInterrupt):
        fit_tuned(small, corpus, folder, FEW, observer=again)
    assert again.layers == [0, 1]
    assert asked == [1]


@pytest.mark.slow
def test_a_killed_fit_on_drawn_ids_goes_on_to_the_same_weights(
    bundled: CausalLM, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from layerscope.fitting import sampled

    monkeypatch.setattr(sampled, "WORTH_SAMPLING", 0.4)  # the bundled model has 2,048 ids
    monkeypatch.setattr(sampled, "IDS", 512)
    corpus, few = corpus_for(bundled, text), TunedSettings(steps=8, batch=256)
    whole = fit_tuned(bundled, corpus, tmp_path / "whole", few)
    with pytest.raises(KeyboardInterrupt):
        fit_tuned(bundled, corpus, tmp_path / "killed", few, observer=Killed(3))
    assert fit_tuned(bundled, corpus, tmp_path / "killed", few).record.weights_sha256 == whole.record.weights_sha256
    fit = whole.record.tuned
    assert fit is not None and fit.ids == 512
    assert all(layer.tuned_bits < layer.logit_bits for layer in fit.layers[:6])


def test_other_settings_do_not_take_up_an_unfinished_fit(small: CausalLM, text: Path, tmp_path: Path):
    corpus, folder = corpus_for(small, text), tmp_path / "lens"
    for settings in (FEW, replace(FEW, seed=1)):
        with pytest.raises(KeyboardInterrupt):
            fit_tuned(small, corpus, folder, settings, observer=Killed(0))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_unfinished_fit_is_named(small: CausalLM, text: Path, tmp_path: Path):
    corpus, folder = corpus_for(small, text), tmp_path / "lens"
    with pytest.raises(KeyboardInterrupt):
        fit_tuned(small, corpus, folder, FEW, observer=Killed(0))
    (weights,) = tmp_path.glob("*/layer-000.safetensors")
    weights.write_bytes(b"no tensors")
    with pytest.raises(LensError, match="damaged at layer 0; delete that folder"):
        fit_tuned(small, corpus, folder, FEW)


@pytest.mark.slow
def test_residuals_on_disk_give_the_same_weights(fitted: Path, text: Path, tmp_path: Path, monkeypatch):
    model = CausalLM.open(BUNDLED, device="cpu", memory="3GiB")
    from layerscope.fitting import affine

    seen: list[Path | None] = []
    real = affine.Stream
    monkeypatch.setattr(affine, "Stream", lambda *args: (seen.append(args[2]), real(*args))[1])
    monkeypatch.setattr(affine, "stream_bytes", lambda n_tokens, d_model: 3 << 30)
    fit_tuned(model, corpus_for(model, text), tmp_path / "lens", FEW)
    assert seen[0] is not None
    assert read_fitted_lens(tmp_path / "lens").record.weights_sha256 == read_fitted_lens(fitted).record.weights_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["lens"]


@pytest.mark.parametrize(("layers_in_memory", "passes"), [slow(14, 1), slow(13, 2)])
def test_blocks_run_once_where_memory_holds_every_layer(
    layers_in_memory: int, passes: int, fitted: Path, bundled: CausalLM, text: Path, tmp_path: Path, monkeypatch
):
    from layerscope.fitting import tuned

    assert bundled.n_layers == 12  # layers 0 to 11 are kept, beside the one reached and the last
    monkeypatch.setattr(tuned._TunedFitter, "_in_memory", lambda self, n_layers: n_layers <= layers_in_memory)
    runs: list[int | None] = []
    real = CausalLM.forward_blockwise
    monkeypatch.setattr(
        CausalLM,
        "forward_blockwise",
        lambda self, *args, n_blocks=None, **others: (
            runs.append(n_blocks),
            real(self, *args, n_blocks=n_blocks, **others),
        )[1],
    )
    fit_tuned(bundled, corpus_for(bundled, text), tmp_path / "lens", FEW)
    assert runs == [None, 11][:passes]
    assert read_fitted_lens(tmp_path / "lens").record.weights_sha256 == read_fitted_lens(fitted).record.weights_sha256


def test_a_full_disk_is_said_and_leaves_no_buffer(text: Path, tmp_path: Path, monkeypatch):
    from layerscope.fitting import affine, stream

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream.os, "posix_fallocate", full)
    monkeypatch.setattr(affine, "stream_bytes", lambda n_tokens, d_model: 3 << 30)
    model = CausalLM.open(BUNDLED, device="cpu", memory="3GiB")
    with pytest.raises(PlacementError, match="No space left on device"):
        fit_tuned(model, corpus_for(model, text), tmp_path / "lens", FEW)
    assert not list(tmp_path.rglob("*.f32"))
    assert not (tmp_path / "lens").exists()


@pytest.mark.parametrize(
    ("rank", "placement"),
    [(5, "raw"), ("full", "normed"), *starmap(slow, ((0, "raw"), (0, "normed"), (5, "normed"), ("full", "raw")))],
)
def test_every_form_fits(rank: int | str, placement: str, small: CausalLM, text: Path, tmp_path: Path):
    settings = TunedSettings(rank=rank, placement=placement, steps=10, batch=128)  # type: ignore[arg-type]
    fitted_lens = fit_tuned(small, corpus_for(small, text), tmp_path / "lens", settings)
    fit = fitted_lens.record.tuned
    assert fit is not None
    assert fit.rank == (48 if rank == "full" else rank)
    assert fit.placement == placement
    names = {name.rpartition(".")[2] for name in load_file(tmp_path / "lens" / "lens.safetensors")}
    linear = {0: set(), 5: {"down", "up"}, "full": {"full"}}[rank]
    assert names == {"bias", "mean", "temperatures"} | linear
    assert fit.layers[0].tuned_bits < fit.layers[0].logit_bits


@pytest.mark.parametrize("part", ["fit", slow("select"), slow("held_out")])
def test_a_residual_that_is_not_finite_is_named_in_whatever_part_of_the_text(
    part: str, small: CausalLM, text: Path, tmp_path: Path, monkeypatch
):
    corpus = corpus_for(small, text)
    before = {"fit": 0, "select": corpus.fit.numel(), "held_out": corpus.fit.numel() + corpus.select.numel()}[part]
    real = CausalLM.forward_blockwise

    def broken(self, token_ids, residuals, after, **options):
        def spoiled(layer: int) -> None:
            if layer == 1:
                residuals.view(-1, self.d_model)[before + 4, 7] = torch.nan
            after(layer)

        real(self, token_ids, residuals, spoiled, **options)

    monkeypatch.setattr(CausalLM, "forward_blockwise", broken)
    with pytest.raises(NumericError, match=f"residuals of the {part} part (at layer 1 )?should be finite, but"):
        fit_tuned(small, corpus, tmp_path / "lens", FEW)
    assert not (tmp_path / "lens").exists()


def test_a_changed_config_does_not_take_up_an_unfinished_fit(bundled: CausalLM, text: Path, tmp_path: Path):
    corpus = corpus_for(bundled, text)
    copy = shutil.copytree(BUNDLED, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    for model in (bundled, CausalLM.open(copy, device="cpu")):
        with pytest.raises(KeyboardInterrupt):
            fit_tuned(model, corpus, tmp_path / "lenses" / "lens", FEW, observer=Killed(0))
    assert len(list((tmp_path / "lenses").iterdir())) == 2


def test_skipped_blocks_are_counted_from_the_end(fitted: Path, bundled: CausalLM, text: Path):
    fit = read_fitted_lens(fitted).record.tuned
    assert fit is not None
    assert [(skip.blocks, skip.layer) for skip in fit.skip_layers] == [(2, 10), (4, 8), (8, 4)]
    corpus = corpus_for(bundled, text)
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.inference_mode():
        said = own(corpus.held_out, output_hidden_states=True)
    gold = corpus.held_out[:, 2:]
    expected = said.logits[:, 1:-1].double().log_softmax(-1).gather(-1, gold[..., None]).mean().neg().exp()
    assert fit.skip_layers[0].perplexity_model == pytest.approx(float(expected), rel=1e-4)
    lens = tuned_lens(read_fitted_lens(fitted), bundled.final_norm)
    rows = lens(said.hidden_states[8], 8) @ bundled.unembedding.weight.tensor.float().T
    expected = rows[:, 1:-1].double().log_softmax(-1).gather(-1, gold[..., None]).mean().neg().exp()
    assert fit.skip_layers[1].perplexity_lens == pytest.approx(float(expected), rel=1e-4)
    assert fit.skip_layers[1].n_tokens == gold.numel()


def test_what_cannot_be_is_refused_before_any_work(bundled: CausalLM, text: Path, tmp_path: Path, fitted: Path):
    corpus = corpus_for(bundled, text)
    with pytest.raises(LensError, match="between 0 and d_model = 96"):
        fit_tuned(bundled, corpus, tmp_path / "lens", TunedSettings(rank=97))
    with pytest.raises(LensError, match="already there"):
        fit_tuned(bundled, corpus, fitted, FEW)
    with pytest.raises(LensError, match="leaves none"):
        fit_tuned(bundled, corpus, tmp_path / "lens", TunedSettings(first_position=23))
    with pytest.raises(LensError, match="number of steps"):
        fit_tuned(bundled, corpus, tmp_path / "lens", TunedSettings(steps=0))
    with pytest.raises(LensError, match="learning rate"):
        fit_tuned(bundled, corpus, tmp_path / "lens", TunedSettings(rate=0.0))
    small = CausalLM.open(BUNDLED, device="cpu", memory="1MiB")
    with pytest.raises(PlacementError, match="raise --memory"):
        fit_tuned(small, corpus, tmp_path / "lens", FEW)
    assert not list(tmp_path.iterdir()) or all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_the_rank_is_full_while_the_lens_stays_small():
    assert rank_of("auto", 2048, 28) == 2048
    assert rank_of("auto", 4096, 36) == 256
    assert rank_of("auto", 3584, 42) == 112
    assert rank_of("full", 8192, 80) == 8192
    assert rank_of(0, 96, 12) == 0


def test_a_model_of_one_block_is_fitted(text: Path, tmp_path: Path):
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=2048, num_hidden_layers=1, head_dim=16, max_position_embeddings=64, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(tmp_path / "model")
    model = CausalLM.open(tmp_path / "model", device="cpu")
    fit = fit_tuned(model, corpus_for(model, text), tmp_path / "lens", FEW).record.tuned
    assert fit is not None
    assert [one.layer for one in fit.layers] == [0]
    assert fit.layers[0].tuned_bits < fit.layers[0].logit_bits
    with pytest.raises(ModelError, match="reads 64 positions at most, but sequences of 65 came"):
        fit_tuned(model, corpus_for(model, text, seq_len=65), tmp_path / "other", FEW)


@pytest.mark.slow
def test_the_budget_of_memory_decides_no_weight(fitted: Path, text: Path, tmp_path: Path):
    model = CausalLM.open(BUNDLED, device="cpu", memory="400MiB")
    found = fit_tuned(model, corpus_for(model, text), tmp_path / "lens", FEW)
    assert found.record.weights_sha256 == read_fitted_lens(fitted).record.weights_sha256


def test_a_model_whose_blocks_were_changed_takes_up_no_fit_and_no_lens(fitted: Path, text: Path, tmp_path: Path):
    weights = load_file(BUNDLED / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] = weights["model.layers.3.mlp.up_proj.weight"] * 1.5
    shutil.copytree(BUNDLED, tmp_path / "merged", ignore=shutil.ignore_patterns("lenses"))
    save_file(weights, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    merged = CausalLM.open(tmp_path / "merged", device="cpu")
    original = CausalLM.open(BUNDLED, device="cpu")
    assert merged.fingerprint == original.fingerprint
    assert merged.blocks_fingerprint != original.blocks_fingerprint
    with pytest.raises(LensError, match="blocks"):
        find_lens_of(fitted, "tuned", model_signature(merged))
    assert find_lens_of(fitted, "tuned", model_signature(original)).folder == fitted


def test_the_bias_variant_keeps_what_the_map_does_to_the_mean(fitted: Path, bundled: CausalLM, text: Path):
    lens = tuned_lens(read_fitted_lens(fitted), bundled.final_norm)
    assert lens.has_means
    own = lens.translators[3]
    assert own.full is not None and own.mean is not None
    residual = torch.randn(4, bundled.d_model, generator=torch.Generator().manual_seed(1))
    shifted = residual + own.bias + own.mean @ own.full
    expected = bundled.final_norm(shifted) / own.temperature  # type: ignore[misc]
    torch.testing.assert_close(replace(lens, variant="bias_only")(residual, 3), expected, rtol=1e-4, atol=1e-4)
    ids = corpus_for(bundled, text).fit
    with torch.inference_mode():
        hidden = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)(ids, output_hidden_states=True)
    mean = hidden.hidden_states[3][:, 1:-1].reshape(-1, bundled.d_model).mean(0)
    torch.testing.assert_close(own.mean, mean, rtol=1e-3, atol=1e-3)
