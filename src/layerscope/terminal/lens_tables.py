"""A fitted lens for a terminal: what it is worth layer by layer, what it is and fits, and several in a list."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope import lens_record
from layerscope.analysis.curve_shapes import ranges
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences.lines import LabelledLine, under_one_label
from layerscope.report.text import printable
from layerscope.terminal.labelled_grid import labelled_grid

HASH_SHOWN = 8
"""Digits of a hash that tell one lens from another."""
STATED_SHOWN = 20
"""How much of what a foreign lens says of itself is repeated."""


def lens_table(record: lens_record.LensRecord) -> Iterator[RenderableType]:
    """What a lens is worth on held-out text, layer by layer, for a console of 80 columns."""
    yield Text(printable(_title(record)), style="bold")
    if record.tuned is not None and record.tuned.layers:
        yield _caption(record.tuned.n_held_out)
        yield _tuned_table(record.tuned)
    elif record.ridge is not None:
        yield _caption(record.ridge.n_held_out)
        yield _ridge_table(record.ridge)
    elif record.jacobian is not None and record.jacobian.n_held_out is not None:
        yield _caption(record.jacobian.n_held_out)
        yield _jacobian_table(record.jacobian)
        yield Text(
            "top-1: share with the model's own first token on top\n"
            "beta: relative bias of the chain · sigma: relative spread between prompts\n"
            "halves of the prompts: relative difference, cosine, share with the same token on top",
            style="dim",
        )
    elif record.prism is not None:
        yield _caption(record.prism.n_held_out)
        yield _prism_table(record.prism)
        yield Text("mean: over the layers before the last", style="dim")
    else:
        yield Text("It was fitted elsewhere, and nothing was measured on held-out text.", style="dim")


def lens_lines(record: lens_record.LensRecord) -> Table:
    """What a lens is, what it belongs to, what it was fitted on, and what a reader has to know."""
    lines = [LabelledLine("fits", fits_line(record.model))]
    if record.imported is not None:
        lines += _imported(record.imported)
    if record.tuned is not None:
        lines += _tuned_lines(record.tuned)
    if record.ridge is not None:
        lines += _ridge_lines(record.ridge)
    if record.jacobian is not None:
        lines += _jacobian_lines(record.jacobian)
    if record.prism is not None:
        lines += _prism_lines(record.prism)
    if record.corpus is not None:
        lines += corpus_lines(record.corpus)
    lines.append(LabelledLine("made", made_line(record.created_utc, record.settings)))
    lines.append(LabelledLine("weights", f"sha256 {record.weights_sha256[:HASH_SHOWN]}"))
    lines += under_one_label("note", record.notes, "advise")
    return labelled_grid(lines)


def lens_list(lenses: Sequence[lens_record.LensFolder]) -> Iterator[RenderableType]:
    """A line for each of several lenses."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("folder", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("head", no_wrap=True)
    for header in ("logit\n(bits)", "lens\n(bits)"):
        table.add_column(header, justify="right", no_wrap=True)
    for fitted in lenses:
        record = fitted.record
        logit, lens = held_out_means(record)
        model, name = (Text(printable(text)) for text in (record.model.id, fitted.folder.resolve().name))
        table.add_row(
            name, record.kind, model, record.model.fingerprint[:HASH_SHOWN], short_text(logit), short_text(lens)
        )
    yield table
    yield Text("bits: held-out KL(model || lens), mean over the layers before the last", style="dim")


def held_out_means(record: lens_record.LensRecord) -> tuple[float | None, float | None]:
    """Mean KL(model || lens) in bits over the layers before the last: of the logit lens, and of the lens itself.

    None where nothing was measured. The last layer is left out, where the logit lens is the model.
    """
    if record.tuned is not None and record.tuned.layers:
        layers = record.tuned.layers
        return fmean(fit.logit_bits for fit in layers), fmean(fit.tuned_bits for fit in layers)
    if record.ridge is not None:
        regressions = record.ridge.layers
        return fmean(fit.logit_bits for fit in regressions), fmean(fit.ridge_bits for fit in regressions)
    if record.jacobian is not None and record.jacobian.n_held_out is not None:
        measured = record.jacobian.layers
        logit = [layer.logit_bits for layer in measured if layer.logit_bits is not None]
        return fmean(logit), fmean(layer.jacobian_bits for layer in measured if layer.jacobian_bits is not None)
    if record.prism is not None:
        return fmean(record.prism.logit_bits[:-1]), fmean(record.prism.held_out_bits[:-1])
    return None, None


# --- Layer by layer


def _title(record: lens_record.LensRecord) -> str:
    title = f"{record.kind} lens · {record.model.id}"
    if record.tuned is not None:
        rank = record.tuned.rank
        shape = {0: "bias alone", record.model.d_model: "full rank"}.get(rank, f"rank {rank}")
        return f"{title} · {shape} · placement {record.tuned.placement}"
    if record.ridge is not None:
        return f"{title} · full rank · placement {record.ridge.placement}"
    if record.jacobian is not None:
        correction = record.jacobian.correction
        rows = "" if correction is None else f", corrected by {correction.rows} rows a prompt"
        return f"{title} · {record.jacobian.method}{rows}"
    if record.prism is not None:
        return f"{title} · {record.prism.method} · k {record.prism.k}"
    return title


