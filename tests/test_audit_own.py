"""Tests of the audit of layerscope's own reports: they pass it, and what is changed in them is caught."""

import random
import re
from collections.abc import Callable

import pytest

from layerscope.audit.audit_report import audit_report
from layerscope.audit.output import annotated, needs_mending
from layerscope.audit.regeneration import compare_with_regenerated
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Judgement
from layerscope.report.cited.markdown import markdown
from layerscope.report.cited.report_files import signed
from layerscope.report.evaluation import evaluation
from layerscope.report.synthesis import synthesis
from published import SHARED
from published_archives import archive_of

N_MUTATIONS = 500
FULLY_AUDITED = 12
"""Of the mutations that go through the whole audit, which writes the report again each time."""


SWEEPS = ("made", *(("run-20251004-1804", "run-20250928-1722") if SHARED.is_dir() else ()))


def archive_named(sweep: str, request: pytest.FixtureRequest) -> Archive:
    made = sweep == "made"
    return archive_of(request.getfixturevalue("made_sweep") if made else SHARED / "reference" / sweep)


@pytest.fixture(scope="module", params=SWEEPS[:2])
def archive(request: pytest.FixtureRequest) -> Archive:
    return archive_named(request.param, request)


@pytest.fixture(scope="module")
def reports(archive: Archive) -> dict[str, str]:
    """The models' reports and the synthesis, by name."""
    texts = {evidence.stem: markdown(evaluation(evidence)) for evidence in archive}
    return {**texts, "cross-models": markdown(synthesis(list(archive)))}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_reports_of_all_models_pass_their_own_audit(sweep: str, request: pytest.FixtureRequest) -> None:
    archive, least = archive_named(sweep, request), 40 if sweep == "made" else 60
    for evidence in archive:
        result = audit_report(signed(markdown(evaluation(evidence)), "1").encode(), [archive])
        assert needs_mending(result) == []
        assert result.counts[Judgement.SUPPORTED] > least
    whole = audit_report(signed(markdown(synthesis(list(archive))), "1").encode(), [archive])
    assert needs_mending(whole) == []
    assert whole.counts[Judgement.SUPPORTED] > least


def test_they_pass_the_audit_of_any_report_too(archive: Archive, reports: dict[str, str]) -> None:
    """Unsigned, so that nothing is written again: every number and line is looked up as in anybody's report.

    gemma-2-27b has tokens that show only as escapes.
    """
    for name in {"reference", "echo", "mute", "Qwen3-8B", "gemma-2-27b", "cross-models"} & reports.keys():
        result = audit_report(reports[name].encode(), [archive])
        assert [(f.line, f.claim, f.reason) for f in needs_mending(result)] == []


def digit(text: str, rng: random.Random, names: list[str]) -> str | None:
    """Another digit in a number that is no line number."""
    return _replaced(text, rng, r"(?<![\w:`@-])\d[\d.]*(?![\w:])", lambda found: _other_digit(found, rng))


def sign(text: str, rng: random.Random, names: list[str]) -> str | None:
    """The other sign of a number with decimals."""
    return _replaced(
        text, rng, r"(?<=[ (])-?\d+\.\d+(?=[ ,;)|])", lambda found: found[1:] if found[0] == "-" else f"-{found}"
    )


def layer(text: str, rng: random.Random, names: list[str]) -> str | None:
    """Another layer."""
    return _replaced(text, rng, r"(?<=layer )\d+", lambda found: str(int(found) + rng.choice([-3, -2, -1, 1, 2, 3])))


def model_name(text: str, rng: random.Random, names: list[str]) -> str | None:
    """Another model's name."""
    here = [name for name in names if name in text]
    if not here:
        return None
    name = rng.choice(here)
    other = rng.choice([one for one in names if one != name])
    return _replaced(text, rng, re.escape(name), lambda _: other)


def line_number(text: str, rng: random.Random, names: list[str]) -> str | None:
    """Another line of the cited file."""
    return _replaced(
        text,
        rng,
        r"(?<=(?:json|.csv):)\d+",
        lambda found: str(max(1, int(found) + rng.choice([-40, -2, -1, 1, 2, 40]))),
    )


MUTATIONS: list[Callable[[str, random.Random, list[str]], str | None]] = [digit, sign, layer, model_name, line_number]


