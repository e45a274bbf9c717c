"""Lenses that others fitted: the files of the tuned-lens library, and of Jacobian lenses."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lens_record import FittedModel, ImportedFrom, JacobianFit, JacobianLayer, LensRecord, TunedFit
from layerscope.lenses.foreign_files import ForeignWeights, neither, read_weights
from layerscope.lenses.lens_folder import jacobian_tensors, tuned_tensors
from layerscope.lenses.tuned_lens import Translator
from layerscope.stored.weight import StoredWeight

_Plain = str | int | float | bool | None
"""What may stand in a record as it is."""


def import_lens(
    path: Path,
    *,
    model: FittedModel,
    allow_pickle: bool,
    unembedding: StoredWeight | None = None,
    unfinished: bool = False,
) -> tuple[LensRecord, dict[str, Tensor]]:
    """Read a lens that another program saved, whichever of the two kinds it is.

    Args:
        path: its file, or a folder that holds it.
        model: the open model that it is taken to belong to.
        allow_pickle: open `.pt` files, of which only tensors and plain values are then accepted.
        unembedding: the model's head as stored, to compare with the hash that a tuned-lens file may give.
        unfinished: take a Jacobian lens that is still being fitted as far as it has come.

    Returns:
        Record and tensors for `write_fitted_lens`.

    Raises:
        LensError: it is neither, is a pickle that was not allowed, is damaged, or does not fit the model.
    """
    weights = read_weights(path, allow_pickle)
    if weights.is_unfinished and unfinished:
        return _jacobian(_as_far_as_it_has_come(weights), model, _UNFINISHED)
    if weights.is_jacobian:
        return _jacobian(weights, model, ())
    if weights.is_tuned:
        return _tuned(weights, model, unembedding)
    raise neither(weights)


def _tuned(
    weights: ForeignWeights, model: FittedModel, unembedding: StoredWeight | None
) -> tuple[LensRecord, dict[str, Tensor]]:
    """A lens that the tuned-lens library saved: `config.json` beside `params.pt` or `params.safetensors`.

    Its `translators[i]`, a linear layer that is added to the hidden state i, is our translator of layer i; a linear
    layer stores `[out, in]`, the transpose of our map.
    """
    config = _tuned_config(weights.path.parent / "config.json", model)
    has_bias = config.get("bias", True) is not False
    suffixes = ("weight", "bias") if has_bias else ("weight",)
    wanted = {f"{i}.{suffix}" for i in range(model.n_layers) for suffix in suffixes}
    odd = sorted(wanted.symmetric_difference(map(str, weights.content)))
    if odd:
        raise LensError(
            f"{weights.path}: by its config it has translators 0 to {model.n_layers - 1}, but `{odd[0]}` is "
            f"{'missing' if odd[0] in wanted else 'too much'}; take the lens from its source again."
        )
    d = model.d_model
    translators = []
    for i in range(model.n_layers):
        matrix = _tensor(weights, weights.content[f"{i}.weight"], f"{i}.weight", (d, d))
        bias = _tensor(weights, weights.content[f"{i}.bias"], f"{i}.bias", (d,)) if has_bias else torch.zeros(d)
        translators.append(Translator(bias, 1.0, full=matrix.T.contiguous()))
    notes = _hash_note(config.get("unembed_hash"), unembedding)
    base = config.get("base_model_name_or_path")
    if base and base != model.id:
        notes.append(f"Its own config says that it belongs to {base}; it was imported for {model.id}.")
    return _imported(weights, model, translators, _plain_parts(config), notes)


def _tuned_config(path: Path, model: FittedModel) -> dict[str, object]:
    """The lens' config, which has to fit the model."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise LensError(f"{path}: cannot be read ({error.strerror}); the tuned-lens library saves it too.") from error
    except (ValueError, RecursionError) as error:
        raise LensError(f"{path}: not JSON ({error}); it is damaged, take it from its source again.") from error
    if not isinstance(config, dict) or not {"d_model", "num_hidden_layers"} <= config.keys():
        raise LensError(f"{path}: no config of a tuned lens, which says `d_model` and `num_hidden_layers`.")
    kind = config.get("lens_type", "linear_tuned_lens")
    if kind != "linear_tuned_lens":
        raise LensError(f"{path}: a lens of type {kind}, but only linear_tuned_lens can be imported.")
    theirs, ours = (config["d_model"], config["num_hidden_layers"]), (model.d_model, model.n_layers)
    if theirs != ours:
        raise LensError(
            f"{path}: a lens of {theirs[1]} layers with d_model {theirs[0]}, but {model.id} has {ours[1]} layers with "
            f"d_model {ours[0]}; open the model that it was fitted to."
        )
    return config


