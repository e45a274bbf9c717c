"""What a norm does is told apart by behaviour, in whatever dtype the model computes; wrapped models keep their BOS.

Tolerances. Norms in float32, whose mean of up to 4096 squares is found in blocks: 1e-5 of an entry of up to ten times
the scale.
"""

import pytest
import torch
from transformers import Gemma2Config, Gemma3Config, GraniteConfig, MambaConfig
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from layerscope.errors import ModelError
from layerscope.model.architecture import read_norm
from layerscope.model.families import family_of
from layerscope.model.head_transform import declared_transform

NORMS = {
    "LayerNorm": lambda width: torch.nn.LayerNorm(width, eps=1e-5),
    "LayerNorm without parameters that hides its epsilon": lambda width: OlmoLayerNorm(width),
    "LayerNorm without bias": lambda width: CohereLayerNorm(width, eps=1e-5),
    "RMSNorm": lambda width: LlamaRMSNorm(width, eps=1e-6),
    "RMSNorm that stores the offset from one": lambda width: Gemma2RMSNorm(width, eps=1e-6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("width", [48, 4096])
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("scale", [0.2, 50.0])
def test_a_norm_is_read_by_what_it_does(name: str, width: int, dtype: torch.dtype, scale: float):
    torch.manual_seed(316)
    module = NORMS[name](width)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    module.to(dtype)
    norm = read_norm(module, "here", width)
    rows = torch.randn(5, width) + 1.0  # a mean, which only a LayerNorm takes away
    expected = module.float()(rows)
    torch.testing.assert_close(norm(rows), expected, rtol=1e-4, atol=1e-4 * scale)


def test_what_is_no_norm_is_refused():
    class Square(torch.nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square()

    with pytest.raises(ModelError, match=r"Square at model\.norm is neither an RMSNorm nor a LayerNorm"):
        read_norm(Square(8), "model.norm", 8)


def test_a_model_that_wraps_a_known_family_keeps_its_bos_and_is_not_called_verified():
    family, verified = family_of(Gemma3Config())
    assert (family.bos, family.softcap, verified) == ("always", "final_logit_softcapping", False)


def test_known_families_are_verified_and_others_follow_their_tokenizer():
    assert family_of(Gemma2Config())[1] is True
    assert family_of(MambaConfig())[0].bos == "tokenizer"


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_divisor_that_is_not_positive_is_refused(value: float):
    config = GraniteConfig(logits_scaling=value)
    with pytest.raises(ModelError, match="divisor should be a positive number"):
        declared_transform(config, family_of(config)[0])


def test_the_first_of_several_names_that_holds_a_value_counts():
    config = MambaConfig(logit_scale=None, lm_head_multiplier=0.5, output_logit_soft_cap=20.0)
    found = declared_transform(config, family_of(config)[0])
    assert (found.scale, found.softcap) == (0.5, 20.0)


def test_a_norm_of_another_width_than_the_stream_is_refused():
    with pytest.raises(ModelError, match="is 16 wide, but the residual stream has 32 features"):
        read_norm(LlamaRMSNorm(16), "model.norm", 32)
