"""What one types in ten minutes: load, one padded forward, the logit lens at last positions, entropy, rank and KL."""

import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from task import Readings, Watch, leave
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def main(task_file: Path, out: Path) -> None:
    """Read the questions, leave the readings."""
    task, watch = json.loads(task_file.read_text()), Watch()
    torch.set_num_threads(task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["checkpoint"])
    model = AutoModelForCausalLM.from_pretrained(task["checkpoint"], dtype=torch.float32).eval()
    ids = [tokenizer(prompt).input_ids for prompt in task["prompts"]]
    answers = torch.tensor(
        [
            tokenizer(prompt + " " + answer).input_ids[len(own)]
            for prompt, answer, own in zip(task["prompts"], task["answers"], ids, strict=True)
        ]
    )
    last = torch.tensor([len(own) - 1 for own in ids])
    width = int(last.max()) + 1
    batch = torch.tensor([own + own[-1:] * (width - len(own)) for own in ids])  # what follows the last is not seen
    with watch.stage("forward"):
        states = model(batch, output_hidden_states=True).hidden_states
    with watch.stage("sweep"):
        rows = torch.arange(len(ids))
        final = torch.log_softmax(model.lm_head(states[-1][rows, last]), -1)
        entropy, kl, rank = [], [], []
        for layer, state in enumerate(states):
            row = state[rows, last]
            logits = model.lm_head(row if layer == len(states) - 1 else model.model.norm(row))
            log_p = torch.log_softmax(logits, -1)
            entropy.append(-(log_p.exp() * log_p).sum(-1) / math.log(2))
            kl.append((log_p.exp() * (log_p - final)).sum(-1) / math.log(2))
            rank.append(1 + (logits > logits.gather(-1, answers[:, None])).sum(-1))
            for i in range(len(ids)):
                print(layer, i, float(entropy[-1][i]), int(rank[-1][i]), float(kl[-1][i]))
    spent = watch.spent()
    parts = (torch.stack(part, 1)[..., None].numpy() for part in (entropy, kl, rank))
    leave(out, spent, Readings(**dict(zip(("entropy_bits", "kl_to_final_bits", "answer_rank"), parts, strict=True))))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