def _replaced(text: str, rng: random.Random, pattern: str, change: Callable[[str], str]) -> str | None:
    places = list(re.finditer(pattern, text))
    if not places:
        return None
    place = rng.choice(places)
    return text[: place.start()] + change(place[0]) + text[place.end() :]


def _other_digit(number: str, rng: random.Random) -> str:
    place = rng.choice([i for i, character in enumerate(number) if character.isdigit()])
    return number[:place] + rng.choice([d for d in "0123456789" if d != number[place]]) + number[place + 1 :]


def test_of_500_mutations_99_percent_are_caught(archive: Archive, reports: dict[str, str]) -> None:
    rng, missed, made = random.Random(20251004), list[str](), 0
    while made < N_MUTATIONS:
        name = rng.choice(list(reports))
        mutate = MUTATIONS[made % len(MUTATIONS)]
        changed = mutate(reports[name], rng, list(archive.stems))
        if changed is None or changed == reports[name]:
            continue
        made += 1
        found = compare_with_regenerated(signed(changed, "1"), reports[name]).findings
        (line,) = [
            i for i, (a, b) in enumerate(zip(reports[name].split("\n"), changed.split("\n"), strict=True), 2) if a != b
        ]
        if not any(f.line == line and f.judgement is Judgement.CONTRADICTED for f in found):
            missed.append(f"{mutate.__name__} in {name}")
        if made % (N_MUTATIONS // FULLY_AUDITED) == 0:
            whole = needs_mending(audit_report(signed(changed, "1").encode(), [archive]))
            assert [finding.line for finding in whole] == [line]
    assert len(missed) <= 0.01 * N_MUTATIONS, missed


def chosen(reports: dict[str, str], published: str) -> str:
    """That model, or among self-made ones the one with most to report."""
    return published if published in reports else "reference"


def test_lines_that_somebody_added_are_audited_as_anybodys(archive: Archive, reports: dict[str, str]) -> None:
    name = chosen(reports, "Qwen3-8B")
    file = f"output-{name}.json"
    at = archive.evidence(name).sources.lines(file)
    line = next(i for i, text in enumerate(at, start=1) if '"first_rank_le_1"' in text)
    note = f"The answer first has rank 1 at layer 7 [`{file}:{line}`]."
    text = reports[name].replace("## Limitations", f"{note}\n\n## Limitations")
    (finding,) = needs_mending(audit_report(signed(text, "1").encode(), [archive]))
    assert text.split("\n")[finding.line - 2] == note
    assert finding.judgement is Judgement.CONTRADICTED


def test_lines_that_somebody_took_out_are_no_claims(archive: Archive, reports: dict[str, str]) -> None:
    lines = reports[chosen(reports, "Yi-34B")].split("\n")
    text = "\n".join(lines[:30] + lines[50:])
    assert needs_mending(audit_report(signed(text, "1").encode(), [archive])) == []


def test_remarks_stand_after_the_table_that_they_are_about(archive: Archive, reports: dict[str, str]) -> None:
    report = reports[chosen(reports, "Qwen3-8B")]
    (row,) = re.findall(r"^\| \*\*\d+\*\* .*$", report, re.MULTILINE)
    wrong = re.sub(r"\*\*(\d+)(\.\d{4})\*\*", lambda kl: f"**{int(kl[1]) + 1}{kl[2]}**", row, count=1)
    assert wrong != row
    changed = signed(report.replace(row, wrong), "1")
    result = audit_report(changed.encode(), [archive])
    lines = annotated(changed, result).split("\n")
    (remark,) = [i for i, line in enumerate(lines) if line.startswith("> **contradicted**")]
    assert lines[remark - 1] == ""
    assert all(line.startswith("|") for line in lines[lines.index(wrong) : remark - 1])
    assert lines[remark + 1] == ""
    kept = [line for line in lines if not line.startswith("> **")]
    assert [line for line in kept if line] == [line for line in changed.split("\n") if line]


def test_a_body_of_other_words_is_compared_in_little_time(reports: dict[str, str]) -> None:
    """Each line is looked for near its place alone, so that five megabytes are no quadratic matter."""
    text = signed("\n".join(f"Other words, number {i}, about nothing in particular." for i in range(3000)), "1")
    assert compare_with_regenerated(text, reports[chosen(reports, "Yi-34B")]).findings == ()
