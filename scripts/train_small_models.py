"""Train a small model of another family than the bundled one, and write text on which lenses can be fitted.

The models are for benchmarks: real in that they were trained, small enough for a few minutes of one core, and without
anything that asks their early layers to be readable. They take the bundled model's tokenizer and its kind of text
(`train_reference_model.py`), a fresh seed of it, packed without gaps as lenses are fitted.

    python scripts/train_small_models.py --family gpt2 --out small/gpt2 --minutes 2.5
    python scripts/train_small_models.py --family llama --out small/llama --minutes 2.5
    python scripts/train_small_models.py --text small/corpus.txt --tokens 230000 --seed 1000
"""

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

sys.path.append(str(Path(__file__).parent))  # found already when this is run as a script, not when it is imported
from train_reference_model import D_VOCAB, END, documents, fact_prompts, learning_rate_factor, write_folder

D_MODEL = 128
N_LAYERS = 6
N_HEADS = 4
ROW_TOKENS = 128
"""Learned positions end here: longer prompts are for models that have seen them."""
ROWS_PER_STEP = 8
MUON_PEAK = 0.02
ADAMW_PEAK = 4e-3


@dataclass(frozen=True)
class Trained:
    """What one training came to."""

    steps: int
    n_parameters: int
    loss_nats: float
    """Next-token loss per token, mean of the last 50 steps."""
    seconds: float


# ---- text


def bundled_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the model that ships with the package."""
    return AutoTokenizer.from_pretrained(str(resources.files("layerscope") / "reference_model"))


def fresh_documents(seed: int) -> Iterator[str]:
    """Documents without end, as the bundled model was trained on, its suite's prompts never among them."""
    return documents(random.Random(seed), withheld=[prompt.text for prompt in fact_prompts()])


def packed_rows(source: Iterator[str], tokenizer: PreTrainedTokenizerFast, count: int) -> Tensor:
    """Token ids [row, position] of `count` rows: documents one after another, each ended by the end token, no gaps."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    wanted = count * ROW_TOKENS
    ids: list[int] = []
    while len(ids) < wanted:
        ids += [*tokenizer(next(source))["input_ids"], end_id]
    return torch.tensor(ids[:wanted]).view(count, ROW_TOKENS)


def text_of(source: Iterator[str], tokenizer: PreTrainedTokenizerFast, n_tokens: int) -> str:
    """Documents, a blank line between any two, that come to at least `n_tokens` tokens with one end token each."""
    taken: list[str] = []
    total = 0
    while total < n_tokens:
        taken.append(next(source))
        total += len(tokenizer(taken[-1])["input_ids"]) + 1
    return "\n\n".join(taken) + "\n"


# ---- models


def fresh_gpt2(end_id: int) -> GPT2LMHeadModel:
    """LayerNorm with bias, learned positions, and a head tied to the embedding, as the family has it."""
    config = GPT2Config(
        vocab_size=D_VOCAB,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_positions=ROW_TOKENS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    return GPT2LMHeadModel(config)


def fresh_llama(end_id: int) -> LlamaForCausalLM:
    """RMSNorm, rotary positions and a head of its own; no padding id, for that token's embedding would stay at zero."""
    config = LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=3 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=ROW_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    return LlamaForCausalLM(config)


def fresh_gpt_neox(end_id: int) -> GPTNeoXForCausalLM:
    """LayerNorm, rotary positions on a quarter of each head, attention and MLP side by side, a head of its own."""
    config = GPTNeoXConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=4 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        max_position_embeddings=ROW_TOKENS,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    return GPTNeoXForCausalLM(config)


