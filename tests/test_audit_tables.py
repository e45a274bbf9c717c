import csv
from collections import Counter
from pathlib import Path

import pytest

from layerscope.audit.judges.table_rows import judge_tables
from layerscope.audit.parse.read_report import Statement, read_report
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Judgement
from made_sweep import FITTED
from published_archives import archive_of, folder_of, with_made

SUPPORTED, CONTRADICTED = Judgement.SUPPORTED, Judgement.CONTRADICTED
HEADER = ("Layer", "Entropy (bits)", "Top-1 token", "p_top1", "KL (bits)", "Rank")
STEMS = with_made("Qwen3-8B", made=FITTED)


@pytest.fixture(scope="module", params=STEMS)
def stem(request: pytest.FixtureRequest) -> str:
    """A self-made model, and a published one where it is present."""
    return request.param


@pytest.fixture(scope="module")
def archive(stem: str, request: pytest.FixtureRequest) -> Archive:
    return archive_of(folder_of(stem, request))


def primary(archive: Archive, stem: str, lens: str = "") -> list[dict[str, str]]:
    """The first prompt's rows of a table."""
    with (archive.path / f"output-{stem}-pure-next-token{lens}.csv").open(newline="", encoding="utf-8") as file:
        key = ("pos", "orig", "0")
        rows = csv.DictReader(file)
        return [row for row in rows if (row["prompt_id"], row["prompt_variant"], row.get("fact_index", "0")) == key]


@pytest.fixture(scope="module")
def rows(archive: Archive, stem: str) -> list[dict[str, str]]:
    return primary(archive, stem)


def printed(row: dict[str, str], decimals: int = 3) -> tuple[str, ...]:
    return (
        f"L {row['layer']}",
        f"{float(row['entropy']):.{decimals}f}",
        f"'{row['top1']}'",
        f"{float(row['p_top1']):.4g}",
        f"{float(row['kl_to_final_bits']):.2f}",
        row["answer_rank"],
    )


