"""How often each reason of the guidance fires on trained models, and on twins of them with shuffled weights.

    python scripts/guidance_bench.py                            # print the table
    python scripts/guidance_bench.py --write docs/verdict.md    # and put it between the page's two markers

A caution that most good models raise, or that a model without knowledge raises as often, tells nothing. Six trained
models are asked the suite that four of them were made for: the bundled one, three small ones of other families, trained
here for a few minutes (`train_small_models.py`), and two published ones (`real_models.py`). Each has a twin whose every
matrix holds its entries in random order. Models are kept in the cache of the published ones.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from layerscope import CausalLM, Run, probe
from layerscope.analysis.guidance import _RULES  # every reason, those that never fire included
from layerscope.bundled import BUNDLED

sys.path.append(str(Path(__file__).parent))  # found already when this is run as a script, not when it is imported
from real_models import cache_folder, real_model
from train_small_models import make_model

SUITE = "capitals-20"
SEED = 316
SMALL = {"llama": 1200, "gpt_neox": 500, "olmo2": 500}
"""Families of small models, and steps of their training, after which they know the capitals."""
TOO_COMMON = 0.8
"""A reason that fires on a larger share of the trained models is none."""
BEGIN, END = "<!-- guidance bench: begin -->", "<!-- guidance bench: end -->"


# ---- models


def small_model(family: str, cache: Path) -> Path:
    """The folder of a small trained model, trained if it is not there yet."""
    folder = cache / f"small-{family}-{SMALL[family]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                made = Path(unfinished) / folder.name
                make_model(family, made, seed=0, minutes=0.0, steps=SMALL[family])
                made.rename(folder)
    return folder


def subjects(cache: Path) -> dict[str, Callable[[], Path]]:
    """What the bench is made of, by name."""
    found: dict[str, Callable[[], Path]] = {"bundled": lambda: BUNDLED}
    found |= {f"small {family}": lambda family=family: small_model(family, cache) for family in SMALL}
    return found | {
        "SmolLM2-135M": lambda: real_model("smollm2", cache),
        "Gemma-3-270M": lambda: real_model("gemma", cache),
    }


# ---- what is counted


@dataclass(frozen=True)
class Fired:
    """Which reasons a run raised, and which could not be judged there."""

    reasons: frozenset[str]
    details: frozenset[str]
    """Said as plain facts, for they are no reasons."""
    undetermined: frozenset[str]
    n_answered: int
    """Prompts about facts with the answer on top at the output."""
    n_asked: int

    @classmethod
    def of(cls, run: Run) -> "Fired":
        """Of a run's guidance."""
        guidance = run.guidance
        facts = run.rows.filter(layer=run.record.model.n_layers, lens="logit", prompt_id="pos", is_next=True)
        return cls(
            frozenset(reason.name for reason in guidance.reasons),
            frozenset(detail.name for detail in guidance.details),
            frozenset(guidance.undetermined),
            int(facts["is_answer"].sum()),
            len(facts),
        )


@dataclass(frozen=True)
class Pair:
    """A trained model and its twin."""

    name: str
    family: str
    model: Fired
    twin: Fired


def measure(name: str, folder: Path) -> Pair:
    """Probe a model and its twin alike."""
    model = CausalLM.open(folder)
    twin = model.shuffled_twin("all", SEED)
    return Pair(name, model.family, *(Fired.of(probe(each, suite=SUITE)) for each in (model, twin)))


# ---- the table


@dataclass(frozen=True)
class Count:
    """On how many runs something was found, of how many that could be judged."""

    n_fired: int
    n_judged: int

    @classmethod
    def of(cls, name: str, runs: Sequence[Fired]) -> "Count":
        """Of a reason or detail."""
        judged = [run for run in runs if name not in run.undetermined]
        return cls(sum(name in run.reasons | run.details for run in judged), len(judged))

    @property
    def share(self) -> float:
        """Of the runs that could be judged; 0 where none could."""
        return self.n_fired / self.n_judged if self.n_judged else 0.0

    def __str__(self) -> str:
        return f"{self.n_fired} of {self.n_judged}"


def judgement(models: Count, twins: Count) -> str:
    """Whether a reason can tell good runs from bad ones, in words.

    Of so few models one more or less says nothing; a reason that fires on no twin does speak of what it fires on.
    """
    if not models.n_judged and not twins.n_judged:
        return "not asked"
    if not models.n_fired and not twins.n_fired:
        return "on none: the bench has no such fault"
    if models.share > TOO_COMMON:
        return "no: on most trained models"
    if not twins.n_judged:
        return "open: no twin has what it is about"
    one_more = 1 / models.n_judged if models.n_judged else 0.0
    if twins.n_fired and abs(models.share - twins.share) <= one_more + 1e-9:
        return "no: on twins as often, but for one model"
    return "yes"


def table(pairs: Sequence[Pair]) -> str:
    """The Markdown that the page shows."""
    models, twins = [pair.model for pair in pairs], [pair.twin for pair in pairs]
    lines = ["| model | family | prompts answered | by its twin |", "|---|---|---|---|"]
    for pair in pairs:
        answered = [f"{fired.n_answered} of {fired.n_asked}" for fired in (pair.model, pair.twin)]
        lines.append(f"| {pair.name} | `{pair.family}` | {answered[0]} | {answered[1]} |")
    lines += ["", "| reason | said as | on models | on twins | tells them apart |", "|---|---|---|---|---|"]
    words = {"block": "withheld", "advise": "caution", "detail": "detail"}
    for rule in _RULES:
        if rule.standard is not None:  # what is not told is not counted either
            counts = Count.of(rule.name, models), Count.of(rule.name, twins)
            told = f"| `{rule.name}` | {words[rule.standard]} | {counts[0]} | {counts[1]} "
            lines.append(f"{told}| {judgement(*counts)} |")
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """The page with the text between its markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"The page should have '{BEGIN}' and behind it '{END}', once each.")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> None:
    """Probe all models and their twins, print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="page to write the table into, between its markers")
    parser.add_argument("--cache", type=Path, help="folder to keep models in (default: that of the published models)")
    arguments = parser.parse_args()
    pairs = []
    for name, folder in subjects(arguments.cache or cache_folder()).items():
        began = time.monotonic()
        pairs.append(measure(name, folder()))
        print(f"{name} · {time.monotonic() - began:.0f} s", file=sys.stderr)
    text = table(pairs)
    print(text)
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(written(page, text), encoding="utf-8")


if __name__ == "__main__":
    main()
