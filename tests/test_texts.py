"""Reading text: what a document is in each format, what is left unread, and every refusal with its place."""

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.errors import CorpusError
from layerscope.fitting import texts as texts_module
from layerscope.fitting.texts import Source, find_sources
from properties import examples


def found(path: str | Path, field: str = "text") -> Source:
    (source,) = find_sources([path], field)
    return source


def documents(path: Path, content: str | bytes, field: str = "text") -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(found(path, field).documents())


def refusal(path: Path, content: str | bytes, field: str = "text") -> str:
    with pytest.raises(CorpusError) as refused:
        documents(path, content, field)
    return str(refused.value)


# --- .txt


def test_blank_lines_separate_documents(tmp_path):
    content = "\n\nOne.\nStill one.\n\n \t \n  Two, indented.\n\nThree."
    assert documents(tmp_path / "a.txt", content) == ["One.\nStill one.", "  Two, indented.", "Three."]


def test_a_line_that_holds_only_the_end_of_text_separates_documents(tmp_path):
    content = "One.\n<|endoftext|>\nTwo.\n <|endoftext|> \nThree <|endoftext|> goes on.\n"
    assert documents(tmp_path / "a.txt", content) == ["One.", "Two.", "Three <|endoftext|> goes on."]


def test_where_ends_of_text_stand_blank_lines_belong_to_the_text(tmp_path):
    content = "Title\n\n  First paragraph.\n \nSecond.\n\n<|endoftext|>\n\nAnother\n\n\ntext.\n\n"
    assert documents(tmp_path / "a.txt", content) == ["Title\n\n  First paragraph.\n \nSecond.", "Another\n\n\ntext."]
    (tmp_path / "b.txt").write_text("One.\n\nTwo.\n")
    assert list(found(tmp_path / "b.txt").documents()) == ["One.", "Two."]  # each file by itself


def test_an_end_of_text_after_the_last_document_keeps_a_whole_file_together(tmp_path):
    assert documents(tmp_path / "a.txt", "One.\n\nStill one.\n<|endoftext|>") == ["One.\n\nStill one."]


def test_an_end_of_text_within_a_line_separates_nothing(tmp_path):
    assert documents(tmp_path / "a.txt", "One <|endoftext|>\n\nTwo.") == ["One <|endoftext|>", "Two."]


def test_a_byte_that_is_no_utf8_is_met_when_its_document_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\n<|endoftext|>\ncaf\xe9\n<|endoftext|>\n")
    read = found(tmp_path / "a.txt").documents()
    assert next(read) == "One."
    with pytest.raises(CorpusError, match="line 3: byte 22 of the file"):
        next(read)


def test_how_lines_end_changes_no_document(tmp_path):
    content = "One.\nStill one.\n\nTwo.\n"
    assert documents(tmp_path / "a.txt", content.replace("\n", "\r\n")) == documents(tmp_path / "b.txt", content)


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert documents(tmp_path / "a.txt", b"\xef\xbb\xbfOne.\n") == ["One."]
    assert documents(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "One."}\n') == ["One."]


BLOCKS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\ufeff"), min_size=1).filter(
    lambda line: line.strip() not in ("", "<|endoftext|>")
)


@examples(100)
@given(blocks=st.lists(st.lists(BLOCKS, min_size=1, max_size=3), max_size=4), gap=st.sampled_from(["", " \n", "\t\n"]))
def test_blocks_of_lines_are_read_back_as_they_were_written(tmp_path_factory, blocks, gap):
    """Whatever else Python calls a line's end (form feeds, U+2028) is left alone."""
    texts = ["\n".join(block) for block in blocks]
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    assert documents(path, f"\n{gap}\n".join(texts)) == texts


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n\n", "<|endoftext|>\n"])
def test_blank_text_is_no_document(tmp_path, content):
    assert documents(tmp_path / "a.txt", content) == []


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_byte_that_is_no_utf8_is_named_by_its_place_in_the_file(tmp_path, suffix):
    content = '{"text": "é"}\n\n{"text": "caf'.encode() + b'\xe9"}\n'
    path = tmp_path / f"a{suffix}"
    place = len('{"text": "é"}\n\n{"text": "caf'.encode())
    assert refusal(path, content) == (
        f"'{path}', line 3: byte {place} of the file (the first is 0) is 0xe9, which is no UTF-8 here; "
        "save the file as UTF-8."
    )


def test_a_character_that_the_files_end_cuts_off_is_no_utf8(tmp_path):
    assert "byte 3 of the file (the first is 0) is 0xc3" in refusal(tmp_path / "a.txt", b"caf\xc3")


# --- .jsonl


