"""Lenses scored on tasks of words that a state leads towards: pass@k, with nulls, intervals and what was skipped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from layerscope.analysis.pass_at import PassAt, ahead, pass_at
from layerscope.analysis.task_scores import BASELINE, Ahead, LensTasks, TaskScore
from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, SuiteError, TokenizerError
from layerscope.lenses.lens import Lens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.options import OpenOptions
from layerscope.model.reproducible import reproducible
from layerscope.model.tokens import Tokens
from layerscope.options import keywords
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.opening import lens_names, opened
from layerscope.probing.word_ranks import last_states, ranks_of, with_nulls
from layerscope.suite.word_tasks import ReadAt, WordItem, WordTask, read_word_tasks


@dataclass(frozen=True, kw_only=True)
class LensTasksRequest(OpenOptions):
    """The model, the tasks, and how they are scored."""

    model: str | Path | CausalLM = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a Hub id, or an open model; default: the bundled one."""
    tasks: str | Path | Sequence[WordTask]
    """A folder of task files or one of them (see `layerscope.suite.word_tasks`), or tasks."""
    lenses: str | Sequence[str] | None = None
    """Which lenses; default: the logit lens and every fitted one of the model that `lens_dir` holds."""
    lens_dir: str | Path | None = None
    """Folder of fitted lenses, or a lens' own folder; default: that of the bundled model."""
    ks: Sequence[int] = (1, 5, 10)
    """Ranks up to which a word counts as found."""
    seed: int = 316
    """Of the shuffled lenses."""


@dataclass(frozen=True)
class _Asked:
    """What is read of a task."""

    token_ids: list[tuple[int, ...]]
    """Of every item up to the token whose state is read."""
    words: list[tuple[int, ...]]
    """Distinct words by the ids of their forms."""
    words_of: list[list[int]]
    """Which of them every item asks for."""
    skipped: tuple[str, ...]


@keywords(LensTasksRequest)
def score_lenses(request: LensTasksRequest) -> LensTasks:
    """Score lenses by how often words are among the first k at any layer before the output, in the mean over items.

    The state is one token's: that in front of the target, of the last line break, or the prompt's last. A word counts
    through every string that stands for it, each as written and with a capital, after a space and without one, where
    that is one token; the best of these gives its rank.

    Raises:
        LayerscopeError: whatever cannot be had, each by its own class (see `layerscope.errors`).
        SuiteError: a task that cannot be read, or of whose items too few have words of one token, or a rank below 1.
    """
    if not request.ks or min(request.ks) < 1:
        raise SuiteError(f"ks are ranks from 1 on, at least one of them, but they are {list(request.ks)}.")
    given = request.tasks
    tasks = read_word_tasks(given) if isinstance(given, str | Path) else tuple(given)
    model = opened(request.model, request)
    names = None if request.lenses is None else lens_names(request.lenses)
    chosen = choose_lenses(model, names, (BASELINE,), request.lens_dir)
    if names is None and not chosen.fitted:
        where = "" if request.lens_dir is None else f" in '{request.lens_dir}'"
        foreign = [f"{lens.kind}: {lens.reason}".rstrip(".") for lens in chosen.records if lens.status == "refused"]
        there = f" There is, of another model, {'; '.join(foreign)}." if foreign else ""
        raise LensError(
            f"No fitted lens of {model.id} to score was found{where}; give a folder with one, fit one with `layerscope "
            f"fit`, or name lenses that need no fit.{there}"
        )
    lenses = with_nulls(chosen.bind(model), request.seed)
    if model.n_layers < 2:
        raise SuiteError(f"{model.id} has one block, but words are looked for before the output; take a deeper model.")
    asked = [_asked(model, task) for task in tasks]
    with reproducible(request.seed, model.placement.device), torch.inference_mode():
        scores = (_score(model, lenses, task, of, request.ks) for task, of in zip(tasks, asked, strict=True))
        return LensTasks(model.id, tuple(scores))


def _score(model: CausalLM, lenses: Sequence[Lens], task: WordTask, asked: _Asked, ks: Sequence[int]) -> TaskScore:
    states = last_states(model, asked.token_ids)
    alike, scores = _alike(asked.words), list[PassAt]()
    for lens in lenses:
        ranks = ranks_of(model, lens, states, asked.words)
        scores += [pass_at(lens.name, ranks, asked.words_of, k, alike) for k in ks]
    base = {score.k: score for score in scores if score.lens == BASELINE}
    others = [score for score in scores if score.lens != BASELINE and score.k in base]
    return TaskScore(
        task=task.name,
        read_at=task.read_at,
        scores=tuple(scores),
        over_logit=tuple(Ahead(score.lens, score.k, *ahead(score, base[score.k])) for score in others),
        n_items=len(task.items),
        n_scored=len(asked.token_ids),
        n_words=sum(len(item.words) for item in task.items),
        skipped=asked.skipped,
    )


def _asked(model: CausalLM, task: WordTask) -> _Asked:
    """Raises SuiteError where too few words are of one token, or an item has nothing to be held against."""
    places, token_ids, words_of, skipped = dict[tuple[int, ...], int](), [], [], list[str]()
    for item in task.items:
        forms = [(word[0], _forms(model.tokens, word)) for word in item.words]
        skipped += [name for name, ids in forms if not ids]
        own = {places.setdefault(ids, len(places)) for _, ids in forms if ids}
        if own:
            token_ids.append(_read(model.tokens, item, task.read_at))
            words_of.append(sorted(own))
    alike = _alike(list(places))
    if not words_of or any(alike[own].any(0).all() for own in words_of):
        raise SuiteError(
            f"Task '{task.name}': every item's words are held against other items', but of {len(task.items)} items "
            f"{model.id}'s tokenizer has words of one token for {len(words_of)}, {len(places)} of them different; give "
            "more items."
        )
    return _Asked(token_ids, list(places), words_of, tuple(skipped))


def _alike(words: Sequence[tuple[int, ...]]) -> NDArray[np.bool_]:
    """Which words share a token: [word, word]."""
    ids = [set(word) for word in words]
    return np.array([[not one.isdisjoint(other) for other in ids] for one in ids], dtype=bool)


def _forms(tokens: Tokens, strings: Sequence[str]) -> tuple[int, ...]:
    """The ids of a word's forms that are one token, in order."""
    written = dict.fromkeys(form for word in strings for form in (word, word[:1].upper() + word[1:]))
    ids = (tokens.context_ids(f"{before}{form}") for form in written for before in ("", " "))
    return tuple(sorted({form[0] for form in ids if len(form) == 1}))


def _read(tokens: Tokens, item: WordItem, read_at: ReadAt) -> tuple[int, ...]:
    """What the model reads of a prompt, up to the token whose state is asked about."""
    if read_at == "last_token":
        return tokens.input_ids(item.prompt)
    text = item.prompt + (item.target or "" if read_at == "before_target" else "")
    ids = tokens.input_ids(text)
    n_before = len(ids) - len(tokens.context_ids(text))
    if read_at == "before_target":
        end = n_before + tokens.token_at(text, len(item.prompt))
    else:
        end = n_before + tokens.token_at(text, item.prompt.rindex("\n")) + 1
    if end <= n_before:
        raise TokenizerError(
            f"Item {item.name} has no token in front of its target {item.target!r}; lengthen its prompt."
        )
    return ids[:end]
