"""Adapters as PEFT saves them: low-rank changes of a model's weights, applied to rows as they are read."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layerscope.errors import CheckpointError
from layerscope.model.adapter_config import CONFIG, MERGE, AdapterConfig, base_of, read_adapter_config
from layerscope.model.checkpoint import HUB_ID
from layerscope.model.stored_tensors import Stored
from layerscope.stored.low_rank import LowRankWeight
from layerscope.stored.weight import DenseWeight, StoredWeight

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?"
    r"(\.weight)?"
)


@dataclass(frozen=True)
class LowRankChange:
    """What an adapter does to one matrix `[d_out, d_in]`, or to a table of embeddings `[d_vocab, d_model]`."""

    up: Tensor
    """`[d_out, rank]`."""
    down: Tensor
    """`[rank, d_in]`."""
    scale: float
    lengths: Tensor | None
    """`[d_out]`, to which rows are brought; None but of DoRA."""
    embedding: bool
    """Whether it is saved as the change of a table of embeddings."""

    def of(self, weight: StoredWeight, transposed: bool) -> StoredWeight:
        """The changed matrix; `transposed` where it is kept as `[d_in, d_out]`."""
        if transposed:
            return LowRankWeight(weight, self.down.T.contiguous(), self.up.T.contiguous(), self.scale)
        return LowRankWeight(weight, self.up, self.down, self.scale, self.lengths)


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, read."""

    name: str
    """The folder's."""
    folder: Path
    sha256: str
    """Of its weights."""
    config: AdapterConfig
    changes: Mapping[str, LowRankChange]
    """By the module whose matrix is changed."""
    whole: Mapping[str, Tensor]
    """Tensors that take the place of the model's, by name; what is changed besides is changed on top of them."""

    @property
    def fingerprint(self) -> str:
        """sha256 of what it does: its weights, and what its config makes of them."""
        digest = hashlib.sha256(self.sha256.encode())
        for module, change in sorted(self.changes.items()):
            digest.update(f" {module} {change.scale!r} {change.lengths is not None}".encode())
        for name in sorted(self.whole):
            digest.update(f" {name} {self.config.keeps_whole(name)}".encode())
        return digest.hexdigest()

    @property
    def note(self) -> str:
        """For the record."""
        base = self.config.base_name
        of = "" if base is None else f", trained on {base},"
        return f"The adapter '{self.name}'{of} was applied (sha256 {self.sha256[:12]})."

    def apply(self, stored: Mapping[str, Stored], model: nn.Module) -> dict[str, Stored]:
        """The model's tensors, changed as PEFT changes them.

        Args:
            stored: for each parameter and buffer where it comes from.
            model: its modules, which say how their matrices are kept.

        Raises:
            CheckpointError: a change of something that the model does not have, or of another shape.
        """
        ties = _ties(stored)
        whole = self._whole(stored, model, ties)
        changed = dict(stored)
        for name, tensor in whole.items():
            changed[name] = replace(stored[name], convert=lambda tensor=tensor: tensor, order=None)  # type: ignore[misc]
        for module, change in self.changes.items():
            name = f"{module}.weight"
            transposed = self._fits(module, change, stored, model)
            if name in whole:
                made = change.of(DenseWeight(whole[name]), transposed)
                changed[name] = replace(stored[name], adapted=lambda _, made=made: made)  # type: ignore[misc]
            elif stored[name].convert is None:
                changed[name] = replace(
                    stored[name],
                    adapted=lambda weight, change=change, transposed=transposed: change.of(weight, transposed),  # type: ignore[misc]
                )
            else:
                raise self._put_together(name)
        if self.config.keeps_ties:
            self._refuse_halves({f"{module}.weight" for module in self.changes} | whole.keys(), ties)
        return changed

    def _whole(
        self, stored: Mapping[str, Stored], model: nn.Module, ties: Mapping[str, tuple[str, ...]]
    ) -> dict[str, Tensor]:
        """Tensors that take the place of the model's, also under the other names of what is tied.

        PEFT copies a module of `modules_to_save`, which unties it; any other tensor goes into the model's own, which
        tied modules share.
        """
        shapes, whole = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, {}
        for name, tensor in self.whole.items():
            if name not in stored:
                raise self._foreign(f"a tensor '{name}'")
            if tuple(tensor.shape) != shapes[name]:
                raise self._foreign(f"a tensor '{name}' {list(tensor.shape)} for one {list(shapes[name])}")
            for other in (name,) if self.config.keeps_whole(name) else ties[name]:
                if other == name or other not in self.whole:
                    whole[other] = tensor
        return whole

    def _fits(self, module: str, change: LowRankChange, stored: Mapping[str, Stored], model: nn.Module) -> bool:
        """Whether the matrix that a change is for is kept transposed.

        Raises:
            CheckpointError: there is no such matrix, it is no matrix that PEFT changes so, or one of another shape.
        """
        name = f"{module}.weight"
        if name not in stored:
            if any(name in source.names for source in stored.values() if source.convert is not None):
                raise self._put_together(name)
            raise self._foreign(f"a module '{module}'")
        kind = model.get_submodule(module)
        transposed = isinstance(kind, Conv1D)
        if not isinstance(kind, nn.Embedding if change.embedding else nn.Linear | Conv1D):
            what = "a table of embeddings" if change.embedding else "a linear layer"
            raise self._foreign(f"a change of {what} for '{module}', a {type(kind).__name__}")
        if transposed and change.lengths is not None:
            raise CheckpointError(
                f"The adapter '{self.name}' sets lengths (DoRA) in '{module}', whose matrix is kept transposed, which "
                f"is not read; {MERGE}"
            )
        shape = (change.up.shape[0], change.down.shape[1])
        due = tuple(kind.weight.shape)
        if (shape[::-1] if transposed else shape) != due:
            raise self._foreign(f"a change of shape {list(shape)} for a matrix {list(due)} ('{name}')")
        return transposed

    def _refuse_halves(self, names: set[str], ties: Mapping[str, tuple[str, ...]]) -> None:
        """Where an adapter keeps ties (`ensure_weight_tying`), refuse one that changes one of what is tied."""
        for name in sorted(names):
            others = [other for other in ties.get(name, ()) if other not in names]
            if others:
                raise CheckpointError(
                    f"The adapter '{self.name}' changes '{name}' and keeps it tied to '{others[0]}' "
                    f"(`ensure_weight_tying`), of which it holds no change; {MERGE}"
                )

    def _put_together(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"The adapter '{self.name}' changes '{name}', which is put together of several tensors here, or with "
            f"others; {MERGE}"
        )

    def _foreign(self, what: str) -> CheckpointError:
        base = self.config.base_name
        of = "" if base is None else f" It says that it was trained on {base}."
        return CheckpointError(
            f"The adapter '{self.name}' has {what}, which does not fit this model.{of} Give the model that it belongs "
            "to."
        )


