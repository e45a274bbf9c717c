"""The kernels for a CUDA device keep what the plain passes keep; without a device they run in Triton's interpreter.

Tolerances. Sums are float64 over the same float32 terms in another order: 1e-12 of the sum of their sizes. An
exponential is off by two units in the last place on either side, so what is summed over exponentials differs by at most
2 x 2 x 2^-23 of the sum of the terms' sizes, 5e-7.
"""

import os
from importlib.util import find_spec

import pytest
import torch

from layerscope.readout.compiled import CompiledStatistics
from layerscope.readout.statistics_for import statistics_for
from layerscope.readout.vocabulary import Tile, TorchStatistics
from layerscope.unembedding import HeadTransform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
TRITON = find_spec("triton") is not None
if TRITON:
    from layerscope.readout.triton_statistics import TritonStatistics
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton comes with PyTorch for CUDA alone")

D_VOCAB, TILE, POSITIONS, GROUPS = 3000, 1300, 2, 3
N_ROWS = POSITIONS * GROUPS
ANSWERS = 2


def logits_of(seed: int) -> torch.Tensor:
    """Rows of very different spread; in one of them a single logit towers over the others, late."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N_ROWS, D_VOCAB, generator=generator)
    logits *= torch.tensor([0.1, 1.0, 5.0, 20.0, 100.0, 3.0])[:, None]
    logits[4, 2500] = 3000.0
    return logits


def kept(kind: type[TorchStatistics], logits, final, bias, twins) -> TorchStatistics:
    threshold, judged = torch.linspace(-2, 2, N_ROWS), torch.arange(N_ROWS) % ANSWERS
    statistics = kind(N_ROWS, 20, threshold.to(DEVICE), judged.to(DEVICE))
    for i, start in enumerate(range(0, D_VOCAB, TILE)):
        ids = slice(start, start + TILE)
        tile, of_final = (x[:, ids].contiguous().to(DEVICE) for x in (logits, final))
        same = torch.zeros(0, tile.shape[1], dtype=torch.bool) if twins is None else twins[:, ids].contiguous()
        own_bias = None if bias is None else bias[ids].to(DEVICE)
        own = of_final if own_bias is None else of_final - own_bias
        described = Tile(i, start, tile[:, :0].T, own_bias, of_final, own, of_final - 4.0, same.to(DEVICE))
        spare = (torch.empty_like(tile), torch.empty_like(tile))
        statistics.take_in(tile, described, slice(0, POSITIONS), HeadTransform(), *spare)
    return statistics


@needs_triton
@pytest.mark.parametrize("with_bias_and_twins", [False, True])
def test_the_kernels_keep_what_the_passes_keep(with_bias_and_twins):
    logits, final = logits_of(0), 3 * torch.randn(POSITIONS, D_VOCAB, generator=torch.Generator().manual_seed(1))
    bias = torch.linspace(-0.1, 0.1, D_VOCAB) if with_bias_and_twins else None
    twins = torch.arange(D_VOCAB).remainder(97).eq(torch.arange(ANSWERS)[:, None]) if with_bias_and_twins else None
    plain = kept(TorchStatistics, logits, final, bias, twins)
    fused = kept(TritonStatistics, logits, final, bias, twins)
    for name in ("peak", "low", "above"):
        assert torch.equal(getattr(plain, name), getattr(fused, name)), name
    for of_plain, of_fused in zip(plain.top(), fused.top(), strict=True):
        assert torch.equal(of_plain, of_fused)

    p = torch.softmax(logits.double(), -1)
    shifted = logits.double() - logits.double().amax(-1, keepdim=True)
    gap = shifted - (final.double() - 4.0).repeat(GROUPS, 1)
    normaliser = 1.0 + plain.tail.cpu()
    sizes = {
        "tail": (5e-7, plain.tail.cpu()),
        "tail_moment": (5e-7, plain.tail_moment.cpu().abs()),
        "difference": (5e-7, (p * gap.abs()).sum(-1) * normaliser),
        "sum_z": (1e-12, logits.double().abs().sum(-1) + D_VOCAB),
        "sum_zz": (1e-12, plain.sum_zz.cpu()),
        "sum_z_final": (1e-12, (logits.double().abs() * final.double().abs().repeat(GROUPS, 1)).sum(-1) + D_VOCAB),
    }
    for name, (tolerance, size) in sizes.items():
        apart = (getattr(plain, name) - getattr(fused, name)).abs().cpu()
        assert (apart <= tolerance * size + 1e-300).all(), name


@needs_triton
def test_their_entropy_is_that_of_the_whole_row():
    logits = logits_of(2)
    fused = kept(TritonStatistics, logits, logits[:POSITIONS], None, None)
    log_p = torch.log_softmax(logits.double(), -1)
    entropy = -(log_p.exp() * log_p).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    assert (fused.entropy_bits().cpu() - entropy).abs().max() < 1e-6
    assert (fused.kl_to_final_bits(fused.tail).cpu() >= 0).all()


@needs_triton
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in which the interpreter runs
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen(value):
    logits = logits_of(3)
    logits[1, 700] = value
    fused = kept(TritonStatistics, logits, logits[:POSITIONS], None, None)
    assert fused.finite().tolist() == [row != 1 for row in range(N_ROWS)]


def test_a_cpu_keeps_torchs_passes_or_compiled_loops():
    assert statistics_for(torch.device("cpu"), "torch") is TorchStatistics
    assert statistics_for(torch.device("cpu"), "compiled") is CompiledStatistics
