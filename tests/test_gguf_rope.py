"""Rotary positions of GGUF files: llama.cpp's own formulas, or a refusal by the header's key."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguf_files import write_gguf
from layerscope.errors import CheckpointError, ModelError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.config import build_empty
from layerscope.model.gguf_header import GgufHeader, read_header
from layerscope.model.gguf_model import gguf_config


@pytest.fixture(scope="module")
def header_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], GgufHeader]:
    """A tiny file's header, and what else it is to state."""
    folder = tmp_path_factory.mktemp("headers")

    @cache
    def plain(architecture: str) -> GgufHeader:
        return read_header(write_gguf(folder / f"{architecture}.gguf", architecture))

    def stating(architecture: str, stated: dict[str, Any]) -> GgufHeader:
        header = plain(architecture)
        return replace(header, metadata={**header.metadata, **stated})

    return stating


def _ggml_frequencies(
    n_rot: int, base: float, factor: float, original: int | None = None, fast: float = 32.0, slow: float = 1.0
) -> Tensor:
    """Angles a position apart by `rope_yarn` and `ggml_rope_yarn_corr_dims` of ggml; linear without `original`."""

    def dim(turns: float) -> float:
        assert original is not None
        return n_rot * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    pairs = torch.arange(n_rot // 2, dtype=torch.float64)
    extrapolated = base ** (-2 * pairs / n_rot)
    if original is None:
        return extrapolated / factor
    low, high = max(0, math.floor(dim(fast))), min(n_rot - 1, math.ceil(dim(slow)))
    mix = 1 - ((pairs - low) / max(0.001, high - low)).clamp(0, 1)
    return extrapolated / factor * (1 - mix) + extrapolated * mix


PLAIN = _ggml_frequencies(16, 1e4, 1.0)
FOURTH = _ggml_frequencies(16, 1e4, 4.0)
YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
SCALED = 0.1 * math.log(4.0) + 1


@pytest.mark.parametrize(
    ("architecture", "stated", "due", "attention"),
    [
        ("llama", {}, PLAIN, 1.0),
        ("llama", {"llama.rope.scale_linear": 4.0}, FOURTH, 1.0),
        ("llama", {"llama.rope.scaling.factor": 4.0}, FOURTH, 1.0),
        ("llama", {"llama.rope.scaling.factor": 0.0}, PLAIN, 1.0),
        ("llama", {"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0}, FOURTH, 1.0),
        ("llama", {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, PLAIN, 1.0),
        ("llama", YARN | {"llama.rope.scaling.type": "linear"}, FOURTH, 1.0),
        ("llama", YARN, _ggml_frequencies(16, 1e4, 4.0, 256), SCALED),
        (
            "llama",
            YARN
            | {
                "llama.rope.scaling.original_context_length": 64,
                "llama.rope.scaling.yarn_beta_fast": 3.0,
                "llama.rope.scaling.yarn_beta_slow": 0.5,
                "llama.rope.scaling.attn_factor": 3.0,
                "llama.rope.scaling.yarn_ext_factor": 1.0,
            },
            _ggml_frequencies(16, 1e4, 4.0, 64, 3.0, 0.5),
            3 * SCALED,
        ),
        ("qwen2", {"qwen2.rope.freq_base": 1e6}, _ggml_frequencies(16, 1e6, 1.0), 1.0),
        ("starcoder2", {"starcoder2.rope.freq_base": 1e5}, _ggml_frequencies(16, 1e5, 1.0), 1.0),
        ("phi3", {"phi3.rope.dimension_count": 8}, _ggml_frequencies(8, 1e4, 1.0), 1.0),
    ],
)
def test_frequencies_are_those_of_ggml(
    architecture: str, stated: dict[str, Any], due: Tensor, attention: float, header_of: Any
):
    config = gguf_config(header_of(architecture, stated))
    rotary = build_empty(config, Path(), torch.float32, False).model.rotary_emb
    assert torch.allclose(rotary.inv_freq.double(), due, rtol=2e-6, atol=0)
    assert rotary.attention_scaling == pytest.approx(attention, rel=1e-6)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "rope.scaling.type", "longrope"),
        ("llama", "rope.scaling.attn_factor", 3.0),
        ("llama", "rope.scaling.alpha", 1000.0),
        ("llama", "rope.scaling.yarn_ext_factor", 0.5),
        ("llama", "rope.dimension_count", 8),
        ("llama", "rope.freq_base_swa", 100.0),
        ("llama", "rope.dimension_count_swa", 8),
        ("llama", "rope.freq_base_of_tomorrow", 1.0),
        ("qwen2", "rope.dimension_count", 8),
    ],
)
def test_what_the_module_cannot_do_is_refused_by_its_key(architecture: str, key: str, value: Any, header_of: Any):
    with pytest.raises(ModelError, match=rf"rotary positions \({architecture}\.{key} = {value}\)"):
        gguf_config(header_of(architecture, {f"{architecture}.{key}": value}))


@pytest.mark.parametrize("key", ["yarn_log_multiplier", "yarn_attn_factor"])
def test_what_yarn_does_elsewhere_alone_is_refused_by_its_key(key: str, header_of: Any):
    with pytest.raises(ModelError, match=key):
        gguf_config(header_of("llama", YARN | {f"llama.rope.scaling.{key}": 0.7}))


def test_layers_with_a_window_have_positions_of_their_own(header_of: Any):
    """As llama.cpp has it for Gemma 3: a scaling is for the others alone, and either have their own base."""
    stated = {"gemma3.rope.freq_base": 1e6, "gemma3.rope.freq_base_swa": 2e4, "gemma3.rope.scaling.factor": 8.0}
    assert gguf_config(header_of("gemma3", stated)).rope_parameters == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }


