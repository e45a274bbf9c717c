"""Draw docs/demo.svg, the README's picture of a verdict: one prompt asked of SmolLM2-135M-Instruct."""

import io
import re
from pathlib import Path

from real_models import real_model
from rich.console import Console

import layerscope
from layerscope.terminal.run_tables import run_tables
from layerscope.terminal.verdict import run_verdict

PICTURE = Path(__file__).parent.parent / "docs" / "demo.svg"


def main() -> None:
    """Probe the model and keep what a terminal shows as a picture."""
    asked = {"subject": "The Eiffel Tower", "prompt": "The Eiffel Tower is in the city of", "answer": "Paris"}
    run = layerscope.probe(real_model("smollm2"), suite=[asked], device="cpu")
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False, force_terminal=True)
    for part in (*run_tables(run), "", *run_verdict(run)):
        console.print(part)
    picture = console.export_svg(title="layerscope probe SmolLM2-135M-Instruct", unique_id="demo")
    # A picture in a repository should fetch nothing: the reader's own monospace font will do.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
