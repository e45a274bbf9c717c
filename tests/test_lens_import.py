"""Lenses that others fitted: imported they decode as their own library would, and what does not fit is refused.

Tolerances. Float32 products of at most 16 terms of sizes below 5, by column instead of row in one case: 1e-5 and
1e-4.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layerscope.errors import LensError
from layerscope.lens_record import FittedModel
from layerscope.lenses import LogitLens, read_fitted_lens, write_fitted_lens
from layerscope.lenses.binding import bind_lenses
from layerscope.lenses.importing import import_lens, unembedding_hash
from layerscope.lenses.lens import Lens
from layerscope.stored.weight import DenseWeight
from layerscope.unembedding import Norm

D, N = 6, 4
NORM = Norm("rms", None, None, 1e-6, "model.norm")
RESIDUAL = torch.randn(5, D, generator=torch.Generator().manual_seed(5))
MODEL = FittedModel(
    id="some/model",
    commit=None,
    family="llama",
    n_layers=N,
    d_model=D,
    d_vocab=11,
    fingerprint="f" * 64,
    tokenizer_sha256="0" * 64,
)
CONFIG = {
    "base_model_name_or_path": "some/model",
    "d_model": D,
    "num_hidden_layers": N,
    "bias": True,
    "base_model_revision": None,
    "unembed_hash": None,
    "lens_type": "linear_tuned_lens",
}


def _layers() -> nn.ModuleList:
    """Linear layers as that library holds them; random, so that none is symmetric."""
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(D, D) for _ in range(N)]).requires_grad_(False)


def _save_tuned(folder: Path, state: dict | None = None, *, safe: bool = False, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    state = dict(_layers().state_dict()) if state is None else state
    if safe:
        save_file(state, folder / "params.safetensors")
    else:
        torch.save(state, folder / "params.pt")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def _jacobians() -> dict[int, torch.Tensor]:
    """A matrix for each block before the last, by the block's number."""
    generator = torch.Generator().manual_seed(1)
    return {block: torch.randn(D, D, generator=generator).half() for block in range(N - 1)}


def _save_jacobian(path: Path, **changes) -> Path:
    said = {"J": _jacobians(), "n_prompts": 12, "source_layers": list(range(N - 1)), "d_model": D, **changes}
    torch.save({key: value for key, value in said.items() if value is not ...}, path)
    return path


def _lens(path: Path, folder: Path, **arguments) -> Lens:
    """Import, write, read back, bind: the whole way."""
    record, tensors = import_lens(path, model=MODEL, allow_pickle=True, **arguments)
    write_fitted_lens(folder, record, tensors)
    fitted = {record.kind: read_fitted_lens(folder)}
    return bind_lenses((record.kind,), final_norm=NORM, next_norms=(NORM,) * (N + 1), fitted=fitted)[0]


# The tuned-lens library


@pytest.mark.parametrize("safe", [False, True])
def test_an_imported_tuned_lens_adds_its_linear_layer_to_the_residual_before_the_norm(safe: bool, tmp_path: Path):
    lens = _lens(_save_tuned(tmp_path / "theirs", safe=safe), tmp_path / "ours")
    for layer, linear in enumerate(_layers()):
        assert torch.allclose(lens(RESIDUAL, layer), NORM(RESIDUAL + linear(RESIDUAL)), atol=1e-5)
    assert torch.equal(lens(RESIDUAL, N), NORM(RESIDUAL))
    assert lens.temperatures == (1.0,) * (N + 1)


def test_the_record_says_where_a_lens_comes_from(tmp_path: Path):
    folder = _save_tuned(tmp_path / "theirs", base_model_name_or_path="other/model")
    record, _ = import_lens(folder, model=MODEL, allow_pickle=True)
    assert (record.kind, record.model, record.corpus, record.settings) == ("tuned", MODEL, None, None)
    assert record.tuned is not None
    assert (record.tuned.placement, record.tuned.rank, record.tuned.layers) == ("raw", D, ())
    assert record.imported is not None
    assert (record.imported.format, record.imported.name) == ("tuned-lens", "theirs")
    assert record.imported.sha256 == hashlib.sha256((folder / "params.pt").read_bytes()).hexdigest()
    assert record.imported.stated["num_hidden_layers"] == N
    assert any("says that it belongs to other/model; it was imported for some/model" in note for note in record.notes)


def test_half_precision_and_a_lens_without_biases_are_read(tmp_path: Path):
    weights = {name: value.half() for name, value in _layers().state_dict().items() if name.endswith("weight")}
    lens = _lens(_save_tuned(tmp_path / "theirs", weights, bias=False), tmp_path / "ours")
    assert torch.allclose(lens(RESIDUAL, 1), NORM(RESIDUAL + RESIDUAL @ weights["1.weight"].float().T), atol=1e-5)


