"""Models of families that no table lists: tried, judged by the identity check, or refused with a sentence.

Tolerances. Two float32 passes of three small blocks: 3e-5 of logits of some ten (see `rounding.of_residual`), 1e-3.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layerscope import Prompt, Suite, probe
from layerscope.errors import ModelError
from tiny_models import D_VOCAB, tiny_tokenizer

SIZES = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = SIZES | {"intermediate_size": 48}
SUITE = Suite("one", "", (Prompt("pos", "orig", "The capital of Germany is called", ("Berlin",), "Germany→Berlin", 0),))


def build(family: str, folder: Path, **sizes: Any) -> tuple[Path, torch.nn.Module]:
    """A small random model of a family, saved beside the tests' tokenizer."""
    torch.manual_seed(316)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize(
    ("family", "sizes", "norm"),
    [
        ("olmo", WIDE, "input_layernorm"),
        ("lfm2", WIDE | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]}, "operator_norm"),
        ("mpt", {"vocab_size": D_VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4}, "norm_1"),
        ("gpt_bigcode", {"vocab_size": D_VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4}, "ln_1"),
        ("nemotron", WIDE | {"num_key_value_heads": 2}, "input_layernorm"),
    ],
)
def test_an_unlisted_family_is_tried_and_passes_where_its_parts_are_found(family, sizes, norm, tmp_path: Path):
    folder, model = build(family, tmp_path, **sizes)
    run = probe(folder, suite=SUITE, device="cpu", positions="all")
    assert run.record.identity.ok, run.record.identity.note
    assert run.record.model.family_verified is False
    assert set(run.record.flags) == {"family_not_verified"}
    assert all(source.endswith(norm) for source in run.record.lens_sources["next_norm"][:-1])
    log_probs = model(torch.tensor([run.record.suite.prompts[0].token_ids])).logits[0, -1].detach().log_softmax(-1)
    last = run.rows.filter("is_next", lens="logit", layer=3)
    assert last["p_top1"].item() == pytest.approx(float(log_probs.exp().max()), rel=1e-3)


def test_an_unlisted_family_without_a_known_norm_says_that_next_norm_is_raw(tmp_path: Path):
    folder, _ = build("exaone4", tmp_path, **WIDE, num_key_value_heads=2)
    run = probe(folder, suite=SUITE, device="cpu", positions="last")
    assert "3 of 3 blocks" in str(run.record.flags["next_norm_not_found"])
    assert run.record.lens_sources["next_norm"][:3] == ("raw", "raw", "raw")


def test_an_unlisted_family_that_cannot_be_run_is_refused_with_a_sentence(tmp_path: Path):
    folder, _ = build("openai-gpt", tmp_path, vocab_size=D_VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    with pytest.raises(ModelError, match="A 'openai-gpt' model"):
        probe(folder, suite=SUITE, device="cpu")