def _ties(stored: Mapping[str, Stored]) -> dict[str, tuple[str, ...]]:
    """For each tensor the names under which the model has it, its own included."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, source in stored.items():
        names[id(source)].append(name)
    return {name: tuple(names[id(source)]) for name, source in stored.items()}


def adapter_notes(folder: Path, adapter: Adapter | None) -> tuple[str, ...]:
    """What a record says of the adapter that was applied, and of one beside the weights that was not."""
    beside = (folder / CONFIG).is_file() and (adapter is None or adapter.folder != folder.resolve())
    left = "An adapter lies beside the weights and was not applied; --adapter FOLDER applies it."
    return (*(() if adapter is None else (adapter.note,)), *((left,) if beside else ()))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def with_base(model: str | Path, adapter: str | Path | None) -> tuple[str | Path, Adapter | None]:
    """A model, and the adapter to apply; of an adapter's folder given as the model the one it was trained on.

    Raises:
        CheckpointError: no adapter there, a broken one, one that does not say what it was trained on, or two.
    """
    folder = Path(model).expanduser()
    given = None if adapter is None else Path(adapter).expanduser()
    if not (folder.is_dir() and is_adapter(folder)):
        return model, None if given is None else read_adapter(given)
    if given is not None and given.resolve() != folder.resolve():
        raise CheckpointError(
            f"'{model}' is an adapter and no model, and '{given.name}' is given as the adapter: one can be applied; "
            "give the model, and one adapter with --adapter."
        )
    return _base_model(folder), read_adapter(folder)


def _base_model(folder: Path) -> str | Path:
    """The model that an adapter given in place of one names: a path, seen from its folder too, or a Hub id.

    Raises:
        CheckpointError: it names none, or one that is not there.
    """
    base = base_of(folder)
    give = f"give the model, and the adapter with --adapter {folder}."
    if base is None:
        raise CheckpointError(
            f"'{folder}' is an adapter and no model, and does not say which model it was trained on; {give}"
        )
    beside = folder / base
    found = beside if beside.is_dir() else Path(base).expanduser()
    if found.is_dir() and is_adapter(found):
        raise CheckpointError(
            f"'{folder}' is an adapter and no model, and names as its model '{base}', an adapter too; {give}"
        )
    if found.exists():
        return found
    if not HUB_ID.fullmatch(base) and not base.startswith("hf:"):
        raise CheckpointError(
            f"'{folder}' is an adapter and no model, and names as its model '{base}', which is not there; {give}"
        )
    return base


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's folder: LoRA, rsLoRA or DoRA, changed embeddings, and modules saved whole beside them.

    Raises:
        CheckpointError: no adapter there, a broken one, or of a kind that is not read.
    """
    config = read_adapter_config(folder)
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter in '{folder.name}' should hold {WEIGHTS}, but it could not be read ({error}); fetch it again."
        ) from error
    if not tensors:
        raise CheckpointError(f"{WEIGHTS} of '{folder.name}' holds no tensor, so nothing is changed; fetch it again.")
    parts, whole = _sorted_out(tensors, config.folder)
    changes = {module: _change(module, found, config) for module, found in parts.items()}
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Adapter(folder.resolve().name, folder.resolve(), sha256, config, changes, whole)


