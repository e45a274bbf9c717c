"""The small models for benchmarks: text packed without gaps, folders that Transformers loads, a seed that repeats."""

import importlib.util
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    Olmo2ForCausalLM,
)

from properties import slow

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_small_models.py"
_spec = importlib.util.spec_from_file_location("train_small_models", SCRIPT)
small = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = small  # dataclasses look their module up
_spec.loader.exec_module(small)

SENTENCES = [
    "The capital of France is called Paris.",
    "In Kenya you pay with the shilling.",
    "A lamp and a boat are not the same thing.",
]


def endless():
    return itertools.cycle(SENTENCES)


@pytest.fixture
def few_rows(monkeypatch):
    """Sentences that need no reading of the standard library, and two rows a step."""
    monkeypatch.setattr(small, "fresh_documents", lambda seed: endless())
    monkeypatch.setattr(small, "ROWS_PER_STEP", 2)


def test_packed_rows_hold_the_documents_without_gaps_each_ended_by_the_end_token():
    tokenizer = small.bundled_tokenizer()
    rows = small.packed_rows(endless(), tokenizer, 3)
    assert rows.shape == (3, 128)
    read_back = tokenizer.decode(rows.flatten()).split("<|endoftext|>")
    assert len(read_back) > 20
    assert read_back[:-1] == list(itertools.islice(endless(), len(read_back) - 1))  # the last one is cut


def test_the_text_comes_to_the_tokens_asked_for_and_not_a_document_more():
    tokenizer = small.bundled_tokenizer()
    documents = small.text_of(endless(), tokenizer, 1000).rstrip("\n").split("\n\n")
    assert documents == list(itertools.islice(endless(), len(documents)))
    counts = [len(tokenizer.tokenize(document)) + 1 for document in documents]
    assert sum(counts[:-1]) < 1000 <= sum(counts)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("gpt2", GPT2LMHeadModel),
        slow("llama", LlamaForCausalLM),
        slow("gpt_neox", GPTNeoXForCausalLM),
        slow("olmo2", Olmo2ForCausalLM),
    ],
)
def test_a_trained_folder_loads_with_the_bundled_tokenizer_and_predicts_its_text(family, kind, few_rows, tmp_path):
    done = small.make_model(family, tmp_path, seed=0, minutes=0.0, steps=20)
    assert done.steps == 20
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(model) is kind
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (128, 6, 2048)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_vocab() == small.bundled_tokenizer().get_vocab()
    rows = small.packed_rows(endless(), tokenizer, 2)
    with torch.no_grad():
        loss_nats = float(model(rows, labels=rows).loss)
    assert loss_nats < math.log(2048) - 2  # far below that of a guess


def test_the_same_seed_and_steps_give_the_same_weights_and_another_seed_others(few_rows, tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        small.make_model("gpt2", tmp_path / name, seed=seed, minutes=0.0, steps=1)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