@examples(100)
@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=6), st.booleans())
def test_any_text_can_be_had_back_from_jsonl(tmp_path_factory, texts, ascii_only):
    lines = [json.dumps({"id": i, "body": text}, ensure_ascii=ascii_only) for i, text in enumerate(texts)]
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    assert documents(path, "\n".join(lines), "body") == [text for text in texts if text.strip()]


def test_blank_lines_of_jsonl_are_passed_over(tmp_path):
    assert documents(tmp_path / "a.jsonl", '\n{"text": "One."}\n\n{"text": " "}\n{"text": "Two."}\n\n') == [
        "One.",
        "Two.",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "cut', "expected one JSON object a line, but this is no JSON (Unterminated string"),
        ("Plain prose.", "expected one JSON object a line, but this is no JSON (Expecting value"),
        ("[" * 100_000, "expected one JSON object a line, but this is no JSON ("),
        ('["text"]', "expected a JSON object with the field 'text', found list."),
        ("null", "expected a JSON object with the field 'text', found null."),
        ('{"content": "a", "id": 1}', "there is no field 'text'; found content, id."),
        ("{}", "there is no field 'text'; found an empty object."),
        ('{"text": 3}', "expected a string in 'text', found int."),
        ('{"text": null}', "expected a string in 'text', found null."),
        (r'{"text": "ab\ud83d"}', "'text' holds half of a surrogate pair at character 2, which is no text;"),
    ],
)
def test_a_line_of_jsonl_that_holds_no_text_is_named(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    assert refusal(path, f'{{"text": "One."}}\n\n{line}\n').startswith(f"'{path}', line 3: {said}")


# --- .parquet


def test_parquet_gives_its_rows_in_order_however_many_are_held_at_once(tmp_path, monkeypatch):
    texts = [f"Document {i}." for i in range(11)]
    path = tmp_path / "a.parquet"
    pl.DataFrame({"id": range(11), "body": texts}).write_parquet(path, row_group_size=3)
    for rows in (1, 4, 11, 4096):
        monkeypatch.setattr(texts_module, "ROWS_AT_ONCE", rows)
        assert list(found(path, "body").documents()) == texts


def test_parquet_is_read_no_further_than_it_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["One.", "Two.", None, "Four."]}).write_parquet(path)
    monkeypatch.setattr(texts_module, "ROWS_AT_ONCE", 2)
    read = found(path).documents()
    assert [next(read), next(read)] == ["One.", "Two."]
    with pytest.raises(
        CorpusError, match=rf"^'{re.escape(str(path))}', row 3: expected a string in 'text', found null"
    ):
        next(read)


def test_a_parquet_file_is_read_by_its_own_name_alone(tmp_path):
    """Brackets are no pattern, and `text=...` in a folder's name adds no column."""
    folder = tmp_path / "text=no"
    folder.mkdir()
    path = folder / "part[1].parquet"
    pl.DataFrame({"id": [1]}).write_parquet(path)
    with pytest.raises(CorpusError, match="has no column 'text'; its columns are id"):
        list(found(path).documents())


def test_a_parquet_file_without_the_column_says_which_there_are(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"id": [1], "content": ["One."]}).write_parquet(path)
    with pytest.raises(CorpusError) as refused:
        list(found(path).documents())
    assert str(refused.value) == (
        f"'{path}' has no column 'text'; its columns are id, content. Name the one that holds text."
    )


