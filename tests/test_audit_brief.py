"""Tests of the audit of plain prose: reports that a naive writer makes of a brief pass it, and changed ones do not."""

import csv
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerscope.audit.audit import audit
from layerscope.audit.output import needs_mending
from layerscope.report.brief import brief
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Judgement
from made_sweep import MADE
from published import SHARED
from published_archives import archive_of, folder_of

N_MUTATIONS = 300
LEAST_CAUGHT = 0.9
FIRST_LINE = 3
"""Of a report's sentences, which stand on every other line."""

# By the name of a fact: what a writer may say of it. `{k}` is the bound in the name, `{v}` the value.
MILESTONES = {
    r"first_rank_le_(1)": (
        "Rank {k} comes first at layer {v}",
        "The answer first has rank {k} at layer {v}",
        "The answer first reaches rank {k} at layer {v}",
        "At layer {v} the answer first has rank {k}",
    ),
    r"first_rank_le_(5|10)": ("The answer first has rank {k} or better at layer {v}",),
    r"L_semantic": (
        "The answer becomes readable at layer {v}",
        "The semantic layer is layer {v}",
        "The answer is first on top at layer {v}",
    ),
    r"L_semantic_stable": ("The answer is on top for good from layer {v}", "It is on top for good from layer {v} on"),
    r"L_semantic_strong_stable": ("The answer is clearly ahead from layer {v}",),
    r"L_semantic_confirmed": ("This is confirmed at layer {v}", "The semantic layer is confirmed at layer {v}"),
    r"first_kl_below_([\d.]+)": ("The KL to the final output first falls below {k} bits at layer {v}",),
    r"cos_ge_([\d.]+)": ("The cosine first reaches {k} at layer {v}",),
    r"first_p_top1_gt_([\d.]+)": ("The top-1 probability first exceeds {k} at layer {v}",),
    r"L_surface_to_meaning": ("Surface-to-meaning comes at layer {v}", "The surface-to-meaning transition is at L{v}"),
    r"L_geom": ("The geometric crossover comes at layer {v}",),
    r"L_topk_decay": ("Top-k decay comes at layer {v}",),
    r"gap_ge_([\d.]+)": ("The lead first reaches {k} logits at layer {v}",),
}
CELLS = {
    "kl_to_final_bits": (
        "At layer {l} the KL to the final output is {v} bits",
        "KL is {v} bits at layer {l}",
        "The divergence from the model's output at layer {l} is {v} bits",
    ),
    "entropy_bits": (
        "Entropy is {v} bits at layer {l}",
        "At layer {l}, the entropy is {v} bits",
        "At layer {l} there are {v} bits of entropy",
    ),
    "answer_rank": ("The answer has rank {v} at layer {l}", "At L{l} the answer has rank {v}"),
    "cos_to_final": ("The cosine to the final output is {v} at layer {l}",),
    "answer_logit_gap": ("The answer leads by {v} logits at layer {l}",),
    "p_top1": ("The top-1 probability at layer {l} is {v}",),
    "rest_mass": ("At layer {l} the rest mass is {v}",),
    "top1": ("The top-1 token at layer {l} is `{v}`",),
}
STATED = {
    "L_semantic_frac": "That is a depth fraction of {v}",
    "first_control_margin_pos": "The control margin is first positive at layer {v}",
    "max_control_margin": "The largest control margin is {v}",
    "lens_artifact_score": "The lens artifact score is {v}",
    "n_layers": "The model has {v} layers",
    "d_vocab": "The vocabulary has size {v}",
    "d_model": "The residual stream has width {v}",
    "seed": "The seed was {v}",
    "copy_thresh": "The threshold for a strict copy is {v}",
    "pct_layers_kl_ge_1.0": "The share of layers with a KL of at least 1.0 bits is {v}",
    "L_semantic_tuned": "The tuned lens has its semantic layer at layer {v}",
}


@dataclass(frozen=True)
class Fact:
    """A line of a brief's JSON."""

    name: str
    value: object
    unit: str
    lens: str | None
    prompt: str | None
    layer: int | None
    about: str
    source: str


def facts(data: str) -> Iterator[Fact]:
    """With files by their names in the sources."""
    read = json.loads(data)
    for section in read["facts"].values():
        for line in section:
            fact = Fact(*line)
            source = re.sub(r"(\d+):", lambda found: read["files"][found[1]] + ":", fact.source)
            yield Fact(**{**vars(fact), "source": source})


