"""What a model reads and says, held to plain Transformers: forms of answers, its own output, chats, subjects."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerscope import CausalLM, Prompt, Run, Suite, probe
from layerscope.analysis.comparability import NOT_RECORDED, conditions_of, differences
from layerscope.errors import SuiteError, TokenizerError
from layerscope.model import families
from layerscope.model.families import Family
from layerscope.record.parts import AlignmentRecord, PromptRecord
from layerscope.suite.suite import Chat, Message
from properties import checks_every_type
from rounding import ReadoutError, of_residual
from tiny_models import TINY, reference, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if quiet is defined and quiet %}(quietly) {% endif %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
ENDS = {
    'He said: "': "is",
    "The capital (": "Berlin",
    "4+4=": "8",
    "1,2,3,": "4",
    "The name:\n": "Rome",
    "The capital is ": "Berlin",
    "日本の首都は「": "東京",
    "Столица —": "Берлин",
    "The capital of Germany is called": "Berlin",
}
"""Ends of prompts behind which a space is right, wrong, or already there."""


def asking(*prompts: Prompt) -> Suite:
    return Suite("own", "", prompts)


def facts(asked: dict[str, str]) -> Suite:
    return asking(*(Prompt("pos", "orig", text, (answer,), text, i) for i, (text, answer) in enumerate(asked.items())))


def last_row(run: Run, prompt: PromptRecord) -> dict[str, object]:
    """The last layer of the headline lens, at the prompt's end."""
    rows = prompt.key.rows_of(run.rows).filter(lens="logit", layer=run.record.model.n_layers, is_next=True)
    return rows.row(0, named=True)


def within(run: Run, theirs: torch.Tensor) -> ReadoutError:
    """How far apart what is read from our logits and from theirs may lie, both float32."""
    size = float(theirs.abs().max())
    return ReadoutError(of_residual(run.record.model.n_layers, run.record.model.d_model) * size, size)


def assert_as_transformers_prefers(answer: AlignmentRecord, logits: torch.Tensor, tolerance: float) -> None:
    """Of the forms whose first token is no white space, the one with the larger logit is judged; ranks are its own."""
    telling = [form for form in answer.forms if form.reason is None]
    best = max(float(logits[form.answer_ids[0]]) for form in telling)
    assert answer.chosen_by == "model"
    assert float(logits[answer.first_id]) >= best - tolerance
    for form in telling:
        logit = float(logits[form.answer_ids[0]])
        assert form.logit == pytest.approx(logit, abs=tolerance)
        assert 1 + int((logits > logit + tolerance).sum()) <= form.rank <= 1 + int((logits > logit - tolerance).sum())


# --- The model's own output, and the form that it prefers


@pytest.mark.parametrize("family", ["llama-biases", "gemma2", "cohere", "opt-projected"])
def test_the_output_is_transformers_own_and_decides_the_form(family: str, tiny):
    run = probe(tiny(family), suite=facts(ENDS), positions="last", device="cpu")
    for prompt in run.record.suite.prompts:
        theirs = reference(tiny(family), list(prompt.token_ids)).logits[-1]
        off = within(run, theirs)
        assert_as_transformers_prefers(prompt.answers[0], theirs, off.logit)
        log_p = theirs.double().log_softmax(-1)
        output, row = prompt.output, last_row(run, prompt)
        assert output.source == "decoded"
        assert output.entropy_bits == pytest.approx(-float((log_p.exp() * log_p).sum()) / math.log(2), rel=off.relative)
        assert output.top_ids[0] == int(theirs.argmax())
        assert output.top_probs == pytest.approx(log_p[list(output.top_ids)].exp().tolist(), rel=off.relative)
        p_answer = float(log_p[prompt.answers[0].first_id].exp())
        assert output.p_answer == pytest.approx(p_answer, rel=off.relative)
        assert (output.answer_id, output.answer_rank) == (row["answer_id"], row["answer_rank"])
        assert output.p_answer == pytest.approx(row["p_answer"], rel=off.relative)