def test_a_parquet_column_of_no_strings_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": [1, 2]}).write_parquet(path)
    with pytest.raises(CorpusError, match="column 'text' holds Int64, expected strings; name another"):
        list(found(path).documents())


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing of the kind after it PAR1", b"Plain prose."])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    assert refusal(path, content).startswith(f"'{path}' cannot be read as parquet (")


# --- Finding


def test_a_source_bears_its_files_name_and_format_and_no_folder(tmp_path):
    for name, kind in (("a.txt", "txt"), ("B.TXT", "txt"), ("c.jsonl", "jsonl"), ("d.parquet", "parquet")):
        (tmp_path / name).touch()
        assert (found(tmp_path / name).name, found(str(tmp_path / name)).format) == (name, kind)


def test_without_a_text_there_is_nothing_to_read():
    with pytest.raises(CorpusError, match=r"^No text was given; name at least one \.txt, \.jsonl or \.parquet file\.$"):
        find_sources([], "text")


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(CorpusError, match="is a folder or no regular file; name the files in it one by one"):
        found(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.csv", "a", "a.jsonl.gz"])
def test_a_file_of_no_known_format_is_refused(tmp_path, name):
    (tmp_path / name).write_text("One.")
    with pytest.raises(CorpusError, match=r"ends in none of \.txt, \.jsonl and \.parquet, by which a format is told"):
        found(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["absent.txt", "folder/absent.txt", "absent", "./folder/absent", "../x/y", "It was dark. " * 50, "a\0b"]
)
def test_a_file_that_is_not_there_is_refused_and_never_looked_for_on_the_hub(monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", hub())
    with pytest.raises(CorpusError, match=r"^There is no file '") as refused:
        found(text)
    assert repr(text)[1:-1] in repr(str(refused.value))


def test_every_text_is_found_before_one_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"There is no file '.*absent\.txt'"):
        find_sources([tmp_path / "a.txt", tmp_path / "absent.txt"], "text")


# --- Data sets on the Hub, behind a stand-in for the package that reads them


class NoSuchDataset(Exception):
    """As `datasets.exceptions.DatasetsError`, which is no OSError."""


def hub(rows: list[object] | None = None, error: Exception | None = None, breaks_after: int | None = None):
    """A module `datasets` with one data set, which notes what it was asked for in `asked`."""
    module = types.ModuleType("datasets")
    module.asked = []
    module.exceptions = types.SimpleNamespace(DatasetsError=NoSuchDataset)

    def stream() -> Iterator[object]:
        for i, row in enumerate(rows or []):
            if i == breaks_after:
                raise ConnectionError("the line is dead")
            yield row

    def as_streaming_dataset(split: str) -> Iterator[object]:
        module.asked.append(split)
        return stream()

    def load_dataset_builder(path: str, name: str | None, revision: str | None) -> types.SimpleNamespace:
        module.asked += [path, name, revision]
        if error is not None:
            raise error
        return types.SimpleNamespace(hash="c0ffee", as_streaming_dataset=as_streaming_dataset)

    module.load_dataset_builder = load_dataset_builder
    return module


@pytest.mark.parametrize(
    ("text", "asked", "name"),
    [
        ("owner/name", ["owner/name", None, None], "owner/name@c0ffee"),
        ("owner/na-me_1.0:CC-MAIN-2025-26", ["owner/na-me_1.0", "CC-MAIN-2025-26", None], None),
        ("owner/name@v1.4.0", ["owner/name", None, "v1.4.0"], "owner/name@c0ffee"),
        ("owner/name:sub@refs/pr/1", ["owner/name", "sub", "refs/pr/1"], "owner/name:sub@c0ffee"),
    ],
)
def test_a_data_set_is_streamed_and_named_by_the_commit_it_resolved_to(monkeypatch, text, asked, name):
    module = hub([{"text": "One."}, {"text": " "}, {"text": "Two."}])
    monkeypatch.setitem(sys.modules, "datasets", module)
    source = found(text)
    assert module.asked == [*asked, "train"]
    assert source.name == (name or "owner/na-me_1.0:CC-MAIN-2025-26@c0ffee")
    assert source.format == "datasets"
    assert list(source.documents()) == ["One.", "Two."]


def test_a_row_of_a_data_set_that_holds_no_text_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", hub([{"text": "One."}, {"content": "Two."}]))
    with pytest.raises(CorpusError, match=r"^'owner/name@c0ffee', row 2: there is no field 'text'; found content\.$"):
        list(found("owner/name").documents())


@pytest.mark.parametrize(
    "error",
    [
        NoSuchDataset("reason"),
        ConnectionError("reason"),
        ValueError("reason"),
        RuntimeError("reason\nand more"),
        FileNotFoundError("reason"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_refused_with_the_reason(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "datasets", hub(error=error))
    with pytest.raises(CorpusError, match=r"^'owner/name' is neither a file here nor a data set .* \(reason\); check"):
        found("owner/name")


def test_a_data_set_that_breaks_off_is_no_short_data_set(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", hub([{"text": "One."}, {"text": "Two."}], breaks_after=1))
    read = found("owner/name").documents()
    assert next(read) == "One."
    with pytest.raises(CorpusError, match=r"^'owner/name@c0ffee' broke off while it was read \(the line is dead\)"):
        next(read)


def test_without_the_extra_the_id_of_a_data_set_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError) as refused:
        found("owner/name")
    assert str(refused.value) == (
        "There is no file 'owner/name'. A data set on the Hub is named owner/name, owner/name:subset or either with "
        "@revision, and needs an extra: pip install 'layerscope[datasets]'."
    )


def test_a_file_goes_before_a_data_set_of_the_same_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", hub([{"text": "One."}]))
    Path("owner").mkdir()
    Path("owner/name").write_text("Two.")
    with pytest.raises(CorpusError, match=r"ends in none of \.txt"):
        found("owner/name")
