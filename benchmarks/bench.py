"""Speed and memory, measured and written to docs/benchmarks.md: every table from one run on one machine.

    python benchmarks/bench.py                      # every piece; writes the page and results.json
    python benchmarks/bench.py peers floor          # some pieces; the others stay as they were measured
    python benchmarks/bench.py scale --large        # the 72B shape and 10,000 prompts too
    python benchmarks/bench.py --quick              # a trial at a small size; prints, writes nothing
    python benchmarks/bench.py --draw               # the page once more, from results.json

The other libraries live in an environment of their own, which `make peers` makes; `--peers-python` says where its
interpreter is. Without it their lines are left out, which the page says.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import look
import over_floor
import patch_cost
import scale
import side_by_side
import small_model
import where_time_goes
from agreement import Disagreement
from machine import Machine, describe
from pydantic import TypeAdapter
from setting import ROOT, Setting

PIECES: dict[str, tuple[ModuleType, Any]] = {
    side_by_side.NAME: (side_by_side, side_by_side.SideBySide),
    small_model.NAME: (small_model, small_model.SmallModel),
    look.NAME: (look, look.Looked),
    patch_cost.NAME: (patch_cost, patch_cost.PatchCost),
    over_floor.NAME: (over_floor, over_floor.OverFloor),
    where_time_goes.NAME: (where_time_goes, where_time_goes.Statistics),
    scale.NAME: (scale, scale.Scale),
}
"""By name: the module that measures it and draws its table, and what it measures."""
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", Path(__file__).with_name("results.json")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Measured:
    """One piece's result as it is kept."""

    date: str
    machine: Machine
    result: dict[str, Any]


KEPT = TypeAdapter(dict[str, Measured])


def section(name: str, measured: Measured) -> str:
    """A piece's part of the page."""
    module, kind = PIECES[name]
    result = TypeAdapter(kind).validate_python(measured.result)
    foot = f"Measured {measured.date}. Machine: {measured.machine}."
    return f"## {module.TITLE}\n\n{module.table(result)}\n\n{foot}"


def write_page(page: Path, kept: dict[str, Measured]) -> None:
    """Put the sections between the page's markers, in the order of the pieces."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"expected the markers {BEGIN} and {END} in {page.name}; put them where the tables belong")
    sections = "\n\n".join(section(name, kept[name]) for name in PIECES if name in kept)
    page.write_text(f"{text[: text.index(BEGIN)]}{BEGIN}\n{sections}\n{text[text.index(END) :]}")


def read_kept(file: Path) -> dict[str, Measured]:
    """The last results, of pieces that there still are."""
    if not file.exists():
        return {}
    return {name: piece for name, piece in KEPT.validate_json(file.read_text()).items() if name in PIECES}


def main() -> int:
    """Measure, keep, draw; exit code 1 when sides disagree."""
    arguments = _arguments()
    kept = read_kept(RESULTS)
    if arguments.draw:
        write_page(PAGE, kept)
        return 0
    names = arguments.pieces or list(PIECES)
    setting = Setting(
        arguments.threads,
        arguments.quick,
        arguments.large,
        arguments.repeat,
        arguments.peers_python,
        arguments.lock,
    )
    minutes = sum(PIECES[name][0].MINUTES for name in names)
    large = ", and up to 25 for the 72B shape and 10,000 prompts" if setting.large else ""
    print("a trial" if setting.quick else f"about {minutes} minutes{large}", file=sys.stderr)
    for name in names:
        module, kind = PIECES[name]
        print(f"{name}: {module.TITLE}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            result = module.measure(setting)
        except Disagreement as error:
            print(f"the sides disagree, so no time is told: {error}", file=sys.stderr)
            return 1
        found = TypeAdapter(kind).dump_python(result, mode="json")
        date = datetime.now(UTC).date().isoformat()
        kept[name] = Measured(date, describe(setting.threads), found)
        print(f"{section(name, kept[name])}\n\n({time.monotonic() - began:.0f} s)\n", flush=True)
        if not setting.quick:  # piece by piece, so that what was measured is not lost with a later one
            RESULTS.write_text(json.dumps(KEPT.dump_python(kept, mode="json"), indent=1) + "\n")
            write_page(PAGE, kept)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pieces", nargs="*", metavar="piece", help=f"of {', '.join(PIECES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a trial at a small size; the page stays as it is")
    parser.add_argument("--large", action="store_true", help="the 72B shape and 10,000 prompts too")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: every core")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment with the other libraries")
    parser.add_argument("--lock", type=Path, help="a file that is locked while anything is timed, for others to wait")
    parser.add_argument("--draw", action="store_true", help="draw the page again from the last results")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.pieces if name not in PIECES]
    if unknown:
        parser.error(f"there is no piece '{unknown[0]}'; choose from {', '.join(PIECES)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
