"""The hidden folder of an unfinished fit: what it belongs to, and its finished layers, after which it goes on."""

import contextlib
import errno
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from layerscope.errors import LensError
from layerscope.lens_record import LayerFit, SkipLayers
from layerscope.lenses.tuned_lens import Translator

if sys.platform != "win32":
    import fcntl


REACHED = "reached-{}.f32"
"""Name of the residual stream at a layer, where a pass over the blocks is kept."""
ROWS = "rows-{}.safetensors"
"""Name of rows of Jacobians, summed over so many prompts."""
_HOLD_WORK = "layer-*.json", REACHED.format("*"), ROWS.format("*")
"""Files for which a folder is worth keeping."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class FinishedLayer(BaseModel):
    """The record of one finished layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: LayerFit
    skip: SkipLayers | None
    temperature: float


class Workspace:
    """A hidden folder beside the lens folder that is being made, bound to one model, corpus and choice of settings."""

    def __init__(self, target: Path, settings: dict[str, object]) -> None:
        """Name the folder; it is made by `held`, or by whatever is first put there.

        Args:
            target: the lens' folder, which must not be there yet.
            settings: whatever decides the result; another choice gets another folder.

        Raises:
            LensError: the folder is there already.
        """
        self._target, self._settings = target, settings
        self._refuse_taken()
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.folder = target.with_name(f".{target.name}.fit-{key[:16]}")

    def _refuse_taken(self) -> None:
        if self._target.exists():
            raise LensError(f"'{self._target}' is already there; give another --out or --name, or remove it first.")

    @property
    def leftovers(self) -> tuple[Path, ...]:
        """Folders of other fits of the same lens, by name: with other settings, and unfinished or still running."""
        if not self._target.parent.is_dir():
            return ()
        name = re.compile(rf"\.{re.escape(self._target.name)}\.fit-[0-9a-f]{{16}}")
        others = sorted(path for path in self._target.parent.iterdir() if name.fullmatch(path.name))
        return tuple(path for path in others if path.is_dir() and path != self.folder)

    def room(self) -> Path:
        """The folder, made if it was not there yet.

        Raises:
            LensError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "settings.json").exists():
                text = json.dumps(self._settings, indent=2, sort_keys=True) + "\n"
                (self.folder / "settings.json").write_text(text, "utf-8")
        except OSError as error:
            raise LensError(
                f"The folder '{self.folder}' cannot be made ({error.strerror}); give another --out."
            ) from error
        return self.folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder to oneself; where nothing was finished, nothing is left of it afterwards.

        Raises:
            LensError: another process fits a lens of this name just now, or has done so by now; the folder cannot be
                made.
        """
        absent = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with _alone(self.room() / "lock"):
            try:
                for other in self.leftovers:
                    if (other / "lock").exists():
                        with _alone(other / "lock"):
                            pass  # of a fit with other settings that ended, or was killed
                self._refuse_taken()  # it may have been written while this one waited for its text
                yield
            finally:
                if not any(any(self.folder.glob(name)) for name in _HOLD_WORK):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    with contextlib.suppress(OSError):  # what others have put something into stays
                        for path in absent[1:]:
                            path.rmdir()

    def _paths(self, layer: int) -> tuple[Path, Path]:
        stem = self.folder / f"layer-{layer:03d}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def keep(self, layer: int, translator: Translator, fit: LayerFit, skip: SkipLayers | None) -> None:
        """Write a finished layer; its record comes last, under its name only when whole.

        Raises:
            LensError: there is no room for it, or the folder cannot be written to.
        """
        self.room()
        weights, record = self._paths(layer)
        finished = FinishedLayer(fit=fit, skip=skip, temperature=translator.temperature)
        partial = record.with_suffix(".partial")
        try:
            save_file({name: part.cpu().contiguous() for name, part in translator.parts().items()}, weights)
            partial.write_text(finished.model_dump_json(), "utf-8")
            partial.replace(record)
        except (OSError, SafetensorError) as error:
            raise not_kept(self.folder, layer, error) from error

    def finished(self, layer: int) -> tuple[Translator, FinishedLayer] | None:
        """A layer that an earlier fit finished; None where none did.

        Raises:
            LensError: its files are damaged.
        """
        weights, record = self._paths(layer)
        if not record.exists():
            return None
        try:
            finished = FinishedLayer.model_validate_json(record.read_text("utf-8"))
            parts = load_file(weights)
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged(self.folder, layer) from error
        return Translator(temperature=finished.temperature, **parts), finished

    def discard(self) -> None:
        """Delete it all, once nothing of it is needed; what a filesystem will not let go of yet stays."""
        shutil.rmtree(self.folder, ignore_errors=True)


def damaged(folder: Path, layer: int) -> LensError:
    """For files of an unfinished fit that cannot be read."""
    return LensError(f"The unfinished fit in '{folder}' is damaged at layer {layer}; delete that folder to start anew.")


def not_kept(folder: Path, layer: int, error: Exception) -> LensError:
    """For files of an unfinished fit that cannot be written."""
    return LensError(
        f"Layer {layer} could not be kept in '{folder}' ({error}); make room on that disk, and the same command goes "
        "on from there."
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which the system takes away from a process that was killed.

    Windows and some network filesystems have no such lock, and a fit goes on without it.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        opened = path.open("w")
    except OSError as error:
        raise LensError(f"'{path}' cannot be written to ({error.strerror}); give another --out or --name.") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LensError(
                f"Another process is fitting this lens just now, in '{path.parent}'; wait for it, or give another "
                "--name."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
