"""What a page says of a run in words: the verdict with its reasons, and everything needed to repeat the run."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.record.measured import FittedLensRecord
from layerscope.record.milestone_names import ONSET, STRONG, MilestoneName, stable_twin
from layerscope.record.parts import FORM_IN_WORDS, PromptRecord
from layerscope.record.run_record import RunRecord
from layerscope.report.sentences.circumstances import definition_of_ahead
from layerscope.report.sentences.guidance import identity, probabilities, reporting
from layerscope.report.sentences.lines import LabelledLine, plural
from layerscope.report.sentences.verdict import P_IS, VerdictText
from layerscope.suite import builtin_suites

BUNDLED_ID = "layerscope/reference"
"""How records name the model that comes with the package; it is probed where none is named."""
_WEIGHTS = ("withheld", "caution", "unknown")
"""Labels that a page gives a look of their own."""


@dataclass(frozen=True)
class Depth:
    """Where one lens gets there, for a line from the embedding to the last layer."""

    lens: str
    headline: bool
    first: int | None
    """The answer is first on top."""
    for_good: int | None
    """From here to the output."""
    ahead: int | None
    """Clearly ahead for good."""
    cells: tuple[str, ...]
    """In the order of `VerdictWords.columns`."""


@dataclass(frozen=True)
class Sentence:
    """One thing that is said about a run."""

    label: str
    text: str
    weight: str = ""
    """`withheld`, `caution` or `unknown` of a reason against reporting; empty otherwise."""


@dataclass(frozen=True)
class Column:
    """The head of a table's column, and what stands under it."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Chip:
    """What bears on every number of a run, in a few words under the headline."""

    text: str
    look: str
    """`ok`, `failed`, `careful` or `plain`."""
    title: str
    """The whole of it."""
    leads_on: bool = False
    """Whether the verdict says more of it."""


@dataclass(frozen=True)
class VerdictWords:
    """A run's verdict in plain words."""

    headline: str
    chips: tuple[Chip, ...]
    model: str
    suite: str
    prompt: PromptRecord | None
    layer: int | float | None
    """The layer of the headline, over facts the median; None where none can be named."""
    n_layers: int
    lens: str
    quotable: str
    """What the probabilities of the headline lens are, layer by layer; empty where none stands."""
    suppressed: bool
    """Whether the guidance forbids quoting any of them."""
    ranked: bool
    """Whether ranks and layers may be reported."""
    reasons: tuple[Sentence, ...]
    lines: tuple[Sentence, ...]
    """What bears on the headline."""
    details: tuple[Sentence, ...]
    """More of the first fact, and plain facts of the run."""
    columns: tuple[Column, ...]
    depths: tuple[Depth, ...]


def verdict_words(run: AnalysedRun) -> VerdictWords:
    """The verdict on a run.

    Where the identity check failed, nothing that rests on a probability is said; where it casts doubt on ranks too, no
    layer is named at all.
    """
    record = run.record
    verdict = VerdictText(run.verdict, record)
    # What probabilities are has a place of its own here.
    summary = [line for line in verdict.summary() if line.label != P_IS] if verdict.names_layers else []
    said = reporting(run.guidance, run.diagnostics.headline, ranked=verdict.ranked)
    reasons = [line for line in said if line.label not in ("reporting", "detail")]
    blind = verdict.blindness()
    summary = [*([LabelledLine("before that", blind)] if blind else []), *summary]
    details = [*verdict.strength(), *verdict.circumstances()] if verdict.names_layers else []
    details += [line for line in said if line.label == "detail"]
    stands = verdict.trusted and not run.guidance.suppress_abs_probs
    quotable = probabilities(run.diagnostics.quotability, run.diagnostics.headline) if stands else ""
    return VerdictWords(
        headline=verdict.statement(),
        chips=tuple(_chips(run, reasons, ranked=verdict.ranked)),
        model=record.model.id,
        suite=record.suite.name,
        prompt=verdict.prompt,
        layer=verdict.layer(),
        n_layers=record.model.n_layers,
        lens=run.diagnostics.headline,
        quotable=quotable and f"Probabilities under {run.diagnostics.headline}: {quotable}.",
        suppressed=run.guidance.suppress_abs_probs,
        ranked=verdict.ranked,
        reasons=tuple(
            Sentence(line.label, line.text, line.label if line.label in _WEIGHTS else "") for line in reasons
        ),
        lines=tuple(_by_label(summary)),
        details=tuple(_by_label(details)),
        columns=tuple(_column(header, name, verdict) for header, name in verdict.columns.items()),
        depths=tuple(_depth(verdict, lens) for lens in record.protocol.lenses) if verdict.names_layers else (),
    )