def table(stem: str, cells: list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> list[Statement]:
    return [
        Statement(line, " | ".join(row), "", (), (), (stem,), cells=row, header=header)
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


def test_a_changed_value_is_found_in_its_row_alone(archive: Archive, stem: str, rows: list[dict[str, str]]) -> None:
    for column, wrong in ((1, "9.999"), (2, "'Paris'"), (3, "0.5555"), (4, "99.00"), (5, "77")):
        cells = [printed(row) for row in rows]
        cells[7] = (*cells[7][:column], wrong, *cells[7][column + 1 :])
        found = judge_tables(table(stem, cells), archive)
        assert [one.line for one in found if one.judgement is CONTRADICTED] == [17]
        assert len(found) == len(rows)


def test_the_printed_precision_counts(archive: Archive, stem: str, rows: list[dict[str, str]]) -> None:
    for decimals in (1, 2, 5):
        found = judge_tables(table(stem, [printed(row, decimals) for row in rows]), archive)
        assert {one.judgement for one in found} == {SUPPORTED}
    off = [printed(row) for row in rows]
    off[3] = (off[3][0], f"{float(rows[3]['entropy']) + 0.003:.3f}", *off[3][2:])
    assert [one.line for one in judge_tables(table(stem, off), archive) if one.judgement is CONTRADICTED] == [13]


@pytest.mark.parametrize("dressed", ["{}", "`{}`", "**{}**", '"{}"', "‘{}’", "“{}”", "**'{}'**", "'{}' ", "` {}`"])
def test_tokens_may_be_dressed(archive: Archive, stem: str, rows: list[dict[str, str]], dressed: str) -> None:
    cells = [(*c[:2], dressed.format(row["top1"]), *c[3:]) for row in rows for c in [printed(row)]]
    assert {one.judgement for one in judge_tables(table(stem, cells), archive)} == {SUPPORTED}


def test_a_lens_is_found_by_what_fits(archive: Archive, stem: str) -> None:
    tuned = primary(archive, stem, "-tuned")
    found = judge_tables(table(stem, [printed(row) for row in tuned]), archive)
    assert {one.judgement for one in found} == {SUPPORTED}
    assert all("-tuned.csv" in one.reason for one in found)


def test_a_table_of_something_else_is_left_out(archive: Archive, stem: str, rows: list[dict[str, str]]) -> None:
    nats = [(c[0], f"{float(row['entropy']) * 0.6931:.3f}", *c[2:]) for row in rows for c in [printed(row)]]
    assert judge_tables(table(stem, nats), archive) == []
    assert judge_tables(table(stem, [("a", "b")], ("Model", "Rank")), archive) == []
    assert judge_tables(table(stem, [("L 1", "2")], ("Layer", "Favourite colour")), archive) == []


def test_absent_cells_and_foreign_layers_are_held_against_nobody(
    archive: Archive, stem: str, rows: list[dict[str, str]]
) -> None:
    cells = [(*printed(row)[:3], "n/a", "—", "") for row in rows]
    assert {one.judgement for one in judge_tables(table(stem, cells), archive)} == {SUPPORTED}
    beyond = [*cells, ("L 99", "1.0", "'x'", "0.1", "1", "1")]
    assert judge_tables(table(stem, beyond), archive)[-1].judgement is Judgement.UNDECIDED


def test_a_bar_within_a_token_does_not_shift_the_cells_behind_it(
    archive: Archive, stem: str, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    source = archive.path
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (f"output-{stem}.json", f"output-{stem}-pure-next-token.csv"):
        (folder / name).write_bytes((source / name).read_bytes())
    path = folder / f"output-{stem}-pure-next-token.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(f",{rows[0]['top1']},", ",a|b,"), encoding="utf-8")
    damaged = Archive(folder)
    cells = [printed(row) for row in rows]
    for first in (("'a", "b'"), ("'a\\|b'",), ("'a|b'",)):
        changed = [(*cells[0][:2], *first, *cells[0][3:]), *cells[1:]]
        assert judge_tables(table(stem, changed), damaged)[0].judgement is SUPPORTED
    changed = [(*cells[0][:2], "'a|c'", *cells[0][3:]), *cells[1:]]
    assert judge_tables(table(stem, changed), damaged)[0].judgement is CONTRADICTED


def test_line_breaks_in_tokens_may_be_written_out(
    archive: Archive, stem: str, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (f"output-{stem}.json", f"output-{stem}-pure-next-token.csv"):
        (folder / name).write_bytes((archive.path / name).read_bytes())
    path = folder / f"output-{stem}-pure-next-token.csv"
    text = (
        path.read_text(encoding="utf-8")
        .replace(f",{rows[0]['top1']},", ',"x\ny",')
        .replace(f",{rows[1]['top1']},", ',"\n",')
    )
    path.write_text(text, encoding="utf-8", newline="")
    cells = [printed(row) for row in rows]
    changed = [
        (*cells[0][:2], "'x\\ny'", *cells[0][3:]),
        (*cells[1][:2], "'\\n'", *cells[1][3:]),
        *cells[2:],
    ]
    found = judge_tables(table(stem, changed), Archive(folder))
    assert {one.judgement for one in found} == {SUPPORTED}


def test_lists_of_layers_in_prose_are_tables_too(archive: Archive, stem: str, rows: list[dict[str, str]]) -> None:
    lines = [f"**L {row['layer']} — entropy {float(row['entropy']):.3f} bits, top-1 ‘{row['top1']}’**" for row in rows]
    lines[5] = lines[5].replace(
        f"entropy {float(rows[5]['entropy']):.3f}", f"entropy {float(rows[5]['entropy']) + 1:.3f}"
    )
    said = [Statement(number, text, text, (), (), (stem,)) for number, text in enumerate(lines, start=1)]
    found = judge_tables(said, archive)
    assert len(found) == len(rows)
    assert [one.line for one in found if one.judgement is CONTRADICTED] == [6]
