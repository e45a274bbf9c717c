"""The models that are served: opened once and kept open, as many of them as there is room for."""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from layerscope.bundled import BUNDLED, BUNDLED_ID
from layerscope.errors import ModelError
from layerscope.lenses.lens import LENS_NAMES
from layerscope.model.adapter import with_base
from layerscope.model.causal_lm import CausalLM
from layerscope.model.checkpoint import locate
from layerscope.model.model_files import bytes_of_weights
from layerscope.model.placement import free_memory
from layerscope.probing.lens_selection import choose_lenses
from layerscope.probing.opening import opened
from layerscope.serving.errors import RequestError
from layerscope.serving.options import ServeOptions


@dataclass(frozen=True)
class ServedModel:
    """What is known of a model whether it is open or not."""

    name: str
    """What requests call it."""
    source: str | Path | CausalLM
    """What it is opened from; a model that came open stays open."""
    n_layers: int
    d_vocab: int
    lenses: tuple[str, ...]
    """Through which it can be looked at."""
    has_chat_template: bool
    """Whether a text can be put to it as a user's message."""
    weight_bytes: int

    @property
    def as_written(self) -> str:
        """What it is called in code and in a shell."""
        if isinstance(self.source, CausalLM):
            source = self.source.source
            return str(source.folder) if source.commit is None else source.id
        return str(self.source)


class OpenModels:
    """Models by name. Only the thread that computes may ask for one, for an open model runs one text at a time."""

    def __init__(
        self, given: Sequence[str | Path | CausalLM], options: ServeOptions, *, room_bytes: int | None = None
    ) -> None:
        """Open every model once, so that one which cannot be opened is told of before anything is served.

        Args:
            given: folders, Hub ids or open models; the bundled one where there are none.
            options: how they are opened.
            room_bytes: what the weights of all open models may take together; half of the machine's free memory on a
                CPU, where they lie in the page cache, and half of the budget on an accelerator, where not given.

        Raises:
            LayerscopeError: one cannot be opened.
        """
        for what, belongs in (("A revision", options.revision), ("An adapter", options.adapter)):
            if belongs is not None and len(given) > 1:
                raise ModelError(f"{what} belongs to one model, but several were given; serve that one alone.")
        self._options, self._room = options, room_bytes
        self._open: OrderedDict[str, CausalLM] = OrderedDict()
        self._lock = threading.Lock()
        self._closed: Callable[[CausalLM], None] = lambda model: None
        self.served: dict[str, ServedModel] = {}
        for source in given or [BUNDLED]:
            self._first_opening(source)

    def when_closed(self, tell: Callable[[CausalLM], None]) -> None:
        """Call `tell` with every model that is closed from now on; it has to let go of it."""
        self._closed = tell

    def named(self, name: str) -> ServedModel:
        """A model that is served.

        Raises:
            RequestError: there is none of that name.
        """
        if name not in self.served:
            raise RequestError(f"There is no such model here; choose from {', '.join(self.served)}.")
        return self.served[name]

    def is_open(self, name: str) -> bool:
        """Whether a look at it begins at once."""
        with self._lock:
            return name in self._open

    def of(self, name: str, opening: Callable[[], None] = lambda: None) -> CausalLM:
        """The model, opened again where it had to be closed.

        Args:
            opening: called before that.

        Raises:
            LayerscopeError: it can no longer be opened.
        """
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        opening()
        served = self.served[name]
        self._make_room(served.weight_bytes)
        return self._keep(name, opened(served.source, self._options))

    def _first_opening(self, source: str | Path | CausalLM) -> None:
        if not isinstance(source, CausalLM):
            model_itself, _ = with_base(source, self._options.adapter)
            found = locate(model_itself, revision=self._options.revision, with_code=self._options.trust_remote_code)
            self._make_room(bytes_of_weights(found))
        model = source if isinstance(source, CausalLM) else opened(source, self._options)
        name = self._free_name(BUNDLED_ID if model.source.folder == BUNDLED else model.id)
        self._keep(name, model)
        if self._room is None:
            place = model.placement
            budget = free_memory(place.device) if place.device.type == "cpu" else place.memory
            self._room = budget // 2
        self.served[name] = ServedModel(
            name=name,
            source=source,
            n_layers=model.n_layers,
            d_vocab=model.d_vocab,
            lenses=choose_lenses(model, None, LENS_NAMES, self._options.lens_dir).names,
            has_chat_template=model.tokens.has_chat_template,
            weight_bytes=model.checkpoint.bytes_on_disk,
        )

    def _free_name(self, name: str) -> str:
        """The model's own, with a number behind it where another model has it."""
        number, free = 2, name
        while free in self.served:
            free, number = f"{name}-{number}", number + 1
        return free

    def _keep(self, name: str, model: CausalLM) -> CausalLM:
        with self._lock:
            self._open[name] = model
        return model

    def _make_room(self, weight_bytes: int) -> None:
        """Close models that were not asked for the longest, until weights of that size fit beside the others."""
        if self._room is None:
            return
        with self._lock:
            closable = [name for name in self._open if not isinstance(self.served[name].source, CausalLM)]
            taken = weight_bytes + sum(self.served[name].weight_bytes for name in self._open)
            closing = []
            for name in closable:
                if taken <= self._room:
                    break
                taken -= self.served[name].weight_bytes
                closing.append(self._open.pop(name))
        for model in closing:
            self._closed(model)
        if closing:
            del model  # the last name for the last of them
            closing.clear()
            gc.collect()  # a module and its hooks hold one another
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
