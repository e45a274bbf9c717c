"""A look at one text from the shell beside other programs' logit lens, and a second look at an open model."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from agreement import Agreement, Disagreement, compare
from machine import warm_pages
from setting import ROOT, SIDES, Setting, markdown, verdict
from task import readings_beside
from tops import TopAgreement, Tops, compare_tops, tops_of_interpkit, tops_of_look
from watched import environment_of, watch

sys.path.insert(0, str(ROOT / "scripts"))

NAME, TITLE, MINUTES = "look", "A look at one text, from the shell", 4
MODEL = "SmolLM2-135M-Instruct"
TEXT = "The capital of Germany is called"
FURTHER = "The capital of {} is called Berlin and that of France is"
"""Twelve tokens with any of these names; each text is another one, so that nothing can be remembered."""
COUNTRIES = ("Germany", "Italy", "Spain", "Poland", "Japan", "China", "India", "Russia")
TOP, ROUNDS, PROCESSES = 20, 9, 3
"""Tokens listed by a second look; rounds of commands; processes of second looks."""
MOST_SECOND_LOOK_S = 0.7
"""Target: median seconds of a second look."""

OURS, INTERPKIT, TRANSFORMER_LENS = "layerscope", "interpkit", "transformer_lens"
TITLES = {
    OURS: "**`layerscope look`**",
    INTERPKIT: "`interpkit lens`",
    TRANSFORMER_LENS: "script on TransformerLens",
}
HELP_TITLES = {OURS: "**`layerscope look --help`**", INTERPKIT: "`interpkit lens --help`"}
SECOND_TITLES = {OURS: "**`layerscope.look(model, text)`**", TRANSFORMER_LENS: "TransformerLens"}


@dataclass(frozen=True)
class Runs:
    """One program in fresh processes, one in each round."""

    wall_s: tuple[float, ...]
    """From the start of the process to its end."""
    anonymous_gb: float
    """The most of all rounds, in 1e9 bytes."""
    resident_gb: float
    """The same with pages of mapped files."""


@dataclass(frozen=True)
class Looked:
    """Every program on one text of one model, and what a further look takes."""

    commands: dict[str, Runs]
    """By key of `TITLES`."""
    agreement: dict[str, TopAgreement]
    """Of the others with layerscope."""
    helps: dict[str, Runs]
    """By key of `HELP_TITLES`."""
    second_s: dict[str, tuple[float, ...]]
    """By key of `SECOND_TITLES`: seconds of each look at a model that is open, after a first one."""
    second_agreement: Agreement | None
    load: tuple[float, float]
    """How many processes wanted a core in the minute before the first round, and in that before the end."""


def measure(setting: Setting) -> Looked:
    """Check first, then time in turn; raises Disagreement, and then no time is told."""
    from real_models import real_model

    folder = real_model("smollm2")
    warm_pages(folder)
    names = [name for name in TITLES if name == OURS or setting.peers_python is not None]
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        (here / "task.json").write_text(json.dumps({"checkpoint": str(folder), "texts": [TEXT]}))
        agreement = _checked(names, folder, here, setting)
        before = os.getloadavg()[0]
        commands = _in_turn({name: _words(name, folder, here, setting) for name in names}, setting)
        helps = _in_turn({name: _help(name, setting) for name in names if name in HELP_TITLES}, setting)
        second, second_agreement = _second(folder, here, setting)
        return Looked(commands, agreement, helps, second, second_agreement, (before, os.getloadavg()[0]))


def _python(name: str, setting: Setting) -> Path:
    return Path(sys.executable) if name == OURS or setting.peers_python is None else setting.peers_python


def _words(name: str, folder: Path, here: Path, setting: Setting) -> list[str | Path]:
    """The command, as one types it."""
    python = _python(name, setting)
    if name == OURS:
        return [python, "-m", "layerscope", "look", folder, TEXT]
    if name == INTERPKIT:
        return [python, "-m", "interpkit", "lens", folder, TEXT]
    return [python, SIDES / "transformer_lens_look.py", here / "task.json", here / "transformer_lens.json"]


def _help(name: str, setting: Setting) -> list[str | Path]:
    command = {OURS: ("layerscope", "look"), INTERPKIT: ("interpkit", "lens")}[name]
    return [_python(name, setting), "-m", *command, "--help"]


def _source() -> dict[str, str]:
    """So that layerscope is the one of this checkout."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])}


