"""Printed numbers: how they are read, and which values they stand for, in prose and in tables alike."""

from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from layerscope.audit.audit import audit
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Judgement
from layerscope.report.numbers import NUMBER, Number, amount, full_text, short_text
from published_archives import archive_of

SUPPORTED, CONTRADICTED = Judgement.SUPPORTED, Judgement.CONTRADICTED
VALUES = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-200)
DECIMALS = st.integers(0, 8)


def rounded(value: float, decimals: int) -> Decimal:
    """The exact value of a binary fraction at so many decimals, by decimal arithmetic."""
    return Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)


def goes_either_way(value: float, printed: Decimal, unit: Decimal) -> bool:
    """Whether a value is half a unit from a number, as closely as can be told.

    Binary fractions tell no closer than their resolution; a value that was first rounded to six digits, which counts
    where fewer are printed, no closer than half a unit of the sixth.
    """
    closest = unit * Decimal("1e-6") + abs(Decimal(value)) * Decimal(2) ** -49
    if len(printed.as_tuple().digits) < 6 and value:
        closest += Decimal(5).scaleb(Decimal(value).adjusted() - 6)
    return abs(abs(Decimal(value) - printed) - unit / 2) <= closest


def parsed(text: str) -> Number:
    number = Number.parse(text)
    assert number is not None, text
    return number


@given(VALUES, DECIMALS)
def test_a_number_stands_for_what_rounds_to_it_and_not_for_what_is_one_unit_off(value: float, decimals: int) -> None:
    printed, unit = rounded(value, decimals), Decimal(1).scaleb(-decimals)
    assert parsed(f"{printed}").stands_for(value)
    for other in (printed + unit, printed - unit):
        assume(not goes_either_way(value, other, unit))
        assert not parsed(f"{other}").stands_for(value)


@given(st.floats(1e-200, 1e200), st.integers(0, 8))
def test_so_it_is_with_significant_digits_and_an_exponent(value: float, decimals: int) -> None:
    printed = f"{value:.{decimals}e}"
    assert parsed(printed).stands_for(value)
    mantissa, exponent = printed.split("e")
    unit = Decimal(1).scaleb(-decimals)
    for other in (Decimal(mantissa) + 2 * unit, Decimal(mantissa) - 2 * unit):
        assert not parsed(f"{other}e{exponent}").stands_for(value)


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_stand_for_themselves_with_and_without_separators(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"{value:,}".replace("-", "\u2212")):
        assert parsed(text).stands_for(value) and parsed(text).value == value
        assert not parsed(text).stands_for(value + 1) and not parsed(text).stands_for(value - 1)


@given(st.floats(0, 1), st.integers(0, 5))
def test_percentages_stand_for_shares(share: float, decimals: int) -> None:
    printed, unit = rounded(100 * share, decimals), Decimal(1).scaleb(-decimals)
    assert parsed(f"{printed}%").stands_for(share) and parsed(f"{printed} %").stands_for(share)
    assert not parsed(f"{printed + 2 * unit}%").stands_for(share)


@given(st.floats(1e-3, 1e5), st.integers(0, 6))
def test_a_rough_number_also_stands_for_what_is_cut_to_it(value: float, decimals: int) -> None:
    unit = Decimal(1).scaleb(-decimals)
    cut = Decimal(repr(value)) // unit * unit
    for text in (f"≈{cut}", f"~ {cut}", f"{cut}…"):
        assert parsed(text).stands_for(value) or cut == 0
        assert not parsed(text.replace(f"{cut}", f"{cut + 2 * unit}")).stands_for(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234), ("1,234.5", 1234.5), ("12,345,678", 12345678), ("-0.36", -0.36), ("\u22120.36", -0.36),
        ("5.83e\u221204", 0.000583), ("4.39E-06", 4.39e-06), ("10^4", 10000), (".5", 0.5), ("+3", 3), ("50%", 0.5),
        ("86.1 %", 0.861), ("\u2248 0.41", 0.41),
    ],
)  # fmt: skip
def test_numbers_are_read_in_every_form_in_which_they_are_printed(text: str, value: float) -> None:
    assert parsed(text).value == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    ["0..1", "0,01", "0,123", "1,23", "1234,567", "1,2345", "1,,234", "1.2.3", "", ".", "-", "%", "e5", "1 2", "1e999",
     "9" * 100, "x"],
)  # fmt: skip
def test_what_is_no_number_or_not_clear_is_not_read(text: str) -> None:
    assert Number.parse(text) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)])
