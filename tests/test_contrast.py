"""Two distributions side by side equal a dense float64 computation, whatever the tiles, floors and transforms."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.errors import LensError
from layerscope.readout.contrast import ROWS_PER_VISIT, Contrast, Normaliser, contrast
from layerscope.readout.decode import Question, decode
from layerscope.unembedding import HeadTransform, Unembedding
from properties import examples
from rounding import DOUBLE, FLOAT32, of_readout

NAMES = [field.name for field in fields(Contrast)]
PAIR = NAMES[:4]
TEMPERED = NAMES[4]
FLOOR = 1e-30
SEEDS = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.usefixtures("engine")


def _random(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _logits(rows: Tensor, head: Unembedding, transform: HeadTransform | None = None) -> Tensor:
    """All transformed logits of all rows in float64."""
    transform = head.transform if transform is None else transform
    x = rows.double()
    if head.projection is not None:
        x = x @ head.projection.double().T
    z = x @ head.weight.tensor.double().T
    if head.bias is not None:
        z = z + head.bias.double()
    z = z * (transform.scale or 1.0)
    return z if transform.softcap is None else transform.softcap * torch.tanh(z / transform.softcap)


def _normaliser(logits: Tensor) -> Normaliser:
    return Normaliser(logits.logsumexp(-1), logits.amax(-1))


def _kl_bits(log_p: Tensor, log_q: Tensor) -> Tensor:
    """By the definition: both log-probabilities floored, the sum over p itself."""
    floored_p, floored_q = (x.clamp_min(math.log(FLOOR)) for x in (log_p, log_q))
    return (log_p.exp() * (floored_p - floored_q)).sum(-1) / math.log(2)


def _dense(norm: Tensor, raw: Tensor, final: Tensor, temperatures: Tensor) -> dict[str, np.ndarray]:
    """The same five numbers from whole rows of transformed float64 logits."""
    log_p, log_q, log_f = (z.log_softmax(-1) for z in (norm, raw, final))
    p, q = log_p.exp(), log_q.exp()
    mean = (p + q) / 2
    to_mean = (torch.special.xlogy(x, x / mean.clamp_min(1e-320)).sum(-1) / math.log(2) for x in (p, q))
    tempered = (norm / temperatures.double()[:, None, None]).log_softmax(-1)
    return {
        "kl_norm_vs_raw_bits": _kl_bits(log_p, log_q).numpy(),
        "kl_raw_to_norm_bits": _kl_bits(log_q, log_p).numpy(),
        "js_divergence_bits": (sum(to_mean) / 2).numpy(),
        "l1_prob_diff": (p - q).abs().sum(-1).numpy(),
        "kl_to_final_bits_norm_temp": _kl_bits(tempered, log_f).numpy(),
    }


def _of_logits(
    norm: Tensor, raw: Tensor | None, final: Tensor, temperatures: Tensor | None = None, **more: object
) -> Contrast:
    """Contrast of logits given to the last bit: every row picks out its own coordinate of the head."""
    d_vocab = norm.shape[-1]
    every = torch.cat([z.reshape(-1, d_vocab) for z in (norm, final, raw) if z is not None])
    picks = torch.eye(len(every))
    n, n_final = norm.shape[0] * norm.shape[1], len(final)
    return contrast(
        picks[:n].view(*norm.shape[:2], -1),
        None if raw is None else picks[n + n_final :].view(*raw.shape[:2], -1),
        picks[n : n + n_final],
        _normaliser(norm.double()),
        None if raw is None else _normaliser(raw.double()),
        _normaliser(final.double()),
        Unembedding.of(every.T.contiguous(), None),
        temperatures=temperatures,
        **more,
    )


def _asked(
    norm: Tensor,
    raw: Tensor,
    final: Tensor,
    head: Unembedding,
    temperatures: Tensor | None = None,
    lens_transform: HeadTransform | None = None,
    **more: object,
) -> Contrast:
    """Contrast of rows, with normalisers from whole rows of logits."""
    return contrast(
        norm,
        raw,
        final,
        _normaliser(_logits(norm, head, lens_transform)),
        _normaliser(_logits(raw, head, lens_transform)),
        _normaliser(_logits(final, head)),
        head,
        temperatures=temperatures,
        lens_transform=lens_transform,
        **more,
    )


def _coldest(name: str, temperature: float) -> float:
    """The lowest temperature that a number is read at."""
    return min(1.0, temperature) if name == TEMPERED else 1.0


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"transform": HeadTransform(scale=0.25)},
    "softcap": {"transform": HeadTransform(softcap=5.0)},
    "all": {"bias": True, "projection": True, "transform": HeadTransform(scale=2.0, softcap=7.0)},
}


@pytest.mark.parametrize("lens_transform", [None, HeadTransform(), HeadTransform(softcap=3.0)], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_a_visit_equals_whole_rows_of_logits_in_float64(head, lens_transform):
    options = dict(HEADS[head])
    d_model, d_head, d_vocab = 16, 12 if options.get("projection") else 16, 301
    unembedding = Unembedding.of(
        _random(1, d_vocab, d_head, scale=0.7),
        None,
        bias=_random(2, d_vocab) if options.pop("bias", None) else None,
        projection=_random(3, d_head, d_model, scale=0.3) if options.pop("projection", None) else None,
        **options,
    )
    norm, raw, final = _random(4, 3, 5, d_model), _random(5, 3, 5, d_model), _random(6, 5, d_model)
    temperatures = torch.tensor([0.3, 1.0, 4.0])
    found = _asked(norm, raw, final, unembedding, temperatures, lens_transform, tile=64)
    lens_logits = (_logits(rows, unembedding, lens_transform) for rows in (norm, raw))
    due = _dense(*lens_logits, _logits(final, unembedding), temperatures)
    for name in NAMES:
        assert getattr(found, name).shape == (3, 5) and getattr(found, name).dtype == np.float64
        error = of_readout(unembedding, norm, raw, final, transform=lens_transform, temperature=_coldest(name, 0.3))
        np.testing.assert_allclose(getattr(found, name), due[name], rtol=error.relative, atol=error.bits, err_msg=name)
    assert all(np.abs(due[a] - due[b]).max() > 0.01 for a in NAMES for b in NAMES if a < b)


@examples(60)
@given(SEEDS, st.integers(1, 150), st.integers(1, 170), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_tiles_of_any_size_give_what_one_tile_gives(seed, d_vocab, tile, n_layers, n_prompts, with_bias):
    head = Unembedding.of(_random(seed, d_vocab, 8), None, bias=_random(seed + 1, d_vocab) if with_bias else None)
    norm, raw = (_random(seed + i, n_layers, n_prompts, 8) for i in (2, 3))
    final, temperatures = _random(seed + 4, n_prompts, 8), _random(seed + 5, n_layers).abs() + 0.2
    whole, tiled = (_asked(norm, raw, final, head, temperatures, tile=t) for t in (d_vocab, tile))
    for name in NAMES:
        error = of_readout(head, norm, raw, final, temperature=_coldest(name, float(temperatures.min()))) * 2
        np.testing.assert_allclose(
            getattr(tiled, name), getattr(whole, name), rtol=error.relative, atol=error.bits, err_msg=name
        )


@examples(100)
@given(SEEDS, st.integers(1, 80), st.integers(1, 90), *[st.floats(1e-3, 300.0)] * 3, st.floats(0.2, 5.0))
def test_every_number_stays_within_its_bounds_and_equals_its_definition(
    seed, d_vocab, tile, norm_scale, raw_scale, final_scale, temperature
):
    norm = _random(seed, 2, 3, d_vocab, scale=norm_scale)
    raw = _random(seed + 1, 2, 3, d_vocab, scale=raw_scale)
    final = _random(seed + 2, 3, d_vocab, scale=final_scale)
    temperatures = torch.tensor([temperature, 1.0])
    found = _of_logits(norm, raw, final, temperatures, tile=tile)
    most = {"js_divergence_bits": 1.0, "l1_prob_diff": 2.0}
    for name, due in _dense(norm.double(), raw.double(), final.double(), temperatures).items():
        values = getattr(found, name)
        assert (values >= 0).all() and (values <= most.get(name, math.log2(1e30) + 1e-9)).all(), name
        # The logits are the same to the last bit, so only float64 rounding is left: of a hundred terms of up to 1e4.
        np.testing.assert_allclose(values, np.maximum(due, 0), rtol=1e-10, atol=1e-10, err_msg=name)


def test_divergences_worked_by_hand():
    # ln 3 in float32 is off by `FLOAT32` of itself, and no divergence moves by more than six times that: 4e-7 bits.
    # p = (1/2, 1/2), q = (3/4, 1/4), the model's own (1/4, 3/4); at temperature 1/2 the norm row stays (1/2, 1/2).
    norm, raw = torch.zeros(1, 1, 2), torch.tensor([[[math.log(3.0), 0.0]]])
    found = _of_logits(norm, raw, torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0.5]), tile=1)
    assert found.kl_norm_vs_raw_bits.item() == pytest.approx(1 - math.log2(3) / 2, rel=1e-6)
    assert found.kl_raw_to_norm_bits.item() == pytest.approx(0.75 * math.log2(3) - 1, rel=1e-6)
    # H(5/8, 3/8) - H(1/2, 1/2) / 2 - H(3/4, 1/4) / 2
    mean = -(5 * math.log2(5 / 8) + 3 * math.log2(3 / 8)) / 8
    assert found.js_divergence_bits.item() == pytest.approx(mean - 1 / 2 - (2 - 0.75 * math.log2(3)) / 2, rel=1e-6)
    assert found.l1_prob_diff.item() == pytest.approx(0.5, rel=1e-6)
    assert found.kl_to_final_bits_norm_temp.item() == pytest.approx(1 - math.log2(3) / 2, rel=1e-6)


def test_a_temperature_divides_the_transformed_logits():
    # (1/4, 3/4) at temperature 1/2 is (1/10, 9/10), at 2 it is (1, sqrt 3) / (1 + sqrt 3); the final row is uniform.
    norm = torch.tensor([0.0, math.log(3.0)]).expand(2, 1, 2)
    found = _of_logits(norm, None, torch.zeros(1, 2), torch.tensor([0.5, 2.0]), tile=1)
    for value, share in zip(found.kl_to_final_bits_norm_temp[:, 0], (0.1, 1 / (1 + math.sqrt(3))), strict=True):
        due = 1 + share * math.log2(share) + (1 - share) * math.log2(1 - share)
        assert value == pytest.approx(due, abs=12 * math.log(3) * FLOAT32 / math.log(2))  # ln 3 over 1/2 in float32


def test_a_temperature_next_to_zero_leaves_the_largest_logits_alone():
    # Two of 1000 equal logits are raised: they share all of p, and 1 / 500 of the uniform final row.
    norm = torch.zeros(1, 1, 1000)
    norm[..., [3, 700]] = 1.0
    found = _of_logits(norm, None, torch.zeros(1, 1000), torch.tensor([1e-3]))
    assert found.kl_to_final_bits_norm_temp.item() == pytest.approx(math.log2(500), rel=DOUBLE)


@pytest.mark.parametrize("tile", [1, 2, 5])
def test_the_floor_bounds_divergences_of_rows_that_exclude_each_other(tile):
    # Each row is sure of an id to which the other gives e^-300: both divergences are log2 1e30.
    norm, raw = torch.full((1, 1, 5), -300.0), torch.full((1, 1, 5), -300.0)
    norm[..., 1] = raw[..., 3] = 0.0
    found = _of_logits(norm, raw, raw[0], torch.tensor([1.0]), tile=tile)
    for name in ("kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", TEMPERED):
        assert getattr(found, name).item() == pytest.approx(math.log2(1e30), rel=DOUBLE)
    assert found.js_divergence_bits.item() == pytest.approx(1.0, rel=DOUBLE)
    assert found.l1_prob_diff.item() == pytest.approx(2.0, rel=DOUBLE)


def test_saturated_rows_of_a_head_agree_with_whole_rows_of_logits():
    head = Unembedding.of(_random(0, 200, 16), None, bias=_random(1, 200))
    norm, raw, final = _random(2, 4, 6, 16), _random(3, 4, 6, 16, scale=300.0), _random(4, 6, 16, scale=300.0)
    temperatures = torch.tensor([0.2, 1.0, 1.0, 5.0])
    found = _asked(norm, raw, final, head, temperatures, tile=64)
    due = _dense(*(_logits(rows, head) for rows in (norm, raw, final)), temperatures)
    for name in NAMES:
        # Logits of up to 300 x 16 x 2 have steps of 5e-4 in float32, and a fifth as temperature makes it 2e-3.
        np.testing.assert_allclose(getattr(found, name), due[name], rtol=1e-4, atol=5e-3, err_msg=name)
    both = _asked(norm * 300, raw, final, head, temperatures, tile=64)
    assert both.kl_norm_vs_raw_bits.max() == pytest.approx(math.log2(1e30), abs=5e-3)
    for name, most in zip(NAMES, (99.65785, 99.65785, 1.0, 2.0, 99.65785), strict=True):
        assert (getattr(both, name) <= most).all() and (getattr(both, name) >= 0).all(), name


@examples(40)
@given(SEEDS, st.integers(1, 90), st.integers(1, 100), st.floats(1e-2, 300.0))
def test_equal_rows_differ_by_nothing(seed, d_vocab, tile, scale):
    head = Unembedding.of(_random(seed, d_vocab, 8), None, bias=_random(seed + 1, d_vocab))
    rows = _random(seed + 2, 3, 4, 8, scale=scale)
    found = _asked(rows, rows, rows[0], head, tile=tile)
    for name in PAIR:
        assert getattr(found, name).max() < 1e-12, name


@examples(40)
@given(SEEDS, st.floats(1e-6, 1e-3))
def test_a_divergence_next_to_nothing_keeps_its_digits(seed, step):
    """To second order KL(p || q) is half the variance under p of ln p - ln q, and JS is a quarter of it.

    Steps are multiples of 2^-20 of logits that are multiples of 1/8, so no float32 rounds.
    """
    norm = (_random(seed, 2, 3, 50) * 8).round() / 8
    change = (_random(seed + 1, 2, 3, 50) * step * 2**20).round() / 2**20
    if not (change != 0).any(-1).all():
        return
    found = _of_logits(norm, norm + change, (norm + change)[0], torch.ones(2), tile=7)
    p = norm.double().softmax(-1)
    spread = (p * change.double() ** 2).sum(-1) - (p * change.double()).sum(-1) ** 2
    due = (spread / 2 / math.log(2)).numpy()
    for name, share in (("kl_norm_vs_raw_bits", 1), ("kl_raw_to_norm_bits", 1), ("js_divergence_bits", 0.25)):
        # The third order is a step (up to 4e-3) times as large; float64 leaves 50 terms of 2^-53.
        np.testing.assert_allclose(getattr(found, name), share * due, rtol=0.05, atol=1e-14, err_msg=name)
    np.testing.assert_allclose(found.kl_to_final_bits_norm_temp[0], due[0], rtol=0.05, atol=1e-14)


@examples(40)
@given(SEEDS, st.floats(-1e-5, 1e-5), st.floats(-1e-5, 1e-5), st.floats(-1e-5, 1e-5))
def test_a_normaliser_that_another_product_rounded_moves_no_divergence(seed, norm_off, raw_off, final_off):
    head = Unembedding.of(_random(seed, 120, 8), None)
    norm, final = _random(seed + 1, 2, 3, 8), _random(seed + 2, 3, 8)
    raw, temperatures = norm + _random(seed + 3, 2, 3, 8, scale=1e-4), torch.tensor([1.0, 0.7])
    exact = [_normaliser(_logits(rows, head)) for rows in (norm, raw, final)]
    rounded = [
        Normaliser(known.log_sum_exp + off, known.peak - off)
        for known, off in zip(exact, (norm_off, raw_off, final_off), strict=True)
    ]
    a, b = (contrast(norm, raw, final, *known, head, temperatures=temperatures) for known in (exact, rounded))
    for name in ("kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", TEMPERED):
        # Divergences of 1e-9 and up from float64 sums of 120 terms, 1e-14 each.
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-9, atol=1e-13, err_msg=name)
    # These two are made of the probabilities themselves, and share their error: 1e-5 each, squared and not.
    np.testing.assert_allclose(b.js_divergence_bits, a.js_divergence_bits, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(b.l1_prob_diff, a.l1_prob_diff, rtol=0, atol=1e-4)


def test_at_temperature_one_the_divergence_is_the_sweeps_own():
    head = Unembedding.of(_random(0, 300, 16), None, bias=_random(1, 300), transform=HeadTransform(softcap=6.0))
    rows, final = _random(2, 4, 6, 16), _random(3, 6, 16)
    rows[-1] = final
    swept, alone = (decode(x, final, [Question(6)], head) for x in (rows, final[None]))
    known, own = (
        Normaliser(*(torch.from_numpy(x) for x in (a.log_sum_exp, a.log_sum_exp + a.top_log_probs[..., 0])))
        for a in (swept, alone)
    )
    own = Normaliser(own.log_sum_exp[0], own.peak[0])
    found = contrast(rows, None, final, known, None, own, head, temperatures=torch.ones(4))
    error = of_readout(head, rows, final) * 2
    np.testing.assert_allclose(
        found.kl_to_final_bits_norm_temp, swept.kl_to_final_bits, rtol=error.relative, atol=error.bits
    )
    assert found.kl_to_final_bits_norm_temp[-1].max() < 1e-11  # the same logits on both sides, but for float64's sums
    assert found.kl_to_final_bits_norm_temp[0].min() > 0.1


def test_lenses_swapped_swap_the_directions_and_nothing_else():
    head = Unembedding.of(_random(0, 300, 16), None)
    a, b, final = _random(1, 3, 4, 16), _random(2, 3, 4, 16), _random(3, 4, 16)
    there, back = _asked(a, b, final, head), _asked(b, a, final, head)
    error = of_readout(head, a, b) * 2
    np.testing.assert_allclose(
        back.kl_raw_to_norm_bits, there.kl_norm_vs_raw_bits, rtol=error.relative, atol=error.bits
    )
    np.testing.assert_allclose(back.js_divergence_bits, there.js_divergence_bits, rtol=error.relative, atol=error.bits)
    np.testing.assert_allclose(back.l1_prob_diff, there.l1_prob_diff, rtol=error.relative, atol=error.log_prob)
    assert np.abs(there.kl_norm_vs_raw_bits - there.kl_raw_to_norm_bits).min() > 1e-3


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 3e38])
def test_a_row_that_is_not_finite_is_nan_and_touches_no_other(broken, softcap):
    """3e38 is finite itself, but its logits are not, of either sign; under a softcap they are."""
    head = Unembedding.of(_random(0, 300, 16, scale=5.0), None, transform=HeadTransform(softcap=softcap))
    norm, raw, final = _random(1, 3, 4, 16), _random(2, 3, 4, 16), _random(3, 4, 16)
    temperatures = torch.tensor([0.5, 1.0, 2.0])
    clean = _asked(norm, raw, final, head, temperatures, tile=64)
    spoilt_norm, spoilt_raw = norm.clone(), raw.clone()
    spoilt_norm[1, 2, 7] = broken
    spoilt_raw[0, 3, 5] = broken
    known = [_normaliser(_logits(rows, head)) for rows in (spoilt_norm, spoilt_raw, final)]
    known[0].log_sum_exp[1, 2] = known[0].peak[1, 2] = 5.0  # finite, so that the rows alone tell
    known[1].log_sum_exp[0, 3] = 5.0
    found = contrast(spoilt_norm, spoilt_raw, final, *known, head, temperatures=temperatures, tile=64)
    harmless = broken == 3e38 and softcap is not None
    due = np.ones((3, 4), dtype=bool)
    due[1, 2] = False
    _assert_nan_elsewhere(found, clean, [TEMPERED], due, harmless)
    due[0, 3] = False
    _assert_nan_elsewhere(found, clean, PAIR, due, harmless)


def _assert_nan_elsewhere(found: Contrast, clean: Contrast, names: list[str], due: np.ndarray, harmless: bool) -> None:
    for name in names:
        values = getattr(found, name)
        assert harmless or np.isnan(values[~due]).all(), name
        np.testing.assert_array_equal(values[due], getattr(clean, name)[due], err_msg=name)


@pytest.mark.parametrize("broken", [math.nan, math.inf, 3e38])
def test_a_final_row_that_is_not_finite_is_nan_at_its_prompt_and_in_the_tempered_divergence_alone(broken):
    head = Unembedding.of(_random(0, 300, 16, scale=5.0), None)
    norm, raw, final = _random(1, 3, 4, 16), _random(2, 3, 4, 16), _random(3, 4, 16)
    clean = _asked(norm, raw, final, head, torch.ones(3), tile=64)
    spoilt = final.clone()
    spoilt[2, 0] = broken
    found = _asked(norm, raw, spoilt, head, torch.ones(3), tile=64)
    for name in PAIR:
        np.testing.assert_array_equal(getattr(found, name), getattr(clean, name), err_msg=name)
    tempered = found.kl_to_final_bits_norm_temp
    assert np.isnan(tempered[:, 2]).all()
    np.testing.assert_array_equal(tempered[:, [0, 1, 3]], clean.kl_to_final_bits_norm_temp[:, [0, 1, 3]])


@pytest.mark.parametrize("infinite", ["norm", "raw", "final"])
def test_a_single_logit_of_minus_infinity_does_not_hide_under_the_floor(infinite):
    # 3e38 times -2 overflows in one column only; all other logits are zero.
    head = torch.zeros(6, 2)
    head[4, 1] = -2.0
    rows = {name: torch.zeros(1, 2, 2) for name in ("norm", "raw", "final")}
    rows[infinite][0, 1, 1] = 3e38
    flat = Normaliser(torch.full((1, 2), math.log(6.0)).double(), torch.zeros(1, 2).double())
    own = Normaliser(flat.log_sum_exp[0], flat.peak[0])
    found = contrast(
        rows["norm"],
        rows["raw"],
        rows["final"][0],
        flat,
        flat,
        own,
        Unembedding.of(head, None),
        temperatures=torch.ones(1),
    )
    for name in NAMES:
        touched = infinite in (("norm", "final") if name == TEMPERED else ("norm", "raw"))
        assert np.isnan(getattr(found, name)).tolist() == [[False, touched]], name
        assert getattr(found, name)[0, 0] == pytest.approx(0.0, abs=DOUBLE)


@pytest.mark.parametrize(("n_layers", "n_prompts"), [(2, ROWS_PER_VISIT + 5), (7, 100), (3 * ROWS_PER_VISIT + 1, 1)])
def test_rows_beyond_one_block_are_put_back_in_their_places(n_layers, n_prompts):
    head = Unembedding.of(_random(0, 23, 6), None, bias=_random(1, 23))
    norm, raw, final = _random(2, n_layers, n_prompts, 6), _random(3, n_layers, n_prompts, 6), _random(4, n_prompts, 6)
    temperatures = torch.linspace(0.5, 2.0, n_layers)
    found = _asked(norm, raw, final, head, temperatures)
    due = _dense(*(_logits(rows, head) for rows in (norm, raw, final)), temperatures)
    for name in NAMES:
        error = of_readout(head, norm, raw, final, temperature=_coldest(name, 0.5))
        np.testing.assert_allclose(getattr(found, name), due[name], rtol=error.relative, atol=error.bits, err_msg=name)


def test_what_was_not_asked_for_is_none():
    head = Unembedding.of(_random(0, 30, 6), None)
    norm, raw, final = _random(1, 2, 3, 6), _random(2, 2, 3, 6), _random(3, 3, 6)
    whole = _asked(norm, raw, final, head, torch.ones(2))
    without_temperatures = _asked(norm, raw, final, head)
    assert without_temperatures.kl_to_final_bits_norm_temp is None
    known = (_normaliser(_logits(norm, head)), None, _normaliser(_logits(final, head)))
    without_raw = contrast(norm, None, final, *known, head, temperatures=torch.ones(2))
    assert all(getattr(without_raw, name) is None for name in PAIR)
    np.testing.assert_array_equal(without_raw.kl_to_final_bits_norm_temp, whole.kl_to_final_bits_norm_temp)
    for name in PAIR:
        np.testing.assert_array_equal(getattr(without_temperatures, name), getattr(whole, name), err_msg=name)


def test_progress_tells_the_ids_done_after_every_tile():
    head = Unembedding.of(_random(0, 30, 6), None)
    rows, steps = _random(1, 2, 3, 6), []
    _asked(rows, rows, rows[0], head, tile=13, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(13, 30), (26, 30), (30, 30)]


def test_a_head_stored_in_bfloat16_is_read_as_float32():
    head = Unembedding.of(_random(0, 300, 16).bfloat16(), None)
    norm, raw, final = _random(1, 2, 3, 16), _random(2, 2, 3, 16), _random(3, 3, 16)
    a, b = (
        _asked(norm, raw, final, which, torch.ones(2), tile=64)
        for which in (head, Unembedding.of(head.weight.tensor.float(), None))
    )
    for name in NAMES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_the_rows_handed_in_are_left_as_they_were():
    head = Unembedding.of(_random(0, 30, 6), None, bias=_random(1, 30), transform=HeadTransform(softcap=4.0))
    given = (_random(2, 2, 3, 6), _random(3, 2, 3, 6), _random(4, 3, 6), head.weight.tensor, head.bias)
    before = [x.clone() for x in given]
    _asked(*given[:3], head, torch.ones(2))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(wrong):
    rows = _random(0, 2, 3, 6)
    with pytest.raises(LensError, match="Temperatures should be positive finite numbers, but they are"):
        _asked(rows, rows, rows[0], Unembedding.of(_random(1, 30, 6), None), torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("missing", ["rows", "normaliser"])
def test_raw_rows_and_their_normaliser_come_together(missing):
    rows, head = _random(0, 2, 3, 6), Unembedding.of(_random(1, 30, 6), None)
    known, own = _normaliser(_logits(rows, head)), _normaliser(_logits(rows[0], head))
    raw = (None, known) if missing == "rows" else (rows, None)
    with pytest.raises(LensError, match="should come together"):
        contrast(rows, raw[0], rows[0], known, raw[1], own, head)
