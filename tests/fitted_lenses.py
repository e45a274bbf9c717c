"""Stand-ins for fitted lenses: a probed run with rows of a tuned and a prism lens made up from its own."""

import polars as pl

from layerscope.lens_record import CorpusRecord, Settings, SplitRecord, TextSource
from layerscope.record.measured import (
    FittedLensRecord,
    HeldOutRecord,
    PrismFitRecord,
    SkipLayersRecord,
    TunedFitRecord,
    TunedVariantRecord,
    TunedVariantsRecord,
)
from layerscope.run import Run

CORPUS = CorpusRecord(
    sources=(TextSource(name="wiki.txt", format="txt", n_documents=40, sha256="1" * 64),),
    sha256="2" * 64,
    n_documents=40,
    n_repeated=2,
    seq_len=128,
    bos=True,
    splits={
        "fit": SplitRecord(n_documents=30, n_tokens=30_000, n_sequences=236),
        "select": SplitRecord(n_documents=4, n_tokens=4_000, n_sequences=31),
        "held_out": SplitRecord(n_documents=4, n_tokens=4_100, n_sequences=32),
    },
)
SETTINGS = Settings(seed=316, device="cpu", dtype="float32", threads=1, torch="2.8.0", layerscope="0.2.0")


def tuned_lens_folder(n_layers: int, **changes: object) -> FittedLensRecord:
    """What a tuned lens of a model says of itself."""
    layers = range(n_layers)
    fit = TunedFitRecord(
        placement="raw",
        rank=8,
        temperatures=(*(1.5 - 0.03 * layer for layer in layers), 1.0),
        map_norms=(*(2.0 + layer for layer in layers), None),
        bias_norms=(*(0.5 for _ in layers), None),
        first_position=32,
        n_moments=20_000,
        n_refined=20_000,
        n_select=3_000,
        held_out=HeldOutRecord(
            n_positions=3_000,
            logit_bits=(*(9.0 - 0.5 * layer for layer in layers), 0.0),
            lens_bits=(*(7.0 - 0.5 * layer for layer in layers), 0.0),
            bias_bits=(*(8.0 - 0.5 * layer for layer in layers), 0.0),
            closed_form_bits=(*(7.25 - 0.5 * layer for layer in layers), 0.0),
        ),
        skip_layers=tuple(
            SkipLayersRecord(blocks=m, layer=n_layers - m, n_tokens=3_000, perplexity_lens=lens, perplexity_model=20.0)
            for m, lens in ((2, 25.0), (4, 40.0))
            if m <= n_layers
        ),
    )
    said = FittedLensRecord(
        kind="tuned",
        status="loaded",
        path="tiny-tuned",
        weights_sha256="3" * 64,
        fitted_to="house/tiny",
        created_utc="2026-03-01T09:30:00Z",
        corpus=CORPUS,
        settings=SETTINGS,
        tuned=fit,
    )
    return said.model_copy(update=changes)


def prism_lens_folder(n_layers: int, **changes: object) -> FittedLensRecord:
    """What a prism lens of a model says of itself."""
    rows = (0, n_layers // 4, n_layers // 2, 3 * n_layers // 4)
    fit = PrismFitRecord(
        method="procrustes_to_final",
        pairing="cross_covariance",
        k=16,
        k_asked=512,
        rank_effective=16,
        stream="logit",
        rows=rows,
        layers=("embed", *(str(row - 1) for row in rows[1:])),
        vectors=4_000,
        distinct_vectors=3_900,
        orthogonality_error=1e-5,
        held_out=HeldOutRecord(
            n_positions=3_000, logit_bits=(9.0,) * n_layers + (0.0,), lens_bits=(8.0,) * n_layers + (1.0,)
        ),
    )
    said = FittedLensRecord(
        kind="prism", status="loaded", path="tiny-prism", weights_sha256="4" * 64, fitted_to="house/tiny",
        created_utc="2026-03-01T09:30:00Z", corpus=CORPUS, settings=SETTINGS, prism=fit,
    )  # fmt: skip
    return said.model_copy(update=changes)


def variants(n_layers: int) -> TunedVariantsRecord:
    """Numbers that no two layers and parts share; layer 0 has none, and layer 2 was not finite in one part."""

    def part(start: float) -> TunedVariantRecord:
        return TunedVariantRecord(
            kl_to_final_bits=(None, *(start - 0.25 * layer for layer in range(1, n_layers + 1))),
            answer_rank=(None, *(int(start) + 2 * n_layers - layer for layer in range(1, n_layers + 1))),
        )

    rotation = part(9.0)
    lost = {name: tuple(None if i == 2 else value for i, value in enumerate(by_layer)) for name, by_layer in rotation}
    return TunedVariantsRecord(
        temperatures=(None, *(1.5 - 0.03 * layer for layer in range(1, n_layers)), 1.0),
        rotation_only=TunedVariantRecord(**lost),
        temperature_only=part(10.0),
        bias_only=part(8.0),
    )


def with_fitted_lenses(run: Run) -> Run:
    """The run with rows of both lenses after its own: the tuned one nearer to the model before the last layer."""
    record, n = run.record, run.record.model.n_layers
    own = run.rows.filter(lens=record.protocol.headline_lens)
    before_last = pl.col("layer") < n
    better = {
        "kl_to_final_bits": 0.5 * pl.col("kl_to_final_bits"),
        "answer_rank": pl.max_horizontal(pl.col("answer_rank") - 1, 1),
        "entropy_bits": 0.75 * pl.col("entropy_bits"),
    }
    tuned = own.filter(pl.col("layer") > 0).with_columns(
        pl.lit("tuned").alias("lens"),
        *(
            pl.when(before_last).then(value).otherwise(name).cast(own[name].dtype).alias(name)
            for name, value in better.items()
        ),
    )
    prism = own.with_columns(
        pl.lit("prism").alias("lens"), (pl.col("kl_to_final_bits") + 0.5).alias("kl_to_final_bits")
    )
    rows = pl.concat([run.rows, prism.select(run.rows.columns), tuned.select(run.rows.columns)])
    protocol = record.protocol.model_copy(update={"lenses": (*record.protocol.lenses, "prism", "tuned")})
    sources = {**record.lens_sources, "prism": ("final_norm",) * (n + 1), "tuned": (None, *("final_norm",) * n)}
    measured = record.measured.model_copy(
        update={"fitted_lenses": (tuned_lens_folder(n), prism_lens_folder(n)), "tuned_variants": variants(n)}
    )
    fields = {"protocol": protocol, "lens_sources": sources, "measured": measured}
    return Run(rows, type(record).model_validate(record.model_copy(update=fields).model_dump()))
