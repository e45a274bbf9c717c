"""Text to ids and back on small real tokenizers: where an answer begins, what begins a prompt, what is content."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from layerscope import CausalLM, Prompt, Suite, probe
from layerscope.errors import TokenizerError
from layerscope.model.answer_forms import Form, by_model, by_rule, by_suite
from layerscope.model.families import FAMILIES, BosRule, bos_rule, rule_of_table
from layerscope.model.tokens import Tokens
from layerscope.progress import Silent
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


def by_variant(tokens: Tokens, prompt: str, answer: str) -> dict[str, Form]:
    return {form.variant: form for form in tokens.forms(prompt, answer)}


def test_an_answer_is_looked_at_after_a_space_and_without_one(byte_level: Tokens):
    found = by_variant(byte_level, PROMPT, "is")
    assert list(found) == ["with_space", "no_space"]
    assert found["with_space"].pieces == ("Ġis",)
    assert found["with_space"].answer_ids == byte_level.context_ids(" is")
    assert found["no_space"].answer_ids == byte_level.context_ids("is")
    assert {form.reason for form in found.values()} == {None}


def test_an_answer_written_with_its_own_white_space_has_that_form_alone(byte_level: Tokens):
    found = by_variant(byte_level, PROMPT, " is")
    assert list(found) == ["as_written"]
    assert found["as_written"].answer_ids == byte_level.context_ids(" is")


def test_an_answer_of_several_pieces_is_judged_by_the_first_and_flagged(byte_level: Tokens):
    found = by_rule("Ouagadougou", byte_level.forms_by_rule(PROMPT, "Ouagadougou"))
    assert (found.status, found.variant) == ("ok", "with_space")
    assert len(found.answer_ids) > 4
    assert found.several_pieces
    assert found.first_id == found.answer_ids[0]
    assert found.pieces == tuple(tiny_tokenizer().convert_ids_to_tokens(list(found.answer_ids[:4])))
    assert tiny_tokenizer().decode(list(found.answer_ids)) == " Ouagadougou"


def test_the_published_rule_takes_the_space_wherever_it_can(byte_level: Tokens, tmp_path: Path):
    after_quote = byte_level.forms_by_rule('He said "', "is")
    assert by_rule("is", after_quote).variant == "with_space"
    tokens = merging(tmp_path, ("n", " "))  # a space would change the prompt's own tokens
    found = by_rule("Rome", tokens.forms_by_rule("in", "Rome"))
    assert (found.status, found.variant, found.chosen_by) == ("ok", "no_space", "rule")
    assert found.pieces == ("R", "o", "m", "e")


def test_an_answer_that_changes_the_prompt_s_own_tokens_either_way_is_unresolved(tmp_path: Path):
    tokens = merging(tmp_path, ("n", " "), ("n", "R"))
    for found in (
        by_model("Rome", tokens.forms("in", "Rome")),
        by_rule("Rome", tokens.forms_by_rule("in", "Rome")),
    ):
        assert (found.status, found.variant, found.reason) == ("unresolved", "unknown", "context_retokenised")
        assert (found.first_id, found.answer_ids, found.pieces, found.chosen_by) == (None, (), (), None)
        assert not found.several_pieces


def test_an_answer_that_adds_no_token_is_unresolved(tmp_path: Path):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "in": 1, "out": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\d+"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = Tokens(save(tokenizer, tmp_path, unk_token="[UNK]"), "never")
    found = by_model("42", tokens.forms("in", "42"))
    assert (found.status, found.variant, found.reason) == ("unresolved", "unknown", "no_variant_extended_context")
    assert found.first_id is None
    assert by_model("out", tokens.forms("in", "out")).answer_ids == (2,)


def test_an_answer_after_a_space_keeps_the_leading_space_of_a_sentencepiece_tokenizer_out(tmp_path: Path):
    """Such a tokenizer puts a space in front of every text, so the answer tokenised alone would look the same."""
    tokens = sentencepiece_like(tmp_path)
    assert tokens.context_ids("in") == (1,)
    assert by_variant(tokens, "in", "Rome")["with_space"].answer_ids == (2,)


def sentencepiece_like(folder: Path) -> Tokens:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁in", "▁Rome", "Rome", "▁"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return Tokens(save(tokenizer, folder, unk_token="<unk>"), "never")


def test_a_form_that_begins_with_a_lone_space_tells_nothing_and_is_passed_over(tmp_path: Path):
    """As where digits are tokens of their own: any word could follow the space."""
    tokens = merging(tmp_path)
    found = by_variant(tokens, "in", "Rome")
    assert (found["with_space"].pieces[0], found["with_space"].first_id) == (" ", None)
    assert (found["with_space"].white_space_skipped, found["with_space"].reason) == (True, "white_space_first")
    assert by_model("Rome", tokens.forms("in", "Rome")).pieces == ("R", "o", "m", "e")
    assert by_rule("Rome", tokens.forms_by_rule("in", "Rome")).pieces == (" ", "R", "o", "m")


@pytest.mark.parametrize("end", [" ", "\n\n", "assistant\n"])
def test_behind_white_space_the_answer_is_the_bare_word(byte_level: Tokens, end: str):
    """A prompt's closing space would merge with the word, but the model is given it as a token of its own."""
    prompt = PROMPT + end
    bare = by_variant(byte_level, prompt, "is")["no_space"]
    assert bare.answer_ids == byte_level.context_ids("is")
    merged = tiny_tokenizer()(prompt + "is").input_ids[: len(byte_level.context_ids(prompt))]
    assert bare.apart is (tuple(merged) != byte_level.context_ids(prompt))


