"""A corpus: what is read, how it is split and packed, what is counted and hashed, and every refusal."""

import functools
import hashlib
import itertools
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import layerscope
from layerscope.errors import CorpusError
from layerscope.fitting.corpus import PARTS, Corpus, parse_tokens, read_corpus
from layerscope.model.tokens import Tokens
from properties import examples
from tiny_models import tiny_tokenizer

BUNDLED = Path(layerscope.__file__).parent / "reference_model"
"""Its tokenizer has an end of text, id 0, and no BOS."""
END_ID = 0
PLENTY = 10**9
N_EMBEDDINGS = 2048


@pytest.fixture(scope="module")
def bundled() -> Tokens:
    return Tokens(BUNDLED, "never")


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """BOS is id 0, and there is no end of text."""
    folder = tmp_path_factory.mktemp("with-bos")
    tiny_tokenizer().save_pretrained(folder)
    return Tokens(folder, "always")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where examples of a property write their files, one over another."""
    return tmp_path_factory.mktemp("texts")


def jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def sentences(n: int, start: int = 0) -> list[str]:
    """Distinct documents of unlike lengths."""
    return [
        f"Document number {i} " + "tells of the city of Berlin. " * (1 + 7 * i % 5) for i in range(start, start + n)
    ]


def encode(tokens: Tokens, text: str) -> list[int]:
    """By the tokenizer itself, read again from its folder."""
    return _tokenizer(tokens._folder)(text, add_special_tokens=False)["input_ids"]


@functools.cache
def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def split_by_hand(ids: dict[str, list[int]], select: float, held_out: float) -> dict[str, list[str]]:
    """Which texts make up each part, in the order given, where no part runs out of documents."""
    total = sum(len(own) for own in ids.values())
    by_hash = sorted(ids, key=sha256)
    parts: dict[str, list[str]] = {"held_out": [], "select": []}
    for name, share in (("held_out", held_out), ("select", select)):
        while sum(len(ids[text]) for text in parts[name]) < share * total:
            parts[name].append(by_hash.pop(0))
    parts["fit"] = by_hash
    assert all(parts.values()), "the example must fill all parts"
    return {name: [text for text in ids if text in parts[name]] for name in ("fit", "select", "held_out")}


def documents_of(ids: torch.Tensor) -> list[tuple[int, ...]]:
    """Whole documents of a packed part, told apart by the bundled tokenizer's end of text."""
    found: list[list[int]] = [[]]
    for i in ids.flatten().tolist():
        if i == END_ID:
            found.append([])
        else:
            found[-1].append(i)
    return [tuple(document) for document in found if document]


def read(tokens: Tokens, path: Path, **changes: object) -> Corpus:
    return read_corpus([path], tokens, **{"n_tokens": PLENTY, "seq_len": 4, "n_embeddings": N_EMBEDDINGS} | changes)


def of_characters(folder: Path, characters: str, **special: str) -> Tokens:
    """A tokenizer that knows these characters alone, with ids in their order, and drops all others."""
    vocabulary = {character: i for i, character in enumerate(sorted(set(characters)))}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])), **special
    ).save_pretrained(folder)
    return Tokens(folder, "always")


# --- Numbers of tokens


@pytest.mark.parametrize(
    ("text", "n_tokens"),
    [
        ("2M", 2_000_000),
        ("500k", 500_000),
        ("1.5B", 1_500_000_000),
        ("2000000", 2_000_000),
        (2_000_000, 2_000_000),
        (" 0.5K ", 500),
        ("0.000001m", 1),
        ("1.1k", 1100),  # 1.1 * 1000 is not whole in floats
        ("1.0", 1),
    ],
)
def test_a_number_of_tokens_is_read_as_it_is_written(text, n_tokens):
    assert parse_tokens(text) == n_tokens


@pytest.mark.parametrize(
    "text", ["", "M", "2 M", "2MB", "2G", "-2M", "1e6", "0", "0M", 0, -5, "1.5", "1.2345k", "nan", "٢"]
)
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(CorpusError, match=r"is no number of tokens; write a whole number above 0, such as 500k, 2M"):
        parse_tokens(text)


