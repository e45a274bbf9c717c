"""Time and memory of one probe, ours against a plain Transformers loop, on the same task and only if the values agree.

The task: a checkpoint in the shape of Qwen3-1.7B, twelve prompts of sixteen tokens, and at every layer and position the
logit lens's entropy, KL to the final layer, rank of the answer and twenty most probable ids. Each side runs in a fresh
process, from the start of the interpreter to the last number. The values are compared first: where they differ beyond
the tolerances below, the differences are told and no time is.

    python benchmarks/probe.py                 # both sides once; writes the section in docs/benchmarks.md
    python benchmarks/probe.py --repeat 3      # medians of three
    python benchmarks/probe.py --blocks 2      # a short trial; writes no section
    python benchmarks/probe.py --skip-plain    # ours alone, against the values of the last plain run
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- probe: begin -->", "<!-- probe: end -->"

SHAPE = "qwen3-1.7b"
N_TOKENS = 16
TOP_K = 20
CAPITALS = {
    "Germany": "Berlin",
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Canada": "Ottawa",
    "Spain": "Madrid",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Austria": "Vienna",
    "Norway": "Oslo",
}

BITS_TOLERANCE = 1e-4
"""Of entropy and KL: in bits up to one bit, relative above."""
LOGIT_TOLERANCE = 1e-4
"""Logits nearer than this are a tie that float32 may break either way: the ids in the tie may change places."""
SAMPLE_SECONDS = 0.05


class Disagreement(Exception):
    """The two sides read different numbers, so that their times say nothing."""


@dataclass(frozen=True)
class Question:
    """One prompt of `N_TOKENS` tokens and its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Readings:
    """What a side read, [prompt, layer, position] throughout, and the moments at which it got there."""

    entropy_bits: np.ndarray
    kl_to_final_bits: np.ndarray
    answer_rank: np.ndarray
    """1 = first; 0 where no rank was given."""
    top_ids: np.ndarray
    """[prompt, layer, position, place], most probable first; `TOP_K` places, and one more on the plain side."""
    forward_s: float
    sweep_s: float
    """Seconds from residuals to numbers."""
    finished: float
    """Reading of the machine's monotonic clock, which all processes share, when the last number was there."""


@dataclass(frozen=True)
class PlainReadings(Readings):
    """The plain side also notes what a fair comparison needs; the seconds spent on that are not charged to it."""

    near_answer: np.ndarray
    """How many other logits lie within `LOGIT_TOLERANCE` of the answer's."""
    top_logits: np.ndarray
    """Of `top_ids`."""
    uncharged_s: float


AnyReadings = TypeVar("AnyReadings", bound=Readings)


@dataclass(frozen=True)
class Cost:
    """What one run of one side cost."""

    wall_s: float
    """From the start of the interpreter to the last number, the plain side's uncharged seconds taken off."""
    forward_s: float
    sweep_s: float
    anonymous_gb: float
    """Largest anonymous resident memory seen, in 1e9 bytes; pages of mapped files are not counted."""

    @property
    def start_s(self) -> float:
        """All that is neither forward nor sweep: interpreter, imports, opening or loading the model."""
        return self.wall_s - self.forward_s - self.sweep_s


# --- the task ---------------------------------------------------------------------------------------------------------