def test_behind_white_space_no_form_is_made_up_where_the_answer_alone_brings_a_space(tmp_path: Path):
    tokens = sentencepiece_like(tmp_path)
    found = by_variant(tokens, "in ", "Rome")["no_space"]
    assert (found.answer_ids, found.reason) == ((), "no_variant_extended_context")


def test_special_tokens_never_stand_between_prompt_and_answer(tmp_path: Path):
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    tokens = Tokens(save(tokenizer, tmp_path, bos_token="<s>"), "never")
    assert 0 not in tokens.context_ids(PROMPT)
    assert by_variant(tokens, PROMPT, "is")["with_space"].answer_ids == tokens.context_ids(" is")


def test_the_usable_form_with_the_larger_logit_is_judged_unless_the_suite_says_otherwise():
    spaced = Form("with_space", (1,), ("▁a",), logit=2.0, rank=3)
    bare = Form("no_space", (2,), ("a",), logit=5.0, rank=1)
    blank = Form("with_space", (3, 2), ("▁", "a"), white_space_skipped=True, reason="white_space_first")
    assert by_model("a", [spaced, bare]).first_id == 2
    assert by_model("a", [replace(spaced, logit=6.0), bare]).first_id == 1
    assert by_model("a", [blank, bare]).first_id == 2
    assert by_model("a", [blank, bare]).chosen_by == "model"
    asked = by_suite("a", [spaced, bare], "space")
    assert (asked.first_id, asked.chosen_by) == (1, "suite")
    assert by_suite("a", [blank, bare], "space").reason == "white_space_first"
    assert by_suite("a", [Form("as_written", (4,), ("Ċa",))], "none").first_id == 4


def test_before_the_model_has_run_the_first_usable_form_stands_in():
    forms = [Form("with_space", (1,), ("▁a",)), Form("no_space", (2,), ("a",), logit=5.0)]
    found = by_model("a", forms)
    assert (found.first_id, found.chosen_by) == (1, "rule")


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
    second_aligns = Prompt("pos", "orig", PROMPT, (word, other), "b", 1, answer_form="space")
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


