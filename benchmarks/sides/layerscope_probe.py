"""Our side of a comparison: one call of `layerscope.probe`, which measures more than the task asks for."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from task import TOP_K, Readings, Spent, Task, leave

import layerscope


def main(task_file: Path, out: Path, options: str = "{}") -> None:
    """Read the task, leave the readings of the logit lens; `options` are further ones of `probe`, as JSON."""
    task = Task.read(task_file)
    torch.set_num_threads(task.threads)
    chosen = {
        "lenses": ("logit",),
        "answer_form": "space",
        "positions": "last" if task.last_only else "all",
        **json.loads(options),
    }
    run = layerscope.probe(task.checkpoint, suite=task.suite, top_k=TOP_K, **chosen)
    finished = time.monotonic()
    rows = run.rows.filter(lens="logit").sort("fact_index", "layer", "position")
    shape = (rows["fact_index"].n_unique(), rows["layer"].n_unique(), rows["position"].n_unique())
    if not run.record.identity.ok:
        raise SystemExit("the last layer's decode is not the model's own output, so there is nothing to compare")
    readings = Readings(
        entropy_bits=rows["entropy_bits"].to_numpy().reshape(shape),
        kl_to_final_bits=rows["kl_to_final_bits"].to_numpy().reshape(shape),
        answer_rank=rows["answer_rank"].fill_null(0).to_numpy().reshape(shape),
        top_ids=np.array(rows["top_ids"].to_list()).reshape(*shape, TOP_K),
    )
    timings = run.record.timings
    leave(out, Spent(finished, timings.forward_s, timings.sweep_s, notes={"start_s": timings.start_s}), readings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
