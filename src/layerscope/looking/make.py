"""Making looks: texts through the model, its residuals through lenses, and the numbers that a grid shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError, SuiteError
from layerscope.looking.look import Look, Tracked
from layerscope.looking.options import SHOWN_POSITIONS, LookOptions
from layerscope.looking.own_lenses import lenses_of
from layerscope.looking.places import chosen_places
from layerscope.model.answer_forms import Alignment
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import Identity
from layerscope.model.placement import shortage_explained
from layerscope.model.residuals import Residuals
from layerscope.options import keywords
from layerscope.probing.chats import template_options
from layerscope.probing.encode import Encoded, Reading, encode
from layerscope.probing.memory_plan import IDENTITY_PROMPTS, Batch, plan_memory
from layerscope.probing.opening import opened
from layerscope.probing.outputs import identity_of, with_outputs
from layerscope.progress import Observer, Silent
from layerscope.readout.compiled import load_ahead
from layerscope.readout.decode import Question, Readout, decode, pays
from layerscope.readout.measure import concatenated
from layerscope.record.protocol import protocol_of
from layerscope.suite.suite import Chat, Message, Prompt, Suite


@dataclass(frozen=True, kw_only=True)
class LookRequest(LookOptions):
    """A text to look at, and how."""

    model: str | Path | CausalLM = field(default=BUNDLED, kw_only=False)
    """A folder with config.json, tokenizer and *.safetensors, a GGUF file, a Hub id, or an open model; default: the
    bundled one."""
    text: str = field(default="", kw_only=False)
    """What the model continues."""


@keywords(LookRequest)
def look(request: LookRequest) -> Look:
    """Look at a text: what the model says next, and what every layer would say at its tokens.

    Raises:
        LayerscopeError: whatever cannot be done, each by its own class (see `layerscope.errors`).
    """
    options = LookOptions(**{f.name: getattr(request, f.name) for f in fields(LookOptions)})
    return looks(opened(request.model, options), [request.text], options)[0]


def looks(
    model: CausalLM, texts: Sequence[str], options: LookOptions | None = None, observer: Observer | None = None
) -> list[Look]:
    """Look at several texts, as many at once as the memory allows: the weights are read once for all of these.

    Args:
        model: open; options of opening one are not looked at.
        texts: what the model continues, each by itself.
        options: how each is looked at; the words that are followed are the same for all.
        observer: is told the progress.

    Returns:
        A look for each text, in their order. Each keeps the residuals of all its tokens, 4 bytes a number.

    Raises:
        LayerscopeError: whatever cannot be done, each by its own class (see `layerscope.errors`).
    """
    plan = LookPlan(model, texts, options or LookOptions())
    return [found for part in plan.parts for found in plan.looks(part, observer or Silent())]


class LookPlan:
    """Several texts, tokenised, and cut into parts that go through the model together."""

    def __init__(self, model: CausalLM, texts: Sequence[str], options: LookOptions) -> None:
        """Check all that can be checked before the model runs.

        Raises:
            LayerscopeError: whatever cannot be done, each by its own class.
        """
        if options.top < 1:
            raise LensError(f"top should be at least 1, but it is {options.top}.")
        self.model, self.top = model, min(options.top, model.d_vocab)
        self.lenses = lenses_of(model, options.lenses, options.lens_dir)
        every = range(model.n_layers + 1)
        self.layers = chosen_places(options.layers, len(every), "layers", lambda: tuple(every))
        prompts = encode(suite_of(texts, options), model, "last", _reading(options))
        self.encoded = [_placed(each, options) for each in prompts]
        # A text's rows are decoded once for each word that is followed.
        copied = [replace(each, positions=each.positions * max(1, len(each.answers))) for each in self.encoded]
        self.parts = plan_memory(model, copied, len(self.lenses), options.top, protocol_of("standard"))
        rows = sum(len(each.positions) for each in copied) * len(self.layers) * len(self.lenses)
        if pays(rows, model.unembedding):
            load_ahead()

    @torch.inference_mode()
    def looks(self, part: Batch, observer: Observer) -> list[Look]:
        """The looks of one part; each keeps its own residuals alone."""
        encoded = self.encoded[part.prompts]
        ran_out = "The memory ran out, although what was planned was within the budget; give a smaller --memory."
        with shortage_explained(ran_out):
            residuals = self.model.forward(
                [each.token_ids for each in encoded],
                n_logits=min(IDENTITY_PROMPTS, len(encoded)),
                progress=observer.blocks,
            )
            identity = identity_of(self.model, residuals)
            told = with_outputs(encoded, residuals, self.model, final_is_model=identity.ok, form_of_model=True)
            return _looked(self, residuals, told, identity, part, observer.vocabulary)


def suite_of(texts: Sequence[str], options: LookOptions) -> Suite:
    """The texts as a suite; the words that are followed are its answers.

    Raises:
        SuiteError: a text that is empty, or words that are none.
    """
    words = tuple(dict.fromkeys([*([] if options.answer is None else [options.answer]), *_words(options.track)]))
    if any(not word for word in words):
        raise SuiteError("An empty word came among those to be followed; leave it out, with its comma.")
    prompts, seen = [], set[str]()
    for i, text in enumerate(texts):
        if not text:
            raise SuiteError(f"Text {i + 1} is empty; give the model something to continue.")
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            raise SuiteError(f"Text {i + 1} should be Unicode, but it holds bytes that are no UTF-8; encode it so.")
        chat = Chat((Message("user", text),)) if options.chat else None
        key = f"{text} ({i + 1})" if text in seen else text
        seen.add(text)
        prompts.append(Prompt("pos", "orig", text, words, key, i, chat=chat))
    return Suite("look", "Texts to look at.", tuple(prompts))


def _words(track: str | Sequence[str] | None) -> list[str]:
    """One by one; of text that is split at commas those behind the first keep a space in front of them."""
    if track is None:
        return []
    return track.split(",") if isinstance(track, str) else list(track)


def _reading(options: LookOptions) -> Reading:
    if not options.chat and (options.system is not None or options.template_options):
        raise SuiteError("A system message and options of the template belong to a chat; add --chat (chat=True).")
    return Reading(system=options.system, template_options=template_options(options.template_options))


def _placed(encoded: Encoded, options: LookOptions) -> Encoded:
    """The prompt with the positions that are looked at."""
    n = len(encoded.token_ids)
    positions = chosen_places(options.positions, n, "tokens", lambda: tuple(range(max(0, n - SHOWN_POSITIONS), n)))
    return replace(encoded, positions=positions)


def _looked(
    plan: LookPlan,
    residuals: Residuals,
    encoded: Sequence[Encoded],
    identity: Identity,
    part: Batch,
    progress: Callable[[int, int], None],
) -> list[Look]:
    """One sweep for all texts of a part, or several where the memory asks for it."""
    followed = [_distinct_ids(each) for each in encoded]
    # The rows of a prompt stand there once for the numbers of the grid, and once for each token that is followed.
    times = [max(1, len(ids)) for ids in followed]
    questions = [
        Question(len(each.positions), answer_ids=ids[i : i + 1])
        for each, ids, n in zip(encoded, followed, times, strict=True)
        for i in range(n)
    ]
    places = [(i, each.positions) for i, each in enumerate(encoded) for _ in range(times[i])]
    readout = _read_out(plan, residuals.rows(places), questions, part.sweep_bytes, progress)
    listed = {int(token_id) for token_id in np.unique(readout.top_ids[readout.finite])}
    strings = plan.model.tokens.display(listed | {token_id for each in encoded for token_id in each.token_ids})
    made, at, asked = [], 0, 0
    for i, (each, ids, n) in enumerate(zip(encoded, followed, times, strict=True)):
        own = readout.part(slice(at, at + n * len(each.positions)), slice(asked, asked + n))
        values = residuals.of_prompt(i).clone()
        made.append(_look(plan, each, ids, own, values, identity, strings))
        at, asked = at + n * len(each.positions), asked + n
    return made


def _distinct_ids(encoded: Encoded) -> tuple[int, ...]:
    """Of the tokens that are followed; several words may begin with the same."""
    return tuple(dict.fromkeys(a.first_id for a in encoded.answers if a.first_id is not None))


def _read_out(
    plan: LookPlan,
    residuals: Float[Tensor, "layer row d_model"],
    questions: Sequence[Question],
    sweep_bytes: int,
    progress: Callable[[int, int], None],
) -> Readout:
    """Every lens at every layer, groups ordered by lens."""
    norm, head = plan.model.final_norm, plan.model.unembedding
    final_rows = residuals[-1] if norm is None else norm(residuals[-1])
    groups = [(lens, layer) for lens in plan.lenses for layer in plan.layers]
    most = max(1, sweep_bytes // max(1, 4 * residuals.shape[1] * residuals.shape[2]))
    readouts = []
    for start in range(0, len(groups), most):
        rows = torch.stack([lens(residuals[layer], layer) for lens, layer in groups[start : start + most]])
        readouts.append(decode(rows, final_rows, questions, head, top_k=plan.top, progress=progress))
    return concatenated(readouts)


def _look(
    plan: LookPlan,
    encoded: Encoded,
    ids: Sequence[int],
    readout: Readout,
    residuals: Float[Tensor, "layer position d_model"],
    identity: Identity,
    strings: Mapping[int, str],
) -> Look:
    """The numbers of one text, of whose positions the readout holds one copy for each token that is followed."""
    shape = (len(plan.lenses), len(plan.layers), len(encoded.positions))
    own = readout.part(slice(shape[-1]), slice(1))
    known = own.finite if identity.ok else np.zeros_like(own.finite)
    top_ids = np.where(own.finite[..., None], own.top_ids, -1)
    top_tokens = np.array([strings.get(i, "") for i in top_ids.ravel().tolist()], dtype=object)
    return Look(
        model=plan.model,
        encoded=encoded,
        tokens=tuple(strings[i] for i in encoded.token_ids),
        lenses=tuple(plan.lenses),
        layers=plan.layers,
        positions=encoded.positions,
        residuals=residuals,
        top_ids=top_ids.reshape(*shape, -1),
        top_tokens=top_tokens.reshape(*shape, -1),
        top_probs=np.exp(np.where(known[..., None], own.top_log_probs, np.nan)).reshape(*shape, -1),
        entropy_bits=np.where(known, own.entropy_bits, np.nan).reshape(shape),
        kl_to_final_bits=np.where(known, own.kl_to_final_bits, np.nan).reshape(shape),
        tracked=tuple(_tracked_word(plan.model, a, ids, readout, known, shape) for a in encoded.answers),
        identity=identity,
    )


def _tracked_word(
    model: CausalLM,
    word: Alignment,
    ids: Sequence[int],
    readout: Readout,
    known: NDArray[np.bool_],
    shape: tuple[int, int, int],
) -> Tracked:
    """A word's ranks and probabilities, from the copy of the positions that judges its token.

    `known` says where probabilities mean something, `[group, position]`.
    """
    if word.first_id is None:
        return Tracked(word.string, word, None, np.zeros(shape, dtype=np.int64), np.full(shape, np.nan))
    i, n = ids.index(word.first_id), shape[-1]
    copy = readout.part(slice(i * n, (i + 1) * n), slice(i, i + 1))
    rank = np.where(copy.finite, copy.answer_rank, 0).reshape(shape)
    log_prob = np.where(known, copy.answer_log_prob, np.nan).reshape(shape)
    return Tracked(word.string, word, model.tokens.display([word.first_id])[word.first_id], rank, log_prob)
