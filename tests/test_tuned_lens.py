"""The tuned lens: what its map does, and that a lens that was never fitted is the logit lens to the bit.

Tolerances. Float32 products of at most 16 terms of sizes below 5: 16 x 2^-24 x 5 = 5e-6, and the norm before them;
1e-5.
"""

import math
from dataclasses import replace

import pytest
import torch

from layerscope.bundled import BUNDLED
from layerscope.errors import LensError
from layerscope.lenses import LogitLens, RawLens, Translator, TunedLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.residuals import Residuals
from layerscope.unembedding import Norm

D = 6


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NORM = Norm("layer", 1 + 0.1 * _random(D, seed=1), 0.1 * _random(D, seed=2), 1e-5, "model.norm")
FULL = Translator(_random(D, seed=3), 1.7, full=_random(D, D, seed=4))
THIN = Translator(_random(D, seed=5), 0.6, down=_random(D, 2, seed=6), up=_random(2, D, seed=7))
PLAIN = Translator(_random(D, seed=8), 1.1)
RESIDUAL = _random(2, 3, D, seed=9)


def _by_hand(vector: list[float], translator: Translator) -> list[float]:
    """x + x A + c with loops, in double precision."""
    if translator.full is not None:
        matrix = translator.full.tolist()
    elif translator.down is not None and translator.up is not None:
        down, up = translator.down.tolist(), translator.up.tolist()
        matrix = [[sum(down[i][r] * up[r][j] for r in range(len(up))) for j in range(D)] for i in range(D)]
    else:
        matrix = [[0.0] * D for _ in range(D)]
    mapped = [sum(vector[i] * matrix[i][j] for i in range(D)) for j in range(D)]
    return [vector[j] + mapped[j] + float(translator.bias[j]) for j in range(D)]


def _layer_norm(vector: list[float]) -> list[float]:
    mean = sum(vector) / D
    spread = math.sqrt(sum((x - mean) ** 2 for x in vector) / D + 1e-5)
    return [(vector[j] - mean) / spread * float(NORM.gain[j]) + float(NORM.bias[j]) for j in range(D)]


@pytest.mark.parametrize("translator", [FULL, THIN, PLAIN], ids=["full", "thin", "bias"])
def test_a_translator_adds_its_map_and_its_bias_to_a_row(translator: Translator):
    found = translator(RESIDUAL)
    for i in range(2):
        for j in range(3):
            assert found[i, j].tolist() == pytest.approx(_by_hand(RESIDUAL[i, j].tolist(), translator), abs=1e-5)


def test_with_placement_raw_the_map_stands_before_the_norm_and_the_temperature_after_it():
    lens = TunedLens(NORM, (FULL, THIN), "raw")
    for layer, translator in enumerate((FULL, THIN)):
        vector = RESIDUAL[1, 2].tolist()
        wanted = [x / translator.temperature for x in _layer_norm(_by_hand(vector, translator))]
        assert lens(RESIDUAL, layer)[1, 2].tolist() == pytest.approx(wanted, abs=1e-5)


def test_with_placement_normed_the_map_stands_after_the_norm():
    lens = TunedLens(NORM, (FULL, THIN), "normed")
    for layer, translator in enumerate((FULL, THIN)):
        vector = RESIDUAL[0, 1].tolist()
        wanted = [x / translator.temperature for x in _by_hand(_layer_norm(vector), translator)]
        assert lens(RESIDUAL, layer)[0, 1].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("placement", ["raw", "normed"])
def test_after_the_last_block_it_is_the_logit_lens(placement):
    lens = TunedLens(NORM, (FULL, THIN), placement)
    assert torch.equal(lens(RESIDUAL, 2), LogitLens(NORM)(RESIDUAL, 2))


def test_without_a_final_norm_the_row_is_the_mapped_residual():
    lens = TunedLens(None, (FULL,), "raw")
    assert torch.equal(lens(RESIDUAL, 0), FULL(RESIDUAL) / 1.7)
    assert torch.equal(lens(RESIDUAL, 1), RESIDUAL)


def test_rotation_only_is_the_lens_without_its_temperatures():
    whole = TunedLens(NORM, (FULL, THIN), "raw")
    without = TunedLens(NORM, (FULL, THIN), "raw", variant="rotation_only")
    assert torch.allclose(without(RESIDUAL, 0), whole(RESIDUAL, 0) * 1.7)
    assert whole.temperatures == (1.7, 0.6, 1.0)
    assert without.temperatures == (1.0, 1.0, 1.0)


def test_bias_only_keeps_bias_and_temperature():
    mean = _random(D, seed=9)
    lens = TunedLens(NORM, (FULL, replace(THIN, mean=mean), PLAIN), "raw", variant="bias_only")
    assert THIN.down is not None and THIN.up is not None
    shift = THIN.bias + mean @ THIN.down @ THIN.up  # what the map adds to the mean input, to every input
    assert torch.allclose(lens(RESIDUAL, 1), NORM(RESIDUAL + shift) / 0.6, atol=1e-6)
    assert torch.allclose(lens(RESIDUAL, 2), NORM(RESIDUAL + PLAIN.bias) / 1.1)
    assert lens.temperatures == (1.7, 0.6, 1.1, 1.0)