def test_a_file_may_be_named_instead_of_its_folder(tmp_path: Path):
    folder = _save_tuned(tmp_path / "theirs")
    by_file, by_folder = (
        import_lens(path, model=MODEL, allow_pickle=True)[1] for path in (folder / "params.pt", folder)
    )
    assert by_file.keys() == by_folder.keys()
    assert all(torch.equal(by_file[name], by_folder[name]) for name in by_file)


@pytest.mark.parametrize("shape", [(11, 6), (300, 8), (40, 6), (8, 200), (166, 6), (7, 500)])
@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_the_hash_of_a_head_is_that_of_its_printed_text(shape: tuple[int, int], scale: float):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(2)) * scale
    wanted = hashlib.sha256(np.array_str(weight.numpy(), precision=1).encode()).hexdigest()
    assert unembedding_hash(DenseWeight(weight)) == wanted


def test_a_hash_of_the_head_is_compared_and_a_difference_noted(tmp_path: Path):
    head = torch.randn(200, D, generator=torch.Generator().manual_seed(3))
    said = hashlib.sha256(np.array_str(head.numpy(), precision=1).encode()).hexdigest()
    folder = _save_tuned(tmp_path / "theirs", unembed_hash=said)

    def notes(unembedding: torch.Tensor | None) -> tuple[str, ...]:
        head = None if unembedding is None else DenseWeight(unembedding)
        return import_lens(folder, model=MODEL, allow_pickle=True, unembedding=head)[0].notes

    assert notes(head) == ()
    assert "is not this model's" in notes(head + 1)[0]
    assert "was not compared" in notes(None)[0]
    _save_tuned(tmp_path / "theirs", unembed_hash=None)
    assert "gives no hash" in notes(head)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 8}, r"a lens of 4 layers with d_model 8, but some/model has 4 layers with d_model 6"),
        ({"num_hidden_layers": 5}, r"a lens of 5 layers with d_model 6, but some/model has 4"),
        ({"lens_type": "mlp"}, "a lens of type mlp, but only linear_tuned_lens"),
        ({"bias": False}, r"translators 0 to 3, but `0\.bias` is too much"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: dict, message: str, tmp_path: Path):
    with pytest.raises(LensError, match=message):
        import_lens(_save_tuned(tmp_path / "theirs", **changes), model=MODEL, allow_pickle=True)


def test_a_config_that_is_missing_damaged_or_of_a_model_is_refused(tmp_path: Path):
    folder = _save_tuned(tmp_path / "theirs")
    (folder / "config.json").write_text('{"hidden_size": 6}')
    with pytest.raises(LensError, match="no config of a tuned lens, which says `d_model` and `num_hidden_layers`"):
        import_lens(folder, model=MODEL, allow_pickle=True)
    (folder / "config.json").write_text("{")
    with pytest.raises(LensError, match=r"config\.json: not JSON"):
        import_lens(folder, model=MODEL, allow_pickle=True)
    (folder / "config.json").unlink()
    with pytest.raises(LensError, match=r"config\.json: cannot be read .*the tuned-lens library saves it too"):
        import_lens(folder, model=MODEL, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("3.bias", None, r"`3\.bias` is missing"),
        ("4.weight", torch.zeros(D, D), r"`4\.weight` is too much"),
        (
            "1.weight",
            torch.zeros(D, D - 1),
            r"`1\.weight` should be floating point of shape \(6, 6\), but it is .*\(6, 5\)",
        ),
        ("1.weight", torch.zeros(D, D, dtype=torch.int8), "but it is torch.int8"),
        ("1.bias", "text", r"`1\.bias` should be floating point of shape \(6,\), but it is str"),
    ],
)
def test_translators_that_are_not_whole_are_refused(name: str, value: object, message: str, tmp_path: Path):
    state = {**_layers().state_dict(), name: value}
    if value is None:
        del state[name]
    with pytest.raises(LensError, match=message):
        import_lens(_save_tuned(tmp_path / "theirs", state), model=MODEL, allow_pickle=True)


# Jacobian lenses


def test_an_imported_jacobian_lens_sends_the_residual_after_a_block_through_that_blocks_matrix(tmp_path: Path):
    lens = _lens(_save_jacobian(tmp_path / "lens.pt"), tmp_path / "ours")
    for block, matrix in _jacobians().items():
        columns = matrix.double() @ RESIDUAL.double().T
        assert torch.allclose(lens(RESIDUAL, block + 1), NORM(columns.T.float()), atol=1e-4)


