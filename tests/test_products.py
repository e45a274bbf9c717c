"""Products with a weight: both libraries give the product, to float32 rounding, and one is chosen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerscope import products
from layerscope.products import fastest, product
from properties import examples
from rounding import SINGLE, of_product

LIBRARIES = pytest.mark.parametrize("library", ["mkl", "onednn"])
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@LIBRARIES
@examples(40)
@given(st.integers(0, 300), st.integers(1, 67), st.integers(1, 67), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_product_is_that_of_exact_arithmetic_to_rounding(
    library: str, n_rows: int, n_in: int, n_out: int, strided: bool, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_rows, n_in, generator=generator)
    weight = torch.randn(n_out, 2 * n_in, generator=generator)[:, ::2]
    weight = weight if strided else weight.contiguous()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(products, "fastest", lambda: library)
        found = product(rows, weight)
    exact = rows.double() @ weight.double().T
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    if n_rows:
        assert (found - exact).abs().max() <= of_product(rows, weight) + SINGLE


@LIBRARIES
def test_what_is_not_finite_stays_so(library: str, monkeypatch):
    monkeypatch.setattr(products, "fastest", lambda: library)
    rows = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [1.0, 1.0]])
    found = product(rows, torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    assert found[0].isnan().all()
    assert found[1, 0] == torch.inf
    assert found[1, 1].isnan()  # inf times zero
    assert found[2].tolist() == [1.5, 1.0]


@needs_onednn
def test_the_library_is_chosen_once(monkeypatch):
    assert fastest() in ("mkl", "onednn")
    timed = []
    monkeypatch.setattr(products, "_seconds", lambda *arguments: timed.append(arguments))
    assert fastest() in ("mkl", "onednn")
    assert not timed


@needs_onednn
@pytest.mark.parametrize(("times_as_fast", "library"), [(0.9, "mkl"), (1.2, "mkl"), (2.0, "onednn")])
def test_what_was_chosen_on_a_machine_stays_so(times_as_fast, library, tmp_path, monkeypatch):
    """Or a run would not repeat where one start of a process found the machine busier than another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(products, "_times_as_fast", lambda: times_as_fast)
    assert fastest.__wrapped__() == library
    assert len(list((tmp_path / "layerscope").iterdir())) == 1
    monkeypatch.setattr(products, "_times_as_fast", lambda: 3.0 - times_as_fast)
    assert fastest.__wrapped__() == library


@LIBRARIES
@pytest.mark.parametrize("n_rows", [3, 300])
def test_room_for_the_result_changes_nothing_of_it(library: str, n_rows: int, monkeypatch):
    monkeypatch.setattr(products, "fastest", lambda: library)
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(n_rows, 40, generator=generator), torch.randn(50, 40, generator=generator)
    with torch.inference_mode():
        room = torch.full((n_rows, 50), torch.nan)
        found = product(rows, weight, out=room)
    assert (found - rows.double() @ weight.double().T).abs().max() <= of_product(rows, weight) + SINGLE
    assert found.is_contiguous()
    assert library == "onednn" or found.data_ptr() == room.data_ptr()


def test_torch_s_own_choice_stands_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(products, "_has_onednn", lambda: False)
    assert fastest.__wrapped__() == "mkl"
