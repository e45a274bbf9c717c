"""Draw the README's pictures of a terminal: a look at a text, and a probe's verdict, both of SmolLM2-135M-Instruct."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

from real_models import real_model
from rich.console import Console, RenderableType

import layerscope
from layerscope.looking.screen import look_screen
from layerscope.terminal.fact_table import fact_table
from layerscope.terminal.run_tables import run_lines
from layerscope.terminal.verdict import run_verdict

DOCS = Path(__file__).parent.parent / "docs"
MODEL = "SmolLM2-135M-Instruct"
TEXT, ANSWER = "The capital of Germany is called", "Berlin"


def main() -> None:
    """Look and probe, and keep what a terminal shows as pictures."""
    model = layerscope.CausalLM.open(real_model("smollm2"), device="cpu")
    look = layerscope.look(model, TEXT, answer=ANSWER, track="Paris", positions="all")
    draw("look.svg", f'layerscope look {MODEL} "{TEXT}" --answer {ANSWER} --track Paris', look_screen(look, 100), 100)
    prompt = {"subject": "The Eiffel Tower", "prompt": "The Eiffel Tower is in the city of", "answer": "Paris"}
    run = layerscope.probe(model, suite=[prompt])
    draw("demo.svg", f"layerscope probe {MODEL}", (*fact_table(run), *run_lines(run), "", *run_verdict(run)), 80)


def draw(name: str, title: str, parts: Iterable[RenderableType], width: int) -> None:
    """One picture; it fetches nothing, for the reader's own monospace font will do."""
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False, force_terminal=True)
    for part in parts:
        console.print(part)
    picture = console.export_svg(title=title, unique_id=Path(name).stem)
    (DOCS / name).write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
