"""Text to ids and back, the BOS rule, and where an answer's first token is."""

import hashlib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from layerscope.errors import TokenizerError
from layerscope.model.families import Bos

_BOUNDARY_GLYPHS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": " "})
_PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True)
class Alignment:
    """Where an answer begins: its ids after a prompt, or why they could not be found."""

    string: str
    status: Literal["ok", "unresolved"]
    variant: Literal["with_space", "no_space", "unknown"]
    answer_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """Token strings of at most the first four ids."""
    reason: str | None = None
    """Where unresolved: `no_variant_extended_context`, `context_retokenised`, or `no_logit_for_first_id`."""

    @property
    def first_id(self) -> int | None:
        """The id that stands for the answer; None where it could not be aligned."""
        return self.answer_ids[0] if self.answer_ids else None

    @property
    def several_pieces(self) -> bool:
        """Whether only the first piece of a longer answer is judged, which other words may share."""
        return len(self.answer_ids) > 1


class Tokens:
    """A model's tokenizer with its BOS rule."""

    def __init__(self, folder: Path, bos: Bos, *, trust_remote_code: bool = False) -> None:
        """Load the tokenizer of a folder.

        Raises:
            TokenizerError: none there, or one that cannot be read.
        """
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Transformers says "no tokenizer here" in every one of these ways.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TokenizerError(
                f"No tokenizer could be read from the model's folder ({reason}); put tokenizer.json and "
                "tokenizer_config.json beside config.json."
            ) from error
        if not self._tokenizer("The capital", add_special_tokens=False)["input_ids"]:
            raise TokenizerError(
                "The tokenizer in the model's folder knows no token, so its files are missing; put tokenizer.json and "
                "tokenizer_config.json beside config.json."
            )
        self._folder = folder
        self.bos_rule: Bos = bos
        self.bos_id, self.bos_note = self._find_bos(bos)
        self._display: dict[int, str] = {}

    def _find_bos(self, rule: Bos) -> tuple[int | None, str]:
        bos_id: int | None = self._tokenizer.bos_token_id
        if rule == "never":
            return None, "the family uses no BOS"
        if rule == "always":
            return (
                bos_id,
                "the family uses BOS" if bos_id is not None else "the family uses BOS, the tokenizer defines none",
            )
        with_special = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        added = bos_id is not None and with_special[:1] == [bos_id]
        return (bos_id if added else None), f"the tokenizer {'adds' if added else 'does not add'} BOS by itself"

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
        """What the model reads: the context, after BOS where the family has one."""
        ids = self.context_ids(text)
        return ids if self.bos_id is None else (self.bos_id, *ids)

    def align(self, prompt: str, answer: str) -> Alignment:
        """Find the ids with which `answer` continues `prompt`: after a space if that works, else without one."""
        context = self.context_ids(prompt)
        retokenised = False
        variants: tuple[tuple[Literal["with_space", "no_space"], str], ...] = (
            ("with_space", f"{prompt} {answer}"),
            ("no_space", prompt + answer),
        )
        for variant, text in variants:
            ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(ids) > len(context) and ids[: len(context)] == context:
                rest = ids[len(context) :]
                return Alignment(answer, "ok", variant, rest, tuple(self._pieces(rest[:4])))
            retokenised = retokenised or len(ids) > len(context)
        reason = "context_retokenised" if retokenised else "no_variant_extended_context"
        return Alignment(answer, "unresolved", "unknown", (), (), reason)

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def display(self, ids: Iterable[int]) -> dict[int, str]:
        """The decoded string of each single id; for people, since several ids may share one string."""
        wanted = set(ids)
        new = sorted(wanted - self._display.keys())
        if new:  # of nothing, Transformers decodes one empty string
            texts = self._tokenizer.batch_decode([[i] for i in new], clean_up_tokenization_spaces=False)
            self._display.update(zip(new, texts, strict=True))
        return {i: self._display[i] for i in wanted}

    def trivial(self, ids: Iterable[int]) -> set[int]:
        """Those ids whose string is empty, blank or ASCII punctuation, and so never count as an echo of the prompt."""
        texts = {i: text.translate(_BOUNDARY_GLYPHS) for i, text in self.display(ids).items()}
        return {i for i, text in texts.items() if all(c.isspace() or c in _PUNCTUATION for c in text)}

    @cached_property
    def sha256(self) -> str:
        """Hash of tokenizer.json, or of the vocabulary where there is no such file."""
        file = self._folder / "tokenizer.json"
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
        vocabulary = sorted((i, token) for token, i in self._tokenizer.get_vocab().items())
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()