def test_where_the_identity_check_fails_the_output_is_that_of_the_model_s_own_code(monkeypatch, tiny):
    folder = tiny("gemma2")
    monkeypatch.setitem(families.FAMILIES, "gemma2", Family("gemma2"))  # knows nothing of a softcap
    run = probe(folder, suite=facts(dict(list(ENDS.items())[:1])), positions="last", device="cpu")
    assert not run.record.identity.ok
    (prompt,) = run.record.suite.prompts
    theirs = reference(folder, list(prompt.token_ids)).logits[-1]
    p_answer = float(theirs.double().softmax(-1)[prompt.answers[0].first_id])
    assert prompt.output.source == "model"
    assert prompt.output.p_answer == pytest.approx(p_answer, rel=within(run, theirs).relative)


def test_the_published_rule_asks_no_model(tiny):
    run = probe(tiny("qwen3"), suite=facts(ENDS), positions="last", device="cpu", protocol="published")
    for prompt in run.record.suite.prompts:
        (answer,) = prompt.answers
        text = f"{prompt.text} {answer.string}"
        n = len(prompt.token_ids)
        joined = tuple(tiny_tokenizer()(text).input_ids)
        assert answer.chosen_by == "rule"
        assert answer.variant == ("with_space" if joined[:n] == prompt.token_ids else "no_space")


def test_suite_and_user_choose_a_form_and_a_control_s_contrast_follows(tiny):
    prompt = Prompt("pos", "orig", 'He said: "', ("is",), "a", 0)
    control = Prompt("ctl", "ctl", 'She said: "', ("name",), None, None, contrast=("is",))
    space, none = tiny_tokenizer()(" is").input_ids[0], tiny_tokenizer()("is").input_ids[0]
    model = CausalLM.open(tiny("qwen3"), device="cpu")
    by_suite = probe(model, suite=asking(replace(prompt, answer_form="space"), control), positions="last").record.suite
    assert (by_suite.prompts[0].answers[0].first_id, by_suite.prompts[0].answers[0].chosen_by) == (space, "suite")
    assert by_suite.prompts[1].answers[0].chosen_by == "model"
    asked = asking(replace(prompt, answer_form="space"), control)
    by_user = probe(model, suite=asked, positions="last", answer_form="none").record.suite
    assert [p.answers[0].chosen_by for p in by_user.prompts] == ["suite", "suite"]
    assert by_user.prompts[0].answers[0].first_id == by_user.prompts[1].contrast[0].first_id == none


def test_another_form_of_answers_is_refused(tiny, request: pytest.FixtureRequest):
    if checks_every_type(request):
        pytest.skip("a checker of types refuses the word before the probe does")
    message = r"^There is no form of answers called 'both'; choose from auto, space, none\.$"
    with pytest.raises(SuiteError, match=message):
        probe(tiny("qwen3"), suite=asking(Prompt("pos", "orig", "He said", ("is",), "a", 0)), answer_form="both")


def test_forms_that_lie_far_apart_are_flagged_where_another_rule_would_judge_the_other(tiny):
    """Of a tiny random model some answer's two forms do; which, Transformers' own logits say."""
    folder, text = tiny("qwen3"), 'He said: "'
    model = CausalLM.open(folder, device="cpu")
    logits = reference(folder, tiny_tokenizer()(text).input_ids).logits[-1]
    ranks = 1 + (logits[None] > logits[:, None]).sum(-1)
    pairs = {}
    for word in ("is", "name", "Berlin", "Paris", "Rome", "Tokyo", "Madrid", "city", "only", "text", "b", "z", "q"):
        bare, spaced = (int(ranks[tiny_tokenizer()(form).input_ids[0]]) for form in (word, f" {word}"))
        if tiny_tokenizer()(f" {word}").tokens()[0] != "Ġ":
            pairs[word] = (bare, spaced)
    far = next(word for word, (bare, spaced) in pairs.items() if spaced > 10 * bare)
    usual = next(word for word, (bare, spaced) in pairs.items() if spaced < bare)
    bare, spaced = pairs[far]
    flags = probe(model, suite=facts({text: far}), positions="last").record.flags
    assert flags["answer_form_matters"] == (
        f"after {text!r}, {far!r} is judged without a space (rank {bare}); after a space it has rank {spaced}"
    )
    forced = probe(model, suite=facts({text: far}), positions="last", answer_form="space").record.flags
    assert forced["answer_form_matters"].startswith(f"after {text!r}, {far!r} is judged after a space (rank {spaced})")
    assert "answer_form_matters" not in probe(model, suite=facts({text: usual}), positions="last").record.flags


