"""What every test may rely on: no network, one thread, tiny models built once, and the published runs when present."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported, so before any import below

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside this checkout: the specification and the published runs."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"the published runs are not beside this checkout: no folder {path}")
    return path


@pytest.fixture(scope="session")
def five_lens_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of the bundled model under all five lenses, published files inside; not to be written to."""
    import layerscope
    from layerscope.published.layout import EXTENDED

    folder = tmp_path_factory.mktemp("five") / "run"
    layerscope.probe(suite="capitals").save(folder, published=EXTENDED)
    return folder
