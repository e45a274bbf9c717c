"""A probe through fitted lenses: which are read, what their rows are, and what the record says of them."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from fit_texts import LENS, TEXT, corpus_for
from layerscope import CausalLM, Run, probe
from layerscope.bundled import BUNDLED
from layerscope.errors import LensError
from layerscope.fitting.prism import PrismSettings, fit_prism
from layerscope.lenses.lens_folder import read_fitted_lens, tuned_lens
from layerscope.probing.lens_selection import choose_lenses
from layerscope.progress import Observer


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def lenses(model: CausalLM, fitted_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lenses")
    shutil.copytree(fitted_once / LENS, folder / "a-tuned")
    fit_prism(model, corpus_for(model, fitted_once / TEXT), folder / "a-prism", PrismSettings(vectors=4000))
    return folder


@pytest.fixture(scope="module")
def run(model: CausalLM, lenses: Path) -> Run:
    return probe(model, suite="berlin", lens_dir=lenses)


def at_next(run: Run, lens: str) -> pl.DataFrame:
    """The first prompt's last position under one lens, layer by layer."""
    first = run.rows.filter(pl.col("prompt_id") == "pos", lens=lens, is_next=True)
    return first.filter(pl.col("prompt_variant") == first["prompt_variant"][0]).sort("layer")


def test_what_lies_there_is_read_behind_the_protocols_own_lenses(run: Run):
    assert run.record.protocol.lenses == ("logit", "next_norm", "raw", "tuned", "prism")
    assert [(one.kind, one.status, one.path) for one in run.record.measured.fitted_lenses] == [
        ("tuned", "loaded", "a-tuned"),
        ("prism", "loaded", "a-prism"),
    ]
    assert at_next(run, "tuned")["layer"].to_list() == list(range(1, 13))
    assert at_next(run, "prism")["layer"].to_list() == list(range(13))


def test_rows_are_what_the_saved_translators_give(run: Run, model: CausalLM, lenses: Path):
    prompt = run.record.suite.prompts[0]
    residuals = model.forward([prompt.token_ids]).values[0, :, -1]
    lens = tuned_lens(read_fitted_lens(lenses / "a-tuned"), model.final_norm)
    weight = model.unembedding.weight.tensor.double()
    log_p = (model.final_norm(residuals[-1]).double() @ weight.T).log_softmax(-1)  # type: ignore[misc]
    for row in at_next(run, "tuned").iter_rows(named=True):
        layer = row["layer"]
        log_q = (lens(residuals[layer], layer).double() @ weight.T).log_softmax(-1)
        kl = float((log_q.exp() * (log_q - log_p)).sum()) / torch.log(torch.tensor(2.0)).item()
        # Two float32 passes are up to 7e-5 of a logit apart (`rounding.of_residual`), which is below 30.
        assert row["kl_to_final_bits"] == pytest.approx(kl, rel=2e-3, abs=1e-4)
        answer = row["answer_id"]
        assert row["answer_rank"] == 1 + int((log_q > log_q[answer]).sum())


def test_the_last_tuned_row_is_the_model(run: Run):
    last = at_next(run, "tuned").tail(1)
    assert last["kl_to_final_bits"].item() == pytest.approx(0.0, abs=1e-6)
    assert last["entropy_bits"].item() == pytest.approx(at_next(run, "logit").tail(1)["entropy_bits"].item(), rel=1e-4)


def test_parts_of_the_tuned_lens_are_measured_apart(run: Run, model: CausalLM, lenses: Path):
    variants = run.record.measured.tuned_variants
    assert variants is not None and variants.bias_only is not None
    residuals = model.forward([run.record.suite.prompts[0].token_ids]).values[0, :, -1]
    translators = tuned_lens(read_fitted_lens(lenses / "a-tuned"), None).translators
    norm, weight = model.final_norm, model.unembedding.weight.tensor.double()
    assert norm is not None
    log_p = (norm(residuals[-1]).double() @ weight.T).log_softmax(-1)

    def kl(row: torch.Tensor) -> float:
        log_q = (row.double() @ weight.T).log_softmax(-1)
        return float((log_q.exp() * (log_q - log_p)).sum()) / torch.log(torch.tensor(2.0)).item()

    for layer in (1, 4, 11):
        own, residual = translators[layer], residuals[layer]
        assert own.full is not None and own.mean is not None
        expected = {
            "rotation_only": norm(residual + residual @ own.full + own.bias),
            "temperature_only": norm(residual) / own.temperature,
            "bias_only": norm(residual + own.mean @ own.full + own.bias) / own.temperature,
        }
        for name, row in expected.items():
            found = getattr(variants, name).kl_to_final_bits[layer]
            assert found == pytest.approx(kl(row), rel=2e-3, abs=1e-4)
    for part in (variants.rotation_only, variants.temperature_only, variants.bias_only):
        assert part.kl_to_final_bits[0] is None
        assert len(part.kl_to_final_bits) == 13


