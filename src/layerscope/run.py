"""A run as users hold it: saved and read, shown as a page in a notebook or as a chart."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.options import renamed
from layerscope.published.layout import Dialect
from layerscope.report.text import printable
from layerscope.run_folder import read_run, save_run

if TYPE_CHECKING:
    import altair as alt

    from layerscope.view.charts import ChartSpec

HEIGHT = 820
"""Of the frame in a notebook, in pixels."""


@dataclass(frozen=True)
class Shown:
    """A page as the last value of a notebook's cell: Jupyter, Colab and marimo display it."""

    html: str
    """The whole page."""
    height: int
    """In pixels."""

    def _repr_html_(self) -> str:
        """A frame that may run the page's own scripts and save files, and has no part in the notebook itself."""
        return (
            f'<iframe title="layerscope" srcdoc="{escape(self.html)}" sandbox="allow-scripts allow-downloads" '
            f'allow="clipboard-write" width="100%" height="{self.height}" loading="lazy" frameborder="0"></iframe>'
        )

    def _mime_(self) -> tuple[str, str]:
        """The same for marimo."""
        return "text/html", self._repr_html_()

    def __repr__(self) -> str:
        return f"<a page of {len(self.html):,} characters; a notebook shows it, `layerscope view` writes it>"


class Run(AnalysedRun):
    """What a run found, and how: rows, record and verdict; saved, read, shown as a page or as charts."""

    folder: Path | None = None
    """The run's own folder, into which it was saved or from which it was read; None where there is none."""

    def __repr__(self) -> str:
        """A line: model, suite, facts, how many are answered, and the layer of the headline."""
        from layerscope.view.notebook.run_card import run_line

        try:
            return f"<Run {run_line(self)}>"
        except RunError:  # its file went away; what is printed in the middle of an error should not be another
            return printable(f"<Run {self.record.model.id} · {self.record.suite.name} · its rows cannot be read>")

    def _repr_html_(self) -> str:
        """For a notebook: headline, cautions, a small lens grid, and how to see the whole page."""
        from layerscope.view.notebook.run_card import run_html

        return run_html(self, self.folder)

    def save(self, path: str | Path, published: Dialect | None = None) -> None:
        """Write the run's folder, whole or not at all; as `layerscope.run_folder.save_run`, which names the errors."""
        save_run(self, path, published)
        self.folder = Path(path).absolute()

    @classmethod
    def read(cls, path: str | Path, model: str | None = None) -> "Run":
        """Read a run's folder or published files; as `layerscope.run_folder.read_run`, which names the errors."""
        run = read_run(path, model)
        read = cls(
            run.rows if run.in_memory else run.scan,
            run.record,
            patches=run.patches,
            writers=run.writers,
            write_patches=run.write_patches,
            experts=run.experts,
        )
        if (Path(path) / "run.json").exists():  # and not published files, among which a page may be of other models
            read.folder = Path(path).absolute()
        return read

    def show(self, *others: AnalysedRun, height: int = HEIGHT) -> Shown:
        """The page about this run, for a notebook: make it the last line of a cell.

        Args:
            others: more runs, to be put side by side with this one.
            height: of the frame, in pixels.
        """
        from layerscope.view.page.view import page_html

        return Shown(page_html([self, *others]), height)

    def plot(self, kind: str = "entropy_bits", *others: AnalysedRun, **options: Any) -> "alt.LayerChart":
        """One chart of this run, to be shown, changed or saved; with a width of its own and the page's type.

        Args:
            kind: `grid`; a metric by layer, such as `entropy_bits`, `kl_to_final_bits`, `answer_rank`, `masses` or
                `cosines`; the same over facts, as `facts:answer_rank`; a measure of lens trust, such as
                `js_divergence_bits` or `decoding_point`; `patching:effects` or `patching:map`; `writers` and
                `write_effects`, after a probe with `sublayers`; or `models`, which puts `others` beside this run.
            others: more runs, for `models`.
            options: of the function in `layerscope.view.charts` that draws it: `lens`, `lenses`, `prompt`, `colour`.

        Raises:
            RunError: there is no such chart, or this run lacks what it needs.
        """
        if "asked" in options:
            if "prompt" in options:
                raise TypeError("plot() got both 'prompt' and its old name 'asked'")
            warnings.warn(renamed("`asked`", "`prompt`"), DeprecationWarning, stacklevel=2)
            options["prompt"] = options.pop("asked")
        spec = self._chart(kind, others, options)
        return spec.figure(width=None) if kind == "grid" else spec.figure()  # a grid is as wide as its cells

    def _chart(self, kind: str, others: Sequence[AnalysedRun], options: dict[str, Any]) -> "ChartSpec":
        from layerscope.view import charts

        name, _, metric = kind.partition(":")
        if name == "models":
            return charts.across_models([self, *others], **options)
        if others:
            raise RunError(f"The chart '{kind}' is of one run; put several side by side with 'models'.")
        if name == "facts":
            return charts.facts(self, metric or "answer_rank", **options)
        if kind == "grid":
            return charts.grid(self, **options)
        if kind == "writers":
            return charts.writer_shares(self, **options)
        if kind == "write_effects":
            return charts.write_effects(self, **options)
        if kind in charts.METRICS:
            return charts.trajectories(self, kind, **options)
        if kind in charts.LENS_TRUST:
            return charts.lens_trust(self, kind, **options)
        if name == "patching":
            return charts.patching(self, metric or charts.PATCHING[0], **options)
        raise RunError(f"There is no chart '{kind}'; choose from {', '.join(plots())}.")


def plots() -> Sequence[str]:
    """Every kind of chart that `Run.plot` draws."""
    from layerscope.view import charts

    single = [name for name, metric in charts.METRICS.items() if len(metric.quantities) == 1]
    others = [
        *charts.LENS_TRUST,
        *(f"patching:{name}" for name in charts.PATCHING),
        "writers",
        "write_effects",
        "models",
    ]
    return ["grid", *charts.METRICS, *(f"facts:{name}" for name in single), *others]
