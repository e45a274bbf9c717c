"""The other side of `fit.py`: the Tuned Lenses that the library `tuned-lens` 0.2.0 trains on the same tokens.

What runs is the library's own training loop (`tuned_lens.scripts.train_loop.Train.execute`) with its own lens, loss and
optimiser, as its command `tuned-lens train` sets them when no option is given: KL from the model, SGD with Nesterov
momentum 0.9 at learning rate 1 (written (1 - momentum) in torch's terms) that decays linearly to zero, weight decay
1e-3, gradients of all translators clipped together at norm 1, 250 steps (Belrose et al. 2023, arXiv:2303.08112,
section 3). Ours are four things:

- the tokens come from a file, over and over in fresh orders, in place of a downloaded data set;
- one pass takes as many short rows as make up one of the library's long samples;
- the final norm of a family that the library does not know is handed to it;
- the model is loaded in float32, whatever its file holds, and unless asked for the lens computes in it too, without
  bfloat16 autocast, which on a processor without bfloat16 is slower and less exact.

    python benchmarks/tuned_lens_library.py --model small/gpt2 --ids ids.safetensors --tokens-per-step 16384

It needs `tuned-lens==0.2.0` and, for the training loop, `torchdata<0.10`; no part of layerscope. One line of JSON on
stdout; all that the library says goes to stderr.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from held_out import held_out_bits, load_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchdata announces its end, at every start
    from tuned_lens import model_surgery
    from tuned_lens.nn.lenses import LogitLens, TunedLens
    from tuned_lens.scripts import ingredients
    from tuned_lens.scripts.train_loop import State, Train

STEPS = 250
TOKENS_PER_STEP = 2**18
PASS_TOKENS = 2048
"""Tokens that the library passes through the model at once: one sample of its default length."""
OPTIMISERS = {option.value: option for option in ingredients.OptimizerOption}


@dataclass(frozen=True)
class Recipe:
    """What may be set from outside; all the rest is the library's default."""

    optimiser: str
    """`sgd` (lr 1) or `adam` (lr 1e-3, AMSGrad); the library's own option, warm-up as 0.2.0 does it: none."""
    steps: int
    tokens_per_step: int
    """As asked; the library rounds it up to whole passes."""
    precision: str
    """Of translators, logits and loss: `float32`, or `bfloat16` under autocast as the library does it."""
    seed: int


@dataclass(frozen=True)
class Theirs:
    """What one training came to."""

    recipe: Recipe
    seconds: float
    """Of the training loop, forward passes included; the model was loaded before."""
    tokens_seen: int
    logit_bits: dict[int, float]
    """Layer -> mean KL(model || logit lens) on the held-out rows, by the library's LogitLens."""
    tuned_bits: dict[int, float]


@dataclass
class TrainOnTokens(Train):
    """The library's training, its model and data given and not loaded."""

    given_model: PreTrainedModel | None = None
    rows: Tensor | None = None
    """Token ids [row, position]."""

    def setup(self) -> tuple[State, PreTrainedModel, int]:
        """All that the library's own `setup` hands to `execute`, but for data set and tokenizer."""
        assert self.given_model is not None and self.rows is not None
        with known_to_the_library(self.given_model):
            lens = self.get_lens(self.given_model)
        optimiser = self.opt.create_optim([weight for weight in lens.parameters() if weight.requires_grad])
        state = State(
            dataloader=batches(self.rows, self.dist.per_gpu_batch_size, self.seed),
            lens=lens,
            opt=optimiser,
            scheduler=self.opt.create_scheduler(optimiser, self.num_steps),
            wandb_id=None,
            nats_to_bpb=1.0,
        )
        return state, self.given_model, self.calculate_gradient_accumulation_steps(self.rows.shape[1])


def batches(rows: Tensor, batch_rows: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Whole batches without end: the rows in a fresh order each time they have all been seen."""
    generator = torch.Generator().manual_seed(seed)
    waiting = rows[:0]
    while True:
        waiting = torch.cat([waiting, rows[torch.randperm(len(rows), generator=generator)]])
        *whole, waiting = waiting.split(batch_rows)
        for batch in whole:
            yield {"input_ids": batch}


@contextmanager
def known_to_the_library(model: PreTrainedModel) -> Iterator[None]:
    """Give the library the final norm of a Qwen3, which it refuses to look for; other families it finds by itself."""
    if model.config.model_type != "qwen3":
        yield
        return
    with mock.patch.object(model_surgery, "get_final_norm", lambda model: model.base_model.norm):
        yield


def train(model: PreTrainedModel, rows: Tensor, recipe: Recipe, folder: Path) -> tuple[TunedLens, float, int]:
    """The trained lens, the seconds that the loop took, and how many tokens it saw; `folder` gets the lens too."""
    training = TrainOnTokens(
        model=ingredients.Model(name=model.config.name_or_path),
        data=ingredients.Data(),
        opt=ingredients.Optimizer(optimizer=OPTIMISERS[recipe.optimiser]),
        dist=ingredients.Distributed(per_gpu_batch_size=max(1, PASS_TOKENS // rows.shape[1])),
        output=folder,
        num_steps=recipe.steps,
        tokens_per_step=recipe.tokens_per_step,
        seed=recipe.seed,
        given_model=model,
        rows=rows,
    )
    autocast = partial(torch.autocast, enabled=recipe.precision == "bfloat16")
    started = time.monotonic()
    with mock.patch.object(torch, "autocast", autocast):
        training.execute()
    seconds = time.monotonic() - started
    with known_to_the_library(model):
        lens = TunedLens.from_model_and_pretrained(model, str(folder))
    per_step = training.calculate_gradient_accumulation_steps(rows.shape[1]) * training.dist.per_gpu_batch_size
    return lens, seconds, recipe.steps * per_step * rows.shape[1]


def run(model_folder: Path, ids: Path, recipe: Recipe, first_position: int, out: Path) -> Theirs:
    """Load, train, and measure on the held-out rows."""
    model, tokens = load_model(model_folder), load_file(ids)
    lens, seconds, tokens_seen = train(model, tokens["fit"], recipe, out)
    with known_to_the_library(model):
        logit_lens = LogitLens.from_model(model)
    decoders: dict[str, Callable[[Tensor, int], Tensor]] = {"logit": logit_lens, "tuned": lens}
    bits = held_out_bits(model, tokens["held_out"], decoders, first_position)
    return Theirs(recipe, seconds, tokens_seen, logit_bits=bits["logit"], tuned_bits=bits["tuned"])


def main() -> None:
    """Train one lens and print what it came to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a Transformers folder")
    parser.add_argument("--ids", type=Path, required=True, help="safetensors with fit and held_out, [row, position]")
    parser.add_argument("--optimiser", choices=list(OPTIMISERS), default="sgd", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument(
        "--tokens-per-step", type=int, default=TOKENS_PER_STEP, help="never more than there are (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s")
    parser.add_argument("--first-position", type=int, default=1, help="first measured position (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder to keep the lens in, as the library writes it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_fit = load_file(arguments.ids)["fit"].numel()
    recipe = Recipe(
        optimiser=arguments.optimiser,
        steps=arguments.steps,
        tokens_per_step=min(arguments.tokens_per_step, n_fit),
        precision=arguments.precision,
        seed=arguments.seed,
    )
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder)
        theirs = run(arguments.model, arguments.ids, recipe, arguments.first_position, out)
    print(json.dumps(asdict(theirs)))


if __name__ == "__main__":
    main()