# --- The whole, by hand


def test_a_small_corpus_is_split_and_packed_as_by_hand(bundled, tmp_path):
    """Ten documents, a tenth for `select` and a fifth for `held_out`; sequences of 6, all by lists and hashlib."""
    texts = sentences(10)
    ids = {text: encode(bundled, text) for text in texts}

    corpus = read_corpus(
        [jsonl(tmp_path / "a.jsonl", texts)],
        bundled,
        n_tokens=PLENTY,
        seq_len=6,
        n_embeddings=N_EMBEDDINGS,
        select_share=0.1,
        held_out_share=0.2,
    )

    digest = hashlib.sha256()
    for name, own in split_by_hand(ids, select=0.1, held_out=0.2).items():
        stream = [i for text in own for i in (*ids[text], END_ID)]
        rows = [stream[k : k + 6] for k in range(0, len(stream) - 5, 6)]
        assert getattr(corpus, name).tolist() == rows
        assert getattr(corpus, name).dtype == torch.int64
        split = corpus.record.splits[name]
        assert split.n_documents == len(own)
        assert split.n_tokens == sum(len(ids[text]) for text in own)
        assert split.n_sequences == len(rows)
        digest.update(struct.pack("<2q", len(rows), 6))
        digest.update(b"".join(struct.pack("<6q", *row) for row in rows))
    assert corpus.record.sha256 == digest.hexdigest()
    assert (corpus.record.n_documents, corpus.record.n_repeated) == (10, 0)
    assert (corpus.record.seq_len, corpus.record.bos) == (6, False)
    (source,) = corpus.record.sources
    assert (source.name, source.format, source.n_documents) == ("a.jsonl", "jsonl", 10)
    assert source.sha256 == hashlib.sha256(b"".join(sha256(text) for text in texts)).hexdigest()


def test_bos_opens_every_sequence_and_is_not_counted(with_bos, tmp_path):
    """This tokenizer has no end of text, so documents are joined as they are."""
    texts = sentences(9)
    corpus = read_corpus(
        [jsonl(tmp_path / "a.jsonl", texts)], with_bos, n_tokens=PLENTY, seq_len=8, n_embeddings=300, held_out_share=0.3
    )
    assert corpus.record.bos
    ids = {text: encode(with_bos, text) for text in texts}
    for name, own in split_by_hand(ids, select=0.05, held_out=0.3).items():
        stream = [i for text in own for i in ids[text]]
        rows = [[with_bos.bos_id, *stream[k : k + 7]] for k in range(0, len(stream) - 6, 7)]
        assert getattr(corpus, name).tolist() == rows
        assert corpus.record.splits[name].n_tokens == len(stream)


def test_an_end_of_text_that_the_model_does_not_embed_is_left_out(tmp_path):
    tokens = of_characters(tmp_path, "The capital", eos_token="</s>")
    end_id = len(set("The capital"))
    path = jsonl(tmp_path / "a.jsonl", ["pppp", "tttt", "cccc"])
    with_end = read(tokens, path, seq_len=5, n_embeddings=end_id + 1)
    assert sorted(getattr(with_end, name).tolist() for name in PARTS) == sorted(
        [[*tokens.context_ids(text), end_id]] for text in ("pppp", "tttt", "cccc")
    )
    without = read(tokens, path, seq_len=4, n_embeddings=end_id)
    assert sorted(getattr(without, name).tolist() for name in PARTS) == sorted(
        [list(tokens.context_ids(text))] for text in ("pppp", "tttt", "cccc")
    )
    with pytest.raises(CorpusError, match="holds 4 tokens in 1 documents, but one sequence needs 5"):
        read(tokens, path, seq_len=5, n_embeddings=end_id)


def test_a_corpus_for_a_published_model_holds_its_text(shared, tmp_path):
    tokens = Tokens(shared / "reference" / "tiny-qwen3" / "model", "never")
    texts = sentences(12)
    corpus = read_corpus([jsonl(tmp_path / "a.jsonl", texts)], tokens, n_tokens=PLENTY, seq_len=2, n_embeddings=4096)
    decode = AutoTokenizer.from_pretrained(shared / "reference" / "tiny-qwen3" / "model").decode
    read = [decode(list(document)) for name in PARTS for document in documents_of(getattr(corpus, name))]
    assert sorted(read) == sorted(texts)


