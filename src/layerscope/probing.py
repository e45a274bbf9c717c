"""The whole river for one model and one suite: prompts, one streamed pass, one sweep, rows, a Run."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import polars as pl
import torch

from layerscope.describe import Settings, describe_run
from layerscope.encode import Encoded, encode
from layerscope.errors import LensError, ModelError, PlacementError, SuiteError
from layerscope.lenses import bind_lenses, lens_names
from layerscope.model.causal_lm import BUNDLED, CausalLM
from layerscope.model.identity import TOLERANCE_BITS, TOLERANCE_BITS_BF16, Identity, check_identity
from layerscope.model.placement import format_bytes
from layerscope.plan import IDENTITY_PROMPTS, Part, plan_line, plan_memory, planned_bytes
from layerscope.readout.measure import measure
from layerscope.record.protocol import protocol_of
from layerscope.record.rows import rows_frame
from layerscope.record.run import Run, TimingsRecord
from layerscope.residuals import Residuals, read_residuals
from layerscope.suite import Suite, load_suite

log = logging.getLogger(__name__)


@runtime_checkable
class Observer(Interface):
    """Is told how a probe goes; the command line draws it, a script may leave it out."""

    def plan(self, text: str) -> None:
        """One line on what will be done, before any work."""

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the model that have run."""

    def vocabulary(self, done: int, total: int) -> None:
        """Ids of the vocabulary that have been swept."""


