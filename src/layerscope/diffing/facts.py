"""A suite's prompts through both models: which token answers each, and how both rank it."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from layerscope.analysis.model_diff import FactDiff, SuiteDiff, onset_for_good
from layerscope.diffing.by_layer import LayerRows
from layerscope.diffing.divergences import Heads
from layerscope.diffing.streams import Streams
from layerscope.model.causal_lm import CausalLM
from layerscope.model.residuals import Residuals
from layerscope.probing.encode import Encoded
from layerscope.probing.outputs import with_outputs


def judged_prompts(streams: Streams, base: CausalLM) -> list[Encoded]:
    """The prompts that are here, each answer in the form that the base prefers, which is the one that is judged."""
    part = streams.part
    if not part.prompts:
        return []
    last = streams.base[-1, part.prompt_rows].to(base.placement.device)
    nothing = torch.empty(0, base.d_vocab, device=last.device)
    said = Residuals(last[:, None, None], (1,) * len(last), nothing)
    prompts = [part.found.prompts[i] for i in part.prompts]
    return with_outputs(prompts, said, base, final_is_model=True, form_of_model=True)


def asked_ids(streams: Streams, prompts: Sequence[Encoded], heads: Heads) -> Int[Tensor, "row id"]:
    """The tokens of which the best rank at every row is told, repeated where others have more.

    At a position within a text that which follows; at the end of a prompt all its accepted answers, or what the base
    has on top where there are none.
    """
    part, texts = streams.part, streams.part.token_ids
    prompt_at = dict(zip(part.prompt_rows, prompts, strict=True))
    asked: list[tuple[int, ...]] = []
    for i, row in enumerate(part.found.rows[k] for k in part.rows):
        if i in prompt_at:
            answers = answer_ids(prompt_at[i], heads.n_ids)
            asked.append(answers or (int(heads.base(streams.base[-1, i : i + 1]).top1),))
        else:
            asked.append((texts[row.text - part.texts.start][row.position + 1],))
    most = max(map(len, asked), default=1)
    return torch.tensor([[*ids, *[ids[0]] * (most - len(ids))] for ids in asked]).reshape(len(asked), most)


def answer_ids(prompt: Encoded, n_ids: int) -> tuple[int, ...]:
    """Tokens of a prompt's accepted answers for which both models have a logit, the one that ranks best in the base
    first; none where none aligns."""
    assert prompt.output is not None, "residuals that are not finite were refused"
    best = prompt.output.answer_id
    both = dict.fromkeys(token for token in prompt.query.answer_ids if token < n_ids)
    return tuple(sorted(both, key=lambda token: token != best))


def suite_diff(
    name: str, prompts: Sequence[Encoded], layers: Sequence[LayerRows], rows: Sequence[int], n_ids: int, base: CausalLM
) -> SuiteDiff:
    """The suite in numbers.

    Args:
        name: of the suite.
        prompts: with what the base says.
        layers: measures of all rows.
        rows: that of every prompt.
        n_ids: how many ids both models have a logit for.
        base: for the strings of tokens.
    """
    last = layers[-1]
    answers = [answer_ids(prompt, n_ids)[:1] for prompt in prompts]
    shown = {int(of[row]) for of in (last.base_top1_id, last.variant_top1_id) for row in rows}
    strings = base.tokens.display(sorted(shown.union(*answers)))
    facts = []
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        ranks = [(int(layer.base_rank[row]), int(layer.variant_rank[row])) for layer in layers]
        facts.append(
            FactDiff(
                prompt=prompt.text,
                fact=prompt.prompt.fact_index,
                kl_bits=float(last.kl_bits[row]),
                base_top1=strings[int(last.base_top1_id[row])],
                variant_top1=strings[int(last.variant_top1_id[row])],
                answer=strings[answer[0]] if answer else None,
                base_rank=ranks[-1][0] if answer else None,
                variant_rank=ranks[-1][1] if answer else None,
                base_onset=onset_for_good([rank for rank, _ in ranks]) if answer else None,
                variant_onset=onset_for_good([rank for _, rank in ranks]) if answer else None,
            )
        )
    return SuiteDiff(name, tuple(facts))
