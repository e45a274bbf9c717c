"""A probe whose main thread is looked at every few milliseconds: where its time goes, function by function."""

import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from task import Spent, Task, leave

import layerscope

HOME = str(Path(layerscope.__file__).parent)
PERIOD_S = 0.004


def main(task_file: Path, out: Path, options: str = "{}") -> None:
    """Read the task, leave the seconds by function of ours, the innermost of each moment."""
    task = Task.read(task_file)
    torch.set_num_threads(task.threads)
    by_function: dict[str, float] = defaultdict(float)
    done = threading.Event()
    main_thread = threading.get_ident()

    def look() -> None:
        before = time.perf_counter()
        while not done.wait(PERIOD_S):
            # A call that keeps the interpreter's lock is seen once, at its end: it is charged all the time since.
            name = _innermost(sys._current_frames()[main_thread])
            now = time.perf_counter()
            by_function[name] += now - before
            before = now

    sampler = threading.Thread(target=look, daemon=True)
    sampler.start()
    run = layerscope.probe(task.checkpoint, suite=task.suite, **json.loads(options))
    finished = time.monotonic()
    done.set()
    sampler.join()
    timings = run.record.timings
    spent = Spent(finished, timings.forward_s, timings.sweep_s, notes={"start_s": timings.start_s, **by_function})
    leave(out, spent, None)


def _innermost(frame: FrameType | None) -> str:
    """`readout/decode.py · _visit`: the deepest function of ours on the stack."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(HOME):
            return f"{code.co_filename.removeprefix(HOME).lstrip('/')} · {code.co_name}"
        frame = frame.f_back
    return "outside"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
