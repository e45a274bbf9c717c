"""One run held against another of the same prompts: of another version, machine, checkpoint or setting."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.model_diff import FactDiff, SuiteDiff
from layerscope.analysis.onsets import layers_of_prompt
from layerscope.analysis.run_diff import ComparedRun, MilestoneMove, RunDiff, SettingDiff
from layerscope.analysis.verdict_json import json_text
from layerscope.diffing.run_tables import JoinedRows
from layerscope.errors import RunError
from layerscope.lens_record import utc_stamp
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord
from layerscope.record.store import new_folder
from layerscope.run_folder import read_run

_MADE_HOW = (
    *("source", "layerscope_version", "protocol", "model", "lens_sources", "flags", "provenance", "positions", "top_k"),
)
"""Parts of a record that say how a run was made, or what is to be known of that."""
_Prompts = list[tuple[PromptKey, PromptKey, str]]


@dataclass(frozen=True)
class RunDiffResult:
    """A comparison of two runs."""

    summary: RunDiff

    @property
    def json(self) -> str:
        """As JSON."""
        return json_text(self.summary)

    def save(self, path: str | Path) -> None:
        """Write a folder with `run-diff.json`, whole or not at all.

        Raises:
            RunError: the folder is already there, or cannot be written.
        """
        with new_folder(Path(path)) as folder:
            (folder / "run-diff.json").write_text(self.json, encoding="utf-8")


def diff_runs(base: str | Path | AnalysedRun, variant: str | Path | AnalysedRun) -> RunDiffResult:
    """Hold a run against another: every cell of the rows that both have, milestones, answers, and how both were made.

    Args:
        base: a run, its folder, or published files.
        variant: another of the same prompts.

    Raises:
        RunError: one cannot be read, or they have no prompt or no row in common.
    """
    ours, theirs = (run if isinstance(run, AnalysedRun) else read_run(run) for run in (base, variant))
    prompts = _same_prompts(ours.record, theirs.record)
    joined = JoinedRows(ours, theirs, prompts)
    counts = joined.counts()
    if not counts.both:
        raise RunError(
            f"Runs {ours.record.run_id} and {theirs.record.run_id} share prompts and have no lens, layer and position "
            "of them in common; nothing can be compared."
        )
    moves, n_milestones = _moves(ours, theirs, prompts)
    headlines = [run.milestones.headline for run in (ours, theirs)]
    same = headlines[0] == headlines[1]
    return RunDiffResult(
        RunDiff(
            layerscope_version=version("layerscope"),
            created_utc=utc_stamp(datetime.now(UTC)),
            base=_compared(ours.record),
            variant=_compared(theirs.record),
            n_prompts=len(prompts),
            n_rows=counts.both,
            n_rows_in_base_only=counts.base_only,
            n_rows_in_variant_only=counts.variant_only,
            settings=tuple(_settings(ours.record, theirs.record)),
            columns=tuple(joined.columns()),
            layers=joined.layers(),
            n_layers=(ours.record.model.n_layers, theirs.record.model.n_layers),
            milestones=moves,
            n_milestones=n_milestones,
            headline=headlines[0] if same else None,
            suite=_suite(ours, theirs, prompts) if same else None,
            notes=tuple(_notes(ours, theirs, prompts)),
        )
    )


def _compared(record: RunRecord) -> ComparedRun:
    return ComparedRun(record.model.id, record.run_id, record.created_utc, record.layerscope_version)


def _same_prompts(base: RunRecord, variant: RunRecord) -> _Prompts:
    """Prompts that are read as the same tokens, or as the same texts where a record has no tokens.

    Of several that are the same the first stands for the first of the other run, and so on.
    """
    by_ids = all(prompt.token_ids for record in (base, variant) for prompt in record.suite.prompts)
    found: list[dict[object, tuple[PromptKey, str]]] = []
    for record in (base, variant):
        of_record: dict[object, tuple[PromptKey, str]] = {}
        seen = Counter[object]()
        for prompt in record.suite.prompts:
            read = prompt.token_ids if by_ids else prompt.text
            told_by = (prompt.prompt_id, prompt.prompt_variant, prompt.fact_key, read)
            seen[told_by] += 1
            of_record[told_by, seen[told_by]] = (prompt.key, prompt.text or str(prompt.key))
        found.append(of_record)
    prompts = [(key, found[1][told_by][0], text) for told_by, (key, text) in found[0].items() if told_by in found[1]]
    if not prompts:
        raise RunError(
            f"Runs {base.run_id} and {variant.run_id} have no prompt in common, as the same fact in the same "
            f"{'tokens' if by_ids else 'words'}; take two runs of one suite and one tokenizer."
        )
    return prompts


def _settings(base: RunRecord, variant: RunRecord) -> Iterator[SettingDiff]:
    ours, theirs = (dict(_leaves(record.model_dump(mode="json", include=set(_MADE_HOW)))) for record in (base, variant))
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            yield SettingDiff(name, ours.get(name), theirs.get(name))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every entry that is no object, as JSON by its path; a list is one entry, and null is no entry."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif value is not None:
        yield path, json.dumps(value, ensure_ascii=False)


def _moves(base: AnalysedRun, variant: AnalysedRun, prompts: _Prompts) -> tuple[tuple[MilestoneMove, ...], int]:
    """Milestones that stand elsewhere, and how many both have a curve for."""
    moved, n = [], 0
    ours, theirs = base.milestones.by_curve, variant.milestones.by_curve
    lenses = dict.fromkeys(lens for _, lens in ours)
    for (key, other, text), lens in product(prompts, lenses):
        found, held = ours.get((key, lens), {}), theirs.get((other, lens), {})
        for name in [name for name in found if name in held]:
            n += 1
            if found[name].layer != held[name].layer:
                moved.append(MilestoneMove(name, lens, text, found[name].layer, held[name].layer))
    return tuple(moved), n


def _suite(base: AnalysedRun, variant: AnalysedRun, prompts: _Prompts) -> SuiteDiff | None:
    facts = [_fact(base, variant, *keys) for keys in prompts]
    known = tuple(fact for fact in facts if fact is not None)
    return SuiteDiff(base.record.suite.name, known) if any(fact.answer is not None for fact in known) else None


def _fact(base: AnalysedRun, variant: AnalysedRun, key: PromptKey, other: PromptKey, text: str) -> FactDiff | None:
    """What both say at the end of a prompt; None of a control, or where one of the two does not say."""
    said, held = base.diagnostics.outputs.get(key), variant.diagnostics.outputs.get(other)
    if not key.is_fact or said is None or held is None or said.top_token is None or held.top_token is None:
        return None
    answer = said.answer_text if said.answered is not None and held.answered is not None else None
    layers = [layers_of_prompt(run.milestones.of(prompt=of)) for run, of in ((base, key), (variant, other))]
    return FactDiff(
        prompt=text,
        fact=key.fact_index,
        kl_bits=None,
        base_top1=said.top_token,
        variant_top1=held.top_token,
        answer=answer,
        base_rank=None if answer is None else said.answer_rank,
        variant_rank=None if answer is None else held.answer_rank,
        base_onset=None if answer is None else layers[0].on_top_for_good,
        variant_onset=None if answer is None else layers[1].on_top_for_good,
    )


def _notes(base: AnalysedRun, variant: AnalysedRun, prompts: _Prompts) -> Iterator[str]:
    for which, run in (("base", base), ("variant", variant)):
        left = len(run.record.suite.prompts) - len(prompts)
        if left:
            yield f"{left} of the {which}'s {left + len(prompts)} prompts are not in the other run, and left out."
    ours, theirs = base.record, variant.record
    if ours.protocol.name != theirs.protocol.name or ours.protocol.version != theirs.protocol.version:
        yield (
            f"The two were judged under different definitions ({ours.protocol.name} {ours.protocol.version}, "
            f"{theirs.protocol.name} {theirs.protocol.version}); milestones of one name may mean other things."
        )
    if ours.model.n_layers != theirs.model.n_layers:
        yield (
            f"The base has {ours.model.n_layers} blocks and the variant {theirs.model.n_layers}; layers of one number "
            "are compared, which stand at another share of the depth."
        )
    if base.milestones.headline != variant.milestones.headline:
        yield (
            f"The headline lens of the base is {base.milestones.headline}, that of the variant "
            f"{variant.milestones.headline}; answers are not compared."
        )
    lenses = [set(run.record.protocol.lenses) for run in (base, variant)]
    for which, only in (("base", lenses[0] - lenses[1]), ("variant", lenses[1] - lenses[0])):
        if only:
            yield f"Of the {which} alone and not compared: {', '.join(sorted(only))}."
