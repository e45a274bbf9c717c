"""A bake-off: a probe and a text read through several lenses, then facts exchanged along each lens' directions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import torch

from layerscope.analysis.bakeoff import Bakeoff, Entrant, Seen, Taker, Text, TextReading, bakeoff_of, compared_layers
from layerscope.analysis.verdict_json import json_text
from layerscope.bundled import BUNDLED
from layerscope.errors import CorpusError, LensError, RunError
from layerscope.fitting.corpus import parse_tokens
from layerscope.fitting.held_out_text import HeldOutText, held_out_text, measured_on_text
from layerscope.fitting.options import FitOptions
from layerscope.interventions.interchange import AnsweredFact, Interchange
from layerscope.lens_record import CorpusRecord
from layerscope.lenses.derived import of_rank, shuffled
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens import Lens
from layerscope.lenses.lens_folder import FittedLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import TunedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.reproducible import reproducible
from layerscope.options import keywords
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.opening import opened
from layerscope.probing.options import BakeoffOptions
from layerscope.probing.probe import probe
from layerscope.progress import Observer, Silent
from layerscope.record.patching import PatchingRecord
from layerscope.record.rows import table_bytes
from layerscope.record.shares import FILE
from layerscope.record.store import new_folder
from layerscope.report.sentences.lines import capitalised
from layerscope.report.sentences.patching import carried
from layerscope.run import Run


@dataclass(frozen=True, kw_only=True)
class BakeoffRequest(BakeoffOptions):
    """The model whose lenses are held against each other, and how."""

    model: str | Path | CausalLM = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a GGUF file, a Hub id, or an open model; default: the
    bundled one."""
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
        return json_text(self.summary)

    def save(self, path: str | Path) -> None:
        """Write a folder, whole or not at all: `bakeoff.json`, `shares.parquet`, and the probe in `run`.

        Raises:
            RunError: the folder is already there, or cannot be written.
        """
        with new_folder(Path(path)) as folder:
            (folder / "bakeoff.json").write_text(self.json, encoding="utf-8")
            (folder / FILE).write_bytes(table_bytes(self.shares))
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
    if request.rank < 0:
        raise LensError(f"The rank that maps are held to is at least 1, or 0 for none, but it is {request.rank}.")
    field, n_tokens = _of_text(request)
    model = opened(request.model, request)
    text = held_out_text(model, request.text, field, n_tokens)
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
        where = (
            "No effect of a patch is known" if found.handover.layer is None else capitalised(carried(found.handover))
        )
        raise RunError(f"{where}, so there is no layer before the output at which to compare lenses.")
    names = run.record.protocol.lenses
    chosen = choose_lenses(model, names, names, request.lens_dir, calibrating=False)
    takers, lenses = _entrants(chosen.bind(model), request)  # outside inference mode, for they are differentiated
    with reproducible(request.seed, model.placement.device), torch.inference_mode():
        measured = _read_text(model, lenses, text, chosen.fitted, takers, request.seed)
        exchange = Interchange(model, _pairs(run, patching), request.seed)
        told = getattr(watcher, "patches", lambda done, total: None)
        layers = None if request.all_layers else compared_layers(found.handover)
        shares = exchange.run(lenses, request.directions, told, layers)
    return BakeoffResult(bakeoff_of(run, found.handover, shares, takers, measured), shares, run)


def _of_text(request: BakeoffOptions) -> tuple[str, int]:
    """Which field of a text is read, and how much of it.

    Raises:
        CorpusError: no such number of tokens, or no text that this could be about.
    """
    without = [name for name in ("field", "tokens") if getattr(request, name) is not None and not request.text]
    if without:
        options = " and ".join(f"--{name}" for name in without)
        raise CorpusError(
            f"{options} {'says' if len(without) == 1 else 'say'} what to read of a text, but no text was given; name "
            f"one with --text, or leave {options} out."
        )
    as_a_fit = FitOptions()
    return (
        as_a_fit.field if request.field is None else request.field,
        parse_tokens(as_a_fit.tokens if request.tokens is None else request.tokens),
    )


def _entrants(bound: Sequence[Lens], request: BakeoffOptions) -> tuple[list[Taker], list[Lens]]:
    """The lenses that the probe was read through, and what is made of the fitted ones among them."""
    takers, lenses = [Taker(lens.name) for lens in bound], list(bound)
    for lens in bound:
        if not isinstance(lens, TunedLens | JacobianLens | PrismLens):
            continue
        thin = of_rank(lens, request.rank) if request.rank and isinstance(lens, TunedLens) else None
        if thin is not None and lens.name == "tuned":
            takers.append(Taker(thin.name, Entrant.DERIVED, lens.name))
            lenses.append(thin)
        if request.nulls:
            null = shuffled(lens, request.seed)
            takers.append(Taker(null.name, Entrant.NULL, lens.name))
            lenses.append(null)
    return takers, lenses


def _read_text(
    model: CausalLM,
    lenses: Sequence[Lens],
    text: HeldOutText,
    fitted: Mapping[str, FittedLens],
    takers: Sequence[Taker],
    seed: int,
) -> Text:
    """What every lens is worth on the text, and what its fit had to do with it."""
    n_positions, layers = measured_on_text(model, lenses, text, seed)
    by_lens = {
        taker.lens: TextReading(
            tuple(layer[i].bits if math.isfinite(layer[i].bits) else None for layer in layers),
            tuple(layer[i].top1 for layer in layers),
            seen_by(fitted.get(taker.of or taker.lens), text.record),
        )
        for i, taker in enumerate(takers)
    }
    return Text(text.names, n_positions, by_lens)


def seen_by(lens: FittedLens | None, text: CorpusRecord | None) -> Seen:
    """Whether a fit held this text out: where the same documents were cut into the same parts, whatever the length of
    its sequences; a source in common that was cut otherwise may have been fitted to."""
    if lens is None:
        return Seen.NO_FIT
    corpus = lens.record.corpus
    if corpus is None:
        return Seen.UNKNOWN
    if text is None:
        return Seen.OTHER
    if corpus.sources == text.sources and _parts(corpus) == _parts(text):
        return Seen.HELD_OUT
    shared = {source.name for source in corpus.sources} & {source.name for source in text.sources}
    return Seen.PERHAPS if shared else Seen.OTHER


def _parts(corpus: CorpusRecord) -> dict[str, tuple[int, int]]:
    """Documents and tokens of each part."""
    return {name: (part.n_documents, part.n_tokens) for name, part in corpus.splits.items()}


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
