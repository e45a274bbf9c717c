"""Files of lenses that other programs saved: finding them, opening them safely, telling them apart."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from layerscope.errors import LensError
from layerscope.lenses.lens_folder import RECORD_NAME

_PARAMETERS = ("params.safetensors", "params.pt", "lens.pt")
"""Names of weights in a folder, the first that is there."""
_LINEAR = re.compile(r"(\d+)\.(weight|bias)")
_DAMAGED = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
"""What torch and safetensors raise of files that are not theirs or not whole, found by changing bytes at random."""
_KINDS = (
    "a lens to import is a folder with config.json and params.pt (or params.safetensors), as the tuned-lens library "
    "saves it, or one file of a Jacobian lens, such as lens.pt"
)


@dataclass(frozen=True)
class ForeignWeights:
    """What a foreign file holds."""

    path: Path
    content: Mapping[object, object]
    """Tensors and plain values by name."""
    sha256: str
    """Of the file."""

    @property
    def is_jacobian(self) -> bool:
        """Whether these are the matrices of a Jacobian lens."""
        return "J" in self.content

    @property
    def is_unfinished(self) -> bool:
        """Whether these are sums of a Jacobian lens that is still being fitted."""
        return "jacobian_sum" in self.content

    @property
    def is_tuned(self) -> bool:
        """Whether these are linear layers under their numbers, as the tuned-lens library saves them."""
        return bool(self.content) and all(_LINEAR.fullmatch(str(key)) for key in self.content)


def read_weights(path: Path, allow_pickle: bool) -> ForeignWeights:
    """Open a lens' file, or the one that a folder holds.

    Raises:
        LensError: there is none or no single one, it is a pickle that was not allowed, or it is damaged.
    """
    file = _file_of(path)
    try:
        if file.suffix == ".safetensors":
            content = load_file(file)
        elif allow_pickle:
            # Mapped where it can be: a large lens is read matrix by matrix.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        else:
            raise LensError(
                f"{file} has to be opened as a pickle, which can run code that someone put into it; allow it with "
                "`--allow-pickle` if you trust where it comes from (only tensors and plain values are accepted even "
                "then)."
            )
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise LensError(f"{file}: cannot be read ({error.strerror or error}).") from error
    except _DAMAGED as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LensError(
            f"{file}: holds something else than tensors and plain values, or is damaged ({words}); take it from its "
            "source again."
        ) from error
    if not isinstance(content, Mapping):
        raise LensError(f"{file}: {type(content).__name__} where a lens' file has a mapping from names to tensors.")
    return ForeignWeights(file, content, sha256)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise LensError(f"{path}: no such file or folder; give a lens' file or the folder that holds it.")
        return path
    if (path / RECORD_NAME).exists():
        raise LensError(f"{path} is a lens in layerscope's own format already: there is nothing to import.")
    for name in _PARAMETERS:
        if (path / name).exists():
            return path / name
    others = sorted(path.glob("*.pt"))
    if len(others) == 1:
        return others[0]
    if others:
        raise LensError(f"{path}: holds {len(others)} files *.pt; name one of them.")
    raise LensError(f"{path}: {_KINDS}, but it holds neither.")


def _keys_in_words(weights: ForeignWeights) -> str:
    keys = sorted(map(str, weights.content))
    more = ", ..." if len(keys) > 5 else ""
    return f"it holds {', '.join(f'`{key}`' for key in keys[:5])}{more}" if keys else "it holds nothing"


def neither(weights: ForeignWeights) -> LensError:
    """The refusal of a file that is of no kind known here."""
    if weights.is_unfinished:
        return LensError(
            f"{weights.path}: a checkpoint of a Jacobian lens that is still being fitted; import the finished lens, "
            "whose matrices are called `J`, or take this one as far as it has come with `--unfinished`."
        )
    return LensError(f"{weights.path}: {_keys_in_words(weights)}, but {_KINDS}.")
