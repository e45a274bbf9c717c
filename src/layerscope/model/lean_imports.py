"""Load Transformers without the parts of it that a command never runs; for a process that is ours alone.

A model's forward needs a fraction of what Transformers imports for it. What is left out here: torch's compiler, which
decorators alone ask for (a third of all import time); sharding over machines and devices, which Transformers itself
leaves out of builds of torch that have none; and the reading of all its own source files for the names they define,
beyond the first time. What is computed does not depend on any of it.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from os import fspath, sep
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any, TypeVar

from layerscope.model.defined_names import Names, remembered

F = TypeVar("F")

_COMPILER = "torch._dynamo"
_ALONE = frozenset({f"{_COMPILER}._trace_wrapped_higher_order_op"})
"""What Transformers takes from the compiler; it needs nothing else of it."""
_GUARDS = "transformers.utils.import_utils"
_ABSENT = ("is_torch_distributed_available", "is_accelerate_available")
"""What Transformers asks before it imports what spreads a model over devices."""


def lean_imports() -> None:
    """Let Transformers be imported lean from here on; without effect on what is imported already."""
    sys.meta_path.insert(0, _Finder())


@contextmanager
def collection_paused() -> Iterator[None]:
    """No search for garbage: where much is made and kept, as in imports, it finds none and takes a fifth of the time.

    What is there at the end is not searched again.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.freeze()
            gc.enable()


class _Finder(MetaPathFinder):
    """Finds the two modules that are loaded otherwise than usual."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(f"{_COMPILER}.") and fullname not in _ALONE:
            compiler = sys.modules[_COMPILER]
            if isinstance(compiler, _LaterCompiler):
                compiler.load()  # its parts expect it to be there
        loaders = {_COMPILER: _LaterLoader, _GUARDS: _GuardsLoader}
        if fullname not in loaders:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = loaders[fullname](spec.loader)
        return spec


class _OwnLoader(Loader):
    """A module's own loader, with something done beside it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)


class _LaterLoader(_OwnLoader):
    """Makes a package that loads when something is asked of it, other than its submodules."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LaterCompiler(spec.name, self._loader)

    def exec_module(self, module: ModuleType) -> None:
        return


class _LaterCompiler(ModuleType):
    """torch's compiler until it is needed.

    Functions that are marked as allowed are kept, and marked when it loads. Those that were disabled before stay as
    they are: nothing that a command runs is compiled.
    """

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name)
        self._own_loader = loader
        self._marked: list[tuple[str, Any]] = []
        self._loading = RLock()
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by whoever looks modules over, as `inspect` does
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        self.load()
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def load(self) -> None:
        """Become the compiler."""
        with self._loading:
            if type(self) is ModuleType or self._begun:
                return  # another thread has loaded it meanwhile, or this one is at it
            self._begun = True
            try:
                self._own_loader.exec_module(self)
            except BaseException:
                self._begun = False
                raise
            for mark, function in self._marked:
                self.__dict__[mark](function)
            self.__class__ = ModuleType  # type: ignore[assignment]

    def allow_in_graph(self, function: F) -> F:
        """As torch's, which returns the function itself."""
        self._marked.append(("allow_in_graph", function))
        return function

    def assume_constant_result(self, function: F) -> F:
        """As torch's, which returns the function itself."""
        self._marked.append(("assume_constant_result", function))
        return function

    def disable(self, function: Any = None, recursive: bool = True, **options: Any) -> Any:
        """As torch's where nothing is compiled: the function itself."""
        return (lambda function: function) if function is None else function


class _GuardsLoader(_OwnLoader):
    """Lets Transformers find nothing to spread models with, and look its own files over once."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for name in _ABSENT:
            if hasattr(module, name):
                setattr(module, name, lru_cache(_absent))
        read_names = getattr(module, "create_import_structure_from_path", None)
        if read_names is not None:
            once = _once_by_folder(read_names, Path(str(module.__file__)).parents[1])
            module.create_import_structure_from_path = once  # type: ignore[attr-defined]


def _absent(*_: Any, **__: Any) -> bool:
    return False


def _once_by_folder(read_names: Callable[[Any], Names], package: Path) -> Callable[[Any], Names]:
    """A cache for which a path and the same path as a string, or a package's folder and its file, are one."""
    models = str(package / "models")
    version = str(getattr(sys.modules[package.name], "__version__", "unknown"))

    @cache
    def known(folder: str) -> Names:
        if folder == models:  # nearly all there is
            return remembered(lambda: read_names(folder), package, version)
        return read_names(folder)

    return lambda path: known(fspath(path).removesuffix(f"{sep}__init__.py"))
