"""The synthesis across models: every value where it is said to stand, runs told apart, limits and misreadings said."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerscope.errors import RunError
from layerscope.report.cited.claims import Citation, Claim
from layerscope.report.cited.document import Name, Paragraph, Report, Section, Sentence, Table, Text
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.markdown import markdown
from layerscope.report.evaluation.overview import overview
from layerscope.report.evaluation.quotes import Quotes
from layerscope.report.synthesis import synthesis
from layerscope.report.synthesis.compared import family_of
from layerscope.run import Run
from made_sweep import PLAIN
from published import SHARED
from published_archives import archive_of, folder_of, with_made

OCTOBER, SEPTEMBER, TINY = "run-20251004-1804", "run-20250928-1722", "tiny-qwen3/published"


@pytest.fixture(scope="module")
def october_runs(shared: Path) -> dict[str, Evidence]:
    return {one.stem: one for one in archive_of(shared / "reference" / OCTOBER)}


@pytest.fixture(scope="module")
def october(october_runs: dict[str, Evidence]) -> Report:
    return synthesis(list(october_runs.values()))


@pytest.fixture(scope="module", params=["made", *([OCTOBER] if SHARED.is_dir() else [])])
def sweep_runs(request: pytest.FixtureRequest) -> dict[str, Evidence]:
    """The self-made models, and the published ones where they are present."""
    if request.param == OCTOBER:
        return request.getfixturevalue("october_runs")
    return {one.stem: one for one in archive_of(request.getfixturevalue("made_sweep"))}


@pytest.fixture(scope="module")
def sweep(sweep_runs: dict[str, Evidence]) -> Report:
    return synthesis(list(sweep_runs.values()))


@pytest.fixture(scope="module")
def made(made_sweep: Path) -> Report:
    return synthesis(list(archive_of(made_sweep)))


def _sections(report: Report) -> Iterator[Section]:
    waiting = list(report.sections)
    while waiting:
        section = waiting.pop(0)
        yield section
        waiting = [*section.sections, *waiting]


def _section(report: Report, title: str) -> Section:
    (found,) = (section for section in _sections(report) if section.title == title)
    return found


def _tables(report: Report) -> Iterator[Table]:
    return (block for section in _sections(report) for block in section.blocks if isinstance(block, Table))


def _words(section: Section) -> str:
    """What a section says, as Markdown without its citations."""
    text = markdown(Report("t", _NOTHING, (section,)))
    return "\n".join(line.split(" [`")[0] for line in text.splitlines())


_NOTHING = Paragraph(())


def _at(document: object, pointer: str) -> object:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]  # type: ignore[index]
    return document


# Citations


_REAL = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


def _copied(report: Report) -> list[tuple[Claim, Citation]]:
    return [(claim, claim.citations[0]) for claim in report.claims if claim.derived is None]


def test_every_claim_names_a_place(sweep: Report, sweep_runs: dict[str, Evidence]) -> None:
    assert len(sweep.claims) > (500 if len(sweep_runs) == 10 else 250)
    assert all(claim.citations for claim in sweep.claims)


def test_every_copied_value_stands_in_the_cited_line(sweep_runs: dict[str, Evidence], sweep: Report) -> None:
    """Read without our readers: the JSON by its pointer, and the physical lines of both kinds of files."""
    folder = next(iter(sweep_runs.values())).sources.folder
    texts = {path.name: path.read_bytes().decode() for path in folder.iterdir()}  # tokens hold carriage returns
    documents = {name: json.loads(text) for name, text in texts.items() if name.endswith(".json")}
    checked = 0
    for claim, citation in _copied(sweep):
        lines = "\n".join(texts[citation.file].split("\n")[citation.line - 1 : citation.last_line])
        if citation.pointer is not None:
            stated = _at(documents[citation.file], citation.pointer)
            assert stated == claim.value or math.isclose(stated, claim.value, rel_tol=1e-9)  # type: ignore[arg-type]
            assert json.dumps(stated) in lines
        else:
            assert citation.row is not None
            if isinstance(claim.value, float):  # files print some with more or fewer digits than needed
                numbers = [float(text) for text in _REAL.findall(lines)]
                assert any(math.isclose(number, claim.value, rel_tol=1e-12) for number in numbers)
        checked += 1
    assert checked > 30 * len(sweep_runs)


def test_derived_values_follow_from_cited_files_of_their_own_model(sweep: Report) -> None:
    for claim in sweep.claims:
        assert all(citation.file.startswith(f"output-{claim.subject}") for citation in claim.citations)


def test_depth_fractions_are_layers_over_blocks(sweep_runs: dict[str, Evidence], sweep: Report) -> None:
    found = [claim for claim in sweep.claims if claim.name == "L_semantic_frac"]
    ever = {name for name, run in sweep_runs.items() if any(row["answer_rank"] == 1 for row in run.curve().rows)}
    assert {claim.subject for claim in found} == ever == set(sweep_runs) - {"mute"}
    for claim in found:
        run = sweep_runs[claim.subject]
        ranks = [row["answer_rank"] for row in run.curve().rows]  # type: ignore[union-attr]
        assert claim.value == round(ranks.index(1) / (len(ranks) - 1), 3)


# Shape


def test_tables_have_a_row_for_each_model_and_stay_readable(sweep_runs: dict[str, Evidence], sweep: Report) -> None:
    for table in _tables(sweep):
        assert len(table.header) <= 9  # and one more for the source
        names = [row.cells[0][0] for row in table.rows]
        assert all(isinstance(name, Name) and name.text in sweep_runs for name in names)
        assert len({name.text for name in names if isinstance(name, Name)}) == len(table.rows)
    whole = [table for table in _tables(sweep) if len(table.rows) == len(sweep_runs)]
    assert len(whole) >= 11


def test_models_stand_in_the_groups_of_the_published_bound(october: Report) -> None:
    """Below 0.70 of the depth is Llama-3-70B alone; by the strong layer there is none."""
    words = _words(_section(october, "Early and late"))
    assert "Early by rank 1: Meta-Llama-3-70B (0.5" in words
    early = next(line for line in words.splitlines() if "Early by rank 1" in line)
    assert "Qwen" not in early
    assert "Early by the strong layer" not in words
    assert "The group changes with the milestone in Meta-Llama-3-70B." in words


def test_self_made_models_are_told_apart_by_what_was_made_of_them(made: Report) -> None:
    early = _words(_section(made, "Early and late"))
    assert "Early by rank 1: reference (0.333) and fickle (0.417)\n" in early  # layers 4 and 5 of 12
    assert "Late by rank 1: echo (0.75)\n" in early  # layer 9
    copying = _words(_section(made, "Copy reflex in layers 0 to 3"))
    (line,) = (line for line in copying.splitlines() if line.startswith("An early echo"))
    assert line == "An early echo of the prompt shows in echo (layers 0 to 3) and fickle (layers 0 to 3)"
    assert "The suites hold different facts" in _words(_section(made, "What may not be compared"))


def test_an_early_echo_is_told_of_gemma_alone(october: Report) -> None:
    words = _words(_section(october, "Copy reflex in layers 0 to 3"))
    (line,) = (line for line in words.splitlines() if line.startswith("An early echo"))
    assert line == "An early echo of the prompt shows in gemma-2-9b (layers 0 to 3) and gemma-2-27b (layers 0, 3)"


def test_confirmations_by_the_headline_lens_itself_count_as_none(october: Report) -> None:
    words = _words(_section(october, "Confirmation by another lens"))
    (line,) = (line for line in words.splitlines() if "counts as none" in line)
    assert line.endswith("in gemma-2-9b (42) and gemma-2-27b (46)")
    assert "No other lens has the answer near it in Qwen2.5-72B." in words


def test_gates_that_files_leave_empty_are_taken_from_the_rows(october: Report) -> None:
    """In these files every gap milestone is null although the rows carry the gap (caveat C2)."""
    words = _words(_section(october, "Gates"))
    (line,) = (line for line in words.splitlines() if "`gap_ge_1.0`" in line)
    assert "Meta-Llama-3-8B (32)" in line
    assert "Yi-34B (51)" in line
    assert "Mistral-7B-v0.1" not in line


def test_families_differ_in_what_their_members_differ_in(october: Report) -> None:
    words = _words(_section(october, "Families"))
    assert "Llama-3 differs in early or late rank 1 (late in Meta-Llama-3-8B; early in Meta-Llama-3-70B)." in words
    assert "Qwen3-8B 0.861" in words
    assert "it moves deeper with the number of layers" in words
    assert "Qwen3 differs" not in words
    assert "Alone in their family: Mistral-7B-v0.1, Mistral-Small-24B-Base-2501, Qwen2.5-72B and Yi-34B." in words


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Qwen/Qwen3-8B", "Qwen3"),
        ("Qwen/Qwen2.5-72B", "Qwen2.5"),
        ("meta-llama/Meta-Llama-3-70B", "Llama-3"),
        ("google/gemma-2-27b", "gemma-2"),
        ("mistralai/Mistral-7B-v0.1", "Mistral"),
        ("mistralai/Mistral-Small-24B-Base-2501", "Mistral-Small"),
        ("01-ai/Yi-34B", "Yi"),
        ("EleutherAI/pythia-410m", "pythia"),
        ("layerscope/reference", "reference"),
        ("7B", "7B"),
    ],
)
def test_a_family_is_what_stands_before_the_size(model: str, family: str) -> None:
    assert family_of(model) == family


def test_weak_points_are_those_of_the_evaluations(sweep: Report, sweep_runs: dict[str, Evidence]) -> None:
    section = _section(sweep, "At a glance")
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    column, words = table.header.index("weak points"), _words(section)
    for row in table.rows:
        name = row.cells[0][0].text  # type: ignore[union-attr]
        text = markdown(Report("t", _NOTHING, (overview(Quotes(sweep_runs[name])),)))
        weak = re.search(r"This is weak evidence: (.*)\.$", text, re.MULTILINE)
        known = "the answer is on top at no layer" not in text
        assert row.cells[column][0].text == ("yes" if weak else "no" if known else "n.a.")  # type: ignore[union-attr]
        for point in weak.group(1).split("; ") if weak else ():
            (line,) = (line for line in words.splitlines() if f"Weak point, {point}: " in line)
            assert re.search(rf"[ ,]{re.escape(name)}[ ,.]", line)


def test_no_sign_of_an_entropy_that_must_not_be_quoted_is_told(sweep: Report) -> None:
    section = _section(sweep, "Entropy drift at half depth")
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert [name for name in table.header if name.endswith("†")] == ["drift there †", "p25 †", "p50 †", "p75 †"]
    assert "less certain than the model's output in" not in _words(section)
    assert "more certain" not in _words(section)


# Which runs


def test_two_folders_of_a_self_made_model_are_told_apart(made_sweep: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for path in made_sweep.glob("output-echo*"):
            shutil.copyfile(path, tmp_path / folder / path.name)
    document = tmp_path / "two" / "output-echo.json"
    later = document.read_text(encoding="utf-8").replace('"seed": 316', '"seed": 317')
    document.write_text(later, encoding="utf-8")
    report = synthesis([Evidence.of(tmp_path / folder, "echo") for folder in ("one", "two")])
    assert {claim.subject for claim in report.claims} == {"echo (one)", "echo (two)"}
    for claim in report.claims:
        folder = claim.subject.split("(")[1].rstrip(")")
        assert all(citation.file.startswith(f"{folder}/output-echo") for citation in claim.citations)


def test_two_runs_of_a_model_are_told_apart_in_names_and_citations(shared: Path) -> None:
    runs = [Evidence.of(shared / "reference" / folder, "Qwen3-8B") for folder in (OCTOBER, SEPTEMBER)]
    report = synthesis(runs)
    assert {claim.subject for claim in report.claims} == {f"Qwen3-8B ({OCTOBER})", f"Qwen3-8B ({SEPTEMBER})"}
    for claim in report.claims:
        folder = claim.subject.split("(")[1].rstrip(")")
        assert all(citation.file.startswith(f"{folder}/output-Qwen3-8B") for citation in claim.citations)
    assert "Both runs of `Qwen/Qwen3-8B` agree on the layer of rank 1: 31" in markdown(report)
    words = _words(_section(report, "Gates"))
    assert f"nothing can be said of strength, in Qwen3-8B ({SEPTEMBER})." in words


@pytest.mark.parametrize("stem", with_made("Yi-34B", made=("mute",)))
def test_a_run_that_is_given_twice_counts_once(stem: str, request: pytest.FixtureRequest) -> None:
    report = synthesis([Evidence.of(folder_of(stem, request), stem) for _ in range(2)])
    assert all(len(table.rows) == 1 for table in _tables(report))
    assert f"Given more than once and counted once: {stem}." in markdown(report)


def test_older_files_without_raw_lens_make_a_whole_report(shared: Path) -> None:
    archive = archive_of(shared / "reference" / SEPTEMBER)
    report = synthesis([archive.evidence(stem) for stem in ("gemma-2-9b", "Qwen2.5-72B", "Yi-34B")])
    text = markdown(report)
    assert "so there is no artefact tier" in text
    assert "The files do not say which norm the lens applied: every run." in text
    assert all(claim.citations for claim in report.claims)


def test_different_suites_stand_among_the_limits(shared: Path, october_runs: dict[str, Evidence]) -> None:
    tiny = Evidence.of(shared / "reference" / TINY)
    words = _words(_section(synthesis([tiny, *october_runs.values()]), "What may not be compared"))
    assert "The suites hold different facts" in words
    assert "one fact in the others" in words


@pytest.mark.parametrize("stem", with_made("tiny-qwen3", made=("reference",)))
def test_statistics_over_facts_are_those_of_the_file(stem: str, request: pytest.FixtureRequest) -> None:
    folder = folder_of(stem, request, TINY)
    report = synthesis([Evidence.of(folder, stem)])
    text = (folder / f"output-{stem}.json").read_text(encoding="utf-8")
    aggregates = json.loads(text)["micro_suite"]["aggregates"]
    found = {claim.name: claim.value for claim in report.claims}
    assert found["L_semantic_n"] == aggregates["n"]
    assert found["L_semantic_n_missing"] == aggregates["n_missing"]
    assert found["L_semantic_median"] == aggregates["L_semantic_norm_median"]
    assert [found["L_semantic_p25"], found["L_semantic_p75"]] == aggregates["L_semantic_norm_iqr"]


@pytest.mark.parametrize("stem", with_made("Qwen3-8B", made=PLAIN))
def test_one_fact_alone_has_no_statistics(stem: str, request: pytest.FixtureRequest) -> None:
    report = synthesis([Evidence.of(folder_of(stem, request), stem)])
    assert "Every run asks one fact alone" in _words(_section(report, "Statistics over facts"))


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(RunError, match="at least one run"):
        synthesis([])


def test_a_softcap_that_mends_the_last_layer_is_named_as_the_reason(october_runs: dict[str, Evidence]) -> None:
    """Published files never found Gemma's softcap; a run that did says what it explains."""
    gemma = october_runs["gemma-2-9b"]
    assert gemma.record.measured.last_layer is not None
    for left_bits, said in ((1e-6, "explains it in gemma-2-9b"), (0.9, "does not explain it in gemma-2-9b")):
        last = gemma.record.measured.last_layer.model_copy(update={"softcap": 30.0, "kl_after_softcap_bits": left_bits})
        measured = gemma.record.measured.model_copy(update={"last_layer": last})
        run = Run(gemma.run.rows, gemma.record.model_copy(update={"measured": measured}))
        words = _words(_section(synthesis([Evidence(run, gemma.sources, gemma.stem)]), "Head calibration"))
        assert said in words
    assert "record no softcap that could explain it for gemma-2-9b" in _words(
        _section(synthesis([gemma]), "Head calibration")
    )