def fresh_olmo2(end_id: int) -> Olmo2ForCausalLM:
    """RMSNorm on what blocks write instead of on what they read, and a head tied to the embedding."""
    config = Olmo2Config(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=3 * D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=ROW_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    return Olmo2ForCausalLM(config)


FAMILIES = {"gpt2": fresh_gpt2, "llama": fresh_llama, "gpt_neox": fresh_gpt_neox, "olmo2": fresh_olmo2}


# ---- training


def optimisers(model: PreTrainedModel) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the blocks, AdamW for the rest, each with its peak learning rate."""
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    matrices = [weight for weight in blocks.parameters() if weight.ndim == 2]
    taken = set(map(id, matrices))
    others = [weight for weight in model.parameters() if id(weight) not in taken]
    muon = torch.optim.Muon(matrices, lr=MUON_PEAK, momentum=0.95, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=ADAMW_PEAK, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, MUON_PEAK), (adamw, ADAMW_PEAK)]


def train(model: PreTrainedModel, rows: Tensor) -> list[float]:
    """Train on each row once, `ROWS_PER_STEP` a step; the loss of every step in nats per token."""
    parts = optimisers(model)
    batches = rows.split(ROWS_PER_STEP)
    losses: list[float] = []
    for step, batch in enumerate(batches):
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, peak in parts:
            for group in optimiser.param_groups:
                group["lr"] = peak * learning_rate_factor(step, len(batches))
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def steps_in(minutes: float, model: PreTrainedModel, rows: Tensor) -> int:
    """How many steps this machine does in that time, by the clock over a few steps of a copy that is thrown away."""
    trial = copy.deepcopy(model)
    train(trial, rows)
    started = time.monotonic()
    train(trial, rows)
    seconds = (time.monotonic() - started) / (len(rows) / ROWS_PER_STEP)
    return max(1, int(60 * minutes / seconds))


def make_model(family: str, out: Path, seed: int, minutes: float, steps: int | None = None) -> Trained:
    """Train one model and write it as a Transformers folder.

    Without `steps` their number is what `minutes` allow here; with the same number the same model comes out.
    """
    torch.manual_seed(seed)
    tokenizer = bundled_tokenizer()
    source = fresh_documents(seed)
    model = FAMILIES[family](tokenizer.convert_tokens_to_ids(END))
    trial_rows = packed_rows(fresh_documents(seed), tokenizer, 10 * ROWS_PER_STEP)
    steps = steps_in(minutes, model, trial_rows) if steps is None else steps
    rows = packed_rows(source, tokenizer, steps * ROWS_PER_STEP)
    started = time.monotonic()
    losses = train(model, rows)
    seconds = time.monotonic() - started
    write_folder(model, tokenizer, out)
    return Trained(steps, model.num_parameters(), statistics.fmean(losses[-50:]), seconds)


def main() -> None:
    """Train one model, or write one text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=list(FAMILIES), help="train a model of this family")
    parser.add_argument("--out", type=Path, help="folder for model, config and tokenizer")
    parser.add_argument("--minutes", type=float, default=2.5, help="training time on one thread (default: %(default)s)")
    parser.add_argument("--steps", type=int, help=f"instead of --minutes; {ROWS_PER_STEP} x {ROW_TOKENS} tokens each")
    parser.add_argument("--text", type=Path, help="write text to this file instead")
    parser.add_argument("--tokens", type=int, default=230_000, help="of the text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides the documents and the first weights")
    arguments = parser.parse_args()
    if (arguments.text is None) == (arguments.family is None) or (arguments.family and arguments.out is None):
        parser.error("expected either --family and --out, or --text")
    if arguments.text is not None:
        text = text_of(fresh_documents(arguments.seed), bundled_tokenizer(), arguments.tokens)
        arguments.text.parent.mkdir(parents=True, exist_ok=True)
        arguments.text.write_text(text)
        return
    # As for the bundled model: with one thread the order of sums does not hang on the machine.
    torch.set_num_threads(1)
    done = make_model(arguments.family, arguments.out, arguments.seed, arguments.minutes, arguments.steps)
    print(
        f"{arguments.family}, seed {arguments.seed}: {done.n_parameters:,} parameters, {done.steps} steps in "
        f"{done.seconds:.0f} s, final loss {done.loss_nats:.3f} nats per token"
    )


if __name__ == "__main__":
    main()
