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
from layerscope.model.causal_lm import CausalLM
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
        ("ctrl", {"vocab_size": D_VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "dff": 48}, "layernorm1"),
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


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("exaone4", WIDE | {"num_key_value_heads": 2}),
        # A norm of a known name, `ln_1`, that reads the sum behind attention; and blocks that give lists.
        ("openai-gpt", {"vocab_size": D_VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    ],
)
def test_an_unlisted_family_whose_blocks_read_the_stream_raw_says_that_next_norm_is_raw(family, sizes, tmp_path: Path):
    folder, _ = build(family, tmp_path, **sizes)
    run = probe(folder, suite=SUITE, device="cpu", positions="last")
    assert run.record.identity.ok, run.record.identity.note
    assert "3 of 3 blocks" in str(run.record.flags["next_norm_not_found"])
    assert run.record.lens_sources["next_norm"][:3] == ("raw", "raw", "raw")


def test_an_unlisted_family_that_keeps_no_stream_is_refused_with_a_sentence(tmp_path: Path):
    folder, _ = build("xlnet", tmp_path, vocab_size=D_VOCAB, d_model=32, n_layer=3, n_head=4, d_inner=48)
    with pytest.raises(ModelError, match="blocks of a 'xlnet' model should hand on a residual stream"):
        CausalLM.open(folder, device="cpu").forward([[1, 2, 3], [4, 5, 6, 7]])


def test_an_encoder_that_no_list_names_is_refused_since_its_tokens_see_what_follows(tmp_path: Path):
    sizes = {"vocab_size": D_VOCAB, "emb_dim": 32, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64}
    folder, _ = build("xlm", tmp_path, **sizes)
    with pytest.raises(ModelError, match="tokens see what follows them"):
        probe(folder, suite=SUITE, device="cpu")


def test_a_family_that_cannot_be_run_on_text_is_refused_with_what_it_lacks(tmp_path: Path, monkeypatch):
    folder, _ = build("olmo", tmp_path, **WIDE)
    model = CausalLM.open(folder, device="cpu")

    def wants_more(*args: Any, **kwargs: Any) -> None:
        raise TypeError("missing 1 required positional argument: 'pixel_values'")

    monkeypatch.setattr(model._module, "forward", wants_more)
    with pytest.raises(ModelError, match=r"could not be run on text alone.*'pixel_values'"):
        model.forward([[1, 2]])
