"""Imports that leave out what a command never runs: nothing computed changes, and what is left out can still be had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from layerscope.model.defined_names import remembered

_COMPILED = """if True:
    import sys, types
    from layerscope.model.lean_imports import lean_imports
    lean_imports()
    import torch
    import transformers.models.llama.modeling_llama
    from transformers.utils.import_utils import is_torch_distributed_available

    compiler = sys.modules["torch._dynamo"]
    assert torch.distributed.is_available(), "torch itself is as it was"
    assert not is_torch_distributed_available()
    assert "torch._dynamo.eval_frame" not in sys.modules

    @compiler.allow_in_graph
    def marked(x):
        return x + 1

    compiled = torch.compile(lambda x: marked(x) * 2, backend="eager", fullgraph=True)
    assert "torch._dynamo.eval_frame" in sys.modules
    assert compiled(torch.tensor(3.0)) == 8.0
    assert type(compiler) is types.ModuleType
    assert torch._dynamo.trace_rules.is_callable_allowed(marked), "marked before the compiler was there"
"""


def _run(script: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_compiler_that_was_put_off_comes_when_something_is_compiled(tmp_path):
    _run(_COMPILED, tmp_path)


def test_a_probe_loads_neither_compiler_nor_sharding(tmp_path):
    heavy = ("sympy", "torch.distributed.tensor", "torch._dynamo.eval_frame", "accelerate")
    script = f"""if True:
        import sys
        from layerscope.cli.main import main
        sys.argv = "layerscope probe --suite berlin --positions last --lens logit --second-forward off".split()
        try: main()
        except SystemExit as end: assert not end.code
        print("loaded:", *set({heavy!r}) & set(sys.modules))
    """
    assert _run(script, tmp_path).splitlines()[-1] == "loaded:"


def test_the_names_of_an_installation_are_read_once_and_again_when_it_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package, record = tmp_path / "transformers", tmp_path / "transformers-9.9.dist-info" / "RECORD"
    found = {"llama": {frozenset({"torch"}): {"modeling_llama": {"A", "B"}}, "deep": {frozenset(): {"x": {"C"}}}}}
    reads = []

    def names() -> dict[object, object]:
        return remembered(lambda: reads.append(1) or found, package, "9.9")

    assert [names(), names()] == [found, found] and len(reads) == 2, "no installer wrote it"
    record.parent.mkdir()
    record.write_text("a")
    assert [names(), names()] == [found, found] and len(reads) == 3
    record.write_text("ab")
    assert [names(), names()] == [found, found] and len(reads) == 4
    (kept,) = (tmp_path / "cache" / "layerscope").iterdir()
    kept.write_text(json.dumps({"installation": 1})[:-3])
    assert names() == found and len(reads) == 5
