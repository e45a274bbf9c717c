"""nnterp on nnsight: states kept by a trace, each projected on the vocabulary, the numbers as in the plain loop."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import nnsight
import torch
from by_layer import read_layers
from nnterp import StandardizedTransformer
from task import Task, Watch, leave


@torch.inference_mode()
def main(task_file: Path, out: Path) -> None:
    """Read the task, leave the readings."""
    task, watch = Task.read(task_file), Watch()
    torch.set_num_threads(task.threads)
    model = StandardizedTransformer(task.checkpoint, dtype=torch.float32, device_map="cpu", dispatch=True)
    with watch.stage("forward"):  # noqa: SIM117
        with model.trace(torch.tensor(task.token_ids)):  # apart, since its body is taken from the source
            embedded = model.token_embeddings.save()
            states = nnsight.save([])
            for layer in range(model.num_layers):
                states.append(model.layers_output[layer])
            normed = model.ln_final.output.save()
    with watch.stage("sweep"):
        norm, head = model.ln_final._module, model.lm_head._module
        readings = read_layers([embedded, *states[:-1], normed], norm, head, task, watch)
    leave(out, watch.spent(), readings)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
