"""Text to ids and back: what begins a prompt, chats, the forms of an answer, which ids are content."""

import hashlib
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from layerscope.errors import TokenizerError
from layerscope.model.answer_forms import NOTHING_ADDED, RETOKENISED, WHITE_SPACE, Form, FormName
from layerscope.model.families import Bos, BosRule, BosSource

_BOUNDARY_GLYPHS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": " "})
_TRIVIAL = re.compile(rf"[\s▁ĠĊ{re.escape(string.punctuation)}]*")
"""White space, the glyphs that some tokenizers write for it, and ASCII punctuation."""
_SAMPLE = "The capital"
"""A text that every tokenizer knows something of."""
_DECODING = ("_decode", "decode", "batch_decode")
"""What Transformers decodes by, and a tokenizer's own class may put its own in place of."""


@dataclass(frozen=True)
class Beginning:
    """What is put in front of every prompt, and whose rule that is."""

    rule: Bos
    source: BosSource
    family_rule: Bos | None
    """What the table of families says of the model; None where it does not know it."""
    ids: tuple[int, ...]
    """As a rule the BOS alone, or nothing; some tokenizers put several ids there."""
    note: str
    """The rule and its outcome in words."""

    @property
    def against_family(self) -> bool:
        """Whether the tokenizer was followed, and the table of families has it otherwise."""
        if self.source != "tokenizer" or self.family_rule in (None, "tokenizer"):
            return False
        return bool(self.ids) != (self.family_rule == "always")


def _wants_sentencepiece(folder: Path) -> bool:
    """Whether a folder's only tokenizer is a SentencePiece file, and nothing is installed that reads one."""
    file = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not file.is_file() or find_spec("sentencepiece") is not None:
        return False
    with file.open("rb") as handle:
        return handle.read(1) == b"\n"  # the tag of the first piece; a tiktoken file, also called so, is text