def written(data: str, rng: random.Random) -> list[str]:
    """What a naive writer makes of the facts, a sentence each."""
    headline = json.loads(data)["headline_lens"]
    said = [sentence for fact in facts(data) if (sentence := _sentence(fact, headline, rng)) is not None]
    return list(dict.fromkeys(said))


def _sentence(fact: Fact, headline: str, rng: random.Random) -> str | None:
    words, bound = _words(fact, rng)
    if words is None:
        return None
    about = "" if fact.lens in (None, headline) else f"Under the {fact.lens} lens, "
    words = words if not about else words[0].lower() + words[1:] if not words.startswith(("KL", "L")) else words
    printed = _printed(fact, rng)
    return f"{about}{words.format(v=printed, k=bound, l=fact.layer)} [`{fact.source}`]."


def _words(fact: Fact, rng: random.Random) -> tuple[str | None, str]:
    for form, templates in MILESTONES.items():
        found = re.fullmatch(form, fact.name)
        if found is not None and isinstance(fact.value, int):
            return rng.choice(templates), found[1] if found.re.groups else ""
    if fact.name in CELLS and fact.layer is not None and fact.prompt == "pos/orig":
        return rng.choice(CELLS[fact.name]), ""
    return (STATED.get(fact.name) if "without the last" not in fact.about else None), ""


