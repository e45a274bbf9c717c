"""A bake-off: a probe through several lenses, then facts exchanged along the directions that each of them reads."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import torch

from layerscope.analysis.bakeoff import Bakeoff, bakeoff_of
from layerscope.analysis.verdict_json import plain
from layerscope.bundled import BUNDLED
from layerscope.errors import RunError
from layerscope.interventions.interchange import AnsweredFact, Interchange
from layerscope.model.causal_lm import CausalLM
from layerscope.model.reproducible import reproducible
from layerscope.options import keywords
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.opening import opened
from layerscope.probing.options import BakeoffOptions
from layerscope.probing.probe import probe
from layerscope.progress import Observer, Silent
from layerscope.record.patching import PatchingRecord
from layerscope.record.shares import FILE
from layerscope.record.store import new_folder
from layerscope.run import Run


@dataclass(frozen=True, kw_only=True)
class BakeoffRequest(BakeoffOptions):
    """The model whose lenses are held against each other, and how."""

    model: str | Path | CausalLM = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a Hub id, or an open model; default: the bundled one."""
    observer: Observer | None = None
    """Is told the plan and the progress."""


@dataclass(frozen=True)
class BakeoffResult:
    """A bake-off with what it rests on."""

    summary: Bakeoff
    shares: pl.DataFrame
    """The columns of `layerscope.record.shares.SHARE_COLUMNS`."""
    run: Run
    """The probe through the same lenses."""

    @property
    def json(self) -> str:
        """The summary as JSON."""
        return json.dumps(plain(self.summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write a folder, whole or not at all: `bakeoff.json`, `shares.parquet`, and the probe in `run`.

        Raises:
            RunError: the folder is already there, or cannot be written.
        """
        with new_folder(Path(path)) as folder:
            (folder / "bakeoff.json").write_text(self.json, encoding="utf-8")
            (folder / FILE).write_bytes(_parquet(self.shares))
            self.run.save(folder / "run")
        self.run.folder = Path(path).absolute() / "run"


@keywords(BakeoffRequest)
def bakeoff(request: BakeoffRequest) -> BakeoffResult:
    """Hold a model's lenses against each other: how well and how early each reads, and whether the model uses it.

    Raises:
        LayerscopeError: whatever cannot be done, each by its own class (see `layerscope.errors`).
        RunError: ranks of the run do not stand, no two facts can be patched, or nothing before the output carries the
            answer.
    """
    model = opened(request.model, request)
    watcher = request.observer or Silent()
    run = probe(
        model,
        suite=request.read_suite(),
        lenses=request.lenses,
        lens_dir=request.lens_dir,
        seed=request.seed,
        positions="last",
        second_forward="off",
        observer=watcher,
    )
    patching, found = run.record.measured.patching, run.diagnostics.patching
    if not run.record.ranks_stand:
        raise RunError("The identity check failed, so its ranks do not stand and lenses cannot be compared.")
    if patching is None or found is None or found.reason is not None:
        reason = "nothing was patched" if found is None else found.reason
        raise RunError(f"A bake-off exchanges facts, but there are none to exchange: {reason}; give a suite with more.")
    if found.handover.layer is None or found.handover.at_the_output:
        raise RunError("Nothing before the output carries the answer at the last token, so no lens can read it there.")
    names = run.record.protocol.lenses
    bound = choose_lenses(model, names, names, request.lens_dir, calibrating=False).bind(model)
    with reproducible(request.seed, model.placement.device), torch.inference_mode():
        exchange = Interchange(model, _pairs(run, patching), request.seed)
        told = getattr(watcher, "patches", lambda done, total: None)
        shares = exchange.run(bound, request.directions, told)
    return BakeoffResult(bakeoff_of(run, found.handover, shares), shares, run)


def _pairs(run: Run, patching: PatchingRecord) -> list[tuple[AnsweredFact, AnsweredFact]]:
    """The facts that the probe has patched into one another."""
    token_ids = {
        prompt.fact_index: prompt.token_ids
        for prompt in run.record.suite.prompts
        if prompt.prompt_id == "pos" and prompt.prompt_variant == patching.prompt_variant
    }

    def fact(index: int, answer_id: int) -> AnsweredFact:
        ids = token_ids[index]
        assert ids is not None, "a probe of our own has the tokens of its prompts"
        return AnsweredFact(index, ids, answer_id)

    return [(fact(pair.base, pair.base_answer_id), fact(pair.source, pair.source_answer_id)) for pair in patching.pairs]


def _parquet(table: pl.DataFrame) -> bytes:
    from io import BytesIO

    file = BytesIO()  # through memory: written by Polars itself, a full disk would come as an error without a number
    table.write_parquet(file, compression="zstd")
    return file.getvalue()
