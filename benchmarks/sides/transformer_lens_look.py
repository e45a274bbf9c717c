"""What one writes with TransformerLens to look at a text: all residuals, the final norm, the head, the top tokens.

The first text is printed. Further ones are looked at with the model that is loaded, for all that a look of layerscope
holds: entropy, KL and longer lists besides.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from task import Readings, bits, leave_readings
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

SHOWN = 5
"""Tokens printed of every layer and position."""


@torch.inference_mode()
def main(task_file: Path, out: Path) -> None:
    """Read the texts, print the first, leave its top tokens, and the seconds of each other one."""
    task = json.loads(task_file.read_text())
    model = TransformerBridge.boot_transformers(task["checkpoint"], device="cpu", dtype=torch.float32)
    first, *further = task["texts"]
    top = log_probs_of(model, first)[1].exp().topk(SHOWN)
    tokens = [[[model.tokenizer.decode([i]) for i in at] for at in row] for row in top.indices.tolist()]
    probs = top.values.tolist()
    for layer, (row, ps) in enumerate(zip(tokens, probs, strict=True)):
        for position, (at, p) in enumerate(zip(row, ps, strict=True)):
            print(layer, position, *(f"{token!r} {value:.3f}" for token, value in zip(at, p, strict=True)))
    found: dict[str, Any] = {"tokens": tokens, "probs": probs}
    if further:
        found |= looked_at(model, further, task["top"], out)
    out.write_text(json.dumps(found))


def looked_at(model: TransformerBridge, texts: list[str], top_k: int, out: Path) -> dict[str, Any]:
    """Look at each text; the readings of the last one are left, with what only the comparison needs."""
    took = []
    for text in texts:
        began = time.perf_counter()
        ids, log_p = log_probs_of(model, text)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1)
        kl = (p * (log_p - log_p[-1])).sum(-1)
        p.topk(top_k)
        took.append(time.perf_counter() - began)
    top = log_p.topk(top_k + 1)  # of one more, for a tie at the end of the list
    parts = (bits(entropy.double().numpy()), bits(kl.double().numpy()), top.indices.numpy(), top.values.numpy())
    names = ("entropy_bits", "kl_to_final_bits", "top_ids", "top_logits")
    leave_readings(out, Readings(**{name: part[None] for name, part in zip(names, parts, strict=True)}))
    return {"token_ids": ids, "looks_s": took}


def log_probs_of(model: TransformerBridge, text: str) -> tuple[list[int], Tensor]:
    """A text's ids, and log-probabilities of all layers, the embedding first: [layer, position, d_vocab]."""
    ids = model.to_tokens(text, prepend_bos=False)  # this model's own tokenizer adds none
    n_layers = int(model.cfg.n_layers)
    names = [*(f"blocks.{i}.hook_resid_pre" for i in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]
    _, cache = model.run_with_cache(ids, names_filter=names)
    normed = cache.accumulated_resid(apply_ln=True)[:, 0]
    return ids[0].tolist(), model.unembed(normed).log_softmax(-1)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
