"""Text to fit on: documents as token ids, split into three parts, packed into sequences, counted and hashed."""

import hashlib
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from layerscope.errors import CorpusError, TokenizerError
from layerscope.fitting.texts import Source, find_sources
from layerscope.lens_record import CorpusRecord, SplitName, SplitRecord, TextSource
from layerscope.model.tokens import Tokens

PARTS: tuple[SplitName, ...] = ("fit", "select", "held_out")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_Ids: TypeAlias = "array[int]"
"""One document's ids in four bytes each; a Python list would take eight and more."""


@dataclass(frozen=True)
class Corpus:
    """Three parts that share no document, as sequences of one length with BOS in front where the model has one."""

    fit: Int[Tensor, "n_fit position"]
    """Token ids to fit to,"""
    select: Int[Tensor, "n_select position"]
    """to choose ridge and stopping by,"""
    held_out: Int[Tensor, "n_held_out position"]
    """and to measure on."""
    record: CorpusRecord


@dataclass(frozen=True)
class _Reading:
    """What was read before the texts or the budget ended."""

    documents: dict[bytes, _Ids]
    """By sha256 of their text, in the order of reading; none is empty."""
    sources: tuple[TextSource, ...]
    n_repeated: int


def parse_tokens(text: str | int) -> int:
    """A number of tokens as it is written on a command line: `2M`, `500k`, `1.5B`, `2000000`.

    Raises:
        CorpusError: no such number, or one that is not whole and positive.
    """
    written = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)", str(text).strip().lower())
    n_tokens = Fraction(written[1]) * _UNITS[written[2]] if written else Fraction(0)
    if n_tokens < 1 or n_tokens.denominator != 1:
        raise CorpusError(f"'{text}' is no number of tokens; write a whole number above 0, such as 500k, 2M or 1.5B.")
    return int(n_tokens)