def test_bias_only_is_unknown_without_the_mean_input():
    lens = TunedLens(NORM, (FULL, PLAIN), "raw", variant="bias_only")
    assert not lens.has_means
    with pytest.raises(LensError, match="mean inputs"):
        lens(RESIDUAL, 0)
    assert TunedLens(NORM, (PLAIN,), "raw").has_means


def test_the_source_says_which_map_stood_where():
    lens = TunedLens(NORM, (FULL, THIN, PLAIN), "raw")
    assert [lens.source(layer) for layer in range(4)] == [
        "tuned (full rank) before model.norm",
        "tuned (rank 2) before model.norm",
        "tuned (bias only) before model.norm",
        "model.norm",
    ]
    assert TunedLens(NORM, (THIN,), "normed").source(0) == "tuned (rank 2) after model.norm"
    assert (
        TunedLens(NORM, (THIN,), "raw", variant="rotation_only").source(0).startswith("tuned (rank 2, no temperature)")
    )
    centred = replace(THIN, mean=torch.zeros(D))
    assert TunedLens(NORM, (centred,), "raw", variant="bias_only").source(0) == "tuned (bias only) before model.norm"
    assert [TunedLens(None, (THIN,), "raw").source(layer) for layer in (0, 1)] == ["tuned (rank 2)", "raw"]


def test_the_norm_of_the_map_is_that_of_the_product():
    assert PLAIN.map_norm == 0
    assert FULL.map_norm == pytest.approx(math.sqrt(sum(x * x for row in FULL.full.tolist() for x in row)))
    product = THIN.down.double() @ THIN.up.double()
    assert THIN.map_norm == pytest.approx(float(product.square().sum().sqrt()))


def test_the_rank_of_a_translator():
    assert (FULL.rank, THIN.rank, PLAIN.rank) == (D, 2, 0)


@pytest.mark.parametrize("rank", [0, 2, D])
def test_a_fresh_translator_changes_nothing(rank: int):
    fresh = Translator.fresh(D, rank, torch.Generator().manual_seed(0))
    assert (fresh.rank, fresh.temperature, fresh.map_norm) == (rank, 1.0, 0.0)
    assert torch.equal(fresh(RESIDUAL), RESIDUAL)


def test_a_fresh_product_has_a_random_factor_of_the_stated_spread_and_one_that_receives_a_gradient():
    fresh = Translator.fresh(256, 64, torch.Generator().manual_seed(0))
    # 16384 normal draws: the sample's standard deviation is within 3 % of the true one far beyond five sigma
    assert float(fresh.down.std()) == pytest.approx(1 / 16, rel=0.03)
    up = fresh.up.clone().requires_grad_()
    x = _random(8, 256)
    Translator(fresh.bias, 1.0, down=fresh.down, up=up)(x).square().sum().backward()
    assert float(up.grad.abs().max()) > 0


def test_fresh_translators_follow_their_generator():
    one, same, other = (Translator.fresh(D, 2, torch.Generator().manual_seed(seed)).down for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.fixture(scope="module")
def bundled() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def residuals(bundled: CausalLM) -> Residuals:
    ids = torch.randint(5, bundled.d_vocab, (2, 12), generator=torch.Generator().manual_seed(0)).tolist()
    return bundled.forward(ids)


@pytest.mark.parametrize("variant", ["full", "rotation_only", "bias_only"])
@pytest.mark.parametrize("placement", ["raw", "normed"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_fresh_tuned_lens_decodes_like_the_logit_lens_to_the_bit(bundled, residuals, share, placement, variant):
    d_model, n_layers = residuals.values.shape[-1], residuals.n_layers
    generator = torch.Generator().manual_seed(316)
    fresh = tuple(Translator.fresh(d_model, int(share * d_model), generator) for _ in range(n_layers))
    lens = TunedLens(bundled.final_norm, fresh, placement, variant=variant)
    logit = LogitLens(bundled.final_norm)
    for layer in range(n_layers + 1):
        residual = residuals.values[:, layer]
        assert float(residual.abs().max()) > 0
        assert torch.equal(lens(residual, layer), logit(residual, layer))
        assert not torch.equal(lens(residual, layer), RawLens()(residual, layer))


def test_moving_a_lens_moves_its_translators():
    moved = TunedLens(NORM, (FULL, THIN, PLAIN), "raw").to("meta")
    assert {part.device.type for one in moved.translators for part in one.parts().values()} == {"meta"}
    assert [one.rank for one in moved.translators] == [D, 2, 0]
    assert moved.temperatures == (1.7, 0.6, 1.1, 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(LensError, match="should be a positive number, but it is"):
        Translator(torch.zeros(D), temperature)


@pytest.mark.parametrize("given", [("down",), ("up",), ("full", "down", "up")])
def test_a_linear_part_is_whole_and_one_of_two_forms(given: tuple[str, ...]):
    parts = {"full": FULL.full, "down": THIN.down, "up": THIN.up}
    with pytest.raises(LensError, match="`full`, or `down` with `up`, or absent"):
        Translator(torch.zeros(D), 1.0, **{name: parts[name] for name in given})


@pytest.mark.parametrize("rank", [-1, D + 1])
def test_a_rank_beyond_the_width_is_refused(rank: int):
    with pytest.raises(LensError, match=f"between 0 and d_model = {D}, but {rank}"):
        Translator.fresh(D, rank, torch.Generator())
