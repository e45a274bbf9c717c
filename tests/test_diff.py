"""Two models side by side: what plain Transformers computes with both held whole."""

from pathlib import Path

import pytest
import torch

import layerscope
from layerscope.errors import ModelError
from layerscope.model.causal_lm import CausalLM
from rounding import of_residual
from tiny_models import load_resident

TOLERANCE = of_residual(n_blocks=4, d_model=64)


def test_a_model_against_itself_differs_in_nothing(tiny):
    found = layerscope.diff(tiny("qwen3"), tiny("qwen3"), suite=None)
    assert found.summary.is_identical
