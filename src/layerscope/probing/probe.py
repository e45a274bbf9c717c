"""The whole river for one model and one suite: prompts, one streamed pass, one sweep, rows, a Run."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import torch

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, ModelError, SuiteError
from layerscope.model.ablation import Ablation
from layerscope.model.causal_lm import CausalLM
from layerscope.model.families import rule_of_table
from layerscope.model.identity import Identity
from layerscope.model.patched_pass import PatchedPass
from layerscope.model.placement import format_bytes, shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.model.residuals import Residuals
from layerscope.options import keywords
from layerscope.peak import peak_gflops
from layerscope.probing.auxiliary_inputs import AuxiliaryInputs, choose_auxiliary_inputs
from layerscope.probing.calibration import calibrated, tokens_to_read
from layerscope.probing.chats import template_options
from layerscope.probing.encode import Encoded, Reading, encode
from layerscope.probing.fit_estimate import fit_line
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.memory_plan import IDENTITY_PROMPTS, Batch, plan_line, plan_memory, planned_bytes
from layerscope.probing.opening import lens_names, opened
from layerscope.probing.options import RENAMED, ProbeOptions
from layerscope.probing.outputs import identity_of, with_outputs
from layerscope.probing.patching import Patching
from layerscope.probing.primary_prompt import FirstBatch, PrimaryPromptAnalysis, planned_auxiliary_bytes
from layerscope.probing.routing_table import RoutingSoFar
from layerscope.probing.row_table import row_table
from layerscope.probing.run_metadata import Settings, bos_against_family, run_metadata
from layerscope.probing.shuffled_control import asked_of_twin, control_scope, with_twin
from layerscope.probing.sublayers import refuse_unknown_blocks, sublayers
from layerscope.probing.whole_answers import Forcing, judged_by
from layerscope.probing.write_patching import with_write_effects
from layerscope.products import fastest
from layerscope.progress import Observer, Silent
from layerscope.readout.compiled import load_ahead
from layerscope.readout.decode import pays
from layerscope.readout.measure import Work, measure
from layerscope.record.measured import MeasuredRecord
from layerscope.record.parts import TimingsRecord
from layerscope.record.protocol import Protocol, protocol_of
from layerscope.record.stored_rows import RowsInParts
from layerscope.run import Run

SECOND_FORWARD = ("auto", "always", "off")


@dataclass(frozen=True, kw_only=True)
class ProbeRequest(ProbeOptions):
    """The model to probe, and how."""

    model: str | Path | CausalLM = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a GGUF file, a Hub id, or an open model; default: the
    bundled one."""
    observer: Observer | None = None
    """Is told the plan and the progress."""