def _in_turn(words: dict[str, list[str | Path]], setting: Setting) -> dict[str, Runs]:
    """Every command once a round, every other round backwards, so that what disturbs one disturbs its neighbour."""
    seen: dict[str, list[Any]] = {name: [] for name in words}
    rounds = setting.repeat if setting.quick else max(ROUNDS, setting.repeat)
    for i in range(rounds):
        print(f"  round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        for name in list(words)[:: 1 if i % 2 == 0 else -1]:
            seen[name].append(watch(words[name], setting, extra=_source() if name == OURS else None))
    return {
        name: Runs(
            tuple(one.wall_s for one in runs),
            max(one.peak_gb() for one in runs),
            max(one.resident_gb for one in runs),
        )
        for name, runs in seen.items()
    }


# ---- the same numbers


def _checked(names: Sequence[str], folder: Path, here: Path, setting: Setting) -> dict[str, TopAgreement]:
    """Each program's top tokens against ours; these runs are not timed, and bring all files into the cache."""
    ours = _our_tops(folder, setting)
    found = {}
    for name in names:
        if name == INTERPKIT:
            found[name] = compare_tops(ours, _interpkit_tops(folder, setting))
        if name == TRANSFORMER_LENS:
            watch(_words(name, folder, here, setting), setting)
            left = json.loads((here / "transformer_lens.json").read_text())
            found[name] = compare_tops(ours, Tops(np.array(left["tokens"], dtype=object), np.array(left["probs"])))
    return found


def _our_tops(folder: Path, setting: Setting) -> Tops:
    return tops_of_look(
        json.loads(_said([sys.executable, "-m", "layerscope", "look", folder, TEXT, "--json"], setting))
    )


def _interpkit_tops(folder: Path, setting: Setting) -> Tops:
    python = _python(INTERPKIT, setting)
    return tops_of_interpkit(
        json.loads(_said([python, "-m", "interpkit", "--format", "json", "lens", folder, TEXT], setting))
    )


def _said(words: Sequence[str | Path], setting: Setting) -> str:
    """What a command writes to stdout."""
    environment = environment_of(setting, _source() if words[0] == sys.executable else None)
    done = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


# ---- a second look


def _second(folder: Path, here: Path, setting: Setting) -> tuple[dict[str, tuple[float, ...]], Agreement | None]:
    """Processes in turn, each of which looks at one text after another; what the first text takes is left out."""
    texts = [TEXT, *(FURTHER.format(country) for country in COUNTRIES[: 3 if setting.quick else None])]
    task = here / "second.json"
    task.write_text(json.dumps({"checkpoint": str(folder), "texts": texts, "top": TOP}))
    names = [name for name in SECOND_TITLES if name == OURS or setting.peers_python is not None]
    took: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 if setting.quick else max(PROCESSES, setting.repeat)):
        for name in names:
            print(f"  second looks, {name}", file=sys.stderr, flush=True)
            out = here / f"{name}_second.json"
            extra = _source() if name == OURS else None
            watch([_python(name, setting), SIDES / f"{name}_look.py", task, out], setting, extra=extra)
            took[name] += json.loads(out.read_text())["looks_s"][1 - len(texts) :]
    agreement = None
    if TRANSFORMER_LENS in names:
        left = [here / f"{name}_second.json" for name in (TRANSFORMER_LENS, OURS)]
        ids = [json.loads(file.read_text())["token_ids"] for file in left]
        if ids[0] != ids[1]:
            raise Disagreement(f"the last text is {ids[0]} on one side and {ids[1]} on the other")
        agreement = compare(*map(readings_beside, left))
    return {name: tuple(each) for name, each in took.items()}, agreement


