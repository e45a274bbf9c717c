"""What PEFT's adapter_config.json says that changes the function, each value checked; the rest tells of training."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from layerscope.errors import CheckpointError
from layerscope.model.checkpoint import HUB_FILE, HUB_ID

CONFIG = "adapter_config.json"
MERGE = "merge it into the model (PEFT: merge_and_unload) and give the merged model."
"""The way out where an adapter is not read."""
Value = TypeVar("Value")

_UNREAD = {
    "layer_replication": "repeats layers of the model",
    "alora_invocation_tokens": "acts from certain tokens on only (aLoRA)",
    "use_qalora": "pools what it reads (QA-LoRA)",
    "use_bdlora": "has matrices in blocks (BD-LoRA)",
    "arrow_config": "chooses among adapters token by token (Arrow)",
    "kasa_config": "cuts off singular values of the weights (KaSA)",
    "monteclora_config": "has a distribution of changes (MonteCLoRA)",
    "trainable_token_indices": "sets embeddings of single tokens",
    "target_parameters": "changes parameters that are no linear layer's",
    "lora_bias": "has biases of its own",
}
"""Fields that change the function, are not followed, and are false, null or absent in adapters that are read."""
_NEVER_MERGED = ("alora_invocation_tokens", "use_qalora", "arrow_config")
"""Of these what PEFT cannot merge (`merge_unsafe` of its variants)."""
_MAY_BE_EMPTY = ("trainable_token_indices", "target_parameters")
_CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` for which PEFT takes something off the model's weights before it adds the adapter
(`LoraLayer.update_layer`)."""


@dataclass(frozen=True)
class AdapterConfig:
    """A checked adapter_config.json."""

    folder: str
    """The name of the folder it lies in."""
    base: str | None
    """The model that it says it was trained on: a Hub id, or a path."""
    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    """By the names of modules, the first that fits counting."""
    alphas: Mapping[re.Pattern[str], float]
    rank_stabilised: bool
    """Whether changes are divided by the root of the rank (rsLoRA)."""
    sets_lengths: bool
    """Whether rows are brought to lengths of their own (DoRA)."""
    kept_whole: tuple[str, ...]
    """Ends of the names of modules that have tensors of their own in place of the model's (`modules_to_save`)."""
    keeps_ties: bool
    """Whether tensors that are one in the model stay one."""

    def rank_of(self, module: str) -> int:
        """Rows of A."""
        return _first(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What B A is multiplied by (PEFT, `LoraLayer.update_layer`)."""
        rank, alpha = self.rank_of(module), _first(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def keeps_whole(self, tensor: str) -> bool:
        """Whether a tensor is one of a module with tensors of its own."""
        parts = tensor.split(".")[:-1]
        modules = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(module.endswith(end) for module in modules for end in self.kept_whole)

    @property
    def base_name(self) -> str | None:
        """The model it was trained on, for a record: a Hub id, or the last part of a path; None where it says none."""
        if self.base is None or HUB_ID.fullmatch(self.base) or HUB_FILE.fullmatch(self.base):
            return self.base
        last = re.split(r"[\\/]+", self.base.rstrip("\\/"))[-1]
        return last if re.search(r"\w", last) else None


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check an adapter's config.

    Raises:
        CheckpointError: none there, a broken one, a value that cannot be, or an adapter of a kind that is not read.
    """
    config = _json(folder)
    name = folder.resolve().name
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        said = kind.upper() if isinstance(kind, str) and kind else "unknown"
        raise CheckpointError(
            f"The adapter in '{name}' is of type {said}, but LoRA (with rsLoRA and DoRA) is read; where PEFT can "
            "merge it (merge_and_unload), give the merged model."
        )
    _refuse_unread(config, name)
    fields = _Fields(config, name)
    return AdapterConfig(
        folder=name,
        base=base_of(folder),
        rank=fields.value("r", 8, _rank),  # 8 is PEFT's own default of both
        alpha=fields.value("lora_alpha", 8.0, _alpha),
        ranks=fields.pattern("rank_pattern", _rank),
        alphas=fields.pattern("alpha_pattern", _alpha),
        rank_stabilised=fields.flag("use_rslora"),
        sets_lengths=fields.flag("use_dora"),
        kept_whole=fields.names("modules_to_save"),
        keeps_ties=fields.flag("ensure_weight_tying"),
    )


def base_of(folder: Path) -> str | None:
    """The model that an adapter's folder says it was trained on.

    Raises:
        CheckpointError: no adapter_config.json, or a broken one.
    """
    base = _json(folder).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _json(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"The folder '{folder}' holds no {CONFIG}; give the folder in which PEFT saved an adapter."
        )
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{CONFIG} of '{folder.name}' should hold JSON, but is broken ({error}); fetch it again."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{CONFIG} of '{folder.name}' should hold an object, but holds {type(config).__name__}; fetch it again."
        )
    return config


