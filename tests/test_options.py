"""Options stated once: keywords of a function and options of a command come from one dataclass, texts included."""

import inspect
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Literal

import pytest
import typer
from typer.testing import CliRunner, Result

import layerscope
from layerscope.cli.main import app as layerscope_app
from layerscope.cli.options import command
from layerscope.errors import LensError
from layerscope.fitting.options import FitOptions, PrismSettings, TunedSettings
from layerscope.model.causal_lm import OpenRequest
from layerscope.options import field_texts, keywords
from layerscope.probing.probe import ProbeRequest


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    """Where it is baked."""

    heat: int = 180
    """Degrees, as
    the oven shows them."""
    steam: bool = False
    """Add steam."""


@dataclass(frozen=True, kw_only=True)
class Baking(Kitchen):
    """What is baked."""

    bread: str = field(default="rye", kw_only=False)
    """Bread, of `rye` or wheat; goes with `heat`; default: the house's."""
    size: Literal["small", "large"] | int = "small"
    """Size of a loaf."""
    shape: Literal["round", "long"] = "round"
    """Shape of a loaf."""
    extras: Sequence[str] = ()
    """Extras; repeatable."""
    notes: Path | str | None = None
    """File of notes; default: none."""
    rate: float = 0.5
    """No option of the command."""


@keywords(Baking, formerly={"grain": "bread"})
def bake(request: Baking) -> Baking:
    """Bake a loaf.

    Raises:
        ValueError: it burns.
    """
    return request


def test_a_functions_keywords_are_the_fields():
    assert bake("wheat", heat=200, extras=["nuts"]) == Baking(bread="wheat", heat=200, extras=["nuts"])
    parameters = inspect.signature(bake).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "bread": "rye",
        "heat": 180,
        "steam": False,
        "size": "small",
        "shape": "round",
        "extras": (),
        "notes": None,
        "rate": 0.5,
    }
    assert parameters["bread"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameters["heat"].kind is inspect.Parameter.KEYWORD_ONLY
    assert bake.__name__ == "bake"


def test_an_unknown_keyword_is_refused_by_name():
    with pytest.raises(TypeError, match=r"bake\(\) got an unexpected keyword argument 'heet'"):
        bake(heet=200)
    with pytest.raises(TypeError, match=r"bake\(\) too many positional arguments"):
        bake("rye", 200)


def test_a_docstring_lists_the_options_between_summary_and_errors():
    summary, arguments, errors = bake.__doc__.split("\n\n")
    assert summary == "Bake a loaf."
    assert arguments.splitlines()[:3] == [
        "Args:",
        "    bread: Bread, of `rye` or wheat; goes with `heat`; default: the house's.",
        "    heat: Degrees, as the oven shows them.",
    ]
    assert len(arguments.splitlines()) == 1 + len(fields(Baking))
    assert errors.startswith("Raises:")


def test_an_old_keyword_works_with_a_warning_and_not_beside_the_new_one():
    with pytest.warns(DeprecationWarning, match="`grain` is now called `bread`"):
        assert bake(grain="wheat") == Baking(bread="wheat")
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="both 'bread' and its old name 'grain'"):
        bake(grain="wheat", bread="rye")


def test_a_script_sees_the_warning_at_its_own_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from layerscope.options import keywords\n"
        "@dataclass\nclass Options:\n    new: int = 0\n"
        "@keywords(Options, formerly={'old': 'new'})\ndef f(options): return options.new\n"
        "assert f(old=1) == 1\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"{script}:8: DeprecationWarning: `old` is now called `new`")


def test_a_class_without_source_has_no_texts():
    assert field_texts(make_dataclass("Made", [("heat", int, 180)])) == {}


def test_every_option_has_a_text():
    for group in (ProbeRequest, OpenRequest, FitOptions, TunedSettings, PrismSettings):
        assert {option.name for option in fields(group)} == set(field_texts(group))
        assert all(text.endswith(".") for text in field_texts(group).values())


# The command line

baked: list[tuple[Baking, int]] = []
app = typer.Typer(add_completion=False)


@app.command()
@command(last="loaves heat steam", without="rate", spelled={"extras": "--with"}, formerly={"grain": "bread"})
def loaf(*, options: Baking, loaves: int = 1) -> None:
    """Bake."""
    if options.heat > 300:
        raise LensError("It burns.")
    baked.append((options, loaves))


def run(*words: str) -> Result:
    baked.clear()
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, words)


def test_a_commands_options_are_the_fields_with_their_defaults():
    assert run().exit_code == 0
    assert baked == [(Baking(), 1)]
    words = "--bread wheat --heat 200 --steam --shape long --with nuts --with seeds --notes n.md --loaves 3"
    assert run(*shlex.split(words)).exit_code == 0
    options = Baking(bread="wheat", heat=200, steam=True, shape="long", extras=["nuts", "seeds"], notes=Path("n.md"))
    assert baked == [(options, 3)]


def test_help_has_the_fields_texts_in_the_commands_order():
    shown = run("--help").stdout
    lines = [line.strip("│ ") for line in shown.splitlines() if line.strip("│ ").startswith("--")]
    options = " ".join(line.split()[0] for line in lines)
    assert options == "--bread --size --shape --with --notes --loaves --heat --steam --help"
    assert "Bread, of rye or wheat; goes with --heat. [default: (the house's)]" in lines[0]
    assert "Degrees, as the oven shows them. [default: 180]" in lines[6]
    assert "--no-steam" not in shown and "grain" not in shown


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--shape", "square"], "There is no shape 'square'; choose from round, long."),
        (["--size", "huge"], "'huge' is no size; give small, large, or a whole number."),
        (["--size", "-1"], "'-1' is no size; give small, large, or a whole number."),
        (["--heat", "301"], "It burns."),
        (["--grain", "oat", "--bread", "wheat"], "--grain is the old name of --bread, and both were given"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, error):
    done = run(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {error}")
    assert len(done.stderr.splitlines()) == 1
    assert baked == []


def test_a_number_is_taken_where_a_field_may_be_one():
    run("--size", "12")
    assert baked == [(Baking(size=12), 1)]
    run("--size", "large")
    assert baked == [(Baking(size="large"), 1)]


def test_an_old_option_works_with_a_note_on_stderr():
    done = run("--grain", "oat")
    assert done.exit_code == 0
    assert baked == [(Baking(bread="oat"), 1)]
    assert done.stderr == "warning: --grain is now called --bread; the old name works until the next release.\n"
    assert done.stdout == ""


# What layerscope renamed


def test_the_old_names_of_the_lens_folder_still_work(tmp_path):
    folder = tmp_path / "nowhere"
    renamed = pytest.warns(DeprecationWarning, match="`sidecars` is now called `lens_dir`")
    with renamed, pytest.raises(LensError, match="no such folder"):
        layerscope.probe(suite="berlin", sidecars=folder)
    words = ["probe", "--sidecars", str(folder), "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(layerscope_app, words)
    assert done.exit_code == 2
    note, error = done.stderr.splitlines()
    assert note.startswith("warning: --sidecars is now called --lens-dir")
    assert "nowhere: no such folder" in error


def test_an_unknown_option_of_a_probe_is_refused_by_name():
    with pytest.raises(TypeError, match=r"probe\(\) got an unexpected keyword argument 'topk'"):
        layerscope.probe(topk=3)