# ---- the page


def table(result: Looked) -> str:
    """Ratios, the three tables, and what is behind them."""
    ours = result.commands[OURS]
    lines = [
        f"* wall time over that of {TITLES[name]}: {spread(_ratios(ours, runs))}"
        for name, runs in result.commands.items()
        if name != OURS
    ]
    second = statistics.median(result.second_s[OURS])
    lines.append(f"* seconds of a second look: {verdict(second, MOST_SECOND_LOOK_S)}")
    rows = [
        [TITLES[name], spread(runs.wall_s), f"{runs.anonymous_gb:.2f}", f"{runs.resident_gb:.2f}"]
        for name, runs in result.commands.items()
    ]
    helps = [[HELP_TITLES[name], spread(runs.wall_s), "", ""] for name, runs in result.helps.items()]
    header = ["from the shell", "wall, s", "memory, GB", "with mapped files"]
    seconds = [[SECOND_TITLES[name], spread(took)] for name, took in result.second_s.items()]
    return "\n\n".join(
        [
            "\n".join(lines),
            markdown(header, [*rows, *helps]),
            _method(result),
            markdown(["once the model is open", "s"], seconds),
            _second_method(result),
            _agreed(result),
        ]
    )


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _ratios(ours: Runs, theirs: Runs) -> list[float]:
    return [mine / other for mine, other in zip(ours.wall_s, theirs.wall_s, strict=True)]


def _method(result: Looked) -> str:
    rounds = len(result.commands[OURS].wall_s)
    each = "one round" if rounds == 1 else f"{rounds} rounds, every other one backwards"
    return (
        f"{MODEL}, “{TEXT}” (6 tokens), float32, each in a fresh process from its start to its end, output included, "
        f"files in the page cache; {each}. Times and ratios are medians and ranges, ratios within a round. Memory: the "
        f"most anonymous memory, and the most resident memory, which counts pages of mapped files too, although the "
        f"kernel can drop them. The load average was {result.load[0]:.1f} before and {result.load[1]:.1f} at the end, "
        f"the programs measured included; what else ran on the machine shows in the ranges.\n\n"
        f"All decode every position of every layer through final norm and head, and list the top 5. `layerscope look` "
        f"prints the token on top at every layer and position, with probability and entropy at the last position; it "
        f"computes entropy and KL to the output everywhere, reads the embedding too, and checks that the last layer is "
        f"the model's own output after this text. `interpkit lens` prints the lists of the last position; no entropy, "
        f"no KL, no embedding; it checks its reading of the model on a single token when it loads. The script (load, "
        f"`run_with_cache` of the residuals alone, `accumulated_resid(apply_ln=True)`, `unembed`, softmax, `topk`) "
        f"prints all lists, the embedding's too; no entropy, no KL, no check. Each says more with other commands or "
        f"calls, which are not made."
    )


def _second_method(result: Looked) -> str:
    runs = len(result.second_s[OURS])
    return (
        f"{_times(runs, 'look')} each, at texts of 12 tokens, each another one, after a first that is not counted: all "
        f"layers, all positions, top {TOP}, entropy and KL. `layerscope.look` checks the last layer and spells out the "
        f"tokens besides; TransformerLens is given the numbers alone."
    )


def _times(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}".capitalize()


def _agreed(result: Looked) -> str:
    parts = [
        f"{TITLES[name]}: the same token on top in {found.equal} of {found.rows} rows of layer and position, its "
        f"probability within {found.p:.0e}, all probabilities of the last layer within {found.p_last_layer:.0e}"
        for name, found in result.agreement.items()
    ]
    second = result.second_agreement
    if second is not None:
        parts.append(
            f"second looks against TransformerLens: entropy within {second.entropy_bits:.0e} bits, KL within "
            f"{second.kl_bits or 0.0:.0e}, top {TOP} the same in {second.tops_equal} of {second.rows} rows"
        )
    if not parts:
        return "Without the other libraries nothing was compared."
    return f"Agreement with layerscope, checked before any time was told: {'; '.join(parts)}."