# --- What holds for any text

TEXTS = st.lists(st.text("ab .é\n", min_size=1, max_size=12).filter(str.strip), min_size=3, max_size=14, unique=True)
SHARES = st.floats(0.01, 0.49)


@examples(60)
@given(texts=TEXTS, select=SHARES, held_out=SHARES)
def test_every_document_stands_in_exactly_one_part(bundled, folder, texts, select, held_out):
    corpus = read_corpus(
        [jsonl(folder / "once.jsonl", texts)],
        bundled,
        n_tokens=PLENTY,
        seq_len=2,  # at most the last end of text is lost
        n_embeddings=N_EMBEDDINGS,
        select_share=select,
        held_out_share=held_out,
    )
    parts = [documents_of(getattr(corpus, name)) for name in PARTS]
    assert all(parts)
    assert sorted(itertools.chain(*parts)) == sorted(tuple(bundled.context_ids(text)) for text in texts)


@examples(60)
@given(texts=TEXTS, select=SHARES, held_out=SHARES)
def test_measuring_and_choosing_get_their_share_as_long_as_documents_last(bundled, folder, texts, select, held_out):
    record = read_corpus(
        [jsonl(folder / "share.jsonl", texts)],
        bundled,
        n_tokens=PLENTY,
        seq_len=2,
        n_embeddings=N_EMBEDDINGS,
        select_share=select,
        held_out_share=held_out,
    ).record
    longest = max(len(bundled.context_ids(text)) for text in texts)
    total = sum(record.splits[name].n_tokens for name in PARTS)
    for name, share in (("held_out", held_out), ("select", select)):
        own = record.splits[name]
        assert own.n_tokens >= share * total or record.splits["fit"].n_documents == 1
        assert own.n_tokens < share * total + longest


@examples(60)
@given(texts=TEXTS, data=st.data())
def test_the_order_of_texts_changes_no_part(bundled, folder, texts, data):
    cuts = sorted(data.draw(st.lists(st.integers(1, len(texts) - 1), max_size=3, unique=True)))
    pieces = [texts[a:b] for a, b in zip([0, *cuts], [*cuts, len(texts)], strict=True)]
    files = [jsonl(folder / f"order-{i}.jsonl", piece) for i, piece in enumerate(pieces)]

    def read(order: list[Path]) -> Corpus:
        return read_corpus(order, bundled, n_tokens=PLENTY, seq_len=2, n_embeddings=N_EMBEDDINGS, held_out_share=0.2)

    one, other = read(files), read(data.draw(st.permutations(files)))
    for name in PARTS:
        assert set(documents_of(getattr(one, name))) == set(documents_of(getattr(other, name)))
    assert one.record.splits == other.record.splits


@examples(60)
@given(texts=TEXTS, seq_len=st.integers(2, 5))
def test_packing_keeps_the_order_of_reading_and_loses_less_than_a_sequence(bundled, folder, texts, seq_len):
    path = jsonl(folder / "packed.jsonl", texts)

    def read(seq_len: int) -> Corpus:
        return read_corpus([path], bundled, n_tokens=PLENTY, seq_len=seq_len, n_embeddings=N_EMBEDDINGS)

    ids = [tuple(bundled.context_ids(text)) for text in texts]
    members = {name: set(documents_of(getattr(read(2), name))) for name in PARTS}
    streams = {name: [i for own in ids if own in members[name] for i in (*own, END_ID)] for name in PARTS}
    if min(map(len, streams.values())) < seq_len:
        with pytest.raises(CorpusError, match=f"one sequence needs {seq_len}; give more text"):
            read(seq_len)
        return
    corpus = read(seq_len)
    for name, stream in streams.items():
        kept = getattr(corpus, name).flatten().tolist()
        assert kept == stream[: len(kept)]
        assert len(stream) - len(kept) < seq_len


