"""Lenses that are made of a fitted one: its weights shuffled, its maps held to a rank."""

import pytest
import torch

from layerscope.lenses.derived import of_rank, shuffled
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.logit_lens import LogitLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import Translator, TunedLens

D = 6


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tuned(full: torch.Tensor, mean: torch.Tensor | None = None) -> TunedLens:
    return TunedLens(None, (Translator(drawn(D, seed=9), 1.5, full=full, mean=mean),), "raw")


def added(lens, rows: torch.Tensor) -> torch.Tensor:
    """What a lens without a norm adds to what it reads, temperatures aside."""
    scale = 1.5 if isinstance(lens, TunedLens) else 1.0
    return lens(rows, 0) * scale - rows


@pytest.mark.parametrize(
    "lens",
    [
        tuned(drawn(D, D, seed=1)),
        TunedLens(None, (Translator(drawn(D), 1.5, down=drawn(D, 2, seed=1), up=drawn(2, D, seed=2)),), "raw"),
        JacobianLens(None, (drawn(D, D, seed=3),)),
        PrismLens(LogitLens(None), torch.zeros(D), torch.ones(D), 0.0, torch.linalg.qr(drawn(D, D, seed=4)).Q),
    ],
    ids=["full", "thin", "jacobian", "prism"],
)
def test_shuffling_writes_what_a_map_adds_to_other_features_and_changes_nothing_else(lens):
    rows, null = drawn(5, D, seed=5), shuffled(lens, 7)
    before, after = added(lens, rows), added(null, rows)
    assert null.name == f"{lens.name}_shuffled"
    assert not torch.allclose(before, after, atol=0.1)
    assert torch.allclose(before.sort(-1).values, after.sort(-1).values, atol=1e-5)
    assert torch.equal(added(shuffled(lens, 7), rows), after)
    assert not torch.equal(added(shuffled(lens, 8), rows), after)


def test_of_a_map_that_is_the_identity_nothing_is_shuffled():
    lens = JacobianLens(None, (torch.eye(D), None))
    rows = drawn(5, D)
    null = shuffled(lens, 7)
    assert torch.equal(null(rows, 0), rows) and torch.equal(null(rows, 1), rows)


def test_a_map_is_held_to_a_rank_by_leaving_out_its_least_singular_values():
    left, right = (torch.linalg.qr(drawn(D, D, seed=seed)).Q for seed in (1, 2))
    sizes = torch.tensor([9.0, 7.0, 5.0, 0.3, 0.2, 0.1])
    lens = of_rank(tuned(left @ torch.diag(sizes) @ right.T), 3)
    assert lens is not None and lens.name == "tuned_rank3" and lens.translators[0].rank == 3
    wanted = left[:, :3] @ torch.diag(sizes[:3]) @ right[:, :3].T
    rows = drawn(5, D, seed=3)
    assert torch.allclose(lens(rows, 0) * 1.5, rows + rows @ wanted + drawn(D, seed=9), atol=1e-5)


def test_what_a_thinner_map_leaves_out_stays_at_the_mean_input():
    mean = drawn(D, seed=4)
    whole = tuned(drawn(D, D, seed=1), mean)
    thin = of_rank(whole, 2)
    assert thin is not None
    assert torch.allclose(thin(mean[None], 0), whole(mean[None], 0), atol=1e-5)
    assert not torch.allclose(thin(2 * mean[None], 0), whole(2 * mean[None], 0), atol=1e-2)


def test_a_lens_that_is_no_larger_makes_none():
    thin = TunedLens(None, (Translator(drawn(D), 1.0, down=drawn(D, 2), up=drawn(2, D)),), "raw")
    assert of_rank(thin, 2) is None and of_rank(tuned(drawn(D, D)), D) is None
    assert of_rank(thin, 1) is not None
