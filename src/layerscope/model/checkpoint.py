"""Find a checkpoint (folder or Hub), open its safetensors, and hand out tensors without copying them."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from layerscope.errors import CheckpointError
from layerscope.model.packed_weights import packed_weights
from layerscope.model.tensor_files import Place, TensorFiles, page_of
from layerscope.stored.parts import Available
from layerscope.stored.recognise import recognise, unused_flag
from layerscope.stored.weight import DenseWeight, StoredWeight, bytes_of

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""How the parts of a split GGUF file are named."""
_PART = r"(?!\.+/)[\w.-]+"
HUB_FILE = re.compile(rf"hf:(?P<repo>{_PART}/{_PART})/(?P<file>(?:(?!\.+/)[^\\/]+/)*[^\\/]+\.gguf)", re.IGNORECASE)
"""A GGUF file on the Hub: owner, repository, path in it, which leads nowhere else."""
WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""Files of a Hub repository that a probe may need; pickles never are."""
UNWANTED = ["*/*", "consolidated*", "adapter_*"]
"""Copies of the weights in another layout that some repositories keep beside them."""


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""Of the names that safetensors headers have; others are asked of the tensor."""


@dataclass(frozen=True)
class Source:
    """Where a model's files lie and what they are called in a record."""

    folder: Path
    id: str
    """Hub id, or the folder's own name; never a path."""
    revision: str | None
    """The revision asked for."""
    commit: str | None
    """The Hub commit it resolved to; None for a local folder."""
    gguf: Path | None = None
    """The GGUF file that is the whole model; None of a folder with config.json and safetensors."""


def locate(model: str | Path, *, revision: str | None = None, with_code: bool = False) -> Source:
    """Find a model's folder, downloading it into the Hub's cache where `model` is a Hub id.

    Args:
        model: a folder, a GGUF file, a Hub id such as `Qwen/Qwen3-8B`, or a GGUF file on the Hub as
            `hf:owner/name/file.gguf`.
        revision: branch, tag or commit on the Hub.
        with_code: also fetch the repository's own Python files.

    Raises:
        CheckpointError: no such folder, an id the Hub does not know, or a revision given for a folder or a file.
    """
    named = HUB_FILE.fullmatch(str(model))
    if named is not None:
        return _hub_file(named["repo"], named["file"], revision)
    folder = Path(model).expanduser()
    if revision is not None and folder.exists():
        what = "folder" if folder.is_dir() else "file"
        raise CheckpointError(
            f"A revision belongs to a Hub id, but '{model}' is a {what}; leave --revision out, or give the Hub id."
        )
    if folder.is_dir():
        return Source(folder, folder.resolve().name, None, None, _gguf_in(folder))
    if folder.exists():
        if folder.suffix.lower() == ".gguf":
            return Source(folder.parent, _stem(folder), None, None, folder)
        raise CheckpointError(
            f"'{model}' is no GGUF file; give one, or the folder that holds config.json and *.safetensors."
        )
    if not HUB_ID.fullmatch(str(model)):
        raise CheckpointError(
            f"There is no folder '{model}'; give a folder with config.json, a tokenizer and *.safetensors, "
            "a GGUF file, a Hub id such as Qwen/Qwen3-8B, or hf:owner/name/file.gguf."
        )
    patterns = [*WANTED, "*.py"] if with_code else WANTED
    with _hub_explained(f"'{model}' is neither a folder here nor a model", revision):
        snapshot = Path(
            huggingface_hub.snapshot_download(
                str(model), revision=revision, allow_patterns=patterns, ignore_patterns=UNWANTED
            )
        )
    return Source(snapshot, str(model), revision, snapshot.name)


def _hub_file(repo: str, name: str, revision: str | None) -> Source:
    """A GGUF file on the Hub, and the other parts where it is one of several.

    Raises:
        CheckpointError: it cannot be had.
    """
    folder, _, last = name.rpartition("/")
    with _hub_explained(f"'hf:{repo}/{name}' is no file", revision):
        found = [
            Path(huggingface_hub.hf_hub_download(repo, f"{folder}/{part}" if folder else part, revision=revision))
            for part in parts_of(last)
        ]
    file = found[0]
    commit = file.parents[folder.count("/") + 1 if folder else 0].name  # .../snapshots/<commit>/<path in repository>
    return Source(file.parent, _stem(file), revision, commit, file)