@examples(30)
@given(texts=TEXTS)
def test_each_format_gives_the_same_corpus(bundled, folder, texts):
    texts = ["\n".join(line.strip() or "-" for line in text.split("\n")) for text in texts]  # no blank line inside
    (folder / "same.txt").write_text("\n\n".join(texts), encoding="utf-8")
    pl.DataFrame({"text": texts}).write_parquet(folder / "same.parquet")
    files = [folder / "same.txt", jsonl(folder / "same.jsonl", texts), folder / "same.parquet"]
    if len(set(texts)) < 3:
        return
    one, *others = (
        read_corpus([file], bundled, n_tokens=PLENTY, seq_len=2, n_embeddings=N_EMBEDDINGS) for file in files
    )
    for other in others:
        assert other.record.sha256 == one.record.sha256
        assert other.record.sources[0].sha256 == one.record.sources[0].sha256
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in PARTS)


# --- What is read


def test_a_repeated_document_is_counted_and_left_out(bundled, tmp_path):
    texts = sentences(6)
    once = jsonl(tmp_path / "once.jsonl", texts)
    again = jsonl(tmp_path / "again.jsonl", [texts[4], *texts[:2], *texts[:2]])
    plain = read_corpus([once], bundled, n_tokens=PLENTY, seq_len=4, n_embeddings=N_EMBEDDINGS)
    repeated = read_corpus([once, again], bundled, n_tokens=PLENTY, seq_len=4, n_embeddings=N_EMBEDDINGS)
    assert repeated.record.sha256 == plain.record.sha256
    assert repeated.record.splits == plain.record.splits
    assert (repeated.record.n_documents, repeated.record.n_repeated) == (6, 5)
    assert [source.n_documents for source in repeated.record.sources] == [6, 5]


def test_documents_that_differ_in_one_space_are_two(bundled, tmp_path):
    texts = jsonl(tmp_path / "a.jsonl", ["a city", "a city ", " a city"])
    record = read_corpus([texts], bundled, n_tokens=PLENTY, seq_len=2, n_embeddings=N_EMBEDDINGS).record
    assert (record.n_documents, record.n_repeated) == (3, 0)


@pytest.mark.parametrize("short", [0, 1, 3])
def test_reading_stops_at_the_budget_and_cuts_the_last_document(bundled, tmp_path, short):
    texts = sentences(8)
    lengths = [len(encode(bundled, text)) for text in texts]
    assert min(lengths) > 3
    budget = sum(lengths[:5]) - short
    steps: list[tuple[int, int]] = []
    corpus = read_corpus(
        [jsonl(tmp_path / "a.jsonl", texts), jsonl(tmp_path / "never.jsonl", sentences(4, start=20))],
        bundled,
        n_tokens=budget,
        seq_len=2,
        n_embeddings=N_EMBEDDINGS,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert sum(split.n_tokens for split in corpus.record.splits.values()) == budget
    assert corpus.record.n_documents == 5
    assert [(source.name, source.n_documents) for source in corpus.record.sources] == [("a.jsonl", 5)]
    whole = {tuple(encode(bundled, text)) for text in texts[:4]}
    cut = tuple(encode(bundled, texts[4]))[: lengths[4] - short]
    assert {document for name in PARTS for document in documents_of(getattr(corpus, name))} == whole | {cut}
    done = [*np.cumsum(lengths[:4]).tolist(), budget]
    assert steps == [(n, budget) for n in (0, *done)]


def test_what_comes_after_the_budget_is_not_looked_at(bundled, tmp_path):
    texts = sentences(4)
    path = jsonl(tmp_path / "a.jsonl", texts)
    with path.open("ab") as file:
        file.write(b"\xff no JSON\n")
    budget = sum(len(encode(bundled, text)) for text in texts)
    corpus = read_corpus([path], bundled, n_tokens=budget, seq_len=4, n_embeddings=N_EMBEDDINGS)
    assert corpus.record.n_documents == 4
    with pytest.raises(CorpusError, match="line 5: byte"):
        read_corpus([path], bundled, n_tokens=budget + 1, seq_len=4, n_embeddings=N_EMBEDDINGS)


def test_sources_are_recorded_in_the_order_of_reading(bundled, tmp_path):
    first, second = sentences(3), sentences(3, start=3)
    (tmp_path / "b.txt").write_text("\n\n".join(text.strip() for text in first))
    record = read_corpus(
        [tmp_path / "b.txt", jsonl(tmp_path / "a.jsonl", second)],
        bundled,
        n_tokens=PLENTY,
        seq_len=4,
        n_embeddings=N_EMBEDDINGS,
    ).record
    assert [(source.name, source.format) for source in record.sources] == [("b.txt", "txt"), ("a.jsonl", "jsonl")]
    for source, texts in zip(record.sources, ([text.strip() for text in first], second), strict=True):
        assert source.sha256 == hashlib.sha256(b"".join(sha256(text) for text in texts)).hexdigest()


def test_another_field_can_hold_the_text(bundled, tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["no"] * 5, "body": sentences(5)}).write_parquet(path)
    corpus = read_corpus([path], bundled, n_tokens=PLENTY, seq_len=4, n_embeddings=N_EMBEDDINGS, field="body")
    assert corpus.record.n_documents == 5