def test_no_number_stands_for_what_is_none_or_beyond_all_bounds(value: float) -> None:
    for text in ("0", "\u22480", "1e300", "0.5", "\u22480.5"):
        number = parsed(text)
        assert not number.stands_for(value) and not number.is_near(value) and not number.is_about(value)


@given(VALUES)
def test_what_is_printed_stands_for_the_value(value: float) -> None:
    for text in (full_text(value), short_text(value), amount(value)):
        assert parsed(text).stands_for(value)


@pytest.fixture(scope="module")
def archive(shared: Path) -> Archive:
    return archive_of(shared / "reference" / "run-20251004-1804")


def entropies(archive: Archive) -> dict[int, float]:
    """The column by the csv module's reading of the first prompt's rows."""
    curve = archive.evidence("Qwen3-8B").curve()
    assert curve is not None
    return {row["layer"]: row["entropy_bits"] for row in curve.rows}


def in_prose(archive: Archive, layer: int, text: str) -> list[Judgement]:
    said = f"# Qwen3-8B\n\nAt layer {layer} the entropy is {text} bits.\n"
    return [finding.judgement for finding in audit(said, archive).findings]


def in_table(archive: Archive, layer: int, text: str) -> list[Judgement]:
    """Of a row of the whole table, by which the lens is found."""
    cells = {of: f"{value:.5f}" for of, value in entropies(archive).items()} | {layer: text}
    rows = "".join(f"| {of} | {cell} |\n" for of, cell in cells.items())
    found = audit(f"# Qwen3-8B\n\n| layer | entropy (bits) |\n|---|---|\n{rows}", archive).findings
    return [finding.judgement for finding in found if finding.line == 5 + layer]


def test_what_was_first_rounded_to_six_digits_is_borne_out_too() -> None:
    """0.40750025 is given as 0.4075, which goes either way; where as many digits are printed it does not."""
    assert all(parsed(text).stands_for(0.40750025) for text in ("0.407", "0.408"))
    assert not parsed("0.4070").stands_for(0.40750025) and not parsed("0.4075000").stands_for(0.40750025)
    assert not parsed("0.407").stands_for(0.407501) and not parsed("0.409").stands_for(0.40750025)


@pytest.mark.parametrize(
    ("value", "either"), [(0.125, ("0.12", "0.13")), (-0.375, ("-0.37", "-0.38")), (2.5, ("2", "3"))]
)
def test_half_a_unit_goes_either_way(value: float, either: tuple[str, ...]) -> None:
    assert all(parsed(text).stands_for(value) for text in either)


@settings(max_examples=30, deadline=None)
@given(layer=st.integers(0, 36), decimals=st.integers(1, 5))
def test_prose_and_tables_say_the_same_of_a_number_and_of_one_a_unit_off(
    archive: Archive, layer: int, decimals: int
) -> None:
    value = entropies(archive)[layer]
    printed, unit = rounded(value, decimals), Decimal(1).scaleb(-decimals)
    assert in_prose(archive, layer, f"{printed}") == in_table(archive, layer, f"{printed}") == [SUPPORTED]
    for other in (printed + unit, abs(printed - unit)):
        if other != printed and not goes_either_way(value, other, unit):
            assert in_prose(archive, layer, f"{other}") == in_table(archive, layer, f"{other}") == [CONTRADICTED]


