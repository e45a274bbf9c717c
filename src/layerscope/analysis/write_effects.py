"""Effects of replaced writes over pairs, and how their order agrees with that of shares."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import polars as pl

from layerscope.analysis.writers import ATTENTION, MLP, spearman
from layerscope.record import write_patches
from layerscope.record.by_layer import ByLayer
from layerscope.record.patches import NEXT, SUBJECT
from layerscope.record.write_patching import HeadEffectRecord, WriteEffectsRecord, WritePatchingRecord

_SITES = {ATTENTION: write_patches.ATTN, MLP: write_patches.MLP}


@dataclass(frozen=True)
class Effect:
    """One write, and what replacing it does, beside its share."""

    part: str
    """`attention`, `MLP`, or the number of a head, counted from 0."""
    layer: int
    """The layer that its block writes, from 1."""
    effect: float
    """Median over pairs, a share of the logit difference between both facts."""
    n_positive: int
    """In how many pairs it is above zero,"""
    n_known: int
    """of those in which it is known."""


def effects(found: WritePatchingRecord) -> list[Effect]:
    """Attention and MLP of every block at the prompt's last token, the largest effect by size first."""
    listed = [
        Effect(part, layer, effect, positive or 0, known or 0)
        for part, of in ((ATTENTION, found.attention), (MLP, found.mlp))
        for layer, (effect, positive, known) in enumerate(zip(of.next, of.n_positive, of.n_known, strict=True))
        if effect is not None
    ]
    return sorted(listed, key=lambda one: -abs(one.effect))


def at_subject(found: WritePatchingRecord) -> list[tuple[str, int, float]]:
    """Part, layer and median effect at the subject, the largest by size first; nothing where none was patched there."""
    listed = [
        (part, layer, effect)
        for part, of in ((ATTENTION, found.attention), (MLP, found.mlp))
        for layer, effect in enumerate(of.subject)
        if effect is not None
    ]
    return sorted(listed, key=lambda one: -abs(one[2]))


def of_table(
    table: pl.DataFrame,
    n_layers: int,
    shares: pl.DataFrame,
    *,
    prompt_variant: str,
    n_pairs_left: int,
    self_patch_logit_change: float | None,
) -> WritePatchingRecord:
    """Medians over pairs.

    Args:
        table: the columns of `layerscope.record.write_patches`, of at least one pair.
        n_layers: of the model.
        shares: the columns of `layerscope.record.writers`: shares of each prompt.
        prompt_variant: the wording that was patched.
        n_pairs_left: how many patched pairs are not in the table.
        self_patch_logit_change: what came of a run's own writes.
    """
    own = shares.filter(
        pl.col("fact_index").is_in(table["base"].unique().to_list()),
        kind="dla",
        prompt_id="pos",
        prompt_variant=prompt_variant,
    )
    parts = {part: _of_part(table.filter(site=site), n_layers) for part, site in _SITES.items()}
    whole = {part: _mean_shares(own.filter(site=site), n_layers) for part, site in _SITES.items()}
    return WritePatchingRecord(
        prompt_variant=prompt_variant,
        n_pairs=table["pair"].n_unique(),
        n_facts=len({*table["base"].unique(), *table["source"].unique()}),
        n_pairs_left=n_pairs_left,
        n_subject_pairs=table.filter(place=SUBJECT)["pair"].n_unique(),
        n_patches=len(table),
        attention=parts[ATTENTION],
        mlp=parts[MLP],
        heads=_heads(table.filter(site=write_patches.HEAD, place=NEXT), own.filter(site="head")),
        spearman_of_shares=_agreement(whole.values(), [of.next for of in parts.values()]),
        spearman_of_direct=_agreement([of.direct for of in parts.values()], [of.next for of in parts.values()]),
        self_patch_logit_change=self_patch_logit_change,
    )


def found_again(record: WritePatchingRecord, table: pl.DataFrame, shares: pl.DataFrame | None) -> WritePatchingRecord:
    """The same of a run's tables; what rests on shares is as the record has it where their table is not at hand.

    Args:
        record: what the run says.
        table: as in `of_table`.
        shares: as in `of_table`; None where only the record has them.
    """
    n_layers = len(record.attention.next) - 1
    if shares is not None:
        return of_table(
            table,
            n_layers,
            shares,
            prompt_variant=record.prompt_variant,
            n_pairs_left=record.n_pairs_left,
            self_patch_logit_change=record.self_patch_logit_change,
        )
    parts = {part: _of_part(table.filter(site=site), n_layers) for part, site in _SITES.items()}
    direct = _agreement([of.direct for of in parts.values()], [of.next for of in parts.values()])
    found = {"attention": parts[ATTENTION], "mlp": parts[MLP], "spearman_of_direct": direct, "n_patches": len(table)}
    return record.model_copy(update=found)


