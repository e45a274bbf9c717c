"""Pages of the explorer, and the policy under which a browser runs them."""

import base64
import hashlib
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from layerscope.report.sentences.guidance import LEGEND
from layerscope.view.page.document import asset, package_version, script_of
from layerscope.view.page.packing import safe_json

SCRIPTS = (
    *("dom", "data", "tokens", "colour", "card", "scrubber", "grid", "picture"),
    *("lens_grid", "choices", "pins", "tracking", "link", "theme", "copying"),
)
"""Of a run's page: the grid and all that belongs to it."""
OWN_SCRIPTS = ("looks", "asking", "explorer")


@cache
def explorer_html() -> str:
    """The explorer: a text above the grid of a run's page; it asks nothing of a network but this server's API."""
    environment = Environment(
        loader=PackageLoader("layerscope.serving", "assets"), autoescape=True, undefined=StrictUndefined
    )
    page = {"status_words": LEGEND, "vocabulary": {"texts": [], "ids": []}, "runs": []}
    return environment.get_template("explorer.html.j2").render(
        style=Markup(f"{asset('page.css')}\n{_own('explorer.css')}"),
        script=Markup("\n".join([script_of(SCRIPTS), *(_own(f"{name}.js") for name in OWN_SCRIPTS)])),
        controls=Markup(asset("controls.html.j2")),
        data=Markup(safe_json(page)),
        version=package_version(),
    )


def _own(name: str) -> str:
    """A file of the explorer; line ends as HTML parsers make them, for the policy holds hashes of what they see."""
    text = (files("layerscope.serving") / "assets" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def policy_of(html: str) -> str:
    """A Content-Security-Policy by which no script or style runs but those that stand in this very page."""
    inline = _Inline()
    inline.feed(html)
    inline.close()
    scripts, styles = (
        " ".join(f"'sha256-{_hash(text)}'" for text in texts) for texts in (inline.scripts, inline.styles)
    )
    return (
        f"default-src 'none'; script-src {scripts or _NONE}; style-src {styles or _NONE}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_NONE = "'none'"


class _Inline(HTMLParser):
    """The texts of a page's script and style elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._within: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Such an element begins."""
        self._within = {"script": self.scripts, "style": self.styles}.get(tag)
        if self._within is not None:
            self._within.append("")

    def handle_endtag(self, tag: str) -> None:
        """It ends."""
        self._within = None

    def handle_data(self, data: str) -> None:
        """A piece of its text."""
        if self._within is not None:
            self._within[-1] += data


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
