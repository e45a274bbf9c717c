"""What every test may rely on: no network, one thread, tiny models built once, and the published runs when present."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported, so before any import below

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from published import SHARED

torch.set_num_threads(1)  # sums keep their order, and parallel test workers do not fight for cores


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny(name)` is the folder of that model of `tiny_models.TINY`, built once in a session."""
    from tiny_models import TINY  # only tests that ask for a model pay for importing transformers

    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = TINY[name].build(tmp_path_factory.mktemp(name))
        return folders[name]

    return folder_of


NO_PUBLISHED = f"the published runs are not beside this checkout: no folder {SHARED}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside this checkout: the specification and the published runs."""
    if not SHARED.is_dir():
        pytest.skip(NO_PUBLISHED)
    return SHARED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the published runs are absent, a test that needs them is skipped once, and not for each parameter."""
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for all of them."""
    n = sum(NO_PUBLISHED in str(report.longrepr) for report in terminalreporter.getreports("skipped"))
    if n:
        terminalreporter.write_line(f"{n} skipped: {NO_PUBLISHED}")


@pytest.fixture(scope="session")
def made_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the published files of every model of `made_sweep.MADE`; not to be written to."""
    from made_sweep import make_sweep  # only tests that ask for it pay for importing the readout

    return make_sweep(tmp_path_factory.mktemp("made") / "sweep")


@pytest.fixture(scope="session")
def five_lens_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of the bundled model under all five lenses, published files inside; not to be written to."""
    import layerscope
    from layerscope.published.layout import EXTENDED

    folder = tmp_path_factory.mktemp("five") / "run"
    layerscope.probe(suite="capitals").save(folder, published=EXTENDED)
    return folder