# --- Chats


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template that begins every turn with its special token."""
    folder = TINY["qwen3"].build(tmp_path_factory.mktemp("chatty") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


QUESTION = {"role": "user", "content": "The capital of Germany?"}


def chat(*messages: dict[str, str], **options: object) -> Prompt:
    made = Chat(tuple(Message(**message) for message in messages), **options)
    return Prompt("pos", "orig", messages[-1]["content"], ("Berlin",), "a", 0, subject="Germany", chat=made)


def test_a_chat_is_read_as_the_tokenizer_s_own_template_writes_it(chatty: Path):
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    run = probe(chatty, suite=asking(chat(QUESTION)), device="cpu", bos="yes")
    (prompt,) = run.record.suite.prompts
    theirs = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == theirs
    assert prompt.text == tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, tokenize=False)
    assert [message.model_dump() for message in prompt.chat.messages] == [QUESTION]
    assert tokenizer.decode(prompt.token_ids[: prompt.subject_end + 1]).endswith("Germany")
    logits = reference(chatty, theirs).logits[-1]
    assert_as_transformers_prefers(prompt.answers[0], logits, within(run, logits).logit)
    assert "bos_against_family" not in run.record.flags


def test_a_chat_may_be_continued_told_something_first_and_written_with_options(chatty: Path):
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    begun = [QUESTION, {"role": "assistant", "content": "It is called"}]
    own = [{"role": "system", "content": "Say nothing."}, *begun]
    first, second = chat(*begun, continue_final_message=True), replace(chat(*own), fact_index=1)
    asked = {"suite": asking(first, second), "device": "cpu", "system": "Be short.", "template_options": ["quiet=true"]}
    prompts = probe(chatty, **asked).record.suite.prompts
    told = [{"role": "system", "content": "Be short."}, *begun]
    assert list(prompts[0].token_ids) == tokenizer.apply_chat_template(
        told, continue_final_message=True, quiet=True, return_dict=False
    )
    assert list(prompts[1].token_ids) == tokenizer.apply_chat_template(
        own, add_generation_prompt=True, quiet=True, return_dict=False
    )
    assert prompts[0].chat.template_options == {"quiet": True}


def test_a_chat_s_special_tokens_are_no_echo(chatty: Path):
    """A model may well say next that a turn begins; the prompt's own words are still its content."""
    run = probe(chatty, suite=asking(chat(QUESTION)), positions="last", lenses="logit", device="cpu")
    (prompt,) = run.record.suite.prompts
    special, trivial = 0, set(run.record.measured.copy_mask.ids)
    assert special in prompt.token_ids
    assert special in trivial
    # The mass of the echo is that of all content of the prompt, which Transformers' own output has at the last layer.
    content = {i for i in prompt.token_ids if i not in trivial}
    logits = reference(chatty, list(prompt.token_ids)).logits[-1]
    mass, off = float(logits.double().softmax(-1)[sorted(content)].sum()), within(run, logits)
    assert last_row(run, prompt)["echo_mass_prompt"] == pytest.approx(mass, rel=off.relative)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"template_options": ["quiet"]}, "'quiet' is no option of a chat template; write name=value, such as"),
        (
            {"template_options": ["quiet=[1]"]},
            "The template's option 'quiet' should be true, false, a number or a text",
        ),
        ({"system": "Be short."}, "What system say goes into chats, but suite 'own' has none; leave it out, or write"),
    ],
)
def test_words_for_chats_that_cannot_be_placed_are_refused(options: dict[str, object], sentence: str, chatty: Path):
    with pytest.raises(SuiteError) as caught:
        probe(chatty, suite=facts({"The capital": "is"}), device="cpu", **options)
    assert str(caught.value).startswith(sentence)


