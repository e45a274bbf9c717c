"""Markdown: whatever a token or a name holds, tables stay tables and nothing turns into HTML or links."""

import re
from pathlib import Path

import polars as pl
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token as Mark

from layerscope.published.layout import Dialect
from layerscope.report.cited.claims import Citation, Claim, Unit, merged, value_text
from layerscope.report.cited.document import (
    Basis,
    Bullets,
    Check,
    Checklist,
    Name,
    Paragraph,
    Part,
    Report,
    Section,
    Strong,
    Table,
    Text,
    Token,
    UncitedNumber,
    row,
    sentence,
)
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import code, markdown, plain, token_text
from layerscope.report.evaluation import evaluation
from layerscope.run import Run
from probed import probed
from published_archives import folder_of, with_made

HOSTILE = [
    "|", "||", "\\|", "\\\\|", "a|b|c", "`", "``", "`|`", "` |", "<script>alert(1)</script>", "<b>", "</td>", "<!--",
    "](http://x.example)", "[a](http://x.example)", "![i](http://x.example/i.png)", "<http://x.example>", "\n", "\r\n",
    "a\nb", "\n\n# heading", "\u2028", "\u2029", "\u202e", "\u202eabc", "\u200b", "\x00", "\x1b[31m", "\x85", "\t",
    "**", "__", "*a*", "~~a~~", "&lt;", "&#60;", "- ", "1. ", "# ", "===", "---", "\\", "\\\\", "\\`", "\"", "", " ",
    "$x$", "\ud83d", "\ufeff", "\u2066", "=", "+ a", "> q",
]  # fmt: skip
HIDDEN = re.compile(
    "[\\u202a-\\u202e\\u2066-\\u2069\\u2028\\u2029\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u200b\\ufeff\\ud800-\\udfff]"
)
"""What shows as nothing, or turns what stands around it about."""
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")


def claim(value: object = 3, unit: Unit = Unit.LAYER, line: int = 7, file: str = "output-m.json") -> Claim:
    place = Citation(file, line, line)
    return Claim(subject="m", name="x", value=value, unit=unit, citations=(place,))


def flat(tokens: list[Mark]) -> list[Mark]:
    return [inner for one in tokens for inner in (one, *flat(one.children or []))]


def check(text: str) -> list[Mark]:
    """Nothing but the marks of our own templates, and tables whose rows have as many cells as their headers."""
    marks = flat(PARSER.parse(text))
    bad = {"html_block", "html_inline", "link_open", "image", "s_open", "hr", "fence", "code_block", "blockquote_open"}
    assert not {one.type for one in marks} & bad
    width = cells = None
    for one in marks:
        if one.type == "thead_open":
            width = None
        elif one.type == "tr_open":
            cells = 0
        elif one.type in ("th_open", "td_open"):
            cells += 1
        elif one.type == "tr_close":
            width = width or cells
            assert cells == width
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    check_pipes(text)
    assert not HIDDEN.search(text)
    return marks


def check_pipes(text: str) -> None:
    """The rows of one table hold equally many pipes that no odd number of backslashes precedes.

    A parser of GitHub's kind takes backslashes in pairs, inside code spans too, when it cuts a row into cells.
    """
    width = None
    for line in text.split("\n"):
        if not line.startswith("|"):
            width = None
            continue
        pipes = len(re.findall(r"\|", re.sub(r"\\.", "", line)))
        assert width in (None, pipes), line
        width = pipes


def report(*blocks: object, title: str = "Title") -> Report:
    return Report(title, Paragraph((sentence("Opening."),)), (Section("Section", tuple(blocks)),))


def parts_with(text: str) -> list[Part]:
    return [Token(text), Name(text), claim(text, Unit.TOKEN), claim(text, Unit.TEXT), Strong((Token(text),))]


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_a_hostile_text_breaks_no_table(text):
    cells = parts_with(text)
    table = Table(("a", "b", "c", "d", "e"), (row(*cells), row(*["x"] * 5)))
    marks = check(markdown(report(table)))
    assert sum(one.type == "tr_open" for one in marks) == 3
    assert sum(one.type == "table_open" for one in marks) == 1


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_a_hostile_text_breaks_no_sentence_list_or_title(text):
    said = [sentence("{} is said.", part) for part in parts_with(text)]
    lists = (Bullets(tuple(said)), Checklist(tuple(Check(f"check {text}", None, one) for one in said)))
    marks = check(markdown(report(Paragraph(tuple(said)), *lists, title=f"Of {text}")))
    assert [one.tag for one in marks if one.type == "heading_open"] == ["h1", "h2"]
    assert sum(one.type == "list_item_open" for one in marks) == 2 * len(said)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.strip()], ids=repr)