def test_the_embedding_has_no_matrix_in_a_file_and_is_read_as_by_the_logit_lens(tmp_path: Path):
    lens = _lens(_save_jacobian(tmp_path / "lens.pt"), tmp_path / "ours")
    for layer in (0, N):
        assert torch.equal(lens(RESIDUAL, layer), LogitLens(NORM)(RESIDUAL, layer))
    notes = read_fitted_lens(tmp_path / "ours").record.notes
    assert any("no matrix for layer 0, which is read as by the logit lens" in note for note in notes)


def test_an_unfinished_lens_is_taken_only_where_that_was_asked_for_and_then_as_a_mean(tmp_path: Path):
    sums = {block: 12.0 * matrix.float() for block, matrix in _jacobians().items()}
    said = {
        "jacobian_sum": sums,
        "n_done": 12,
        "next_idx": 12,
        "source_layers": list(range(N - 1)),
        "target_layer": N - 1,
    }
    torch.save(said, tmp_path / "checkpoint.pt")
    with pytest.raises(LensError, match=r"still being fitted; import the finished lens, .* with `--unfinished`"):
        import_lens(tmp_path / "checkpoint.pt", model=MODEL, allow_pickle=True)
    record, tensors = import_lens(tmp_path / "checkpoint.pt", model=MODEL, allow_pickle=True, unfinished=True)
    assert record.jacobian is not None and (record.jacobian.n_prompts, record.jacobian.target_layer) == (12, N)
    assert "still being fitted" in record.notes[0]
    for block, matrix in _jacobians().items():
        torch.testing.assert_close(tensors[f"layers.{block + 1:03d}.jacobian"], matrix.float())
    torch.save(said | {"n_done": 0}, tmp_path / "none.pt")
    with pytest.raises(LensError, match="count its prompts in `n_done`, but that is 0"):
        import_lens(tmp_path / "none.pt", model=MODEL, allow_pickle=True, unfinished=True)


def test_the_record_of_a_jacobian_lens_says_what_its_file_says(tmp_path: Path):
    path = _save_jacobian(tmp_path / "lens.pt", metadata={"model_name": "some/model", "of": [1]}, provenance="a text")
    record, _ = import_lens(path, model=MODEL, allow_pickle=True)
    assert record.imported is not None
    assert record.imported.format == "jacobian-lens"
    assert record.imported.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    stated = {"n_prompts": 12, "d_model": D, "metadata.model_name": "some/model", "provenance": "a text"}
    assert record.imported.stated == stated


def test_a_lens_file_is_found_in_its_folder(tmp_path: Path):
    (tmp_path / "one").mkdir()
    _save_jacobian(tmp_path / "one" / "gpt2_jacobian_lens.pt")
    record, _ = import_lens(tmp_path / "one", model=MODEL, allow_pickle=True)
    assert record.imported is not None
    assert record.imported.name == "gpt2_jacobian_lens.pt"
    _save_jacobian(tmp_path / "one" / "other.pt")
    with pytest.raises(LensError, match=r"holds 2 files \*\.pt; name one of them"):
        import_lens(tmp_path / "one", model=MODEL, allow_pickle=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 8}, "a lens with d_model 8, but some/model has 6"),
        ({"d_model": ...}, "a lens with d_model None"),
        ({"J": {}}, "`J` should map blocks to matrices, but it is dict"),
        ({"J": torch.zeros(3, D, D)}, "`J` should map blocks to matrices, but it is Tensor"),
        ({"J": {3: torch.zeros(D, D)}}, "a matrix for block 3, but those of some/model before the last are 0 to 2"),
        ({"J": {"0": torch.zeros(D, D)}}, "a matrix for block 0, but"),
        ({"J": {0: torch.zeros(D, D)}}, "`source_layers` lists other blocks than `J` has"),
        ({"J": _jacobians() | {0: torch.zeros(D, 2)}}, r"`J\[0\]` should be .* \(6, 6\), but it is .* \(6, 2\)"),
        (
            {"J": {b: m for b, m in _jacobians().items() if b != 1}, "source_layers": [0, 2]},
            "no matrix for block 1, but",
        ),
        ({"J": {b: 100.0 * m for b, m in _jacobians().items()}}, r"but that of `J\[2\]` is \d+ \(a sum over prompts"),
        ({"J": _jacobians() | {0: torch.full((D, D), torch.nan)}}, r"`J\[0\]` holds values that are not finite"),
        ({"source_means": {0: torch.zeros(D)}}, "it holds `source_means` too, and what that does to a reading"),
    ],
)
def test_a_jacobian_lens_that_does_not_fit_is_refused(changes: dict, message: str, tmp_path: Path):
    with pytest.raises(LensError, match=message):
        import_lens(_save_jacobian(tmp_path / "lens.pt", **changes), model=MODEL, allow_pickle=True)


