"""Large models from holes in files: time and anonymous memory of a probe of the 70B shape in several forms, and of a
mixture of experts of 235B.

    python benchmarks/large.py                          # every form
    python benchmarks/large.py NF4 GPTQ                 # some
    python benchmarks/large.py mixture --limit-s 480    # its blocks one after the other, as many as there is time for

The weights are holes (`holes.py`), so that they take little disk, and no disk's time is told. Each checkpoint is
removed when it has been measured.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import holes
import torch
from setting import ROOT, Setting, markdown, seconds
from watched import watch

from layerscope.model.causal_lm import CausalLM

LIMIT_S = 1500
"""What takes longer is ended."""
WALKED = [list(range(100 * i, 100 * i + 16)) for i in (1, 2, 3)]
"""Token ids of three prompts, as long together as those of the suite."""
SUITE = ["--suite", "berlin", "--positions", "last", "--memory", "1GiB"]


def _nf4(folder: Path) -> Path:
    about = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return holes.write_folder(folder, holes.LLAMA, holes.nf4, {**about, "bnb_4bit_use_double_quant": True})


def _gptq(folder: Path) -> Path:
    about = {"quant_method": "gptq", "bits": 4, "group_size": holes.GROUP, "desc_act": False, "sym": True}
    return holes.write_folder(folder, holes.LLAMA, holes.gptq, about)


FORMS: dict[str, Callable[[Path], Path]] = {
    "bfloat16": lambda folder: holes.write_folder(folder, holes.LLAMA, holes.plain, None),
    "NF4": _nf4,
    "GPTQ": _gptq,
    "Q4_K": lambda folder: holes.write_gguf(folder / "llama.gguf", holes.LLAMA),
    "mixture": lambda folder: holes.write_folder(folder, holes.MIXTURE, holes.mixture, None),
}
"""What writes each checkpoint."""


def probed(checkpoint: Path, out: Path, setting: Setting, limit_s: float) -> list[str]:
    """One `layerscope probe` from the shell, page and all: wall, forward, seconds a block, memory."""
    command = [sys.executable, "-m", "layerscope", "probe", str(checkpoint), *SUITE, "--out", str(out)]
    seen = watch(command, setting, limit_s=limit_s, extra={"PYTHONPATH": _path()})
    if not seen.within_limit:
        return [f"over {seconds(seen.wall_s)}, ended", "–", "–", f"{seen.peak_gb():.2f}"]
    (record,) = out.rglob("run.json")
    forward_s = json.loads(record.read_text())["timings"]["forward_s"]
    a_block = f"{forward_s / holes.LLAMA['num_hidden_layers']:.2f}"
    return [seconds(seen.wall_s), seconds(forward_s), a_block, f"{seen.peak_gb():.2f}"]


def walked(checkpoint: Path, out: Path, setting: Setting, limit_s: float) -> list[str]:
    """The forward pass alone, block by block until the limit: wall, blocks, seconds a block, memory."""
    out.mkdir()
    told = out / "blocks"
    command = [sys.executable, __file__, "--walk", str(checkpoint), "--tell", str(told)]
    seen = watch(command, setting, limit_s=limit_s, extra={"PYTHONPATH": _path()})
    moments = [float(line) for line in told.read_text().split()]
    a_block = (moments[-1] - moments[0]) / (len(moments) - 1)
    blocks = f"{len(moments)} of {holes.MIXTURE['num_hidden_layers']} blocks"
    return [seconds(seen.wall_s), blocks, f"{a_block:.2f}", f"{seen.peak_gb():.2f}"]


def walk(checkpoint: Path, tell: Path) -> None:
    """Run the prompts through the model, and write down when each block is done."""
    with tell.open("w") as file, torch.inference_mode():
        model = CausalLM.open(str(checkpoint), device="cpu", memory="1GiB")
        model.forward(WALKED, progress=lambda done, total: print(time.monotonic(), file=file, flush=True))


def measured(name: str, scratch: Path, setting: Setting, limit_s: float) -> list[str]:
    """A row of the table."""
    checkpoint, out = FORMS[name](scratch / name), scratch / "out"
    os.sync()  # what was written goes to the disk now, not while the probe runs
    files = [checkpoint] if checkpoint.is_file() else list(checkpoint.glob("*.safetensors"))
    n_bytes = sum(file.stat().st_size for file in files)
    cost = (walked if name == "mixture" else probed)(checkpoint, out, setting, limit_s)
    shutil.rmtree(scratch / name)
    shutil.rmtree(out, ignore_errors=True)
    return [name, f"{n_bytes / 1e9:.0f}", *cost]


def _path() -> str:
    return os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("forms", nargs="*", choices=[*FORMS, []], help="default: every form")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--scratch", type=Path, help="where checkpoints lie meanwhile; default: the folder for such files"
    )
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="what takes longer is ended")
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tell", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.walk is not None:
        walk(arguments.walk, arguments.tell)
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        rows = []
        for name in arguments.forms or FORMS:
            rows.append(measured(name, Path(scratch), Setting(arguments.threads), arguments.limit_s))
            print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(["stored as", "GB", "wall, s", "forward", "s / block", "memory, GB"], rows))


if __name__ == "__main__":
    main()
