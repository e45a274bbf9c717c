"""Tuned Lenses fitted by us and by the library `tuned-lens` 0.2.0, on the same tokens: held-out KL and wall time.

Three models of three families (the bundled Qwen3, a GPT-2 and a Llama that `scripts/train_small_models.py` trains in
minutes), and for each the same packed token ids for both sides. What is compared at every layer is the mean
KL(model || lens) in bits on rows that neither side has fitted on, by one function for both. Both sides also measure
their logit lens; where these differ the two do not read the same residuals, and nothing is reported.

    python benchmarks/fit.py --library-python ~/tuned-lens/bin/python    # all three models; writes the page's section
    python benchmarks/fit.py --repeat 3 --tokens-per-step 262144         # medians of three, the library's own step size
    python benchmarks/fit.py --steps 2                                   # a short trial; writes no section
    python benchmarks/fit.py --models my-model/ --text my.txt --json fit.json

The library wants an environment of its own: `pip install tuned-lens==0.2.0 'torchdata<0.10'` next to the versions of
torch and transformers of this one.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from held_out import held_out_bits, load_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from layerscope.fitting.affine import MOST_HELD_OUT
from layerscope.fitting.corpus import PARTS, Corpus
from layerscope.fitting.tuned import TunedSettings, fit_tuned
from layerscope.lens_record import CorpusRecord, SplitRecord
from layerscope.lenses.lens_folder import tuned_lens
from layerscope.lenses.logit_lens import LogitLens
from layerscope.model.causal_lm import CausalLM
from layerscope.unembedding import Unembedding

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- fit: begin -->", "<!-- fit: end -->"
BUNDLED = ROOT / "src" / "layerscope" / "reference_model"
SMALL = ROOT / "checkpoints" / "small"
SMALL_STEPS = {"gpt2": 1000, "llama": 1000}
"""Training steps of the other two models: a few minutes each on one core."""
TEXT_SEED = 1000
"""Of the text to fit on; the small models learned from seed 0."""

ROW_TOKENS = 128
SPLITS = {"fit": 200_000, "select": 10_000, "held_out": 20_000}
"""Tokens of each split, rounded up to whole rows: to fit on, to choose by (our side), to measure on."""
BITS_TOLERANCE = 1e-3
"""Between the two sides' logit lenses: in bits up to one bit, relative above."""


LIBRARY_STEPS = 250
LIBRARY_OPTIONS = ["optimiser", "steps", "tokens-per-step", "precision", "threads"]
"""Handed on to `tuned_lens_library.py` as they are."""


class Disagreement(Exception):
    """The two sides' logit lenses differ, so that they did not read the same residuals."""


@dataclass(frozen=True)
class OurLayer:
    """Mean KL(model || lens) in bits on the held-out rows at one layer."""

    logit: float
    bias_only: float | None
    """None where the fit has no such candidate."""
    closed_form: float | None
    tuned: float
    """Of the lens that the fit hands over."""


@dataclass(frozen=True)
class TheirLayer:
    """Mean KL(model || lens) in bits on the held-out rows at one layer."""

    logit: float
    tuned: float


@dataclass(frozen=True)
class Comparison:
    """One model, both sides."""

    model: str
    n_fit: int
    """Distinct tokens that both sides fit on."""
    n_held_out: int
    """Measured positions."""
    ours: dict[int, OurLayer]
    """By layer, 0..n_layers-1, of the last repetition."""
    theirs: dict[int, TheirLayer]
    ours_seconds: list[float]
    """One for each repetition."""
    theirs_seconds: list[float]
    theirs_recipe: dict[str, str | int]
    theirs_tokens_seen: int


# --- what both sides share --------------------------------------------------------------------------------------------