# What is opened


def test_a_pickle_is_opened_only_where_that_was_allowed(tmp_path: Path):
    for path in (_save_tuned(tmp_path / "theirs"), _save_jacobian(tmp_path / "lens.pt")):
        with pytest.raises(LensError, match=r"opened as a pickle, which can run code .* `--allow-pickle`"):
            import_lens(path, model=MODEL, allow_pickle=False)
    import_lens(_save_tuned(tmp_path / "safe", safe=True), model=MODEL, allow_pickle=False)


class _Runs:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_pickle_does_not_run(tmp_path: Path):
    torch.save({"J": _Runs(tmp_path / "made")}, tmp_path / "lens.pt")
    with pytest.raises(LensError, match="holds something else than tensors and plain values"):
        import_lens(tmp_path / "lens.pt", model=MODEL, allow_pickle=True)
    assert not (tmp_path / "made").exists()


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path):
    whole = _save_jacobian(tmp_path / "lens.pt").read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "lens.pt").write_bytes(whole[:length])
        with pytest.raises(LensError, match="or is damaged"):
            import_lens(tmp_path / "lens.pt", model=MODEL, allow_pickle=True)
    (tmp_path / "params.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LensError, match="or is damaged"):
        import_lens(tmp_path / "params.safetensors", model=MODEL, allow_pickle=False)


def test_an_old_pickle_whose_storage_is_lost_is_refused(tmp_path: Path):
    path = tmp_path / "lens.pt"
    torch.save({"J": {0: torch.zeros(D, D)}}, path, _use_new_zipfile_serialization=False)
    *_, key = re.finditer(rb"\d{10,}", path.read_bytes())  # the last mention of the storage is beside its bytes
    whole = path.read_bytes()
    path.write_bytes(whole[: key.start()] + b"x" + whole[key.start() + 1 :])
    with pytest.raises(LensError, match="or is damaged"):
        import_lens(path, model=MODEL, allow_pickle=True)


def test_what_is_no_lens_is_refused_with_the_two_kinds(tmp_path: Path):
    torch.save({"lm_head.weight": torch.zeros(2)}, tmp_path / "model.pt")
    kinds = r"a lens to import is a folder with config\.json and params\.pt .* or one file of a Jacobian lens"
    with pytest.raises(LensError, match=rf"it holds `lm_head\.weight`, but {kinds}"):
        import_lens(tmp_path / "model.pt", model=MODEL, allow_pickle=True)
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(LensError, match=f"it holds nothing, but {kinds}"):
        import_lens(tmp_path / "model.pt", model=MODEL, allow_pickle=True)
    torch.save([1, 2], tmp_path / "model.pt")
    with pytest.raises(LensError, match="list where a lens' file has a mapping"):
        import_lens(tmp_path / "model.pt", model=MODEL, allow_pickle=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LensError, match=f"{kinds}.*, but it holds neither"):
        import_lens(tmp_path / "empty", model=MODEL, allow_pickle=True)
    with pytest.raises(LensError, match="no such file or folder"):
        import_lens(tmp_path / "nothing", model=MODEL, allow_pickle=True)


def test_a_checkpoint_of_a_fit_is_told_from_a_lens(tmp_path: Path):
    torch.save({"jacobian_sum": _jacobians(), "n_done": 3}, tmp_path / "lens.pt")
    with pytest.raises(LensError, match="still being fitted; import the finished lens"):
        import_lens(tmp_path / "lens.pt", model=MODEL, allow_pickle=True)


def test_our_own_lens_is_nothing_to_import(tmp_path: Path):
    _lens(_save_tuned(tmp_path / "theirs"), tmp_path / "ours")
    with pytest.raises(LensError, match="in layerscope's own format already"):
        import_lens(tmp_path / "ours", model=MODEL, allow_pickle=True)


def test_the_files_say_which_kind_a_lens_is(tmp_path: Path):
    saved = {
        "jacobian-lens": _save_jacobian(tmp_path / "lens.pt"),
        "tuned-lens": _save_tuned(tmp_path / "theirs"),
    }
    for kind, path in saved.items():
        record, _ = import_lens(path, model=MODEL, allow_pickle=True)
        assert record.imported is not None
        assert record.imported.format == kind


def test_values_that_are_not_finite_do_not_become_a_lens_folder(tmp_path: Path):
    spoilt = {block: torch.full((D, D), torch.inf) for block in range(N - 1)}
    with pytest.raises(LensError, match="holds values that are not finite"):
        _lens(_save_jacobian(tmp_path / "lens.pt", J=spoilt), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
