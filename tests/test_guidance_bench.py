"""The bench of guidance: what counts as telling models from twins, and a page whose table has the present reasons."""

from pathlib import Path

import guidance_bench as bench
import pytest
from guidance_bench import Count, Fired, judgement, written

from layerscope.analysis.guidance import _RULES

PAGE = Path(__file__).parents[1] / "docs" / "verdict.md"


def fired(*names: str, open_: tuple[str, ...] = (), details: tuple[str, ...] = ()) -> Fired:
    return Fired(frozenset(names), frozenset(details), frozenset(open_), 0, 0)


def test_runs_on_which_a_reason_could_not_be_judged_do_not_count():
    runs = [fired("a"), fired(), fired(open_=("a",)), fired(details=("a",))]
    assert Count.of("a", runs) == Count(2, 3)
    assert str(Count.of("a", runs)) == "2 of 3"
    assert Count.of("a", [fired(open_=("a",))]) == Count(0, 0)


@pytest.mark.parametrize(
    ("models", "twins", "tells"),
    [
        ((0, 7), (7, 7), True),
        ((1, 7), (0, 7), True),
        ((5, 7), (0, 7), True),  # 0.71 of the models
        ((6, 7), (0, 7), False),  # 0.86 of them
        ((3, 7), (3, 7), False),
        ((2, 4), (3, 6), False),  # as often, of those that could be judged
        ((4, 6), (5, 6), False),  # one model more or less
        ((2, 6), (1, 6), False),
        ((2, 6), (4, 6), True),
        ((0, 7), (0, 7), False),
        ((0, 0), (0, 0), False),
        ((1, 7), (0, 0), False),  # it asks for an onset, say, and no twin has one
    ],
)
def test_a_reason_tells_unless_it_fires_on_most_models_or_on_twins_as_often(models, twins, tells):
    assert (judgement(Count(*models), Count(*twins)) == "yes") is tells


def test_only_what_stands_between_the_markers_is_written_anew():
    page = f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter {bench.END[:4]}"
    assert written(page, "new") == page.replace("old", "new")
    for wrong in ("no markers", bench.BEGIN, f"{bench.END}{bench.BEGIN}", page + page):
        with pytest.raises(ValueError, match="once each"):
            written(wrong, "new")


def test_the_pages_table_has_every_reason_and_no_other():
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(bench.BEGIN)
    rows = [line.split("|")[1].strip() for line in rest.partition(bench.END)[0].splitlines() if line.startswith("| `")]
    assert rows == [f"`{rule.name}`" for rule in _RULES if rule.standard is not None]
