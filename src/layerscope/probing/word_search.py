"""Words that a state disposes a model to say, searched for at every layer through every lens: a lens' own tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from layerscope.analysis.pass_at import PassAt, pass_at
from layerscope.bundled import BUNDLED
from layerscope.errors import SuiteError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.reproducible import reproducible
from layerscope.options import keywords
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.opening import lens_names, opened
from layerscope.probing.options import SuiteOptions
from layerscope.probing.word_ranks import last_states, ranks_of, with_nulls
from layerscope.suite.suite import Prompt, Suite

DEFAULT_LENSES = ("logit",)
"""What is read through beside fitted lenses; a Jacobian lens with identities is the logit lens."""
FEWEST_WORDS = 2
"""One word for the item, and another for the null."""


@dataclass(frozen=True, kw_only=True)
class WordSearchRequest(SuiteOptions):
    """The model, the items, and how they are scored."""

    model: str | Path | CausalLM = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a Hub id, or an open model; default: the bundled one."""
    bridge: str | None = None
    """A template with {subject}, for two hops: each fact's answer stands in its place, and the word searched for is the
    fact's subject, which is neither in the prompt nor what should follow it. Default: search for the answers."""
    ks: Sequence[int] = (1, 5, 10)
    """Ranks up to which a word counts as found."""


@dataclass(frozen=True)
class WordSearch:
    """How every lens does, and what was left out."""

    scores: tuple[PassAt, ...]
    """By lens and k; a fitted lens' null, its weights shuffled, is called `<lens>_shuffled`."""
    words: tuple[str, ...]
    """Those that were searched for, each once."""
    skipped: tuple[str, ...]
    """Words of items that were left out, for the tokenizer has no single token for them."""


@dataclass(frozen=True)
class _Item:
    text: str
    word: str


@keywords(WordSearchRequest)
def word_search(request: WordSearchRequest) -> WordSearch:
    """Score lenses by how often a word is among the first k at any layer, against words of other items.

    The state is that of the prompt's last token. A word counts through each of its forms of one token, after a space
    and without one; the better of them gives its rank.

    Raises:
        LayerscopeError: whatever cannot be had, each by its own class (see `layerscope.errors`).
        SuiteError: a template without {subject}, fewer than two words of one token, or a rank below 1.
    """
    if not request.ks or min(request.ks) < 1:
        raise SuiteError(f"ks are ranks from 1 on, at least one of them, but they are {list(request.ks)}.")
    items = _bridged(request.read_suite(), request.bridge)
    model = opened(request.model, request)
    names = None if request.lenses is None else lens_names(request.lenses)
    lenses = with_nulls(choose_lenses(model, names, DEFAULT_LENSES, request.lens_dir).bind(model), request.seed)
    forms = {item: _forms(model, item) for item in items}
    kept = [item for item in items if forms[item]]
    words = list(dict.fromkeys(item.word for item in kept))
    if len(words) < FEWEST_WORDS:
        raise SuiteError(
            f"A search takes at least {FEWEST_WORDS} words of one token each, so that one is held against another, but "
            f"of {len(items)} items {model.id}'s tokenizer gives {len(words)}; give more facts."
        )
    ids = {item.word: forms[item] for item in kept}
    with reproducible(request.seed, model.placement.device), torch.inference_mode():
        states = last_states(model, [model.tokens.input_ids(item.text) for item in kept])
        scores = []
        for lens in lenses:
            ranks = ranks_of(model, lens, states, [ids[word] for word in words])
            of = [[words.index(item.word)] for item in kept]
            scores += [pass_at(lens.name, ranks, of, k) for k in request.ks]
    skipped = tuple(item.word for item in items if not forms[item])
    return WordSearch(tuple(scores), tuple(words), skipped)


def _bridged(suite: Suite, bridge: str | None) -> list[_Item]:
    """Every fact once, in the first of its variants; its answer in a template's place where there is one.

    Raises:
        SuiteError: the template has no place for it, or a fact no answer or subject.
    """
    facts: dict[int | None, Prompt] = {}
    for prompt in suite.prompts:
        if prompt.prompt_id == "pos" and prompt.chat is None:
            facts.setdefault(prompt.fact_index, prompt)
    if bridge is None:
        return [_Item(prompt.text, prompt.answers[0]) for prompt in facts.values() if prompt.answers]
    if "{subject}" not in bridge:
        raise SuiteError(
            f"A bridge is a template with {{subject}}, in whose place an answer stands, but it is {bridge!r}."
        )
    return [
        _Item(bridge.replace("{subject}", prompt.answers[0].strip()), prompt.subject)
        for prompt in facts.values()
        if prompt.answers and prompt.subject is not None
    ]


def _forms(model: CausalLM, item: _Item) -> list[int]:
    """The ids of a word's forms that are one token."""
    forms = model.tokens.forms(item.text, item.word)
    return sorted({form.answer_ids[0] for form in forms if len(form.answer_ids) == 1})