def _column(header: str, name: str, verdict: VerdictText) -> Column:
    ahead = definition_of_ahead(verdict.thresholds)
    meanings = {
        str(ONSET): "The first layer at which the answer has rank 1.",
        stable_twin(ONSET): "From this layer on the answer has rank 1 at every layer.",
        str(STRONG): f"The first layer at which it is {ahead}.",
        stable_twin(STRONG): f"From this layer on it is {ahead}.",
        str(MilestoneName.LOW_ENTROPY): "The first layer whose distribution has no more entropy than this, in bits.",
    }
    kl = "The first layer whose distribution is this near to the model's output, in bits."
    return Column(header.replace("<=", "≤"), meanings.get(name, kl))


def _chips(run: AnalysedRun, reasons: Sequence[LabelledLine], *, ranked: bool) -> Iterator[Chip]:
    check, whole = run.record.identity, f"Identity check: {identity(run.record)}"
    if check is None:
        yield Chip("No identity check", "plain", whole)
    else:
        yield Chip(f"Identity check {'passed' if check.ok else 'failed'}", "ok" if check.ok else "failed", whole)
    if not ranked:
        yield Chip("Report nothing of this run", "failed", whole)
    elif run.guidance.suppress_abs_probs:
        yield Chip("Report ranks and layers, not probabilities", "careful", "The guidance on this run says why.", True)
    cautions = [line.text for line in reasons if line.label in ("withheld", "caution")]
    if ranked:
        n = len(cautions)
        told = f"{n} {plural('caution', n)}" if n else "No caution"
        yield Chip(told, "careful" if n else "ok", "; ".join(cautions) or "No caution holds.", bool(reasons))
    bos = run.record.model.bos
    if bos is not None:
        begins = "Prompts begin with BOS" if bos.id is not None else "Prompts begin without BOS"
        yield Chip(begins, "plain", f"What begins a prompt: {bos.note}")
    prompt = run.record.prompt(run.diagnostics.primary)
    judged = None if prompt is None else prompt.judged_answer
    if judged is not None and judged.ok and judged.variant != "unknown":
        form = FORM_IN_WORDS[judged.variant]
        yield Chip(f"Answer judged {form}", "plain", f"The primary prompt's answer is looked for {form}.")


def _by_label(lines: Sequence[LabelledLine]) -> Iterator[Sentence]:
    """Lines of one label drawn together."""
    texts: dict[str, list[str]] = {}
    label = ""
    for line in lines:
        label = line.label or label
        texts.setdefault(label, []).append(line.text)
    for label, of_label in texts.items():
        yield Sentence(label, "; ".join(of_label))


def _depth(verdict: VerdictText, lens: str) -> Depth:
    cells = verdict.cells(lens)
    named = zip(verdict.columns.values(), cells, strict=True)
    at = {name: int(cell) for name, cell in named if cell.isdigit()}
    return Depth(
        lens=lens,
        headline=lens == verdict.diagnostics.headline,
        first=at.get(ONSET),
        for_good=at.get(stable_twin(ONSET)),
        ahead=at.get(stable_twin(STRONG)),
        cells=tuple(cells),
    )


@dataclass(frozen=True)
class Fact:
    """One line of a run's provenance."""

    name: str
    value: str


@dataclass(frozen=True)
class Origin:
    """With what a run was made, and how to make it again."""

    command: str
    exact: bool
    """Whether the command repeats this very run; else it asks the same of the same model."""
    note: str
    """What to know before the command is run; empty where there is nothing."""
    groups: Mapping[str, tuple[Fact, ...]]


def origin(run: AnalysedRun) -> Origin:
    """Everything needed to repeat a run."""
    record = run.record
    local = record.model.commit is None and record.source == "layerscope" and record.model.id != BUNDLED_ID
    notes = []
    if record.source == "published":
        notes.append(
            "The run was read from published files, which do not hold the command that made it; this one asks the same "
            "model under the same definitions."
        )
    if local:
        notes.append(f"The model was read from a folder named {record.model.id}; give the path of that folder.")
    if record.source == "layerscope" and record.suite.name not in builtin_suites():
        notes.append("The suite is none of the built-in ones; give the path of its file.")
    return Origin(command(record), record.source == "layerscope", " ".join(notes), _groups(run))


