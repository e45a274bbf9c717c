"""The checkpoint writer: true shapes and counts, folders that Transformers loads whole, holes that take no disk."""

import importlib.util
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from layerscope.errors import CheckpointError

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_checkpoint.py"
_spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
make_checkpoint = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = make_checkpoint  # dataclasses look their module up
_spec.loader.exec_module(make_checkpoint)

PUBLISHED_PARAMETERS = {
    "qwen3-0.6b": 0.596e9,
    "qwen3-1.7b": 1.72e9,
    "qwen3-8b": 8.19e9,
    "qwen3-14b": 14.77e9,
    "qwen2.5-72b": 72.7e9,
    "gemma-2-9b": 9.24e9,
    "gemma-2-27b": 27.2e9,
    "llama-3-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "mistral-7b": 7.24e9,
    "mistral-small-24b": 23.6e9,
    "yi-34b": 34.4e9,
}
"""As the model cards state them; a tied head counted once."""

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 32000,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = ["qwen3-1.7b", "qwen2.5-72b", "gemma-2-9b", "llama-3-8b", "mistral-7b"]


def small(shape):
    """The public configuration with every size cut down, its special features kept."""
    return {**make_checkpoint.SHAPES[shape], **SMALL}


def write(out, shape="qwen3-1.7b", dtype="bfloat16", shard_bytes=make_checkpoint.SHARD_BYTES, **fill):
    plan = make_checkpoint.plan_checkpoint(small(shape), dtype, shard_bytes)
    make_checkpoint.write_checkpoint(out, plan, make_checkpoint.Fill(**fill))
    return plan


