"""Prompts of any number and length: capitals, asked in plain words."""

import json
from itertools import cycle, islice
from pathlib import Path

from task import Task
from transformers import AutoTokenizer, PreTrainedTokenizerBase

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
FILLER = "Give the city name only, plain text. "


def prompt_of(tokenizer: PreTrainedTokenizerBase, subject: str, n_tokens: int) -> str:
    """A prompt of exactly so many tokens that ends in the question, a longer text cut at its front.

    Raises:
        ValueError: the text that remains is cut into another number of tokens.
    """
    text = FILLER * (2 + n_tokens // 6) + f"The capital of {subject} is called simply"
    prompt = tokenizer.decode(tokenizer(text, verbose=False).input_ids[-n_tokens:])
    found = len(tokenizer(prompt, verbose=False).input_ids)
    if found != n_tokens:
        raise ValueError(f"expected {n_tokens} tokens, found {found} in {prompt[:60]!r}; reword what it is cut from")
    return prompt


def task_of(
    checkpoint: Path, folder: Path, *, prompts: int, n_tokens: int, threads: int, last_only: bool = False
) -> Task:
    """Up to twelve prompts of one length, as ids and as a file of facts in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts, ids, answers = [], [], []
    for subject, answer in islice(CAPITALS.items(), prompts):
        prompt = prompt_of(tokenizer, subject, n_tokens)
        texts.append({"prompt": prompt, "answer": answer})
        ids.append(tuple(tokenizer(prompt, verbose=False).input_ids))
        answers.append(tokenizer(f"{prompt} {answer}", verbose=False).input_ids[n_tokens])
    suite = folder / f"{prompts}-capitals-of-{n_tokens}-tokens.jsonl"
    suite.write_text("\n".join(map(json.dumps, texts)) + "\n")
    return Task(str(checkpoint), str(suite), tuple(ids), tuple(answers), threads, last_only)


def many_facts(path: Path, n: int) -> Path:
    """A file of so many facts, no two with the same words."""
    lines = []
    for number, (subject, answer) in enumerate(islice(cycle(CAPITALS.items()), n)):
        prompt = f"Question {number}. Give the city name only, plain text. The capital of {subject} is called simply"
        lines.append(json.dumps({"prompt": prompt, "answer": answer}))
    path.write_text("\n".join(lines) + "\n")
    return path
