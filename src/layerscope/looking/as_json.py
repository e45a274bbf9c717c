"""A look as other programs take it."""

import math
from typing import Any

from layerscope.looking.look import Look, Tracked


def look_as_json(look: Look) -> dict[str, Any]:
    """Everything but residuals; numbers that are not known are None. Described in docs/looking.md."""
    return {
        "model": look.model.id,
        "text": look.text,
        **circumstances_as_json(look),
        "tokens": [{"id": i, "token": t} for i, t in zip(look.encoded.token_ids, look.tokens, strict=True)],
        "lenses": list(look.lens_names),
        "n_layers": look.model.n_layers,
        "layers": list(look.layers),
        "positions": list(look.positions),
        "grid": [_cell(look, *at) for at in _places(look)],
        "tracked": [_followed(look, tracked) for tracked in look.tracked],
    }


def circumstances_as_json(look: Look) -> dict[str, Any]:
    """What holds at every layer: how the text was read, what the model itself says, and the identity check."""
    chat, output, check = look.encoded.chat, look.output, look.identity
    return {
        "chat": None if chat is None else chat.model_dump(mode="json"),
        "bos": look.model.tokens.begins.note,
        "identity": {
            "ok": check.ok,
            "kl_bits": known(check.kl_bits),
            "tolerance_bits": check.tolerance_bits,
            "note": check.note,
        },
        "output": None if output is None else {"entropy_bits": output.entropy_bits, "top": _output_top(look)},
    }


def known(value: float | None) -> float | None:
    """A number that JSON can hold; None for NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def _output_top(look: Look) -> list[dict[str, Any]]:
    output = look.output
    if output is None:
        return []
    listed = zip(output.top_ids, output.top_tokens, output.top_probs, strict=True)
    return [{"id": i, "token": token, "p": p} for i, token, p in listed]


def _places(look: Look) -> list[tuple[int, int, int]]:
    """Indices of lens, layer and position."""
    n_lenses, n_layers, n_positions = look.entropy_bits.shape
    return [(a, b, c) for a in range(n_lenses) for b in range(n_layers) for c in range(n_positions)]


def _place(look: Look, lens: int, layer: int, position: int) -> dict[str, Any]:
    return {
        "lens": look.lens_names[lens],
        "layer": look.layers[layer],
        "position": look.positions[position],
    }


def _cell(look: Look, *at: int) -> dict[str, Any]:
    listed = zip(look.top_ids[at].tolist(), look.top_tokens[at].tolist(), look.top_probs[at].tolist(), strict=True)
    return {
        **_place(look, *at),
        "entropy_bits": known(look.entropy_bits[at]),
        "kl_to_final_bits": known(look.kl_to_final_bits[at]),
        "top": [{"id": i, "token": token, "p": known(p)} for i, token, p in listed if i >= 0],
    }


def _followed(look: Look, tracked: Tracked) -> dict[str, Any]:
    found = tracked.alignment
    return {
        "word": tracked.word,
        "id": found.first_id,
        "token": tracked.token,
        "n_pieces": len(found.answer_ids),
        "reason": found.reason,
        "at": []
        if tracked.token is None
        else [
            {
                **_place(look, *at),
                "rank": int(tracked.rank[at]) or None,
                "p": known(math.exp(tracked.log_prob[at])),
            }
            for at in _places(look)
        ],
    }