def same_effects(table: pl.DataFrame, record: WritePatchingRecord) -> bool:
    """Whether a table gives the medians of a record, to rounding."""
    n_layers = len(record.attention.next) - 1
    found = {part: _of_part(table.filter(site=site), n_layers) for part, site in _SITES.items()}
    return all(
        np.allclose(np.array(ours, float), np.array(theirs, float), rtol=1e-9, atol=1e-12, equal_nan=True)
        for part, of in ((ATTENTION, record.attention), (MLP, record.mlp))
        for ours, theirs in ((found[part].next, of.next), (found[part].direct, of.direct))
    )


def largest_heads(shares: pl.DataFrame, bases: Sequence[int], prompt_variant: str, n: int) -> list[tuple[int, int]]:
    """Layer and number of the heads with the largest mean shares by size, largest first.

    Args:
        shares: the columns of `layerscope.record.writers`.
        bases: `fact_index` of the facts that are asked about.
        prompt_variant: their wording.
        n: how many at most.
    """
    own = shares.filter(
        pl.col("fact_index").is_in(bases), kind="dla", site="head", prompt_id="pos", prompt_variant=prompt_variant
    )
    means = own.group_by("layer", "head").agg(pl.col("logit_difference").mean().abs()).drop_nulls()
    ranked = means.sort(["logit_difference", "layer", "head"], descending=[True, False, False]).head(n)
    return list(zip(ranked["layer"].to_list(), ranked["head"].to_list(), strict=True))


def _of_part(table: pl.DataFrame, n_layers: int) -> WriteEffectsRecord:
    at_next, at_subject = table.filter(place=NEXT), table.filter(place=SUBJECT)
    positive = dict(at_next.group_by("layer").agg((pl.col("effect") > 0).sum()).iter_rows())
    known = dict(at_next.group_by("layer").agg(pl.col("effect").count()).iter_rows())
    return WriteEffectsRecord(
        next=_medians(at_next, "effect", n_layers),
        n_positive=(None, *(positive.get(layer) for layer in range(1, n_layers + 1))),
        n_known=(None, *(known.get(layer) for layer in range(1, n_layers + 1))),
        direct=_medians(at_next, "direct", n_layers),
        subject=_medians(at_subject, "effect", n_layers) if len(at_subject) else (),
    )


def _medians(table: pl.DataFrame, column: str, n_layers: int) -> ByLayer:
    found = dict(table.group_by("layer").agg(pl.col(column).median()).iter_rows())
    return (None, *(found.get(layer) for layer in range(1, n_layers + 1)))


def _mean_shares(shares: pl.DataFrame, n_layers: int) -> ByLayer:
    found = dict(shares.group_by("layer").agg(pl.col("logit_difference").mean()).iter_rows())
    return (None, *(found.get(layer) for layer in range(1, n_layers + 1)))


def _heads(table: pl.DataFrame, shares: pl.DataFrame) -> tuple[HeadEffectRecord, ...]:
    found = []
    for (layer, head), here in table.group_by("layer", "head", maintain_order=True):
        known = here["effect"].drop_nulls()
        own = shares.filter(layer=layer, head=head)["logit_difference"].drop_nulls()
        if len(known) and len(own):
            found.append(
                HeadEffectRecord(
                    layer=int(str(layer)),
                    head=int(str(head)),
                    share=fmean(own),
                    effect=float(np.median(known)),
                    n_positive=int((known > 0).sum()),
                )
            )
    return tuple(sorted(found, key=lambda one: -abs(one.share)))


def _agreement(first: Iterable[ByLayer], second: Iterable[ByLayer]) -> float | None:
    """Rank correlation of the values that both have."""
    both = [
        (a, b)
        for ours, theirs in zip(first, second, strict=True)
        for a, b in zip(ours, theirs, strict=True)
        if a is not None and b is not None
    ]
    if not both:
        return None
    a, b = np.array(both, dtype=np.float64).T
    return spearman(a, b)
