"""How far right answers may lie apart: the error bounds from which the tests' tolerances are made.

A product of n terms depends on the order of its sum, and that on the processor, its vector width, fused multiply-adds,
the number of threads and the library (MKL, OpenBLAS, Accelerate). Whatever the order, a sum of n products is off by at
most `n u sum |x_i w_i|`, where u is the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
Everything here follows from that: what an error of the logits does to a probability, an entropy, a divergence, and
what dividing by a temperature does to the error. Tests compare float32 with a float64 reference, whose own error is
nothing beside it; where both sides are float32, they take twice the bound.

Bounds hold for the worst case and are ten to a hundred times what is seen. A fault of the code under test (a missing
norm, the wrong layer, a bias left out, half precision where single is due) is a thousand times larger still.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerscope.unembedding import HeadTransform, Unembedding

FLOAT32 = 2.0**-24
"""Unit roundoff: the largest relative error of one operation in float32."""
SINGLE = 16 * FLOAT32
"""Relative error of a handful of float32 operations on numbers that do not cancel, an exponential (4 units) included:
1e-6."""
DOUBLE = 1e-12
"""Relative error of float64 sums of at most a thousand terms whose condition is below ten: 1000 x 10 x 2^-53."""
PUBLISHED = 1e-4
"""Relative, of what is read from the reference model's logits, between our pass and the published one, both float32.

What the product promises, and no bound: the passes seen lie up to 1e-5 apart. By `of_residual` a logit of the model (8
blocks, width 128) has a standard deviation of 6e-6 of its size, and a probability moves by as much as its logit.
"""


def of_sum(n: int, size: float, unit: float = FLOAT32) -> float:
    """Largest error of a sum of `n` products whose absolute values add up to `size`."""
    return n * unit * size


def of_product(x: Tensor, weight: Tensor) -> float:
    """Largest error of any entry of `x @ weight.T` in float32, the final rounding included."""
    size = (x.double().abs().reshape(-1, x.shape[-1]) @ weight.double().abs().T).max()
    return of_sum(x.shape[-1] + 1, float(size))


def of_residual(n_blocks: int, d_model: int) -> float:
    """Relative error of a residual stream in float32, in units of its largest entry, between two implementations.

    The worst case grows with the product of all blocks' norms and says nothing. Roundings have either sign, though: a
    block makes some ten dependent products (norms, attention's four, the MLP's three) of `d_model` terms, which leave
    `sqrt(10 n_blocks d_model) u` as standard deviation. Ten of those cover the many entries, and both implementations.
    """
    return 10 * math.sqrt(10 * n_blocks * d_model) * FLOAT32


@dataclass(frozen=True)
class ReadoutError:
    """What float32 logits that are off by at most `logit` do to what is read from them."""

    logit: float
    """Largest error of a logit, of its exponential's argument and of the exponential itself."""
    size: float
    """Largest absolute value of a logit."""

    @property
    def log_prob(self) -> float:
        """Absolute, of a log-probability: its own logit moves, and the log-sum-exp by no more than the largest."""
        return 2 * self.logit

    @property
    def relative(self) -> float:
        """Of a probability, and of an entropy, whose slope by logit i is `-p_i (log p_i + H)`, adding up to 2 H."""
        return math.expm1(2 * self.logit) + SINGLE

    @property
    def nats(self) -> float:
        """Absolute, of a divergence in nats.

        With `t <= 1` the total variation, KL(p || q) moves by `2 e (KL + 2 t)` with p's logits and by `2 e t` with q's:
        6 e beside the part that `relative` covers. Its terms `p (z - z_final)` are rounded to u of up to twice the
        size.
        """
        return 6 * self.logit + 4 * FLOAT32 * self.size

    @property
    def bits(self) -> float:
        """The same in bits."""
        return self.nats / math.log(2)

    def __mul__(self, factor: float) -> "ReadoutError":
        """The error of this many float32 sides, or over an inverse temperature."""
        return ReadoutError(self.logit * factor, self.size * factor)


def of_logits(logits: Tensor, temperature: float = 1.0) -> ReadoutError:
    """Error of what is read from logits that are given to the last bit: only shifts and exponentials round."""
    size = float(logits.abs().max()) / temperature
    return ReadoutError(4 * FLOAT32 * (size + 1), size)


def of_readout(
    head: Unembedding, *rows: Tensor, transform: HeadTransform | None = None, temperature: float = 1.0
) -> ReadoutError:
    """Error of what is read in float32 from rows through a head; at a temperature a logit's error is that many times
    larger or smaller."""
    every = torch.cat([some.reshape(-1, some.shape[-1]) for some in rows]).double().abs()
    n = every.shape[-1] + 2
    if head.projection is not None:
        every = every @ head.projection.double().abs().T
        n += every.shape[-1]
    sizes = every @ head.weight.tensor.double().abs().T
    if head.bias is not None:
        sizes = sizes + head.bias.double().abs()
    transform = head.transform if transform is None else transform
    size = float(sizes.max()) * abs(transform.scale or 1.0)
    product = of_sum(n, size)
    if transform.softcap is not None:  # its slope is at most one, and it rounds its own result
        size = min(size, transform.softcap)
    return ReadoutError((product + 4 * FLOAT32 * (size + 1)) / temperature, size / temperature)


def of_cosine(error: float, *vectors: Tensor) -> NDArray[np.float64]:
    """Error of the cosine of vectors whose entries are off by at most `error`: the angle each turns, and its rounding.

    Each centred vector is found from sums of squares that are `n u` off, which counts as often as the mean outweighs
    what is left.
    """
    total = np.zeros(())
    for vector in vectors:
        x = vector.double()
        n, norm = x.shape[-1], x.norm(dim=-1).numpy()
        total = total + 2 * math.sqrt(n) * error / norm + 2 * n * FLOAT32
    return total


def same_order(ids: object, values: Tensor, error: float) -> bool:
    """Whether `ids` list the largest of `values`, largest first, but for such as an `error` in each may confuse."""
    listed = torch.as_tensor(ids)
    due = values.sort(dim=-1, descending=True).values[..., : listed.shape[-1]]
    found = values.gather(-1, listed)
    distinct = all(len(set(row)) == len(row) for row in listed.reshape(-1, listed.shape[-1]).tolist())
    return distinct and bool(((found - due).abs() <= 2 * error).all())


def same_rank(rank: int, value: float, values: Tensor, error: float) -> bool:
    """Whether `rank` is one more than how many of `values` are above the one given, each off by at most `error`."""
    least, most = (int((values > value + shift).sum()) for shift in (2 * error, -2 * error))
    return 1 + least <= rank <= most  # among those above, give or take, is the value itself
