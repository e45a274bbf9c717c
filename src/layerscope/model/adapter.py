"""Adapters as PEFT saves them: low-rank changes of a model's weights, applied to rows as they are read."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.model.stored_tensors import Stored
from layerscope.stored.low_rank import LowRankWeight
from layerscope.stored.weight import StoredWeight

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?"
    r"(\.weight)?"
)


@dataclass(frozen=True)
class LowRankChange:
    """What an adapter does to one matrix."""

    up: Tensor
    down: Tensor
    scale: float
    lengths: Tensor | None
    transposed: bool
    """Whether the matrix is kept as [in, out], as GPT-2's are."""

    def of(self, weight: StoredWeight) -> StoredWeight:
        """The changed matrix."""
        if self.transposed:
            return LowRankWeight(weight, self.down.T.contiguous(), self.up.T.contiguous(), self.scale)
        return LowRankWeight(weight, self.up, self.down, self.scale, self.lengths)


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, read."""

    name: str
    """The folder's."""
    sha256: str
    """Of its weights."""
    base: str | None
    """The model that it says it was trained on."""
    changes: Mapping[str, LowRankChange]
    """By the module whose matrix is changed."""
    whole: Mapping[str, Tensor]
    """Tensors that take the place of the model's, by name."""

    @property
    def note(self) -> str:
        """For the record."""
        of = "" if self.base is None else f", trained on {self.base}"
        return f"The adapter '{self.name}'{of} was applied (sha256 {self.sha256[:12]})."

    def apply(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """The model's tensors, changed.

        Raises:
            CheckpointError: a change of something that the model does not have, or of another shape.
        """
        changed = dict(stored)
        for module, change in self.changes.items():
            name = f"{module}.weight"
            if name not in stored:
                raise self._foreign(f"a module '{module}'")
            if stored[name].convert is not None:
                raise CheckpointError(
                    f"The adapter '{self.name}' changes '{name}', which is put together of several tensors here; merge "
                    "the adapter into the model (PEFT: merge_and_unload) and give the merged model."
                )
            try:
                change.of(stored[name].weight())
            except ValueError as error:
                raise self._foreign(f"{error} ('{name}')") from error
            changed[name] = replace(stored[name], adapted=change.of)
        for name, tensor in self.whole.items():
            if name not in stored:
                raise self._foreign(f"a tensor '{name}'")
            changed[name] = replace(stored[name], convert=lambda tensor=tensor: tensor, order=None)  # type: ignore[misc]
        return changed

    def _foreign(self, what: str) -> CheckpointError:
        of = "" if self.base is None else f" It says that it was trained on {self.base}."
        return CheckpointError(
            f"The adapter '{self.name}' has {what}, which does not fit this model.{of} Give the model that it belongs "
            "to."
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def with_base(model: str | Path, adapter: str | Path | None) -> tuple[str | Path, Adapter | None]:
    """A model, and the adapter to apply; of an adapter's folder given as the model the one it was trained on.

    Raises:
        CheckpointError: no adapter there, a broken one, or one that does not say what it was trained on.
    """
    folder = Path(model).expanduser()
    if adapter is not None or not (folder.is_dir() and is_adapter(folder)):
        return model, None if adapter is None else read_adapter(Path(adapter).expanduser())
    base = base_of(folder)
    if base is None:
        raise CheckpointError(
            f"'{model}' is an adapter and no model, and does not say which model it was trained on; give that model, "
            f"and the adapter with --adapter {model}."
        )
    beside = folder / base
    return (beside if beside.is_dir() else base), read_adapter(folder)


def base_of(folder: Path) -> str | None:
    """The model that an adapter's folder says it was trained on.

    Raises:
        CheckpointError: a broken adapter_config.json.
    """
    base = _config(folder).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's folder: LoRA, rsLoRA or DoRA, changed embeddings, and modules saved whole beside them.

    Raises:
        CheckpointError: no adapter there, a broken one, or of a kind that is not read.
    """
    config = _config(folder)
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise CheckpointError(
            f"The adapter in '{folder.name}' is of type {kind or 'unknown'}, but LoRA (with rsLoRA and DoRA) is read; "
            "merge it into the model (PEFT: merge_and_unload) and give the merged model."
        )
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter in '{folder.name}' should hold {WEIGHTS}, but it could not be read ({error}); fetch it again."
        ) from error
    changes, whole = _sorted_out(tensors, config, folder.name)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return Adapter(folder.resolve().name, sha256, base_of(folder), changes, whole)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"The folder '{folder}' holds no {CONFIG}; give the folder in which PEFT saved an adapter."
        )
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{CONFIG} of '{folder.name}' should hold JSON, but is broken ({error}).") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{CONFIG} of '{folder.name}' should hold an object, but holds {type(config).__name__}.")
    return config


def _sorted_out(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: str
) -> tuple[dict[str, LowRankChange], dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(_PREFIX).replace(".base_layer", "")
        match = _PART.fullmatch(plain)
        if match is not None:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif ".lora_" in plain:
            raise CheckpointError(f"The adapter in '{folder}' holds '{name}', a part of LoRA that is not known here.")
        else:
            whole[plain.replace(".modules_to_save.default", "").replace(".modules_to_save", "")] = tensor
    changes = {module: _change(module, found, config, folder) for module, found in parts.items()}
    return changes, whole


def _change(module: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], folder: str) -> LowRankChange:
    embedding = "lora_embedding_A" in parts
    down, up = (parts.get(f"lora_{'embedding_' if embedding else ''}{part}") for part in "AB")
    if down is None or up is None:
        raise CheckpointError(
            f"The adapter in '{folder}' should hold A and B of '{module}', but holds {', '.join(parts)}; fetch it "
            "again."
        )
    rank = int(_own(config, "rank_pattern", module, config.get("r", len(down))))
    alpha = float(_own(config, "alpha_pattern", module, config.get("lora_alpha", rank)))
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    if embedding:  # A is [rank, d_vocab], B [d_model, rank], and the table [d_vocab, d_model]
        down, up = up.T, down.T
    lengths, transposed = parts.get("lora_magnitude_vector"), bool(config.get("fan_in_fan_out")) and not embedding
    if lengths is not None and (embedding or transposed):
        raise CheckpointError(
            f"The adapter in '{folder}' sets lengths (DoRA) in '{module}', an embedding or a matrix kept the other way "
            "round, which is not read; merge it into the model (PEFT: merge_and_unload) and give the merged model."
        )
    return LowRankChange(up, down, scale, lengths, transposed)


def _own(config: Mapping[str, Any], pattern: str, module: str, otherwise: Any) -> Any:
    """What a config says of a module by a pattern of names, as PEFT matches them: the end of its name."""
    for key, value in (config.get(pattern) or {}).items():
        if re.fullmatch(rf"(.*\.)?{key}", module):
            return value
    return otherwise
