"""Adapters are applied as PEFT applies them, or refused with a sentence.

References are the papers' formulas written into the weights, and PEFT itself where it is installed.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from layerscope.errors import CheckpointError, LayerscopeError
from layerscope.model.adapter import read_adapter
from layerscope.model.adapter_config import read_adapter_config
from layerscope.model.causal_lm import CausalLM
from properties import examples, slow
from tiny_models import PROMPTS

RANK, ALPHA = 4, 8.0
Q, HEAD, EMBED = "model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens"
PREFIX = "base_model.model."


def saved(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """An adapter as PEFT saves one."""
    folder.mkdir(exist_ok=True)
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": None} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    contiguous = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "adapter_model.safetensors")
    return folder


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


def low_rank(module: str, weight: Tensor, rank: int = RANK) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a change, and B A; A and B of an embedding change the table's transpose."""
    d_out, d_in = weight.shape
    up, down = drawn(d_out, rank), drawn(rank, d_in)
    if module.endswith("embed_tokens"):
        return {f"{module}.lora_embedding_A": up.T, f"{module}.lora_embedding_B": down.T}, up @ down
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, up @ down


def logits(model: str | Path, **options: Any) -> Tensor:
    return CausalLM.open(model, device="cpu", **options).forward(PROMPTS).logits


def merged_logits(base: Path, changes: Mapping[str, Tensor]) -> Tensor:
    """Those of Transformers' model of `base` with some of its parameters replaced; what was tied is no longer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.inference_mode():
        for name, tensor in changes.items():
            module, _, parameter = name.rpartition(".")
            setattr(model.get_submodule(module), parameter, torch.nn.Parameter(tensor))
        return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in PROMPTS])


def assert_same(found: Tensor, due: Tensor) -> None:
    torch.testing.assert_close(found, due, rtol=0, atol=2e-5 * due.abs().max().item())


def refused(error: type[LayerscopeError], call: Callable[[], object], *said: str) -> None:
    with pytest.raises(error) as caught:
        call()
    for part in said:
        assert part in str(caught.value)


# ---- what PEFT's formulas give


@pytest.mark.parametrize(
    ("base", "module"),
    [("llama-biases", EMBED), ("llama-tied", EMBED), slow("llama-biases", HEAD), slow("llama-tied", HEAD)],
)
def test_a_change_of_embedding_or_head_goes_on_top_of_the_layer_saved_beside_it(base: str, module: str, tiny, tmp_path):
    """PEFT saves `base_layer` of its own accord where an embedding is changed; only the base is tied."""
    weights = weights_of(tiny(base))
    stored = weights.get(f"{module}.weight", weights[f"{EMBED}.weight"])
    tensors, change = low_rank(module, stored)
    replaced = drawn(*stored.shape, seed=3)
    adapter = saved(tmp_path / "a", tensors | {f"{module}.base_layer.weight": replaced})
    due = {f"{module}.weight": replaced + ALPHA / RANK * change}
    if base == "llama-tied":
        due = {f"{EMBED}.weight": replaced, f"{HEAD}.weight": replaced} | due
    assert_same(logits(tiny(base), adapter=adapter), merged_logits(tiny(base), due))


def test_a_module_to_save_is_no_longer_tied_and_any_other_tensor_stays_so(tiny, tmp_path: Path):
    base, name = tiny("llama-tied"), f"{EMBED}.weight"
    table = drawn(*weights_of(base)[name].shape, seed=4)
    own = saved(tmp_path / "own", {name: table}, modules_to_save=["embed_tokens"])
    tied = saved(tmp_path / "tied", {name: table})
    assert_same(logits(base, adapter=own), merged_logits(base, {name: table}))
    assert_same(logits(base, adapter=tied), merged_logits(base, {name: table, f"{HEAD}.weight": table}))
    fingerprints = {CausalLM.open(base, adapter=each, device="cpu").blocks_fingerprint for each in (own, tied)}
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("k_proj|q_proj", True),
        ("q_proj|k_proj", True),  # PEFT puts a key in brackets, so that each alternative may follow any path
        ("self_attn.q_proj", True),
        ("model.layers.[0-9].self_attn.q_proj", True),
        ("^model.layers.0.self_attn.q_proj", True),
        ("proj", False),  # a part of a name is none
        ("q_proj.weight", False),
    ],
)
def test_patterns_of_names_are_matched_as_peft_matches_them(pattern: str, fits: bool, tiny, tmp_path: Path):
    tensors, _ = low_rank(Q, weights_of(tiny("llama-biases"))[f"{Q}.weight"])
    adapter = read_adapter(saved(tmp_path / "a", tensors, alpha_pattern={pattern: 80}))
    assert adapter.changes[Q].scale == (80 if fits else ALPHA) / RANK


def test_ranks_of_patterns_are_those_of_the_tensors_and_divide(tiny, tmp_path: Path):
    weight = weights_of(tiny("llama-biases"))[f"{Q}.weight"]
    tensors, _ = low_rank(Q, weight, rank=9)
    more = {"rank_pattern": {"q_proj": 9}, "use_rslora": True}
    assert read_adapter(saved(tmp_path / "a", tensors, **more)).changes[Q].scale == ALPHA / 3
    refused(CheckpointError, lambda: read_adapter(saved(tmp_path / "a", tensors)), "lora_A [4, inputs]", "[9, 48]", Q)


@pytest.mark.parametrize("said", [slow(True), False])
def test_whether_a_matrix_is_kept_transposed_is_told_by_the_module(said: bool, tiny, tmp_path: Path):
    """PEFT corrects `fan_in_fan_out` by the class of the layer; GPT-2's square matrices do not tell it by shape."""
    base, name = tiny("gpt2"), "transformer.h.0.attn.c_proj"
    weight = weights_of(base)[f"{name}.weight"]
    assert weight.shape[0] == weight.shape[1]
    tensors, change = low_rank(name, weight)
    adapter = saved(tmp_path / "a", tensors, fan_in_fan_out=said)
    due = merged_logits(base, {f"{name}.weight": weight + ALPHA / RANK * change.T})
    assert_same(logits(base, adapter=adapter), due)


