"""Where the package keeps what it made before, and that nothing needs such a place."""

import pwd
import sys
from pathlib import Path

import pytest

from layerscope.cache_folder import cache_folder
from layerscope.model.defined_names import remembered
from layerscope.peak import peak_gflops
from layerscope.view.page.kept import kept_text


@pytest.mark.parametrize(("platform", "below"), [("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", None)])
def test_it_is_where_the_system_has_its_caches(
    platform: str, below: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    usual = tmp_path / "local" if below is None else tmp_path / "home" / below
    assert cache_folder() == usual / "layerscope"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "stated"))
    assert cache_folder() == tmp_path / "stated" / "layerscope"


def test_a_user_without_a_home_keeps_nothing_and_lacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a container that runs under a number that nobody has."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_folder() is None
    assert [kept_text("name", lambda text=text: text) for text in ("first", "second")] == ["first", "second"]
    record = tmp_path / "package-1.dist-info" / "RECORD"
    record.parent.mkdir()
    record.touch()
    for names in ({"a": {"B"}}, {"c": {"D"}}):
        assert remembered(lambda names=names: names, tmp_path / "package", "1") == names
    assert peak_gflops() > 0
