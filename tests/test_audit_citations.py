"""Citations in reports: which file, which lines, in every style that published reports use."""

import pytest

from layerscope.audit.parse.citations import END, fence_reference, find_groups
from layerscope.audit.parse.read_report import read_report
from layerscope.audit.parse.vocabulary import plain_marks, unescaped

JSON, CSV = "output-M.json", "output-M-pure-next-token.csv"


def cited(text: str, last_file: str | None = None) -> list[tuple[str | None, tuple[tuple[int, int], ...]]]:
    return [(r.file, r.lines) for group in find_groups(plain_marks(text), last_file) for r in group.references]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x [a/b/output-M.json:10-20].", [(JSON, ((10, 20),))]),
        (
            "x (a/output-M.json:10–20, 30; output-M-pure-next-token.csv:5).",
            [(JSON, ((10, 20), (30, 30))), (CSV, ((5, 5),))],
        ),
        (
            "x [`output-M.json:7081, 7083; output-M-pure-next-token.csv:33`].",
            [(JSON, ((7081, 7081), (7083, 7083))), (CSV, ((33, 33),))],
        ),
        ("x [`output-M.json`:7 – 9]", [(JSON, ((7, 9),))]),
        ("x `output-M.json` (lines 10–20) y", [(JSON, ((10, 20),))]),
        ("x [output-M.json#L10-L20]", [(JSON, ((10, 20),))]),
        ("x [output-M.json:7081–83]", [(JSON, ((7081, 7083),))]),
        ("x […-pure-next-token.csv:98]", [("…-pure-next-token.csv", ((98, 98),))]),
        ("x (output-*.json:902–904; 906; 940)", [("output-*.json", ((902, 904), (906, 906), (940, 940)))]),
        ("x (output-{A,B}.json:5)", [("output-{A,B}.json", ((5, 5),))]),
        ("x [output‑M.json:5\u202f–\u202f6,\u00a09]", [(JSON, ((5, 6), (9, 9)))]),
        (
            "x (output-M.json:5; 841–end; see 850–861 prefer_tuned=true)",
            [(JSON, ((5, 5), (841, END))), (JSON, ((850, 861),))],
        ),
        (
            "x (output-M.json:7170–7174, 38 in CSV shows cos≈1.0 at L 36)",
            [(JSON, ((7170, 7174),)), ("*.csv", ((38, 38),))],
        ),
        ("x (output-M-pure-next-token.csv:31: “… Berlin,0.02649 …”)", [(CSV, ((31, 31),))]),
    ],
)  # fmt: skip
def test_a_style_of_citation_is_read(text: str, expected: list[object]) -> None:
    assert cited(text) == expected


@pytest.mark.parametrize("text", ["x [output-M-records.csv:row 5]", "x [output-M-records.csv: rows 5]"])
def test_rows_are_told_from_lines(text: str) -> None:
    (group,) = find_groups(text)
    assert [(r.file, r.lines, r.rows) for r in group.references] == [("output-M-records.csv", (), ((5, 5),))]


@pytest.mark.parametrize(
    ("text", "file", "lines", "rows"),
    [
        ("x [JSON L807–L809]", JSON, ((807, 809),), ()),
        ("x [row 82 in CSV]", "*.csv", (), ((82, 82),)),
        ("x [rows 2–5]", "*.csv", (), ((2, 5),)),
        ("x (lines 12-14)", JSON, ((12, 14),), ()),
        ("x (5959–5964)", JSON, ((5959, 5964),), ()),
    ],
)
def test_a_citation_without_a_name_goes_on_with_the_last_file(
    text: str, file: str, lines: tuple[tuple[int, int], ...], rows: tuple[tuple[int, int], ...]
) -> None:
    (group,) = find_groups(plain_marks(text), JSON)
    assert [(r.file, r.lines, r.rows) for r in group.references] == [(file, lines, rows)]


@pytest.mark.parametrize(
    "text",
    [
        "centered at layers [29,31,36]", "(31/36)", "(arXiv:2303.08112)", "(2025-10-04)", "(0.2364)", "(31→31)",
        "(size 6112)",
        "on 2025-10-04 at 18:04:23", "layers (33–36)", "see `run.py` for more", "[1]", "(5959)",
    ],
)  # fmt: skip
def test_numbers_that_are_no_citation_are_left_alone(text: str) -> None:
    assert cited(text, JSON) == []


