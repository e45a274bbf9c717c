"""Runs as one page: a single HTML file that opens by a double click and asks nothing of a network."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.report.cited.report_files import write_whole
from layerscope.report.sentences.guidance import LEGEND
from layerscope.view.page.document import (
    ADVICE,
    MARKER,
    asset,
    check_ours,
    environment,
    package_version,
    policy,
    script_of,
)
from layerscope.view.page.figures import Section, chart_sections
from layerscope.view.page.kept import kept_text
from layerscope.view.page.others import OtherPrompts, other_prompts
from layerscope.view.page.packing import safe_json
from layerscope.view.page.payload import Payload, labels, payload
from layerscope.view.page.words import Origin, VerdictWords, origin, verdict_words

SCRIPTS = (
    *("dom", "data", "tokens", "colour", "card", "scrubber", "grid", "picture"),
    *("lens_grid", "choices", "pins", "tracking", "link", "charts", "sorting", "theme", "copying", "shell"),
)
"""In the order in which they stand in the one script that they make up."""


@dataclass(frozen=True)
class _RunWords:
    """What a page says of one run."""

    label: str
    created: str
    verdict: VerdictWords
    origin: Origin
    others: OtherPrompts | None
    """Prompts that have a line alone."""


def page_html(runs: Sequence[AnalysedRun]) -> str:
    """One page about some runs, the first of them shown first.

    Args:
        runs: of any origin; a page about several also puts them side by side.

    Raises:
        RunError: there is no run.
    """
    if not runs:
        raise RunError("A page shows at least one run, and none was given.")
    names = labels(runs)
    with ThreadPoolExecutor(1) as pool:
        runtime = pool.submit(vega_runtime)
        shown, sections = payload(runs), chart_sections(runs, names)
    script, vega, style = _script(), runtime.result(), asset("page.css")
    template = environment().get_template("page.html.j2")
    return template.render(
        marker=Markup(MARKER),
        policy=policy(script, vega, style=style),
        title=f"{names[0]} · layerscope" if len(runs) == 1 else f"{len(runs)} runs · layerscope",
        style=Markup(style),
        script=Markup(script),
        vega=Markup(vega),
        version=package_version(),
        sections=[
            *((section.id, section.title) for section in sections if section.leads),
            ("grid", "Lens grid"),
            ("verdict", "Verdict"),
            *((section.id, section.title) for section in sections if not section.leads),
            ("provenance", "Provenance"),
        ],
        runs=[_words(run, name) for run, name in zip(runs, names, strict=True)],
        chart_sections=sections,
        data={key: Markup(content) for key, content in _scripts(shown, sections).items()},
    )


def write_view(runs: Sequence[AnalysedRun], path: str | Path) -> Path:
    """Write the page, whole or not at all; a page that layerscope wrote before is replaced.

    Args:
        runs: as of `page_html`.
        path: the file; folders above it are made.

    Returns:
        The file.

    Raises:
        RunError: there is no run, something else is at the path, or the place cannot be written to.
    """
    target = Path(path)
    check_ours(target)
    html = page_html(runs).encode("utf-8")
    write_whole(target, html, ADVICE)
    return target


def _words(run: AnalysedRun, label: str) -> _RunWords:
    created = run.record.created_utc or ""
    return _RunWords(
        label, created.replace("T", " ").replace("Z", " UTC"), verdict_words(run), origin(run), other_prompts(run)
    )


def _scripts(shown: Payload, sections: Sequence[Section]) -> dict[str, str]:
    """Every data block by its id."""
    from layerscope.view.charts import config

    page = {
        "status_words": LEGEND,
        "vocabulary": {"texts": shown.vocabulary.texts, "ids": shown.vocabulary.ids},
        "runs": [asdict(run) for run in shown.runs],
    }
    scripts = {
        "page-data": safe_json(page),
        "config-light": safe_json(config(dark=False)),
        "config-dark": safe_json(config(dark=True)),
    }
    packs: Mapping[str, str] = dict(shown.scripts) | {
        f"{figure.id}-{kind}": content
        for section in sections
        for group in section.groups
        for figure in group.charts
        for kind, content in (("spec", figure.spec), ("table", figure.table))
    }
    return scripts | {key: safe_json(content) for key, content in packs.items()}


@cache
def _script() -> str:
    return script_of(SCRIPTS)


@cache
def vega_runtime() -> str:
    """The runtime of the charts as one script.

    Raises:
        RunError: it could end the element that holds it.
    """
    snippet = 'window.vegaEmbed = vegaEmbed; dispatchEvent(new Event("charts-runtime"));'
    name = f"charts-{version('vl-convert-python')}-{hashlib.sha256(snippet.encode()).hexdigest()[:8]}"
    bundle = kept_text(name, partial(_bundle, snippet))
    bundle = bundle.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise RunError("The charts' runtime cannot stand in a page as it is; install another version of vl-convert.")
    return bundle


def _bundle(snippet: str) -> str:
    """Vega-Embed and all it needs with a line of our own at the end.

    It takes two seconds in which vl-convert lets nothing else run, so it has a process of its own.
    """
    code = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle(sys.argv[1]).encode())"
    if sys.executable:  # not where Python is part of another program
        done = subprocess.run([sys.executable, "-P", "-c", code, snippet], capture_output=True)
        if done.returncode == 0 and done.stdout:
            return done.stdout.decode()
    import vl_convert

    return str(vl_convert.javascript_bundle(snippet))
