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
class StackConversion:
    """Makes a stack of matrices, `[expert, row, column]`, or one of them alone."""

    whole: Callable[[], Tensor]
    one: Callable[[int], Tensor]
    names: Callable[[int], tuple[str, ...]] | None
    """What one is made of, where it has stored tensors of its own."""

    def __call__(self) -> Tensor:
        """The stack."""
        return self.whole()


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

    def buffer(self, dtype: torch.dtype) -> Tensor:
        """The tensor as a module keeps it that does not learn it: floats, or the numbers of something.

        Raises:
            CheckpointError: as `tensor`; or floats where numbers are kept.
        """
        if dtype.is_floating_point:
            return self.tensor().to(dtype)
        return self.checkpoint.integers(self.names[0]).to(dtype)

    def weight(self) -> StoredWeight:
        """A matrix that gives its rows; read when they are wanted where nothing has to be converted."""
        if self.convert is not None:
            return DenseWeight(self._converted())
        weight = self.checkpoint.weight(self.names[0])
        weight = weight if self.order is None else ReorderedWeight(weight, self.order)
        return weight if self.adapted is None else self.adapted(weight)

    @property
    def gives_matrices(self) -> bool:
        """Whether one matrix of a stack can be read without the others."""
        kept = self.convert is None or isinstance(self.convert, StackConversion)
        return kept and self.order is None and self.adapted is None

    def matrix(self, i: int) -> Tensor:
        """One matrix of a stack, in its stored dtype or decoded; see `gives_matrices`.

        Raises:
            CheckpointError: a conversion that makes a matrix of another shape than the model needs.
        """
        if not isinstance(self.convert, StackConversion):
            return self.checkpoint.matrix(self.names[0], i)
        matrix = self.convert.one(i)
        if self.wanted is not None and tuple(matrix.shape) != self.wanted[1:]:
            raise _misshapen(self, tuple(matrix.shape), self.wanted[1:])
        return matrix

    def names_of(self, i: int) -> tuple[str, ...] | None:
        """The stored tensors that one matrix of a stack is made of; None where it is a part of the stack's."""
        own = self.convert.names if isinstance(self.convert, StackConversion) else None
        return None if own is None else own(i)

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
    by_pattern: dict[str, list[str]] = defaultdict(list)
    for pattern, name in sources:
        by_pattern[pattern].append(name)

    def convert_all(chosen: Sequence[tuple[str, str]] = sources) -> dict[str, Tensor]:
        fresh = deepcopy(converter)
        for pattern, name in chosen:
            # Transformers takes a callable as a tensor whose reading is put off.
            fresh.add_tensor(first, name, pattern, lambda name=name: checkpoint.tensor(name))
        made = fresh.convert(first, model=model, config=model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    def names_of(i: int) -> tuple[str, ...]:
        return tuple(many[i] for many in by_pattern.values())

    def stored(target: str) -> Stored:
        def whole() -> Tensor:
            return convert_all()[target]

        def one(i: int) -> Tensor:
            return convert_all([(pattern, many[i]) for pattern, many in by_pattern.items()])[target][0]

        uneven = len({len(many) for many in by_pattern.values()}) > 1
        # Where experts are shared out among several stacks, none is made of those of its own number.
        if uneven or len(names) == len(by_pattern) or len(converter.target_patterns) > 1:
            return Stored(checkpoint, names, whole)
        return Stored(checkpoint, names, StackConversion(whole, one, names_of))

    targets = [first.replace(converter.target_patterns[0], other, 1) for other in converter.target_patterns]
    return {target: stored(target) for target in targets}


def completed(model: Any, checkpoint: TensorFiles, stored: dict[str, Stored]) -> dict[str, Stored]:
    """What was found, and tied tensors under all their names.

    Raises:
        CheckpointError: a parameter that the checkpoint lacks, or one of another shape.
    """
    wanted = model.state_dict()
    tied = model.all_tied_weights_keys
    for name, source in tied.items():
        if name not in stored and source in stored and name in wanted:
            stored[name] = stored[source]
        elif source not in stored and name in stored and source in wanted:
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
