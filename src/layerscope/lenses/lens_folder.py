"""A fitted lens on disk: a folder with `lens.json`, what it is, and `lens.safetensors`, its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lens_record import FORMAT, READABLE_VERSIONS, FittedModel, Kind, LensFolder, LensRecord
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens import Lens
from layerscope.lenses.lens_folder_check import check_tensors, jacobian_fit, prism_fit, ridge_fit, tuned_fit
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.recorded_folder import Layout
from layerscope.lenses.tuned_lens import Translator, TunedLens, translator_shapes
from layerscope.unembedding import Norm

RECORD_NAME = "lens.json"
WEIGHTS_NAME = "lens.safetensors"
LAYOUT = Layout("fitted lens", RECORD_NAME, WEIGHTS_NAME, FORMAT, READABLE_VERSIONS, LensRecord)


@dataclass(frozen=True)
class FittedLens:
    """A fitted lens with its weights."""

    record: LensRecord
    tensors: dict[str, Tensor]
    """On the CPU and memory-mapped where they were read from a file."""
    folder: Path


def tuned_tensors(translators: Sequence[Translator]) -> dict[str, Tensor]:
    """The tensors of a tuned lens: `layers.003.down` and so on, and the `temperatures` of layers 0 to n_layers."""
    named = {
        f"layers.{i:03d}.{part}": t
        for i, translator in enumerate(translators)
        for part, t in translator.parts().items()
    }
    taus = [*(translator.temperature for translator in translators), 1.0]
    return {**named, "temperatures": torch.tensor(taus, dtype=torch.float64)}


def tuned_translators(lens: FittedLens) -> tuple[Translator, ...]:
    """The translators of a tuned lens, layers 0 to n_layers - 1.

    Raises:
        LensError: it holds a lens of another kind.
    """
    fit, model = tuned_fit(lens.record), lens.record.model
    names = translator_shapes(model.d_model, fit.rank)
    return tuple(
        Translator(
            temperature=fit.temperatures[i],
            mean=lens.tensors.get(f"layers.{i:03d}.mean"),
            **{part: lens.tensors[f"layers.{i:03d}.{part}"] for part in names},
        )
        for i in range(model.n_layers)
    )


def tuned_lens(lens: FittedLens, final_norm: Norm | None) -> TunedLens:
    """A tuned lens, round a model's final norm.

    Raises:
        LensError: it holds a lens of another kind.
    """
    return TunedLens(final_norm, tuned_translators(lens), tuned_fit(lens.record).placement)


def ridge_tensors(translators: Sequence[Translator]) -> dict[str, Tensor]:
    """The tensors of a ridge lens: `layers.003.full`, `.bias` and `.mean`."""
    return {
        f"layers.{i:03d}.{part}": t
        for i, translator in enumerate(translators)
        for part, t in translator.parts().items()
    }


def ridge_lens(lens: FittedLens, final_norm: Norm | None) -> TunedLens:
    """A ridge lens, round a model's final norm.

    Raises:
        LensError: it holds a lens of another kind.
    """
    fit, model = ridge_fit(lens.record), lens.record.model
    translators = tuple(
        Translator(
            temperature=1.0, **{part: lens.tensors[f"layers.{i:03d}.{part}"] for part in ("full", "bias", "mean")}
        )
        for i in range(model.n_layers)
    )
    return TunedLens(final_norm, translators, fit.placement, name="ridge")


def jacobian_tensors(jacobians: Mapping[int, Float[Tensor, "d_model d_model"]]) -> dict[str, Tensor]:
    """The tensors of a Jacobian lens by layer: `layers.003.jacobian`, acting on columns."""
    return {f"layers.{layer:03d}.jacobian": matrix for layer, matrix in jacobians.items()}


def jacobian_lens(lens: FittedLens, final_norm: Norm | None) -> JacobianLens:
    """A Jacobian lens, round a model's final norm.

    Raises:
        LensError: it holds a lens of another kind.
    """
    layers = {layer.layer for layer in jacobian_fit(lens.record).layers}
    matrices = (
        lens.tensors[f"layers.{i:03d}.jacobian"] if i in layers else None for i in range(lens.record.model.n_layers)
    )
    return JacobianLens(final_norm, tuple(matrices))


def prism_tensors(
    mean: Float[Tensor, " d_model"], variance: Float[Tensor, " d_model"], rotation: Float[Tensor, "d_model d_model"]
) -> dict[str, Tensor]:
    """The tensors of a prism lens; eps is in the record."""
    return {"mean": mean, "variance": variance, "rotation": rotation}


def prism_lens(lens: FittedLens, stream: Lens) -> PrismLens:
    """A prism lens, on the rows of `stream`.

    Raises:
        LensError: it holds a lens of another kind.
    """
    eps, named = prism_fit(lens.record).eps, lens.tensors
    return PrismLens(stream, named["mean"], named["variance"], eps, named["rotation"])


def write_fitted_lens(folder: Path, record: LensRecord, tensors: dict[str, Tensor]) -> FittedLens:
    """Write a lens folder, whole or not at all; equal tensors give an equal file.

    Args:
        folder: is made, with the folders above it; until it is whole it lies beside as `.<name>.partial-<random>`.
        record: its `weights_sha256` is filled in, whatever it says.
        tensors: as `tuned_tensors` or `prism_tensors` give them.

    Returns:
        What reading the folder would give, the order of memory included.

    Raises:
        LensError: `folder` is already there; record and tensors do not fit each other; a number of the record is not
            finite; the disk is full or the place cannot be written to.
    """
    check_tensors(record, tensors, str(folder), finite=True)
    return FittedLens(*LAYOUT.write(folder, record, tensors), folder)


def read_fitted_lens(folder: Path, *, verify: bool = True) -> FittedLens:
    """Read a lens folder.

    Args:
        folder: holds `lens.json` and `lens.safetensors`.
        verify: read every byte of the weights, to compare their hash and to see that all are finite; names, shapes and
            dtypes are compared with the record in any case.

    Raises:
        LensError: what is missing, of another version, damaged, or contradicts the record.
    """
    record = read_record(folder)
    tensors = LAYOUT.read_tensors(folder, record, verify=verify)
    check_tensors(record, tensors, str(folder / WEIGHTS_NAME), finite=verify)
    return FittedLens(record, tensors, folder)


def read_record(folder: Path) -> LensRecord:
    """Read a lens folder's `lens.json` alone.

    Raises:
        LensError: it is missing, no record of a lens, or of another version.
    """
    return LAYOUT.read_record(folder)


def find_lens_folders(folder: Path, kind: Kind) -> list[LensFolder]:
    """The lenses of a kind in a folder and its direct subfolders, by name; their weights are not read.

    Raises:
        LensError: no such folder, or a `lens.json` in it that cannot be read.
    """
    folders, unreadable = look_for(folder, kind)
    if unreadable:
        raise unreadable[0]
    return folders


def look_for(folder: Path, kind: Kind) -> tuple[list[LensFolder], list[LensError]]:
    """What `find_lens_folders` gives, and for each `lens.json` that cannot be read, of whatever kind it is, the reason.

    Raises:
        LensError: no such folder, or one that cannot be listed.
    """
    if not folder.is_dir():
        raise LensError(f"{folder}: no such folder; give one that holds fitted lenses, or a lens' own folder.")
    folders, unreadable = [], []
    for place in _places(folder):
        try:
            folders.append(LensFolder(read_record(place), place))
        except LensError as error:
            unreadable.append(error)
    return [lens for lens in folders if lens.record.kind == kind], unreadable


def _places(folder: Path) -> list[Path]:
    """Of a folder and those directly below it, by name, the ones with a record."""
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise LensError(f"{folder}: cannot be listed ({error.strerror}); check its permissions.") from error
    return [place for place in (folder, *below) if _has_record(place)]


def _has_record(place: Path) -> bool:
    """Also where it cannot be looked at: reading it then says why."""
    try:
        (place / RECORD_NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def find_lens_of(folder: Path, kind: Kind, model: FittedModel) -> LensFolder:
    """The lens of a kind that was fitted to this model (see `mismatch`), whatever else lies beside it.

    Raises:
        LensError: there is none, and what there is instead, with what cannot be read; or there are several.
    """
    folders, unreadable = look_for(folder, kind)
    fitting = [lens for lens in folders if not mismatch(lens.record.model, model)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(str(lens.folder) for lens in fitting)
        raise LensError(
            f"{folder}: {len(fitting)} {kind} lenses belong to {model.id}; name the folder of one: {names}."
        )
    fit = f"`layerscope fit {kind} MODEL --text FILE --out {folder}` fits one"
    if model.changed is not None:
        fit = f"it {model.changed}, and a lens of the model as it was read is none of it: leave the lens out"
    others = [f"{lens.folder}: {mismatch(lens.record.model, model)}" for lens in folders]
    others += [str(error).removesuffix(".") for error in unreadable]
    if not others:
        raise LensError(f"{folder}: there is no {kind} lens in it or directly below it; {fit}.")
    raise LensError(
        f"{folder}: no {kind} lens in it belongs to {_words(model)}; {fit}. There are: {'; '.join(others)}."
    )


def mismatch(of: FittedModel, model: FittedModel) -> str:
    """Why a lens of one model is none of another, as what follows "a lens"; empty where it is.

    Sizes, final norm and unembedding have to be the same, and the blocks where both models state them.
    """
    shapes = ("d_model", "n_layers", "d_vocab")
    if any(getattr(of, name) != getattr(model, name) for name in shapes):
        return f"of {_words(of)}"
    same_blocks = None in (blocks := {of.blocks_fingerprint, model.blocks_fingerprint}) or len(blocks) == 1
    if of.fingerprint == model.fingerprint and same_blocks:
        return ""
    if of.changed != model.changed:  # which other weights may come from too, but this is known
        whose = f"of {of.id} as it is" if of.changed is None else f"of {of.id}, which {of.changed}"
        return f"{whose}, but this model {'is as it was read' if model.changed is None else model.changed}"
    if of.fingerprint != model.fingerprint:
        return (
            f"of {of.id}, the same shapes but another head or final norm: its weights were changed (fine-tuned, "
            "quantised or another revision)"
        )
    return (
        f"of {of.id}, the same head and final norm, but other blocks: other weights (fine-tuned, merged), or the same "
        "stored in another form or computed with other settings"
    )


def _words(model: FittedModel) -> str:
    sizes = f"n_layers {model.n_layers}, d_model {model.d_model}, d_vocab {model.d_vocab}"
    return f"{model.id} ({sizes})"
