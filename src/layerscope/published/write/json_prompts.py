"""Blocks about prompts: their texts, where answers begin, what the model's head says, and what control shows."""

from layerscope.published import members
from layerscope.published.write.json_source import Source, Tree, gold_of
from layerscope.record.measured import PredictionRecord
from layerscope.record.parts import PromptRecord


def primary_prompt(source: Source) -> Tree:
    """The block `prompt`."""
    prompt = source.primary_prompt
    gold = gold_of(prompt)
    return {
        "type": "prompt",
        "context_prompt": None if prompt is None else prompt.text,
        "ground_truth": None if gold is None else gold.string,
        **source.block(members.FACT_KEY, prompt),
    }


def gold_alignment(source: Source, prompt: PromptRecord | None) -> Tree | None:
    """Whether the gold answer was located."""
    gold = gold_of(prompt)
    if gold is None:
        return None
    block = source.block(members.GOLD_ALIGNMENT, gold)
    return block if gold.reason is None else {**block, "reason": gold.reason}


def aligned_prompts(source: Source) -> list[PromptRecord]:
    """Every prompt in the order of `gold_alignment_prompts`: the primary one, controls, then all others."""

    def place(prompt: PromptRecord) -> int:
        if prompt.prompt_id != "pos":
            return 1
        return 0 if prompt.key == source.diagnostics.primary else 2

    return sorted(source.record.suite.prompts, key=place)


def gold_alignment_prompts(source: Source) -> list[Tree]:
    """The same of every prompt."""
    return [
        {
            **source.block(members.PROMPT_KEY, prompt),
            **(gold_alignment(source, prompt) or {}),
            "string": None if not prompt.answers else prompt.answers[0].string,
            **source.block(members.FACT_KEY, prompt),
        }
        for prompt in aligned_prompts(source)
    ]


def control_prompt(source: Source) -> Tree | None:
    """The control; None where the suite has none."""
    if source.control is None:
        return None
    return {
        "context_prompt": source.control.text,
        "gold_answer": source.known(members.GOLD_ANSWER, gold_of(source.control)),
        "gold_alignment": gold_alignment(source, source.control),
    }


def final_prediction(source: Source) -> Tree | None:
    """The model's output for the primary prompt; None where it was not measured."""
    prediction = source.record.measured.final_prediction
    return None if prediction is None else {"type": "final_prediction", **_distribution(prediction)}


def temperature_exploration(source: Source) -> list[Tree]:
    """The same with logits divided by temperatures."""
    return [
        {"type": "temperature_exploration", "temperature": prediction.temperature, **_distribution(prediction)}
        for prediction in source.record.measured.temperature_exploration
    ]


def test_prompts(source: Source) -> list[Tree]:
    """Further prompts about the primary fact."""
    return [
        {"type": "test_prompt", "prompt": prediction.prompt, **_distribution(prediction)}
        for prediction in source.record.measured.test_prompts
    ]


def _distribution(prediction: PredictionRecord) -> Tree:
    pairs = zip(prediction.top_tokens, prediction.top_probs, strict=True)
    return {"entropy": prediction.entropy_bits, "topk": [list(pair) for pair in pairs]}
