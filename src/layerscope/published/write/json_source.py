"""What the blocks of a published JSON are made of: a run, what it amounts to, and the names that the format uses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.curve import Curve
from layerscope.analysis.diagnostics import Diagnostics, protocol_in_force
from layerscope.analysis.milestones import Milestones, layer_of
from layerscope.published.layout import EXTENDED, HEADLINE, PUBLISHED_LENS_NAMES, Dialect, stem_of
from layerscope.published.members import Member, block_of
from layerscope.record.milestone_names import ONSET
from layerscope.record.parts import AlignmentRecord, PromptRecord
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import RunRecord

Tree: TypeAlias = dict[str, Any]
"""An object of the JSON."""


def pointer(*keys: str | int) -> str:
    """A JSON pointer to the one place where a block stands, as a URI fragment (RFC 6901, section 6)."""
    return "#" + "".join(f"/{key}" for key in keys)


def label_of(lens: str) -> str:
    """What a lens is called in keys and cells; published files say `norm` for the next block's norm."""
    return PUBLISHED_LENS_NAMES.get(lens, lens)


@dataclass(frozen=True)
class Source:
    """One run for one dialect."""

    run: AnalysedRun
    dialect: Dialect

    @property
    def record(self) -> RunRecord:
        """Everything of the run that is not a row."""
        return self.run.record

    @property
    def diagnostics(self) -> Diagnostics:
        """Everything about the primary prompt but its milestones."""
        return self.run.diagnostics

    @property
    def extended(self) -> bool:
        """Whether blocks say more than published ones do, and each stands in one place alone."""
        return self.dialect is EXTENDED

    @property
    def stem(self) -> str:
        """The model as files are named after it."""
        return stem_of(self.record.model.id)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.record.model.n_layers

    @cached_property
    def thresholds(self) -> Thresholds:
        """Those that the run was judged by."""
        return protocol_in_force(self.record).thresholds

    @property
    def headline(self) -> str:
        """The lens that keys without a lens mean."""
        return self.diagnostics.headline

    @property
    def label(self) -> str:
        """What the headline lens is called in keys and cells."""
        return label_of(self.headline)

    @property
    def curve(self) -> Curve | None:
        """The primary prompt under the headline lens."""
        return self.curve_of(self.headline)

    def curve_of(self, lens: str) -> Curve | None:
        """The primary prompt under a lens; None where it was not read."""
        return self.run.verdict.curves.get(self.diagnostics.primary, lens)

    @property
    def milestones(self) -> Milestones:
        """The milestones of the primary prompt under the headline lens."""
        return self.run.milestones.of()

    def layer(self, milestone: str) -> int | None:
        """The layer of such a milestone."""
        return layer_of(self.milestones, milestone)

    def named(self, milestone: str) -> str:
        """A milestone of the headline lens as keys and cells call it."""
        return f"{ONSET}_{self.label}" if milestone == ONSET else milestone

    def summarised_lenses(self) -> Iterator[tuple[str, Curve, Milestones]]:
        """Name, curve and milestones of the lenses whose summaries stand side by side, under keys that end in the name.

        The headline lens, then the one that published files mean by `norm`, where that is another one and was read.
        """
        for lens in dict.fromkeys((self.headline, HEADLINE)):
            curve = self.curve_of(lens)
            if curve is not None:
                yield label_of(lens), curve, self.run.milestones.of(lens)

    @property
    def primary_prompt(self) -> PromptRecord | None:
        """The prompt that blocks are about unless they say otherwise."""
        return self.record.prompt(self.diagnostics.primary)

    @cached_property
    def control(self) -> PromptRecord | None:
        """The control; None where the suite has none."""
        return next((prompt for prompt in self.record.suite.prompts if prompt.prompt_id != "pos"), None)

    def block(self, table: Sequence[Member], value: object, **names: str) -> Tree:
        """Attributes of a value under the keys of a block; `{lens}` in a key is the headline lens by default."""
        return block_of(table, value, self.dialect, **{"lens": self.label, **names})

    def known(self, table: Sequence[Member], value: object) -> Tree | None:
        """The same; None where there is no value."""
        return None if value is None else self.block(table, value)


def gold_of(prompt: PromptRecord | None) -> AlignmentRecord | None:
    """The first accepted answer, which is the gold one; None where there is none."""
    return None if prompt is None else next(iter(prompt.answers), None)