def packed_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Split -> token ids [row, position]: documents one after another, each ended by the end token, without gaps.

    A document that came before is left out, and every split begins with a document of its own, so that no two splits
    share one. Raises ValueError when the text is too short for all splits.
    """
    documents = iter(dict.fromkeys(text.strip().split("\n\n")))
    rows: dict[str, Tensor] = {}
    for name, tokens in SPLITS.items():
        wanted = ROW_TOKENS * math.ceil(tokens / ROW_TOKENS)
        ids: list[int] = []
        for document in documents:
            ids += [*tokenizer(document, verbose=False)["input_ids"], tokenizer.eos_token_id]
            if len(ids) >= wanted:
                break
        else:
            raise ValueError(
                f"expected {wanted:,} tokens for the split {name}, found {len(ids):,} in documents that did not come "
                "before; give a longer text with --text"
            )
        rows[name] = torch.tensor(ids[:wanted]).view(-1, ROW_TOKENS)
    return rows


# --- our side ---------------------------------------------------------------------------------------------------------


def ours(folder: Path, corpus_ids: Mapping[str, Tensor], first_position: int) -> tuple[float, dict[int, OurLayer]]:
    """Fit by `layerscope.fitting.tuned.fit_tuned`: seconds (the model was opened before) and the figures by layer.

    Bias alone and closed form are as the fit itself measures them, on a sample of the same rows; the logit lens and the
    lens that is handed over are measured by `held_out_bits`, as the other side's are.
    """
    model = CausalLM.open(folder, device="cpu")
    corpus = _corpus(corpus_ids)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        fitted = fit_tuned(model, corpus, Path(scratch) / "lens", TunedSettings(rank="full"))
        seconds = time.perf_counter() - start
        lens = tuned_lens(fitted, model.final_norm)
    logit_lens = LogitLens(model.final_norm)
    decoders = {
        "logit": lambda state, layer: logits_of(logit_lens(state, layer), model.unembedding),
        "tuned": lambda state, layer: logits_of(lens(state, layer), model.unembedding),
    }
    bits = held_out_bits(load_model(folder), corpus_ids["held_out"], decoders, first_position)
    fits = fitted.record.tuned.layers if fitted.record.tuned is not None else ()
    return seconds, {
        fit.layer: OurLayer(bits["logit"][fit.layer], fit.bias_bits, fit.closed_form_bits, bits["tuned"][fit.layer])
        for fit in fits
    }


def logits_of(rows: Tensor, head: Unembedding) -> Tensor:
    """What the model's own head makes of rows [row, position, d_model]: with projection, bias and transform."""
    logits = head.transform.apply_(head.logits(head.head_input(rows.flatten(0, 1))))
    return logits.unflatten(0, rows.shape[:2])


def _corpus(ids: Mapping[str, Tensor]) -> Corpus:
    """Packed ids as a corpus of unknown origin."""
    splits = {
        name: SplitRecord(n_documents=0, n_tokens=part.numel(), n_sequences=len(part)) for name, part in ids.items()
    }
    digest = hashlib.sha256(b"".join(ids[name].numpy().tobytes() for name in PARTS)).hexdigest()
    record = CorpusRecord(
        sources=(), sha256=digest, n_documents=0, n_repeated=0, seq_len=ROW_TOKENS, bos=False, splits=splits
    )
    return Corpus(*(ids[name] for name in PARTS), record)


# --- the other side ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TheirRun:
    """What `tuned_lens_library.py` printed."""

    recipe: dict[str, str | int]
    seconds: float
    tokens_seen: int
    layers: dict[int, TheirLayer]


