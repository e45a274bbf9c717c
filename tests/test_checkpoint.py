"""How far a pass has come: what is kept, when, and what a later one finds."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from layerscope.errors import LensError
from layerscope.fitting import checkpoint as module
from layerscope.fitting.checkpoint import Checkpoint, Gathered
from layerscope.fitting.workspace import Workspace

N_LAYERS = 4


def stream_at(layer: int) -> torch.Tensor:
    """[batch, sequence, position, d_model], another one at every layer."""
    return torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(layer))


def gathered_until(layer: int) -> list[Gathered]:
    found = [{"held": stream_at(i)[0, 0]} for i in range(layer + 1)]
    found[0]["vectors"] = torch.ones(2, 7)
    return found


def opened(folder: Path) -> tuple[Checkpoint, torch.Tensor]:
    residuals = torch.zeros(3, 2, 5, 7)
    return Checkpoint(Workspace(folder / "lens", {}), residuals, N_LAYERS, 5 * (N_LAYERS + 1) + 2), residuals


def kept_until(folder: Path, layer: int) -> None:
    own, residuals = opened(folder)
    for i in range(layer + 1):
        residuals.copy_(stream_at(i))
        own.offer(gathered_until(i))


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE", 0)


@pytest.mark.parametrize("layer", [0, 2, N_LAYERS])
def test_a_later_pass_finds_stream_and_vectors_of_the_layer_reached(layer: int, tmp_path: Path):
    kept_until(tmp_path, layer)
    own, residuals = opened(tmp_path)
    found = own.restore()
    assert torch.equal(residuals, stream_at(layer))
    assert [set(part) for part in found] == [{"held", "vectors"}, *[{"held"}] * layer]
    for part, expected in zip(found, gathered_until(layer), strict=True):
        assert all(torch.equal(part[name], expected[name]) for name in expected)
    assert len(list(tmp_path.rglob("reached-*"))) == 1


def test_a_pass_goes_on_keeping_what_it_gathers_after_it_was_restored(tmp_path: Path):
    kept_until(tmp_path, 1)
    own, residuals = opened(tmp_path)
    own.restore()
    residuals.copy_(stream_at(2))
    own.offer(gathered_until(2))
    again, stream = opened(tmp_path)
    assert len(again.restore()) == 3
    assert torch.equal(stream, stream_at(2))


def test_nothing_kept_changes_nothing(tmp_path: Path):
    own, residuals = opened(tmp_path)
    assert own.restore() == []
    assert not residuals.any()


def test_files_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SHARE", 20)
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    own, _ = opened(tmp_path)
    written: list[int] = []

    def write(layer: int, gathered: object) -> None:
        written.append(layer)
        clock[0] += 1.0

    monkeypatch.setattr(own, "_write", write)
    for layer in range(N_LAYERS + 1):
        clock[0] += 7.0  # of a block
        own.offer(gathered_until(layer))
    # Kept first at once, for a second; 20 seconds later the third block after it is done; and the last in any case.
    assert written == [0, 3, N_LAYERS]


@pytest.mark.parametrize("harm", ["stream cut short", "vectors missing", "vectors cut short"])
def test_damage_is_named(harm: str, tmp_path: Path):
    kept_until(tmp_path, 2)
    (stream,) = tmp_path.rglob("reached-002.f32")
    vectors = stream.with_name("gathered-001.safetensors")
    if harm == "vectors missing":
        vectors.unlink()
    else:
        path = stream if harm.startswith("stream") else vectors
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LensError, match="damaged at layer 2; delete that folder to start anew"):
        opened(tmp_path)[0].restore()


def test_a_disk_that_is_suddenly_full_is_said_and_what_was_kept_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept_until(tmp_path, 1)
    own, residuals = opened(tmp_path)
    own.restore()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    residuals.copy_(stream_at(2))
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        with pytest.raises(LensError, match=r"Layer 2 could not be kept .*No space left on device.*goes on from there"):
            own.offer(gathered_until(2))
    again, stream = opened(tmp_path)
    assert len(again.restore()) == 2
    assert torch.equal(stream, stream_at(1))


def test_a_disk_without_room_is_said_before_and_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert opened(tmp_path)[0].shortage == ""
    needed = 2 * 3 * 2 * 5 * 7 * 4 + (5 * (N_LAYERS + 1) + 2) * 7 * 4
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: real._replace(free=needed - 2000))
    own, _ = opened(tmp_path)
    assert "an interrupted fit starts anew" in own.shortage
    own.offer(gathered_until(0))
    assert not list(tmp_path.rglob("reached-*"))