def _sorted_out(tensors: Mapping[str, Tensor], folder: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Parts of low-rank changes by module and part, and what takes a tensor's place by its name."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(_PREFIX).replace(".base_layer", "")
        match = _PART.fullmatch(plain)
        if match is None and ".lora_" in plain:
            raise CheckpointError(f"The adapter in '{folder}' holds '{name}', a part of LoRA that is not known here.")
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"The adapter in '{folder}' should hold floats, but '{name}' is "
                f"{str(tensor.dtype).removeprefix('torch.')}; fetch it again."
            )
        into = whole if match is None else parts[match["module"]]
        key = match["part"] if match is not None else re.sub(r"\.modules_to_save(\.default)?\b", "", plain)
        if key in into:
            raise CheckpointError(
                f"The adapter in '{folder}' holds '{key}' of '{plain}' twice, so it is not known which counts; save it "
                "anew from PEFT."
            )
        into[key] = tensor.float() if tensor.element_size() == 1 else tensor
    return dict(parts), whole


def _change(module: str, parts: Mapping[str, Tensor], config: AdapterConfig) -> LowRankChange:
    """One matrix's change.

    Raises:
        CheckpointError: tensors that are missing, are no matrices, or have another rank than the config says.
    """
    embedding = "lora_embedding_A" in parts
    first, second = (f"lora_{'embedding_' if embedding else ''}{part}" for part in "AB")
    if first not in parts or second not in parts:
        raise CheckpointError(
            f"The adapter in '{config.folder}' should hold A and B of '{module}', but holds {', '.join(parts)}; fetch "
            "it again."
        )
    down, up, lengths = parts[first], parts[second], parts.get("lora_magnitude_vector")
    rank = config.rank_of(module)
    is_change = down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] == rank
    if not is_change:
        raise CheckpointError(
            f"The adapter in '{config.folder}' should change '{module}' by {first} [{rank}, inputs] and {second} "
            f"[outputs, {rank}], {rank} being the rank that {CONFIG} says, but holds {list(down.shape)} and "
            f"{list(up.shape)}; fetch it again."
        )
    if embedding:  # A is [rank, d_vocab], B [d_model, rank], and the table [d_vocab, d_model]
        down, up = up.T, down.T
    _check_lengths(module, lengths, len(up), embedding, config)
    return LowRankChange(up, down, config.scale_of(module), lengths, embedding)


def _check_lengths(module: str, lengths: Tensor | None, n_rows: int, embedding: bool, config: AdapterConfig) -> None:
    """See that there are lengths where the config says so, one for each row.

    Raises:
        CheckpointError: there are not.
    """
    of = f"The adapter in '{config.folder}'"
    if config.sets_lengths != (lengths is not None):
        says, holds = ("sets", "holds none") if lengths is None else ("does not set", "holds some")
        raise CheckpointError(
            f"{of} {says} lengths (DoRA) by `use_dora` of {CONFIG}, but {holds} for '{module}'; fetch it again."
        )
    if lengths is None:
        return
    if embedding:
        raise CheckpointError(f"{of} sets lengths (DoRA) in '{module}', an embedding, which is not read; {MERGE}")
    if tuple(lengths.shape) != (n_rows,):
        raise CheckpointError(
            f"{of} should set a length (DoRA) for each of the {n_rows} rows of '{module}', but holds a tensor "
            f"{list(lengths.shape)}; fetch it again."
        )