def theirs(python: str, model_folder: Path, ids: Path, options: Sequence[str]) -> TheirRun:
    """Train the library's lens in the interpreter that has it; its progress goes to our stderr."""
    script = str(Path(__file__).with_name("tuned_lens_library.py"))
    words = [python, script, "--model", str(model_folder), "--ids", str(ids), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    logit, tuned = found["logit_bits"], found["tuned_bits"]
    layers = {int(layer): TheirLayer(logit[layer], tuned[layer]) for layer in tuned}
    return TheirRun(found["recipe"], found["seconds"], found["tokens_seen"], layers)


# --- the comparison ---------------------------------------------------------------------------------------------------


def check_logit_lenses(mine: Mapping[int, OurLayer], other: Mapping[int, TheirLayer]) -> None:
    """Raises Disagreement unless both sides found the same logit lens at the same layers."""
    if mine.keys() != other.keys():
        raise Disagreement(f"expected the same layers on both sides, found {sorted(mine)} and {sorted(other)}")
    for layer, found in mine.items():
        expected = other[layer].logit
        if not abs(found.logit - expected) <= BITS_TOLERANCE * max(1.0, expected):  # so that a NaN is refused too
            raise Disagreement(f"logit lens at layer {layer}: {found.logit} bits here, {expected} by the library")


def compare(name: str, folder: Path, text: str, python: str, options: Sequence[str], repeat: int) -> Comparison:
    """Both sides in turn, `repeat` times, on the same ids."""
    ids = packed_ids(text, AutoTokenizer.from_pretrained(folder))
    first_position = 1
    ours_seconds: list[float] = []
    runs: list[TheirRun] = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "ids.safetensors"
        save_file(ids, file)
        for _ in range(repeat):
            seconds, layers = ours(folder, ids, first_position)
            ours_seconds.append(seconds)
            runs.append(theirs(python, folder, file, [*options, "--first-position", str(first_position)]))
            check_logit_lenses(layers, runs[-1].layers)
    return Comparison(
        model=name,
        n_fit=ids["fit"].numel(),
        n_held_out=ids["held_out"][:, first_position:].numel(),
        ours=layers,
        theirs=runs[-1].layers,
        ours_seconds=ours_seconds,
        theirs_seconds=[run.seconds for run in runs],
        theirs_recipe=runs[-1].recipe,
        theirs_tokens_seen=runs[-1].tokens_seen,
    )


# --- the report -------------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> str:
    """One model in Markdown: the figures by layer, then what they took."""
    header = ["layer", "logit lens", "bias alone", "closed form", "layerscope", "tuned-lens 0.2.0"]
    rows = []
    for layer, mine in comparison.ours.items():
        figures = (mine.logit, mine.bias_only, mine.closed_form, mine.tuned, comparison.theirs[layer].tuned)
        rows.append([str(layer), *("–" if bits is None else f"{bits:.4f}" for bits in figures)])
    lines = ["| " + " | ".join(line) + " |" for line in [header, ["---:"] * len(header), *rows]]
    return "\n".join([f"### {comparison.model}", "", *lines, "", _cost(comparison)])


def _cost(comparison: Comparison) -> str:
    mine, other = map(statistics.median, (comparison.ours_seconds, comparison.theirs_seconds))
    not_above = sum(layer.tuned <= comparison.theirs[index].tuned for index, layer in comparison.ours.items())
    recipe, seen = comparison.theirs_recipe, comparison.theirs_tokens_seen
    return (
        f"At or below the library's KL at {not_above} of {len(comparison.ours)} layers. layerscope {mine:.1f} s, the "
        f"library {other:.1f} s: {other / mine:.1f} times as long. {comparison.n_fit:,} tokens to fit on, "
        f"{comparison.n_held_out:,} positions measured. The library: {recipe['optimiser']}, {recipe['steps']} steps of "
        f"{seen // int(recipe['steps']):,} tokens ({seen / comparison.n_fit:.0f} times over the same text), "
        f"{recipe['precision']}."
    )


def section(comparisons: Sequence[Comparison], repeat: int, machine: str) -> str:
    """The page's section in Markdown."""
    lead = (
        "Mean KL(model || lens) in bits on rows that neither side fitted on and that share no document with those, at "
        "each layer that has a translator; both sides fit on the same packed ids. The logit lens and the two fitted "
        "lenses are measured by the same function, in float64, at every position but a row's first. Bias alone and "
        "closed form are steps on layerscope's way, as its fit measures them itself: on up to "
        f"{MOST_HELD_OUT:,} positions drawn from the same rows, without their last. Times are of the training alone, "
        "the model loaded before; on our side they include these figures. "
        f"{'One run' if repeat == 1 else f'Medians of {repeat} runs'}, the two sides in turn."
    )
    return "\n\n".join(["## Fitting a Tuned Lens, side by side", lead, *map(table, comparisons), machine])


def describe_machine(threads: int, python: str) -> str:
    """Processor, threads and versions of both interpreters; no name of a host, no path."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = cpu[0].partition(":")[2].strip() if cpu else platform.machine()
    code = "from importlib.metadata import version as v; print(v('torch'), v('transformers'))"
    torch_there, transformers_there = subprocess.check_output([python, "-c", code], text=True).split()
    return (
        f"Machine: {processor} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores, {threads} "
        f"thread{'s' if threads > 1 else ''}; Python {platform.python_version()}, torch {metadata.version('torch')}, "
        f"transformers {metadata.version('transformers')}; the library beside torch {torch_there}, transformers "
        f"{transformers_there}."
    )


def write_section(page: Path, text: str) -> None:
    """Put `text` between the page's markers, or at its end when it has none yet."""
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    marked = f"{BEGIN}\n{text}\n{END}"
    if BEGIN in old and END in old:
        new = old[: old.index(BEGIN)] + marked + old[old.index(END) + len(END) :]
    else:
        new = f"{old.rstrip()}\n\n{marked}\n"
    page.write_text(new)


# --- the shell --------------------------------------------------------------------------------------------------------


def prepare_models() -> dict[str, Path]:
    """The bundled model and the two small ones, trained on the first call."""
    folders = {"bundled Qwen3, d_model 96, 12 blocks": BUNDLED}
    for family, steps in SMALL_STEPS.items():
        folder = SMALL / f"{family}-{steps}-steps"
        if not folder.exists():
            _train_small_models("--family", family, "--out", str(folder), "--steps", str(steps))
        folders[f"small {family}, d_model 128, 6 blocks"] = folder
    return folders


def prepare_text() -> str:
    """Text that the small models were not trained on, written on the first call; a fifth more than is used at most.

    Its sentences come from patterns, and about one token in fifteen is in a document that came before.
    """
    tokens = sum(SPLITS.values()) * 6 // 5
    file = SMALL / f"corpus-{TEXT_SEED}-{tokens}.txt"
    if not file.exists():
        _train_small_models("--text", str(file), "--tokens", str(tokens), "--seed", str(TEXT_SEED))
    return file.read_text()


def _train_small_models(*words: str) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "train_small_models.py", *words], check=True)


