"""A fitted lens on disk: it comes back as it was, and what is damaged or belongs elsewhere is refused by name."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from layerscope.errors import LensError
from layerscope.lens_record import (
    FORMAT,
    SCHEMA_VERSION,
    FittedModel,
    LensRecord,
    PrismFit,
    TunedFit,
)
from layerscope.lenses import (
    FittedLens,
    PrismLens,
    RawLens,
    Translator,
    TunedLens,
    bind_lenses,
    find_lens_folders,
    find_lens_of,
    read_fitted_lens,
    write_fitted_lens,
)
from layerscope.lenses.lens_folder import (
    mismatch,
    prism_lens,
    prism_tensors,
    tuned_lens,
    tuned_tensors,
    tuned_translators,
)
from layerscope.unembedding import Norm

D, N = 6, 3
NORM = Norm("rms", None, None, 1e-6, "model.norm")
RESIDUAL = torch.randn(4, D, generator=torch.Generator().manual_seed(5))


def _model(fingerprint: str = "f" * 64, **changes) -> FittedModel:
    said = {"id": "some/model", "commit": None, "family": "llama", "n_layers": N, "d_model": D, "d_vocab": 11}
    return FittedModel(**{**said, "fingerprint": fingerprint, "tokenizer_sha256": "0" * 64, **changes})


def _record(
    kind: str, model: FittedModel, *, tuned: TunedFit | None = None, prism: PrismFit | None = None
) -> LensRecord:
    return LensRecord(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        kind=kind,
        created_utc="2026-01-01T00:00:00+00:00",
        weights_sha256="",
        model=model,
        settings=None,
        corpus=None,
        tuned=tuned,
        prism=prism,
        imported=None,
        notes=(),
    )


def _tuned_record(rank: int, taus: tuple[float, ...], model: FittedModel | None = None, **changes) -> LensRecord:
    empty = {"n_moments": None, "n_refined": None, "n_select": None, "n_held_out": None}
    said = {
        "placement": "raw",
        "rank": rank,
        "temperatures": taus,
        "first_position": 0,
        "layers": (),
        "skip_layers": (),
    }
    return _record("tuned", model or _model(), tuned=TunedFit(**{**said, **empty, **changes}))


def _translators(rank: int, seed: int = 0) -> tuple[Translator, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def linear() -> dict[str, torch.Tensor]:
        if rank == D:
            return {"full": draw(D, D)}
        return {"down": draw(D, rank), "up": draw(rank, D)} if rank else {}

    return tuple(Translator(draw(D), tau, **linear()) for tau in (0.7, 1.1, 1 / 3))


TAUS = (0.7, 1.1, 1 / 3, 1.0)


def _write_tuned(folder: Path, rank: int = 2, model: FittedModel | None = None, seed: int = 0) -> FittedLens:
    return write_fitted_lens(folder, _tuned_record(rank, TAUS, model), tuned_tensors(_translators(rank, seed)))


def _prism_record(**changes) -> LensRecord:
    said = {
        "method": "procrustes_to_final",
        "pairing": "cross_covariance",
        "k": 4,
        "k_asked": 4,
        "rank_effective": 4,
        "stream": "logit",
        "rows": (0, 1),
        "layers": ("embed", "0"),
        "vectors": 10,
        "distinct_vectors": 10,
        "reservoir": 10,
        "eps": 1e-8,
        "orthogonality_error": 1e-6,
        "held_out_bits": (1.0,) * (N + 1),
        "logit_bits": (1.0,) * (N + 1),
        "n_held_out": 5,
    }
    return _record("prism", _model(), prism=PrismFit(**{**said, **changes}))


def _prism_parts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rotation, _ = torch.linalg.qr(torch.randn(D, D, generator=generator))
    return prism_tensors(torch.randn(D, generator=generator), torch.rand(D, generator=generator) + 1, rotation)


# What is kept


@pytest.mark.parametrize("rank", [0, 2, D])
def test_a_tuned_lens_comes_back_to_the_bit(rank: int, tmp_path: Path):
    written = _write_tuned(tmp_path / "lens", rank)
    read = read_fitted_lens(tmp_path / "lens")
    assert read.record == written.record
    before = TunedLens(NORM, _translators(rank), "raw")
    after = tuned_lens(read, NORM)
    for layer in range(N + 1):
        assert torch.equal(before(RESIDUAL, layer), after(RESIDUAL, layer))
    assert [one.parts().keys() for one in tuned_translators(read)] == [one.parts().keys() for one in _translators(rank)]
    assert after.temperatures == TAUS


def test_a_prism_comes_back_to_the_bit(tmp_path: Path):
    parts = _prism_parts()
    written = write_fitted_lens(tmp_path / "lens", _prism_record(), parts)
    read = read_fitted_lens(tmp_path / "lens")
    assert all(torch.equal(read.tensors[name], parts[name]) for name in ("mean", "variance", "rotation"))
    rows = prism_lens(read, RawLens())(RESIDUAL, 1)
    assert torch.equal(rows, prism_lens(written, RawLens())(RESIDUAL, 1))
    by_hand = PrismLens(RawLens(), parts["mean"], parts["variance"], 1e-8, parts["rotation"].contiguous())
    assert torch.equal(rows, by_hand(RESIDUAL, 1))


def test_the_files_are_the_two_that_a_reader_expects(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    assert sorted(path.name for path in (tmp_path / "lens").iterdir()) == ["lens.json", "lens.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["lens"]
    said = json.loads((tmp_path / "lens" / "lens.json").read_text())
    assert said["format"] == "layerscope-lens"
    tensors = load_file(tmp_path / "lens" / "lens.safetensors")
    parts = [f"layers.{layer:03d}.{part}" for layer in range(N) for part in ("bias", "down", "up")]
    assert sorted(tensors) == sorted([*parts, "temperatures"])
    assert tensors["temperatures"].tolist() == list(TAUS)


def test_equal_tensors_give_equal_files_whatever_their_order_and_memory(tmp_path: Path):
    tensors = tuned_tensors(_translators(2))
    odd = {name: torch.stack([tensor, tensor], -1)[..., 1] for name, tensor in reversed(tensors.items())}
    one = write_fitted_lens(tmp_path / "one", _tuned_record(2, TAUS), tensors)
    other = write_fitted_lens(tmp_path / "other", _tuned_record(2, TAUS), odd)
    bytes_of = [(tmp_path / name / "lens.safetensors").read_bytes() for name in ("one", "other")]
    assert bytes_of[0] == bytes_of[1]
    assert one.record.weights_sha256 == other.record.weights_sha256


# What is not written


def test_a_lens_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "lens").mkdir()
    with pytest.raises(LensError, match="is already there, and a fitted lens is never overwritten"):
        _write_tuned(tmp_path / "lens")
    assert list((tmp_path / "lens").iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    def full(path, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LensError, match=r"could not be written .*No space left.* make room on that disk"):
        _write_tuned(tmp_path / "lens")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_while_the_weights_are_written_is_called_so(tmp_path: Path, monkeypatch):
    def full(tensors, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("layerscope.lenses.recorded_folder.save_file", full)
    with pytest.raises(LensError, match=r"could not be written .*No space left.* make room on that disk"):
        _write_tuned(tmp_path / "lens")


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match="choose a folder that you may write to"):
        _write_tuned(tmp_path / "file" / "lens")


def test_a_record_with_an_infinite_number_is_not_written(tmp_path: Path):
    record = _prism_record(held_out_bits=(math.inf,) * (N + 1))
    with pytest.raises(LensError, match=r"prism\.held_out_bits\.0: Input should be a valid number"):
        write_fitted_lens(tmp_path / "lens", record, _prism_parts())
    assert list(tmp_path.iterdir()) == []


def test_a_lens_that_contradicts_its_record_is_not_written(tmp_path: Path):
    with pytest.raises(LensError, match=r"lacks the tensor `layers\.000\.full`"):
        write_fitted_lens(tmp_path / "lens", _tuned_record(D, TAUS), tuned_tensors(_translators(2)))
    assert list(tmp_path.iterdir()) == []


# What is not read


def _edit(folder: Path, **changes) -> None:
    said = json.loads((folder / "lens.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = said
        for key in path:
            inner = inner[key]
        inner[last] = value
    (folder / "lens.json").write_text(json.dumps(said))


def _replace(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Change one tensor behind the record's back, with the right hash, so that only the content can be objected to."""
    import hashlib

    tensors = {key: value.clone() for key, value in load_file(folder / "lens.safetensors").items()}
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "lens.safetensors")
    _edit(folder, weights_sha256=hashlib.sha256((folder / "lens.safetensors").read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "field `format` should be layerscope-lens, but it is other"),
        ({"format": None}, "field `format` should be layerscope-lens, but it is None"),
        (
            {"schema_version": "1.7"},
            r"`schema_version` is 1\.7, but this layerscope reads 1\.3; a newer layerscope wrote",
        ),
        ({"schema_version": "10.0"}, "a newer layerscope wrote it"),
        ({"schema_version": "0.9"}, r"is 0\.9, but this layerscope reads 1\.3; fit the lens again"),
        ({"schema_version": None}, "`schema_version` is None, but this layerscope reads"),
        ({"kind": "other"}, "kind: Input should be 'tuned', 'prism', 'ridge' or 'jacobian'"),
        ({"kind": "prism"}, "says that it is of a prism lens, but its parts are not"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"tuned__rank": 3}, r"`layers\.000\.down` is torch\.float32 of shape \(6, 3\), but it is .* \(6, 2\)"),
        ({"tuned__rank": 7}, "the rank is 7, which is not between 0 and d_model = 6"),
        ({"tuned__rank": 0}, r"should not have the tensor `layers\.000\.down`"),
        ({"model__d_model": 8}, r"`layers\.000\.down` is torch\.float32 of shape \(8, 2\)"),
        ({"model__n_layers": 4}, "4 temperatures, but layers 0 to 4 each have one"),
        ({"tuned__temperatures": (0.7, 1.1, 0.0, 1.0)}, r"the temperature of layer 2 is 0\.0, which is not positive"),
        ({"tuned__temperatures": (0.7, 1.1, 0.5, 1.0)}, "the temperatures are not those of its record"),
        ({"tuned__temperatures": (0.7, 1.1, 0.5, 1.5)}, r"the model itself, but its temperature is 1\.5 and not 1"),
        ({"weights_sha256": "0" * 64}, "damaged, its sha256 is not the one in lens.json; take it from a copy"),
    ],
)
def test_a_record_that_is_wrong_is_refused(changes: dict, message: str, tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    _edit(tmp_path / "lens", **changes)
    with pytest.raises(LensError, match=message):
        read_fitted_lens(tmp_path / "lens")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layers.001.bias", None, r"lacks the tensor `layers\.001\.bias`"),
        ("more", torch.zeros(1), "should not have the tensor `more`"),
        ("layers.001.bias", torch.zeros(D + 1), r"`layers\.001\.bias` is .* \(6,\), but it is .* \(7,\)"),
        ("layers.001.bias", torch.zeros(D, dtype=torch.float16), "but it is torch.float16"),
        ("layers.001.bias", torch.full((D,), math.nan), r"`layers\.001\.bias` holds values that are not finite"),
        ("temperatures", torch.tensor([0.7, 1.1, 0.3, 1.0], dtype=torch.float64), "not those of its record"),
    ],
)
def test_tensors_that_are_not_what_the_record_says_are_refused(name, tensor, message, tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    _replace(tmp_path / "lens", name, tensor)
    with pytest.raises(LensError, match=message):
        read_fitted_lens(tmp_path / "lens")


def test_one_flipped_bit_is_found_unless_verification_is_left_out(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    path = tmp_path / "lens" / "lens.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(LensError, match=r"lens\.safetensors: damaged"):
        read_fitted_lens(tmp_path / "lens")
    read_fitted_lens(tmp_path / "lens", verify=False)


def test_weights_that_were_cut_short_are_refused_without_verification_too(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    path = tmp_path / "lens" / "lens.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LensError, match="not a whole safetensors file"):
        read_fitted_lens(tmp_path / "lens", verify=False)


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(LensError, match=r"lens\.json: cannot be read .* a fitted lens is a folder with lens\.json and"):
        read_fitted_lens(tmp_path / "nothing")
    _write_tuned(tmp_path / "lens")
    (tmp_path / "lens" / "lens.safetensors").unlink()
    with pytest.raises(LensError, match=r"lens\.safetensors: the lens' weights are missing"):
        read_fitted_lens(tmp_path / "lens")
    (tmp_path / "lens" / "lens.json").write_text('{"format": ')
    with pytest.raises(LensError, match=r"lens\.json: not JSON .* damaged"):
        read_fitted_lens(tmp_path / "lens")
    (tmp_path / "lens" / "lens.json").write_text("[]")
    with pytest.raises(LensError, match="this is no fitted lens of ours"):
        read_fitted_lens(tmp_path / "lens")


def test_a_prism_whose_matrix_is_no_rotation_is_refused(tmp_path: Path):
    write_fitted_lens(tmp_path / "lens", _prism_record(), _prism_parts())
    _edit(tmp_path / "lens", prism__orthogonality_error=0.01)
    with pytest.raises(LensError, match=r"no rotation \(\|\|Q\^T Q - I\|\| is 0\.01\)"):
        read_fitted_lens(tmp_path / "lens")


def test_a_lens_is_not_taken_for_one_of_another_kind(tmp_path: Path):
    tuned = _write_tuned(tmp_path / "tuned")
    prism = write_fitted_lens(tmp_path / "prism", _prism_record(), _prism_parts())
    with pytest.raises(LensError, match="A tuned lens was expected, but the record is of a prism lens"):
        tuned_translators(prism)
    with pytest.raises(LensError, match="A prism lens was expected, but the record is of a tuned lens"):
        prism_lens(tuned, RawLens())


# Finding the lens of a model


def test_lenses_are_found_in_a_folder_and_right_below_it(tmp_path: Path):
    _write_tuned(tmp_path / "lenses" / "b")
    _write_tuned(tmp_path / "lenses" / "a", rank=0)
    _write_tuned(tmp_path / "lenses" / "a" / "deeper")
    write_fitted_lens(tmp_path / "lenses" / "p", _prism_record(), _prism_parts())
    shutil.copytree(tmp_path / "lenses" / "a", tmp_path / "lenses" / ".a.partial-0")
    (tmp_path / "lenses" / "notes").mkdir()
    assert [one.folder.name for one in find_lens_folders(tmp_path / "lenses", "tuned")] == ["a", "b"]
    assert [one.folder.name for one in find_lens_folders(tmp_path / "lenses", "prism")] == ["p"]
    assert [one.folder.name for one in find_lens_folders(tmp_path / "lenses" / "a", "tuned")] == ["a", "deeper"]


def test_finding_reads_no_weights(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    (tmp_path / "lens" / "lens.safetensors").write_bytes(b"nothing of use")
    (found,) = find_lens_folders(tmp_path, "tuned")
    assert found.record.model == _model()
    with pytest.raises(LensError, match="damaged"):
        read_fitted_lens(found.folder)


def test_the_lens_of_a_model_is_the_one_with_its_fingerprint(tmp_path: Path):
    _write_tuned(tmp_path / "one", model=_model("1" * 64), seed=1)
    _write_tuned(tmp_path / "two", model=_model("2" * 64), seed=2)
    found = find_lens_of(tmp_path, "tuned", _model("2" * 64, id="another/name", commit="abc"))
    assert found.folder == tmp_path / "two"
    assert torch.equal(read_fitted_lens(found.folder).tensors["layers.000.bias"], _translators(2, seed=2)[0].bias)


def test_where_there_is_no_lens_the_way_to_one_is_said(tmp_path: Path):
    write_fitted_lens(tmp_path / "p", _prism_record(), _prism_parts())
    with pytest.raises(
        LensError, match="there is no tuned lens in it or directly below it; `layerscope fit tuned MODEL"
    ):
        find_lens_of(tmp_path, "tuned", _model())
    with pytest.raises(LensError, match="no such folder; give one that holds fitted lenses"):
        find_lens_of(tmp_path / "nowhere", "tuned", _model())


def test_lenses_of_other_models_are_named_with_their_shapes(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    model = _model("e" * 64, id="this/one", d_vocab=99)
    with pytest.raises(LensError) as refusal:
        find_lens_of(tmp_path, "tuned", model)
    assert "belongs to this/one (n_layers 3, d_model 6, d_vocab 99)" in str(refusal.value)
    assert "of some/model (n_layers 3, d_model 6, d_vocab 11)" in str(refusal.value)


def test_a_lens_of_other_weights_of_the_same_shapes_is_refused_as_such(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    with pytest.raises(
        LensError, match=r"same shapes but another head or final norm.*fine-tuned, quantised or another"
    ):
        find_lens_of(tmp_path, "tuned", _model("e" * 64))


def test_a_model_with_the_same_head_and_another_depth_is_another_model(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    with pytest.raises(LensError, match=r"belongs to some/model \(n_layers 2.*There are:.* of some/model \(n_layers 3"):
        find_lens_of(tmp_path, "tuned", _model(n_layers=2))


def test_other_blocks_under_the_same_head_are_noticed_where_both_models_state_them(tmp_path: Path):
    fitted, other = (_model(blocks_fingerprint=said * 64) for said in "12")
    assert mismatch(fitted, other) == (
        "of some/model, the same head and final norm, but other blocks: other weights (fine-tuned, merged), or the "
        "same stored in another form or computed with other settings"
    )
    assert mismatch(fitted, _model(blocks_fingerprint="1" * 64)) == ""
    assert mismatch(fitted, _model()) == mismatch(_model(), fitted) == mismatch(_model(), _model()) == ""
    ablated = _model(blocks_fingerprint="3" * 64, changed="has parts put out of action (without-attn-2)")
    assert mismatch(fitted, ablated) == (
        "of some/model as it is, but this model has parts put out of action (without-attn-2)"
    )
    assert mismatch(ablated, fitted) == (
        "of some/model, which has parts put out of action (without-attn-2), but this model is as it was read"
    )
    assert mismatch(ablated, ablated) == ""
    _write_tuned(tmp_path / "lens", model=fitted)
    assert find_lens_of(tmp_path, "tuned", fitted).record.model.blocks_fingerprint == "1" * 64
    with pytest.raises(LensError, match=r"There are: .*lens: of some/model, the same head .* \(fine-tuned, merged\)"):
        find_lens_of(tmp_path, "tuned", other)


def _unreadable_neighbours(folder: Path) -> dict[str, str]:
    """Folders of a newer version, with a damaged record, a folder in its place, one that leads to itself; by words."""
    _write_tuned(folder / "newer")
    _edit(folder / "newer", schema_version="2.0")
    (folder / "cut").mkdir()
    (folder / "cut" / "lens.json").write_text('{"format": ')
    (folder / "directory" / "lens.json").mkdir(parents=True)
    (folder / "loop").mkdir()
    (folder / "loop" / "lens.json").symlink_to("lens.json")
    return {
        "newer": "so update",
        "cut": "not JSON",
        "directory": "cannot be read (Is a directory)",
        "loop": "cannot be read (Too many levels of symbolic links)",
    }


def test_the_lens_of_a_model_is_found_beside_records_that_cannot_be_read(tmp_path: Path):
    _unreadable_neighbours(tmp_path)
    _write_tuned(tmp_path / "own")
    assert find_lens_of(tmp_path, "tuned", _model()).folder == tmp_path / "own"
    with pytest.raises(LensError, match=r"cut/lens\.json: not JSON"):
        find_lens_folders(tmp_path, "tuned")


def test_where_no_lens_fits_records_that_cannot_be_read_are_named_with_the_others(tmp_path: Path):
    reasons = _unreadable_neighbours(tmp_path)
    _write_tuned(tmp_path / "other", model=_model("e" * 64, id="other/model"))
    with pytest.raises(LensError) as refusal:
        find_lens_of(tmp_path, "tuned", _model())
    before, _, listed = str(refusal.value).partition(" There are: ")
    assert "belongs to some/model" in before
    assert f"{tmp_path / 'other'}: of other/model" in listed
    for name, words in reasons.items():
        assert f"{tmp_path / name / 'lens.json'}: " in listed and words in listed
    assert listed.endswith(".") and not listed.endswith("..")


def test_a_folder_with_one_record_that_cannot_be_read_is_not_called_empty(tmp_path: Path):
    _write_tuned(tmp_path / "lens")
    _edit(tmp_path / "lens", schema_version="2.0")
    with pytest.raises(LensError, match=r"no tuned lens in it belongs to .*There are: .*`schema_version` is 2\.0"):
        find_lens_of(tmp_path / "lens", "tuned", _model())


def test_of_several_lenses_of_a_model_one_has_to_be_named(tmp_path: Path):
    _write_tuned(tmp_path / "one")
    _write_tuned(tmp_path / "two", rank=0)
    with pytest.raises(LensError, match=r"2 tuned lenses belong to some/model; name the folder of one: .*one, .*two\."):
        find_lens_of(tmp_path, "tuned", _model())
    assert find_lens_of(tmp_path / "two", "tuned", _model()).record.tuned.rank == 0


# Lenses by name


def _bind(names: tuple[str, ...], n_layers: int = N, **fitted: FittedLens):
    return bind_lenses(names, final_norm=NORM, next_norms=(NORM,) * (n_layers + 1), fitted=fitted)


def test_fitted_lenses_are_bound_from_their_folders(tmp_path: Path):
    tuned = _write_tuned(tmp_path / "tuned")
    parts = _prism_parts()
    prism = write_fitted_lens(tmp_path / "prism", _prism_record(), parts)
    lenses = _bind(("prism", "logit", "tuned"), tuned=tuned, prism=prism)
    assert [lens.name for lens in lenses] == ["prism", "logit", "tuned"]
    assert torch.equal(lenses[2](RESIDUAL, 1), TunedLens(NORM, _translators(2), "raw")(RESIDUAL, 1))
    white = (NORM(RESIDUAL) - parts["mean"]) / (parts["variance"] + 1e-8).sqrt()
    assert torch.allclose(lenses[0](RESIDUAL, 1), white @ parts["rotation"].T, atol=1e-5)  # a handful of float32 terms


def test_a_tuned_lens_is_bound_with_the_placement_that_it_was_fitted_with(tmp_path: Path):
    record = _tuned_record(2, TAUS, placement="normed")
    written = write_fitted_lens(tmp_path / "lens", record, tuned_tensors(_translators(2)))
    (lens,) = _bind(("tuned",), tuned=written)
    assert torch.equal(lens(RESIDUAL, 0), _translators(2)[0](NORM(RESIDUAL)) / 0.7)


@pytest.mark.parametrize("name", ["tuned", "prism"])
def test_a_fitted_lens_that_is_not_there_is_refused_with_the_way_to_one(name: str):
    with pytest.raises(LensError, match=f"`layerscope fit {name} MODEL --text FILE --out FOLDER`.*`--lens-dir FOLDER`"):
        _bind((name,))


def test_a_fitted_lens_of_another_kind_depth_or_stream_is_refused(tmp_path: Path):
    tuned = _write_tuned(tmp_path / "tuned")
    with pytest.raises(LensError, match="a prism lens was asked for, but this is a tuned lens"):
        _bind(("prism",), prism=tuned)
    with pytest.raises(LensError, match="fitted to some/model with 3 layers, but this model has 5"):
        _bind(("tuned",), n_layers=5, tuned=tuned)
    odd = write_fitted_lens(tmp_path / "prism", _prism_record(stream="tuned"), _prism_parts())
    with pytest.raises(LensError, match="stands on the rows of logit, next_norm, raw, but this one names 'tuned'"):
        _bind(("prism",), prism=odd)
