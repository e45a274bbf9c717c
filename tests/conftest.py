"""What every test may rely on: no network, one thread, what is costly built once in a run, and the published runs."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported, so before any import below

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

import shape_checks  # noqa: F401 (before the package, whose modules it has wrapped)
from properties import THOROUGH
from published import SHARED

# As many as OMP_NUM_THREADS says, else one: sums keep their order, and parallel workers do not fight for cores.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))

# Without the long profile every run tries the same examples, so that a change is never blamed for another's find.
settings.register_profile("short", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None)
settings.load_profile("thorough" if THOROUGH else "short")

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """`once(name, build)` is the path that `build(path)` wrote, called once in a run however many workers there are.

    What is built takes its name when it is whole, so that a builder that fails or is killed leaves nothing behind.
    Nobody may write to it.
    """
    own = tmp_path_factory.getbasetemp()
    built = (own if worker_id == "master" else own.parent) / "built"
    built.mkdir(exist_ok=True)

    def path_of(name: str, build: Callable[[Path], object]) -> Path:
        done = built / name
        with FileLock(built / f".{name}.lock"):
            if not done.exists():
                unfinished = tmp_path_factory.mktemp("unfinished") / name
                build(unfinished)
                unfinished.rename(done)
        return done

    return path_of


@pytest.fixture(scope="session")
def tiny(once: Once) -> Callable[[str], Path]:
    """`tiny(name)` is the folder of that model of `tiny_models.TINY`."""
    from tiny_models import TINY  # only tests that ask for a model pay for importing transformers

    return lambda name: once(name, TINY[name].build)


@pytest.fixture(scope="module", params=["torch", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Takes a sweep's statistics by torch on one thread, then by compiled loops on two beside one another."""
    n_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("decode", "contrast"):
            patch.setattr(f"layerscope.readout.{module}.engine_for", lambda n_rows, unembedding: request.param)
        torch.set_num_threads(2 if request.param == "compiled" else n_threads)
        yield request.param
        torch.set_num_threads(n_threads)


REAL = {"smollm2", "gemma"}
"""Fixtures that are published models; a test that asks for one is marked `real`."""
NO_PUBLISHED = f"the published runs are not beside this checkout: no folder {SHARED}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside this checkout: the specification and the published runs."""
    if not SHARED.is_dir():
        pytest.skip(NO_PUBLISHED)
    return SHARED


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on published models are marked `real`; where the published runs are absent, a test that needs them is
    skipped once, and not for each parameter."""
    for item in items:
        if REAL & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)
    if SHARED.is_dir():
        return
    seen, kept, left = set(), list[pytest.Item](), list[pytest.Item]()
    for item in items:
        test = item.nodeid.partition("[")[0]
        needs = "shared" in getattr(item, "fixturenames", ())
        (left if needs and test in seen else kept).append(item)
        if needs:
            seen.add(test)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_collection_finish() -> None:
    """What was imported stays, and tests make much that does not: garbage is looked for seldom, and not among that."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for all of them."""
    n = sum(NO_PUBLISHED in str(report.longrepr) for report in terminalreporter.getreports("skipped"))
    if n:
        terminalreporter.write_line(f"{n} skipped: {NO_PUBLISHED}")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A browser for the tests of a file.

    It goes with the file: while it is there its event loop runs in this thread, and no other one can be started.
    """
    from playwright.sync_api import sync_playwright  # only tests that ask for it pay for importing it

    from browser_page import launched

    with sync_playwright() as playwright:
        found = launched(playwright)
        yield found
        found.close()


@pytest.fixture(scope="session")
def made_sweep(once: Once) -> Path:
    """The folder with the published files of every model of `made_sweep.MADE`; not to be written to."""
    from made_sweep import make_sweep  # only tests that ask for it pay for importing the readout

    return once("made-sweep", make_sweep)


@pytest.fixture(scope="session")
def five_lens_run(once: Once) -> Path:
    """A run's folder of the bundled model under all five lenses, published files inside; not to be written to."""

    def build(folder: Path) -> None:
        import layerscope
        from layerscope.published.layout import EXTENDED

        layerscope.probe(suite="capitals").save(folder, published=EXTENDED)

    return once("five-lens-run", build)


@pytest.fixture(scope="session")
def fitted_once(once: Once) -> Path:
    """A folder with a short text and a tuned lens of the bundled model fitted on it, `fit_texts.TEXT` and `LENS`."""
    from fit_texts import fit_once

    return once("fitted", fit_once)


def _real(name: str) -> Path:
    """A published model's folder, from the cache or freshly made; where it cannot be had, a skip that says why."""
    from real_models import UnavailableError, real_model  # of scripts/, which `pythonpath` names

    try:
        return real_model(name)
    except UnavailableError as error:
        pytest.skip(f"the published model '{name}' cannot be had here: {error}")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct (`scripts/real_models.py`); not to be written to."""
    return _real("smollm2")


@pytest.fixture(scope="session")
def gemma() -> Path:
    """The folder of Gemma-3-270M; not to be written to."""
    return _real("gemma")