def test_adapters_of_the_same_tensors_and_another_scale_are_told_apart(tiny, tmp_path: Path):
    base = tiny("llama-biases")
    tensors, _ = low_rank(HEAD, weights_of(base)[f"{HEAD}.weight"])
    adapters = [saved(tmp_path / f"{alpha}", tensors, lora_alpha=alpha) for alpha in (8, 800)]
    one, other = (CausalLM.open(base, adapter=adapter, device="cpu") for adapter in adapters)
    assert one.fingerprint != other.fingerprint and one.blocks_fingerprint != other.blocks_fingerprint
    again = saved(
        tmp_path / "again", tensors, alpha_pattern={"lm_head": 8}, lora_alpha=5, base_model_name_or_path="x/y"
    )
    same = CausalLM.open(base, adapter=again, device="cpu")
    assert same.fingerprint == one.fingerprint and same.blocks_fingerprint == one.blocks_fingerprint


@pytest.mark.parametrize("module", [EMBED, slow(HEAD)])
def test_a_shuffled_twin_keeps_the_entries_of_what_an_adapter_has_untied(module: str, tiny, tmp_path: Path):
    base = tiny("llama-tied")
    tensors, change = low_rank(module, weights_of(base)[f"{EMBED}.weight"])
    twin = CausalLM.open(base, adapter=saved(tmp_path / "a", tensors), device="cpu").shuffled_twin("all", 1)
    table = weights_of(base)[f"{EMBED}.weight"]
    for name in (EMBED, HEAD):
        due = table + ALPHA / RANK * change if name == module else table
        found = twin._stored[f"{name}.weight"].tensor().float()
        torch.testing.assert_close(found.flatten().sort().values, due.flatten().sort().values)
        assert not torch.equal(found, due)


# ---- what is said of it


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("/home/alice/secret/base", "trained on base,"),
        ("C:\\Users\\alice\\base\\", "trained on base,"),
        ("~/secret/base", "trained on base,"),
        ("some/base", "trained on some/base,"),
        ("..", None),
    ],
)
def test_no_path_gets_into_the_record(base: str, named: str | None, tiny, tmp_path: Path):
    tensors, _ = low_rank(Q, weights_of(tiny("llama-biases"))[f"{Q}.weight"])
    note = read_adapter(saved(tmp_path / "a", tensors, base_model_name_or_path=base)).note
    assert "alice" not in note and "secret" not in note
    assert named is None or f"'a', {named} was applied" in note
    assert named is not None or "'a' was applied" in note