def command(record: RunRecord) -> str:
    """The shell command that asks again what a record says was asked."""
    words = ["layerscope", "probe"]
    if record.model.id != BUNDLED_ID:
        words.append(record.model.id)
    published = record.source == "published"
    revision = record.model.commit or record.model.revision
    made = record.provenance
    options: dict[str, str | None] = {
        "suite": "berlin" if published else record.suite.name,
        "protocol": record.protocol.name if record.protocol.name != "standard" else None,
        "lens": None if published else ",".join(record.protocol.lenses),
        "positions": record.positions,
        "top-k": None if record.top_k is None else str(record.top_k),
        "revision": revision,
        "device": None if made is None or published else made.device,
        "dtype": None if made is None or published else made.dtype_compute,
        "seed": None if made is None else str(made.seed),
    }
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", value]
    if record.model.trust_remote_code:
        words.append("--trust-remote-code")
    return shlex.join(words)


def _groups(run: AnalysedRun) -> Mapping[str, tuple[Fact, ...]]:
    record = run.record
    groups = {
        "Run": _run_facts(run),
        "Model": _model_facts(record),
        "Asked": _asked_facts(record),
        "Machine": _machine_facts(record),
        "Fitted lenses": _named({lens.kind: _lens_state(lens) for lens in record.measured.fitted_lenses}),
        "Missing or damaged": _named(
            {
                problem.file + ("" if problem.row is None else f", row {problem.row}"): problem.message
                for problem in record.problems[:20]
            }
        ),
    }
    return {name: facts for name, facts in groups.items() if facts}


def _named(values: Mapping[str, object]) -> tuple[Fact, ...]:
    return tuple(Fact(name, str(value)) for name, value in values.items() if value is not None)


def _facts(**values: object) -> tuple[Fact, ...]:
    """Facts by their names, with spaces for underscores; what is None is left out."""
    return _named({name.replace("_", " "): value for name, value in values.items()})


def _run_facts(run: AnalysedRun) -> tuple[Fact, ...]:
    record = run.record
    seconds = None if record.timings is None else f"{record.timings.total_s:.1f}"
    return (
        *_facts(id=record.run_id, begun=record.created_utc, layerscope=record.layerscope_version),
        *_facts(source=record.source, schema=record.schema_version, positions=record.positions),
        *_facts(top_k=record.top_k, rows=f"{run.n_rows:,}", seconds=seconds),
    )


def _model_facts(record: RunRecord) -> tuple[Fact, ...]:
    model = record.model
    parameters = None if model.n_parameters is None else f"{model.n_parameters:,}"
    return (
        *_facts(id=model.id, commit=model.commit, revision=model.revision, family=model.family),
        *_facts(layers=model.n_layers, width=model.d_model, vocabulary=f"{model.d_vocab:,}", parameters=parameters),
        *_facts(stored_as=model.stored_dtype, first_token=None if model.bos is None else model.bos.note),
        *_facts(fingerprint=model.fingerprint, tokenizer=model.tokenizer_sha256),
    )


def _asked_facts(record: RunRecord) -> tuple[Fact, ...]:
    suite, protocol = record.suite, record.protocol
    return (
        *_facts(suite=suite.name, about=suite.description, suite_sha256=suite.sha256, prompts=len(suite.prompts)),
        *_facts(protocol=f"{protocol.name} {protocol.version}", lenses=", ".join(protocol.lenses)),
        *_facts(headline_lens=protocol.headline_lens),
    )


def _machine_facts(record: RunRecord) -> tuple[Fact, ...]:
    made = record.provenance
    if made is None:
        return ()
    deterministic = "yes" if made.deterministic_algorithms else "no"
    return (
        *_facts(device=made.device_name or made.device, computed_in=made.dtype_compute, seed=made.seed),
        *_facts(deterministic=deterministic, threads=made.threads, Python=made.python, PyTorch=made.torch),
        *_facts(Transformers=made.transformers, Polars=made.polars, NumPy=made.numpy, CUDA=made.cuda_version),
        *_facts(platform=made.platform),
    )


def _lens_state(lens: FittedLensRecord) -> str:
    weights = f" · weights {lens.weights_sha256}" if lens.weights_sha256 else ""
    return f"{lens.status}{f': {lens.reason}' if lens.reason else ''}{weights}"
