"""What one writes by hand: norm and head layer by layer, and the numbers of each layer's logits."""

import math
from collections.abc import Callable, Sequence

import torch
from task import TIE, TOP_K, Readings, Task, Watch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]


def read_layers(states: Sequence[Tensor], norm: Decode, head: Decode, task: Task, watch: Watch) -> Readings:
    """Entropy, KL to the final layer, rank of the answer and the most probable ids of every layer.

    Args:
        states: the residual stream, layer by layer `[prompt, position, d_model]`; the last one normed already.
        norm: the final norm.
        head: from a normed state to logits.
        watch: the seconds spent on what only the comparison needs are noted there.
    """
    states = [state[:, -1:] for state in states] if task.last_only else list(states)
    answers = torch.tensor(task.answer_ids)[:, None, None].expand(-1, states[0].shape[1], 1)
    final = torch.log_softmax(head(states[-1]), dim=-1)
    layers = []
    for layer, state in enumerate(states):
        logits = head(state if layer == len(states) - 1 else norm(state))
        log_p = torch.log_softmax(logits, dim=-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1) / math.log(2)
        kl = (p * (log_p - final)).sum(-1) / math.log(2)
        answer_logit = logits.gather(-1, answers)
        rank = 1 + (logits > answer_logit).sum(-1)
        top = logits.topk(TOP_K + 1, dim=-1)
        with watch.stage("uncharged in sweep"):
            near = ((logits - answer_logit).abs() < TIE).sum(-1) - 1
        layers.append((entropy, kl, rank, top.indices, top.values, near))
    names = ("entropy_bits", "kl_to_final_bits", "answer_rank", "top_ids", "top_logits", "near_answer")
    parts = (torch.stack(part, 1).numpy() for part in zip(*layers, strict=True))
    return Readings(**dict(zip(names, parts, strict=True)))