def test_an_adapter_beside_the_weights_that_is_applied_is_not_said_to_be_left(tiny, tmp_path: Path):
    folder = tmp_path / "both"
    shutil.copytree(tiny("llama-biases"), folder)
    tensors, _ = low_rank(Q, weights_of(folder)[f"{Q}.weight"])
    saved(folder, tensors)
    applied = CausalLM.open(folder, adapter=folder, device="cpu").notes
    assert len(applied) == 1 and "'both' was applied" in applied[0]
    other = CausalLM.open(folder, adapter=saved(tmp_path / "other", tensors), device="cpu").notes
    assert "'other' was applied" in other[0] and "lies beside the weights and was not applied" in other[1]


def test_an_adapter_in_place_of_the_model_says_what_it_lacks(tiny, tmp_path: Path):
    base = tiny("llama-biases")
    tensors, _ = low_rank(Q, weights_of(base)[f"{Q}.weight"])
    mine = saved(tmp_path / "mine", tensors, base_model_name_or_path=str(base))
    twice = CausalLM.open(mine, adapter=mine, device="cpu")
    assert twice.id == CausalLM.open(base, adapter=mine, device="cpu").id
    other = saved(tmp_path / "other", tensors)
    refused(CheckpointError, lambda: CausalLM.open(mine, adapter=other), "'other' is given as the adapter", "one can")
    for named, said in ((".", "an adapter too"), ("/nowhere/x y", "which is not there"), (str(other), "adapter too")):
        folder = saved(tmp_path / "mine", tensors, base_model_name_or_path=named)
        refused(CheckpointError, lambda folder=folder: CausalLM.open(folder), said, f"--adapter {folder}")


# ---- what is refused


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layer_replication": [[0, 2], [1, 3]]}, "repeats layers"),
        ({"alora_invocation_tokens": [1, 2]}, "nor can PEFT merge it"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"trainable_token_indices": [1]}, "embeddings of single tokens"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "no linear layer's"),
        ({"kasa_config": {}}, "KaSA"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "changes before it adds the adapter"),
        ({"peft_type": None}, "of type unknown"),
        ({"use_dora": True}, "sets lengths (DoRA) by `use_dora` of adapter_config.json, but holds none"),
        ({"r": 16}, "lora_A [16, inputs]"),
        ({"r": None}, "a whole number above zero under `r`, but has None"),
        ({"r": True}, "a whole number above zero"),
        ({"lora_alpha": float("nan")}, "a finite number under `lora_alpha`, but has nan"),
        ({"lora_alpha": 10**400}, "a finite number"),
        ({"use_rslora": "no"}, "true or false under `use_rslora`, but has 'no'"),
        ({"rank_pattern": [1]}, "an object with a number for each name under `rank_pattern`"),
        ({"rank_pattern": {"q_proj(": 8}}, "regular expressions"),
        ({"alpha_pattern": {"q_proj": "x"}}, "`alpha_pattern: q_proj`, but has 'x'"),
        ({"modules_to_save": "lm_head"}, "a list of names"),
    ],
)
def test_what_changes_the_function_is_followed_or_refused(config: dict[str, Any], said: str, tmp_path: Path):
    tensors, _ = low_rank(Q, torch.zeros(64, 48))
    refused(CheckpointError, lambda: read_adapter(saved(tmp_path / "mine", tensors, **config)), said, "'mine'")