def load_whole(folder):
    """The model in float32, when every weight was found and none was left over."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    return model


def test_every_shape_has_a_published_size():
    assert PUBLISHED_PARAMETERS.keys() == make_checkpoint.SHAPES.keys()


@pytest.mark.parametrize(("shape", "published"), PUBLISHED_PARAMETERS.items())
def test_the_planned_parameters_are_those_of_the_public_model(shape, published):
    plan = make_checkpoint.plan_checkpoint(make_checkpoint.SHAPES[shape])
    assert plan.parameters == pytest.approx(published, rel=0.01)
    assert plan.size == 2 * plan.parameters


@pytest.mark.parametrize(
    ("shape", "field", "value"),
    [
        ("qwen3-1.7b", "tie_word_embeddings", True),
        ("qwen3-8b", "tie_word_embeddings", False),
        ("gemma-2-9b", "final_logit_softcapping", 30.0),
        ("gemma-2-27b", "query_pre_attn_scalar", 144),
        ("mistral-7b", "sliding_window", 4096),
        ("mistral-small-24b", "sliding_window", None),
        ("yi-34b", "rms_norm_eps", 1e-5),
    ],
)
def test_transformers_reads_the_public_fields_from_the_written_config(tmp_path, shape, field, value):
    write(tmp_path / "out", shape)
    assert getattr(AutoConfig.from_pretrained(tmp_path / "out"), field) == value


@pytest.mark.parametrize(
    ("shape", "theta"),
    [("llama-3-8b", 500_000.0), ("yi-34b", 5_000_000.0), ("mistral-small-24b", 1e8), ("qwen2.5-72b", 1e6)],
)
def test_transformers_reads_the_rotary_base_from_the_written_config(tmp_path, shape, theta):
    write(tmp_path / "out", shape)
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize("shape", FAMILIES)
def test_transformers_loads_the_folder_whole_and_the_forward_is_finite(tmp_path, shape):
    write(tmp_path / "out", shape)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = load_whole(tmp_path / "out")
    ids = tokenizer("The capital of Germany is called simply", return_tensors="pt").input_ids
    logits = model(ids).logits[0]
    assert torch.isfinite(logits).all()
    assert logits[-1].std() > 0


@pytest.mark.parametrize(("shape", "centre"), [("llama-3-8b", 1.0), ("gemma-2-9b", 0.0)])
def test_gains_lie_about_their_neutral_value_and_matrices_about_zero(tmp_path, shape, centre):
    write(tmp_path / "out", shape)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    gain, embedding = weights["model.norm.weight"].float(), weights["model.embed_tokens.weight"].float()
    assert gain.mean() == pytest.approx(centre, abs=0.01)
    assert gain.std() == pytest.approx(0.02, rel=0.5)
    assert embedding.mean() == pytest.approx(0.0, abs=1e-3)
    assert embedding.std() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_weights_have_the_type_that_was_asked_for(tmp_path, dtype):
    write(tmp_path / "out", dtype=dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {getattr(torch, dtype)}
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_a_checkpoint_in_several_files_loads_like_the_one_in_a_single_file(tmp_path):
    write(tmp_path / "one")
    plan = write(tmp_path / "several", shard_bytes=40_000)
    assert len(plan.shards) > 2
    assert (tmp_path / "several" / "model.safetensors.index.json").exists()
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    one, several = load_whole(tmp_path / "one").state_dict(), load_whole(tmp_path / "several").state_dict()
    assert one.keys() == several.keys()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_no_file_outgrows_its_limit_unless_a_single_weight_does(tmp_path):
    plan = write(tmp_path / "out", shard_bytes=40_000)
    for number, shard in enumerate(plan.shards):
        with_header = (tmp_path / "out" / plan.file_name(number)).stat().st_size
        size = 2 * sum(weight.elements for weight in shard)
        assert size < with_header < size + 4096
        assert size <= 40_000 or len(shard) == 1


def test_a_sparse_checkpoint_takes_almost_no_disk_and_still_has_its_gains(tmp_path):
    write(tmp_path / "out", "qwen2.5-72b", sparse=True)
    file = tmp_path / "out" / "model.safetensors"
    on_disk, size = file.stat().st_blocks * 512, file.stat().st_size
    assert size > 8_000_000
    assert on_disk < size / 50
    weights = load_file(file)
    assert weights["model.norm.weight"].float().mean() == pytest.approx(1.0, abs=0.01)
    assert not weights["lm_head.weight"].any()
    assert torch.isfinite(load_whole(tmp_path / "out")(torch.tensor([[1, 2, 3]])).logits).all()


def test_the_seed_decides_every_weight(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_no_two_rows_are_equal_where_the_period_comes_round_again():
    rows, width = 36_000, 1024
    assert rows * width > make_checkpoint.PERIOD
    stream, file = make_checkpoint.RandomStream(make_checkpoint.Fill(), torch.bfloat16), io.BytesIO()
    stream.write(file, 2 * rows * width)
    heads = np.frombuffer(file.getbuffer(), dtype=np.uint16).reshape(rows, width)[:, :16]
    assert len(np.unique(heads, axis=0)) == rows


def test_the_tokenizer_fits_every_vocabulary(tmp_path):
    write(tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().values()
    assert max(ids) < min(config["vocab_size"] for config in make_checkpoint.SHAPES.values())


def test_an_existing_output_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert make_checkpoint.main(["--shape", "qwen3-1.7b", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(tmp_path):
    exabytes = make_checkpoint.Weight("model.embed_tokens.weight", (10**9, 10**9))
    plan = make_checkpoint.Plan(small("qwen3-1.7b"), ((exabytes,),), "bfloat16")
    with pytest.raises(CheckpointError, match="make room, or leave holes with --sparse"):
        make_checkpoint.write_checkpoint(tmp_path / "out", plan, make_checkpoint.Fill())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(tmp_path):
    command = [sys.executable, str(SCRIPT), "--shape", "qwen3-1.7b", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        deadline = time.monotonic() + 600  # only ends what hangs
        while not list(tmp_path.glob(".out.part/*.safetensors")):
            assert writer.poll() is None, writer.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        writer.send_signal(signal.SIGINT)
        _, errors = writer.communicate(timeout=600)
    assert writer.returncode == 130
    assert f"interrupted; {tmp_path / 'out'} was not written" in errors
    assert not list(tmp_path.iterdir())
