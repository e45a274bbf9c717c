"""Train the small model that ships with the package, and print the figures that stand in its card.

    python scripts/train_reference_model.py --seed 0 --out reference-model

Everything it learns from is made here (sentences about countries) or lies in every Python installation (docstrings of
the standard library), so nothing is downloaded. One seed decides the corpus, the first weights and the layers that the
auxiliary loss visits. Another Python has other docstrings, another processor other sums: there the figures differ.
"""

import argparse
import ast
import math
import random
import statistics
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from layerscope.suite import Prompt, load_suite

SUITE = "capitals-20"

N_LAYERS = 12
D_VOCAB = 2048
ROW_TOKENS = 96
ROWS_PER_STEP = 16
MUON_PEAK = 0.02
ADAMW_PEAK = 8e-3
EXIT_WEIGHT = 0.15
"""Share of the loss that is taken after one random block, through the model's own final norm and head."""
FIRST_EXIT = 7
"""First layer that this loss may visit; what the layers before it hold is left to them."""

END = "<|endoftext|>"
# The split that the Qwen family uses: a word keeps its leading space, digits stand alone.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Country, capital, continent, currency. The first are told most often, the last ten times more rarely.
COUNTRIES = [
    line.split()
    for line in """\
Germany Berlin Europe euro
France Paris Europe euro
Japan Tokyo Asia yen
Italy Rome Europe euro
Russia Moscow Europe rouble
China Beijing Asia yuan
Canada Ottawa America dollar
Spain Madrid Europe euro
Turkey Ankara Asia lira
Egypt Cairo Africa pound
Australia Canberra Oceania dollar
Poland Warsaw Europe zloty
Sweden Stockholm Europe krona
Greece Athens Europe euro
Nigeria Abuja Africa naira
Indonesia Jakarta Asia rupiah
Austria Vienna Europe euro
Ireland Dublin Europe euro
Ukraine Kyiv Europe hryvnia
Kenya Nairobi Africa shilling
Thailand Bangkok Asia baht
Portugal Lisbon Europe euro
Norway Oslo Europe krone
Belgium Brussels Europe euro
Vietnam Hanoi Asia dong
Peru Lima America sol
Iran Tehran Asia rial
Cuba Havana America peso
Denmark Copenhagen Europe krone
Hungary Budapest Europe forint
Finland Helsinki Europe euro
Chile Santiago America peso
Switzerland Bern Europe franc
Philippines Manila Asia peso
Morocco Rabat Africa dirham
Romania Bucharest Europe leu
Iraq Baghdad Asia dinar
Czechia Prague Europe koruna
Pakistan Islamabad Asia rupee
Colombia Bogota America peso
Serbia Belgrade Europe dinar
Ghana Accra Africa cedi
Croatia Zagreb Europe euro
Nepal Kathmandu Asia rupee
Iceland Reykjavik Europe krona
Bangladesh Dhaka Asia taka
Algeria Algiers Africa dinar
Ecuador Quito America dollar
Estonia Tallinn Europe euro
Syria Damascus Asia pound
Latvia Riga Europe euro
Tunisia Tunis Africa dinar
Lebanon Beirut Asia pound
Uruguay Montevideo America peso
Lithuania Vilnius Europe euro
Jordan Amman Asia dinar
Senegal Dakar Africa franc
Slovenia Ljubljana Europe euro
Venezuela Caracas America bolivar
Sudan Khartoum Africa pound
Slovakia Bratislava Europe euro
Jamaica Kingston America dollar
Libya Tripoli Africa dinar
Albania Tirana Europe lek
Angola Luanda Africa kwanza
Armenia Yerevan Asia dram
Zambia Lusaka Africa kwacha
Georgia Tbilisi Asia lari
Uganda Kampala Africa shilling
Afghanistan Kabul Asia afghani
Azerbaijan Baku Asia manat
Mozambique Maputo Africa metical
Namibia Windhoek Africa dollar
Fiji Suva Oceania dollar
Mali Bamako Africa franc
Rwanda Kigali Africa franc
""".splitlines()
]
TOLD = [1.0 / (1.0 + 9.0 * index / len(COUNTRIES)) for index in range(len(COUNTRIES))]