def test_a_model_without_a_template_says_so_and_a_template_its_reason(chatty: Path, tiny, tmp_path: Path):
    with pytest.raises(
        TokenizerError, match=r"^The prompt is a chat, but the model's tokenizer has no chat template; "
    ):
        probe(tiny("qwen3"), suite=asking(chat(QUESTION)), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = "{{ raise_exception('roles must take turns') }}"
    model = CausalLM.open(TINY["qwen3"].build(tmp_path / "model"), device="cpu")
    tokenizer.save_pretrained(model.source.folder)
    with pytest.raises(TokenizerError, match=r"does not take these messages \(roles must take turns\)"):
        probe(model.source.folder, suite=asking(chat(QUESTION)), device="cpu")


# --- What speaks against a comparison


def test_runs_that_read_otherwise_are_told_apart(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    with_bos = CausalLM.open(tiny("llama-biases"), device="cpu", bos="yes")
    suite, options = facts({"The capital of Germany is called": "is"}), {"positions": "last", "lenses": "logit"}
    plain = probe(model, suite=suite, **options).record
    begun = probe(with_bos, suite=suite, **options).record
    spaced = probe(model, suite=suite, answer_form="space", **options).record
    older = plain.model_copy(update={"provenance": plain.provenance.model_copy(update={"transformers": "4.0.0"})})
    published = plain.model_copy(update={"source": "published"})
    found = differences([plain, plain, plain, begun, spaced, older, published])
    assert found[:3] == [{}] * 3
    assert found[3] == {"bos": ("with BOS, as was asked for", "without BOS, unlike most models of its architecture")}
    assert found[4] == {"answer_forms": ("as the suite or its user has it", "as the model prefers")}
    assert found[5] == {"transformers": ("4.0.0", plain.provenance.transformers)}
    assert found[6] == {}
    assert set(conditions_of(published).values()) == {NOT_RECORDED}


# --- Real models


REAL_PROMPTS = {
    'Deutsch: "Hund" - English: "dog"\nDeutsch: "Haus" - English: "': "house",
    "Frankreich (Paris), Italien (Rom), Deutschland (": "Berlin",
    "2+2=4, 3+3=6, 4+4=": "8",
    "1,2,3,4,5,": "6",
    "The capital of Germany is": "Berlin",
    "Question: What is the capital of Germany?\nAnswer:\n": "Berlin",
    "法国的首都是巴黎。日本的首都是": "东京",
    "フランスの首都はパリです。ドイツの首都は": "ベルリン",
    "عاصمة فرنسا هي باريس. عاصمة ألمانيا هي": "برلين",
    "Столица Франции - Париж. Столица Германии -": "Берлин",
    "फ्रांस की राजधानी पेरिस है। जर्मनी की राजधानी": "बर्लिन",
    "def add(a, b):\n    return a +": "b",
    "x = [1, 2, ": "3",
    "<|im_start|>user\nThe capital of Germany?<|im_end|>\n<|im_start|>assistant\n": "Berlin",
}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("fixture", ["smollm2", "gemma"])
def test_a_real_model_is_judged_by_the_token_that_it_prefers(fixture: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(fixture)
    run = probe(folder, suite=facts(REAL_PROMPTS), positions="last", lenses="logit", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in run.record.suite.prompts:
        assert list(prompt.token_ids) == tokenizer(prompt.text).input_ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt.token_ids])).logits[0, -1]
        assert_as_transformers_prefers(prompt.answers[0], logits, within(run, logits).logit)
        assert prompt.output.answer_rank == last_row(run, prompt)["answer_rank"]


@pytest.mark.real
@pytest.mark.slow
def test_a_chat_of_a_real_model_is_transformers_own(smollm2: Path):
    asked = {"role": "user", "content": "What is the capital of Germany? Answer with one word."}
    run = probe(smollm2, suite=asking(chat(asked)), positions="last", lenses="logit", device="cpu")
    (prompt,) = run.record.suite.prompts
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template([asked], add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == ids
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    p, off = logits.double().softmax(-1), within(run, logits)
    assert prompt.output.top_probs == pytest.approx(p[list(prompt.output.top_ids)].tolist(), rel=off.relative)
    assert prompt.output.top_ids[0] == int(p.argmax())
