"""Tests of reports as files: whole or absent, and never over somebody else's work."""

from pathlib import Path

import pytest

from layerscope.errors import RunError
from layerscope.report.cited.report_files import body_of, is_untouched, signed, write_new, write_report


def test_a_report_is_known_again_and_its_body_is_what_was_written(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.md", "# A\n\nline\n", "1.2.3")
    text = (tmp_path / "new" / "report.md").read_text()
    assert body_of(text) == "# A\n\nline\n"
    assert is_untouched(text)
    assert text.count("\n") == 4  # one line before the body


@pytest.mark.parametrize("change", [("line", "lines"), ("sha256", "sha255"), ("# A", "#  A")])
def test_any_change_shows(change: tuple[str, str]) -> None:
    assert not is_untouched(signed("# A\n\nline\n", "1").replace(*change))


def test_an_unchanged_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_report(path, "old\n", "1")
    write_report(path, "new\n", "2")
    assert body_of(path.read_text()) == "new\n"
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.parametrize("there", [b"my own report\n", signed("old\n", "1").encode() + b"a note\n", b"\xff\xfe"])
def test_what_somebody_wrote_is_kept_unless_forced(tmp_path: Path, there: bytes) -> None:
    path = tmp_path / "report.md"
    path.write_bytes(there)
    with pytest.raises(RunError, match="--force"):
        write_report(path, "new\n", "1")
    assert path.read_bytes() == there
    write_report(path, "new\n", "1", force=True)
    assert body_of(path.read_text()) == "new\n"


def test_a_folder_in_the_place_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(RunError):
        write_report(tmp_path / "report.md", "new\n", "1", force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


def test_an_unsigned_file_is_replaced_by_its_own_content_or_by_force_alone(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_new(path, b"1")
    write_new(path, b"1")
    with pytest.raises(RunError, match="holds something else"):
        write_new(path, b"2")
    assert path.read_bytes() == b"1"
    write_new(path, b"2", force=True)
    assert path.read_bytes() == b"2"


def test_a_file_where_a_folder_is_due_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="could not be written"):
        write_report(tmp_path / "file" / "report.md", "new\n", "1")
    assert (tmp_path / "file").read_text() == "mine"
