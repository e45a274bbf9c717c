"""One write of a run put into another: what Transformers computes with a hook that replaces a module's output."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from layerscope.errors import ModelError
from layerscope.interventions.pairs import Pair, PairedFact
from layerscope.interventions.write_patches import ReplacedWrites, WritePatches
from layerscope.model import patching
from layerscope.model.ablation import Ablation
from layerscope.model.causal_lm import CausalLM
from layerscope.model.write_patching import WritePatch, WritePatchedPass
from rounding import of_residual
from tiny_models import BLOCKS_AT, load_resident

TOLERANCE = of_residual(n_blocks=4, d_model=64)
PROMPTS = [[0, 301, 12, 88], [0, 55, 12, 88], [0, 9, 5]]
PAIRS = [(0, 1, 1, 1), (1, 0, 3, 3), (0, 2, 3, 2), (2, 1, 0, 3)]
"""Base, source, and the position in either."""
ADDED_BY = {
    "llama-biases": ("self_attn", "mlp", "self_attn.o_proj"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),  # norms behind both
    "gpt_neox": ("attention", "mlp", "attention.dense"),  # both read the same state
    "granite": ("self_attn", "mlp", "self_attn.o_proj"),  # both are multiplied before they are added
    "gpt2": ("attn", "mlp", "attn.c_proj"),
    "falcon": ("self_attention", "mlp", "self_attention.dense"),
    "qwen3_moe": ("self_attn", "mlp", "self_attn.o_proj"),
    "cohere": ("self_attn", "mlp", "self_attn.o_proj"),
}
"""By family what is added to the stream comes out of, and what the heads go into."""
IN_SHORT = {"gemma2", "gpt_neox"}
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_SHORT else pytest.mark.slow) for name in ADDED_BY]
)


def run_of(
    model: CausalLM, patches: list[WritePatch], prompts: list[list[int]] = PROMPTS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Last residuals at last positions: of the prompts, and of the patched runs; and the steps of the writes."""
    run = WritePatchedPass(prompts, patches, model.sublayers, model.n_heads, model.d_model)
    own, patched = model.run_patched(run)
    return own, patched, run.steps


@contextmanager
def hooked(module: torch.nn.Module, *, before: Any = None, after: Any = None) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(before)] if before else []
    handles += [module.register_forward_hook(after)] if after else []
    try:
        with torch.inference_mode():
            yield
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(model: Any) -> Any:
    return model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))


def last_residual(model: Any, ids: list[int]) -> torch.Tensor:
    out: list[torch.Tensor] = []

    def keep(_: Any, args: Any, output: Any) -> None:
        out.append((output[0] if isinstance(output, tuple) else output)[0, -1].float())

    with hooked(blocks_of(model)[-1], after=keep):
        model(torch.tensor([ids]), use_cache=False)
    return out[0]