def test_a_table_of_which_every_cell_is_one_unit_off_is_contradicted_in_every_row(archive: Archive) -> None:
    cells = {layer: rounded(value, 2) for layer, value in entropies(archive).items()}
    for off in (0, 1, -1):
        rows = "".join(f"| {layer} | {cell + off * Decimal('0.01')} |\n" for layer, cell in cells.items())
        found = audit(f"# Qwen3-8B\n\n| layer | entropy (bits) |\n|---|---|\n{rows}", archive).findings
        expected = SUPPORTED if off == 0 else CONTRADICTED
        assert [finding.judgement for finding in found] == [expected] * len(cells)


@pytest.mark.parametrize(
    "text",
    [
        "The entropy stays above 0..1 bits.",
        "The entropy stays above 0,01 bits at all layers.",
        "rank <= {0..1} at layer 5.",
        "p_top1 never exceeds 0,6.",
        "p_top1 never exceeds 0..6.",
        "At layer 31 the entropy is 0,45 bits.",
        "At layer 31 the entropy is 0..4 bits.",
        "| layer | entropy (bits) |\n|---|---|\n| 31 | 0,45 |\n| 32 | 1..2 |",
        "- L 31 - entropy 0,45 bits, top-1 ' Berlin'",
    ],
)
def test_numbers_that_are_not_clear_are_held_neither_for_nor_against_anybody(archive: Archive, text: str) -> None:
    found = audit(f"# Qwen3-8B\n\n{text}\n", archive).findings
    assert {finding.judgement for finding in found} <= {Judgement.UNDECIDED}


def test_a_lens_without_a_value_does_not_bear_one_out(archive: Archive) -> None:
    """The raw lens has the token at that layer too, and no entropy in these files."""
    raw = archive.evidence("Qwen3-8B").curve("raw")
    assert raw is not None and {row["entropy_bits"] for row in raw.rows} == {None}
    row = next(row for row in raw.rows if row["layer"] == 31)
    found = audit(f"# Qwen3-8B\n\n- L 31 - entropy 9.99 bits, top-1 '{row['top1']}'\n", archive).findings
    assert SUPPORTED not in {finding.judgement for finding in found}


def test_separators_of_thousands_are_read_in_prose_and_in_tables(archive: Archive) -> None:
    curve = archive.evidence("Qwen3-8B").curve()
    assert curve is not None
    layer, rank = next((row["layer"], row["answer_rank"]) for row in curve.rows if row["answer_rank"] >= 1000)
    for off, expected in ((0, SUPPORTED), (1, CONTRADICTED), (-1, CONTRADICTED)):
        prose = f"# Qwen3-8B\n\nAt layer {layer} the answer rank is {rank + off:,}.\n"
        assert [finding.judgement for finding in audit(prose, archive).findings] == [expected]
    table = f"# Qwen3-8B\n\n| layer | rank | entropy |\n|---|---|---|\n| {layer} | {rank:,} | |\n"
    assert [finding.judgement for finding in audit(table, archive).findings] == [SUPPORTED]


@pytest.mark.parametrize(("text", "expected"), [("31/36 = 86%", SUPPORTED), ("31/36 = 87%", CONTRADICTED),
                                                ("31/36 = 85%", CONTRADICTED), ("31/36 = 86.1%", SUPPORTED),
                                                ("31/36 = 86.2%", CONTRADICTED)])  # fmt: skip
def test_depths_in_percent_are_held_to_the_same_rule(archive: Archive, text: str, expected: Judgement) -> None:
    found = audit(f"# Qwen3-8B\n\nThe onset is at {text} of the depth.\n", archive).findings
    assert [finding.judgement for finding in found if "/" in finding.claim] == [expected]


@given(st.from_regex(rf"\A{NUMBER}\Z"))
def test_reading_a_number_never_fails(text: str) -> None:
    number = Number.parse(text)
    assert number is None or number.stands_for(number.value) or abs(number.value) >= 1e300
