"""Runs of any size with numbers by chance and tokens by choice, and tokens that could harm a page."""

from collections.abc import Sequence

import numpy as np

from layerscope.record import COLUMNS, RunRecord, rows_frame
from layerscope.run import Run

HOSTILE = (
    "</script><script>alert(1)</script>", "</style>", "<!--", "]]>", "javascript:alert(1)", "\"'`", "&amp;", "&lt;",
    "\u2028", "\u2029", "\u202e\u2066", "\x00", "\r\n", "\x7f", "\ufeff", "{{ 7 * 7 }}", "{% raw %}", "\\u003c",
    "\ufffd", "", "<b>",
    "\u5317\u4eac", "\u0628\u0631\u0644\u064a\u0646", "\U0001f469\u200d\U0001f680", "\u0301",
)  # fmt: skip


def made(run: Run, n_layers: int, n_positions: int, lenses: Sequence[str], k: int, texts: Sequence[str]) -> Run:
    """A run of any size with random numbers and given tokens, asked what the bundled one was asked."""
    random = np.random.default_rng(316)
    keys = [
        (lens, layer, position) for lens in lenses for layer in range(n_layers + 1) for position in range(n_positions)
    ]
    n = len(keys)
    tops = random.integers(0, len(texts), (n, k))
    probs = -np.sort(-random.dirichlet(np.ones(k + 1), n)[:, :k], axis=1)
    columns: dict[str, object] = {column.name: [None] * n for column in COLUMNS}
    columns |= {
        "fact_key": ["Germany→Berlin"] * n,
        "fact_index": [0] * n,
        "prompt_id": ["pos"] * n,
        "prompt_variant": ["orig"] * n,
        "lens": [lens for lens, _, _ in keys],
        "layer": [layer for _, layer, _ in keys],
        "position": [position for _, _, position in keys],
        "token": [texts[position % len(texts)] for _, _, position in keys],
        "is_next": [position == n_positions - 1 for _, _, position in keys],
        "finite": [True] * n,
        "entropy_bits": random.uniform(0, 10, n),
        "kl_to_final_bits": random.uniform(0, 20, n),
        "top1": [texts[i] for i in tops[:, 0]],
        "top1_id": tops[:, 0],
        "top_ids": tops.tolist(),
        "top_tokens": [[texts[i] for i in row] for row in tops],
        "top_probs": probs.tolist(),
        "p_top1": probs[:, 0],
        "answer_rank": random.integers(1, 2000, n),
        "p_answer": random.uniform(0, 1, n),
    }
    record = run.record.model_dump()
    first = record["suite"]["prompts"][0] | {
        "token_ids": tuple(range(n_positions)),
        "tokens": tuple(texts[position % len(texts)] for position in range(n_positions)),
        "decoded_positions": tuple(range(n_positions)),
    }
    record |= {
        "model": record["model"] | {"n_layers": n_layers},
        "protocol": record["protocol"] | {"lenses": tuple(lenses)},
        "lens_sources": dict.fromkeys(lenses, ("final_norm",) * (n_layers + 1)),
        "suite": record["suite"] | {"prompts": (first,)},
        "measured": {"absent": {"position_readout": "made by hand"}},
    }
    return Run(rows_frame(columns), RunRecord.model_validate(record))
