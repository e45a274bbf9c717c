"""Answer rows of the Jacobian lens: at every layer, for each token that a suite asks about, the row that reads it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lens_record import ANSWER_ROWS_FORMAT, ANSWER_ROWS_VERSION, AnswerRowsRecord, FittedModel
from layerscope.lenses.lens_folder import mismatch
from layerscope.lenses.recorded_folder import Layout

RECORD_NAME = "answers.json"
WEIGHTS_NAME = "answers.safetensors"
VECTORS, DIRECTIONS = "vectors", "directions"
LAYOUT = Layout(
    "lens of answer rows",
    RECORD_NAME,
    WEIGHTS_NAME,
    ANSWER_ROWS_FORMAT,
    (ANSWER_ROWS_VERSION,),
    AnswerRowsRecord,
)


@dataclass(frozen=True)
class AnswerRows:
    """`J_l^T u_a` for each answer's token a, where `J_l` is the Jacobian lens' matrix, computed exactly.

    `u_a = gain * (w_a - mean over the answers of w)`, with `w` the rows of the unembedding, the final norm's gain, and
    a layer norm's centring: what reads the token in front of the final norm. Softmax does not see what all logits have
    in common, so one answer means something against others only; every pair is the difference of two rows.
    """

    record: AnswerRowsRecord
    vectors: Float[Tensor, "layer answer d_model"]
    """Of layers 0 to n_layers - 1, float32, on the CPU."""
    directions: Float[Tensor, "answer d_model"]
    """`u_a`, which are those of layer n_layers; float32."""
    folder: Path

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answers' tokens, in the order of the vectors."""
        return tuple(answer.token_id for answer in self.record.answers)

    def of_layer(self, layer: int) -> Float[Tensor, "answer d_model"]:
        """The vectors of a layer, 0 to n_layers.

        Raises:
            LensError: there is no such layer.
        """
        n_layers = len(self.vectors)
        if not 0 <= layer <= n_layers:
            raise LensError(f"{self.record.model.id} has layers 0 to {n_layers}, but {layer} was asked for.")
        return self.directions if layer == n_layers else self.vectors[layer]

    def tracked(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows answer"]:
        """`u_a . J_l h`, the tracked logits of residuals of a layer; float32.

        They are known up to the scale of the final norm, a positive number that differs from state to state, and
        without what biases add. So at one state they order the answers; they are no logits that could be compared
        between states, and tell neither ranks among the vocabulary nor probabilities.

        Raises:
            LensError: there is no such layer.
        """
        return residual.float() @ self.of_layer(layer).to(residual.device).T

    def refuse_other(self, model: FittedModel) -> None:
        """Refuse a model that the rows were not computed from.

        Raises:
            LensError: why it is another.
        """
        reason = mismatch(self.record.model, model)
        if reason:
            raise LensError(f"{self.folder} does not belong to {model.id}: it is a lens {reason}.")
        if self.record.model.tokenizer_sha256 != model.tokenizer_sha256:
            raise LensError(
                f"{self.folder} has the weights of {model.id}, but its answers are tokens of another tokenizer; open "
                "the model with the tokenizer that they were found with, or fit the rows again."
            )


def write_answer_rows(folder: Path, record: AnswerRowsRecord, vectors: Tensor, directions: Tensor) -> AnswerRows:
    """Write a folder of answer rows, whole or not at all.

    Args:
        folder: is made, with the folders above it.
        record: its `weights_sha256` is filled in, whatever it says.
        vectors: `[layer, answer, d_model]`.
        directions: `[answer, d_model]`.

    Raises:
        LensError: `folder` is already there; record and tensors do not fit each other; the place cannot be written to.
    """
    tensors = {VECTORS: vectors, DIRECTIONS: directions}
    _check(record, tensors, str(folder))
    written, packed = LAYOUT.write(folder, record, tensors)
    return AnswerRows(written, packed[VECTORS], packed[DIRECTIONS], folder)


def read_answer_rows(folder: Path | str) -> AnswerRows:
    """Read a folder of answer rows, every byte of it, to compare their hash.

    Raises:
        LensError: what is missing, of another version, damaged, or contradicts the record.
    """
    place = Path(folder)
    record = LAYOUT.read_record(place)
    tensors = LAYOUT.read_tensors(place, record, verify=True)
    _check(record, tensors, str(place / WEIGHTS_NAME))
    return AnswerRows(record, tensors[VECTORS], tensors[DIRECTIONS], place)


def find_answer_rows(folder: Path) -> list[tuple[Path, AnswerRowsRecord]]:
    """The folders of answer rows in a folder and directly below it, by name; their weights are not read.

    Raises:
        LensError: a record that cannot be read.
    """
    below = sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    places = [place for place in (folder, *below) if (place / RECORD_NAME).exists()]
    return [(place, LAYOUT.read_record(place)) for place in places]


def _check(record: AnswerRowsRecord, tensors: dict[str, Tensor], where: str) -> None:
    n_layers, d_model, n_answers = record.model.n_layers, record.model.d_model, len(record.answers)
    shapes = {VECTORS: (n_layers, n_answers, d_model), DIRECTIONS: (n_answers, d_model)}
    if tensors.keys() != shapes.keys():
        raise LensError(
            f"{where}: answer rows are the tensors {' and '.join(shapes)}, but here are "
            f"{', '.join(sorted(tensors)) or 'none'}; fit the lens again."
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            came = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise LensError(
                f"{where}: by its record `{name}` is torch.float32 of shape {shape}, but it is {came}; fit the lens "
                "again."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise LensError(f"{where}: `{name}` holds values that are not finite; fit the lens again.")
    if [layer.layer for layer in record.layers] != list(range(n_layers)):
        raise LensError(f"{where}: the record should tell of layers 0 to {n_layers - 1} in turn; fit the lens again.")
    if any(len(layer.sigma) != n_answers or len(layer.standard_error) != n_answers for layer in record.layers):
        raise LensError(f"{where}: the record should have {n_answers} spreads a layer; fit the lens again.")
