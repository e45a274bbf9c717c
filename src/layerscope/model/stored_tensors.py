"""Which stored tensor, or which of them together, each parameter of a model is."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from layerscope.errors import CheckpointError
from layerscope.model.tensor_files import Place, TensorFiles
from layerscope.stored.weight import DenseWeight, ReorderedWeight, StoredWeight


@dataclass(frozen=True)
class Stored:
    """Where one of the model's tensors comes from: a stored tensor, or several and their conversion."""

    checkpoint: TensorFiles
    names: tuple[str, ...]
    convert: Callable[[], Tensor] | None = None
    """Makes the tensor from stored ones (fused experts, shuffled weights); None where the stored tensor is the
    tensor."""
    made: tuple[int, ...] | None = None
    """Shape of what `convert` makes, where that is known before it is called."""
    wanted: tuple[int, ...] | None = None
    """Shape that the model needs; what `convert` makes is held to it."""
    order: Int[Tensor, " row"] | None = None
    """For each row of the tensor its number as stored; None where rows are in order."""
    adapted: Callable[[StoredWeight], StoredWeight] | None = None
    """What an adapter makes of the matrix; None where there is none."""

    def tensor(self) -> Tensor:
        """The tensor in its stored dtype; memory-mapped where nothing has to be converted.

        Raises:
            CheckpointError: a conversion that makes a tensor of another shape than the model needs.
        """
        if self.convert is not None:
            return self._converted()
        if self.adapted is not None:
            return self.weight().whole(torch.float32, torch.device("cpu"))
        tensor = self.checkpoint.tensor(self.names[0])
        return tensor if self.order is None else tensor[self.order]

    def weight(self) -> StoredWeight:
        """A matrix that gives its rows; read when they are wanted where nothing has to be converted."""
        if self.convert is not None:
            return DenseWeight(self._converted())
        weight = self.checkpoint.weight(self.names[0])
        weight = weight if self.order is None else ReorderedWeight(weight, self.order)
        return weight if self.adapted is None else self.adapted(weight)

    def _converted(self) -> Tensor:
        assert self.convert is not None
        tensor = self.convert()
        if self.wanted is not None and tuple(tensor.shape) != self.wanted:
            raise _misshapen(self, tuple(tensor.shape), self.wanted)
        return tensor

    @property
    def place(self) -> Place | None:
        """Where it lies; None where it has to be made."""
        as_stored = self.convert is None and self.order is None and self.adapted is None
        return self.checkpoint.place(self.names[0]) if as_stored else None


def stored_by(mapping: Sequence[Any], model: Any, checkpoint: TensorFiles) -> dict[str, Stored]:
    """For every parameter and buffer of the model that the checkpoint holds, where it comes from.

    Follows a conversion mapping of Transformers, because the names in a checkpoint are not always those of the module
    and experts are fused on loading.

    Raises:
        CheckpointError: a part of what is fused is in a form that is not read.
    """
    wanted = model.state_dict()
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    stored: dict[str, Stored] = {}
    fused: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in sorted(checkpoint.names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        if target not in wanted:
            continue
        if pattern is None:
            stored[target] = Stored(checkpoint, (name,))
        else:
            checkpoint.shape(name)  # raises where it is in a form that is not read
            fused[target].append((pattern, name))
    for target, sources in fused.items():
        stored.update(_converted(model, checkpoint, converter_of[sources[0][0]], target, sources))
    return stored


def _converted(
    model: Any, checkpoint: TensorFiles, converter: Any, first: str, sources: list[tuple[str, str]]
) -> dict[str, Stored]:
    """The targets of one conversion. One set of sources may give several tensors (a fused qkv split in three)."""
    names = tuple(name for _, name in sources)

    def convert_all() -> dict[str, Tensor]:
        fresh = deepcopy(converter)
        for pattern, name in sources:
            # Transformers takes a callable as a tensor whose reading is put off.
            fresh.add_tensor(first, name, pattern, lambda name=name: checkpoint.tensor(name))
        made = fresh.convert(first, model=model, config=model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    targets = [first.replace(converter.target_patterns[0], other, 1) for other in converter.target_patterns]
    return {
        target: Stored(checkpoint, names, lambda target=target: convert_all()[target])  # type: ignore[misc]
        for target in targets
    }


def completed(model: Any, checkpoint: TensorFiles, stored: dict[str, Stored]) -> dict[str, Stored]:
    """What was found, and tied tensors under all their names.

    Raises:
        CheckpointError: a parameter that the checkpoint lacks, or one of another shape.
    """
    wanted = model.state_dict()
    tied = model.all_tied_weights_keys
    for name, source in tied.items():
        if name not in stored and source in stored:
            stored[name] = stored[source]
        elif source not in stored and name in stored:
            stored[source] = stored[name]
    missing = [name for name, tensor in wanted.items() if name not in stored and tensor.is_meta]
    if missing:
        raise checkpoint.refusal(missing[0]) or CheckpointError(
            f"The model needs {len(wanted)} tensors, but {len(missing)} of them are not in the checkpoint "
            f"(first: {missing[0]}); use the checkpoint that belongs to this {checkpoint.described_by}."
        )
    for name, source in stored.items():
        found = source.made if source.convert is not None else source.checkpoint.shape(source.names[0])
        if found is not None and found != (expected := tuple(wanted[name].shape)):
            raise _misshapen(source, found, expected)
    return _held({name: tuple(wanted[name].shape) for name in stored}, stored)


def _held(wanted: dict[str, tuple[int, ...]], stored: dict[str, Stored]) -> dict[str, Stored]:
    """The same, what has to be converted with the shape that it is held to. Tied tensors stay one."""
    held: dict[int, Stored] = {}
    for name, source in stored.items():
        if source.convert is not None and id(source) not in held:
            held[id(source)] = replace(source, wanted=wanted[name])
    return {name: held.get(id(source), source) for name, source in stored.items()}


def _misshapen(source: Stored, found: tuple[int, ...], expected: tuple[int, ...]) -> CheckpointError:
    names, described = ", ".join(f"'{name}'" for name in source.names), source.checkpoint.described_by
    by = f"the file's {described}" if source.checkpoint.format == "gguf" else described
    holds = "the checkpoint holds" if source.convert is None else "what the checkpoint holds comes to"
    return CheckpointError(
        f"Tensor{'s' * (len(source.names) > 1)} {names} should have shape {list(expected)} by {by}, but {holds} "
        f"{list(found)}; use the {described} that belongs to these weights."
    )