def _caption(n_held_out: int | None) -> Text:
    return Text(f"KL(model || lens) in bits, mean over {_count(n_held_out)} held-out positions", style="dim")


def _tuned_table(fit: lens_record.TunedFit) -> Table:
    table = _table("layer", "logit", "bias", "closed\nform", "tuned", "gained", "tau", "map", "best\nstep")
    for layer in fit.layers:
        bits = (layer.logit_bits, layer.bias_bits, layer.closed_form_bits, layer.tuned_bits)
        table.add_row(
            str(layer.layer),
            *map(short_text, bits),
            _share(layer.logit_bits, layer.tuned_bits),
            short_text(layer.temperature),
            f"{layer.map_norm:.2g}",
            f"{layer.best_step} of {layer.steps}",
            style="yellow" if layer.tuned_bits > layer.logit_bits else None,
        )
    columns = [[getattr(layer, f"{name}_bits") for layer in fit.layers] for name in ("logit", "bias", "closed_form")]
    means = [fmean(column) for column in (*columns, [layer.tuned_bits for layer in fit.layers])]
    table.add_row("mean", *map(short_text, means), _share(means[0], means[-1]), style="bold")
    return table


def _ridge_table(fit: lens_record.RidgeFit) -> Table:
    table = _table("layer", "logit", "ridge", "gained", "penalty", "map")
    for layer in fit.layers:
        table.add_row(
            str(layer.layer),
            short_text(layer.logit_bits),
            short_text(layer.ridge_bits),
            _share(layer.logit_bits, layer.ridge_bits),
            f"{layer.ridge:.0e}",
            f"{layer.map_norm:.2g}",
            style="yellow" if layer.ridge_bits > layer.logit_bits else None,
        )
    means = fmean(layer.logit_bits for layer in fit.layers), fmean(layer.ridge_bits for layer in fit.layers)
    table.add_row("mean", *map(short_text, means), _share(*means), style="bold")
    return table


def _jacobian_table(fit: lens_record.JacobianFit) -> Table:
    top1 = "logit\ntop-1", "lens\ntop-1"
    table = _table(
        "layer", "logit", "jacobian", *top1, "beta", "sigma", "halves\noff", "cosine", "same\ntop-1", "norm", gap=1
    )
    for layer in fit.layers:
        table.add_row(
            str(layer.layer),
            *(short_text(value) for value in (layer.logit_bits, layer.jacobian_bits)),
            *(_percent(value) for value in (layer.logit_top1, layer.jacobian_top1)),
            *(short_text(value) for value in (layer.beta, layer.sigma, layer.half_difference)),
            ABSENT if layer.half_cosine is None else f"{layer.half_cosine:.4f}",
            _percent(layer.half_agreement),
            f"{layer.norm:.3g}",
            style="yellow" if layer.is_approximate else None,
        )
    return table


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.0%}"


def _prism_table(fit: lens_record.PrismFit) -> Table:
    table = _table("layer", "logit", "prism", "gained")
    pairs = list(zip(fit.logit_bits, fit.held_out_bits, strict=True))
    for layer, (logit, prism) in enumerate(pairs):
        worse = "yellow" if prism > logit else None
        table.add_row(str(layer), short_text(logit), short_text(prism), short_text(logit - prism), style=worse)
    logit, prism = (fmean(column) for column in zip(*pairs[:-1], strict=True))
    table.add_row("mean", short_text(logit), short_text(prism), short_text(logit - prism), style="bold")
    return table


def _table(*headers: str, gap: int = 2) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _share(before: float, after: float) -> str:
    """How much of the logit lens' divergence is gone; nothing where there was hardly any."""
    return ABSENT if before < 1e-3 else f"{(before - after) / before:.0%}"


# --- What it is


def fits_line(model: lens_record.FittedModel) -> str:
    """Which model a lens belongs to."""
    commit = f" at {model.commit[:HASH_SHOWN]}" if model.commit else ""
    return (
        f"{model.id}{commit} ({model.family}, n_layers {model.n_layers}, d_model {model.d_model}, d_vocab "
        f"{model.d_vocab:,}); final norm and head {model.fingerprint[:HASH_SHOWN]}"
    )


def _tuned_lines(fit: lens_record.TunedFit) -> list[LabelledLine]:
    if not fit.layers:
        return []
    first = left_out(fit.first_position)
    ids = "" if fit.ids is None else f" on {fit.ids:,} drawn ids"
    refined = "" if fit.steps is None else f", {fit.steps} steps of {_count(fit.batch)} at most{ids}"
    positions = (
        f"closed form {_count(fit.n_moments)}, refinement {_count(fit.n_refined)}{refined}, to choose by "
        f"{_count(fit.n_select)}, held out {_count(fit.n_held_out)}{first}"
    )
    return [
        LabelledLine("positions", positions),
        LabelledLine("stopped", _stopped(fit.layers)),
        *under_one_label("skipping", _skipping(fit.skip_layers)),
    ]


