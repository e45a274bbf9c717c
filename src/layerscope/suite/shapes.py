"""The shapes of records that published sets of facts have, and how one is recognised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerscope.suite.counterfact import is_counterfact, read_counterfact
from layerscope.suite.entries import WORDINGS
from layerscope.suite.harness_samples import is_harness_sample, read_harness_sample
from layerscope.suite.lama import is_lama, read_lama
from layerscope.suite.model_editing import is_easyedit, is_known, is_zsre, read_easyedit, read_known, read_zsre
from layerscope.suite.open_questions import is_open_question, read_open_question
from layerscope.suite.question import Fields, LeftOut, Place, Question
from layerscope.suite.relations import is_relation, read_relation


@dataclass(frozen=True)
class Shape:
    """A kind of record."""

    name: str
    known_by: str
    """The fields it is known by, as an error lists them."""
    fits: Callable[[Fields], bool]
    read: Callable[[Fields, Place], Sequence[Question | LeftOut]]
    has_wording: bool = False
    """Whether its records have a `prompt` or `template`, as a fact of a suite has."""


SHAPES = (
    Shape("CounterFact", "`requested_rewrite`, or `subject` and `target_true`", is_counterfact, read_counterfact, True),
    Shape("known_1000", "`subject`, `attribute` and `prompt`", is_known, read_known, True),
    Shape("zsRE", "`src` and `answers`", is_zsre, read_zsre),
    Shape("EasyEdit", "`prompt` and `ground_truth`", is_easyedit, read_easyedit, True),
    Shape("LAMA", "`sub_label` and `obj_label`", is_lama, read_lama, True),
    Shape("LRE", "`prompt_templates` and `samples`", is_relation, read_relation),
    Shape(
        "PopQA and other questions",
        "`question` and `possible_answers`, or `answer`",
        is_open_question,
        read_open_question,
    ),
    Shape("lm-eval samples", "`doc` and `arguments`", is_harness_sample, read_harness_sample),
)
"""In the order in which they are tried."""


def shape_of(fields: Fields) -> Shape | None:
    """The first shape that a record has, right or wrong; None for any other."""
    worded = bool(fields.keys() & set(WORDINGS))
    return next((shape for shape in SHAPES if (shape.has_wording or not worded) and shape.fits(fields)), None)


def known_shapes() -> str:
    """All shapes, for an error."""
    return "; ".join(f"{shape.name}: {shape.known_by}" for shape in SHAPES)
