"""Which single write moves the answer most, run by run, and how far shares agree with what writes do."""

from collections.abc import Sequence

from layerscope.analysis.write_effects import Effect, effects
from layerscope.analysis.writers import ATTENTION
from layerscope.record.write_patching import WritePatchingRecord
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Name, Section, paragraph, sentence
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.words import Value, of_runs, run_table

HEADER = "facts | pairs | write | layer | depth | effect | rank correlation with shares"


def writes(run: Compared) -> WritePatchingRecord | None:
    """What single writes do in a run; None where none was put into another."""
    return run.evidence.run.write_effects


def largest(run: Compared) -> Effect | None:
    """The write that moves the answer most; None where none was put into another run, or nothing is known of them."""
    found = writes(run)
    return None if found is None else next(iter(effects(found)), None)


def writes_section(runs: Sequence[Compared]) -> tuple[Section, ...]:
    """One section; none where no run has single writes."""
    several = [run for run in runs if largest(run) is not None]
    if not several:
        return ()
    others = [run for run in runs if run not in several]
    note = sentence(
        "What attention or MLP of one block writes, put from one fact's run into another's at the last token, by "
        "itself: the write with the largest effect by size, as the median over pairs, and over all of them Spearman's "
        "rank correlation of effects with shares of the answers' lead."
    )
    about = [note, of_runs("No write was put into another run in {}.", others)]
    return (Section("Which writes move the answer?", (run_table(several, HEADER, _cells), paragraph(*about))),)


def _cells(run: Compared) -> list[Value]:
    found, most = writes(run), largest(run)
    if found is None or most is None:
        return [None] * len(HEADER.split("|"))
    key = "attention" if most.part == ATTENTION else "mlp"
    effect = _stated(run, "effect", most.effect, Unit.NUMBER, key, "next", most.layer)
    return [
        _stated(run, "n_facts", found.n_facts, Unit.COUNT, "n_facts"),
        _stated(run, "n_pairs", found.n_pairs, Unit.COUNT, "n_pairs"),
        Name(most.part),
        Name(str(most.layer)),
        _depth(run, effect, most.layer),
        effect,
        _stated(run, "spearman_of_shares", found.spearman_of_shares, Unit.NUMBER, "spearman_of_shares"),
    ]


def _stated(run: Compared, name: str, value: float | None, unit: Unit, *path: str | int) -> Claim | None:
    return None if value is None else run.agreed(name, value, unit, ("write_patching", *path), how="median over pairs")


def _depth(run: Compared, effect: Claim | None, layer: int) -> Claim | None:
    size = run.size()
    if effect is None or size is None:
        return None
    return run.derived("write_frac", round(layer / run.n_layers, 3), Unit.SHARE, [effect, size], "layer / n_layers")
