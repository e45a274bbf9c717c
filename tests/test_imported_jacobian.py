"""An imported Jacobian lens is held against exact rows: one of the model passes, and nothing that looks alike."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError
from layerscope.fitting.imported_check import AGREES, FIRST_POSITION, Agreement, OwnRows, check_jacobian
from layerscope.lenses.importing import import_lens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.signature import model_signature
from layerscope.suite.auxiliary_texts import published_test_prompts

Matrices = dict[int, Tensor]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


def _matrices(model: CausalLM) -> Matrices:
    """A mean over other prompts than the check's, by our layers; block b's matrix reads layer b + 1."""
    ids = [model.tokens.context_ids(text) for text in published_test_prompts()]
    long = [[*one, *one, *one][:24] for one in ids if len(one) >= 8][:3]
    n = min(map(len, long))
    rows = torch.eye(model.d_model)
    pulled = model.pull_back(
        torch.tensor([one[:n] for one in long]), rows, slice(FIRST_POSITION // 2, n - 1), rows_at_once=48
    )
    return dict(enumerate(pulled.mean(2).float()))


@pytest.fixture(scope="module")
def own(model: CausalLM) -> OwnRows:
    return OwnRows.of(model)


@pytest.fixture(scope="module")
def matrices(model: CausalLM) -> Matrices:
    return _matrices(model)


def _checked(model: CausalLM, own: OwnRows, of: Matrices, folder: Path) -> Agreement:
    n = model.n_layers
    blocks = {b: of[b + 1].half() for b in range(n - 1)}
    path = folder / "lens.pt"
    torch.save({"J": blocks, "n_prompts": 12, "source_layers": list(range(n - 1)), "d_model": model.d_model}, path)
    record, tensors = import_lens(path, model=model_signature(model), allow_pickle=True)
    return check_jacobian(own, record, tensors, path.name)


def test_a_lens_of_the_model_passes_and_the_note_says_how_well(
    model: CausalLM, own: OwnRows, matrices: Matrices, tmp_path: Path
):
    found = _checked(model, own, matrices, tmp_path)
    assert found.as_is > AGREES and found.best == "as it is"
    assert f"cosine {found.as_is:.2f} in the later half of the layers" in found.in_words
    assert abs(found.by_chance) < 0.3 and f"rows of other features {found.by_chance:.2f}" in found.in_words


def test_a_transposed_file_is_refused(model: CausalLM, own: OwnRows, matrices: Matrices, tmp_path: Path):
    turned = {layer: matrix.T.contiguous() for layer, matrix in matrices.items()}
    with pytest.raises(LensError, match="agree with exact ones of layerscope/reference better transposed"):
        _checked(model, own, turned, tmp_path)


@pytest.mark.parametrize(("shift", "words"), [(1, "low"), (-1, "high")])
def test_layers_that_are_counted_otherwise_are_refused(
    shift: int, words: str, model: CausalLM, own: OwnRows, matrices: Matrices, tmp_path: Path
):
    last = model.n_layers - 1
    shifted = {layer: matrices[min(max(layer + shift, 0), last)] for layer in matrices}
    with pytest.raises(LensError, match=f"better with its layers one too {words}"):
        _checked(model, own, shifted, tmp_path)


def test_a_lens_of_another_model_of_equal_shape_is_refused(model: CausalLM, own: OwnRows, tmp_path: Path):
    other = _matrices(model.shuffled_twin("blocks", 1))
    with pytest.raises(LensError, match=r"it was fitted to other weights, or to another layer's output|better "):
        _checked(model, own, other, tmp_path)