def _printed(fact: Fact, rng: random.Random) -> str:
    """As writers print: rounded, but never to nothing."""
    if isinstance(fact.value, float):
        short = f"{fact.value:.{rng.choice([2, 3, 4])}f}"
        return short if abs(float(short)) >= 0.1 or fact.value == 0 else f"{fact.value:g}"
    if fact.unit == "token":
        shown = str(fact.value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("`", "'")
        return f'"{shown}"'
    return str(fact.value)


def report(model: str, sentences: list[str]) -> str:
    return f"# Evaluation of {model}\n\n" + "\n\n".join(sentences) + "\n"


def number(sentence: str, rng: random.Random) -> str | None:
    """Another value: one digit of a number of the words, or the layer a few layers off."""
    words = sentence.split(" [`")[0]
    places = [
        m
        for m in re.finditer(r"(?<![\w.@-])-?\d+(?:\.\d+)?(?![\w-])|(?<=\bL)\d+", words)
        if '"' not in words[: m.start()]
    ]
    if not places:
        return None
    place = places[-1] if rng.random() < 0.5 else rng.choice(places)
    if "." in place[0]:
        digits = [i for i, mark in enumerate(place[0]) if mark.isdigit()]
        at = rng.choice(digits[:3])
        other = rng.choice([d for d in "123456789" if d != place[0][at]])
        changed = place[0][:at] + other + place[0][at + 1 :]
    else:
        changed = str(max(0, int(place[0]) + rng.choice([-3, -2, -1, 1, 2, 3])))
    return sentence[: place.start()] + changed + sentence[place.end() :]


def line(sentence: str, rng: random.Random) -> str | None:
    """Another line of the cited file."""
    places = list(re.finditer(r"(?<=json:|.csv:)\d+(?![\d,;-])", sentence))
    if not places:
        return None
    place = rng.choice(places)
    changed = str(max(1, int(place[0]) + rng.choice([-40, -3, -2, -1, 1, 2, 3, 40])))
    return sentence[: place.start()] + changed + sentence[place.end() :]


MUTATIONS = (number, line)


@pytest.fixture(scope="module")
def archive(shared: Path) -> Archive:
    return archive_of(shared / "reference" / "run-20251004-1804")


@pytest.fixture(scope="module", params=["made", *(["published"] if SHARED.is_dir() else [])])
def sweep(request: pytest.FixtureRequest) -> Archive:
    """The self-made models, and the published ones where they are present."""
    return archive_of(folder_of(MADE[0] if request.param == "made" else "", request))


@pytest.fixture(scope="module")
def prose(sweep: Archive) -> dict[str, list[str]]:
    """What a naive writer makes of each model's brief."""
    return {evidence.stem: written(brief(evidence).data, random.Random(5)) for evidence in sweep}


def audited(archive: Archive, sentences: list[str], stem: str = "Qwen3-8B") -> list[tuple[Judgement, str | None]]:
    result = audit(report(archive.evidence(stem).record.model.id, sentences), archive)
    return [(finding.judgement, finding.correct) for finding in result.findings]


def test_what_a_naive_writer_makes_of_a_brief_has_nothing_to_mend(sweep: Archive, prose: dict[str, list[str]]) -> None:
    for evidence in sweep:
        sentences = prose[evidence.stem]
        assert len(sentences) > (60 if evidence.stem in MADE else 100)
        result = audit(report(evidence.record.model.id, sentences), sweep)
        assert [(finding.claim, finding.reason) for finding in needs_mending(result)] == []
        supported = {finding.line for finding in result.findings if finding.judgement is Judgement.SUPPORTED}
        assert len(supported) > 0.95 * len(sentences)


def test_so_it_is_with_a_run_under_five_lenses(five_lens_run: Path) -> None:
    archive = Archive(five_lens_run)
    (evidence,) = archive
    sentences = written(brief(evidence).data, random.Random(5))
    result = audit(report(evidence.record.model.id, sentences), archive)
    assert len(sentences) > 50 and needs_mending(result) == []


def test_most_mutations_of_numbers_and_cited_lines_are_caught(sweep: Archive, prose: dict[str, list[str]]) -> None:
    """Of wordings that the auditor knows; what it misses are mostly layers that the cited block holds too."""
    rng, missed = random.Random(7), list[str]()
    stems = [stem for stem in prose if stem in (*MADE, "Qwen3-8B", "gemma-2-9b", "Meta-Llama-3-70B")]
    for stem in stems:
        sentences = prose[stem]
        changed = list[str]()
        while len(changed) < N_MUTATIONS / len(stems):
            sentence = rng.choice(sentences)
            mutated = MUTATIONS[len(changed) % len(MUTATIONS)](sentence, rng)
            changed += [mutated] if mutated not in (None, sentence, *changed) else []
        result = audit(report(sweep.evidence(stem).record.model.id, changed), sweep)
        flagged = {finding.line for finding in needs_mending(result)}
        missed += [one for at, one in enumerate(changed) if FIRST_LINE + 2 * at not in flagged]
    assert len(missed) <= (1 - LEAST_CAUGHT) * N_MUTATIONS, "\n".join(missed)


@pytest.mark.parametrize("stem", ["reference", "echo"])
def test_a_sentence_and_its_line_are_held_against_the_files(made_sweep: Path, stem: str) -> None:
    """Values and lines are found without our readers; tokens of these models hold no line break."""
    document, table = f"output-{stem}.json", f"output-{stem}-pure-next-token.csv"
    json_lines = (made_sweep / document).read_text(encoding="utf-8").split("\n")
    with (made_sweep / table).open(newline="", encoding="utf-8") as file:
        rows = [(reader.line_num, row) for reader in [csv.DictReader(file)] for row in reader][:13]
    first = next(int(row["layer"]) for _, row in rows if row["answer_rank"] == "1")
    (stated,) = [i for i, text in enumerate(json_lines, 1) if text.startswith('    "first_rank_le_1"')]
    at, row = rows[2]
    kl = float(row["kl_to_final_bits"])
    rank, bits = (
        "The answer first has rank 1 at layer {} [`{}:{}`].",
        "At layer 2 the KL to the output is {:.2f} bits [`{}:{}`].",
    )
    said = [
        (rank.format(first, document, stated), Judgement.SUPPORTED, None),
        (rank.format(first + 2, document, stated), Judgement.CONTRADICTED, f"layer {first}"),
        (rank.format(first, document, stated - 40), Judgement.ELSEWHERE, f"{document}:{stated}"),
        (bits.format(kl, table, at), Judgement.SUPPORTED, None),
        (bits.format(kl + 1, table, at), Judgement.CONTRADICTED, None),
        (bits.format(kl, table, rows[12][0]), Judgement.ELSEWHERE, f"{table}:{at}"),
    ]
    for sentence, judgement, correct in said:
        found = audited(archive_of(made_sweep), [sentence], stem)
        assert {one for one, _ in found} - {Judgement.UNDECIDED} == {judgement}, sentence
        assert correct is None or (judgement, correct) in found, sentence


# What the words mean, by the published files: layer 31 is the first with rank 1, layer 29 is 18.23 bits away.
JSON, ROWS = "output-Qwen3-8B.json", "output-Qwen3-8B-pure-next-token.csv"
TUNED = "output-Qwen3-8B-pure-next-token-tuned.csv"
SAID = (
    (f"The answer first has rank 1 at layer 31 [`{JSON}:7081`].", Judgement.SUPPORTED, None),
    (f"The answer first has rank 1 at layer 17 [`{JSON}:7081`].", Judgement.CONTRADICTED, "layer 31"),
    (f"The answer first has rank 1 at layer 31 [`{JSON}:7077`].", Judgement.ELSEWHERE, f"{JSON}:7081"),
    (f"At layer 29 the KL to the final output is 18.23 bits [`{ROWS}:31`].", Judgement.SUPPORTED, None),
    (f"At layer 29 the KL to the final output is 12.23 bits [`{ROWS}:31`].", Judgement.CONTRADICTED, "18.2315"),
    (f"At layer 29 the KL to the final output is 18.23 bits [`{ROWS}:30`].", Judgement.ELSEWHERE, f"{ROWS}:31"),
    (f"The answer leads by 3.58 logits at layer 31 [`{ROWS}:33`].", Judgement.CONTRADICTED, "3.0846"),
    (f"It is confirmed at layer 33 (source raw) [`{JSON}:8142, 8140`].", Judgement.CONTRADICTED, "layer 31"),
    (f"The depth fraction is 0.861 [`{JSON}:7178`].", Judgement.SUPPORTED, None),
    (f"The depth fraction is 0.816 [`{JSON}:7178`].", Judgement.CONTRADICTED, "0.861"),
    (f"The depth fraction is 0.861 [`{JSON}:7138`].", Judgement.ELSEWHERE, f"{JSON}:7178"),
    (f"At layer 31 (depth fraction 0.561) the answer leads [`{JSON}:7178`].", Judgement.CONTRADICTED, "0.861"),
    (f"The tuned lens reaches rank 1 at layer 34 [`{TUNED}:35`].", Judgement.SUPPORTED, None),
    (f"The tuned lens reaches rank 1 at layer 32 [`{TUNED}:35`].", Judgement.CONTRADICTED, "layer 34"),
    (f"Surface-to-meaning at layer 29 [`{JSON}:7159`].", Judgement.CONTRADICTED, "layer 31"),
    (f"The control margin is first positive at layer 2 [`{JSON}:8361`].", Judgement.CONTRADICTED, "1"),
    (f'The top-1 token at layer 29 is `" Berlin"` [`{ROWS}:31`].', Judgement.CONTRADICTED, "'-minded'"),
    (f"There is no copy layer [`{JSON}:7072`].", Judgement.SUPPORTED, None),
)


@pytest.mark.parametrize(("sentence", "judgement", "correct"), SAID)
def test_a_plain_sentence_is_held_against_what_its_words_mean(
    archive: Archive, sentence: str, judgement: Judgement, correct: str | None
) -> None:
    found = audited(archive, [sentence])
    assert (judgement, correct) in found
    assert {one for one, _ in found} <= {judgement, Judgement.UNDECIDED}


# True of these files in some sense, and read wrongly by whoever takes the nearest number for the nearest name.
UNCERTAIN = (
    f"Layer 31 counts 4 facts and an entropy of rows that is less than 9.1 bits at layer 29 [`{ROWS}:31`].",
    f"Rank 1 holds for good from layer 33 [`{ROWS}:35`].",
    f"At layer 31 (confirmed), final entropy is 3.12 bits [`{ROWS}:38`].",
    f"The cosine to the answer is 0.111 at layer 34 [`{ROWS}:36`].",
    f"Without the filler, rank 1 comes first at layer 29 [`{JSON}:8341`].",
    f"Rank 5 or better may come first at layer 20 [`{JSON}:7082`].",
    f"The KL falls by 15.40 bits at layer 30 [`{ROWS}:31, 32`].",
    f"The lens artifact score is less than 0.9 [`{JSON}:7218`].",
)


@pytest.mark.parametrize("sentence", UNCERTAIN)
def test_words_that_may_mean_something_else_are_not_called_wrong(archive: Archive, sentence: str) -> None:
    assert not {one for one, _ in audited(archive, [sentence])} & {Judgement.CONTRADICTED, Judgement.ELSEWHERE}


def test_no_copy_layer_is_wrong_of_a_self_made_run_that_copies(made_sweep: Path) -> None:
    archive = archive_of(made_sweep)
    for stem, due in (("echo", (Judgement.CONTRADICTED, "layer 0")), ("reference", (Judgement.SUPPORTED, None))):
        lines = (made_sweep / f"output-{stem}.json").read_text(encoding="utf-8").split("\n")
        line = next(i for i, text in enumerate(lines, start=1) if text.startswith('    "L_copy"'))
        assert due in audited(archive, [f"There is no copy layer [`output-{stem}.json:{line}`]."], stem)


def test_no_copy_layer_is_wrong_of_a_run_that_copies(archive: Archive) -> None:
    found = audited(archive, ["There is no copy layer [`output-gemma-2-9b.json:7`]."], "gemma-2-9b")
    assert (Judgement.CONTRADICTED, "layer 0") in found
