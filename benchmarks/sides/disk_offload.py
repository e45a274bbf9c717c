"""The same loop with accelerate's disk offload: every module's weights are brought in for the time of its call."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from by_layer import read_layers
from task import Task, Watch, leave
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def main(task_file: Path, out: Path) -> None:
    """Read the task, leave the readings."""
    task, watch = Task.read(task_file), Watch()
    torch.set_num_threads(task.threads)
    AutoTokenizer.from_pretrained(task.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(
            task.checkpoint, dtype=torch.float32, device_map={"": "disk"}, offload_folder=folder
        ).eval()
        with watch.stage("forward"):
            ids = torch.tensor(task.token_ids)
            states = model(ids, output_hidden_states=True, logits_to_keep=1).hidden_states
        with watch.stage("sweep"):
            readings = read_layers(states, model.model.norm, model.lm_head, task, watch)
        leave(out, watch.spent(), readings)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
