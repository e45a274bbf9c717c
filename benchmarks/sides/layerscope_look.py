"""layerscope looking at one text after another with a model that is open: the seconds of each look, start-up apart."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from task import Readings, leave_readings

import layerscope


def main(task_file: Path, out: Path) -> None:
    """Read the texts, leave the seconds of each and the readings of the last."""
    task = json.loads(task_file.read_text())
    model = layerscope.CausalLM.open(task["checkpoint"])
    took = []
    for text in task["texts"]:
        began = time.perf_counter()
        look = layerscope.look(model, text, positions="all", top=task["top"])
        took.append(time.perf_counter() - began)
    out.write_text(json.dumps({"token_ids": look.encoded.token_ids, "looks_s": took}))
    leave_readings(out, Readings(look.entropy_bits, look.kl_to_final_bits, top_ids=look.top_ids))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