@pytest.mark.parametrize(
    ("architecture", "factors", "error", "said"),
    [
        ("llama", np.ones(5), CheckpointError, r"should hold 8 factors.*holds 5"),
        ("llama", np.zeros(8), CheckpointError, "finite numbers above 0"),
        ("llama", np.full(8, np.nan), CheckpointError, "finite numbers above 0"),
        ("gemma3", np.full(8, 4.0), ModelError, "has none that they could be of"),
        ("gpt2", np.full(8, 4.0), ModelError, "has none that they could be of"),
    ],
)
def test_factors_that_are_of_no_frequencies_are_refused(
    architecture: str, factors: np.ndarray, error: type[Exception], said: str, tmp_path: Path
):
    file = write_gguf(tmp_path / "m.gguf", architecture, extra={"rope_freqs.weight": factors.astype(np.float32)})
    with pytest.raises(error, match=said):
        CausalLM.open(file, device="cpu")


def test_factors_by_length_are_refused(tmp_path: Path):
    file = write_gguf(tmp_path / "m.gguf", extra={"rope_factors_long.weight": np.ones(8, np.float32)})
    with pytest.raises(ModelError, match="rope_factors_long"):
        CausalLM.open(file, device="cpu")


def test_files_that_differ_in_positions_alone_are_told_apart(tmp_path: Path):
    """The same tensors, but another function: a lens of the one is none of the other."""
    factors = {"rope_freqs.weight": np.full(8, 2, np.float32)}
    files = [
        write_gguf(tmp_path / "plain.gguf"),
        write_gguf(tmp_path / "base.gguf", **{"llama.rope.freq_base": 2e4}),
        write_gguf(tmp_path / "scaled.gguf", **{"llama.rope.scaling.factor": 2.0}),
        write_gguf(tmp_path / "factors.gguf", extra=factors),
    ]
    told = [CausalLM.open(file, device="cpu").blocks_fingerprint for file in files]
    assert len(set(told)) == len(files)
    again = CausalLM.open(write_gguf(tmp_path / "again.gguf", **{"general.name": "again"}), device="cpu")
    assert again.blocks_fingerprint == told[0]
