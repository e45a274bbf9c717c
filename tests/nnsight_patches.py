"""Logits of patched runs as nnsight has them, in an interpreter of its own: a safetensors file.

Arguments: a checkpoint's folder, the path of its container of blocks, the prompts as JSON, patches as JSON (layer,
base, position, source, source position), the file to be written. A patch at layer l replaces what block l reads.
"""

import json
import sys

import torch
from nnsight import NNsight
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

folder, path, prompts, patches = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
resident = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
model = NNsight(resident)
blocks = model.get(path)


def patched(layer: int, base: int, position: int, source: int, source_position: int) -> torch.Tensor:
    with model.trace(torch.tensor([prompts[source]]), use_cache=False):
        given = blocks[layer].input[0, source_position].save()
    with model.trace(torch.tensor([prompts[base]]), use_cache=False):
        stream = blocks[layer].input.clone()
        stream[:, position] = given
        blocks[layer].input = stream
        logits = model.output.logits[0, -1].save()
    return logits.detach().clone()


with torch.no_grad():
    save_file({"logits": torch.stack([patched(*patch) for patch in patches])}, sys.argv[5])