def test_halves_of_what_an_adapter_keeps_tied_are_refused(tiny, tmp_path: Path):
    base = tiny("llama-tied")
    tensors, _ = low_rank(EMBED, weights_of(base)[f"{EMBED}.weight"])
    adapter = saved(tmp_path / "a", tensors, ensure_weight_tying=True)
    refused(CheckpointError, lambda: CausalLM.open(base, adapter=adapter), "keeps it tied to 'lm_head.weight'")
    q, _ = low_rank(Q, weights_of(base)[f"{Q}.weight"])
    CausalLM.open(base, adapter=saved(tmp_path / "b", q, ensure_weight_tying=True), device="cpu")


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({}, {}, "holds no tensor"),
        ({A: drawn(RANK, 48)}, {}, f"should hold A and B of '{Q}', but holds lora_A"),
        ({A: drawn(RANK, 48), B: drawn(64, 8)}, {}, "[4, 48] and [64, 8]"),
        ({A: drawn(48), B: drawn(64, RANK)}, {}, "[48] and [64, 4]"),
        ({A: torch.tensor(1.0), B: torch.tensor(1.0)}, {}, "[] and []"),
        ({A: drawn(RANK, 48, 1, 1), B: drawn(64, RANK, 1, 1)}, {}, "[4, 48, 1, 1]"),
        ({A: drawn(RANK, 40), B: drawn(64, RANK)}, {}, "a change of shape [64, 40] for a matrix [64, 48]"),
        ({A: drawn(RANK, 48).int(), B: drawn(64, RANK)}, {}, "should hold floats"),
        ({A: drawn(RANK, 48), f"{Q}.lora_A.default.weight": drawn(RANK, 48)}, {}, "twice"),
        ({f"{Q}.weight": drawn(64, 48), f"{Q}.base_layer.weight": drawn(64, 48)}, {}, "twice"),
        (
            {"model.norm.lora_A.weight": drawn(RANK, 48), "model.norm.lora_B.weight": drawn(48, RANK)},
            {},
            "LlamaRMSNorm",
        ),
        ({f"{EMBED}.lora_A.weight": drawn(RANK, 48), f"{EMBED}.lora_B.weight": drawn(307, RANK)}, {}, "Embedding"),
        ({"lm_head.weight": drawn(5, 48)}, {}, "'lm_head.weight' [5, 48] for one [307, 48]"),
        ({f"{Q}.base_layer.bias": drawn(67)}, {}, f"'{Q}.bias' [67] for one [64]"),
        ({f"{Q}.lora_magnitude_vector": drawn(65)}, {"use_dora": True}, "each of the 64 rows"),
        ({f"{Q}.lora_magnitude_vector": drawn(64, 1)}, {"use_dora": True}, "a tensor [64, 1]"),
        ({f"{Q}.lora_magnitude_vector": torch.tensor(1.0)}, {"use_dora": True}, "a tensor []"),
        ({f"{Q}.lora_magnitude_vector": drawn(64)}, {}, "does not set lengths"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_anything_is_computed(tensors, config, said: str, tiny, tmp_path):
    if f"{Q}.lora_magnitude_vector" in tensors:
        tensors = {A: drawn(RANK, 48), B: drawn(64, RANK)} | tensors
    adapter = saved(tmp_path / "mine", tensors, **config)
    refused(CheckpointError, lambda: CausalLM.open(tiny("llama-biases"), adapter=adapter, device="cpu"), said, "'mine'")


KEYS = [
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "ensure_weight_tying",
    "base_model_name_or_path",
    "init_lora_weights",
    "layer_replication",
    "use_qalora",
    "target_parameters",
    "fan_in_fan_out",
    "bias",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("a(q_proj|.*[{", max_size=8), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
@examples(60)
def test_any_config_is_read_or_refused_with_a_sentence(tmp_path_factory, config):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    try:
        read = read_adapter_config(folder)
    except CheckpointError as error:
        assert "'mutated'" in str(error) and str(error).endswith(".")
    else:
        assert read.rank_of(Q) > 0 and math.isfinite(read.scale_of(Q))
        assert not read.keeps_whole("model.norm.weight") or read.kept_whole


# ---- beside PEFT itself


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("base", ["llama-biases", "llama-tied"])
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["q_proj", "k_proj"], "alpha_pattern": {"x|q_proj": 30}, "rank_pattern": {"0.*k_proj": 2}},
        {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        {"target_modules": ["q_proj", "v_proj"], "bias": "all"},
    ],
)
def test_what_peft_saves_is_read_as_peft_runs_it(base: str, config: dict[str, Any], tiny, tmp_path: Path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = AutoModelForCausalLM.from_pretrained(tiny(base), dtype=torch.float32, attn_implementation="eager").eval()
    changed = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=9, **config)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in changed.parameters() if p.requires_grad):
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    changed.save_pretrained(tmp_path / "a")
    fresh = AutoModelForCausalLM.from_pretrained(tiny(base), dtype=torch.float32, attn_implementation="eager").eval()
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "a").eval()
    with torch.inference_mode():
        due = torch.stack([loaded(torch.tensor([ids])).logits[0, -1] for ids in PROMPTS])
    assert_same(logits(tiny(base), adapter=tmp_path / "a"), due)
