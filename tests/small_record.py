"""Records and curves of a few prompts, made by hand, for what is counted over facts."""

from collections.abc import Mapping, Sequence
from typing import Any

from layerscope.analysis.curve import Curve, Curves
from layerscope.record import COLUMNS, RunRecord
from layerscope.record.measured import MeasuredRecord
from layerscope.record.parts import AlignmentRecord, ModelRecord, PromptRecord, ProtocolRecord, SuiteRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import SCHEMA_VERSION

D_VOCAB = 1000
BLANK = {column.name: None for column in COLUMNS} | {"finite": True}
Layers = Mapping[int, Mapping[str, Any]]


def answer(text: str, *ids: int, variant: str = "with_space", **more: Any) -> AlignmentRecord:
    """An answer that is resolved to these ids; unresolved without any."""
    return AlignmentRecord(
        string=text,
        status="ok" if ids else "unresolved",
        ok=bool(ids),
        variant=variant,  # type: ignore[arg-type]
        first_id=ids[0] if ids else None,
        answer_ids=ids,
        pieces=tuple(map(str, ids)),
        several_pieces=len(ids) > 1,
        reason=None if ids else "made by hand",
        **more,
    )


def fact(index: int, *answers: AlignmentRecord, variant: str = "orig", **more: Any) -> PromptRecord:
    """A fact in one wording."""
    key = f"fact {index}"
    asked = {"prompt_id": "pos", "prompt_variant": variant, "fact_key": key, "fact_index": index}
    return PromptRecord(**{**asked, "decoded_positions": (3,), "answers": answers, **more})


def control(own: AlignmentRecord, contrast: AlignmentRecord, variant: str = "orig") -> PromptRecord:
    """A control, compared with a fact's answer."""
    return PromptRecord(
        prompt_id="ctl", prompt_variant=variant, decoded_positions=(3,), answers=(own,), contrast=(contrast,)
    )


def record_of(
    prompts: Sequence[PromptRecord], n_layers: int, lenses: Sequence[str] = ("logit",), **changes: Any
) -> RunRecord:
    """A run of these prompts."""
    thresholds = Thresholds().as_dict()
    model = {"id": "by/hand", "n_layers": n_layers, "d_model": 4, "d_vocab": D_VOCAB, **changes.pop("model", {})}
    protocol = changes.pop("protocol", "standard")
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id="by-hand",
        source="layerscope",
        protocol=ProtocolRecord(
            name=protocol,
            version="3",
            lenses=tuple(lenses),
            headline_lens=lenses[0],
            lens_head_transform=True,
            thresholds=thresholds,
        ),
        model=ModelRecord(**model),
        suite=SuiteRecord(name="by-hand", description="", prompts=tuple(prompts)),
        lens_sources=dict.fromkeys(lenses, ("final_norm",) * (n_layers + 1)),
        flags={},
        **{"measured": MeasuredRecord(), **changes},
    )


def curve_of(prompt: PromptKey, n_layers: int, given: Layers, lens: str = "logit") -> Curve:
    """A curve of rows without values, but for what is given; `is_answer` follows the rank."""
    rows = []
    for layer in range(n_layers + 1):
        row = BLANK | {"layer": layer, "row": layer, "position": 3} | given.get(layer, {})
        if row["answer_rank"] is not None:
            row["is_answer"] = row["answer_rank"] == 1
        rows.append(row)
    return Curve(prompt, lens, n_layers, D_VOCAB, tuple(rows))


def ranked(prompt: PromptKey, ranks: Sequence[int], lens: str = "logit", **more: Any) -> Curve:
    """A curve with these ranks of the answer at layers 0 and on, and other columns equal at every layer."""
    return curve_of(
        prompt, len(ranks) - 1, {layer: {"answer_rank": rank, **more} for layer, rank in enumerate(ranks)}, lens
    )


def curves_of(*curves: Curve) -> Curves:
    """Several together."""
    return Curves({(curve.prompt, curve.lens): curve for curve in curves})