# --- What begins a prompt


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "mixtral"])
def test_the_tokenizer_goes_before_the_table_of_families(family: str, tiny):
    """As with SmolLM2, a llama whose tokenizer adds no BOS and which never saw one in training."""
    assert tiny_tokenizer()(PROMPT).input_ids[0] != 0
    folder = tiny("llama-biases" if family == "llama" else family)
    model = CausalLM.open(folder, device="cpu")
    assert model.tokens.bos_id is None
    assert model.tokens.input_ids(PROMPT) == tuple(tiny_tokenizer()(PROMPT).input_ids)
    assert model.tokens.begins.note == "the tokenizer does not add BOS by itself"
    assert model.tokens.begins.against_family
    by_table = model.reading(rule_of_table(model.tokens.bos)).tokens
    assert by_table.input_ids(PROMPT) == (0, *by_table.context_ids(PROMPT))
    assert by_table.begins.note == "the family uses BOS"
    assert not by_table.begins.against_family


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gpt2", "olmo2"])
def test_where_tokenizer_and_table_agree_nothing_is_said(family: str, tiny):
    tokens = CausalLM.open(tiny(family), device="cpu").tokens
    assert tokens.bos_id is None
    assert tokens.input_ids(PROMPT) == tokens.context_ids(PROMPT)
    assert not tokens.begins.against_family


def adding(folder: Path, template: str, *special: tuple[str, int]) -> Path:
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special))
    return save(tokenizer, folder, bos_token="<s>")


FAMILY_HAS_NONE = BosRule("tokenizer", "tokenizer", "never")


@pytest.mark.parametrize("adds", [True, False])
def test_the_tokenizer_s_own_rule_is_found_out_by_asking_it(adds: bool, tmp_path: Path):
    folder = adding(tmp_path, "<s> $A" if adds else "$A", ("<s>", 0))
    tokens = Tokens(folder, FAMILY_HAS_NONE)
    assert tokens.bos_id == (0 if adds else None)
    assert tokens.begins.note == f"the tokenizer {'adds' if adds else 'does not add'} BOS by itself"
    assert tokens.begins.against_family is adds
    assert list(tokens.input_ids(PROMPT)) == AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids


def test_all_that_a_tokenizer_puts_in_front_is_put_there_and_nothing_that_it_appends(tmp_path: Path):
    tokens = Tokens(adding(tmp_path, "</s> <s> $A </s>", ("<s>", 0), ("</s>", 1)), FAMILY_HAS_NONE)
    assert tokens.input_ids(PROMPT) == (1, 0, *tokens.context_ids(PROMPT))
    assert (tokens.begins.ids, tokens.bos_id) == ((1, 0), 0)
    assert tokens.n_special(tokens.input_ids(PROMPT)) == 2
    asked = Tokens(
        adding(tmp_path / "again", "</s> <s> $A", ("<s>", 0), ("</s>", 1)), BosRule("always", "option", None)
    )
    assert asked.begins.ids == (1, 0)


def test_a_text_that_begins_with_bos_gets_no_second_one(tmp_path: Path):
    for bos in (FAMILY_HAS_NONE, BosRule("always", "option", None), BosRule("always", "family", "always")):
        tokens = Tokens(adding(tmp_path, "<s> $A", ("<s>", 0)), bos)
        assert tokens.input_ids(f"<s>{PROMPT}") == (0, *tokens.context_ids(PROMPT)) == tokens.input_ids(PROMPT)
        assert tokens.n_special(tokens.input_ids(f"<s>{PROMPT}")) == 1


class Entangled(Tokens):
    """A tokenizer that writes other ids for a text once special tokens are wanted, as Python code may."""

    _own_prefix = None


def test_a_tokenizer_that_cannot_say_leaves_it_to_the_table(tmp_path: Path):
    folder = adding(tmp_path, "$A")
    tokens = Entangled(folder, BosRule("tokenizer", "tokenizer", "always"))
    assert (tokens.begins.source, tokens.begins.rule, tokens.bos_id) == ("family", "always", 0)
    unknown = Entangled(folder, BosRule("tokenizer", "tokenizer", None))
    assert (unknown.begins.source, unknown.begins.rule, unknown.bos_id) == ("family", "never", None)


