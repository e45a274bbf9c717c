"""What attention, MLPs and heads add: against Transformers' own additions, and against models worked out by hand."""

import functools
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from layerscope import Prompt, Suite, probe
from layerscope.analysis.writers import spearman
from layerscope.errors import ModelError, RunError
from layerscope.model.ablation import Ablation
from layerscope.model.causal_lm import CausalLM
from layerscope.model.sublayers import Writes
from layerscope.probing.write_patching import evenly
from layerscope.published.layout import EXTENDED
from layerscope.readout.direct_attribution import (
    AnswerDirections,
    check_blocks,
    check_heads,
    check_neurons,
    check_steps,
    check_total,
    check_writes,
    shares_of,
)
from layerscope.record.patching import PatchedPairRecord
from layerscope.record.sublayers import (
    AnswerAndRivalRecord,
    CheckedSumRecord,
    SublayersRecord,
    WordingWritersRecord,
    WriterRecord,
)
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.evaluation import evaluation
from layerscope.report.sentences.writers import in_detail, in_short
from layerscope.report.synthesis import synthesis
from layerscope.report.synthesis.comparison_table import comparison_table
from layerscope.report.verify import verify
from layerscope.run import Run
from layerscope.view.charts import writer_shares
from layerscope.view.page.view import page_html
from peers import needs_peers, told_by
from rounding import FLOAT32, of_residual, same_order, same_rank
from tiny_models import BLOCKS_AT, D_VOCAB, TINY, by_family, load_resident, observe, tiny_tokenizer

PROMPTS = [[0, 301, 12, 88], [0, 55, 12, 88, 7, 21, 3], [0, 9, 5]]
ANSWERS, RIVALS = [5, 301, 17], [33, 2, 250]
TOLERANCE = of_residual(n_blocks=4, d_model=64)
NO_SUM = "opt-post-norm"
PARALLEL = {"gptj", "gpt_neox", "phi", "cohere", "stablelm-parallel", "falcon", "falcon-multiquery"}
IN_SHORT = {"gemma2", "gpt2", "gpt_neox", "cohere", "granite", "falcon", "opt-projected", "bloom", "qwen3_moe"}
"""Every kind of block there is; the others are built like one of these."""
EVERY = pytest.mark.parametrize("name", by_family((name for name in TINY if name != NO_SUM), IN_SHORT))


