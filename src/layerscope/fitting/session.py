"""What every fit shares: what its result depends on, the room it has, and the model's own output at some positions."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.fitting.corpus import Corpus
from layerscope.fitting.divergence import DECODED_TOGETHER, Head, Targets
from layerscope.fitting.options import JacobianSettings, PrismSettings, RidgeSettings, TunedSettings
from layerscope.fitting.stream import BATCH_TOKENS
from layerscope.fitting.workspace import Workspace
from layerscope.lens_record import JacobianFit, Kind, LensRecord, PrismFit, RidgeFit, Settings, TunedFit
from layerscope.lenses.lens_folder import FittedLens, write_fitted_lens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import free_memory, shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.model.signature import model_signature
from layerscope.progress import FitObserver

S = TypeVar("S", bound=TunedSettings | RidgeSettings | PrismSettings | JacobianSettings)


class Session(Generic[S]):
    """What is fitted with, the room it may take, and the folder that it works in."""

    kind: ClassVar[str]
    differentiates: ClassVar[bool] = False
    """Whether it asks for gradients, which nothing that was made in inference mode has."""
    settings: S

    def __init__(self, model: CausalLM, corpus: Corpus, out: Path, settings: S, observer: FitObserver) -> None:
        self.model, self.corpus, self.out, self.settings, self.observer = model, corpus, out, settings, observer
        self.device = model.placement.device
        self.machine = Settings(
            seed=settings.seed,
            device=self.device.type,
            dtype=model.placement.dtype_name,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            layerscope=version("layerscope"),
        )
        """Whatever else than text and settings decides the weights."""
        self.workspace = Workspace(out, self.key())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Fit with the seed set, without gradients of one's own; memory that runs out is said in a sentence."""
        shortage = (
            f"The memory of {self.device} or of the machine ran out during the fit; give fewer --tokens, a smaller "
            "--batch, or a smaller --memory, so that the text goes to the disk."
        )
        with shortage_explained(shortage), reproducible(self.settings.seed, self.device), self._no_gradients():
            yield

    def _no_gradients(self) -> AbstractContextManager[object]:
        return torch.no_grad() if self.differentiates else torch.inference_mode()

    def host_memory(self) -> int:
        """Bytes that text may take beside the model."""
        return text_memory(self.model)

    def device_memory(self) -> int:
        """Bytes of the budget that weights kept on an accelerator leave."""
        return self.model.placement.memory - self.model.resident_bytes

    def block_bytes(self) -> int:
        """What one block holds while a batch passes it: its own parameters, activations, attention scores."""
        model, seq_len = self.model, self.corpus.fit.shape[1]
        per_token = model.widest_activation + (model.n_heads or 0) * seq_len
        own = model.largest_differentiated_bytes if self.differentiates else model.largest_block_bytes
        return own + 4 * max(BATCH_TOKENS, seq_len) * per_token

    def leftovers(self) -> str:
        """Lines that end a plan where folders of other fits of the same lens lie about."""
        paths = self.workspace.leftovers
        return "".join(f"\nan unfinished fit with other settings lies in {path}" for path in paths)

    def key(self) -> dict[str, object]:
        """Whatever decides the weights of a lens, by name: one and the same for a fit that goes on."""
        model = self.model
        described = model.checkpoint.description.encode() or (model.source.folder / "config.json").read_bytes()
        return {
            "kind": self.kind,
            "model": model.fingerprint,
            "blocks": model.blocks_fingerprint,
            "commit": model.source.commit,
            "config": hashlib.sha256(described).hexdigest(),
            "transformers": version("transformers"),
            "n_parameters": model.architecture.n_parameters,
            "corpus": self.corpus.record.sha256,
            **asdict(self.settings),
            **self.machine.model_dump(),
        }


class Fit(Session[S], ABC):
    """One fit of a lens, with what is written at its end."""

    kind: ClassVar[Kind]

    def run(self) -> FittedLens:
        """Fit, then write the lens folder."""
        with self.workspace.held():
            with self.at_work():
                fit, notes, tensors = self.fitted()
            parts = {self.kind: fit, "settings": self.machine, "corpus": self.corpus.record, "notes": notes}
            record = LensRecord.new(self.kind, model_signature(self.model), **parts)
            lens = write_fitted_lens(self.out, record, tensors)
            self.workspace.discard()
        return lens

    @abstractmethod
    def fitted(self) -> tuple[TunedFit | RidgeFit | PrismFit | JacobianFit, tuple[str, ...], dict[str, Tensor]]:
        """What the lens' record says of the fit, what its reader has to know, and the lens' tensors."""


def text_memory(model: CausalLM) -> int:
    """Bytes that text may take beside a model: its budget on a CPU, else half of what the machine has free."""
    cpu = model.placement.device.type == "cpu"
    return model.placement.memory if cpu else free_memory(torch.device("cpu")) // 2


def final_rows(model: CausalLM, finals: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """What the model's own head multiplies, from residuals after the last block."""
    on_device = finals.to(model.placement.device)
    return on_device if model.final_norm is None else model.final_norm(on_device)


def targets_at(model: CausalLM, head: Head, finals: Float[Tensor, "all d_model"], index: Int[Tensor, " n"]) -> Targets:
    """What the model says at some positions."""
    return Targets.joined([head.targets(final_rows(model, finals[i])) for i in torch.split(index, DECODED_TOGETHER)])


def drawn(index: Int[Tensor, " all"], most: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """So many of some positions, in their order; all of them where there are no more."""
    if len(index) <= most:
        return index
    return index[torch.randperm(len(index), generator=generator)[:most]].sort().values
