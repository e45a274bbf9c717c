"""Where a fit keeps what it has: finished layers in a hidden folder, residuals in files beside them."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layerscope.errors import LensError, PlacementError
from layerscope.fitting import stream
from layerscope.fitting.workspace import Workspace
from layerscope.lens_record import LayerFit
from layerscope.lenses.tuned_lens import Translator

TRANSLATOR = Translator(torch.arange(3.0), 0.75, down=torch.ones(3, 1), up=torch.full((1, 3), 2.0))
FIT = LayerFit(
    layer=0,
    ridge=None,
    start="bias",
    steps=4,
    best_step=2,
    stopped="budget",
    map_norm=1.0,
    bias_norm=1.0,
    temperature=0.75,
    logit_bits=2.0,
    bias_bits=1.0,
    closed_form_bits=1.0,
    tuned_bits=0.5,
)


def failing(number: int):
    """A system call that ends so."""

    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


# Finished layers


def test_a_layer_that_is_kept_comes_back_in_the_next_fit_with_the_same_settings(tmp_path: Path):
    Workspace(tmp_path / "lens", {"seed": 1}).keep(0, TRANSLATOR, FIT, None)
    again = Workspace(tmp_path / "lens", {"seed": 1})
    found = again.finished(0)
    assert found is not None
    translator, finished = found
    assert (finished.fit, finished.skip, translator.temperature) == (FIT, None, 0.75)
    assert translator.parts().keys() == TRANSLATOR.parts().keys()
    assert all(torch.equal(part, TRANSLATOR.parts()[name]) for name, part in translator.parts().items())
    assert again.finished(1) is None
    assert Workspace(tmp_path / "lens", {"seed": 2}).finished(0) is None
    again.discard()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_made_before_something_is_kept(tmp_path: Path):
    workspace = Workspace(tmp_path / "lenses" / "lens", {})
    assert workspace.finished(0) is None
    assert workspace.leftovers == ()
    assert list(tmp_path.iterdir()) == []
    room = workspace.room()
    assert room == workspace.folder and room.is_dir() and room.name.startswith(".lens.fit-")


def test_a_fit_that_finishes_no_layer_leaves_nothing(tmp_path: Path):
    workspace = Workspace(tmp_path / "new" / "lenses" / "lens", {})
    with pytest.raises(KeyboardInterrupt), workspace.held():
        (workspace.room() / "buffers").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_above_stays_where_another_has_put_something_into_it(tmp_path: Path):
    with Workspace(tmp_path / "lenses" / "lens", {}).held():
        (tmp_path / "lenses" / "another").mkdir()
    assert [path.name for path in (tmp_path / "lenses").iterdir()] == ["another"]


def test_a_fit_that_finished_layers_leaves_them_and_one_that_ends_well_its_lens_alone(tmp_path: Path):
    workspace = Workspace(tmp_path / "lens", {})
    with pytest.raises(KeyboardInterrupt), workspace.held():
        workspace.keep(0, TRANSLATOR, FIT, None)
        raise KeyboardInterrupt
    assert workspace.finished(0) is not None
    with workspace.held():
        (tmp_path / "lens").mkdir()
        workspace.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["lens"]


def test_a_layer_that_cannot_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workspace = Workspace(tmp_path / "lens", {})
    workspace.room()
    monkeypatch.setattr(Path, "replace", failing(errno.ENOSPC))
    with pytest.raises(LensError, match=r"Layer 0 could not be kept in .*No space left on device"):
        workspace.keep(0, TRANSLATOR, FIT, None)
    assert workspace.finished(0) is None


def test_a_place_that_is_no_folder_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match=r"cannot be made \(Not a directory\); give another --out"):
        Workspace(tmp_path / "file" / "lens", {}).room()


def test_folders_of_the_same_lens_with_other_settings_are_named(tmp_path: Path):
    others = [Workspace(tmp_path / "lens", {"seed": seed}).room() for seed in (2, 3)]
    for name in ("lens2", "lens.fit-0"):
        Workspace(tmp_path / name, {"seed": 2}).room()
    (tmp_path / f".lens.fit-{'0' * 16}").write_text("no folder")
    own = Workspace(tmp_path / "lens", {"seed": 1})
    own.room()
    assert own.leftovers == tuple(sorted(others))


# One fit at a time

HOLDER = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such lock")
def test_two_processes_do_not_share_a_folder_and_a_killed_one_gives_it_back(tmp_path: Path):
    workspace = Workspace(tmp_path / "lens", {})
    workspace.keep(0, TRANSLATOR, FIT, None)
    words = [sys.executable, "-c", HOLDER, str(workspace.folder / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LensError, match=r"Another process is fitting this lens just now.*give another --name"):
            workspace.held().__enter__()
        assert workspace.finished(0) is not None
        with (
            pytest.raises(LensError, match="Another process is fitting this lens just now"),
            Workspace(tmp_path / "lens", {"seed": 1}).held(),
        ):
            pass  # other settings have another folder, but only one of the two can have the name
        with Workspace(tmp_path / "other", {"seed": 1}).held():
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with workspace.held():
            pass
    with workspace.held(), pytest.raises(LensError, match="Another process"), workspace.held():
        pass
    assert workspace.finished(0) is not None


def test_a_name_that_was_taken_while_a_fit_read_its_text_is_refused_before_any_work(tmp_path: Path):
    workspace = Workspace(tmp_path / "lens", {})
    (tmp_path / "lens").mkdir()
    with pytest.raises(LensError, match="already there"), workspace.held():
        raise AssertionError("not reached")
    assert [path.name for path in tmp_path.iterdir()] == ["lens"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such lock")
def test_a_filesystem_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from layerscope.fitting import workspace as module

    monkeypatch.setattr(module.fcntl, "flock", failing(errno.ENOLCK))
    workspace = Workspace(tmp_path / "lens", {})
    with workspace.held():
        workspace.keep(0, TRANSLATOR, FIT, None)
    assert workspace.finished(0) is not None


# Residuals in a file


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_room_cannot_be_taken_ahead_the_file_is_only_made_as_long(number, tmp_path, monkeypatch):
    """As on macOS, which has no such call, and on filesystems that refuse it."""
    if number is None:
        monkeypatch.delattr(stream.os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(stream.os, "posix_fallocate", failing(number), raising=False)
    tensor = stream.mapped(tmp_path / "buffer", (2, 3, 5))
    assert (tmp_path / "buffer").stat().st_size == 2 * 3 * 5 * 4
    tensor.copy_(torch.arange(30.0).view(2, 3, 5))
    read = torch.frombuffer(bytearray((tmp_path / "buffer").read_bytes()), dtype=torch.float32)
    assert read.tolist() == list(map(float, range(30)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_called_so_and_keeps_no_file(number, tmp_path, monkeypatch):
    monkeypatch.setattr(stream.os, "posix_fallocate", failing(number), raising=False)
    with pytest.raises(PlacementError, match="there is no room for it") as refused:
        stream.mapped(tmp_path / "buffer", (4,))
    assert os.strerror(number) in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_another_failure_is_told_in_the_system_s_words(tmp_path, monkeypatch):
    monkeypatch.setattr(stream.os, "posix_fallocate", failing(errno.EIO), raising=False)
    with pytest.raises(PlacementError, match="Input/output error") as refused:
        stream.mapped(tmp_path / "buffer", (4,))
    with pytest.raises(PlacementError, match=r"cannot be made \(No such file or directory\)"):
        stream.mapped(tmp_path / "nowhere" / "buffer", (4,))
    assert "no room" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