class Additions(TorchDispatchMode):
    """What is added to the residual stream, seen as additions: nothing here knows a module's name.

    The stream is what enters the first block; whatever is added to it is a write, and the sum is the stream again. A
    sum that is itself added (parallel blocks that add attention and MLP first) is two writes.
    """

    def __init__(self, *, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        self.stream: set[int] = set()
        self.sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.writes: list[torch.Tensor] = []
        self.alive: list[Any] = []  # so that no address is used again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        adds = func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_) and isinstance(args[1], torch.Tensor)
        before = [(arg.data_ptr(), arg.clone()) for arg in args[:2]] if adds else []
        result = func(*args, **(kwargs or {}))
        self.alive.append((args, result))
        if not before or not self.stream:
            return result
        (first, left), (second, right) = before
        if first in self.stream or second in self.stream:
            added, other = (right, second) if first in self.stream else (left, first)
            self.writes += self.sums.get(other, (added,)) if self.parallel else [added]
            self.stream.add(result.data_ptr())
        else:
            self.sums[result.data_ptr()] = (left, right)
        return result


def added_by_each_block(model: PreTrainedModel, token_ids: list[int], *, parallel: bool) -> list[list[torch.Tensor]]:
    """For every block the tensors that are added to the stream in it, at the last token."""
    blocks: Any = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))
    seen, found = Additions(parallel=parallel), list[list[torch.Tensor]]()

    def begin(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.stream = {(args[0] if args else kwargs["hidden_states"]).data_ptr()}
        seen.sums.clear()
        seen.writes.clear()

    def end(*_: Any) -> None:
        found.append([write.reshape(-1, write.shape[-1])[-1] for write in seen.writes])
        seen.stream = set()

    handles = [block.register_forward_pre_hook(begin, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(end) for block in blocks]
    try:
        with torch.no_grad(), seen:
            model(torch.tensor([token_ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@functools.lru_cache(maxsize=4)
def run_of(folder: Path) -> tuple[CausalLM, Writes, AnswerDirections]:
    model = CausalLM.open(folder, device="cpu")
    return model, *run_through(model)


def run_through(model: CausalLM) -> tuple[Writes, AnswerDirections]:
    directions = AnswerDirections.of(model.unembedding, ANSWERS, RIVALS)
    return model.forward_writes(PROMPTS, directions.directions, n_logits=len(PROMPTS), neurons=True), directions


@EVERY
def test_writes_are_what_transformers_adds_to_the_stream(name: str, tiny):
    model, writes, _ = run_of(tiny(name))
    assert model.block_order == ("parallel" if name in PARALLEL else "sequential")
    for i, token_ids in enumerate(PROMPTS):
        added = added_by_each_block(load_resident(tiny(name)), token_ids, parallel=name in PARALLEL)
        size = writes.states[i].abs().max()
        for layer, pair in enumerate(added):
            assert len(pair) == 2
            ours = writes.attention[i, layer], writes.mlp[i, layer]
            # A parallel block may add them in either order.
            orders = [pair, pair[::-1]] if name in PARALLEL else [pair]
            errors = [max((a - b).abs().max() for a, b in zip(ours, order, strict=True)) for order in orders]
            assert min(errors) <= TOLERANCE * size


@EVERY
def test_every_sum_holds_that_has_to(name: str, tiny):
    _, writes, directions = run_of(tiny(name))
    shares = shares_of(writes, directions, sequential=name not in PARALLEL)
    assert (shares.mid is None) == (name in PARALLEL)
    checks = [
        check_writes(writes, FLOAT32),
        check_blocks(writes, FLOAT32),
        check_total(shares, writes, directions, FLOAT32),
        check_steps(shares, writes, directions, FLOAT32),
        check_heads(shares),
        *([] if name == "mixtral" else [check_neurons(shares, writes, directions)]),  # whose experts have no one matrix
    ]
    for check in checks:
        assert check is not None
        assert check.ok, check.worst()
    # A bound that lets everything pass would be none: shares themselves are of the order of one.
    assert max(float(check.bound.max()) for check in checks if check is not None) < 0.02


@EVERY
def test_a_sum_that_lacks_a_write_is_found_out(name: str, tiny):
    _, own, directions = run_of(tiny(name))
    writes = replace(own, mlp=own.mlp.clone())
    shares = shares_of(writes, directions, sequential=name not in PARALLEL)
    writes.mlp[1, 1] *= 0.99
    assert not check_writes(writes, FLOAT32).ok
    assert not check_blocks(writes, FLOAT32).ok
    shares.attention[1, 0] += 0.1
    total = check_total(shares, writes, directions, FLOAT32)
    heads = check_heads(shares)
    assert total is not None and not total.ok
    assert heads is not None and not heads.ok


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_prompts_that_share_what_they_begin_with_have_the_writes_that_each_has_alone(name: str, tiny):
    begin = [0, 301, 12] if name == "gemma2" else [0, *range(5, 45)]
    prompts = [[*begin, last] for last in (7, 9, 11)]
    model = CausalLM.open(tiny(name), device="cpu")
    directions = AnswerDirections.of(model.unembedding, ANSWERS, RIVALS).directions
    assert model.folding(prompts) is not None
    together = model.forward_writes(prompts, directions, n_logits=2)
    for i, token_ids in enumerate(prompts):
        alone = model.forward_writes([token_ids], directions[i : i + 1], n_logits=1)
        size = float(alone.states.abs().max())
        for ours, own in (
            (together.states, alone.states),
            (together.mlp, alone.mlp),
            (together.attention, alone.attention),
        ):
            assert (ours[i] - own[0]).abs().max() <= 2 * TOLERANCE * size
        if i < 2:
            assert (together.logits[i] - alone.logits[0]).abs().max() <= 50 * TOLERANCE


def frozen(model: PreTrainedModel, rows: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """Rows behind the model's own final norm, its statistics those of `final`, and any projection; without biases."""
    config, rows, final = model.config, rows.double(), final.double()
    paths = {"gpt2": "transformer.ln_f", "gptj": "transformer.ln_f", "falcon": "transformer.ln_f",
             "bloom": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "phi": "model.final_layernorm",
             "opt": "model.decoder.final_layer_norm"}  # fmt: skip
    norm = model.get_submodule(paths.get(config.model_type, "model.norm"))
    if "RMS" in type(norm).__name__:
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
    else:
        rows, final = rows - rows.mean(-1, keepdim=True), final - final.mean(-1, keepdim=True)
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
    gain = norm.weight.double() + (1.0 if config.model_type.startswith("gemma") else 0.0)
    out = rows * gain / (final.square().mean(-1, keepdim=True) + eps).sqrt()
    projection = getattr(model.model.decoder, "project_out", None) if config.model_type == "opt" else None
    return out if projection is None else out @ projection.weight.double().T


@EVERY
def test_shares_are_the_writes_read_by_the_models_own_head(name: str, tiny):
    resident, (_, writes, directions) = load_resident(tiny(name)), run_of(tiny(name))
    shares = shares_of(writes, directions, sequential=name not in PARALLEL)
    head = resident.get_output_embeddings().weight.double()
    scale = getattr(resident.config, "logit_scale", None) or 1.0 / getattr(resident.config, "logits_scaling", 1.0)
    with torch.no_grad():
        for i, (answer, rival) in enumerate(zip(ANSWERS, RIVALS, strict=True)):
            final = writes.states[i, -1]
            rows = torch.stack([writes.states[i, 0], *writes.attention[i], *writes.mlp[i]])
            expected = scale * (frozen(resident, rows, final) @ (head[answer] - head[rival]))
            ours = torch.stack([shares.embedding[i], *shares.attention[i], *shares.mlp[i]])
            # Both in float64, of the same vectors; gains and heads are float32 in either.
            assert (ours - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@EVERY
def test_heads_are_what_the_output_matrix_gives_with_the_others_at_zero(name: str, tiny):
    """A norm behind the matrix is applied with the statistics of all heads together."""
    _, writes, directions = run_of(tiny(name))
    shares = shares_of(writes, directions, sequential=name not in PARALLEL)
    resident = load_resident(tiny(name))
    blocks: Any = resident.get_submodule(BLOCKS_AT.get(resident.config.model_type, "model.layers"))
    matrix = blocks[1].get_submodule(
        {"gpt2": "attn.c_proj", "gptj": "attn.out_proj", "gpt_neox": "attention.dense", "phi": "self_attn.dense",
         "falcon": "self_attention.dense", "bloom": "self_attention.dense", "opt": "self_attn.out_proj"}.get(
            resident.config.model_type, "self_attn.o_proj")
    )  # fmt: skip
    with torch.no_grad(), reads_of(matrix) as read:
        resident(torch.tensor([PROMPTS[0]]), use_cache=False)
        z = read[0][0, -1]
        n_heads, none = shares.heads.shape[2], matrix(torch.zeros_like(z)[None])[0]
        behind = torch.ones(()).double()
        if "gemma" in name or "olmo" in name:
            gain = blocks[1].post_attention_layernorm.weight.double() + (1.0 if "gemma" in name else 0.0)
            behind = gain / (matrix(z[None])[0].double().square().mean() + resident.config.rms_norm_eps).sqrt()
        scale = directions.inverse_scale(writes.states[:, -1].double())[0]
        scale = scale * getattr(resident.config, "residual_multiplier", 1.0)
        for h in range(n_heads):
            alone = torch.zeros_like(z).view(n_heads, -1)
            alone[h] = z.view(n_heads, -1)[h]
            write = behind * (matrix(alone.view(1, -1))[0] - none).double()
            expected = scale * (directions.directions[0] @ write)
            assert shares.heads[0, 1, h] == pytest.approx(float(expected), abs=TOLERANCE * 50)


@EVERY
def test_neurons_are_what_the_last_matrix_gives_with_the_others_at_zero(name: str, tiny):
    """A norm behind the matrix is applied with the statistics of all neurons together."""
    _, writes, directions = run_of(tiny(name))
    layer = 1
    if writes.neurons is None or layer not in writes.neurons.widths:
        assert name == "mixtral"
        return
    resident = load_resident(tiny(name))
    blocks: Any = resident.get_submodule(BLOCKS_AT.get(resident.config.model_type, "model.layers"))
    matrix = blocks[layer].get_submodule(
        {"gpt2": "mlp.c_proj", "gptj": "mlp.fc_out", "gpt_neox": "mlp.dense_4h_to_h", "phi": "mlp.fc2", "opt": "fc2",
         "falcon": "mlp.dense_4h_to_h", "bloom": "mlp.dense_4h_to_h", "starcoder2": "mlp.c_proj"}.get(
            resident.config.model_type, "mlp.down_proj")
    )  # fmt: skip
    with torch.no_grad(), reads_of(matrix) as read:
        resident(torch.tensor([PROMPTS[0]]), use_cache=False)
        z = read[0].reshape(-1, read[0].shape[-1])[-1]
        none, behind = matrix(torch.zeros_like(z)[None])[0], torch.ones(()).double()
        if "gemma" in name or "olmo" in name:
            gain = blocks[layer].post_feedforward_layernorm.weight.double() + (1.0 if "gemma" in name else 0.0)
            behind = gain / (matrix(z[None])[0].double().square().mean() + resident.config.rms_norm_eps).sqrt()
        behind = behind * getattr(resident.config, "residual_multiplier", 1.0)
        alone = (matrix(torch.diag(z)) - none).double() * behind
        expected = alone @ directions.directions[0]
        widths = list(writes.neurons.widths.items())
        start = sum(width for block, width in widths if block < layer)
        ours = writes.neurons.shares[0, start : start + len(z)]
        assert (ours - expected).abs().max() <= TOLERANCE * 50


@contextmanager
def reads_of(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    read: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        yield read
    finally:
        handle.remove()


@pytest.mark.slow
@needs_peers
@pytest.mark.parametrize("name", ["gpt2", "llama-biases", "qwen3", "gpt_neox", "llama-rope3"])
def test_shares_are_those_of_transformer_lens(name: str, tiny):
    """After its own folding of norms into matrices: another route to the same numbers."""
    model, writes, directions = run_of(tiny(name))
    shares = shares_of(writes, directions, sequential=name not in PARALLEL)
    words = (tiny(name), json.dumps(PROMPTS[1]), ANSWERS[1], RIVALS[1])
    found = json.loads(told_by("transformer_lens_shares.py", *words))
    theirs, heads = found["component"], found["head"]
    embedding = sum(value for label, value in theirs.items() if "embed" in label)
    assert float(shares.embedding[1]) == pytest.approx(embedding, abs=10 * TOLERANCE)
    assert shares.heads is not None
    for i in range(model.n_layers):
        assert float(shares.attention[1, i]) == pytest.approx(theirs[f"{i}_attn_out"], abs=10 * TOLERANCE)
        assert float(shares.mlp[1, i]) == pytest.approx(theirs[f"{i}_mlp_out"], abs=10 * TOLERANCE)
        for h, share in enumerate(shares.heads[1, i].tolist()):
            assert share == pytest.approx(heads[f"L{i}H{h}"], abs=10 * TOLERANCE)


def changed(name: str, folder: Path, change: Any, **config: Any) -> CausalLM:
    """A tiny model, changed in place before it is written."""
    model = TINY[name].resident(**config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            change(path, parameter)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return CausalLM.open(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "matrices", "site"),
    [
        ("qwen3", "mlp.down_proj", "mlp"),
        ("gpt2", "mlp.c_proj", "mlp"),
        ("gemma2", "mlp.down_proj", "mlp"),
        ("qwen3", "self_attn.o_proj", "attention"),
        ("gpt_neox", "attention.dense", "attention"),
    ],
)
def test_what_writes_nothing_has_no_share(name: str, matrices: str, site: str, tmp_path: Path):
    model = changed(name, tmp_path, lambda path, p: p.zero_() if matrices in path else None)
    writes, directions = run_through(model)
    shares = shares_of(writes, directions, sequential=name not in PARALLEL)
    other = "attention" if site == "mlp" else "mlp"
    assert (getattr(shares, site) == 0.0).all()
    assert (getattr(shares, other) != 0.0).all()
    if site == "attention":
        assert (shares.heads == 0.0).all()
    if shares.mid is not None:
        mid_steps, mlp_steps = shares.steps()
        assert ((mid_steps if site == "attention" else mlp_steps) == 0.0).all()


def without_norms(path: str, parameter: torch.Tensor) -> None:
    """With an epsilon of 10^12 an RMS norm divides by 10^6, whatever it reads."""
    if "norm" in path:
        parameter.fill_(1e6)
    else:
        parameter.mul_(0.3)  # a stream that no norm holds back should not outgrow the epsilon


IDENTITY = {"rms_norm_eps": 1e12}


def test_without_norms_shares_are_steps(tmp_path: Path):
    model = changed("llama-biases", tmp_path, without_norms, **IDENTITY)
    writes, directions = run_through(model)
    shares = shares_of(writes, directions, sequential=True)
    attention, mlp = shares.steps()
    # The squares of the stream beside 10^12 change the scale by less than float32 rounds; the sums of a step are
    # rounded twice in a stream of that size.
    size = float((directions.directions.norm(dim=-1).max() * 1e-6) * writes.states.norm(dim=-1).max())
    assert (attention - shares.attention).abs().max() <= 16 * FLOAT32 * size
    assert (mlp - shares.mlp).abs().max() <= 16 * FLOAT32 * size


def test_the_blocks_of_a_linear_model_may_change_places(tmp_path: Path):
    """Without norms and attention, and with MLPs that write their bias alone, a write does not depend on its place."""

    def constant(path: str, parameter: torch.Tensor) -> None:
        without_norms(path, parameter)
        if "down_proj.weight" in path or "o_proj" in path:
            parameter.zero_()

    model = changed("llama-biases", tmp_path / "a", constant, **IDENTITY)
    resident = load_resident(tmp_path / "a")
    layers = resident.model.layers
    layers[0], layers[2] = layers[2], layers[0]
    resident.save_pretrained(tmp_path / "b")
    tiny_tokenizer().save_pretrained(tmp_path / "b")
    load_resident.cache_clear()
    first, second = (
        shares_of(*run_through(m), sequential=True) for m in (model, CausalLM.open(tmp_path / "b", device="cpu"))
    )
    exchanged = first.mlp[:, [2, 1, 0, 3]]
    size = float(first.mlp.abs().max())
    assert (second.mlp - exchanged).abs().max() <= 1e-5 * size
    assert (second.total - first.total).abs().max() <= 1e-4 * size


def two_blocks(folder: Path) -> CausalLM:
    """No norms, attention that looks at all tokens alike, no MLPs; heads that move one feature each.

    Block 1: head 0 adds twice feature 0 to feature 4, head 1 takes three times feature 1 from feature 5.
    Block 2: head 0 adds 1.5 times feature 4 to itself, head 1 half of feature 2 to feature 5.
    """
    config = AutoConfig.for_model(
        "llama", vocab_size=D_VOCAB, hidden_size=8, intermediate_size=4, num_hidden_layers=2, num_attention_heads=2,
        head_dim=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, **IDENTITY,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    moves = [((0, 4, 2.0), (1, 5, -3.0)), ((4, 4, 1.5), (2, 5, 0.5))]
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.fill_(1e6 if "norm" in path else 0.0)
        for block, heads in zip(model.model.layers, moves, strict=True):
            for h, (source, target, factor) in enumerate(heads):
                block.self_attn.v_proj.weight[4 * h, source] = 1.0
                block.self_attn.o_proj.weight[target, 4 * h] = factor
        embedding = torch.arange(3 * D_VOCAB, dtype=torch.float32).view(D_VOCAB, 3) % 7 - 2
        model.model.embed_tokens.weight[:, :3] = embedding
        model.lm_head.weight[ANSWERS[0], 4] = 1.0
        model.lm_head.weight[RIVALS[0], 5] = 1.0
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return CausalLM.open(folder, device="cpu")


def test_the_heads_of_two_blocks_built_by_hand(tmp_path: Path):
    model, token_ids = two_blocks(tmp_path), [3, 8, 20, 11]
    directions = AnswerDirections.of(model.unembedding, ANSWERS[:1], RIVALS[:1])
    writes = model.forward_writes([token_ids], directions.directions, n_logits=1)
    shares = shares_of(writes, directions, sequential=True)
    p, q, r = ([(3 * i + k) % 7 - 2 for i in token_ids] for k in range(3))
    after_block_1 = [2 * sum(p[: n + 1]) / (n + 1) for n in range(4)]
    expected = [[2 * sum(p) / 4, 3 * sum(q) / 4], [1.5 * sum(after_block_1) / 4, -0.5 * sum(r) / 4]]
    # Each norm rounds three times, each product of a few terms as often; numbers of the order of ten.
    assert shares.heads[0].tolist() == [pytest.approx(row, abs=40 * 10 * FLOAT32) for row in expected]
    assert (shares.mlp == 0.0).all()
    assert float(shares.embedding) == 0.0
    assert float(shares.total) == pytest.approx(sum(map(sum, expected)), abs=80 * 10 * FLOAT32)
    own = float(writes.logits[0, ANSWERS[0]] - writes.logits[0, RIVALS[0]])
    assert float(shares.total) == pytest.approx(own, abs=80 * 10 * FLOAT32)


def test_a_softcap_comes_after_the_shares(tiny):
    model, writes, directions = run_of(tiny("gemma2"))
    shares, cap = shares_of(writes, directions, sequential=True), 3.0
    own = torch.stack([w[[a, b]] for w, a, b in zip(writes.logits, ANSWERS, RIVALS, strict=True)]).double()
    capped = directions.capped(writes.states[:, -1])
    assert capped is not None
    assert (capped - (own[:, 0] - own[:, 1])).abs().max() <= 64 * FLOAT32 * cap
    assert model.unembedding.transform.softcap == cap
    before = cap * torch.atanh(own / cap)
    slope = 1 / (1 - (own / cap).square()).min()
    assert (shares.total - (before[:, 0] - before[:, 1])).abs().max() <= 1e-4 * slope
    assert (shares.total - capped).abs().max() > 0.1  # the cap is felt here, so the two are told apart


# What is refused


def test_a_stream_with_norms_behind_its_sums_has_no_shares(tiny):
    model = CausalLM.open(tiny(NO_SUM), device="cpu")
    with pytest.raises(ModelError, match="do_layer_norm_before = False puts a norm behind the sum"):
        run_through(model)
    with pytest.raises(ModelError, match="no sum of what attention and MLPs added"):
        probe(tiny(NO_SUM), suite=SUITE, sublayers=True)


SUITE = Suite("one", "", (Prompt("pos", "orig", "The capital of Germany is called", ("Berlin",), "Germany→Berlin", 0),))
UNLISTED: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def unlisted(family: str, folder: Path, **sizes: Any) -> Path:
    """A small random model of a family that no table lists."""
    torch.manual_seed(316)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**UNLISTED, **sizes})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_block_without_attention_names_what_is_missing(tmp_path: Path):
    folder = unlisted("mamba", tmp_path, state_size=4)
    with pytest.raises(ModelError, match=r"layer 1 of this 'mamba' model should have its attention under self_attn"):
        probe(folder, suite=SUITE, sublayers=True)


def test_an_unlisted_family_has_shares_where_its_parts_add_up_and_no_state_between(tmp_path: Path):
    run = probe(unlisted("olmo", tmp_path), suite=SUITE, sublayers=True)
    found = run.record.measured.sublayers
    assert found is not None and found.adds_up and found.order is None
    assert found.mid_reason is not None and "not known of this family" in found.mid_reason
    assert run.writers is not None and run.writers.filter(site="mid").is_empty()


def test_an_unlisted_family_whose_blocks_add_something_else_is_refused(tmp_path: Path, monkeypatch):
    folder = unlisted("olmo", tmp_path)
    from transformers.models.olmo.modeling_olmo import OlmoDecoderLayer

    forward = OlmoDecoderLayer.forward
    monkeypatch.setattr(
        OlmoDecoderLayer, "forward", lambda self, x, *args, **kwargs: forward(self, x, *args, **kwargs) + 0.01 * x
    )
    with pytest.raises(ModelError, match=r"block of layer \d should add up to its step, but they miss it by"):
        probe(folder, suite=SUITE, sublayers=True)


# What a run keeps


@pytest.fixture(scope="module")
def attributed() -> Run:
    return probe(suite="capitals", sublayers=True, causal=True, lenses="logit", positions="last")


def test_a_run_keeps_every_prompts_shares_and_their_means(attributed: Run):
    found, table = attributed.record.measured.sublayers, attributed.writers
    assert found is not None and table is not None and found.adds_up
    assert {checked.sum for checked in found.sums} == {"writes", "shares", "steps", "heads"}
    assert len(found.prompts) == len(attributed.record.suite.prompts)
    for prompt in found.prompts:
        rows = table.filter(prompt_id=prompt.prompt_id, prompt_variant=prompt.prompt_variant)
        rows = rows.filter(rows["fact_index"].eq_missing(prompt.fact_index))
        shares = rows.filter(rows["site"].is_in(["resid", "attn", "mlp", "constant"]), kind="dla")
        assert shares["logit_difference"].sum() == pytest.approx(prompt.logit_difference, abs=1e-9)
        last = rows.filter(site="resid", kind="lens")["logit_difference"][-1]
        assert last == pytest.approx(prompt.logit_difference, abs=1e-3)  # the stream's own sums are rounded
        steps = rows.filter(kind="step")["logit_difference"].sum()
        first = rows.filter(site="resid", kind="lens", layer=0)["logit_difference"].item()
        assert first + steps == pytest.approx(last, abs=1e-9)
    for wording in found.wordings:
        of = table.filter(prompt_id=wording.prompt_id, prompt_variant=wording.prompt_variant)
        for site, writer in (("attn", wording.attention), ("mlp", wording.mlp)):
            means = of.filter(site=site, kind="dla").group_by("layer", maintain_order=True).agg(
                mean=pl.col("logit_difference").mean(), n=(pl.col("logit_difference") > 0).sum()
            ).sort("layer")  # fmt: skip
            assert list(writer.dla[1:]) == pytest.approx(means["mean"].to_list(), abs=1e-9)
            assert list(writer.n_positive[1:]) == means["n"].to_list()


def test_single_writes_and_states_between_are_what_the_models_own_head_makes_of_them(tiny):
    run = probe(tiny("qwen3"), suite=SUITE, sublayers=True, lenses="logit")
    assert run.writers is not None and run.record.measured.sublayers is not None
    (prompt,) = run.record.suite.prompts
    (pair,) = run.record.measured.sublayers.prompts
    assert prompt.output is not None and pair.answer_id == prompt.output.answer_id
    assert pair.rival_id == next(i for i in prompt.output.top_ids if i != pair.answer_id)
    resident = load_resident(tiny("qwen3"))
    added = added_by_each_block(resident, list(prompt.token_ids or ()), parallel=False)
    stream = observe(resident, list(prompt.token_ids or ())).residuals[:, -1]
    for layer, (attention, mlp) in enumerate(added, start=1):
        vectors = {"attn": attention, "mlp": mlp, "mid": stream[layer - 1] + attention}
        for site, vector in vectors.items():
            with torch.no_grad():
                logits = resident.lm_head(resident.model.norm(vector)).double()
            row = run.writers.filter(pl.col("kind").is_in(["write", "lens"]), site=site, layer=layer).row(0, named=True)
            log_probs = logits.log_softmax(-1)
            # The norm makes every row as long; logits of some ten, off by what a residual may be.
            assert same_rank(row["answer_rank"], float(logits[pair.answer_id]), logits, 10 * TOLERANCE)
            assert row["p_answer"] == pytest.approx(float(log_probs[pair.answer_id].exp()), rel=40 * TOLERANCE)
            assert row["entropy_bits"] == pytest.approx(
                float(-(log_probs.exp() * log_probs).sum() / math.log(2)), rel=40 * TOLERANCE
            )
            assert same_order([row["top1_id"]], logits, 10 * TOLERANCE)
            difference = float(logits[pair.answer_id] - logits[pair.rival_id])
            assert row["logit_difference"] == pytest.approx(difference, abs=20 * TOLERANCE)


def test_the_neurons_with_the_largest_shares_are_named():
    run = probe(suite="capitals", sublayers=True, neurons=True, lenses="logit", positions="last", limit=3)
    found = run.record.measured.sublayers
    assert found is not None and found.adds_up and "neurons" in {checked.sum for checked in found.sums}
    wording = found.of_wording("pos", "orig")
    assert wording is not None and len(wording.neurons) == 20
    sizes = [abs(neuron.dla) for neuron in wording.neurons]
    assert sizes == sorted(sizes, reverse=True)
    told = {line.label: line.text for line in in_detail(found, wording)}
    first = wording.neurons[0]
    assert told["neurons"].startswith(f"neuron {first.neuron} of layer {first.layer} {first.dla:+.2f} (")
    # What the largest writes is gone without it, and the lead with it: no other part of its block is touched.
    model = CausalLM.open(device="cpu")
    prompts = [
        list(p.token_ids or ()) for p in run.record.suite.prompts if p.prompt_id == "pos" and p.prompt_variant == "orig"
    ]
    pairs = [p for p in found.prompts if p.prompt_id == "pos" and p.prompt_variant == "orig"]
    directions = AnswerDirections.of(model.unembedding, [p.answer_id for p in pairs], [p.rival_id for p in pairs])
    twin = model.ablated(Ablation.of([f"neurons:{first.layer}:{first.neuron}"], "zero"))
    whole, without = (m.forward_writes(prompts, directions.directions) for m in (model, twin))
    scale = directions.inverse_scale(whole.states[:, -1].double())
    gone = directions.read((whole.mlp - without.mlp)[:, first.layer - 1 : first.layer].double())[:, 0]
    assert float((scale * gone).mean()) == pytest.approx(first.dla, abs=50 * of_residual(n_blocks=12, d_model=96))


def test_neurons_are_named_among_sublayers_alone():
    with pytest.raises(ModelError, match="ask for `sublayers` too"):
        probe(suite=SUITE, neurons=True)


def test_a_folder_keeps_the_table_and_is_refused_without_it(attributed: Run, tmp_path: Path):
    attributed.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == attributed
    (tmp_path / "run" / "sublayers.parquet").unlink()
    with pytest.raises(RunError, match=r"sublayers\.parquet: cannot be read"):
        Run.read(tmp_path / "run")


def test_a_damaged_table_is_named(attributed: Run, tmp_path: Path):
    attributed.save(tmp_path / "run")
    assert attributed.writers is not None
    attributed.writers.drop("head").write_parquet(tmp_path / "run" / "sublayers.parquet")
    with pytest.raises(RunError, match=r"sublayers\.parquet: .* should have the columns"):
        Run.read(tmp_path / "run")


def test_a_parallel_model_has_no_state_between(tiny):
    run = probe(tiny("gpt_neox"), suite=SUITE, sublayers=True, lenses="logit")
    found = run.record.measured.sublayers
    assert found is not None and found.order == "parallel"
    assert found.mid_reason is not None and "read the same state" in found.mid_reason
    assert found.wordings[0].attention.step == ()
    assert run.writers is not None
    assert run.writers.filter(kind="step").is_empty() and run.writers.filter(site="mid").is_empty()


def test_memory_for_one_prompt_at_a_time_gives_the_same(attributed: Run, monkeypatch):
    monkeypatch.setattr("layerscope.probing.memory_plan.ENOUGH_BYTES", 0)
    parted = probe(suite="capitals", sublayers=True, lenses="logit", positions="last", limit=3)
    whole, table = attributed.writers, parted.writers
    assert whole is not None and table is not None
    same = whole.join(
        table.select("prompt_id", "prompt_variant", "fact_index").unique(),
        on=["prompt_id", "prompt_variant", "fact_index"],
        how="semi",
        nulls_equal=True,
    )
    assert same.height == table.height
    assert (same["logit_difference"] - table["logit_difference"]).abs().max() <= 1e-3


# What is said of it


def means(shares: dict[str, list[float]], n: int = 4) -> WordingWritersRecord:
    layers = len(shares["attention"])
    writer = {
        site: WriterRecord(dla=(None, *shares[site]), n_positive=(None, *(n * (v > 0) for v in shares[site])), step=())
        for site in ("attention", "mlp")
    }
    return WordingWritersRecord(
        prompt_id="pos", prompt_variant="orig", n=n, logit_difference=sum(map(sum, shares.values())), embedding=0.0,
        constant=0.0, lens_logit_difference=(0.0,) * (layers + 1), **writer,
    )  # fmt: skip


def record(*sums: CheckedSumRecord, shares: dict[str, list[float]]) -> SublayersRecord:
    wording = means(shares)
    prompts = tuple(
        AnswerAndRivalRecord(
            prompt_id="pos", prompt_variant="orig", fact_index=i, answer_id=1, answer="a", rival_id=2, rival="b",
            logit_difference=wording.logit_difference * (-1) ** (i == 3),
        )
        for i in range(wording.n)
    )  # fmt: skip
    return SublayersRecord(order="sequential", heads_reason="x", prompts=prompts, wordings=(wording,), sums=sums)


SHARES = {"attention": [0.25, 3.0, -1.0], "mlp": [-0.5, 0.75, 1.5]}
HOLDS = CheckedSumRecord(sum="shares", error=2e-6, bound=1e-3, n=4, ok=True)


def test_the_largest_shares_are_named_by_part_and_layer():
    found = record(HOLDS, shares=SHARES)
    told = {line.label: line.text for line in in_detail(found, found.wordings[0])}
    assert told["lead"] == "answer's logit less its rival's +4.00 nats, mean of 4 prompts, 3 of them answered"
    assert (
        told["writers"]
        == "attention 2 +3.00 (4 of 4), MLP 3 +1.50 (4 of 4), MLP 2 +0.75 (4 of 4), attention 1 +0.25 (4 of 4)"
    )
    assert told["against"] == "attention 3 -1.00 (4 of 4), MLP 1 -0.50 (4 of 4)"
    assert told["heads"] == "not told apart: x"
    assert told["sums"].endswith("by 2.0e-06 nats, where rounding explains 0.001")
    assert "patches ask that" in told["cause"]
    assert in_short(found, found.wordings[0]).startswith("attention 2 +3.00, MLP 3 +1.50, MLP 2 +0.75; ")


def test_where_a_sum_does_not_hold_no_share_is_named():
    broken = CheckedSumRecord(sum="shares", error=0.5, bound=1e-3, n=4, ok=False)
    found = record(HOLDS.model_copy(update={"sum": "writes"}), broken, shares=SHARES)
    (line,) = in_detail(found, found.wordings[0])
    assert line.weight == "block"
    assert line.text == (
        "no share can be trusted: the shares miss the model's own logit difference by 0.500 nats, and rounding "
        "explains 0.001"
    )
    assert "attention" not in in_short(found, found.wordings[0])


def test_spearman_is_the_textbooks():
    """Ranks 1 to 5 against 2, 1, 4, 3, 5: 1 - 6 * 4 / (5 * 24); ties have their mean rank."""
    assert spearman(np.array([10.0, 20, 30, 40, 50]), np.array([0.2, 0.1, 0.4, 0.3, 9.0])) == pytest.approx(0.8)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.0)
    assert spearman(np.array([1.0, 2.0]), np.array([5.0, 5.0])) is None


def test_shares_are_ranked_beside_what_patching_says_each_block_brings_in(attributed: Run):
    found, patching, table = (
        attributed.record.measured.sublayers,
        attributed.record.measured.patching,
        attributed.writers,
    )
    assert found is not None and patching is not None and table is not None and found.patching is not None
    at_next = attributed.patches.filter(kind="pair", place="next").sort("pair", "layer")
    effects = [median(at_next.filter(layer=layer)["effect"].to_list()) for layer in range(13)]
    assert None not in effects
    brought = np.diff(np.array(effects))
    wording = found.of_wording("pos", patching.prompt_variant)
    assert wording is not None and wording.n == found.patching.n_facts  # all five are patched
    shares = np.array(wording.attention.dla[1:]) + np.array(wording.mlp.dla[1:])
    order = [np.argsort(np.argsort(values)) for values in (shares, brought)]
    expected = 1 - 6 * float(((order[0] - order[1]) ** 2).sum()) / (12 * 143)  # no two are equal
    assert found.patching.spearman == pytest.approx(expected)


def test_the_chart_has_a_bar_for_each_part_of_each_block(attributed: Run):
    chart = attributed.plot("writers")
    found = attributed.record.measured.sublayers
    assert found is not None
    wording = found.of_wording("pos", "orig")
    assert wording is not None
    data = chart.to_dict()
    (values,) = data["datasets"].values()
    drawn = {(row["layer"], row["part"]): row["share"] for row in values}
    due = {
        (i, part): of.dla[i]
        for part, of in (("attention", wording.attention), ("MLP", wording.mlp))
        for i in range(1, 13)
    }
    assert drawn == pytest.approx(due, rel=1e-5)
    spec = writer_shares(attributed)
    assert "attention of layer 5" in spec.description and "5 prompts, of which 5 are answered" in spec.description
    assert spec.svg().startswith("<svg")
    assert 'id="writers"' in page_html([attributed])


def test_without_shares_there_is_no_chart(tiny):
    run = probe(tiny("qwen3"), suite=SUITE, lenses="logit")
    with pytest.raises(RunError, match="probe with --sublayers"):
        run.plot("writers")
    assert 'id="writers"' not in page_html([run])


# One write at a time from another fact's run


def test_effects_of_single_writes_are_medians_of_the_table(attributed: Run):
    table, found = attributed.write_patches, attributed.record.measured.sublayers
    assert table is not None and found is not None and found.write_patching is not None
    effects = found.write_patching
    assert effects.n_patches == table.height and effects.n_facts == 5
    assert (effects.n_pairs, effects.n_pairs_left) == (20, 0)
    assert table.group_by("base").agg(pl.col("pair").n_unique())["pair"].to_list() == [4] * 5
    for site, of in (("attn", effects.attention), ("mlp", effects.mlp)):
        for layer in (1, 5, 12):
            for place, medians in (("next", of.next), ("subject", of.subject)):
                values = table.filter(site=site, layer=layer, place=place)["effect"].drop_nulls().to_list()
                assert medians[layer] == pytest.approx(median(values))
            at_next = table.filter(site=site, layer=layer, place="next")["effect"].to_list()
            assert of.n_positive[layer] == sum(value > 0 for value in at_next)
            assert of.n_known[layer] == len(at_next)
    for head in effects.heads:
        values = table.filter(site="head", layer=head.layer, head=head.head, place="next")["effect"].to_list()
        assert head.effect == pytest.approx(median(values))
    wording = found.of_wording("pos", "orig")
    assert wording is not None and wording.heads is not None
    shares = [(abs(dla), i, j) for i, row in enumerate(wording.heads.dla) for j, dla in enumerate(row)]
    assert [(head.layer, head.head) for head in effects.heads] == [(i, j) for _, i, j in sorted(shares)[::-1][:10]]


def test_single_writes_are_told_with_their_pairs_and_the_agreement(attributed: Run):
    found = attributed.record.measured.sublayers
    assert found is not None and found.write_patching is not None
    lines = {line.label: line.text for line in in_detail(found, found.of_wording("pos", "orig"))}
    attention = found.write_patching.attention
    size = [abs(value or 0.0) for value in (*attention.next, *found.write_patching.mlp.next)]
    layer = int(np.argmax(size)) % 13
    assert lines["put in"].startswith(
        "one write at a time from another fact's run (median over 5 facts in 20 of 20 pairs), at the last token: "
        f"attention {layer} {attention.next[layer]:+.2f} ({attention.n_positive[layer]} of 20)"
    )
    assert "; at the subject's: " in lines["put in"] and "; of 10 heads with the largest shares: " in lines["put in"]
    assert "rank correlation of 0." in lines["agreement"]
    assert lines["agreement"].endswith("(an illustration: a claim takes 10 facts)")


def test_why_no_write_was_replaced_is_told(attributed: Run):
    found = attributed.record.measured.sublayers
    assert found is not None
    without = found.model_copy(update={"write_patching": None, "write_patching_reason": "facts do not pair"})
    lines = {line.label: line.text for line in in_detail(without, found.of_wording("pos", "orig"))}
    assert lines["put in"] == "no write: facts do not pair" and "agreement" not in lines


def test_pairs_are_taken_evenly_over_the_facts():
    """Of the ten pairs of five facts that stand first, two have the fifth as their source and none as their base."""
    pairs = [
        PatchedPairRecord.model_construct(base=base, source=source)
        for base in range(5)
        for source in range(5)
        if base != source
    ]
    taken = [(pair.base, pair.source) for pair in evenly(pairs, 10)]
    assert len(set(taken)) == 10
    for end in (0, 1):
        assert sorted(pair[end] for pair in taken) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert evenly(pairs, 30) != pairs and len(evenly(pairs, 30)) == 20


def test_a_table_of_replaced_writes_belongs_to_its_record(attributed: Run, tmp_path: Path):
    path = tmp_path / "run" / "write_patches.parquet"
    attributed.save(tmp_path / "run")
    table = attributed.write_patches
    assert table is not None
    for other, words in (
        (table.drop("direct"), "should have the columns"),
        (table.head(3), f"speaks of {table.height} replaced writes, but the table has 3"),
        (table.with_columns(source=pl.col("base")), r"of the pair \(0, 0\), which the record has not"),
        (table.with_columns(effect=pl.col("effect") + 1), "of other effects than the record"),
    ):
        other.write_parquet(path)
        with pytest.raises(RunError, match=rf"write_patches\.parquet: .*{words}"):
            Run.read(tmp_path / "run")
    path.unlink()
    with pytest.raises(RunError, match=r"write_patches\.parquet: cannot be read"):
        Run.read(tmp_path / "run")


def test_reports_tell_of_single_writes_with_the_lines_that_show_them(attributed: Run, tmp_path: Path):
    attributed.save(tmp_path / "run", published=EXTENDED)
    again = Run.read(tmp_path / "run" / "published")
    assert attributed.write_patches is not None and not again.problems
    assert attributed.write_patches.equals(again.write_patches, null_equal=True)
    evidence = Evidence.of(tmp_path / "run")
    found = attributed.write_effects
    assert found is not None and found == attributed.record.measured.sublayers.write_patching  # type: ignore[union-attr]
    text = markdown(evaluation(evidence)).split("### Which writes move the answer?")[1].split("\n### ")[0]
    largest = max((abs(effect or 0.0), i) for i, effect in enumerate(found.attention.next))[1]
    assert f"that of attention in the block of layer {largest} moves the answer most" in text
    lines = (tmp_path / "run" / "published" / "output-reference.json").read_text().splitlines()
    for name in ("spearman_of_shares", "spearman_of_direct"):  # in the record, and as found again from the table
        cited = max(i for i, line in enumerate(lines, 1) if line.strip().startswith(f'"{name}": '))
        assert re.search(rf"[:, ]{cited}[,`]", text)
    row = next(line for line in text.splitlines() if line.startswith(f"| attention | {largest} |")).split(" | ")
    assert float(row[2]) == pytest.approx(found.attention.next[largest], rel=1e-4)
    wording = attributed.record.measured.sublayers.of_wording("pos", "orig")  # type: ignore[union-attr]
    assert wording is not None and float(row[7]) == pytest.approx(wording.attention.dla[largest], rel=1e-4)
    assert verify(evidence, tmp_path / "run").holds
    assert "| reference | 5 | 20 | attention |" in markdown(synthesis([evidence]))
    assert comparison_table([evidence])["largest_write_effect"].item() == pytest.approx(found.attention.next[largest])


def test_an_effect_that_its_table_does_not_give_is_found(attributed: Run, tmp_path: Path):
    attributed.save(tmp_path / "run", published=EXTENDED)
    path = tmp_path / "run" / "published" / "output-reference.json"
    head, member, tail = path.read_text().rpartition('"write_patching": {')
    effect = attributed.record.measured.sublayers.write_patching.mlp.next[9]  # type: ignore[union-attr]
    assert tail.count(str(effect)) == 1
    path.write_text(head + member + tail.replace(str(effect), "0.5"))
    found = verify(Evidence.of(tmp_path / "run"), tmp_path / "run")
    assert [difference.what for difference in found.differences] == ["/write_patching/mlp/next"]
    (path.parent / "output-reference-single-writes.csv").unlink()
    lost = Run.read(path.parent)
    assert any("every write that was put into another run" in problem.message for problem in lost.problems)
    assert lost.write_effects is not None and lost.write_effects.mlp.next[9] == effect


def test_the_chart_of_single_writes_has_their_medians(attributed: Run):
    chart = attributed.plot("write_effects")
    found = attributed.record.measured.sublayers
    assert found is not None and found.write_patching is not None
    (values,) = chart.to_dict()["datasets"].values()
    drawn = {(row["layer"], row["part"]): row["effect"] for row in values}
    parts = (("attention", found.write_patching.attention), ("MLP", found.write_patching.mlp))
    assert drawn == pytest.approx({(i, part): of.next[i] for part, of in parts for i in range(1, 13)}, rel=1e-5)
    assert "write_effects" in page_html([attributed])
