"""Parts of one fact's state written into another's run: known answers, and equality with whole patches."""

from dataclasses import dataclass

import polars as pl
import pytest
import torch
from torch import Tensor

import layerscope
from layerscope.bundled import BUNDLED
from layerscope.errors import ModelError
from layerscope.interventions.interchange import AnsweredFact, Interchange
from layerscope.interventions.lens_directions import answer_directions, random_spans, spans
from layerscope.lenses import Lens
from layerscope.lenses.logit_lens import LogitLens, RawLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patching import Patch
from layerscope.probing.lens_selection import choose_lenses
from rounding import SINGLE, of_residual

NO_FINAL_NORM = "opt-post-norm"
PROMPTS = [(0, 301, 12, 88), (0, 55, 12, 88), (0, 9, 5), (0, 7, 200)]


@dataclass(frozen=True)
class Turned:
    """A lens that reads every residual after a projection."""

    keeps: Tensor
    name: str = "turned"

    def __call__(self, residual: Tensor, layer: int) -> Tensor:
        return residual @ self.keeps

    def source(self, layer: int) -> str:
        return "turned"


@pytest.fixture(scope="module")
def bundled() -> tuple[CausalLM, layerscope.Run, Interchange, tuple[Lens, ...], pl.DataFrame]:
    """The bundled model, a run, its pairs, its lenses, and every effect."""
    model = CausalLM.open(BUNDLED, device="cpu")
    run = layerscope.probe(model, suite="capitals-20", positions="last")
    patching = run.record.measured.patching
    ids = {
        p.fact_index: p.token_ids
        for p in run.record.suite.prompts
        if p.prompt_id == "pos" and p.prompt_variant == patching.prompt_variant
    }
    pairs = [
        (AnsweredFact(p.base, ids[p.base], p.base_answer_id), AnsweredFact(p.source, ids[p.source], p.source_answer_id))
        for p in patching.pairs
    ]
    lenses = choose_lenses(model, None, ("logit", "next_norm", "raw"), None).bind(model)
    interchange = Interchange(model, pairs, 316)
    return model, run, interchange, lenses, interchange.run(lenses)


def linear(tiny) -> tuple[CausalLM, Interchange]:
    """A model without a final norm: at its last layer it is linear, so that all is known there."""
    model = CausalLM.open(tiny(NO_FINAL_NORM), device="cpu")
    assert model.final_norm is None
    facts = [AnsweredFact(i, ids, 20 + 7 * i) for i, ids in enumerate(PROMPTS)]
    return model, Interchange(model, [(a, b) for a in facts for b in facts if a is not b], 316)


def effects_at(table: pl.DataFrame, kind: str, layer: int, lens: str | None = None) -> Tensor:
    chosen = table.filter(pl.col("kind") == kind, pl.col("layer") == layer)
    if lens is not None:
        chosen = chosen.filter(pl.col("lens") == lens)
    return torch.tensor(chosen.sort("pair")["effect"].to_list(), dtype=torch.float64)


@pytest.mark.parametrize("of", ["both", "difference"])
def test_where_the_model_reads_along_the_lens_direction_alone_the_span_does_everything(tiny, of):
    model, interchange = linear(tiny)
    table = interchange.run([RawLens()], of)
    last = model.n_layers
    ones = torch.ones(len(interchange.pairs), dtype=torch.float64)
    assert torch.allclose(effects_at(table, "full", last), ones, atol=100 * SINGLE)
    assert torch.allclose(effects_at(table, "span", last), ones, atol=100 * SINGLE)
    assert effects_at(table, "complement", last).abs().max() <= 100 * SINGLE
    rank = table.filter(pl.col("kind") == "span")["rank"]
    assert set(rank.to_list()) == {2 if of == "both" else 1}


def test_where_the_model_does_not_read_along_the_lens_direction_the_span_does_nothing(tiny):
    model, interchange = linear(tiny)
    weight = model.unembedding.weight.tensor.float()
    read = weight if model.unembedding.projection is None else weight @ model.unembedding.projection
    answers = read[sorted({fact.answer_id for pair in interchange.pairs for fact in pair})]
    basis = torch.linalg.qr(answers.mT).Q
    # What the lens reads is moved out of all directions that the model reads the answers along.
    away = torch.eye(model.d_model) - basis @ basis.mT
    turn = torch.linalg.qr(torch.randn(model.d_model, model.d_model, generator=torch.Generator().manual_seed(1))).Q
    table = interchange.run([Turned(away @ turn)])
    last = model.n_layers
    assert effects_at(table, "span", last).abs().max() <= 100 * SINGLE
    whole = effects_at(table, "full", last)
    assert torch.allclose(effects_at(table, "complement", last), whole, atol=100 * SINGLE)


def test_a_full_exchange_is_a_patch_of_the_probe(bundled):
    model, run, _, _, table = bundled
    patches = run.patches.filter(pl.col("kind") == "pair", pl.col("place") == "next").sort("pair")
    for layer in range(model.n_layers + 1):
        theirs = torch.tensor(patches.filter(pl.col("layer") == layer)["effect"].to_list(), dtype=torch.float64)
        ours = effects_at(table, "full", layer)
        assert torch.allclose(ours, theirs, atol=of_residual(model.n_layers, model.d_model) * 100)