def write_questions(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Twelve prompts of exactly `N_TOKENS` tokens as a JSONL suite, the longer text cut at its front."""
    lines = []
    for subject, answer in CAPITALS.items():
        text = "Give the city name only, plain text. " * 2 + f"The capital of {subject} is called simply"
        prompt = tokenizer.decode(tokenizer(text).input_ids[-N_TOKENS:])
        found = len(tokenizer(prompt).input_ids)
        if found != N_TOKENS:
            raise ValueError(f"expected {N_TOKENS} tokens, found {found} in {prompt!r}; reword the text it is cut from")
        lines.append(json.dumps({"prompt": prompt, "answer": answer}))
    path.write_text("\n".join(lines) + "\n")


def read_questions(path: Path) -> list[Question]:
    """The questions that `write_questions` left."""
    return [Question(**json.loads(line)) for line in path.read_text().splitlines()]


# --- the plain side ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def plain(checkpoint: Path, suite: Path) -> PlainReadings:
    """Load in float32, one forward of the whole batch, then norm and head layer by layer: what one writes by hand."""
    questions = read_questions(suite)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = tokenizer([question.prompt for question in questions], return_tensors="pt").input_ids
    answers = torch.tensor(
        [tokenizer(f"{question.prompt} {question.answer}").input_ids[N_TOKENS] for question in questions]
    )
    answers = answers[:, None, None].expand(-1, N_TOKENS, 1)

    began = time.monotonic()
    states = model(ids, output_hidden_states=True, logits_to_keep=1).hidden_states
    forwarded = time.monotonic()
    *residuals, normed = states  # Transformers returns the last one with the final norm already applied
    normed_states = [*(model.model.norm(residual) for residual in residuals), normed]
    final = torch.log_softmax(model.lm_head(normed), dim=-1)
    layers, uncharged = [], 0.0
    for state in normed_states:
        logits = model.lm_head(state)
        log_p = torch.log_softmax(logits, dim=-1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(-1) / math.log(2)
        kl = (p * (log_p - final)).sum(-1) / math.log(2)
        answer_logit = logits.gather(-1, answers)
        rank = 1 + (logits > answer_logit).sum(-1)
        top = logits.topk(TOP_K + 1, dim=-1)
        paused = time.monotonic()
        near = ((logits - answer_logit).abs() < LOGIT_TOLERANCE).sum(-1) - 1
        uncharged += time.monotonic() - paused
        layers.append((entropy, kl, rank, near, top.indices, top.values))
    finished = time.monotonic()

    by_name = [torch.stack(part, 1).numpy() for part in zip(*layers, strict=True)]
    entropy_bits, kl_to_final_bits, answer_rank, near_answer, top_ids, top_logits = by_name
    return PlainReadings(
        entropy_bits=entropy_bits,
        kl_to_final_bits=kl_to_final_bits,
        answer_rank=answer_rank,
        top_ids=top_ids,
        forward_s=forwarded - began,
        sweep_s=finished - forwarded - uncharged,
        finished=finished,
        near_answer=near_answer,
        top_logits=top_logits,
        uncharged_s=uncharged,
    )


# --- our side ---------------------------------------------------------------------------------------------------------


def ours(checkpoint: Path, suite: Path) -> Readings:
    """The same numbers by `layerscope.probe`."""
    import layerscope  # the plain side shall not pay for it

    run = layerscope.probe(str(checkpoint), suite=str(suite), lenses=("logit",), positions="all", top_k=TOP_K)
    finished = time.monotonic()
    rows = run.rows.sort("fact_index", "layer", "position")
    shape = (rows["fact_index"].n_unique(), rows["layer"].n_unique(), rows["position"].n_unique())
    return Readings(
        entropy_bits=rows["entropy_bits"].to_numpy().reshape(shape),
        kl_to_final_bits=rows["kl_to_final_bits"].to_numpy().reshape(shape),
        answer_rank=rows["answer_rank"].fill_null(0).to_numpy().reshape(shape),
        top_ids=np.array(rows["top_ids"].to_list()).reshape(*shape, TOP_K),
        forward_s=run.record.timings.forward_s,
        sweep_s=run.record.timings.sweep_s,
        finished=finished,
    )


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far apart the two sides are, none of it beyond tolerance."""

    rows: int
    entropy_bits: float
    """Largest difference, in bits."""
    kl_bits: float
    ranks: int
    """How many ranks were compared."""
    ranks_equal: int
    tops_equal: int
    """Rows whose ids at the top are the same in the same order."""


def compare(theirs: PlainReadings, mine: Readings) -> Agreement:
    """Hold our numbers against the plain ones.

    A rank may be off by at most the number of logits tied with the answer's; two ids at the top may have changed places
    if their logits are tied. Raises Disagreement for anything else, and for a table of another shape.
    """
    if theirs.answer_rank.shape != mine.answer_rank.shape:
        shapes = f"{theirs.answer_rank.shape} plain, {mine.answer_rank.shape} ours"
        raise Disagreement(f"expected as many prompts, layers and positions on both sides, found {shapes}")
    entropy = _largest_difference("entropy_bits", theirs.entropy_bits, mine.entropy_bits)
    kl = _largest_difference("kl_to_final_bits", theirs.kl_to_final_bits, mine.kl_to_final_bits)
    ranked = mine.answer_rank > 0
    if not ranked[..., -1].all():
        raise Disagreement("expected an answer_rank at every last position, found some without")
    off = np.where(ranked, np.abs(theirs.answer_rank - mine.answer_rank), 0)
    _refuse("answer_rank", off > theirs.near_answer, theirs.answer_rank, mine.answer_rank)
    top_ids = theirs.top_ids[..., :TOP_K]
    same = top_ids == mine.top_ids
    _refuse("top_ids", ~(same | _tied(theirs, mine)), top_ids, mine.top_ids)
    return Agreement(
        rows=ranked.size,
        entropy_bits=entropy,
        kl_bits=kl,
        ranks=int(ranked.sum()),
        ranks_equal=int((ranked & (off == 0)).sum()),
        tops_equal=int(same.all(-1).sum()),
    )


def _largest_difference(name: str, theirs: np.ndarray, mine: np.ndarray) -> float:
    difference = np.abs(theirs - mine)
    allowed = BITS_TOLERANCE * np.maximum(1.0, np.abs(theirs))
    _refuse(name, ~(difference <= allowed), theirs, mine)  # so that a NaN is refused too
    return float(difference.max())


def _tied(theirs: PlainReadings, mine: Readings) -> np.ndarray:
    """Where our id at a place has, by the plain side's logits, as good as the logit of that place."""
    candidates = mine.top_ids[..., :, None] == theirs.top_ids[..., None, :]
    gaps = np.abs(theirs.top_logits[..., :TOP_K, None] - theirs.top_logits[..., None, :])
    return (candidates & (gaps < LOGIT_TOLERANCE)).any(-1)


def _refuse(name: str, wrong: np.ndarray, theirs: np.ndarray, mine: np.ndarray) -> None:
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise Disagreement(
            f"{name}: {int(wrong.sum())} of {wrong.size} values differ beyond tolerance; "
            f"the first at {first}: {theirs[first]} plain, {mine[first]} ours"
        )


# --- the measurement --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def matrix_product_peak() -> float:
    """GFLOP/s of a square float32 matrix product, the best of seven: the ceiling for any sweep with these threads."""
    n = 4096
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds) / 1e9


