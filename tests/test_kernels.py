"""Compiled loops: their arithmetic against NumPy's, who takes which engine, and the threads that run them."""

import importlib
import json
import threading

import numba
import numpy as np
import pytest
import torch

from layerscope import compiling, kernels, peak
from layerscope.readout import compiled, decode
from layerscope.readout.decode import LEAST_COMPILED, engine_for
from layerscope.readout.vocabulary import Tile
from layerscope.unembedding import HeadTransform, Unembedding
from layerscope.workers import Workers

FLOAT64 = 2.0**-53


def _each(function, values):
    return np.array([function(value) for value in values])


def test_the_exponential_is_off_by_little_more_than_its_own_rounding():
    x = np.concatenate([np.linspace(-87.2, 0, 4001), -np.logspace(-9, 1, 500)]).astype(np.float32)
    found = _each(kernels.exponential_32, x)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2.0**-24)
    assert kernels.exponential_32(np.float32(0)) == 1 and kernels.exponential_32(np.float32(-87.4)) == 0


def test_exponential_and_logarithm_in_float64_are_off_by_a_few_roundings():
    x = np.linspace(-707.9, 0, 4001)
    np.testing.assert_allclose(_each(kernels.exponential_64, x), np.exp(x), rtol=8 * FLOAT64)
    assert kernels.exponential_64(0.0) == 1 and kernels.exponential_64(-709.0) == 0
    y = np.concatenate([np.logspace(-300, 0, 2001), np.linspace(0.5, 2, 1001)])
    np.testing.assert_allclose(_each(kernels.logarithm_64, y), np.log(y), rtol=8 * FLOAT64, atol=FLOAT64 / 8)


def test_loops_are_loaded_for_many_logits_on_a_cpu_alone(monkeypatch):
    head = Unembedding.of(torch.zeros(1024, 2), None)
    assert engine_for(LEAST_COMPILED // 1024, head) == "compiled"
    assert engine_for(LEAST_COMPILED // 1024 - 1, head) == "torch"
    elsewhere = Unembedding.of(torch.zeros(1024, 2), None, device=torch.device("meta"))
    assert engine_for(LEAST_COMPILED, elsewhere) == "torch"


@pytest.mark.parametrize("missing", ["no compiler", "a compiler that does not load", "a compiler told to do nothing"])
def test_without_a_compiler_torch_takes_the_statistics(monkeypatch, missing):
    if missing == "no compiler":
        monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    elif missing == "a compiler that does not load":

        def refuse(name):
            raise ImportError("Numba needs NumPy 2.4 or less")

        monkeypatch.setattr(compiling, "import_module", refuse)
    else:
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    compiling.loops.cache_clear()
    try:
        assert engine_for(LEAST_COMPILED, Unembedding.of(torch.zeros(1, 2), None)) == "torch"
        with pytest.raises(ImportError, match="numba"):
            compiled.required_kernels()
    finally:
        compiling.loops.cache_clear()
    assert importlib.import_module("layerscope.kernels") is kernels


def test_a_worker_multiplies_by_itself_and_leaves_others_their_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Workers(2) as workers:
            assert {workers.submit(torch.get_num_threads).result() for _ in range(20)} == {1}
            assert torch.get_num_threads() == 3
            later = []
            thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert later == [3]
    finally:
        torch.set_num_threads(before)
    assert not any(thread.name.startswith("layerscope-worker") for thread in threading.enumerate())


@pytest.mark.parametrize("n", [1, 2])
def test_what_fails_in_a_worker_fails_for_who_waits_and_leaves_no_thread(n):
    def fail():
        raise ValueError("a tile")

    with pytest.raises(ValueError, match="a tile"), Workers(n) as workers:
        workers.submit(fail).result()
    assert not any(thread.name.startswith("layerscope-worker") for thread in threading.enumerate())


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_a_sweep_whose_every_tile_fails_ends_with_that_error(engine, monkeypatch):
    """It used to wait for ever for room that those who had failed did not give back."""

    def fail(*_, **__):
        raise MemoryError("no room for a tile")

    generator = torch.Generator().manual_seed(0)
    rows, head = (
        torch.randn(4, 300, 8, generator=generator),
        Unembedding.of(torch.randn(900, 8, generator=generator), None),
    )
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(HeadTransform, "apply_", fail)
    monkeypatch.setattr(decode._Sweep, "visit_final", lambda sweep: None)
    monkeypatch.setattr(decode._Sweep, "_prepare", lambda sweep, i, buffer: _tile(sweep, buffer))
    try:
        sweep = decode._Sweep(rows, rows[0], [decode.Question(300)], head, None, 5, 64, engine)
        sweep.references = torch.zeros(sweep.n_tiles, 300)
        with pytest.raises(MemoryError, match="no room"):
            sweep.visit_rows(sweep.judge(), lambda done, total: None)
    finally:
        torch.set_num_threads(n_threads)


def _tile(sweep, buffer):
    final = torch.zeros(300, 64)
    return Tile(0, 0, buffer, None, final, final, final, torch.zeros(0, 64, dtype=torch.bool))


def test_a_worker_may_change_tensors_of_inference_mode():
    with torch.inference_mode(), Workers(2) as workers:
        x = torch.zeros(2)
        assert workers.submit(x.add_, 1).result().tolist() == [1, 1]


def test_the_peak_is_measured_once_and_again_where_it_was_passed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = peak.peak_gflops()
    assert 0.1 < measured < 1e6
    file = tmp_path / "layerscope" / "peak-gflops.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: 1234.5, "another machine": 1.0}))
    assert peak.peak_gflops() == 1234.5 == peak.peak_gflops(at_least=1000.0)
    assert peak.peak_gflops(at_least=2e6) == 2e6
    assert json.loads(file.read_text()) == {key: 2e6, "another machine": 1.0}


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"x": "y"}', "\0"])
def test_what_is_no_list_of_peaks_is_replaced(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "layerscope" / "peak-gflops.json"
    file.parent.mkdir()
    file.write_text(content)
    measured = peak.peak_gflops()
    assert list(json.loads(file.read_text()).values()) == [measured]


def test_where_nothing_can_be_kept_the_peak_is_still_told(tmp_path, monkeypatch):
    occupied = tmp_path / "file"
    occupied.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    assert peak.peak_gflops() > 0