def test_the_record_repeats_what_the_lens_folders_say(run: Run, lenses: Path):
    tuned, prism = run.record.measured.fitted_lenses
    said = read_fitted_lens(lenses / "a-tuned").record
    assert tuned.tuned is not None and tuned.tuned.held_out is not None and said.tuned is not None
    assert tuned.weights_sha256 == said.weights_sha256
    assert tuned.tuned.held_out.lens_bits == (*(fit.tuned_bits for fit in said.tuned.layers), 0.0)
    assert tuned.tuned.temperatures == said.tuned.temperatures
    assert len(tuned.tuned.map_norms) == 13
    assert tuned.corpus is not None and said.corpus is not None
    assert tuned.corpus.sha256 == said.corpus.sha256
    assert prism.prism is not None and prism.prism.method == "procrustes_to_final"
    assert str(lenses) not in run.record.model_dump_json()


def test_a_verdict_is_given_on_them(run: Run):
    found = run.diagnostics
    assert set(found.fitted_lenses) == {"tuned", "prism"}
    assert found.tuned_audit is not None
    assert found.acceptance is not None
    assert found.skip_layers is not None
    assert "tuned_is_calibration_only" not in run.guidance.undetermined


def test_only_the_lenses_that_are_asked_for_are_read(model: CausalLM, lenses: Path):
    found = probe(model, suite="berlin", lenses="logit,tuned", lens_dir=lenses, positions="last")
    assert found.rows["lens"].unique().sort().to_list() == ["logit", "tuned"]
    assert [one.status for one in found.record.measured.fitted_lenses] == ["loaded", "off"]


def test_under_the_published_protocol_they_are_read_too(model: CausalLM, lenses: Path, tmp_path: Path):
    found = probe(model, suite="berlin", protocol="published", lens_dir=lenses)
    assert found.record.protocol.lenses[-2:] == ("tuned", "prism")
    assert found.record.protocol.headline_lens == "next_norm"


def test_a_lens_of_another_model_is_passed_over_with_a_reason(tiny, lenses: Path):
    lines: list[str] = []

    class Recorder(Observer):
        def plan(self, text: str) -> None:
            lines.append(text)

    found = probe(tiny("qwen3"), suite="berlin", lens_dir=lenses, positions="last", device="cpu", observer=Recorder())
    assert [one.status for one in found.record.measured.fitted_lenses] == ["refused", "refused"]
    assert "tuned" not in found.record.protocol.lenses
    assert any("no tuned lens" in line and "layerscope/reference" in line for line in lines)
    assert str(lenses) not in found.record.model_dump_json()


def test_one_that_was_asked_for_is_not_passed_over(tiny, model: CausalLM, lenses: Path, tmp_path: Path):
    with pytest.raises(LensError, match="layerscope/reference"):
        probe(tiny("qwen3"), suite="berlin", lenses="logit,tuned", lens_dir=lenses, device="cpu")
    with pytest.raises(LensError, match="layerscope fit prism"):
        probe(tiny("qwen3"), suite="berlin", lenses="logit,prism", device="cpu")
    with pytest.raises(LensError, match="no such folder"):
        probe(model, suite="berlin", lens_dir=tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    shutil.copytree(lenses / "a-tuned", damaged)
    record = json.loads((damaged / "lens.json").read_text())
    (damaged / "lens.json").write_text(json.dumps({**record, "weights_sha256": "0" * 64}))
    with pytest.raises(LensError, match="damaged"):
        probe(model, suite="berlin", lenses="tuned", lens_dir=damaged)


def test_a_folder_without_lenses_leaves_the_protocols_own(model: CausalLM, tmp_path: Path):
    found = probe(model, suite="berlin", lens_dir=tmp_path, positions="last")
    assert found.record.protocol.lenses == ("logit", "next_norm", "raw")
    assert [one.status for one in found.record.measured.fitted_lenses] == ["missing", "missing"]


# Auto: what lies in the folder stops no probe


def reasons(model: CausalLM, folder: str | Path) -> dict[str, str]:
    """Status and reason by kind where no lens is asked for."""
    chosen = choose_lenses(model, None, ("logit",), folder)
    assert chosen.names == ("logit", *chosen.fitted)
    return {one.kind: f"{one.status}: {one.reason}" for one in chosen.records}


def edit(lens: Path, **changes: object) -> None:
    said = json.loads((lens / "lens.json").read_text())
    (lens / "lens.json").write_text(json.dumps(said | changes))


def test_a_folder_that_cannot_be_read_does_not_hide_the_model_s_own_lens(model: CausalLM, lenses: Path, tmp_path: Path):
    shutil.copytree(lenses / "a-tuned", tmp_path / "mine")
    shutil.copytree(lenses / "a-tuned", tmp_path / "newer")
    edit(tmp_path / "newer", schema_version="99.0")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "lens.json").write_text("{")
    found = reasons(model, tmp_path)
    assert found["tuned"] == "loaded: None"
    assert found["prism"].startswith("refused: ") and "99.0" in found["prism"] and "cut/lens.json" in found["prism"]


