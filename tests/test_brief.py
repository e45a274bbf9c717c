"""Tests of briefs: small, typed, and true to the rows.

Tolerances. A brief states six significant digits.
"""

import json
from pathlib import Path

import pytest

import layerscope
from layerscope.published.layout import EXTENDED
from layerscope.report.brief import MOST_FACTS, brief
from layerscope.report.cited.archive import Archive
from published_archives import archive_of

BYTES_OF_A_TOKEN = 2.5
"""Of text that is half digits, by the leanest count of today's tokenizers; prose has four."""
CONTEXT = 32_000


def test_a_brief_names_its_rules_its_structure_and_the_reasons_of_the_guidance(five_lens_run: Path) -> None:
    evidence = next(iter(Archive(five_lens_run)))
    text = brief(evidence).text
    for heading in ("## Structure", "## Rules", "## Guidance of this run", "## Facts", "### Overview"):
        assert f"\n{heading}\n" in text
    for reason in evidence.verdict.guidance.reasons:
        assert f"`{reason.name}` ({reason.severity})" in text
    assert not evidence.verdict.guidance.suppress_abs_probs
    assert "Quote no probability and no entropy" not in text


def test_every_fact_of_the_json_stands_on_the_line_it_cites(five_lens_run: Path) -> None:
    archive = Archive(five_lens_run)
    found = json.loads(brief(next(iter(archive))).data)
    checked = 0
    for facts in found["facts"].values():
        for fact in (dict(zip(found["columns"], line, strict=True)) for line in facts):
            number, lines = fact["source"].split("; ")[0].split(":")
            file = found["files"][number]
            first = int(lines.split(", ")[0].split("-")[0])
            line = archive.sources.lines(file)[first - 1]
            if file.endswith(".json") and ";" not in fact["source"] and "," not in lines and "-" not in lines:
                stated = json.loads(line.strip().rstrip(",").rpartition('": ')[2] or line)
                if isinstance(fact["value"], float):
                    assert stated == pytest.approx(fact["value"], rel=1e-5), fact
                else:
                    assert stated == fact["value"] or isinstance(stated, list), fact
                checked += 1
            elif file.endswith(".csv") and "-" not in lines:
                assert line.strip(), fact
    assert checked > 60


@pytest.mark.slow
def test_a_brief_of_ten_thousand_rows_fits_a_context_of_32_000_tokens(tmp_path: Path) -> None:
    run = layerscope.probe(suite="capitals-20", positions="all", lenses="logit,next_norm,raw")
    assert run.rows.height > 10_000
    run.save(tmp_path / "run", published=EXTENDED)
    found = brief(next(iter(Archive(tmp_path / "run"))))
    for text in (found.text, found.data):
        assert len(text.encode()) / BYTES_OF_A_TOKEN < CONTEXT
    assert sum(map(len, json.loads(found.data)["facts"].values())) <= MOST_FACTS


def test_briefs_of_self_made_models_fit_and_name_their_own_files(made_sweep: Path) -> None:
    for evidence in archive_of(made_sweep):
        found = brief(evidence)
        assert all(len(text.encode()) / BYTES_OF_A_TOKEN < CONTEXT for text in (found.text, found.data))
        files = json.loads(found.data)["files"]
        assert files and all(name.startswith(f"output-{evidence.stem}") for name in files.values())


def test_briefs_of_eighty_layers_fit_too(shared: Path) -> None:
    archive = archive_of(shared / "reference" / "run-20251004-1804")
    for stem in ("Meta-Llama-3-70B", "Qwen2.5-72B", "gemma-2-9b"):
        found = brief(archive.evidence(stem))
        for text in (found.text, found.data):
            assert len(text.encode()) / BYTES_OF_A_TOKEN < CONTEXT