def test_a_code_fence_may_be_a_citation() -> None:
    found = fence_reference("7:13:folder/output-M.txt")
    assert found is not None and (found.file, found.lines) == ("output-M.txt", ((7, 13),))
    assert fence_reference("python") is None


def test_a_statement_ends_with_what_it_cites() -> None:
    first, second = read_report("A is 1 (output-M.json:5), while B is 2 [output-M.json:6].")
    assert (first.text, [r.lines for r in first.references]) == ("A is 1 ,", [((5, 5),)])
    assert (second.text, [r.lines for r in second.references]) == ("while B is 2 .", [((6, 6),)])


def test_two_brackets_in_a_row_cite_one_statement() -> None:
    (only,) = read_report("A is 1 and B is 2 [output-M.json:5], [output-M-records.csv:6].")
    assert [r.file for r in only.references] == ["output-M.json", "output-M-records.csv"]


def test_words_beside_a_citation_in_its_bracket_stay_part_of_the_claim() -> None:
    (only,) = read_report("Late (40/80 = 50%; output-M.json:933).")
    assert "40/80 = 50%" in only.text and "933" not in only.text


def test_a_sentence_may_end_within_a_quoted_prompt() -> None:
    (only,) = read_report('“prompt": "Plain text. The capital is called”  [output-M.json:76]')
    assert only.references[0].lines == ((76, 76),) and "Plain text. The capital" in only.text


def test_lines_of_the_report_are_physical_lines() -> None:
    found = read_report("# T\r\n\r\nA [output-M.json:5]\n\u2028B\x0bC [output-M.json:6]\n\nD [output-M.json:7]\n")
    assert [s.line for s in found if s.references] == [3, 4, 6]


def test_headings_of_a_statement_are_those_that_it_stands_under() -> None:
    *_, last = read_report("# One\n\n## Two\n\nx\n\n## Three\n\ny [output-M.json:1]\n")
    assert last.headings == ("One", "Three")


def test_a_table_row_cites_what_its_last_column_says() -> None:
    head = "| layer | rank | source |\n| ---: | ---: | --- |\n"
    text = f"{head}| 3 | 17 | `output-M.json:7; output-M-pure-next-token.csv:5` |\n"
    row = read_report(text)[0]
    assert row.cells is not None and row.cells[:2] == ("3", "17") and row.header == ("layer", "rank", "source")
    assert [(r.file, r.lines) for r in row.references] == [(JSON, ((7, 7),)), (CSV, ((5, 5),))]


def test_a_table_may_have_one_file_for_all_its_rows() -> None:
    text = f"| layer | rank | line of `{CSV}` |\n| ---: | ---: | --- |\n| 3 | 17 | 49-57 |\n"
    row = read_report(text)[0]
    assert row.cells == ("3", "17")
    assert [(r.file, r.lines) for r in row.references] == [(CSV, ((49, 57),))]


def test_bars_and_backticks_in_tokens_divide_no_cells() -> None:
    text = '| layer | token | rank |\n|---|---|---|\n| 1 | `"\\|"` | 5 |\n| 2 | `` `x` `` | 6 |\n| 3 | `"\\n"` | 7 |\n'
    rows = [row.cells for row in read_report(text)]
    assert rows == [("1", '`"|"`', "5"), ("2", "`` `x` ``", "6"), ("3", '`"\\n"`', "7")]


def test_escapes_are_taken_away_outside_of_code_spans() -> None:
    assert unescaped(r"first\_rank is `a\_b` \| c\*") == r"first_rank is `a\_b` | c*"


def test_a_statement_is_about_the_models_that_it_names_or_cites() -> None:
    stems = ("Qwen3-8B", "Mistral-7B-v0.1", "Meta-Llama-3-8B")
    text = "Mistral‑7B is late. It is so [output-Qwen3-8B.json:3]. Llama‑3‑8B and Qwen3-8B differ. Others do not."
    assert [s.stems for s in read_report(text, stems)] == [
        ("Mistral-7B-v0.1",),
        ("Qwen3-8B",),
        ("Qwen3-8B", "Meta-Llama-3-8B"),
        (),
    ]