def by_transformers(folder: Path, patch: WritePatch, path: str, prompts: list[list[int]] = PROMPTS) -> torch.Tensor:
    """The last residual at the last position, with a module's output, or a head in front of it, replaced."""
    model = load_resident(folder)
    module = blocks_of(model)[patch.layer - 1].get_submodule(path)
    seen: list[torch.Tensor] = []

    def flat(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(-1, value.shape[-1])

    if patch.head is None:
        with hooked(module, after=lambda _m, _a, o: seen.append(flat(o[0] if isinstance(o, tuple) else o).clone())):
            model(torch.tensor([prompts[patch.source]]), use_cache=False)

        def after(_: Any, args: Any, output: Any) -> Any:
            put = (output[0] if isinstance(output, tuple) else output).clone()
            flat(put)[patch.position] = seen[0][patch.source_position]
            return (put, *output[1:]) if isinstance(output, tuple) else put

        with hooked(module, after=after):
            return last_residual(model, prompts[patch.base])
    with hooked(module, before=lambda _m, args: seen.append(flat(args[0]).clone())):
        model(torch.tensor([prompts[patch.source]]), use_cache=False)

    def before(_: Any, args: Any) -> Any:
        put, size = args[0].clone(), args[0].shape[-1] // model.config.num_attention_heads
        of_head = slice(patch.head * size, (patch.head + 1) * size)
        flat(put)[patch.position, of_head] = seen[0][patch.source_position, of_head]
        return (put, *args[1:])

    with hooked(module, before=before):
        return last_residual(model, prompts[patch.base])


@EVERY
def test_a_patched_run_is_what_transformers_computes_with_the_write_replaced(name: str, tiny, monkeypatch):
    monkeypatch.setattr(patching, "ROW_NODES", 7)  # several rows, so that copies stand in other rows than sources
    model = CausalLM.open(tiny(name), device="cpu")
    sites = [("attn", None), ("mlp", None), ("head", 0), ("head", (model.n_heads or 1) - 1)]
    patches = [
        WritePatch(layer, site, base, at, source, there, head)  # type: ignore[arg-type]
        for layer in range(model.n_layers, 0, -1)
        for site, head in sites
        for base, source, at, there in PAIRS
    ]
    _, patched, _ = run_of(model, patches)
    differing = 0
    for row, patch in zip(patched, patches, strict=True):
        expected = by_transformers(tiny(name), patch, ADDED_BY[name][["attn", "mlp", "head"].index(patch.site)])
        assert (row - expected).abs().max() <= TOLERANCE * expected.abs().max()
        own = last_residual(load_resident(tiny(name)), PROMPTS[patch.base])
        differing += int((expected - own).abs().max() > 10 * TOLERANCE * own.abs().max())
    assert differing > len(patches) / 2


def test_prompts_longer_than_a_window_get_their_writes_replaced_under_it(tiny):
    prompts = [[0, 301, 12, 88, 1, 254, 7, 63, 5], [0, 301, 55, 88, 1, 254, 7, 63, 5], [0, 9, 5]]
    name = "gemma2"  # norms behind both writes, and a window in every second block
    model = CausalLM.open(tiny(name), device="cpu")
    assert model.architecture.windows == (4, None, 4, None)
    patches = [
        WritePatch(layer, site, base, at, source, there, head)  # type: ignore[arg-type]
        for layer in range(1, model.n_layers + 1)
        for site, head in (("attn", None), ("mlp", None), ("head", 1))
        for base, source, at, there in ((0, 1, 2, 2), (1, 0, 7, 7), (0, 2, 5, 2))
    ]
    _, patched, _ = run_of(model, patches, prompts)
    for row, patch in zip(patched, patches, strict=True):
        path = ADDED_BY[name][["attn", "mlp", "head"].index(patch.site)]
        expected = by_transformers(tiny(name), patch, path, prompts)
        assert (row - expected).abs().max() <= TOLERANCE * expected.abs().max()


@EVERY
def test_a_runs_own_write_changes_nothing(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    patches = [
        WritePatch(layer, site, base, at, base, at, head)  # type: ignore[arg-type]
        for layer in range(1, model.n_layers + 1)
        for site, head in (("attn", None), ("mlp", None), ("head", 1))
        for base, at in ((0, 3), (1, 1), (2, 2))
    ]
    own, patched, _ = run_of(model, patches)
    for row, patch in zip(patched, patches, strict=True):
        assert (row - own[patch.base]).abs().max() <= TOLERANCE * own.abs().max()


def test_what_names_no_write_is_refused(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    n, heads = model.n_layers, model.n_heads
    for patch, words in (
        (WritePatch(0, "attn", 0, 1, 1, 1), f"no block of layer 0.* 1 to {n}"),
        (WritePatch(n + 1, "mlp", 0, 1, 1, 1), f"no block of layer {n + 1}"),
        (WritePatch(1, "head", 0, 1, 1, 1, heads), f"Layer 1 has no head {heads}: it has {heads}"),
        (WritePatch(1, "attn", 0, 4, 1, 1), "position 4 of prompt 0, which has 4 tokens"),
        (WritePatch(1, "attn", 0, 1, 2, 3), "position 3 of prompt 2, which has 3 tokens"),
        (WritePatch(1, "attn", 0, 1, 3, 1), "prompt 3, but there are 3"),
    ):
        with pytest.raises(ModelError, match=words):
            run_of(model, [patch])
    with pytest.raises(ModelError, match="names which one"):
        WritePatch(1, "head", 0, 1, 1, 1)
    with pytest.raises(ModelError, match="names which one"):
        WritePatch(1, "attn", 0, 1, 1, 1, 2)


# Effects


def facts(model: CausalLM) -> list[PairedFact]:
    """Two prompts that differ at position 1, as facts with what the model says after them."""
    out = model.forward(PROMPTS[:2], n_logits=2).logits
    answers = out.argmax(-1).tolist()
    assert answers[0] != answers[1]
    return [PairedFact(i, tuple(PROMPTS[i]), "t", 1, answers[i]) for i in range(2)]


def both_ways(model: CausalLM, heads: list[tuple[int, int]] | None = None) -> ReplacedWrites:
    first, second = facts(model)
    return WritePatches(model, [Pair(first, second), Pair(second, first)], heads or []).run()


def silenced(model: CausalLM, *, attention_but: int | None = None) -> CausalLM:
    """The model with MLPs that write nothing, and attention that writes in one block alone, counted from 1."""
    parts = [f"block:{layer}.mlp" for layer in range(1, model.n_layers + 1)]
    if attention_but is not None:
        parts += [f"block:{layer}.attn" for layer in range(1, model.n_layers + 1) if layer != attention_but]
    return model.ablated(Ablation.of(parts, "zero"), PROMPTS)


def test_mlps_that_write_nothing_have_no_effect(tiny):
    found = both_ways(silenced(CausalLM.open(tiny("llama-biases"), device="cpu"))).table
    mlps = found.filter(site="mlp")
    assert len(mlps) == 2 * 2 * 4 and mlps["effect"].abs().max() <= 1e-4 and mlps["direct"].abs().max() == 0.0
    assert found.filter(site="attn", place="next")["effect"].abs().max() > 0.1


def test_where_one_write_is_all_there_is_it_carries_the_whole_answer_at_the_last_token(tiny):
    """Both prompts end in the same token, so what differs there is what that one attention adds."""
    model = silenced(CausalLM.open(tiny("llama-biases"), device="cpu"), attention_but=2)
    found = both_ways(model)
    at_next = found.table.filter(place="next").sort("pair")
    only = at_next.filter(site="attn", layer=2)
    assert only["effect"].to_list() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert only["kl_to_source_bits"].max() <= 1e-4 < only["kl_from_base_bits"].min()
    others = at_next.filter(site="attn").filter(layer=1)
    assert len(others) == 2 and others["effect"].abs().max() <= 1e-4
    # Nothing that the subject's token is given at its own place gets away from there again.
    assert found.table.filter(place="subject")["effect"].abs().max() <= 1e-4
    assert found.self_patch_logit_change is not None and found.self_patch_logit_change <= 1e-4


def test_the_direct_part_is_what_the_head_reads_with_the_norms_scale_held(tiny):
    """Of the last MLP's write only the norm's scale is beside it; worked out from the two writes in float64."""
    model = CausalLM.open(tiny("cohere"), device="cpu")
    first, second = facts(model)
    found = both_ways(model).table
    n, head, norm = model.n_layers, model.unembedding, model.final_norm
    assert norm is not None
    zero = torch.zeros(2, model.d_model, dtype=torch.float64)
    writes = model.forward_writes(PROMPTS[:2], zero)
    scale = norm.inverse_scale(writes.states[0, -1].double())
    for site, of in (("attn", writes.attention), ("mlp", writes.mlp)):
        step = (of[1, n - 1] - of[0, n - 1]).double()
        centred = (step - step.mean()) * scale * (1.0 if norm.gain is None else norm.gain.double())
        a, b = (head.columns(torch.tensor([fact.answer_id]))[0].double() for fact in (first, second))
        logits = [(norm(writes.states[i, -1]).double() @ (a - b)) for i in range(2)]
        expected = float(centred @ (a - b) / (logits[1] - logits[0]))
        row = found.filter(pair=0, site=site, layer=n, place="next")
        assert row["direct"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found.filter(place="subject")["direct"].abs().max() == 0.0


def test_passes_cut_by_memory_find_what_one_pass_finds(tiny, monkeypatch):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    whole = both_ways(model, [(2, 1), (3, 0)]).table
    monkeypatch.setattr("layerscope.interventions.write_patches.PASS_BYTES", 8 << 20)
    cut = both_ways(model, [(2, 1), (3, 0)]).table
    keys = ["pair", "site", "layer", "head", "place", "position"]
    assert cut.select(keys).equals(whole.select(keys), null_equal=True)
    assert (cut["effect"] - whole["effect"]).abs().max() <= 1e-3
    assert whole.filter(site="head")["direct"].null_count() == len(whole.filter(site="head")) == 2 * 2 * 2