def test_a_folder_that_cannot_be_listed_stops_no_probe(
    model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever runs the tests may be allowed everything; so the system's answer is given in place of its permissions."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = reasons(model, tmp_path)
    assert found.keys() == {"tuned", "prism"}
    assert all(why.startswith("refused: ") and "cannot be listed" in why for why in found.values())


@pytest.mark.parametrize("given", [".", "../here", "absolute"])
def test_a_reason_names_folders_wherever_they_lie_and_is_otherwise_as_it_was(
    given: str, model: CausalLM, lenses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "here"
    shutil.copytree(lenses / "a-tuned", here / "v1.0")
    edit(here / "v1.0", schema_version="99.0")
    monkeypatch.chdir(here)
    found = reasons(model, here if given == "absolute" else given)
    assert found["tuned"] == (
        "refused: here: no tuned lens in it belongs to layerscope/reference (n_layers 12, d_model 96, d_vocab 2048); "
        "`layerscope fit tuned MODEL --text FILE --out here` fits one. There are: here/v1.0/lens.json: field "
        "`schema_version` is 99.0, but this layerscope reads 1.3; a newer layerscope wrote it and reads it, so update."
    )
    assert str(tmp_path) not in "".join(found.values())


def test_a_reason_keeps_names_that_only_contain_the_folder_s_path(
    tiny, model: CausalLM, lenses: Path, monkeypatch: pytest.MonkeyPatch
):
    """As for a folder `/lenses` and a model `some/lenses`."""

    def refuse(folder: Path, *_: object) -> None:
        raise LensError(f"{folder}: of some{folder}, not '{folder}/a'.")

    monkeypatch.setattr("layerscope.probing.lens_selection.find_lens_of", refuse)
    place = lenses.resolve()
    assert reasons(model, lenses)["tuned"] == f"refused: {place.name}: of some{place}, not '{place.name}/a'."


def test_a_damaged_lens_and_one_on_rows_that_no_lens_gives_are_refused(model: CausalLM, lenses: Path, tmp_path: Path):
    for name in ("a-tuned", "a-prism"):
        shutil.copytree(lenses / name, tmp_path / name)
    (tmp_path / "a-tuned" / "lens.safetensors").unlink()
    fit = json.loads((tmp_path / "a-prism" / "lens.json").read_text())["prism"]
    edit(tmp_path / "a-prism", prism=fit | {"stream": "tuned"})
    found = reasons(model, tmp_path)
    assert found["tuned"].startswith(
        f"refused: {tmp_path.name}/a-tuned/lens.safetensors: the lens' weights are missing"
    )
    assert found["prism"].startswith(f"refused: {tmp_path.name}/a-prism: a prism lens stands on the rows of")


def test_several_lenses_of_the_model_are_none_unless_one_is_named(model: CausalLM, lenses: Path, tmp_path: Path):
    for name in ("one", "two"):
        shutil.copytree(lenses / "a-tuned", tmp_path / name)
    place = tmp_path.name
    assert reasons(model, tmp_path) == {
        "tuned": f"refused: {place}: 2 tuned lenses belong to layerscope/reference; name the folder of one: "
        f"{place}/one, {place}/two.",
        "prism": f"missing: none is in '{place}'",
    }
    assert reasons(model, tmp_path / "two")["tuned"] == "loaded: None"
