"""What blocks hand on is one residual stream, of tokens that see no later ones, or a pass is refused with the cause."""

import pytest
import torch

from layerscope.errors import ModelError
from layerscope.model.one_stream import Witness, handed_on, one_stream

GENERATOR = torch.Generator().manual_seed(316)


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (3, 2, 5, 8), (2, 5, 24)])
def test_streams_side_by_side_are_counted(shape: tuple[int, ...]):
    with pytest.raises(ModelError, match="keeps 3 residual streams side by side"):
        one_stream(torch.zeros(shape), (2, 5), 8, "some")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(5, 2, 8), r"a tensor \[5, 2, 8\]"),
        (torch.zeros(2, 6, 8), r"a tensor \[2, 6, 8\]"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_stream_is_said_to_be_what_it_is(given: object, said: str):
    with pytest.raises(ModelError, match=said):
        one_stream(given, (2, 5), 8, "some")


def test_a_stream_is_given_back_as_it_is():
    stream = torch.zeros(2, 5, 8)
    assert one_stream(stream, (2, 5), 8, "some") is stream


def test_a_block_may_read_a_multiple_of_what_was_written_and_nothing_else():
    written = torch.randn(2, 5, 8, generator=GENERATOR)
    handed_on(written.clone(), written, 1, "some")
    handed_on(written / 2, written, 1, "some")  # as RWKV does after some blocks
    with pytest.raises(ModelError, match="between blocks 1 and 2"):
        handed_on(written + torch.randn(written.shape, generator=GENERATOR), written, 1, "some")


def test_what_is_not_finite_is_left_to_those_who_flag_it():
    written = torch.full((1, 2, 8), torch.nan)
    handed_on(written.clone(), written, 1, "some")


def test_a_witness_begins_as_a_prompt_and_ends_with_another_token_of_the_prompts():
    assert Witness.of([[7], [3, 4, 5]]) == Witness((3, 4, 7), 1)
    assert Witness.of([list(range(20))]) == Witness((*range(7), 0), 0)


@pytest.mark.parametrize("prompts", [[[1], [2]], [[1, 1, 1]]])
def test_prompts_of_one_token_or_of_one_kind_have_no_witness(prompts: list[list[int]]):
    assert Witness.of(prompts) is None


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_a_witness_tells_what_follows_from_rounding(dtype: torch.dtype, rounding: float):
    witness = Witness((1, 2, 9), 0)
    stream = torch.randn(2, 4, 8, generator=GENERATOR)
    stream[1, :2] = stream[0, :2] * (1 + rounding)  # the last token is another, and the one behind it padding
    witness.check(stream.to(dtype), "some")
    stream[1, 1] *= 1.3
    with pytest.raises(ModelError, match="see what follows them"):
        witness.check(stream.to(dtype), "some")
