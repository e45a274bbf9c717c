"""Text to ids and back on small real tokenizers: where an answer begins, who gets a BOS, what counts as content."""

import hashlib
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from layerscope import CausalLM, Prompt, Suite, probe
from layerscope.errors import TokenizerError
from layerscope.model.families import FAMILIES, bos_rule
from layerscope.model.tokens import Tokens
from tiny_models import TINY, tiny_tokenizer

PROMPT = "The capital of Germany is called"


def save(tokenizer: Tokenizer, folder: Path, **special: str) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def merging(folder: Path, *merges: tuple[str, str]) -> Tokens:
    """A tokenizer of single characters, spaces among them, with a few merges across any boundary."""
    characters = sorted(set("in Romesadph"))
    vocabulary = {token: i for i, token in enumerate([*characters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.decoder = decoders.Fuse()
    return Tokens(save(tokenizer, folder), "never")


def byte_level_bpe() -> Tokenizer:
    """A copy of the tiny models' own, to be changed."""
    return Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    folder = tmp_path_factory.mktemp("byte-level")
    tiny_tokenizer().save_pretrained(folder)
    return Tokens(folder, "never")


# --- Where an answer begins


def test_an_answer_of_one_piece_follows_a_space(byte_level: Tokens):
    found = byte_level.align(PROMPT, "is")
    assert (found.status, found.variant, found.reason) == ("ok", "with_space", None)
    assert found.pieces == ("Ġis",)
    assert found.answer_ids == byte_level.context_ids(" is")
    assert found.first_id == found.answer_ids[0]
    assert not found.several_pieces


def test_an_answer_of_several_pieces_is_judged_by_the_first_and_flagged(byte_level: Tokens):
    found = byte_level.align(PROMPT, "Ouagadougou")
    assert (found.status, found.variant) == ("ok", "with_space")
    assert len(found.answer_ids) > 4
    assert found.several_pieces
    assert found.first_id == found.answer_ids[0]
    assert found.pieces == tuple(tiny_tokenizer().convert_ids_to_tokens(list(found.answer_ids[:4])))
    assert tiny_tokenizer().decode(list(found.answer_ids)) == " Ouagadougou"


def test_an_answer_follows_without_a_space_where_a_space_would_retokenise_the_prompt(tmp_path: Path):
    tokens = merging(tmp_path, ("n", " "))
    assert tokens.display(tokens.context_ids("in Rome")).keys() != tokens.display(tokens.context_ids("in")).keys()
    found = tokens.align("in", "Rome")
    assert (found.status, found.variant) == ("ok", "no_space")
    assert found.pieces == ("R", "o", "m", "e")


def test_an_answer_that_changes_the_prompt_s_own_tokens_either_way_is_unresolved(tmp_path: Path):
    tokens = merging(tmp_path, ("n", " "), ("n", "R"))
    found = tokens.align("in", "Rome")
    assert (found.status, found.variant, found.reason) == ("unresolved", "unknown", "context_retokenised")
    assert (found.first_id, found.answer_ids, found.pieces) == (None, (), ())
    assert not found.several_pieces


def test_an_answer_that_adds_no_token_is_unresolved(tmp_path: Path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "in": 1, "out": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\d+"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = Tokens(save(tokenizer, tmp_path, unk_token="[UNK]"), "never")
    found = tokens.align("in", "42")
    assert (found.status, found.variant, found.reason) == ("unresolved", "unknown", "no_variant_extended_context")
    assert found.first_id is None
    assert tokens.align("in", "out").answer_ids == (2,)


def test_an_answer_after_a_space_keeps_the_leading_space_of_a_sentencepiece_tokenizer_out(tmp_path: Path):
    """Such a tokenizer puts a space in front of every text, so the answer tokenised alone would look the same."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁in", "▁Rome", "Rome", "▁"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokens = Tokens(save(tokenizer, tmp_path, unk_token="<unk>"), "never")
    assert tokens.context_ids("in") == (1,)
    assert tokens.align("in", "Rome").answer_ids == (2,)


def test_special_tokens_never_stand_between_prompt_and_answer(tmp_path: Path):
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    tokens = Tokens(save(tokenizer, tmp_path, bos_token="<s>"), "never")
    assert 0 not in tokens.context_ids(PROMPT)
    assert tokens.align(PROMPT, "is").answer_ids == tokens.context_ids(" is")


def test_a_run_goes_on_without_an_answer_and_judges_the_top_token_by_its_spelling(tmp_path: Path):
    """The tokenizer drops a word at the end of a text: as an answer it has no token, as a top token it is shown."""
    folder = TINY["llama-biases"].build(tmp_path)
    plain = probe(folder, suite=Suite("a", "", (Prompt("pos", "orig", PROMPT, ("is",), "a", 0),)), device="cpu")
    on_top = plain.rows.filter(lens="raw")["top1"].str.strip_chars()
    word = next(text for text in on_top if text.isascii() and text.isalpha() and not PROMPT.endswith(text))
    other = next(text for text in ("is", "name") if text != word)
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.Replace(Regex(f" ?{word}$"), "")
    save(tokenizer, folder, bos_token="<s>")
    unaligned = Prompt("pos", "orig", PROMPT, (word,), "a", 0)
    second_aligns = Prompt("pos", "orig", PROMPT, (word, other), "b", 1)
    run = probe(folder, suite=Suite("b", "", (unaligned, second_aligns)), device="cpu")

    assert run.record.flags["gold_alignment_partial"] == "1 of 2 prompts have no answer that aligns"
    assert run.record.suite.gold_alignment_rate == 0.5
    assert run.record.suite.prompts[0].answers[0].reason == "no_variant_extended_context"
    assert [answer.ok for answer in run.record.suite.prompts[1].answers] == [False, True]
    rows = run.rows.filter(fact_index=0)
    unresolved = [
        "answer_id",
        "p_answer",
        "answer_rank",
        "answer_mass",
        "answer_minus_uniform",
        "answer_minus_echo_mass",
        "mass_ratio_ans_over_prompt",
        "cos_to_answer",
        "geom_crossover",
        "answer_logit_gap",
        "answer_vs_top1_gap",
        "semantic_margin_ok",
    ]
    assert all(rows[name].null_count() == len(rows) for name in unresolved)
    assert rows["is_answer"].to_list() == (rows["top1"].str.strip_chars() == word).to_list()
    assert rows["is_answer"].any()
    assert not rows["is_answer"].all()
    second = run.rows.filter(fact_index=1)
    assert second["answer_rank"].null_count() == 0
    assert second["answer_id"].unique().to_list() == tiny_tokenizer()(f" {other}").input_ids[:1]


# --- Who gets a BOS


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "mixtral"])
def test_families_that_were_trained_with_bos_get_it_though_the_tokenizer_adds_none(family: str, tiny):
    """As with Yi, a llama whose tokenizer adds no BOS by itself and whose published runs have one."""
    assert tiny_tokenizer()(PROMPT).input_ids[0] != 0
    folder = tiny("llama-biases" if family == "llama" else family)
    tokens = CausalLM.open(folder, device="cpu").tokens
    assert tokens.bos_id == 0
    assert tokens.input_ids(PROMPT) == (0, *tokens.context_ids(PROMPT))
    assert tokens.bos_note == "the family uses BOS"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gpt2", "olmo2"])
def test_families_that_were_trained_without_bos_get_none_though_the_tokenizer_defines_one(family: str, tiny):
    tokens = CausalLM.open(tiny(family), device="cpu").tokens
    assert tokens.bos_id is None
    assert tokens.input_ids(PROMPT) == tokens.context_ids(PROMPT)
    assert tokens.bos_note == "the family uses no BOS"


@pytest.mark.parametrize("adds", [True, False])
def test_a_family_may_leave_bos_to_its_tokenizer(adds: bool, tmp_path: Path):
    tokenizer = byte_level_bpe()
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokens = Tokens(save(tokenizer, tmp_path, bos_token="<s>"), "tokenizer")
    assert tokens.bos_id == (0 if adds else None)
    assert tokens.bos_note == f"the tokenizer {'adds' if adds else 'does not add'} BOS by itself"
    assert tokens.input_ids(PROMPT)[0] == (0 if adds else tokens.context_ids(PROMPT)[0])


def test_bos_is_put_in_front_once_where_the_tokenizer_adds_its_own(tmp_path: Path):
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokens = Tokens(save(tokenizer, tmp_path, bos_token="<s>"), "always")
    assert tokens.input_ids(PROMPT).count(0) == 1


def test_a_tokenizer_without_bos_is_said_to_have_none(tmp_path: Path):
    tokens = Tokens(save(tiny_tokenizer().backend_tokenizer, tmp_path), "always")
    assert tokens.bos_id is None
    assert tokens.bos_note == "the family uses BOS, the tokenizer defines none"
    assert tokens.input_ids(PROMPT) == tokens.context_ids(PROMPT)


@pytest.mark.parametrize(
    ("family", "choice", "rule"),
    [
        ("llama", "auto", "always"),
        ("qwen2", "auto", "never"),
        ("phi3", "auto", "tokenizer"),
        ("llama", "no", "never"),
        ("qwen2", "yes", "always"),
    ],
)
def test_the_user_s_choice_goes_before_the_family_s_rule(family: str, choice: str, rule: str):
    assert bos_rule(FAMILIES[family], choice) == rule


def test_a_run_records_rule_id_and_first_token(tiny):
    suite = Suite("one", "", (Prompt("pos", "orig", PROMPT, ("is",), "a", 0),))
    with_bos = probe(tiny("qwen3"), suite=suite, bos="yes", device="cpu").record
    without = probe(tiny("qwen3"), suite=suite, device="cpu").record
    assert (with_bos.model.bos.rule, with_bos.model.bos.id) == ("always", 0)
    assert (without.model.bos.rule, without.model.bos.id) == ("never", None)
    assert with_bos.suite.prompts[0].token_ids == (0, *without.suite.prompts[0].token_ids)
    assert with_bos.suite.prompts[0].tokens[0] == "<s>"


# --- What ids look like, and which are content


def test_blank_and_punctuation_are_trivial_and_content_is_not(byte_level: Tokens):
    ids = {text: byte_level.context_ids(text) for text in (" ", "\n", "\t", ".", ",", " .", "?!", "B", "é", "1", " is")}
    trivial = byte_level.trivial(i for own in ids.values() for i in own)
    assert {text for text, own in ids.items() if set(own) <= trivial} == {" ", "\n", "\t", ".", ",", " .", "?!"}


def test_an_id_that_decodes_to_nothing_is_trivial(tmp_path: Path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "▁": 1, "▁in": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.Replace("▁", "")
    tokens = Tokens(save(tokenizer, tmp_path, unk_token="[UNK]"), "never")
    assert tokens.display([1, 2]) == {1: "", 2: "in"}
    assert tokens.trivial([1, 2]) == {1}


def test_ids_are_shown_one_by_one_and_need_not_differ(byte_level: Tokens):
    """Half of a character in UTF-8 is shown as U+FFFD, so strings are for people and ids for comparisons."""
    halves = byte_level.context_ids("é")
    assert len(halves) == 2
    assert byte_level.display(halves) == dict.fromkeys(halves, "\ufffd")
    assert byte_level.display(byte_level.context_ids("T is")) == dict(
        zip(byte_level.context_ids("T is"), ("T", " is"), strict=True)
    )
    assert byte_level.display([]) == {}


def test_ids_beyond_the_tokenizer_are_shown_as_nothing(byte_level: Tokens):
    """A head may be padded to more ids than there are tokens, and an untrained one is free to prefer them."""
    assert byte_level.n_ids == 300
    assert byte_level.display([306]) == {306: ""}


def test_a_text_without_tokens_is_refused(byte_level: Tokens):
    with pytest.raises(TokenizerError, match=r"^The prompt '' gives no token; a prompt needs at least one\.$"):
        byte_level.context_ids("")


def test_a_tokenizer_is_told_apart_by_the_hash_of_its_file(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    tiny_tokenizer().save_pretrained(one)
    save(Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")), other, unk_token="[UNK]")
    assert Tokens(one, "never").sha256 == hashlib.sha256((one / "tokenizer.json").read_bytes()).hexdigest()
    assert Tokens(one, "never").sha256 != Tokens(other, "never").sha256