def _hash_note(stated: object, unembedding: StoredWeight | None) -> list[str]:
    """What the hash of the head has to say; a difference is no proof, since it changes with the dtype too."""
    if stated is None:
        return ["Its config gives no hash of the unembedding, so that nothing shows which weights it was fitted to."]
    if unembedding is None:
        return ["The hash of the unembedding in its config was not compared with the model's."]
    if stated == unembedding_hash(unembedding):
        return []
    return [
        "The hash of the unembedding in its config is not this model's: it was fitted to other weights, or to these "
        "in another dtype."
    ]


def unembedding_hash(weight: StoredWeight) -> str:
    """The hash by which the tuned-lens library knows a head: sha256 of the text NumPy prints of it, one digit a number.

    Of a weight with over 1000 numbers that text shows the first and last three rows and columns alone, so only these
    are read.
    """
    whole = weight.numel() <= 1000
    rows, columns = (list(range(n)) if whole or n <= 6 else [0, 1, 2, 3, n - 3, n - 2, n - 1] for n in weight.shape)
    shown = weight.gather(torch.tensor(rows), torch.float32, torch.device("cpu"))[:, columns].numpy()
    with np.printoptions(threshold=1000 if whole else 0, edgeitems=3, linewidth=75, suppress=False, sign="-"):
        text = np.array_str(shown, precision=1)
    return hashlib.sha256(text.encode()).hexdigest()


_UNFINISHED = ("It was still being fitted: its sums were divided by the prompts that were done.",)
SCALE = 0.1, 10.0
"""Norm over the root of d_model that a matrix just before the last block may have: it is near one there, and a sum over
prompts is as many times as large."""


def _as_far_as_it_has_come(weights: ForeignWeights) -> ForeignWeights:
    """A checkpoint of a fit as if it were finished.

    Raises:
        LensError: it does not say how many prompts were done, or has no matrices.
    """
    sums, n_done = weights.content["jacobian_sum"], weights.content.get("n_done")
    if not isinstance(sums, Mapping) or not isinstance(n_done, int) or n_done < 1:
        raise LensError(
            f"{weights.path}: a checkpoint should map blocks to matrices in `jacobian_sum` and count its prompts in "
            f"`n_done`, but that is {n_done}; take the finished lens."
        )
    tensors = {block: value / n_done if isinstance(value, Tensor) else value for block, value in sums.items()}
    widths = {value.shape[-1] for value in tensors.values() if isinstance(value, Tensor) and value.ndim}
    kept = {
        key: weights.content[key] for key in ("source_layers", "target_layer", "skip_first") if key in weights.content
    }
    known: dict[object, object] = {"J": tensors, "n_prompts": n_done, "d_model": max(widths, default=None)}
    known.update(kept)
    return ForeignWeights(weights.path, known, weights.sha256)


def _jacobian(
    weights: ForeignWeights, model: FittedModel, notes: tuple[str, ...]
) -> tuple[LensRecord, dict[str, Tensor]]:
    """A Jacobian lens: a file with `J`, a matrix for each block, and `d_model`, `source_layers`, `n_prompts`.

    `J[b]` sends the column that leaves block b, our layer b + 1, to the residual after the last block; final norm and
    head follow. There is no bias and no temperature. Source: Gurnee et al., "Verbalizable Representations Form a
    Global Workspace in Language Models", 2026.
    """
    matrices = weights.content["J"]
    if not isinstance(matrices, Mapping) or not matrices:
        raise LensError(f"{weights.path}: `J` should map blocks to matrices, but it is {type(matrices).__name__}.")
    d = model.d_model
    d_model = weights.content.get("d_model")
    if d_model != d:
        raise LensError(f"{weights.path}: a lens with d_model {d_model}, but {model.id} has {d}; open its own model.")
    _check_keys(weights)
    blocks = _blocks(weights, matrices, model)
    jacobians = {i: _tensor(weights, blocks[i], f"J[{i - 1}]", (d, d)) for i in sorted(blocks)}
    layers = tuple(_jacobian_layer(i, matrix, weights) for i, matrix in jacobians.items())
    _check_scale(layers[-1], weights)
    target, n_prompts = weights.content.get("target_layer"), weights.content.get("n_prompts")
    fit = JacobianFit(
        method="imported",
        target_layer=target + 1 if isinstance(target, int) else None,
        seq_len=None,
        first_position=None,
        positions_rule=None,
        n_prompts=n_prompts if isinstance(n_prompts, int) else None,
        prompts_sha256=None,
        probe=None,
        transformers=None,
        n_held_out=None,
        layers=layers,
    )
    said = "" if fit.target_layer is not None else " The file does not say to which block its matrices lead."
    notes = (
        *notes,
        "Average Jacobians show what a state disposes the model to say from here on, and are no read-out of the next "
        f"token.{said}",
        "It has no matrix for layer 0, which is read as by the logit lens.",
    )
    stated = _plain_parts({key: value for key, value in weights.content.items() if key not in ("J", "source_layers")})
    imported = ImportedFrom(
        format="jacobian-lens", name=_name("jacobian-lens", weights.path), sha256=weights.sha256, stated=stated
    )
    record = LensRecord.new("jacobian", model, jacobian=fit, imported=imported, notes=notes)
    return record, jacobian_tensors(jacobians)


