"""One forward of one prompt through `CausalLM`, timed alone; its logits are checked against the head's own product."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from task import Task, Watch, leave

from layerscope.model.causal_lm import CausalLM


@torch.inference_mode()
def main(task_file: Path, out: Path) -> None:
    """Read the task, leave the seconds."""
    task, watch = Task.read(task_file), Watch()
    torch.set_num_threads(task.threads)
    model = CausalLM.open(task.checkpoint, device="cpu")
    with watch.stage("forward"):
        residuals = model.forward(task.token_ids)
    with watch.stage("sweep"):
        row = residuals.last()[:1]
        norm, head = model.final_norm, model.unembedding
        logits = head.transform.apply_(head.logits(head.head_input(row if norm is None else norm(row))))
        apart = float((logits - residuals.logits[:1]).abs().max())
    if not apart < 1e-3:
        raise SystemExit(f"the last residual gives logits {apart} away from the model's own, so no time is told")
    leave(out, watch.spent(apart=apart), None)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
