"""Two tokenizers written out from a GGUF file's own lists, to hold saved ones against: merges by rank, and by score."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import regex

GPT2_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
USER_DEFINED = 4
"""Of `tokenizer.ggml.token_type`: matched as a whole before anything else."""


def _of(fields: Mapping[str, Any], key: str) -> Any:
    return fields[f"tokenizer.ggml.{key}"].contents()


def _byte_letters() -> list[str]:
    """GPT-2's letter for every byte: printable ones stand for themselves, the others for letters from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class ByRank:
    """Byte-level BPE as GPT-2 has it, digits one by one; the neighbours that merge first are those earliest in the list
    of merges. Source: Radford et al. 2019 (`encoder.py`)."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.ids = {token: i for i, token in enumerate(_of(fields, "tokens"))}
        self.rank = {tuple(merge.split(" ")): i for i, merge in enumerate(_of(fields, "merges"))}
        self.letters = _byte_letters()

    def encode(self, text: str) -> list[int]:
        pieces = (piece for piece in regex.split(r"(\p{N})", text) if piece)
        words = (word for piece in pieces for word in GPT2_WORDS.findall(piece))
        return [self.ids[token] for word in words for token in self._merged(word)]

    def _merged(self, word: str) -> list[str]:
        tokens = [self.letters[byte] for byte in word.encode()]
        while True:
            pairs = [(self.rank[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in self.rank]
            if not pairs:
                return tokens
            _, i = min(pairs)
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]


class ByScore:
    """SentencePiece's BPE: the neighbours that merge first are those whose union scores best; bytes for the rest.
    Source: Kudo & Richardson 2018."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        tokens, kinds = _of(fields, "tokens"), _of(fields, "token_type")
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.scores = _of(fields, "scores")
        self.whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED}
        longest_first = sorted(self.whole, key=len, reverse=True)
        self.split = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in filter(None, self.split.split(text)):
            tokens = [piece] if piece in self.whole else self._merged(piece.replace(" ", "▁"))
            for token in tokens:
                known = token in self.ids
                ids += [self.ids[token]] if known else [self.ids[f"<0x{byte:02X}>"] for byte in token.encode()]
        return ids

    def _merged(self, text: str) -> list[str]:
        tokens = list(text)
        while True:
            unions = (first + second for first, second in pairwise(tokens))
            pairs = [(-self.scores[self.ids[union]], i) for i, union in enumerate(unions) if union in self.ids]
            if not pairs:
                return tokens
            _, i = min(pairs)
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
