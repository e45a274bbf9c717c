"""Logits of patched runs as TransformerLens has them, in an interpreter of its own: a safetensors file.

Arguments: a checkpoint's folder, the prompts as JSON, patches as JSON (layer, base, position, source, source position),
the file to be written. A patch at layer l replaces what block l reads.
"""

import json
import sys

import torch
from safetensors.torch import save_file
from transformer_lens.model_bridge import TransformerBridge

folder, prompts, patches, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
model.eval()


def patched(layer: int, base: int, position: int, source: int, source_position: int) -> torch.Tensor:
    name = f"blocks.{layer}.hook_in"
    _, cache = model.run_with_cache(torch.tensor([prompts[source]]), names_filter=lambda found: found == name)
    row = cache[name][0, source_position].clone()

    def write(stream: torch.Tensor, hook: object) -> torch.Tensor:
        stream = stream.clone()
        stream[:, position] = row
        return stream

    return model.run_with_hooks(torch.tensor([prompts[base]]), fwd_hooks=[(name, write)])[0, -1]


with torch.no_grad():
    save_file({"logits": torch.stack([patched(*patch) for patch in patches])}, out)
