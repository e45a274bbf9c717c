"""Blocks about prompts: what was asked, where answers begin, what the model's own head says, and what control shows."""

from collections.abc import Sequence

from layerscope.published.write.json_source import Source, Tree
from layerscope.record.measured import PredictionRecord
from layerscope.record.parts import AlignmentRecord, PromptRecord


def primary_prompt(source: Source) -> Tree:
    """The block `prompt`."""
    prompt = source.record.prompt(source.found.primary)
    gold = _gold(prompt)
    return {
        "type": "prompt",
        "context_prompt": None if prompt is None else prompt.text,
        "ground_truth": None if gold is None else gold.string,
        "fact_key": None if prompt is None else prompt.fact_key,
        "fact_index": None if prompt is None else prompt.fact_index,
    }


def fact_keys(source: Source) -> list[str]:
    """Every fact that has a name once, in the order of the rows."""
    return [fact.fact_key for fact in source.found.micro_suite.facts if fact.fact_key is not None]


def gold_answer(prompt: PromptRecord | None) -> Tree | None:
    """Where the gold answer begins, in the model's tokens."""
    gold = _gold(prompt)
    if gold is None:
        return None
    return {
        "string": gold.string,
        "pieces": list(gold.pieces),
        "first_id": gold.first_id,
        "answer_ids": list(gold.answer_ids),
        "variant": gold.variant,
    }


def gold_alignment(prompt: PromptRecord | None) -> Tree | None:
    """Whether it could be found."""
    gold = _gold(prompt)
    if gold is None:
        return None
    block: Tree = {
        "ok": gold.ok,
        "status": gold.status,
        "variant": gold.variant,
        "first_id": gold.first_id,
        "answer_ids": list(gold.answer_ids),
        "pieces": list(gold.pieces),
    }
    return block if gold.reason is None else {**block, "reason": gold.reason}


def aligned_prompts(source: Source) -> list[PromptRecord]:
    """Every prompt in the order of `gold_alignment_prompts`: the primary one, controls, then all others."""
    prompts = source.record.suite.prompts
    first = [prompt for prompt in prompts if prompt.key == source.found.primary]
    controls = [prompt for prompt in prompts if prompt.prompt_id != "pos"]
    others = [prompt for prompt in prompts if prompt.prompt_id == "pos" and prompt.key != source.found.primary]
    return [*first, *controls, *others]


def gold_alignment_prompts(source: Source) -> list[Tree]:
    """The same of every prompt."""
    return [
        {
            "prompt_id": prompt.prompt_id,
            "prompt_variant": prompt.prompt_variant,
            **(gold_alignment(prompt) or {}),
            "string": None if not prompt.answers else prompt.answers[0].string,
            "fact_key": prompt.fact_key,
            "fact_index": prompt.fact_index,
        }
        for prompt in aligned_prompts(source)
    ]


def control_prompt(source: Source) -> Tree | None:
    """The control; None where the suite has none."""
    if source.control is None:
        return None
    return {
        "context_prompt": source.control.text,
        "gold_answer": gold_answer(source.control),
        "gold_alignment": gold_alignment(source.control),
    }


def control_summary(source: Source) -> Tree:
    """Where on the control its own answer leads."""
    found = source.found.control
    block: Tree = {
        "first_control_margin_pos": found.first_control_margin_pos,
        "max_control_margin": found.max_control_margin,
        "first_control_strong_pos": found.first_control_strong_pos,
        "max_control_top2_logit_gap": found.max_control_top2_logit_gap,
        "delta_top2_logit_ctl": found.delta_top2_logit_ctl,
    }
    return {**block, "reason": found.reason} if source.extended else block


def ablation_summary(source: Source) -> Tree:
    """The primary fact in its first wording and without the filler word."""
    found = source.found.ablation
    block: Tree = {
        "L_copy_orig": found.L_copy_orig,
        "L_sem_orig": found.L_sem_orig,
        "L_copy_nf": found.L_copy_nf,
        "L_sem_nf": found.L_sem_nf,
        "delta_L_copy": found.delta_L_copy,
        "delta_L_sem": found.delta_L_sem,
    }
    if source.extended:
        block |= {"variant_orig": found.variant_orig, "variant_nf": found.variant_nf, "sensitive": found.sensitive}
    return block


def final_prediction(source: Source) -> Tree | None:
    """The model's own output for the primary prompt; None where it was not measured."""
    said = source.record.measured.final_prediction
    return None if said is None else {"type": "final_prediction", **_distribution(said)}


def temperature_exploration(source: Source) -> list[Tree]:
    """The same with logits divided."""
    return [
        {"type": "temperature_exploration", "temperature": said.temperature, **_distribution(said)}
        for said in source.record.measured.temperature_exploration
    ]


def test_prompts(source: Source) -> list[Tree]:
    """Further prompts about the primary fact."""
    return [
        {"type": "test_prompt", "prompt": said.prompt, **_distribution(said)}
        for said in source.record.measured.test_prompts
    ]


def _distribution(said: PredictionRecord) -> Tree:
    pairs: Sequence[tuple[str, float]] = list(zip(said.top_tokens, said.top_probs, strict=True))
    return {"entropy": said.entropy_bits, "topk": [[token, prob] for token, prob in pairs]}


def _gold(prompt: PromptRecord | None) -> AlignmentRecord | None:
    """The first accepted answer, which is the gold one."""
    return None if prompt is None else next(iter(prompt.answers), None)
