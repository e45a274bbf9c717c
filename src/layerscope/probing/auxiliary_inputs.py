"""Texts that go through the model behind a suite's prompts: test prompts, and passages to fit temperatures on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerscope.model.causal_lm import CausalLM
from layerscope.probing.encode import Encoded
from layerscope.probing.outcome import Absent, reasons, value_of
from layerscope.record.protocol import Protocol
from layerscope.suite.auxiliary_texts import calibration_passage, published_test_prompts

CALIBRATION_ROWS = 8
"""Positions of the passage at which temperatures are fitted; each is decoded at every layer."""
LONGEST_PASSAGE = 48
"""Tokens of it at most; prompts are padded to the longest text, so it should not outgrow them by much."""
SHORTEST_PASSAGE = 2 * CALIBRATION_ROWS


@dataclass(frozen=True)
class Passage:
    """A text that temperatures are fitted on."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class AuxiliaryInputs:
    """Texts that go through the model behind the prompts of the first batch."""

    test_prompts: tuple[tuple[str, tuple[int, ...]], ...]
    passages: tuple[Passage, ...]
    calibration: str
    """What the passages are, in words."""
    absent: Mapping[str, str]
    """For what cannot be measured without such a text, the reason why there is none."""

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """All of them, test prompts first."""
        return [ids for _, ids in self.test_prompts] + [passage.token_ids for passage in self.passages]


def choose_auxiliary_inputs(model: CausalLM, encoded: Sequence[Encoded], protocol: Protocol) -> AuxiliaryInputs:
    """Choose what goes through the model behind the suite."""
    test_prompts = _test_prompts(model, protocol)
    passages, calibration = _suite_prompts(encoded) if protocol.temperature_grid else _held_out(model, encoded)
    return AuxiliaryInputs(
        value_of(test_prompts) or (),
        passages,
        calibration,
        reasons({"test_prompts": test_prompts, "norm_temperature": passages or Absent(calibration)}),
    )


def _test_prompts(model: CausalLM, protocol: Protocol) -> tuple[tuple[str, tuple[int, ...]], ...] | Absent:
    """Further prompts about the primary fact, where the protocol wants them and the model reads them all."""
    if not protocol.test_prompts:
        return Absent(f"protocol {protocol.name} asks for none")
    prompts = tuple((text, model.tokens.input_ids(text)) for text in published_test_prompts())
    if not all(_readable(model, ids) for _, ids in prompts):
        return Absent("the model does not read them: too many tokens or unknown ids")
    return prompts


def _suite_prompts(encoded: Sequence[Encoded]) -> tuple[tuple[Passage, ...], str]:
    """The primary fact in all its wordings and the first control, as published."""
    facts = [e for e in encoded if e.prompt.fact_index == 0]
    controls = [e for e in encoded if e.prompt.prompt_id == "ctl"]
    passages = tuple(Passage(e.token_ids, (len(e.token_ids) - 1,)) for e in [*facts, *controls[:1]])
    return passages, "the primary fact's own prompts and the control, at their last positions"


def _held_out(model: CausalLM, encoded: Sequence[Encoded]) -> tuple[tuple[Passage, ...], str]:
    """A piece of plain prose, about as long as the prompts; none, and why, where the model does not read it."""
    width = min(LONGEST_PASSAGE, max(SHORTEST_PASSAGE, *(len(e.token_ids) for e in encoded)))
    token_ids = model.tokens.input_ids(calibration_passage())[:width]
    if len(token_ids) <= CALIBRATION_ROWS or not _readable(model, token_ids):
        return (
            (),
            "the calibration passage has ids that the model does not know, or too many or too few of them",
        )
    positions = tuple(range(len(token_ids) - CALIBRATION_ROWS, len(token_ids)))
    return (Passage(token_ids, positions),), f"{CALIBRATION_ROWS} positions of a passage that no suite asks about"


def _readable(model: CausalLM, token_ids: Sequence[int]) -> bool:
    within = model.n_context is None or len(token_ids) <= model.n_context
    return within and max(token_ids) < model.n_embeddings