def _jacobian_layer(layer: int, matrix: Float[Tensor, "d_model d_model"], weights: ForeignWeights) -> JacobianLayer:
    if not bool(torch.isfinite(matrix).all()):
        raise LensError(
            f"{weights.path}: `J[{layer - 1}]` holds values that are not finite; take it from its source again."
        )
    norm = float(matrix.double().norm()) / len(matrix) ** 0.5
    unknown = dict.fromkeys(
        ("beta", "sigma", "standard_error", "logit_bits", "jacobian_bits", "logit_top1", "jacobian_top1")
    )
    return JacobianLayer.model_validate({"layer": layer, "norm": norm, **unknown})


def _check_scale(last: JacobianLayer, weights: ForeignWeights) -> None:
    """Refuse a sum that was published as a mean, or matrices of nothing.

    Raises:
        LensError: the last matrix has another size than a mean Jacobian of a single block.
    """
    least, most = SCALE
    if not least <= last.norm <= most:
        raise LensError(
            f"{weights.path}: just before the last block a mean Jacobian is near the identity, whose norm over the "
            f"root of d_model is 1, but that of `J[{last.layer - 1}]` is {last.norm:.3g} (a sum over prompts is as "
            "many times as large); take the finished lens."
        )


def _check_keys(weights: ForeignWeights) -> None:
    """Refuse what would have to be applied beside `J`."""
    known = {"J", "n_prompts", "source_layers", "d_model", "metadata", "provenance", "target_layer", "skip_first"}
    for key in sorted(weights.content.keys() - known, key=str):
        if not isinstance(weights.content[key], str | int | float | None):
            raise LensError(
                f"{weights.path}: it holds `{key}` too, and what that does to a reading is not known; only lenses "
                "that are their matrices `J` alone can be imported."
            )


def _blocks(weights: ForeignWeights, matrices: Mapping[object, object], model: FittedModel) -> dict[int, object]:
    """The matrices by our layers: what leaves block b is layer b + 1."""
    for block in matrices:
        if not isinstance(block, int) or not 0 <= block < model.n_layers - 1:
            raise LensError(
                f"{weights.path}: it has a matrix for block {block}, but those of {model.id} before the last are 0 to "
                f"{model.n_layers - 2}; open the model that it was fitted to."
            )
    absent = [block for block in range(model.n_layers - 1) if block not in matrices]
    listed = weights.content.get("source_layers", list(matrices))
    if not isinstance(listed, list | tuple) or set(listed) != set(matrices):
        raise LensError(f"{weights.path}: `source_layers` lists other blocks than `J` has; it is damaged.")
    if absent:
        raise LensError(
            f"{weights.path}: it has no matrix for block {absent[0]}, but a Jacobian lens of {model.id} has one for "
            f"every block from 0 to {model.n_layers - 2}; open the model that it was fitted to, or take the whole lens."
        )
    return {block + 1: matrix for block, matrix in matrices.items() if isinstance(block, int)}


def _tensor(weights: ForeignWeights, value: object, name: str, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
        came = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise LensError(f"{weights.path}: `{name}` should be floating point of shape {shape}, but it is {came}.")
    return value.detach().float()


def _plain_parts(content: Mapping[object, object] | Mapping[str, object]) -> dict[str, _Plain]:
    """Words and numbers, one level deep: what may stand in a record."""
    plain: dict[str, _Plain] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            inner = {f"{key}.{name}": part for name, part in value.items()}
            plain.update({name: part for name, part in inner.items() if isinstance(part, _Plain)})
        elif isinstance(value, _Plain):
            plain[str(key)] = value
    return plain


def _imported(
    weights: ForeignWeights,
    model: FittedModel,
    translators: list[Translator],
    stated: dict[str, _Plain],
    notes: list[str],
) -> tuple[LensRecord, dict[str, Tensor]]:
    fit = TunedFit(
        placement="raw",
        rank=model.d_model,
        temperatures=(1.0,) * (model.n_layers + 1),
        first_position=None,
        n_moments=None,
        n_refined=None,
        n_select=None,
        n_held_out=None,
        layers=(),
        skip_layers=(),
    )
    name = _name("tuned-lens", weights.path)
    imported = ImportedFrom(format="tuned-lens", name=name, sha256=weights.sha256, stated=stated)
    record = LensRecord.new("tuned", model, tuned=fit, imported=imported, notes=tuple(notes))
    return record, tuned_tensors(translators)


def _name(kind: Literal["tuned-lens", "jacobian-lens"], path: Path) -> str:
    """Of a tuned lens, whose files are all called alike, the folder; a Jacobian lens is one file."""
    return path.name if kind == "jacobian-lens" else path.parent.resolve().name
