import csv
from collections import Counter
from pathlib import Path

import pytest

from layerscope.audit.judges.table_rows import judge_tables
from layerscope.audit.parse.read_report import Statement, read_report
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Judgement
from published_archives import archive_of

SUPPORTED, CONTRADICTED = Judgement.SUPPORTED, Judgement.CONTRADICTED
HEADER = ("Layer", "Entropy (bits)", "Top-1 token", "p_top1", "KL (bits)", "Rank")
STEM = "Qwen3-8B"


@pytest.fixture(scope="module")
def archive(shared: Path) -> Archive:
    return archive_of(shared / "reference" / "run-20251004-1804")


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[dict[str, str]]:
    path = shared / "reference" / "run-20251004-1804" / f"output-{STEM}-pure-next-token.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row["prompt_id"], row["prompt_variant"]) == ("pos", "orig")]


def printed(row: dict[str, str], decimals: int = 3) -> tuple[str, ...]:
    return (
        f"L {row['layer']}",
        f"{float(row['entropy']):.{decimals}f}",
        f"'{row['top1']}'",
        f"{float(row['p_top1']):.4g}",
        f"{float(row['kl_to_final_bits']):.2f}",
        row["answer_rank"],
    )


def table(cells: list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> list[Statement]:
    return [
        Statement(line, " | ".join(row), "", (), (), (STEM,), cells=row, header=header)
        for line, row in enumerate(cells, start=10)
    ]


@pytest.mark.parametrize(
    ("report", "run", "n_rows"),
    [
        ("evaluation-Qwen2.5-72B.20250921.md", "run-20250921-1713", 81),
        ("evaluation-Qwen3-14B.20251004.md", "run-20251004-1804", 41),
        ("evaluation-Qwen3-8B.20251004.md", "run-20251004-1804", 37),
    ],
)
def test_published_tables_are_supported_row_by_row(shared: Path, report: str, run: str, n_rows: int) -> None:
    archive = archive_of(shared / "reference" / run)
    text = (shared / "reports" / report).read_text(encoding="utf-8")
    found = judge_tables(read_report(text, archive.stems), archive)
    assert Counter(one.judgement for one in found) == {SUPPORTED: n_rows}


def test_a_changed_value_is_found_in_its_row_alone(archive: Archive, rows: list[dict[str, str]]) -> None:
    for column, wrong in ((1, "9.999"), (2, "'Paris'"), (3, "0.5555"), (4, "99.00"), (5, "77")):
        cells = [printed(row) for row in rows]
        cells[7] = (*cells[7][:column], wrong, *cells[7][column + 1 :])
        found = judge_tables(table(cells), archive)
        assert [one.line for one in found if one.judgement is CONTRADICTED] == [17]
        assert len(found) == len(rows)


def test_the_printed_precision_counts(archive: Archive, rows: list[dict[str, str]]) -> None:
    for decimals in (1, 2, 5):
        found = judge_tables(table([printed(row, decimals) for row in rows]), archive)
        assert {one.judgement for one in found} == {SUPPORTED}
    off = [printed(row) for row in rows]
    off[3] = (off[3][0], f"{float(rows[3]['entropy']) + 0.003:.3f}", *off[3][2:])
    assert [one.line for one in judge_tables(table(off), archive) if one.judgement is CONTRADICTED] == [13]


@pytest.mark.parametrize("dressed", ["{}", "`{}`", "**{}**", '"{}"', "‘{}’", "“{}”", "**'{}'**", "'{}' ", "` {}`"])
def test_tokens_may_be_dressed(archive: Archive, rows: list[dict[str, str]], dressed: str) -> None:
    cells = [(*c[:2], dressed.format(row["top1"]), *c[3:]) for row in rows for c in [printed(row)]]
    assert {one.judgement for one in judge_tables(table(cells), archive)} == {SUPPORTED}


def test_a_lens_is_found_by_what_fits(shared: Path, archive: Archive) -> None:
    path = shared / "reference" / "run-20251004-1804" / f"output-{STEM}-pure-next-token-tuned.csv"
    with path.open(newline="", encoding="utf-8") as file:
        tuned = [row for row in csv.DictReader(file) if (row["prompt_id"], row["prompt_variant"]) == ("pos", "orig")]
    found = judge_tables(table([printed(row) for row in tuned]), archive)
    assert {one.judgement for one in found} == {SUPPORTED}
    assert all("-tuned.csv" in one.reason for one in found)


def test_a_table_of_something_else_is_left_out(archive: Archive, rows: list[dict[str, str]]) -> None:
    nats = [(c[0], f"{float(row['entropy']) * 0.6931:.3f}", *c[2:]) for row in rows for c in [printed(row)]]
    assert judge_tables(table(nats), archive) == []
    assert judge_tables(table([("a", "b")], ("Model", "Rank")), archive) == []
    assert judge_tables(table([("L 1", "2")], ("Layer", "Favourite colour")), archive) == []


def test_absent_cells_and_foreign_layers_are_held_against_nobody(archive: Archive, rows: list[dict[str, str]]) -> None:
    cells = [(*printed(row)[:3], "n/a", "—", "") for row in rows]
    assert {one.judgement for one in judge_tables(table(cells), archive)} == {SUPPORTED}
    beyond = [*cells, ("L 99", "1.0", "'x'", "0.1", "1", "1")]
    assert judge_tables(table(beyond), archive)[-1].judgement is Judgement.UNDECIDED


def test_a_bar_within_a_token_does_not_shift_the_cells_behind_it(
    archive: Archive, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    source = archive.path
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (f"output-{STEM}.json", f"output-{STEM}-pure-next-token.csv"):
        (folder / name).write_bytes((source / name).read_bytes())
    path = folder / f"output-{STEM}-pure-next-token.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",CLICK,", ",a|b,"), encoding="utf-8")
    damaged = Archive(folder)
    cells = [printed(row) for row in rows]
    for first in (("'a", "b'"), ("'a\\|b'",), ("'a|b'",)):
        changed = [(*cells[0][:2], *first, *cells[0][3:]), *cells[1:]]
        assert judge_tables(table(changed), damaged)[0].judgement is SUPPORTED
    changed = [(*cells[0][:2], "'a|c'", *cells[0][3:]), *cells[1:]]
    assert judge_tables(table(changed), damaged)[0].judgement is CONTRADICTED


def test_line_breaks_in_tokens_may_be_written_out(archive: Archive, rows: list[dict[str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (f"output-{STEM}.json", f"output-{STEM}-pure-next-token.csv"):
        (folder / name).write_bytes((archive.path / name).read_bytes())
    path = folder / f"output-{STEM}-pure-next-token.csv"
    text = path.read_text(encoding="utf-8").replace(",CLICK,", ',"x\ny",').replace(",apr,", ',"\n",')
    path.write_text(text, encoding="utf-8", newline="")
    cells = [printed(row) for row in rows]
    changed = [
        (*cells[0][:2], "'x\\ny'", *cells[0][3:]),
        (*cells[1][:2], "'\\n'", *cells[1][3:]),
        *cells[2:],
    ]
    found = judge_tables(table(changed), Archive(folder))
    assert {one.judgement for one in found} == {SUPPORTED}


def test_lists_of_layers_in_prose_are_tables_too(archive: Archive, rows: list[dict[str, str]]) -> None:
    lines = [f"**L {row['layer']} — entropy {float(row['entropy']):.3f} bits, top-1 ‘{row['top1']}’**" for row in rows]
    lines[5] = lines[5].replace("entropy 1", "entropy 2")
    said = [Statement(number, text, text, (), (), (STEM,)) for number, text in enumerate(lines, start=1)]
    found = judge_tables(said, archive)
    assert len(found) == len(rows)
    assert [one.line for one in found if one.judgement is CONTRADICTED] == [6]