@dataclass
class Seconds:
    """Wall time by stage; a stage may run several times."""

    began: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=lambda: {"forward_s": 0.0, "sweep_s": 0.0})
    work: Work = field(default_factory=Work)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` to a stage."""
        start = time.perf_counter()
        yield
        self.stages[name] += time.perf_counter() - start

    def timings(self, device: torch.device) -> TimingsRecord:
        """Totals so far, and how fast sweeps were; what is neither forward nor sweep is start."""
        total = time.perf_counter() - self.began
        rate = self.work.flop / self.work.seconds / 1e9 if self.work.seconds else None
        return TimingsRecord(
            start_s=max(0.0, total - sum(self.stages.values())),
            total_s=total,
            sweep_engine=self.work.slowest_engine,
            product_library=fastest() if device.type == "cpu" else None,
            sweep_gflops=rate,
            peak_gflops=peak_gflops(at_least=rate or 0.0) if device.type == "cpu" else None,
            **self.stages,
        )


@keywords(ProbeRequest, formerly=RENAMED)
def probe(request: ProbeRequest) -> Run:
    """Probe a model with a suite and return every number of every layer.

    Raises:
        LayerscopeError: whatever cannot be done, each by its own class (see `layerscope.errors`).
    """
    seconds, created = Seconds(), datetime.now(UTC)
    rules, requested = _choices(request)
    scope = control_scope(request.control)
    if request.neurons and not request.sublayers:
        raise ModelError("Neurons are named among what attention and MLPs add; ask for `sublayers` too.")
    if request.ablate_with != ProbeOptions.ablate_with and not request.ablate:
        raise ModelError(
            f"Nothing is ablated, so ablate_with '{request.ablate_with}' has no use; name parts with ablate."
        )
    if request.causal_positions != ProbeOptions.causal_positions and not request.causal:
        raise ModelError(
            "Positions of patches are given, but nothing is to be patched; ask for `causal`, or leave them out."
        )
    ablation = Ablation.of(request.ablate, request.ablate_with) if request.ablate else None
    positions = "all" if request.positions == "auto" and rules.all_positions else request.positions
    suite = request.read_suite()
    model = _open(request, rules)
    if request.sublayers:
        refuse_unknown_blocks(model)
    encoded = judged_by(encode(suite, model, positions, _reading(request, rules)), request.judge)
    if ablation is not None:
        model = _ablated(model, ablation, encoded, request.seed)
    watcher = request.observer or Silent()
    chosen = choose_lenses(model, requested, rules.lenses, request.lens_dir, calibrating=request.calibrate is not None)
    if request.calibrate is not None:
        seconds.stages["calibration_s"] = 0.0
        with seconds.stage("calibration_s"):
            lens = calibrated(model, request.calibrate, tokens_to_read(request), request.seed, watcher)
        chosen = chosen.with_calibrated(lens)
    bound = chosen.bind(model)
    settings = Settings(rules, bound, positions, request.top_k, request.seed, request.second_forward)
    auxiliary = choose_auxiliary_inputs(model, encoded, rules)
    auxiliary_bytes = planned_auxiliary_bytes(model, auxiliary)
    parts = plan_memory(model, encoded, len(bound), request.top_k, rules, auxiliary.token_ids, auxiliary_bytes)
    watcher.plan(plan_line(model, parts, suite))
    unread = fit_line(model) if requested is None and chosen.without_fit and model.is_as_stored else None
    for line in (
        *model.notes,
        bos_against_family(model.tokens, encoded),
        *suite.notes,
        *chosen.passed_over,
        unread,
    ):
        if line is not None:
            watcher.plan(line)
    patching = Patching(model, request.causal_positions, request.seed) if request.causal else None
    room = model.placement.memory - planned_bytes(parts)
    riding = None if patching is None or len(parts) > 1 else patching.riding(encoded, room, watcher)
    result = _run_batches(model, encoded, settings, parts, auxiliary, seconds, watcher, riding)
    beside = _behind_the_rows(model, result, parts, request, patching, seconds, watcher)
    of_experts = {"routing": result.routing.record}
    measured = beside.measured.model_copy(update={"fitted_lenses": chosen.records, **of_experts})
    record = run_metadata(
        model,
        suite,
        result.encoded,
        settings,
        identity=result.identity,
        health=result.health,
        measured=measured,
        planned_bytes=planned_bytes(parts),
        created=created,
        timings=seconds.timings(model.placement.device),
    )
    if scope is not None:
        twin = probe(
            model.shuffled_twin(scope, request.seed), observer=watcher, **asked_of_twin(request, rules.headline)
        )
        record = with_twin(record, twin, scope)
    return Run(
        result.rows.table(),
        record,
        keep=result.rows,
        patches=beside.patches,
        writers=beside.writers,
        write_patches=beside.write_patches,
        experts=result.routing.table,
    )


@dataclass(frozen=True)
class _Beside:
    """What is measured when all rows are: patches and shares, which want to know what the model says."""

    measured: MeasuredRecord
    patches: pl.DataFrame | None
    writers: pl.DataFrame | None
    write_patches: pl.DataFrame | None


def _behind_the_rows(
    model: CausalLM,
    result: "ProbeResult",
    parts: Sequence[Batch],
    request: ProbeRequest,
    patching: Patching | None,
    seconds: Seconds,
    watcher: Observer,
) -> _Beside:
    measured, patches, writers, write_patches = result.measured, None, None, None
    if patching is not None:
        seconds.stages["patching_s"] = 0.0
        with seconds.stage("patching_s"):
            found = patching.found(result.encoded, watcher)
        measured, patches = measured.model_copy(update={"patching": found.record}), found.table
    if request.sublayers:
        seconds.stages["sublayers_s"] = 0.0
        with seconds.stage("sublayers_s"):
            wrote = sublayers(model, result.encoded, parts, request.seed, watcher, neurons=request.neurons)
            wrote = wrote.beside(measured.patching, patches)
        measured, writers = measured.model_copy(update={"sublayers": wrote.record}), wrote.table
    if measured.patching is not None and measured.sublayers is not None and writers is not None:
        with seconds.stage("patching_s"):
            record, write_patches = with_write_effects(
                model, result.encoded, measured.patching, measured.sublayers, writers, request.seed, watcher
            )
        measured = measured.model_copy(update={"sublayers": record})
    return _Beside(measured, patches, writers, write_patches)


def _choices(options: ProbeOptions) -> tuple[Protocol, tuple[str, ...] | None]:
    """The protocol and the names of the lenses that were asked for, if any were.

    Raises:
        RunError: no such protocol.
        LensError: a top_k, seed or second forward that cannot be.
        CorpusError: a number of tokens that is none, or is given without a text.
    """
    if options.top_k < 1:
        raise LensError(f"top_k should be at least 1, but it is {options.top_k}.")
    if not -(2**63) <= options.seed < 2**63:
        raise LensError(f"A seed is a 64-bit integer, but it is {options.seed}.")
    tokens_to_read(options)
    rules = protocol_of(options.protocol)
    if options.second_forward not in SECOND_FORWARD:
        raise LensError(
            f"There is no second forward '{options.second_forward}'; choose from {', '.join(SECOND_FORWARD)}."
        )
    names = None if options.lenses is None else lens_names(options.lenses)
    if names and rules.headline not in names:
        rules = replace(rules, headline=names[0])  # recorded, and said in every table
    return rules, names


def _reading(options: ProbeOptions, rules: Protocol) -> Reading:
    """How the suite is put into the model's tokens.

    Raises:
        SuiteError: options of a chat template that are none.
    """
    return Reading(
        answer_form=options.answer_form,
        form_of_model=rules.form_of_model,
        system=options.system,
        template_options=template_options(options.template_options),
    )


def _open(request: ProbeRequest, rules: Protocol) -> CausalLM:
    """The model, reading what the protocol wants at the beginning of a prompt."""
    model = opened(request.model, request)
    return model if rules.bos_of_tokenizer else model.reading(rule_of_table(model.tokens.bos))


def _ablated(model: CausalLM, ablation: Ablation, encoded: Sequence[Encoded], seed: int) -> CausalLM:
    """The model with parts put out of action; their means, where these stand for them, are over the prompts."""
    device = model.placement.device
    ran_out = f"The memory of {device} ran out while means of parts were taken; give a smaller --memory."
    with shortage_explained(ran_out), reproducible(seed, device):
        return model.ablated(ablation, [prompt.token_ids for prompt in encoded])


@dataclass(frozen=True)
class ProbeResult:
    """What the river carried: rows by prompt, and what was measured once."""

    rows: RowsInParts
    health: pl.DataFrame
    """What numeric health is judged by, row by row."""
    encoded: Sequence[Encoded]
    """The prompts, with what the model says after them and the forms of their answers that are judged."""
    identity: Identity
    measured: MeasuredRecord
    routing: RoutingSoFar
    """Which experts their tokens were sent to."""


@dataclass(frozen=True)
class _Once:
    """What the first batch alone is asked for."""

    identity: Identity
    measured: MeasuredRecord
    temperatures: tuple[float | None, ...] | None
    """Of each layer; None where none were fitted."""


def _run_batches(
    model: CausalLM,
    encoded: Sequence[Encoded],
    settings: Settings,
    parts: Sequence[Batch],
    auxiliary: AuxiliaryInputs,
    seconds: Seconds,
    watcher: Observer,
    riding: PatchedPass | None,
) -> ProbeResult:
    """Forward and sweep, part by part; the identity check, and all that is measured once, is made on the first.

    Patches that ride along do so with the only part there is.
    """
    rows, health = RowsInParts(warn=watcher.plan), list[pl.DataFrame]()
    told: list[Encoded] = []
    routing = RoutingSoFar()
    once: _Once | None = None
    tokens = model.tokens
    trivial = tokens.trivial_or_special if settings.protocol.bos_of_tokenizer else tokens.trivial
    device = model.placement.device
    _load_loops_ahead(model, encoded, settings)
    ran_out = (
        f"The memory of {device} ran out, although the plan of {format_bytes(planned_bytes(parts))} was within the "
        "budget; give a smaller --memory, so that the work is cut into smaller parts."
    )
    with shortage_explained(ran_out), reproducible(settings.seed, device), torch.inference_mode():
        for i, part in enumerate(parts):
            here = encoded[part.prompts]
            forcing = Forcing.of(model, here, settings.protocol)
            texts = [e.token_ids for e in here] + (auxiliary.token_ids if i == 0 else [])
            with seconds.stage("forward_s"):
                residuals = model.forward(
                    [*texts, *forcing.sequences],
                    n_logits=min(IDENTITY_PROMPTS, len(here)) if i == 0 else 0,
                    progress=lambda done, total, i=i: watcher.blocks(i * total + done, len(parts) * total),  # type: ignore[misc]
                    riding=riding,
                )
            with seconds.stage("sweep_s"):
                routing.add(here, residuals.routing)
                identity = identity_of(model, residuals) if once is None else once.identity
                here = with_outputs(
                    here,
                    residuals,
                    model,
                    final_is_model=identity.ok,
                    form_of_model=settings.protocol.form_of_model,
                )
                told += here
                if once is None:
                    once = _measured_once(model, here, settings, auxiliary, residuals, identity, watcher)
                queries = forcing.queries(here)
                columns = measure(
                    residuals.rows(forcing.decoded(len(texts), queries)),
                    settings.lenses,
                    queries,
                    model.unembedding,
                    protocol=settings.protocol,
                    trivial=trivial,
                    top_k=settings.top_k,
                    sweep_bytes=part.sweep_bytes,
                    final_is_model=identity.ok,
                    temperatures=once.temperatures,
                    work=seconds.work,
                    progress=lambda done, total, i=i: watcher.vocabulary(i * total + done, len(parts) * total),  # type: ignore[misc]
                )
            table, of_part = row_table(pl.DataFrame(columns), here, model, part.prompts.start)
            rows.add(table)
            health.append(of_part)
            del residuals, columns, table  # the next part needs their room
    if once is None:  # `encode` refuses a suite without prompts
        raise SuiteError("The suite holds no prompt; give it at least one fact.")
    return ProbeResult(rows, pl.concat(health), told, once.identity, once.measured, routing)


def _load_loops_ahead(model: CausalLM, encoded: Sequence[Encoded], settings: Settings) -> None:
    """Have the sweep's compiled loops at hand by the time the model has run, where there is enough for them to do."""
    positions = sum(len(prompt.positions) for prompt in encoded)
    if pays(positions * (model.n_layers + 1) * len(settings.lenses), model.unembedding):
        load_ahead()


def _measured_once(
    model: CausalLM,
    prompts: Sequence[Encoded],
    settings: Settings,
    auxiliary: AuxiliaryInputs,
    residuals: Residuals,
    identity: Identity,
    watcher: Observer,
) -> _Once:
    """What is found on the first batch, whose prompts these are."""
    batch = FirstBatch(residuals, len(prompts))
    analysis = PrimaryPromptAnalysis(model, prompts, settings.lenses, settings.protocol, auxiliary, batch, identity.ok)
    return _Once(identity, analysis.record(settings.second_forward, watcher.blocks), analysis.tau)