def _ridge_lines(fit: lens_record.RidgeFit) -> list[LabelledLine]:
    positions = (
        f"regression {fit.n_moments:,}, to choose by {fit.n_select:,}, held out {fit.n_held_out:,}"
        f"{left_out(fit.first_position)}"
    )
    return [LabelledLine("positions", positions)]


def _jacobian_lines(fit: lens_record.JacobianFit) -> list[LabelledLine]:
    prompts = f"{_count(fit.n_prompts)} of {_count(fit.seq_len)} positions{left_out(fit.first_position)}"
    probe = fit.probe
    rows = "none" if probe is None else f"{len(probe.rows)} output features on {probe.n_prompts} of the prompts"
    exact = [] if fit.method == "exact" else [LabelledLine("exact rows", rows)]
    return [LabelledLine("prompts", prompts), *exact]


def left_out(first_position: int | None) -> str:
    """Which positions of a sequence are not counted, as what follows a number of them; nothing where all are."""
    return "" if not first_position else f"; the first {first_position} of a sequence left out"


def _stopped(layers: Sequence[lens_record.LayerFit]) -> str:
    """Which layers' refinement ended before its budget, and which it did not better."""
    parts = [
        ("no better for a while", [fit.layer for fit in layers if fit.stopped == "no_improvement"]),
        ("diverged, the best before that kept", [fit.layer for fit in layers if fit.stopped == "diverged"]),
        ("kept as it started", [fit.layer for fit in layers if fit.best_step == 0]),
    ]
    reasons = [f"{reason}: {_at(stopped)}" for reason, stopped in parts if stopped]
    return "; ".join(reasons) or "no layer before its budget"


def _at(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"


def _skipping(skips: Sequence[lens_record.SkipLayers]) -> list[str]:
    """What is lost where a translator stands for all blocks after its layer."""
    losses = [
        f"{skip.blocks} blocks, from layer {skip.layer} on: perplexity {skip.perplexity_lens:,.4g}, the model's "
        f"{skip.perplexity_model:,.4g}, {skip.relative_loss:+.1%}"
        for skip in skips
    ]
    return [*losses, f"on {skips[0].n_tokens:,} held-out tokens"] if skips else []


def _prism_lines(fit: lens_record.PrismFit) -> list[LabelledLine]:
    requested = "" if fit.k == fit.k_asked else f" (of {fit.k_asked} asked for)"
    vectors = (
        f"{fit.vectors:,} of lens {fit.stream} at layers {', '.join(map(str, fit.rows))}, {fit.distinct_vectors:,} "
        f"distinct; directions found on {fit.reservoir:,}"
    )
    rotation = (
        f"k {fit.k}{requested}, paired by {fit.pairing.replace('_', ' ').removeprefix('by ')}, numerical rank "
        f"{fit.rank_effective}; {fit.orthogonality_error:.1e} from orthogonal"
    )
    return [LabelledLine("vectors", vectors), LabelledLine("rotation", rotation)]


def corpus_lines(corpus: lens_record.CorpusRecord) -> list[LabelledLine]:
    """The text that a lens was fitted on, and how much of it there was."""
    sources = [
        f"{source.name} ({source.n_documents:,} documents, sha256 {source.sha256[:HASH_SHOWN]})"
        for source in corpus.sources
    ]
    parts = corpus.splits
    repeated = f", {corpus.n_repeated:,} repeated left out" if corpus.n_repeated else ""
    tokens = (
        f"{parts['fit'].n_tokens:,} to fit, {parts['select'].n_tokens:,} to choose by, "
        f"{parts['held_out'].n_tokens:,} held out; {corpus.n_documents:,} documents{repeated}; sequences of "
        f"{corpus.seq_len}, {'each with BOS' if corpus.bos else 'without BOS'}"
    )
    return [*under_one_label("text", sources), LabelledLine("tokens", tokens)]


def _imported(source: lens_record.ImportedFrom) -> list[LabelledLine]:
    stated = [f"{name} {value}" for name, value in source.stated.items() if value is not None]
    if len(stated) > STATED_SHOWN:
        stated = [*stated[:STATED_SHOWN], f"and {len(stated) - STATED_SHOWN} more"]
    lines = [LabelledLine("imported", f"{source.name} ({source.format}), sha256 {source.sha256[:HASH_SHOWN]}")]
    if stated:
        lines.append(LabelledLine("it says", f"{', '.join(stated)} (unchecked)"))
    return lines


def made_line(created_utc: str, settings: lens_record.Settings | None) -> str:
    """When a lens was made, by what and how."""
    if settings is None:
        return created_utc
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    return (
        f"{created_utc} by layerscope {settings.layerscope}, torch {settings.torch}; {settings.device} "
        f"{settings.dtype}, {threads}, seed {settings.seed}"
    )


def _count(n: int | None) -> str:
    return ABSENT if n is None else f"{n:,}"