class Tokens:
    """A model's tokenizer with its rule of what begins a prompt."""

    def __init__(
        self,
        folder: Path,
        bos: BosRule | Bos,
        *,
        trust_remote_code: bool = False,
        made: Callable[[], Any] | None = None,
    ) -> None:
        """Load the tokenizer of a folder.

        Args:
            made: makes the tokenizer, where it does not lie in files of its own.
            bos: what begins a prompt, and whose rule that is; a bare word is taken as a user's.

        Raises:
            TokenizerError: none there, or one that cannot be read.
        """
        remedy = (
            "put tokenizer.json and tokenizer_config.json beside config.json"
            if made is None
            else "convert the model anew, or use the model's safetensors"
        )
        where = "the model's folder" if made is None else "the file's header"
        try:
            self._tokenizer: Any = (
                AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
                if made is None
                else made()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if made is None and _wants_sentencepiece(folder):
                raise TokenizerError(
                    "The model's folder has its tokenizer in tokenizer.model, a SentencePiece file, which is read "
                    "with the packages sentencepiece and protobuf: pip install them, or put tokenizer.json beside "
                    "config.json."
                ) from error
            # Transformers says "no tokenizer here" in every one of these ways.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TokenizerError(f"No tokenizer could be read from {where} ({reason}); {remedy}.") from error
        if not self._tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]:
            raise TokenizerError(
                "The tokenizer in the model's folder knows no token, so its files are missing; " + remedy + "."
                if made is None
                else f"The tokenizer in the file's header knows no token; {remedy}."
            )
        self._folder = None if made is not None else folder
        self._display: dict[int, str] = {}
        self.bos = bos if isinstance(bos, BosRule) else BosRule(bos, "option", None)
        self.begins = self._beginning(self.bos)

    def under(self, bos: BosRule) -> "Tokens":
        """The same tokenizer under another rule of what begins a prompt."""
        other = copy(self)
        other.bos, other.begins = bos, other._beginning(bos)
        return other

    def _beginning(self, bos: BosRule) -> Beginning:
        own, bos_id = self._own_prefix, self._tokenizer.bos_token_id
        if bos.source == "tokenizer" and own is None:  # what it adds cannot be told from the text's own ids
            bos = BosRule(bos.family_rule or "never", "family", bos.family_rule)
        family = bos.source == "family"
        if bos.rule == "never":
            note = "the family uses no BOS" if family else "no BOS, as was asked for"
            return Beginning("never", bos.source, bos.family_rule, (), note)
        if bos.rule == "always":
            note = "the family uses BOS" if family else "BOS, as was asked for"
            if bos_id is None:
                note += ", the tokenizer defines none"
            ids: tuple[int, ...] = () if bos_id is None else (bos_id,)
            if own is not None and bos_id in own and not family:
                ids = own  # the BOS among other ids that belong in front
            return Beginning("always", bos.source, bos.family_rule, ids, note)
        ids = own or ()
        if family:  # such a row of the table asks whether BOS comes first, and for nothing else
            ids = ids[:1] if ids[:1] == (bos_id,) else ()
        what = "BOS" if ids in ((), (bos_id,)) else repr(self._tokenizer.decode(list(ids)))
        note = f"the tokenizer {'adds' if ids else 'does not add'} {what} by itself"
        return Beginning("tokenizer", bos.source, bos.family_rule, ids, note)

    @cached_property
    def _own_prefix(self) -> tuple[int, ...] | None:
        """What the tokenizer puts in front of a text by itself; None where that cannot be told."""
        plain = self._tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
        special = self._tokenizer(_SAMPLE)["input_ids"]
        places = range(len(special) - len(plain) + 1)
        at = next((i for i in places if special[i : i + len(plain)] == plain), None)
        return None if at is None else tuple(special[:at])

    @property
    def bos_id(self) -> int | None:
        """The id that begins every prompt; of several the BOS itself. None where nothing is put there."""
        ids = self.begins.ids
        bos_id: int | None = self._tokenizer.bos_token_id
        return bos_id if bos_id in ids else next(iter(ids), None)

    @property
    def n_ids(self) -> int:
        """How many ids the tokenizer knows; a head may have more."""
        return len(self._tokenizer)

    @property
    def eos_id(self) -> int | None:
        """The id by which the tokenizer ends a text; None where it has none. A model may embed fewer ids."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    def context_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a prompt or a document without special tokens.

        Raises:
            TokenizerError: the text gives no token at all.
        """
        # Not verbose: a document may be longer than what the model reads at once.
        ids = tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise TokenizerError(f"The prompt {text!r} gives no token; a prompt needs at least one.")
        return ids

    def input_ids(self, text: str) -> tuple[int, ...]:
        """What the model reads: the context, after what begins every prompt; never twice."""
        ids = self.context_ids(text)
        return ids if self.n_special(ids) else (*self.begins.ids, *ids)

    def n_special(self, ids: Sequence[int]) -> int:
        """How many ids at the beginning are no content: those that begin every prompt, or a BOS as written."""
        first = self.begins.ids
        if first and tuple(ids[: len(first)]) == first:
            return len(first)
        return int(self._tokenizer.bos_token_id is not None and ids[0] == self._tokenizer.bos_token_id)

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be written."""
        return bool(self._tokenizer.chat_template)

    def render(self, messages: Sequence[Mapping[str, str]], *, continued: bool, options: Mapping[str, object]) -> str:
        """A chat as the tokenizer's own template writes it.

        Args:
            messages: with `role` and `content`.
            continued: whether the model continues the last message, rather than answering it.
            options: further arguments of the template.

        Raises:
            TokenizerError: there is no template, or it refuses the messages.
        """
        if not self._tokenizer.chat_template:
            raise TokenizerError(
                "The prompt is a chat, but the model's tokenizer has no chat template; probe a model that was made for "
                "chats, put its chat_template.jinja beside tokenizer.json, or write the prompt out as plain text."
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                **options,
            )
        except (TemplateError, ValueError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise TokenizerError(
                f"The model's chat template does not take these messages ({reason}); change their roles or order, or "
                "its options."
            ) from error
        return text

    def forms(self, prompt: str, answer: str) -> tuple[Form, ...]:
        """How `answer` may follow `prompt`: after a space and without one, or as it is written if with white space."""
        context = self.context_ids(prompt)
        if answer[:1].isspace():
            return (self._form("as_written", prompt, context, answer),)
        return (
            self._form("with_space", prompt, context, f" {answer}"),
            self._form("no_space", prompt, context, answer),
        )

    def forms_by_rule(self, prompt: str, answer: str) -> tuple[Form, ...]:
        """The two forms of protocol `published`, for which any ids that extend the prompt's will do."""
        context = self.context_ids(prompt)
        return (
            self._joined("with_space", prompt, context, f" {answer}"),
            self._joined("no_space", prompt, context, answer),
        )

    def _form(self, variant: FormName, prompt: str, context: tuple[int, ...], answer: str) -> Form:
        form = self._joined(variant, prompt, context, answer)
        if not form.answer_ids and variant != "with_space" and prompt[-1:].isspace():
            form = self._apart(form, context, answer) or form
        if form.answer_ids and answer.strip() and self._is_white_space(form.answer_ids[0]):
            return replace(form, white_space_skipped=True, reason=WHITE_SPACE)
        return form

    def _joined(self, variant: FormName, prompt: str, context: tuple[int, ...], answer: str) -> Form:
        """The ids behind the prompt's where prompt and answer are tokenised as one text."""
        ids = tuple(self._tokenizer(prompt + answer, add_special_tokens=False)["input_ids"])
        if len(ids) > len(context) and ids[: len(context)] == context:
            rest = ids[len(context) :]
            return Form(variant, rest, self._pieces(rest[:4]))
        return Form(variant, (), (), reason=RETOKENISED if len(ids) > len(context) else NOTHING_ADDED)

    def _apart(self, form: Form, context: tuple[int, ...], answer: str) -> Form | None:
        """The answer's own ids, where they continue the prompt to the letter.

        White space at the end of a text is a token that would have merged with a word behind it. The model is given
        that token, though, so what it says next begins with the bare word. None where the answer tokenised alone
        reads otherwise, as where a tokenizer puts a space before any text.
        """
        rest = tuple(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        if not rest or self._text([*context, *rest]) != self._text(context) + answer:
            return None
        return replace(form, answer_ids=rest, pieces=self._pieces(rest[:4]), apart=True, reason=None)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _is_white_space(self, token_id: int) -> bool:
        return not self.display([token_id])[token_id].translate(_BOUNDARY_GLYPHS).strip()

    def last_position_of(self, part: str, text: str) -> int | None:
        """Index, without what begins every prompt, of the last token of the last occurrence of `part` in a text.

        None where it does not occur, or the tokenizer does not say where in the text its tokens stand.
        """
        start = text.rfind(part)
        if start < 0 or not part or not self._tokenizer.is_fast:
            return None
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = enumerate(encoding["offset_mapping"])
        return max((i for i, (begin, end) in spans if begin < start + len(part) and end > start), default=None)

    def token_at(self, text: str, character: int) -> int:
        """Index, without what begins every prompt, of the token that holds a character of a text.

        Raises:
            TokenizerError: the tokenizer does not say where in the text its tokens stand.
        """
        if not self._tokenizer.is_fast:
            raise TokenizerError(
                "This tokenizer does not say where in a text its tokens stand; take the model with a tokenizer.json."
            )
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = (i for i, (_, end) in enumerate(encoding["offset_mapping"]) if end > character)
        return next(ends, len(encoding["input_ids"]) - 1)

    def _pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids)))

    def display(self, ids: Iterable[int]) -> dict[int, str]:
        """The decoded string of each single id; for people, since several ids may share one string."""
        wanted = set(ids)
        new = sorted(wanted - self._display.keys())
        if new:  # of nothing, Transformers decodes one empty string
            self._display.update(zip(new, self._decoded_alone(new), strict=True))
        return {i: self._display[i] for i in wanted}

    def _decoded_alone(self, ids: Sequence[int]) -> list[str]:
        """Each id decoded by itself; a whole vocabulary at once where the tokenizer adds nothing to its backend."""
        alone = [[i] for i in ids]
        kind = type(self._tokenizer)
        plain = (getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name) for name in _DECODING)
        if all(plain):
            texts: list[str] = self._tokenizer.backend_tokenizer.decode_batch(alone, skip_special_tokens=False)
        else:
            texts = self._tokenizer.batch_decode(alone, clean_up_tokenization_spaces=False)
        return texts

    def trivial(self, ids: Iterable[int]) -> set[int]:
        """Those ids whose string is empty, blank or ASCII punctuation, and so never count as an echo of the prompt."""
        return {i for i, text in self.display(ids).items() if _TRIVIAL.fullmatch(text)}

    def trivial_or_special(self, ids: Iterable[int]) -> set[int]:
        """Those ids that are trivial, and those that mark the text rather than belong to it: BOS, a chat's turns."""
        wanted = set(ids)
        return self.trivial(wanted) | (wanted & self._special_ids)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        return frozenset(self._tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    @cached_property
    def sha256(self) -> str:
        """Hash of tokenizer.json, or of the vocabulary where there is no such file."""
        file = None if self._folder is None else self._folder / "tokenizer.json"
        if file is not None and file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
        vocabulary = sorted((i, token) for token, i in self._tokenizer.get_vocab().items())
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()
