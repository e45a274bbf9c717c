"""Draw docs/demo.svg, the README's picture: what the demo prints for its first prompt."""

import io
import re
from pathlib import Path

from rich.console import Console

import layerscope
from layerscope.report.tables import identity_line, run_tables

PICTURE = Path(__file__).parent.parent / "docs" / "demo.svg"


def main() -> None:
    """Probe the bundled model and keep the first table as a picture."""
    run = layerscope.probe(suite="capitals", positions="last")
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False, force_terminal=True)
    for part in list(run_tables(run, prompt=1))[:4]:
        console.print(part)
    console.print(identity_line(run))
    picture = console.export_svg(title="layerscope probe", unique_id="demo")
    # A picture in a repository should fetch nothing: the reader's own monospace font will do.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