@pytest.mark.parametrize(("stem", "rows"), [("echo", 7), *([("Qwen3-8B", 20)] if SHARED.is_dir() else [])])
def test_a_file_with_little_left_in_it_is_still_compared(
    stem: str, request: pytest.FixtureRequest, rows: int, tmp_path: Path
) -> None:
    """Half of the rows, no other table, and a JSON without what it found."""
    source = folder_of(stem, request)
    document = json.loads((source / f"output-{stem}.json").read_text(encoding="utf-8"))
    kept = {key: document[key] for key in ("prompt", "model_stats")}
    kept["diagnostics"] = {key: document["diagnostics"][key] for key in ("type", "model")}
    (tmp_path / f"output-{stem}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    lines = (source / f"output-{stem}-pure-next-token.csv").read_text(encoding="utf-8").split("\n")[:rows]
    (tmp_path / f"output-{stem}-pure-next-token.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = markdown(synthesis([Evidence.of(tmp_path)]))
    assert f"The answer leads at no layer, or its rank is not known, in {stem}." in text


# Misreadings


def _finding(judgement: Judgement, correct: str | None, where: Citation | None = None) -> Finding:
    return Finding(12, "rank 1 at L=30 | early", "out.json:7", judgement, "it stands elsewhere", correct, where)


def test_only_what_is_wrong_in_a_report_is_listed(sweep_runs: dict[str, Evidence]) -> None:
    stem = list(sweep_runs)[-1]
    where = Citation(f"output-{stem}.json", 2499, 2499)
    findings = {
        f"evaluation-{stem}.md": [
            _finding(Judgement.SUPPORTED, None),
            _finding(Judgement.CONTRADICTED, "44", where),
            _finding(Judgement.UNRESOLVABLE, None),
        ],
        "evaluation-Qwen3-8B.md": [_finding(Judgement.SUPPORTED, None)],
    }
    report = synthesis([sweep_runs[stem]], findings)
    section = _section(report, "Misreadings in existing reports")
    assert "Nothing was found wrong in evaluation-Qwen3-8B.md." in _words(section)
    (table,) = (block for block in section.sections[0].blocks if isinstance(block, Table))
    assert len(table.rows) == 1
    assert where in {citation for claim in report.claims for citation in claim.citations}


def test_without_reports_the_synthesis_says_that_none_lie_there(sweep: Report) -> None:
    (block,) = _section(sweep, "Misreadings in existing reports").blocks
    assert getattr(block, "sentences", None) == (Sentence((Text("No reports lie beside these runs."),)),)
