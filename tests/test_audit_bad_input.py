"""Odd, damaged, huge and hostile reports: an audit never crashes on them, and calls nothing wrong by accident."""

import time
from pathlib import Path

import pytest

from layerscope.audit.audit import audit
from layerscope.audit.lookup.cited_lines import Reader
from layerscope.audit.parse.read_report import read_report
from layerscope.audit.parse.values import pairs_of
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Judgement
from made_sweep import MADE
from published import SHARED
from published_archives import archive_of, folder_of

SECONDS = 60
"""For 5 MB, on a loaded machine and with types checked in every call; it takes a few on an idle one."""
LARGE = 5_000_000


@pytest.fixture(scope="module")
def archive(made_sweep: Path) -> Archive:
    return archive_of(made_sweep / "output-reference.json")


@pytest.fixture(params=["made", *(["published"] if SHARED.is_dir() else [])])
def many(request: pytest.FixtureRequest) -> Archive:
    """Several models, self-made or published."""
    return archive_of(folder_of(MADE[0] if request.param == "made" else "", request, "run-20250928-1722"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        "No citations at all.",
        "# Only a title",
        "|",
        "| a |\n",
        "|||\n|---|\n|||||",
        "```",
        "[](",
        "(:3)",
        "\x00\x01",
    ],
)
def test_a_report_without_citations_has_no_wrong_claims(archive: Archive, text: str) -> None:
    result = audit(text, archive)
    assert result.wrong == () and set(result.counts) == set(Judgement)


def test_bytes_that_are_no_utf_8_are_read_as_far_as_they_can_be(archive: Archive) -> None:
    stem = archive.stems[0]
    text = f"caf\xe9 L_semantic=1 [output-{stem}.json:999999]\n".encode("latin-1")
    assert [f.judgement for f in audit(text, archive).findings] == [Judgement.UNRESOLVABLE]


def test_a_report_in_utf_16_is_read(archive: Archive) -> None:
    result = audit("x [output-absent.json:3]\n".encode("utf-16"), archive)
    assert [(f.line, f.judgement) for f in result.findings] == [(1, Judgement.UNRESOLVABLE)]


@pytest.mark.parametrize(
    "cited", ["output-absent.json:3", "run.py:254", "../../etc/passwd.txt:1", "output-absent-records.csv:row 5"]
)
def test_a_file_that_is_not_there_is_unresolvable(archive: Archive, cited: str) -> None:
    findings = audit(f"L_semantic=3 [{cited}]", archive).findings
    assert [f.judgement for f in findings] == [Judgement.UNRESOLVABLE]
    assert cited.rsplit("/", 1)[-1].split(":")[0] in findings[0].reason


def test_lines_beyond_the_end_are_unresolvable(archive: Archive) -> None:
    name = f"output-{archive.stems[0]}.json"
    n_lines = archive.sources.json(name).n_lines
    (inside,) = audit(f"It is so [{name}:{n_lines - 1}-{n_lines + 9}]", archive).findings
    (beyond,) = audit(f"It is so [{name}:{n_lines + 1}]", archive).findings
    assert inside.judgement is not Judgement.UNRESOLVABLE and beyond.judgement is Judgement.UNRESOLVABLE
    assert str(n_lines) in beyond.reason


def test_a_value_of_one_of_several_models_is_looked_up_in_the_cited_one(many: Archive) -> None:
    """Each model has its own layer; a sentence on both must not have the one's value held against the other's file."""
    layers = {}
    for stem in ("reference", "echo") if "echo" in many.stems else ("Qwen3-8B", "Qwen3-14B"):
        entry = many.sources.json(f"output-{stem}.json").at("diagnostics", "L_semantic")
        assert entry is not None
        layers[stem] = (entry.value, entry.line)
    parts = [f"{stem} L_semantic={value} (output-{stem}.json:{line})" for stem, (value, line) in layers.items()]
    result = audit(f"Both are late: {parts[0]}, {parts[1]}. Elsewhere L_semantic=17.", many)
    judged = [f.judgement for f in result.findings if f.citation is not None]
    assert judged == [Judgement.SUPPORTED] * 2 and result.wrong == ()


def test_one_list_of_lines_for_many_files_is_never_called_wrong(many: Archive) -> None:
    assert audit("L_semantic=77, first_rank_le_1=12 (output-*.json:902–904; 906; 940)", many).wrong == ()


@pytest.mark.parametrize(
    "token",
    [
        "|",
        "`",
        "``",
        "<b>",
        "](x)",
        "[output-a.json:3]",
        "\\",
        "\u202e",
        "\ufffd",
        "$$",
        "*",
        "(((",
        "\u2028",
        "a" * 5000,
        "﷽",
        "]" * 300,
    ],
)
def test_hostile_tokens_break_nothing(archive: Archive, token: str) -> None:
    name = f"output-{archive.stems[0]}.json"
    text = (
        f"| 1 | `\"{token}\"` | 0.5 |\n\nTop-1 is “{token}” with p=0.5 [{name}:5].\n\n- '{token}' at L 3 ({name}:6)\n"
    )
    assert audit(text, archive).wrong == ()


@pytest.mark.parametrize(
    "table",
    [
        "| a | b |\n|---|\n| 1 | 2 | 3 | 4 |\n| 5 |\n",
        "| L | p |\n| 1 | 2 |\n",
        "|---|---|\n| 1 | 2 |\n",
        "| layer | line of `output-x.csv` |\n|---|---|\n| 1 | 9-7 |\n| 2 |  |\n| 3 | 5, x |\n",
        "a | b\n--|--\n1 | 2\n",
    ],
)
def test_odd_tables_break_nothing(archive: Archive, table: str) -> None:
    assert audit(table, archive).wrong == ()


def test_five_megabytes_are_read_and_looked_up_in_seconds(archive: Archive) -> None:
    sentence = "The model keeps to the answer from there on, and nothing in the later layers takes it back. "
    cited = f"Then p_top1≈0.25 at L 3 [output-{archive.stems[0]}.json:5-9].\n\n"
    block = sentence * 400 + "\n\n" + cited
    reader = Reader(archive.sources)
    began = time.process_time()
    for statement in read_report(block * (LARGE // len(block)), archive.stems):
        reader.read(statement.references, statement.stems)
        pairs_of(statement.text)
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize(
    "unit",
    ["([", '"a ', "a_a=", "`", "| a | b ", "(x.json:1 ", "{a: ", "L 3 at ", "rank ≤ 10 at L3, ", "a. B ", "0.1234, "],
)
def test_a_long_line_is_read_in_time_that_grows_with_its_length(unit: str) -> None:
    """Four times the text may take no more than eight times as long, and a constant for short ones."""
    took = []
    for size in (20_000, 80_000):
        began = time.process_time()
        for statement in read_report(unit * (size // len(unit))):
            pairs_of(statement.text)
        took.append(time.process_time() - began)
    assert took[1] < 8 * took[0] + 1