def test_a_token_in_a_table_shows_as_its_escaped_self(text):
    marks = PARSER.parse(markdown(report(Table(("a",), (row(Token(text)),)))))
    shown = [one.content for one in flat(marks) if one.type == "code_inline"]
    assert shown == [token_text(text)]


def test_what_is_not_seen_is_written_out():
    assert token_text(" a\n\u202e\u2028\t") == '" a\\n\\u{202e}\\u{2028}\\t"'
    assert token_text('"\\') == '"\\"\\\\"'


def test_a_code_span_holds_backticks():
    for text in ("`", "a``b", "```", "`a"):
        marks = flat(PARSER.parse(code(text)))
        assert [one.content for one in marks if one.type == "code_inline"] == [text]


@pytest.mark.parametrize("start", ["1. a", "1) a", "- a", "+ a", "=", "---", "-", "12. b", "==="])
def test_words_at_the_beginning_of_a_line_make_no_list_and_no_heading(start):
    marks = PARSER.parse(f"before\n{plain(start)}")
    assert [one.type for one in marks] == ["paragraph_open", "inline", "paragraph_close"]


@pytest.mark.parametrize("text", ["in 3 layers", "a 2"])
def test_a_templates_own_words_may_hold_no_number(text):
    with pytest.raises(UncitedNumber, match="make it a claim"):
        Text(text)


def test_terms_that_are_names_may_hold_theirs():
    assert Text("Rank 1 and top-1 at layers 0 to 3").text.startswith("Rank 1")


def test_a_sentence_ends_with_the_places_of_its_claims():
    said = sentence("At layer {} it leads{}.", claim(), Basis((claim(line=9, file="t.csv"),)))
    assert "At layer 3 it leads [`output-m.json:7; t.csv:9`]." in markdown(report(Paragraph((said,))))


def test_a_table_of_one_file_names_it_once():
    text = markdown(report(Table(("a",), (row(claim()), row(claim(line=8))))))
    assert "| a | line of `output-m.json` |" in text
    assert text.count("output-m.json") == 1


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([(7, 7), (9, 9)], "7, 9"),
        ([(7, 7), (8, 8)], "7, 8"),
        ([(7, 7), (8, 8), (9, 9)], "7-9"),
        ([(2, 38), (31, 31)], "2-38"),
        ([(31, 31), (7, 7), (31, 31)], "31, 7"),
        ([(3, 5), (6, 6), (7, 9), (20, 20)], "3-9, 20"),
    ],
)
def test_places_of_one_file_are_drawn_together(lines, shown):
    assert merged([Citation("f.csv", *span) for span in lines]) == f"f.csv:{shown}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n.a."), (True, "yes"), (31, "31"), (0.861, "0.861"), (0.00845879, "0.0084588"), (1.06071, "1.0607"),
        (0.0, "0"), (0.9999977350234983, "0.999998"), (0.00013231, "1.3231e-04"), (2.0, "2"), (1.0000005, "1.0000"),
        (-0.717, "-0.717"), (1 - 1e-11, "0.99999999999"), (1 - 2**-53, "1"), (2**-53 - 1, "-1"), (1e-13, "1.0000e-13"),
    ],
)  # fmt: skip
def test_values_print_with_five_digits_and_round_up_to_one_only_what_is_one_but_for_binary_fractions(value, text):
    assert value_text(value) == text


def test_a_number_that_is_none_cannot_be_claimed():
    with pytest.raises(ValueError, match="absent"):
        value_text(float("nan"))


def test_the_report_on_a_run_full_of_hostile_tokens_is_sound(tmp_path: Path):
    run = probed("berlin")
    texts = [text for text in HOSTILE if text and "\ud83d" not in text]
    shown = pl.Series("top1", [texts[i % len(texts)] for i in range(len(run.rows))])
    rows = run.rows.with_columns(shown)
    lists = [[shown[i], *tokens[1:]] if tokens else tokens
             for i, tokens in enumerate(rows["top_tokens"].to_list())]  # fmt: skip
    rows = rows.with_columns(pl.Series("top_tokens", lists, dtype=run.rows.schema["top_tokens"]))
    Run(rows, run.record).save(tmp_path / "run", published=Dialect.EXTENDED)
    check(markdown(evaluation(Evidence.of(tmp_path / "run"))))


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", "gemma-2-9b", "Mistral-Small-24B-Base-2501"))
def test_the_reports_on_published_runs_are_sound(stem: str, request: pytest.FixtureRequest):
    check(markdown(evaluation(Evidence.of(folder_of(stem, request), stem))))
