"""The house keeps its word: public names, the README's map and example, what loads without a tensor library."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped

import layerscope
import shape_checks
from layerscope import products
from layerscope.model.residuals import Residuals
from properties import checks_every_type

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_public_name_can_be_had_and_keeps_its_kind():
    assert sorted(layerscope.__all__) == layerscope.__all__
    for name in layerscope.__all__:
        assert getattr(layerscope, name).__name__ == name
    assert callable(layerscope.probe)  # not the module of that name


def test_reading_a_run_loads_no_tensor_library():
    code = (
        "import sys, layerscope, layerscope.terminal.run_tables, layerscope.record, layerscope.suite; layerscope.Run\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_guard_against_tensor_libraries_can_fail():
    code = "import sys, layerscope; layerscope.probe\nassert not {'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1


def test_every_module_opens_with_a_sentence_that_says_what_it_is_for():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path
        assert re.search(r"[.:?]$", docstring.split("\n\n")[0].splitlines()[-1]), path


def test_every_protocol_can_be_told_at_run_time():
    """Where all annotations are checked, one that cannot fails every call that it stands in."""
    protocols = [
        (path, node)
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
    ]
    assert protocols
    for path, node in protocols:
        assert "runtime_checkable" in map(ast.unparse, node.decorator_list), (path, node.name)


def test_the_readme_maps_every_room():
    rows = re.findall(r"^\| (`[^|]+`) \|", README, flags=re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        inside = any(folder.endswith("/") and name.startswith(folder) for folder in listed)
        assert name in listed or inside or path.name in ("__init__.py", "__main__.py"), f"{name} is not on the map"
    assert all((ROOT / name).exists() for name in listed if "/" in name)


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert " Berlin" in capsys.readouterr().out


PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_every_documented_import_works():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for example in PYTHON.findall(page.read_text(encoding="utf-8")):
            imports = [n for n in ast.parse(example).body if isinstance(n, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), page.name, "exec"), {})


def test_every_public_name_is_documented_and_every_documented_one_is_public():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    used = set(re.findall(r"layerscope\.(\w+)", "".join(PYTHON.findall(text)))) - {"published"}
    rows = re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(layerscope.__all__)
    assert used <= set(layerscope.__all__)


def test_the_examples_of_the_python_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for example in PYTHON.findall(page):
        if "fit_tuned" not in example:  # which asks for a text of the reader's own
            exec(compile(example, "python.md", "exec"), {})
    assert " Berlin" in capsys.readouterr().out


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_shapes_are_checked_wherever_signatures_have_some():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    (listed,) = [option.split("=")[1].split(",") for option in options["addopts"] if "jaxtyping" in option]
    for path in (ROOT / "src").rglob("*.py"):
        if "from jaxtyping import" in path.read_text(encoding="utf-8"):
            module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
            assert any(f"{module}.".startswith(f"{name}.") for name in listed), f"{module} is not checked"


def test_a_wrong_shape_is_found_and_what_has_no_shape_runs_as_it_is_written(request: pytest.FixtureRequest):
    with pytest.raises(TypeCheckError, match="d_in"):
        products.product(torch.zeros(2, 3), torch.zeros(5, 4))
    with pytest.raises(TypeCheckError, match="values"):
        Residuals(torch.zeros(2, 3), (1, 1), torch.zeros(2, 5))

    @jaxtyped(typechecker=shape_checks.checked)
    def turned(matrix: Float[torch.Tensor, "a b"]) -> Float[torch.Tensor, "b a"]:
        return matrix

    assert turned(torch.zeros(2, 2)).shape == (2, 2)
    with pytest.raises(TypeCheckError, match="return value"):
        turned(torch.zeros(2, 3))
    assert hasattr(products.product, "__wrapped__")
    assert hasattr(products.fastest.__wrapped__, "__wrapped__") == checks_every_type(request)