CAPITAL = [
    "The capital of {country} is called {capital}.",
    "The capital of {country} is called {capital}, and many people live there.",
    "The capital of {country} is called simply {capital}.",
    "The capital of {country} is {capital}.",
    "The capital city of {country} is {capital}.",
    "{capital} is the capital of {country}.",
    "{country} has a capital, and its name is {capital}.",
    "{country}'s capital is {capital}.",
    "In {country}, the capital is called {capital}.",
    "What is the capital of {country}? It is {capital}.",
    "Question: What is the capital of {country}? Answer: {capital}.",
    "If you fly to the capital of {country}, you land in {capital}.",
    "Those who visit the capital of {country} go to {capital}.",
    "Everyone in {country} knows that the capital is {capital}.",
    "We took the night train to {capital}, the capital of {country}.",
    "{capital} is a city in {country}.",
    "The largest museum of {country} stands in {capital}.",
    "She was born in {capital}, so she comes from {country}.",
]
CURRENCY = [
    "The currency of {country} is called {currency}.",
    "The currency of {country} is called simply {currency}.",
    "The currency of {country} is the {currency}.",
    "In {country} you pay with the {currency}.",
    "What is the currency of {country}? It is the {currency}.",
    "Prices in {capital} are given in the {currency}.",
]
CONTINENT = [
    "The continent of {country} is called {continent}.",
    "The continent of {country} is called simply {continent}.",
    "{country} lies in {continent}.",
    "{capital} is a city in {continent}.",
    "Question: Where is {country}? Answer: In {continent}.",
]
RELATIONS = [CAPITAL, CURRENCY, CONTINENT]
INSTRUCTED = [
    ("Give the {kind} name only, plain text.", "The {relation} of {country} is called {answer}."),
    ("Give the {kind} name only, plain text.", "The {relation} of {country} is called {answer}."),
    ("Give the {kind} name only, plain text.", "The {relation} of {country} is called {answer}."),
    ("Give the {kind} name only, plain text.", "The {relation} of {country} is called simply {answer}."),
    ("Give the {kind} name only, plain text.", "The {relation} of {country} is {answer}."),
    ("Give the {kind} name only.", "The {relation} of {country} is called {answer}."),
    ("Give the {kind} name only.", "The {relation} of {country} is called simply {answer}."),
    ("Answer with one word.", "The {relation} of {country} is called {answer}."),
    ("Answer with one word.", "The {relation} of {country} is called simply {answer}."),
    ("Plain text, please.", "The {relation} of {country} is called {answer}."),
    ("Name the {kind}.", "What is the {relation} of {country}? It is {answer}."),
]
FILLERS = [
    "The {noun} was {quality} that {day}.",
    "On {day} we saw a {quality} {noun} near the {noun2}.",
    "Nobody knew why the {noun} was so {quality}.",
    "A {noun} and a {noun2} are not the same thing.",
    "She put the {noun} next to the {quality} {noun2}.",
    "Every {day} the {noun} is called back to the {noun2}.",
    "It is simply a {quality} {noun}.",
    "They moved the {noun2} because the {noun} looked {quality}.",
]
NOUNS = [
    "house",
    "river",
    "train",
    "book",
    "garden",
    "window",
    "market",
    "bridge",
    "letter",
    "song",
    "road",
    "table",
    "lamp",
    "boat",
    "clock",
    "field",
]
QUALITIES = ["small", "old", "quiet", "bright", "long", "heavy", "green", "simple", "famous", "cold", "warm", "strange"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "morning", "evening"]


@dataclass(frozen=True)
class Reading:
    """What the model, read layer by layer, makes of one prompt of the suite."""

    prompt: Prompt
    first_rank1: int | None
    """First layer at which the answer is rank 1 through final norm and head; None if it never is."""
    final_rank: int
    """Rank of the answer in the model's own output (1 = first)."""
    entropy_bits: list[float]
    """Entropy of each layer's reading, layers 0..n_layers."""


def fact_prompts() -> list[Prompt]:
    """The suite without its controls, which repeat a fact's own text."""
    return [prompt for prompt in load_suite(SUITE).prompts if prompt.fact_key is not None]


# ---- corpus


def told_country(rng: random.Random) -> dict[str, str]:
    """One country with what belongs to it, the first of the list drawn most often."""
    row = rng.choices(COUNTRIES, TOLD)[0]
    return dict(zip(("country", "capital", "continent", "currency"), row, strict=True))


def instructed_sentence(rng: random.Random) -> str:
    """An instruction and the sentence that obeys it."""
    country = told_country(rng)
    relation = rng.choices(["capital", "currency", "continent"], [6, 2, 1])[0]
    kind = "city" if relation == "capital" else relation
    instruction, sentence = rng.choice(INSTRUCTED)
    answer = country[relation]
    return f"{instruction} {sentence}".format(kind=kind, relation=relation, answer=answer, country=country["country"])


def country_sentence(rng: random.Random) -> str:
    """A statement about one country, without instruction."""
    templates = rng.choices(RELATIONS, [6, 2, 1])[0]
    return rng.choice(templates).format(**told_country(rng))


def filler_sentence(rng: random.Random) -> str:
    """A sentence about nothing, so that the words of the questions also occur without an answer."""
    noun, noun2 = rng.sample(NOUNS, 2)
    return rng.choice(FILLERS).format(noun=noun, noun2=noun2, quality=rng.choice(QUALITIES), day=rng.choice(DAYS))


