"""Draw docs/demo.svg, the README's picture: the verdict that the demo ends with."""

import io
import re
from pathlib import Path

from rich.console import Console

import layerscope
from layerscope.terminal.verdict import run_verdict

PICTURE = Path(__file__).parent.parent / "docs" / "demo.svg"


def main() -> None:
    """Probe the bundled model and keep the verdict as a picture."""
    run = layerscope.probe(suite="capitals")
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False, force_terminal=True)
    for part in run_verdict(run):
        console.print(part)
    picture = console.export_svg(title="layerscope probe", unique_id="demo")
    # A picture in a repository should fetch nothing: the reader's own monospace font will do.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
