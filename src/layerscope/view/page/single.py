"""A page of one comparison: tables that can be sorted, and charts, with all that they need."""

from collections.abc import Sequence

from markupsafe import Markup

from layerscope.view.charts.chart_spec import ChartSpec
from layerscope.view.page.document import MARKER, asset, environment, package_version, policy, script_of
from layerscope.view.page.figures import figure_of
from layerscope.view.page.packing import safe_json
from layerscope.view.page.view import vega_runtime

SCRIPTS = ("dom", "data", "colour", "charts", "sorting", "theme", "single")


def single_page(
    template: str, title: str, charts: Sequence[ChartSpec], wide: Sequence[ChartSpec] = (), **values: object
) -> str:
    """The page as HTML.

    Args:
        template: which of the templates that extend `single.html.j2`.
        title: of the browser's window.
        charts: in their order.
        wide: further ones, each of which takes the page's width.
        values: what else the template names.
    """
    from altair.utils.schemapi import debug_mode

    from layerscope.view.charts.theme import config

    with debug_mode(False):  # as of the other pages: the charts' own tests hold that they are valid
        figures = [
            figure_of(chart, f"chart-{chart.name}", chart.name, wide)
            for many, wide in ((charts, False), (wide, True))
            for chart in many
        ]
    script, vega, style = script_of(SCRIPTS), vega_runtime(), asset("page.css")
    data = {
        "page-data": safe_json({}),
        "config-light": safe_json(config(dark=False)),
        "config-dark": safe_json(config(dark=True)),
    }
    for figure in figures:
        data |= {f"{figure.id}-spec": safe_json(figure.spec), f"{figure.id}-table": safe_json(figure.table)}
    return (
        environment()
        .get_template(template)
        .render(
            marker=Markup(MARKER),
            policy=policy(script, vega, style=style),
            title=title,
            style=Markup(style),
            script=Markup(script),
            vega=Markup(vega),
            version=package_version(),
            figures=figures,
            data={key: Markup(content) for key, content in data.items()},
            **values,
        )
    )