def main() -> int:
    """Prepare, fit on both sides, compare, report; exit code 1 when the sides do not read the same residuals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library-python", default=sys.executable, help="interpreter that has tuned-lens 0.2.0")
    parser.add_argument("--models", type=Path, nargs="+", help="Transformers folders instead of the three models")
    parser.add_argument("--text", type=Path, help="text with blank lines between documents, instead of ours")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each side, in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides (default: every core)")
    parser.add_argument("--optimiser", default="sgd", help="the library's: sgd or adam (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=LIBRARY_STEPS, help="the library's (default: %(default)s)")
    parser.add_argument("--tokens-per-step", type=int, default=2**14, help="the library's (default: %(default)s)")
    parser.add_argument("--precision", default="float32", help="the library's: or bfloat16 (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in LIBRARY_OPTIONS]
    models = {folder.name: folder for folder in arguments.models} if arguments.models else prepare_models()
    text = arguments.text.read_text() if arguments.text else prepare_text()
    comparisons = []
    for name, folder in models.items():
        try:
            found = compare(name, folder, text, arguments.library_python, options, arguments.repeat)
        except Disagreement as error:
            print(f"{name}: the two sides disagree, so nothing is reported: {error}", file=sys.stderr)
            return 1
        comparisons.append(found)
        print(table(found), flush=True)
    machine = describe_machine(arguments.threads, arguments.library_python)
    print(machine)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "models": list(map(asdict, comparisons))}, indent=1))
    if not arguments.models and not arguments.text and arguments.steps == LIBRARY_STEPS:
        write_section(DOCS, section(comparisons, arguments.repeat, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