@contextmanager
def _hub_explained(what: str, revision: str | None) -> Iterator[None]:
    """Say in a sentence why something could not be had from the Hub.

    Raises:
        CheckpointError: it could not.
    """
    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision '{revision}'" if revision else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{what} that could be had from the Hub{at} ({reason}); check the name, log in with `hf auth login` if it "
            "is gated, or give a folder."
        ) from error


class Checkpoint(TensorFiles):
    """The safetensors files of a folder, memory-mapped: a tensor costs no memory until its pages are read.

    Quantised weights are found by their tensors, and go by the name of the weight that they are.
    """

    format = "safetensors"

    def __init__(self, folder: Path, quantization: Mapping[str, Any] | None = None) -> None:
        """Open every shard and check that each is whole.

        Args:
            folder: where they lie.
            quantization: what config.json says of how weights are quantised.

        Raises:
            CheckpointError: no safetensors, a shard that the index names but the folder lacks, a damaged file, or two
                files with the same tensors. Weights in a form that is not read are refused where they are wanted.
        """
        self.folder, self._quantization = folder, quantization
        self._handles: dict[Path, Any] = {file: _open(file) for file in weight_files(folder)}
        places = [place for file in self._handles for place in _places(file)]
        self._plain = plain_names([place.name for place in places])
        self._places: dict[str, Place] = {}
        for place in places:
            name = self._plain[place.name]
            if name in self._places:
                raise _twice(name, self._places[name], place)
            self._places[name] = place
        # Where a file's first byte is mapped: told by any of its tensors that is not empty.
        one_of = {place.file: place for place in places if place.start < place.stop}
        self._mapped_at = {
            file: page_of(self._mapped(place).data_ptr() - place.start) for file, place in one_of.items()
        }
        packed = packed_weights(self._available, quantization, self._by_name)
        self._packed, self._unread = packed.read, packed.unread

    @cached_property
    def _available(self) -> Available:
        return {name: self._described(place) for name, place in self._places.items()}

    def _described(self, place: Place) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype by the header: of tens of thousands of tensors none has to be mapped for it."""
        header = self._handles[place.file].get_slice(place.name)
        dtype = _DTYPES.get(header.get_dtype())
        return tuple(header.get_shape()), self._mapped(place).dtype if dtype is None else dtype

    def _mapped(self, place: Place) -> torch.Tensor:
        tensor: torch.Tensor = self._handles[place.file].get_tensor(place.name)
        return tensor

    def _by_name(self, name: str) -> torch.Tensor:
        return self._mapped(self._places[name])

    @property
    def files(self) -> tuple[Path, ...]:
        """All shards."""
        return tuple(self._handles)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, a quantised weight's being one."""
        taken = {part for packed in self._packed.values() for part in packed.recognised.names} - self._packed.keys()
        return (*(name for name in self._places if name not in taken), *(self._packed.keys() - self._places.keys()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken off the names, and a flag left behind in config.json."""
        flag = unused_flag(self._quantization, [packed.recognised for packed in self._packed.values()])
        taken_off = sorted({part for stored, plain in self._plain.items() for part in _taken_off(stored, plain)})
        named = [f"Names of tensors held '{part}', which was taken off." for part in taken_off]
        return (*named, *([] if flag is None else [flag]))

    @property
    def storage(self) -> str | None:
        """The forms of its quantised weights, or the dtypes of its matrices where it has none; most bytes first.

        None where there is neither.
        """
        sizes: Counter[str] = Counter()
        for packed in self._packed.values():
            sizes[packed.made.storage] += packed.made.nbytes
        if not sizes:
            for shape, dtype in self._available.values():
                if len(shape) > 1 and dtype.is_floating_point:
                    sizes[str(dtype).removeprefix("torch.")] += math.prod(shape) * dtype.itemsize
        return ", ".join(sorted(sizes, key=lambda storage: -sizes[storage])) or None

    def bytes_kept(self, itemsize: int) -> int:
        """What lies in the files, but for quantised weights, which are floats of that many bytes."""
        packed = [packed.made for packed in self._packed.values()]
        return self.bytes_on_disk + sum(itemsize * made.numel() - made.nbytes for made in packed)

    def parts(self, name: str) -> tuple[str, ...]:
        """Tensors of which a quantised weight is made; itself where it is none."""
        return tuple(sorted(self._packed[name].recognised.names)) if name in self._packed else (name,)

    def refusal(self, name: str) -> CheckpointError | None:
        """Why a weight is missed although its codes are there; None where nothing of its module is.

        A checkpoint may have other names before that of the block than the model has.
        """
        parts = name.removesuffix("weight").split(".")
        for i in range(len(parts)):
            if i > 0 and not any(part.isdigit() for part in parts[i + 1 : -2]):
                return None  # too little of the name to know the module by
            end = ".".join(parts[i:])
            before = {found[: found.index(end)] for found in self._available if f".{end}" in f".{found}"}
            if before:
                most_alike = max(sorted(before), key=lambda path: len(set(path.split(".")) & set(parts) - {""}))
                return self._refusal_of(f"{most_alike}{end}weight")
        return None

    def _refusal_of(self, name: str) -> CheckpointError | None:
        if name in self._unread:
            return self._unread[name]
        try:
            recognise(name, self._available, self._quantization)
        except CheckpointError as error:
            return error
        return None

    def place(self, name: str) -> Place | None:
        """Where a tensor lies; None of a quantised weight, which does not lie in one place."""
        return None if name in self._packed else self._places[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it.

        Raises:
            CheckpointError: a weight in a form that is not read.
        """
        if name in self._unread:
            raise self._unread[name]
        return self._packed[name].shape if name in self._packed else tuple(self._available[name][0])

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored, its memory being the file's pages; of a quantised weight its floats.

        Raises:
            CheckpointError: numbers that are no floats and no quantised weight.
        """
        if name in self._unread:
            raise self._unread[name]
        if name in self._packed:
            return self._packed[name].whole()
        tensor = self._by_name(name)
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise CheckpointError(
                f"Tensor '{name}' is stored as {str(tensor.dtype).removeprefix('torch.')}, but float32, bfloat16 or "
                "float16 is expected, or a quantised form that is known; use the unquantised checkpoint."
            )
        return tensor

    def integers(self, name: str) -> torch.Tensor:
        """A tensor of whole numbers, as stored.

        Raises:
            CheckpointError: it holds something else.
        """
        tensor = self._by_name(name)
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            raise CheckpointError(
                f"Tensor '{name}' should hold whole numbers, but it is stored as "
                f"{str(tensor.dtype).removeprefix('torch.')}; use the checkpoint that belongs to this config.json."
            )
        return tensor

    def matrix(self, name: str, i: int) -> torch.Tensor:
        """One matrix of a tensor with three axes; of quantised ones the others are not decoded."""
        packed = self._packed.get(name)
        if packed is None or packed.stack is None or name in self._unread:
            return self.tensor(name)[i]
        _, n_rows = packed.stack
        rows = torch.empty(n_rows, packed.made.shape[1])
        return packed.made.rows(i * n_rows, (i + 1) * n_rows, rows).T

    def weight(self, name: str) -> StoredWeight:
        """A matrix that gives some of its rows as floats.

        Raises:
            CheckpointError: as `tensor`.
        """
        packed = self._packed.get(name)
        return DenseWeight(self.tensor(name)) if packed is None or packed.stack is not None else packed.made

    def excerpt(self, name: str) -> bytes:
        """Shape, dtype and a few rows of a tensor, or of those that a quantised weight is made of."""
        return b"".join(_excerpt(self._by_name(part)) for part in self.parts(name))


COMPILED = "_orig_mod."
"""What torch.compile puts before names, or between their parts."""
_WRAPPERS = ("module.", "base_model.model.")
"""What others put before every name: torch's parallel wrappers, PEFT."""


def plain_names(stored: Sequence[str]) -> dict[str, str]:
    """Names as a model knows them, by those that wrapped models were saved under."""
    plain = {name: name.replace(COMPILED, "") for name in stored}
    for wrapper in (*_WRAPPERS, *_WRAPPERS):  # one may lie in the other
        if plain and all(name.startswith(wrapper) for name in plain.values()):
            plain = {name: shorter.removeprefix(wrapper) for name, shorter in plain.items()}
    return plain


def _taken_off(stored: str, plain: str) -> tuple[str, ...]:
    """What stood before a name, or in it, that is not part of it."""
    bare = stored if stored.endswith(plain) else stored.replace(COMPILED, "")
    return tuple(filter(None, (COMPILED if bare != stored else "", bare.removesuffix(plain))))


def _excerpt(tensor: torch.Tensor) -> bytes:
    rows = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
    few = rows[:: max(1, len(rows) // 4), :1024]
    return f"{tuple(tensor.shape)} {tensor.dtype}".encode() + bytes_of(few)


def _twice(name: str, first: Place, second: Place) -> CheckpointError:
    if first.file == second.file:
        return CheckpointError(
            f"{first.file.name} holds '{first.name}' and '{second.name}', which are both '{name}' once what wrapped "
            "models put into names is taken off; keep one of them."
        )
    return CheckpointError(
        f"{first.file.name} and {second.file.name} both hold tensor '{name}', and no model.safetensors.index.json says "
        "which of them the model is; leave one of them in the folder, or name it model.safetensors."
    )


def parts_of(name: str) -> tuple[str, ...]:
    """Names of all parts of a split GGUF file in order; the name alone where it is no part.

    Raises:
        CheckpointError: a part beyond their number.
    """
    match = SPLIT.fullmatch(name)
    if match is None:
        return (name,)
    if not 1 <= int(match["number"]) <= int(match["count"]):
        raise CheckpointError(
            f"{name} should be one of {int(match['count'])} parts by its name, but is number {int(match['number'])}; "
            "give the parts the names that they were made with."
        )
    ending = name[match.end("count") :]
    return tuple(f"{match['stem']}-{i:05}-of-{match['count']}{ending}" for i in range(1, int(match["count"]) + 1))


def _stem(file: Path) -> str:
    """A GGUF file's name without its ending and, of a split one, without its number."""
    match = SPLIT.fullmatch(file.name)
    return file.stem if match is None else match["stem"]


def _gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no other weights.

    Raises:
        CheckpointError: several models in GGUF, of which one has to be named.
    """
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return None
    found = (file for file in folder.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    files = sorted(file for file in found if "mmproj" not in file.name.lower())  # what projects pictures is no model
    models = {_stem(file): file for file in reversed(files)}
    if len(models) > 1:
        raise CheckpointError(
            f"The folder '{folder.name}' holds {len(models)} GGUF models ({', '.join(sorted(models))}); name the file."
        )
    return next(iter(models.values()), None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are a folder's model.

    Raises:
        CheckpointError: there are none, or some are missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index.name} should hold a JSON object with a weight_map, but it does not ({error}); fetch it again."
            ) from error
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{index.name} names {len(named)} shards, but {len(missing)} of them are not in the folder "
                f"(first: {missing[0]}); complete the download."
            )
        return [folder / name for name in named]
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if files:
        return files
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.ckpt")])
    if pickles:
        raise CheckpointError(
            f"The folder holds {pickles[0].name} but no *.safetensors; pickles can run code and are not read. Convert "
            'them where you trust them: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', use_safetensors=False, dtype='auto')"
            f".save_pretrained('{folder}-safetensors')\" and copy the tokenizer's files there."
        )
    raise CheckpointError(
        f"The folder '{folder.name}' holds no *.safetensors; give a folder with config.json, a tokenizer and weights."
    )


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file.name} ({file.stat().st_size:,} bytes) is not a whole safetensors file ({error}); fetch it again."
        ) from error


def _places(file: Path) -> list[Place]:
    """Byte ranges from the header: its length as 8 bytes, then JSON with offsets relative to what follows it."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    base = 8 + length
    return [
        Place(name, file, base + entry["data_offsets"][0], base + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