class Silent:
    """An observer that only logs the plan."""

    def plan(self, text: str) -> None:
        """Log it."""
        log.info(text)

    def blocks(self, done: int, total: int) -> None:
        """Nothing."""

    def vocabulary(self, done: int, total: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Opening:
    """How a model is opened, with the defaults of `CausalLM.open`."""

    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    memory: int | str | None = None
    trust_remote_code: bool = False
    bos: str = "auto"


@dataclass
class Seconds:
    """Wall time by stage; a stage may run several times."""

    began: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=lambda: {"forward_s": 0.0, "sweep_s": 0.0})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` to a stage."""
        start = time.perf_counter()
        yield
        self.stages[name] += time.perf_counter() - start

    def timings(self) -> TimingsRecord:
        """Totals so far; what is neither forward nor sweep is start."""
        total = time.perf_counter() - self.began
        return TimingsRecord(start_s=max(0.0, total - sum(self.stages.values())), total_s=total, **self.stages)


def probe(
    model: str | Path | CausalLM = BUNDLED,
    *,
    suite: str | Path | Suite = "capitals",
    lenses: str | Sequence[str] | None = None,
    positions: str = "auto",
    top_k: int = 20,
    protocol: str = "standard",
    device: str = "auto",
    dtype: str = "auto",
    memory: int | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    bos: str = "auto",
    seed: int = 316,
    observer: Observer | None = None,
) -> Run:
    """Probe a model with a suite and return every number of every layer.

    Args:
        model: a folder, a Hub id, or an open model; the bundled one by default.
        suite: a built-in name, a TOML or JSONL file, or a `Suite`.
        lenses: names of lenses, or one text with commas between; all that need no fitting by default.
        positions: `auto` (every position of the first prompt, the last of the others), `last` or `all`.
        top_k: how many of the largest logits a row lists.
        protocol: `standard` or `published`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, or `bfloat16` on CUDA.
        memory: budget for working memory, in bytes or as `4GiB`; half of what is free by default.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run Python code that comes with the checkpoint.
        bos: `auto` (by family), `yes` or `no`: whether prompts start with BOS.
        seed: of every generator; recorded.
        observer: is told the plan and the progress.

    Raises:
        LayerscopeError: whatever cannot be done, each by its own class (see `layerscope.errors`).
    """
    seconds, created = Seconds(), datetime.now(UTC)
    watcher = observer or Silent()
    rules = protocol_of(protocol)
    if isinstance(lenses, str):
        lenses = [name.strip() for name in lenses.split(",")]
    names = tuple(lenses) if lenses is not None else lens_names()
    if names and rules.headline not in names:
        rules = replace(rules, headline=names[0])  # recorded, and said in every table
    if top_k < 1:
        raise LensError(f"top_k should be at least 1, but it is {top_k}.")
    if not -(2**63) <= seed < 2**63:
        raise LensError(f"A seed is a 64-bit integer, but it is {seed}.")
    asked_suite = suite if isinstance(suite, Suite) else load_suite(suite)
    opening = Opening(revision, device, dtype, memory, trust_remote_code, bos)
    if not isinstance(model, CausalLM):
        model = CausalLM.open(model, **asdict(opening))
    elif opening != Opening():
        raise ModelError(
            "An open model has its device, dtype, memory, revision, code and BOS already; give those to CausalLM.open."
        )
    encoded = encode(asked_suite, model, positions)
    bound = bind_lenses(names, final_norm=model.final_norm, next_norms=model.next_norms)
    settings = Settings(rules, bound, positions, top_k, seed)
    with reproducible(seed, model.placement.device), torch.inference_mode():
        parts = plan_memory(model, encoded, len(bound), top_k)
        watcher.plan(plan_line(model, parts, asked_suite))
        try:
            measured, identity = _river(model, encoded, settings, parts, seconds, watcher)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise PlacementError(
                f"The memory of {model.placement.device} ran out, although the plan of "
                f"{format_bytes(planned_bytes(parts))} was within the budget; "
                "give a smaller --memory, so that the work is cut into smaller parts."
            ) from error
    rows, health = _rows(measured, encoded, model)
    record = describe_run(
        model,
        asked_suite,
        encoded,
        settings,
        identity=identity,
        health=health,
        planned_bytes=planned_bytes(parts),
        created=created,
        timings=seconds.timings(),
    )
    return Run(rows, record)


def _river(
    model: CausalLM,
    encoded: Sequence[Encoded],
    settings: Settings,
    parts: Sequence[Part],
    seconds: Seconds,
    watcher: Observer,
) -> tuple[pl.DataFrame, Identity]:
    """Forward and sweep, part by part; the identity check is made on the first."""
    frames: list[pl.DataFrame] = []
    identity: Identity | None = None
    for i, part in enumerate(parts):
        here = encoded[part.prompts]
        with seconds.stage("forward_s"):
            residuals, logits = read_residuals(
                model,
                [e.token_ids for e in here],
                n_logits=IDENTITY_PROMPTS if identity is None else 0,
                progress=lambda done, total, i=i: watcher.blocks(i * total + done, len(parts) * total),  # type: ignore[misc]
            )
        with seconds.stage("sweep_s"):
            if identity is None:
                identity = _check(model, residuals, logits)
            del logits
            columns = measure(
                residuals.select([e.positions for e in here]),
                settings.lenses,
                [e.asked for e in here],
                model.unembedding,
                protocol=settings.protocol,
                trivial=model.tokens.trivial,
                top_k=settings.top_k,
                sweep_bytes=part.sweep_bytes,
                final_is_model=identity.ok,
                progress=lambda done, total, i=i: watcher.vocabulary(i * total + done, len(parts) * total),  # type: ignore[misc]
            )
        frame = pl.DataFrame(columns)
        frames.append(frame.with_columns(pl.col("prompt") + part.prompts.start))
        del residuals, columns  # the next part needs their room
    if identity is None:  # `encode` refuses a suite without prompts
        raise SuiteError("The suite holds no prompt; give it at least one fact.")
    return pl.concat(frames), identity


def _check(model: CausalLM, residuals: Residuals, logits: torch.Tensor) -> Identity:
    exact = model.placement.dtype == torch.float32
    return check_identity(
        model.unembedding,
        residuals.last()[:IDENTITY_PROMPTS],
        logits,
        tolerance_bits=TOLERANCE_BITS if exact else TOLERANCE_BITS_BF16,
    )


def _rows(measured: pl.DataFrame, encoded: Sequence[Encoded], model: CausalLM) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The table of a run, strings beside ids; and what numeric health is judged by."""
    prompts = pl.DataFrame(
        {
            "prompt": range(len(encoded)),
            "fact_key": pl.Series([e.prompt.fact_key for e in encoded], dtype=pl.String),
            "fact_index": pl.Series([e.prompt.fact_index for e in encoded], dtype=pl.Int32),
            "prompt_id": [e.prompt.prompt_id for e in encoded],
            "prompt_variant": [e.prompt.prompt_variant for e in encoded],
            "accepted": [list(e.prompt.answers) for e in encoded],
        }
    )
    ids = measured.select(
        pl.concat([pl.col("top_ids").explode(), pl.col("token_id"), pl.col("top1_id")]).unique().drop_nulls()
    )
    strings = model.tokens.display(ids.to_series().to_list())
    old, new = list(strings), list(strings.values())

    def text(column: pl.Expr) -> pl.Expr:
        return column.cast(pl.Int64).replace_strict(old, new, default=None, return_dtype=pl.String)

    table = measured.join(prompts, on="prompt", maintain_order="left").with_columns(
        text(pl.col("token_id")).alias("token"),
        text(pl.col("top1_id")).alias("top1"),
        pl.col("top_ids").list.eval(text(pl.element())).alias("top_tokens"),
    )
    # An answer that could not be aligned has no id; whether the top token spells it can still be said.
    spelled = pl.col("top1").str.strip_chars().is_in(pl.col("accepted"))
    table = table.with_columns(pl.coalesce("is_answer", spelled).alias("is_answer"))
    health = table.select("prompt", "lens", "layer", "is_next", "any_nan", "any_inf", "max_abs_logit", "min_prob")
    own = table.drop("prompt", "accepted", "any_nan", "any_inf", "max_abs_logit", "min_prob")
    return rows_frame({name: own[name] for name in own.columns}), health


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every generator and ask for deterministic kernels; afterwards the CPU's state is as it was."""
    if device.type == "cuda":  # without it CUDA's matrix products refuse to be deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    state, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # it would write every buffer once more
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(state)