def test_span_and_complement_add_up_to_the_whole_step(bundled):
    _, _, interchange, lenses, _ = bundled
    for layer in (0, 5, 12):
        whole = interchange._step(layer)
        for lens in lenses:
            of_kind = {each.kind: each.steps for each in interchange._of_lens(lens, layer, "both")}
            added = of_kind["span"] + of_kind["complement"]
            assert (added - whole).abs().max() <= SINGLE * max(1.0, float(whole.abs().max()))
            lengths = of_kind["random"].norm(dim=-1), of_kind["span"].norm(dim=-1)
            assert torch.allclose(*lengths, rtol=100 * SINGLE, atol=100 * SINGLE)


def test_directions_are_the_finite_differences_of_the_lens_logits(bundled):
    model, _, interchange, lenses, _ = bundled
    generator = torch.Generator().manual_seed(3)
    for layer in (2, 6, 12):
        base = interchange._at(layer, interchange.base)[:4]
        answers = interchange.answers[:4]
        way = torch.randn(base.shape, generator=generator)
        step = 1e-3 * base.norm(dim=-1, keepdim=True) * way / way.norm(dim=-1, keepdim=True)
        for lens in lenses:
            found = answer_directions(lens, layer, base, answers, model.unembedding)

            def logits(at: Tensor, lens: Lens = lens, layer: int = layer, answers: Tensor = answers) -> Tensor:
                return model.unembedding.linear_logits(lens(at, layer), answers.flatten()).double()

            rows = torch.arange(4)[:, None]
            columns = 2 * rows + torch.arange(2)
            differences = (logits(base + step) - logits(base - step))[rows, columns] / 2
            slopes = torch.einsum("rad,rd->ra", found.double(), step.double())
            # Second-order error 1e-6 of the logits' size, rounding of the same order.
            assert (slopes - differences).abs().max() <= 1e-5 * float(logits(base).abs().max())


def test_bases_are_orthonormal_and_nearly_parallel_directions_are_one():
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(3, 2, 32, generator=generator)
    directions[1, 1] = directions[1, 0] + 0.01 * directions[1, 1]
    found = spans(directions)
    assert found.rank.tolist() == [2, 1, 2]
    assert float(found.cosine[1]) > 0.95
    for of in (found, random_spans(found, generator)):
        gram = of.basis @ of.basis.mT
        expected = torch.diag_embed(torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
        assert torch.allclose(gram, expected, atol=SINGLE)
    difference = directions[1, 0] - directions[1, 1]
    assert torch.allclose(found.basis[1, 0], difference / difference.norm(), atol=100 * SINGLE)


def test_other_answers_directions_do_about_what_random_ones_do(bundled):
    model, run, _, lenses, table = bundled
    layers = range(run.diagnostics.patching.handover.layer, model.n_layers)
    for lens in lenses:
        for layer in layers:
            medians = [
                float(effects_at(table, kind, layer, lens.name).median()) for kind in ("span", "others", "random")
            ]
            assert abs(medians[1] - medians[2]) < 0.15  # a random draw, of medians over 40 pairs
            assert medians[0] > max(medians[1:]) + 0.1


@pytest.mark.slow
def test_groups_of_exchanges_give_what_one_pass_gives(bundled, monkeypatch):
    _, _, interchange, lenses, table = bundled
    monkeypatch.setattr("layerscope.interventions.interchange.PASS_BYTES", 1 << 24)
    cut = interchange.run(lenses[:1])
    whole = table.filter(pl.col("lens").is_null() | (pl.col("lens") == lenses[0].name))
    assert (cut["effect"] - whole["effect"]).abs().max() <= 1e-4


def test_exchanges_at_some_layers_are_those_of_all(bundled):
    _, _, interchange, lenses, table = bundled
    some = interchange.run(lenses[:1], layers=(9, 11))
    whole = table.filter(pl.col("lens").is_null() | (pl.col("lens") == lenses[0].name), pl.col("layer").is_in((9, 11)))
    order = ["kind", "layer", "pair"]
    some, whole = some.sort(order), whole.sort(order)
    assert some.select(order).equals(whole.select(order))
    assert (some["effect"] - whole["effect"]).abs().max() <= 1e-4


def test_the_logit_lens_is_a_jacobian_lens_of_identities(bundled):
    model, _, interchange, _, _ = bundled
    identity = layerscope.JacobianLens(model.final_norm, tuple(torch.eye(model.d_model) for _ in range(model.n_layers)))
    rows = interchange._at(6, interchange.base)
    ours = answer_directions(identity, 6, rows, interchange.answers, model.unembedding)
    theirs = answer_directions(LogitLens(model.final_norm), 6, rows, interchange.answers, model.unembedding)
    assert torch.equal(ours, theirs)


def test_a_patch_is_of_a_row_or_a_direction():
    with pytest.raises(ModelError, match="both came; give one"):
        Patch(0, 0, 0, 0, 0, direction=torch.ones(2), row=torch.ones(2))