def test_a_tokenizer_without_bos_is_said_to_have_none(tmp_path: Path):
    tokens = Tokens(save(tiny_tokenizer().backend_tokenizer, tmp_path), BosRule("always", "family", "always"))
    assert tokens.bos_id is None
    assert tokens.begins.note == "the family uses BOS, the tokenizer defines none"
    assert tokens.input_ids(PROMPT) == tokens.context_ids(PROMPT)


@pytest.mark.parametrize(
    ("choice", "rule", "source", "by_table"),
    [
        ("auto", "tokenizer", "tokenizer", ("always", "family")),
        ("no", "never", "option", ("never", "option")),
        ("yes", "always", "option", ("always", "option")),
    ],
)
def test_the_user_s_choice_goes_before_tokenizer_and_table(choice: str, rule: str, source: str, by_table: tuple):
    found = bos_rule(choice, FAMILIES["llama"].bos)
    assert (found.rule, found.source) == (rule, source)
    published = rule_of_table(found)
    assert (published.rule, published.source) == by_table


def test_a_run_records_rule_id_and_first_token(tiny):
    suite = Suite("one", "", (Prompt("pos", "orig", PROMPT, ("is",), "a", 0),))
    with_bos = probe(tiny("qwen3"), suite=suite, bos="yes", device="cpu").record
    without = probe(tiny("qwen3"), suite=suite, device="cpu").record
    assert (with_bos.model.bos.rule, with_bos.model.bos.source, with_bos.model.bos.id) == ("always", "option", 0)
    assert (without.model.bos.rule, without.model.bos.source, without.model.bos.id) == ("tokenizer", "tokenizer", None)
    assert without.model.bos.family_rule == "never"
    assert with_bos.suite.prompts[0].token_ids == (0, *without.suite.prompts[0].token_ids)
    assert with_bos.suite.prompts[0].tokens[0] == "<s>"


def test_a_run_says_that_the_table_has_it_otherwise_and_that_a_text_brings_its_bos(tiny):
    prompts = tuple(Prompt("pos", "orig", text, ("is",), text, i) for i, text in enumerate((f"<s>{PROMPT}", PROMPT)))
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    suite = Suite("two", "", prompts)
    told = Told()
    standard = probe(model, suite=suite, lenses="logit", observer=told).record
    assert standard.flags["bos_against_family"] in told.plans
    assert standard.flags["bos_against_family"].startswith("no BOS in front of prompts, as the model's own tokenizer")
    in_text = "1 of 2 prompts begin with BOS as written, and no other was put in front"
    published = probe(model, suite=suite, protocol="published", lenses="logit").record
    assert published.model.bos.source == "family"
    assert "bos_against_family" not in published.flags
    assert (standard.flags["bos_in_text"], published.flags["bos_in_text"]) == (in_text, in_text)
    assert len({p.token_ids for p in published.suite.prompts}) == 1
    assert standard.suite.prompts[1].token_ids == published.suite.prompts[1].token_ids[1:]


class Told(Silent):
    def __init__(self) -> None:
        self.plans: list[str] = []

    def plan(self, text: str) -> None:
        self.plans.append(text)


# --- Where a subject ends


def test_the_last_occurrence_of_a_subject_ends_at_the_last_token_that_overlaps_it(byte_level: Tokens):
    text = "Germany and Germany's capital"
    ids = byte_level.context_ids(text)
    at = byte_level.last_position_of("Germany", text)
    assert tiny_tokenizer().decode(list(ids[: at + 1])) in ("Germany and Germany", "Germany and Germany'")
    assert tiny_tokenizer().decode(list(ids[:at])) != "Germany and Germany"
    assert byte_level.last_position_of("Germany", "Germany") == len(byte_level.context_ids("Germany")) - 1
    assert byte_level.last_position_of("Japan", text) is None
    assert byte_level.last_position_of("", text) is None
    halves = byte_level.context_ids("né")
    assert byte_level.last_position_of("é", "né") == len(halves) - 1  # two tokens share the letter


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
