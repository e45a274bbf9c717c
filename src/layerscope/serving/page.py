"""Pages of the explorer, and the policy under which a browser runs them."""

import base64
import hashlib
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files


@cache
def explorer_html() -> str:
    """The explorer: one page that asks nothing of a network but this server's API."""
    text = (files("layerscope.serving") / "assets" / "explorer.html").read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # as HTML parsers make line ends, for the policy holds hashes of what they see


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