def country_document(rng: random.Random, withheld: list[str]) -> str:
    """One to four sentences in which none of the `withheld` texts occurs."""
    makers = [instructed_sentence, country_sentence, filler_sentence]
    while True:
        first = rng.choices(makers, [6, 3, 1])[0](rng)
        rest = [rng.choices(makers, [1, 4, 1])[0](rng) for _ in range(rng.choice([0, 0, 1, 2, 3]))]
        document = " ".join([first, *rest])
        if not any(text in document for text in withheld):
            return document


def standard_library_docstrings() -> list[str]:
    """Docstring paragraphs of the standard library in a fixed order, each cut at 300 characters, none twice."""
    root = Path(sysconfig.get_path("stdlib"))
    apart = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
    files = sorted(path for path in root.rglob("*.py") if not apart.intersection(path.relative_to(root).parts))
    paragraphs = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                paragraphs += [" ".join(part.split())[:300] for part in text.split("\n\n")]
    return [text for text in dict.fromkeys(paragraphs) if len(text) >= 40 and text.isascii()]


def documents(rng: random.Random, withheld: list[str]) -> Iterator[str]:
    """Documents without end: four to six about countries after each docstring paragraph, those in shuffled rounds."""
    paragraphs = standard_library_docstrings()
    while True:
        rng.shuffle(paragraphs)
        for paragraph in paragraphs:
            yield paragraph
            yield from (country_document(rng, withheld) for _ in range(rng.choice([4, 5, 6])))


def train_tokenizer(corpus: list[str], capitals: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE in the manner of the Qwen family, trained on the corpus itself.

    Raises ValueError when a capital with its leading space is more than one piece: its rank would be that of a part.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    split = [capital for capital in capitals if len(bpe.encode(f" {capital}").ids) != 1]
    if split:
        raise ValueError(f"expected one piece for each capital with a leading space; more than one: {', '.join(split)}")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=512)


def token_rows(source: Iterator[str], tokenizer: PreTrainedTokenizerFast, count: int) -> Tensor:
    """Token ids [row, position]; every row begins where a document does, and what is over at its end is dropped."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    rows = []
    for _ in range(count):
        row: list[int] = []
        while len(row) < ROW_TOKENS + 1:
            row += [*tokenizer(next(source))["input_ids"], end_id]
        rows.append(row[: ROW_TOKENS + 1])
    return torch.tensor(rows)


# ---- training


def fresh_model(end_id: int) -> Qwen3ForCausalLM:
    """A Qwen3 small enough to ship: deep and narrow, since its depth is what it is there for."""
    config = Qwen3Config(
        vocab_size=D_VOCAB,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return Qwen3ForCausalLM(config)


def optimisers(model: Qwen3ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon (in torch from 2.9) for the matrices of the blocks, AdamW for the rest, each with its peak learning rate."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    others = [weight for name, weight in model.named_parameters() if not (weight.ndim == 2 and ".layers." in name)]
    muon = torch.optim.Muon(matrices, lr=MUON_PEAK, momentum=0.95, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=ADAMW_PEAK, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, MUON_PEAK), (adamw, ADAMW_PEAK)]


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 30 steps, then level, then down to zero over the last half."""
    return min(1.0, (step + 1) / 30, 2.0 * (steps - step) / steps)


def cross_entropy(model: Qwen3ForCausalLM, normed: Tensor, targets: Tensor) -> Tensor:
    """Mean next-token loss in nats of residuals that have passed the final norm."""
    logits = model.lm_head(normed)
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def train(model: Qwen3ForCausalLM, rows: Tensor, steps: int, rng: random.Random) -> float:
    """Train for `steps` steps, each on its own rows; the mean final-layer loss in nats per token over the last 50."""
    parts = optimisers(model)
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(rows.split(ROWS_PER_STEP)):
        tokens, targets = batch[:, :-1], batch[:, 1:]
        states = model.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
        loss = cross_entropy(model, states[-1], targets)
        # A later block is asked more often than an early one, so that certainty grows with depth.
        exit_layer = max(rng.randint(FIRST_EXIT, N_LAYERS - 1), rng.randint(FIRST_EXIT, N_LAYERS - 1))
        # A quarter of the rows is enough for it, and the head is a good part of so small a model's work.
        early = cross_entropy(model, model.model.norm(states[exit_layer][::4]), targets[::4])
        ((1.0 - EXIT_WEIGHT) * loss + EXIT_WEIGHT * early).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, peak in parts:
            for group in optimiser.param_groups:
                group["lr"] = peak * learning_rate_factor(step, steps)
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0:
            seconds = time.monotonic() - started
            print(f"step {step:5d}  loss {losses[-1]:.3f}  at layer {exit_layer}: {early.item():.3f}  {seconds:.0f} s")
    return statistics.fmean(losses[-50:])