def read_corpus(
    texts: Sequence[str | Path],
    tokens: Tokens,
    *,
    n_tokens: int,
    seq_len: int,
    seq_len_fixed: bool = False,
    n_embeddings: int,
    field: str = "text",
    select_share: float = 0.05,
    held_out_share: float = 0.07,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Read documents until there are enough tokens, split them into three parts, and pack each part.

    A document that was read before word for word is left out. Which part a document belongs to is decided by the hash
    of its text, so the order in which texts are given decides nothing, unless the budget ends before they do. Within a
    part documents follow each other in the order of reading, each closed by the tokenizer's end of text where it has
    one; what does not fill a last sequence is dropped.

    Args:
        texts: files or data sets, see `find_sources`.
        tokens: the model's tokenizer with its BOS rule.
        n_tokens: budget, BOS and ends of text not counted; the last document is cut to keep it.
        seq_len: positions of a sequence, BOS included.
        seq_len_fixed: whether it is nobody's to choose; an error then does not advise a smaller one.
        n_embeddings: how many ids the model embeds.
        field: what a document's text is called in all but `.txt` files.
        select_share: share of the tokens that the part `select` has at least, while documents last.
        held_out_share: the same of the part `held_out`.
        progress: told tokens read and `n_tokens`.

    Raises:
        CorpusError: a text that cannot be found or read, an id that the model does not embed, fewer than three
            distinct documents, a part shorter than one sequence, or a number out of its range.
    """
    _check_numbers(n_tokens, seq_len, select_share, held_out_share)
    reading = _read(find_sources(texts, field), tokens, n_tokens, n_embeddings, progress)
    parts = _split(reading.documents, select_share, held_out_share)
    advice = "give more text and tokens" if seq_len_fixed else f"give more text, or a seq_len below {seq_len}"
    first, end_id = _embedded_beginning(tokens, n_embeddings), _end_of_text(tokens, n_embeddings)
    packed = {name: _pack(name, parts[name], seq_len, first, end_id, advice) for name in PARTS}
    record = CorpusRecord(
        sources=reading.sources,
        sha256=_sha256(packed[name] for name in PARTS),
        n_documents=len(reading.documents),
        n_repeated=reading.n_repeated,
        seq_len=seq_len,
        bos=bool(first),
        splits={
            name: SplitRecord(
                n_documents=len(parts[name]),
                n_tokens=sum(len(ids) for ids in parts[name]),
                n_sequences=packed[name].shape[0],
            )
            for name in PARTS
        },
    )
    return Corpus(packed["fit"], packed["select"], packed["held_out"], record)


def read_sequences(
    texts: Sequence[str | Path], tokens: Tokens, *, n_tokens: int, seq_len: int, n_embeddings: int, field: str = "text"
) -> tuple[tuple[str, ...], Int[Tensor, "sequence position"]]:
    """Read documents until there are enough tokens, in one part: names of what was read, and sequences of one length.

    They are packed as those of `read_corpus`; what fills no sequence is read as a shorter one if it is all there is.

    Args:
        texts: files or data sets, see `find_sources`.
        tokens: the model's tokenizer with its BOS rule.
        n_tokens: budget, BOS and ends of text not counted.
        seq_len: positions of a sequence at most, BOS included.
        n_embeddings: how many ids the model embeds.
        field: what a document's text is called in all but `.txt` files.

    Raises:
        CorpusError: a text that cannot be found or read, an id that the model does not embed, or hardly any token.
    """
    _check_numbers(n_tokens, seq_len, 0.1, 0.1)
    reading = _read(find_sources(texts, field), tokens, n_tokens, n_embeddings, lambda done, total: None)
    first, end_id = _embedded_beginning(tokens, n_embeddings), _end_of_text(tokens, n_embeddings)
    stream = _stream(tuple(reading.documents.values()), end_id)
    width = min(seq_len, len(first) + len(stream))
    return tuple(source.name for source in reading.sources), _cut(stream, width, first)


def _check_numbers(n_tokens: int, seq_len: int, select_share: float, held_out_share: float) -> None:
    if n_tokens < 1:
        raise CorpusError(f"A corpus of {n_tokens} tokens was asked for; ask for at least one, such as 2M.")
    if seq_len < 2:
        raise CorpusError(f"seq_len is {seq_len}, but a sequence has at least 2 positions; give more.")
    for name, share in (("select_share", select_share), ("held_out_share", held_out_share)):
        if not 0 < share < 0.5:
            raise CorpusError(f"{name} is {share}; give a share of the tokens above 0 and below 0.5, such as 0.05.")


# --- Documents


def _read(
    sources: Sequence[Source], tokens: Tokens, budget: int, n_embeddings: int, progress: Callable[[int, int], None]
) -> _Reading:
    documents: dict[bytes, _Ids] = {}
    read: list[TextSource] = []
    n_tokens = 0
    progress(0, budget)
    for source in sources:
        if n_tokens == budget:
            break
        n_documents = n_without_tokens = 0
        digest_of_all = hashlib.sha256()
        for text in source.documents():
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in documents:
                ids = _encode(text, tokens, n_embeddings, source.name)[: budget - n_tokens]
                if not ids:
                    n_without_tokens += 1
                    continue
                documents[digest] = ids
                n_tokens += len(ids)
                progress(n_tokens, budget)
            n_documents += 1
            digest_of_all.update(digest)
            if n_tokens == budget:
                break
        if not n_documents:
            raise CorpusError(_nothing_in(source.name, n_without_tokens))
        read.append(
            TextSource(
                name=source.name, format=source.format, n_documents=n_documents, sha256=digest_of_all.hexdigest()
            )
        )
    n_repeated = sum(source.n_documents for source in read) - len(documents)
    return _Reading(documents, tuple(read), n_repeated)


def _encode(text: str, tokens: Tokens, n_embeddings: int, source: str) -> _Ids:
    try:
        ids = tokens.context_ids(text)
    except TokenizerError:  # nothing but characters that the tokenizer drops: as good as blank
        return array("i")
    if max(ids) >= n_embeddings:
        raise CorpusError(
            f"In '{source}', the document that begins {text.strip()[:40]!r} has token id {max(ids)}, but the model "
            f"embeds {n_embeddings} ids only; use the tokenizer that belongs to the model."
        )
    return array("i", ids)


def _nothing_in(name: str, n_without_tokens: int) -> str:
    if n_without_tokens:
        return (
            f"The tokenizer gives no token for any of the {n_without_tokens} documents of '{name}'; use the tokenizer "
            "that belongs to the model, or text that it knows."
        )
    return f"'{name}' holds no text: it is empty, or blank throughout; leave it out, or name another."


# --- Parts


def _split(documents: Mapping[bytes, _Ids], select_share: float, held_out_share: float) -> dict[SplitName, list[_Ids]]:
    """Documents in the order of their hashes fill `held_out` up to its share, then `select`; the rest are `fit`.

    Each part has at least one document, even where that leaves one below its share.
    """
    if len(documents) < len(PARTS):
        raise CorpusError(
            f"There are {len(documents)} distinct documents, but fitting, choosing and measuring need one each; give "
            "more text, or separate the documents of a .txt file by blank lines."
        )
    total = sum(len(ids) for ids in documents.values())
    waiting = deque(sorted(documents))
    part_of: dict[bytes, SplitName] = {}
    shares: tuple[tuple[SplitName, float, int], ...] = (("held_out", held_out_share, 2), ("select", select_share, 1))
    for name, share, n_to_leave in shares:
        n_tokens = 0
        while n_tokens == 0 or (n_tokens < share * total and len(waiting) > n_to_leave):
            digest = waiting.popleft()
            part_of[digest] = name
            n_tokens += len(documents[digest])
    part_of.update(dict.fromkeys(waiting, "fit"))
    return {name: [ids for digest, ids in documents.items() if part_of[digest] == name] for name in PARTS}


def _embedded_beginning(tokens: Tokens, n_embeddings: int) -> tuple[int, ...]:
    """What begins every sequence: BOS as a rule, or nothing."""
    first = tokens.begins.ids
    if max(first, default=0) >= n_embeddings:
        raise CorpusError(
            f"The tokenizer's BOS has id {max(first)}, but the model embeds {n_embeddings} ids only; use the "
            "tokenizer that belongs to the model."
        )
    return first


def _end_of_text(tokens: Tokens, n_embeddings: int) -> int | None:
    """The id that closes a document; None where the tokenizer has none, or one that the model does not embed."""
    end_id = tokens.eos_id
    return end_id if end_id is not None and end_id < n_embeddings else None


def _pack(
    name: SplitName, documents: Sequence[_Ids], seq_len: int, first: tuple[int, ...], end_id: int | None, advice: str
) -> Int[Tensor, "sequence position"]:
    """Documents one after another, cut into sequences; the incomplete last one is dropped."""
    stream, n_text = _stream(documents, end_id), seq_len - len(first)
    if len(stream) < n_text:
        raise CorpusError(
            f"The part '{name}' holds {len(stream)} tokens in {len(documents)} documents, but one sequence needs "
            f"{n_text}; {advice}."
        )
    return _cut(stream, seq_len, first)


def _stream(documents: Iterable[_Ids], end_id: int | None) -> _Ids:
    """Documents one after another, each closed."""
    stream: _Ids = array("i")
    for ids in documents:
        stream.extend(ids)
        if end_id is not None:
            stream.append(end_id)
    return stream


def _cut(stream: _Ids, seq_len: int, first: tuple[int, ...]) -> Int[Tensor, "sequence position"]:
    """As sequences that begin with `first`."""
    n_special = len(first)
    n_text = seq_len - n_special
    n_sequences = len(stream) // n_text
    packed = np.empty((n_sequences, seq_len), dtype=np.int64)
    packed[:, :n_special] = first
    packed[:, n_special:] = np.frombuffer(stream, dtype=np.intc)[: n_sequences * n_text].reshape(n_sequences, n_text)
    return torch.from_numpy(packed)


def _sha256(parts: Iterable[Int[Tensor, "_ position"]]) -> str:
    """Over each part's shape and ids, all as int64 with the least byte first."""
    digest = hashlib.sha256()
    for ids in parts:
        digest.update(np.array(ids.shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(ids.numpy(), dtype="<i8").data)
    return digest.hexdigest()
