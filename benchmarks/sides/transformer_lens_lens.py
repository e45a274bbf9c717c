"""TransformerLens' `logit_lens` in one call, at the chunk size that proves fastest on the first prompts.

The call gives entropy and the rank of the answer; KL and lists of ids would take further calls, which are not charged
because they are not made.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from task import Readings, Task, Watch, bits, leave
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.logit_lens import LogitLensResult, logit_lens

CHUNKS = (64, 256, 1024)
TRIAL_LAYERS = 6


@torch.inference_mode()
def main(task_file: Path, out: Path) -> None:
    """Read the task, leave the readings."""
    task, watch = Task.read(task_file), Watch()
    torch.set_num_threads(task.threads)
    model = TransformerBridge.boot_transformers(task.checkpoint, device="cpu", dtype=torch.float32)
    ids = torch.tensor(task.token_ids)
    answers = torch.tensor(task.answer_ids)[:, None].expand(-1, ids.shape[1])
    positions = slice(-1, None) if task.last_only else None
    targets = answers[:, -1:] if task.last_only else answers
    n_layers = int(model.cfg.n_layers)
    names = [*(f"blocks.{i}.hook_resid_pre" for i in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]
    with watch.stage("forward"):
        _, cache = model.run_with_cache(ids, names_filter=names)

    def lens(chunk: int, layers: range | None) -> tuple[float, LogitLensResult]:
        began = time.monotonic()
        result = logit_lens(cache, layers=layers, positions=positions, targets=targets, chunk_size=chunk)
        return time.monotonic() - began, result

    with watch.stage("uncharged"):
        best = min(CHUNKS, key=lambda chunk: lens(chunk, range(min(TRIAL_LAYERS, n_layers)))[0])
    with watch.stage("sweep"):
        _, result = lens(best, None)
        entropy = bits(result.readout.entropy.double().numpy())
        ranks = 1 + result.readout.target_ranks[..., 0].numpy()
    readings = Readings(entropy_bits=entropy.swapaxes(0, 1), answer_rank=ranks.swapaxes(0, 1))
    leave(out, watch.spent(chunk=best), readings)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
