"""Shares as TransformerLens has them, in an interpreter of its own that has that library: JSON on stdout.

Arguments: a checkpoint's folder, token ids as JSON, the answer's id, the rival's. Value biases stay with their heads;
the library's default moves them behind the heads.
"""

import json
import sys

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import direct_logit_attribution

folder, token_ids, answer, rival = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
model.enable_compatibility_mode(fold_value_biases=False)
model.eval()
with torch.inference_mode():
    found = {
        unit: direct_logit_attribution(model, torch.tensor([token_ids]), answer, rival, unit=unit)
        for unit in ("component", "head")
    }
shares = {unit: dict(zip(r.labels, r.attribution.squeeze().tolist(), strict=True)) for unit, r in found.items()}
json.dump(shares, sys.stdout)
