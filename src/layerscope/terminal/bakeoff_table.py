"""A bake-off for a console of 80 columns."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.bakeoff import Bakeoff, LensInBakeoff
from layerscope.report.text import printable

_HEADERS = ("KL\nbits", "top 1", "on top\nless handover", "span", "rest", "random", "others", "directions")


def bakeoff_table(found: Bakeoff) -> Iterator[RenderableType]:
    """A line a lens, and what it is about."""
    at = found.handover
    yield Text(printable(f"bake-off · {found.suite} · {found.model}"), style="bold")
    full = next((lens.share.full.value for lens in found.lenses if lens.share is not None), None)
    whole = "" if full is None else f", where the whole state has {full:.2f}"
    yield Text(
        f"The answer is carried at the last token from layer {at.layer} on (median over {at.n_facts} facts in "
        f"{at.n_pairs} pairs); over layers {found.layers[0]} to {found.layers[-1]}{whole}:"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("lens", no_wrap=True, vertical="bottom")
    for header in _HEADERS:
        table.add_column(header, justify="left" if header == _HEADERS[-1] else "right", vertical="bottom")
    for lens in found.lenses:
        table.add_row(printable(lens.lens), *_cells(lens))
    yield table
    yield Text(
        f"KL, top 1, on top for good: over {found.n_facts} answered facts. span: effect of the source's state along "
        "the lens' directions alone; rest: of all but that; random: of a random step as long; others: along two other "
        "answers' directions. used: the span does more than a random step, and the rest less than the whole state; "
        "overshoots: the span does far more than the whole state, and the rest undoes it. "
        "Medians over pairs; intervals: --json.",
        style="dim",
    )


def _cells(lens: LensInBakeoff) -> list[str]:
    share = lens.share
    agreement = "" if lens.top1_agreement is None else f"{100 * lens.top1_agreement:.0f}%"
    error = "none" if lens.onset_error_layers is None else f"{lens.onset_error_layers:+g}"
    bits = "" if lens.kl_to_final_bits is None else f"{lens.kl_to_final_bits:.2g}"
    if share is None:
        return [bits, agreement, error, "", "", "", "", "not known"]
    others = "" if share.others is None else f"{share.others.value:.2f}"
    effects = (share.span, share.complement, share.random)
    return [bits, agreement, error, *(f"{effect.value:.2f}" for effect in effects), others, str(share.verdict)]