# --- Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_tokens": 0}, r"^A corpus of 0 tokens was asked for; ask for at least one, such as 2M\.$"),
        ({"n_tokens": -1}, r"^A corpus of -1 tokens"),
        ({"seq_len": 1}, r"^seq_len is 1, but a sequence has at least 2 positions; give more\.$"),
        ({"select_share": 0.0}, r"^select_share is 0\.0; give a share of the tokens above 0 and below 0\.5"),
        ({"select_share": 0.5}, r"^select_share is 0\.5;"),
        ({"held_out_share": -0.1}, r"^held_out_share is -0\.1;"),
        ({"held_out_share": float("nan")}, r"^held_out_share is nan;"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_read(bundled, changes, said):
    with pytest.raises(CorpusError, match=said):
        read(bundled, Path("absent.txt"), **changes)


def test_no_text_is_refused(bundled):
    with pytest.raises(CorpusError, match="No text was given"):
        read_corpus([], bundled, n_tokens=PLENTY, seq_len=4, n_embeddings=N_EMBEDDINGS)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", " \n\n\t\n"), ("a.jsonl", '{"text": " "}\n')])
def test_a_file_without_a_document_is_refused_by_name(bundled, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    good = jsonl(tmp_path / "good.jsonl", sentences(5))
    with pytest.raises(CorpusError, match=rf"^'{name}' holds no text: it is empty, or blank throughout; leave it out"):
        read_corpus([good, tmp_path / name], bundled, n_tokens=PLENTY, seq_len=4, n_embeddings=N_EMBEDDINGS)


@pytest.mark.parametrize("texts", [["One."], ["One.", "Two."], ["One.", "Two.", "One.", "Two."]])
def test_fewer_than_three_distinct_documents_are_refused(bundled, tmp_path, texts):
    with pytest.raises(CorpusError) as refused:
        read(bundled, jsonl(tmp_path / "a.jsonl", texts))
    assert str(refused.value) == (
        f"There are {len(set(texts))} distinct documents, but fitting, choosing and measuring need one each; give more "
        "text, or separate the documents of a .txt file by blank lines."
    )


@pytest.mark.parametrize("texts", [["", "a", "a b"], ["a b c d e f", "a", "b"], ["a", "b", "c"]])
def test_three_documents_are_one_for_each_part_whatever_their_lengths(bundled, tmp_path, texts):
    texts = [f"Berlin {text}" for text in texts]
    for share in (0.01, 0.49):
        path = jsonl(tmp_path / "a.jsonl", texts)
        record = read(bundled, path, seq_len=2, select_share=share, held_out_share=share).record
        assert [record.splits[name].n_documents for name in PARTS] == [1, 1, 1]


def test_a_part_shorter_than_one_sequence_is_refused_with_both_lengths(bundled, tmp_path):
    """Of equal documents, one is held out: its tokens and the end of text are one too few."""
    texts = [f"Berlin {letter}" for letter in "abcdefgh"]
    (n_tokens,) = {len(encode(bundled, text)) for text in texts}
    path = jsonl(tmp_path / "a.jsonl", texts)
    assert read(bundled, path, seq_len=n_tokens + 1).held_out.shape == (1, n_tokens + 1)
    with pytest.raises(CorpusError) as refused:
        read(bundled, path, seq_len=n_tokens + 2)
    assert str(refused.value) == (
        f"The part 'select' holds {n_tokens + 1} tokens in 1 documents, but one sequence needs {n_tokens + 2}; give "
        f"more text, or a seq_len below {n_tokens + 2}."
    )


def test_an_id_that_the_model_does_not_embed_is_named(bundled, tmp_path):
    texts = sentences(5)
    highest = max(encode(bundled, texts[0]))
    path = jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(
        CorpusError, match=rf"In 'a\.jsonl', the document that begins 'Document .* has token id {highest}"
    ):
        read(bundled, path, n_embeddings=highest)
    needed = max(max(encode(bundled, text)) for text in texts) + 1
    assert read(bundled, path, n_embeddings=needed).record.n_documents == 5


def test_a_bos_that_the_model_does_not_embed_is_named(tmp_path):
    tokens = of_characters(tmp_path, "The capital", bos_token="<s>")
    bos_id = len(set("The capital"))
    path = jsonl(tmp_path / "a.jsonl", ["pppp", "tttt", "cccc"])
    assert read(tokens, path, n_embeddings=bos_id + 1).fit[0, 0] == bos_id
    with pytest.raises(CorpusError, match=f"BOS has id {bos_id}, but the model embeds {bos_id} ids only"):
        read(tokens, path, n_embeddings=bos_id)


def test_a_tokenizer_that_gives_no_token_for_a_text_is_refused(tmp_path):
    tokens = of_characters(tmp_path, "The capital")
    path = jsonl(tmp_path / "a.jsonl", ["BB", "OO", "NN"])
    with pytest.raises(
        CorpusError, match=r"^The tokenizer gives no token for any of the 3 documents of 'a\.jsonl'; use"
    ):
        read(tokens, path)


def test_a_document_without_a_token_counts_as_blank(tmp_path):
    tokens = of_characters(tmp_path, "The capital")
    own = ["pppp", "tttt", "cccc"]
    plain = read(tokens, jsonl(tmp_path / "a.jsonl", own)).record
    mixed = read(tokens, jsonl(tmp_path / "a.jsonl", ["BB", *own, "OO"])).record
    assert mixed == plain


def test_by_default_two_million_tokens_hold_out_enough_for_the_losses_with_skipped_blocks(tmp_path, bundled):
    """They rest on 131,072 positions; of sequences of 512 the first is not measured and nothing follows the last."""
    path = jsonl(tmp_path / "a.jsonl", sentences(3000))
    splits = read(bundled, path).record.splits
    share = {name: part.n_tokens / sum(one.n_tokens for one in splits.values()) for name, part in splits.items()}
    assert share["held_out"] == pytest.approx(0.07, abs=1e-3)
    assert share["select"] == pytest.approx(0.05, abs=1e-3)
    assert 0.07 * 2_000_000 * 510 / 512 > 1 << 17


def test_a_document_longer_than_the_model_reads_is_read_without_a_warning(tmp_path, caplog):
    """The bundled tokenizer states 512; packing cuts documents anyway."""
    tokens = Tokens(BUNDLED, "never")
    path = jsonl(tmp_path / "a.jsonl", [text * 80 for text in sentences(3)])
    with caplog.at_level("WARNING", "transformers"):
        record = read(tokens, path).record
    assert sum(part.n_tokens for part in record.splits.values()) > 3 * 512
    assert caplog.records == []


def test_the_id_that_ends_a_text_is_the_tokenizers_own(bundled, with_bos):
    assert bundled.eos_id == _tokenizer(BUNDLED).eos_token_id == END_ID
    assert with_bos.eos_id is None