def _refuse_unread(config: Mapping[str, Any], folder: str) -> None:
    for key, what in _UNREAD.items():
        value = config.get(key)
        is_set = value is not None and value is not False and not (key in _MAY_BE_EMPTY and value in ([], {}))
        if is_set:
            give = "nor can PEFT merge it; give another adapter." if key in _NEVER_MERGED else MERGE
            raise CheckpointError(f"The adapter in '{folder}' {what} (`{key}`), which is not read; {give}")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGE_THE_BASE):
        raise CheckpointError(
            f"The adapter in '{folder}' belongs to weights that PEFT changes before it adds the adapter "
            f"(`init_lora_weights`: {begun}), which is not read; save it with path_initial_model_for_weight_conversion,"
            f" or {MERGE}"
        )


@dataclass(frozen=True)
class _Fields:
    """The values of a config, each refused where it cannot be."""

    config: Mapping[str, Any]
    folder: str

    def value(self, key: str, default: Value, check: Callable[[Any], tuple[Value | None, str]]) -> Value:
        """A number; PEFT's default where the key is absent."""
        return self._checked(key, self.config[key], check) if key in self.config else default

    def pattern(self, key: str, check: Callable[[Any], tuple[Value | None, str]]) -> dict[re.Pattern[str], Value]:
        """Numbers by names of modules, which are matched as PEFT's `get_pattern_key` does."""
        given = self.config.get(key)
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise self._wrong(key, given, "an object with a number for each name")
        found: dict[re.Pattern[str], Value] = {}
        for name, value in given.items():
            try:
                compiled = re.compile(rf"(.*\.)?({name})$")
            except (re.error, OverflowError, RecursionError) as error:
                raise self._wrong(key, name, f"names, or regular expressions for them ({error})") from error
            found[compiled] = self._checked(f"{key}: {name}", value, check)
        return found

    def flag(self, key: str) -> bool:
        """True or false; false where absent."""
        given = self.config.get(key)
        if given is None or isinstance(given, bool):
            return bool(given)
        raise self._wrong(key, given, "true or false")

    def names(self, key: str) -> tuple[str, ...]:
        """Names; none where absent."""
        given = self.config.get(key)
        if given is None:
            return ()
        if not isinstance(given, list) or not all(isinstance(name, str) and name for name in given):
            raise self._wrong(key, given, "a list of names")
        return tuple(given)

    def _checked(self, key: str, given: object, check: Callable[[Any], tuple[Value | None, str]]) -> Value:
        value, expected = check(given)
        if value is None:
            raise self._wrong(key, given, expected)
        return value

    def _wrong(self, key: str, given: object, expected: str) -> CheckpointError:
        shown = repr(given) if len(repr(given)) <= 60 else f"{repr(given)[:60]}..."
        return CheckpointError(
            f"{CONFIG} of '{self.folder}' should have {expected} under `{key}`, but has {shown}; fetch the adapter "
            "again, or save it anew from PEFT."
        )


def _rank(given: object) -> tuple[int | None, str]:
    is_rank = isinstance(given, int) and not isinstance(given, bool) and 0 < given < 1 << 31
    return (given if is_rank else None), "a whole number above zero"  # type: ignore[return-value]


def _alpha(given: object) -> tuple[float | None, str]:
    expected = "a finite number"
    if (
        isinstance(given, bool) or not isinstance(given, int | float) or abs(given) > 1e30
    ):  # so large an int is no float
        return None, expected
    return (float(given) if math.isfinite(given) else None), expected


def _first(values: Mapping[re.Pattern[str], Value], module: str, otherwise: Value) -> Value:
    return next((value for pattern, value in values.items() if pattern.match(module)), otherwise)