SIDES: dict[str, Callable[[Path, Path], Readings]] = {"plain": plain, "ours": ours}


def work(side: str, checkpoint: Path, suite: Path, out: Path, threads: int) -> None:
    """The life of a child process: read, then leave the readings in the file `out`."""
    torch.set_num_threads(threads)
    readings = SIDES[side](checkpoint, suite)
    with out.open("wb") as file:
        np.savez(file, **vars(readings))


def load_readings(kind: type[AnyReadings], path: Path) -> AnyReadings:
    """What `work` left."""
    with np.load(path) as arrays:
        return kind(**{name: array if array.ndim else array.item() for name, array in arrays.items()})


def run_side(side: str, checkpoint: Path, suite: Path, out: Path, threads: int) -> Cost:
    """One side in a fresh process, its memory watched from here; its readings are left in `out`."""
    words = ["--worker", side, "--checkpoint", checkpoint, "--suite", suite, "--out", out, "--threads", threads]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    samples: list[tuple[float, int]] = []
    with subprocess.Popen([sys.executable, __file__, *map(str, words)], env=environment) as process:
        while process.poll() is None:
            samples.append((time.monotonic(), _anonymous_bytes(process.pid)))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, f"the {side} side")
    readings = load_readings(PlainReadings, out) if side == "plain" else load_readings(Readings, out)
    uncharged = readings.uncharged_s if isinstance(readings, PlainReadings) else 0.0
    return Cost(
        wall_s=readings.finished - began - uncharged,
        forward_s=readings.forward_s,
        sweep_s=readings.sweep_s,
        anonymous_gb=max(size for moment, size in samples if moment <= readings.finished) / 1e9,
    )


