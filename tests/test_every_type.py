"""Every type that Transformers' mappings of causal models, and of those of pictures and text, know is tried.

`python tests/test_every_type.py --remake` tries them all, and writes `model_types.json` and the table in
docs/models.md.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import transformers

from every_type import CASES, DOCS, FOUND, MAPPINGS, REASONS, Mapping, Outcome, documented, found, observe, verdict
from properties import slow

IN_SHORT = {("text", "bart"), ("text", "hy_v4"), ("text", "openai-gpt"), ("pictures and text", "aya_vision")}
"""A decoder whose config counts its encoder's blocks first, several streams, blocks that give lists, and a wrapper that
leaves out its language model's scale: what no other test builds. Every run tries these."""


@pytest.mark.filterwarnings("ignore")  # those of the families' own code
@pytest.mark.parametrize(
    ("mapping", "model_type"),
    [case if case in IN_SHORT else slow(*case) for case in CASES],
    ids=["-".join(case).replace(" ", "-") for case in CASES],
)
def test_every_type_is_transformers_own_or_does_not_run_for_the_reason_given(
    mapping: Mapping, model_type: str, tmp_path: Path
):
    kept = found()[mapping].get(model_type)
    became = verdict(mapping, model_type, observe(mapping, model_type, tmp_path))
    assert kept is not None, f"'{model_type}' ({mapping}) is new to Transformers and kept nowhere; run --remake."
    assert became == kept


@pytest.mark.slow
def test_no_type_is_kept_that_transformers_does_not_have():
    assert {mapping: set(types) for mapping, types in found().items()} == {
        mapping: set(names) for mapping, (_, names) in MAPPINGS.items()
    }


def test_every_reason_is_given_for_the_types_that_are_kept_with_it():
    for mapping, types in found().items():
        for key, reason in REASONS.items():
            assert set(reason.types(mapping)) == {name for name, became in types.items() if became == key}
        assert set(types.values()) <= {"runs", *REASONS}


def test_the_page_has_the_table_of_what_is_kept():
    page = DOCS.read_text(encoding="utf-8")
    assert documented(page, found()) == page


@pytest.mark.parametrize(
    ("model_type", "outcome", "said"),
    [
        ("llama", Outcome("refused", "A sentence."), "give a reason in REASONS"),
        ("hy_v4", Outcome("runs"), "'several streams' no longer holds"),
        ("hy_v4", Outcome("refused", "Something else."), "give the true one"),
    ],
)
def test_a_reason_that_is_missing_or_does_not_hold_is_told(model_type: str, outcome: Outcome, said: str):
    with pytest.raises(AssertionError, match=said):
        verdict("text", model_type, outcome)


def remake() -> None:
    """Try every type; write what became of them, and the page."""
    kept: dict[Mapping, dict[str, str]] = {mapping: {} for mapping in MAPPINGS}
    for mapping, model_type in CASES:
        with tempfile.TemporaryDirectory() as folder:
            kept[mapping][model_type] = verdict(mapping, model_type, observe(mapping, model_type, Path(folder)))
    text = json.dumps({"transformers": transformers.__version__, **kept}, indent=1)
    FOUND.write_text(f"{text}\n", encoding="utf-8")
    DOCS.write_text(documented(DOCS.read_text(encoding="utf-8"), kept), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--remake"]:
        sys.exit(f"expected --remake, found {sys.argv[1:]}; tests are run by pytest")
    remake()