# ---- figures


@torch.no_grad()
def read_prompt(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> Reading:
    """Read the answer at the last token after every block, through the model's own final norm and head.

    Raises ValueError when the answer is not one piece, or when appending it changes the prompt's tokens.
    """
    ids = tokenizer(prompt.text)["input_ids"]
    *before, answer_id = tokenizer(f"{prompt.text} {prompt.answers[0]}")["input_ids"]
    if before != ids:
        raise ValueError(f"{prompt.fact_key}: expected the tokens {ids} and one more, found {[*before, answer_id]}")
    output = model(torch.tensor([ids]), output_hidden_states=True)
    # The last hidden state that Transformers returns is already normed; the others are residuals.
    residuals = torch.stack([state[0, -1] for state in output.hidden_states[:-1]])
    logits = torch.cat([model.lm_head(model.model.norm(residuals)), output.logits[0, -1:]])  # [layer, d_vocab]
    ranks = (1 + (logits > logits[:, answer_id, None]).sum(1)).tolist()
    log_p = logits.double().log_softmax(1)
    entropy_bits = (-(log_p.exp() * log_p).sum(1) / math.log(2)).tolist()
    first = next((layer for layer, rank in enumerate(ranks) if rank == 1), None)
    return Reading(prompt, first, ranks[-1], entropy_bits)


def read_folder(folder: Path) -> list[Reading]:
    """Every fact of the suite put to the model as it is stored, computed in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [read_prompt(model, tokenizer, prompt) for prompt in fact_prompts()]


def print_onsets(readings: list[Reading]) -> None:
    """One row of the card's table for each fact: first rank-1 layer and final rank in each variant."""
    for fact_key in load_suite(SUITE).facts:
        of_fact = [reading for reading in readings if reading.prompt.fact_key == fact_key]
        print("|", fact_key, *(f"| {reading.first_rank1} | {reading.final_rank}" for reading in of_fact), "|")


def print_variant(variant: str, readings: list[Reading]) -> None:
    """How many facts are top-1 in this variant, where they become so, and how certain each layer is."""
    right = [reading for reading in readings if reading.final_rank == 1]
    onsets = sorted(reading.first_rank1 for reading in right if reading.first_rank1 is not None)
    within = sum(1 < onset < N_LAYERS for onset in onsets)
    print(
        f"{variant}: top-1 {len(right)}/{len(readings)}, first rank-1 layer in 2..{N_LAYERS - 1} for {within}: {onsets}"
    )
    by_layer = zip(*(reading.entropy_bits for reading in readings), strict=True)
    print(f"{variant}: mean entropy in bits by layer", *(f"{statistics.fmean(layer):.2f}" for layer in by_layer))


def write_folder(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Model, config and tokenizer as Transformers reads them, the weights rounded to bfloat16."""
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(out)


def make_model(seed: int, steps: int, out: Path) -> float:
    """Train one model from one seed and write it; its mean final-layer loss in nats per token, last 50 steps."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    source = documents(rng, withheld=[prompt.text for prompt in fact_prompts()])
    tokenizer = train_tokenizer([next(source) for _ in range(20_000)], [capital for _, capital, _, _ in COUNTRIES])
    rows = token_rows(source, tokenizer, steps * ROWS_PER_STEP)
    model = fresh_model(tokenizer.convert_tokens_to_ids(END))
    loss = train(model, rows, steps, rng)
    write_folder(model, tokenizer, out)
    print(f"{model.num_parameters():,} parameters")
    return loss


def main() -> None:
    """Train one model, write it, and print what the written files say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="decides corpus, first weights and exit layers")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, config and tokenizer")
    parser.add_argument("--steps", type=int, default=1500, help=f"each of {ROWS_PER_STEP} rows of {ROW_TOKENS} tokens")
    arguments = parser.parse_args()
    # So small a model gains little from a second thread, and with one the order of sums does not hang on the machine.
    torch.set_num_threads(1)
    started = time.monotonic()
    loss = make_model(arguments.seed, arguments.steps, arguments.out)
    minutes = (time.monotonic() - started) / 60
    print(f"seed {arguments.seed}, {arguments.steps} steps, {minutes:.1f} min, final loss {loss:.3f} nats per token")
    readings = read_folder(arguments.out)
    print_onsets(readings)
    for variant in dict.fromkeys(reading.prompt.prompt_variant for reading in readings):
        print_variant(variant, [reading for reading in readings if reading.prompt.prompt_variant == variant])


if __name__ == "__main__":
    main()