def _anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0  # a process that has just ended has no such line


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """All that the page tells."""

    costs: dict[str, list[Cost]]
    """Side -> one cost for each repetition; "plain" is absent under --skip-plain."""
    agreement: Agreement
    """Of the last repetition; each one was compared."""
    sweep_gflop: float
    """Multiply-adds, counted as two, that every sweep of this task must do: rows x d_model x d_vocab."""
    peak_gflops: float
    """Per second, of `matrix_product_peak`."""
    model: str
    machine: str

    def median(self, side: str, figure: str) -> float:
        """Of a field of `Cost` over the repetitions."""
        return statistics.median(getattr(cost, figure) for cost in self.costs[side])


TITLES = {"plain": "plain Transformers loop", "ours": "layerscope"}
FIGURES = {
    "wall_s": "wall time, s",
    "start_s": "... interpreter, imports, opening or loading the model, s",
    "forward_s": "... forward, s",
    "sweep_s": "... residuals to numbers, s",
    "anonymous_gb": "peak anonymous memory, GB",
}


def section(result: Result) -> str:
    """The page's section in Markdown: headline, table, what the values agreed to, and on what machine."""
    sides = list(result.costs)
    header = ["", *(TITLES[side] for side in sides)]
    rows = [[label, *(f"{result.median(side, name):.2f}" for side in sides)] for name, label in FIGURES.items()]
    rates = {side: result.sweep_gflop / result.median(side, "sweep_s") for side in sides}
    rows.append(["GFLOP/s from residuals to numbers", *(f"{rate:.0f}" for rate in rates.values())])
    rows.append(["share of the matrix-product peak", *(f"{rate / result.peak_gflops:.0%}" for rate in rates.values())])
    table = [header, ["---", *("---:" for _ in sides)], *rows]
    lines = ["## One probe, side by side", ""]
    if "plain" in sides:
        headline = [
            f"{result.median('plain', figure) / result.median('ours', figure):.1f} times the {name}"
            for figure, name in (("wall_s", "wall time"), ("anonymous_gb", "anonymous memory"))
        ]
        lines += [f"**The plain loop takes {' and '.join(headline)} of layerscope.**", ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([*lines, "", _task(result), "", _agreed(result.agreement), "", result.machine])


def _task(result: Result) -> str:
    repeats = len(result.costs["ours"])
    return (
        f"Task: {result.model}; {len(CAPITALS)} prompts of {N_TOKENS} tokens, {result.agreement.rows:,} rows of "
        f"(prompt, layer, position), each with the logit lens's entropy, KL to the final layer, rank of the answer and "
        f"top {TOP_K}, all in float32. Each side in a fresh process from the start of the interpreter; "
        f"{'one run' if repeats == 1 else f'medians of {repeats} runs'}. The matrix-product peak, "
        f"{result.peak_gflops:.0f} GFLOP/s, is the best of seven 4096 x 4096 products with the same threads. Pages of "
        f"mapped weight files are not anonymous memory: the kernel drops them when another needs the room."
    )


def _agreed(agreement: Agreement) -> str:
    return (
        f"Agreement, checked before any time was reported: largest difference {agreement.entropy_bits:.1e} bits in "
        f"entropy, {agreement.kl_bits:.1e} bits in KL; {agreement.ranks_equal:,} of {agreement.ranks:,} ranks equal, "
        f"the others off by no more than there are logits within {LOGIT_TOLERANCE:.0e} of the answer's; top {TOP_K} "
        f"the same in {agreement.tops_equal:,} rows, in the others up to the order of logits closer than that."
    )


def describe_machine(threads: int) -> str:
    """Processor, threads and versions; no name of a host, no path."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = cpu[0].partition(":")[2].strip() if cpu else platform.machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    return (
        f"Machine: {processor} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, {threads} "
        f"thread{'s' if threads > 1 else ''}; Python {platform.python_version()}, {versions}."
    )


def write_section(page: Path, text: str) -> None:
    """Put `text` between the page's markers, or at its end when it has none yet."""
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    marked = f"{BEGIN}\n{text}\n{END}"
    if BEGIN in old and END in old:
        new = old[: old.index(BEGIN)] + marked + old[old.index(END) + len(END) :]
    else:
        new = f"{old.rstrip()}\n\n{marked}\n"
    page.parent.mkdir(exist_ok=True)
    page.write_text(new)


# --- the shell --------------------------------------------------------------------------------------------------------


def prepare_checkpoint(blocks: int | None) -> Path:
    """The random checkpoint, made on the first call."""
    checkpoint = ROOT / "checkpoints" / (SHAPE if blocks is None else f"{SHAPE}-{blocks}-blocks")
    if not checkpoint.exists():
        words = ["--shape", SHAPE, "--out", str(checkpoint), *([] if blocks is None else ["--blocks", str(blocks)])]
        subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", *words], check=True)
    return checkpoint


def _plain_file(checkpoint: Path) -> Path:
    """Where the values of the last plain run are kept, for --skip-plain."""
    return checkpoint.with_name(f"{checkpoint.name}-plain.npz")


def benchmark(checkpoint: Path, sides: Sequence[str], repeat: int, threads: int) -> Result:
    """Run the sides in turn and compare each time; raises Disagreement, and then no time is known to anyone."""
    files = {"plain": _plain_file(checkpoint)}
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "twelve-capitals.jsonl"
        files["ours"] = Path(folder) / "ours.npz"
        write_questions(suite, AutoTokenizer.from_pretrained(checkpoint))
        for _ in range(repeat):
            for side in sides:
                costs[side].append(run_side(side, checkpoint, suite, files[side], threads))
            agreement = compare(load_readings(PlainReadings, files["plain"]), load_readings(Readings, files["ours"]))
    config = json.loads((checkpoint / "config.json").read_text())
    return Result(
        costs=costs,
        agreement=agreement,
        sweep_gflop=2e-9 * agreement.rows * config["hidden_size"] * config["vocab_size"],
        peak_gflops=matrix_product_peak(),
        model=f"Qwen3-1.7B's shape, {config['num_hidden_layers']} blocks, random weights stored in bfloat16",
        machine=describe_machine(threads),
    )


def main() -> int:
    """Prepare, measure, compare, report; exit code 1 when the sides disagree, 2 when there is nothing to compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=1, help="runs of each side, in turn (default: %(default)s)")
    parser.add_argument("--skip-plain", action="store_true", help="compare with the values of the last plain run")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: every core")
    parser.add_argument("--blocks", type=int, help="a model of so few blocks, for a trial; the page stays as it is")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    for name in ("--checkpoint", "--suite", "--out"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.checkpoint, arguments.suite, arguments.out, arguments.threads)
        return 0
    checkpoint = prepare_checkpoint(arguments.blocks)
    sides = ["ours"] if arguments.skip_plain else ["plain", "ours"]
    if arguments.skip_plain and not _plain_file(checkpoint).exists():
        print(
            "no earlier plain run to compare with, so no time could be reported; leave out --skip-plain once",
            file=sys.stderr,
        )
        return 2
    try:
        text = section(benchmark(checkpoint, sides, arguments.repeat, arguments.threads))
    except Disagreement as error:
        print(f"the two sides disagree, so no time is reported: {error}", file=sys.stderr)
        return 1
    print(text)
    if not arguments.skip_plain and arguments.blocks is None:
        write_section(DOCS, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
