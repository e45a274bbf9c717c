"""A folder of runs as evidence: one model or many, each read when first asked for."""

from collections.abc import Iterator
from pathlib import Path

from layerscope.errors import RunError
from layerscope.published.layout import json_name
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.sources import Sources
from layerscope.run_folder import read_run


class Archive:
    """The models whose published files lie in one folder."""

    def __init__(self, path: str | Path, published: Path | None = None) -> None:
        """Take a folder of published files, a run's own folder with `published` inside, or one `output-<M>.json`.

        Args:
            path: whichever it is.
            published: the published files of a run whose folder lacks them.

        Raises:
            RunError: there is nothing at the path, or no model in it.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise RunError(f"{self.path}: no such file or folder; give a run's folder, or one of published files.")
        self.sources = Sources(published or (self.path if self.path.is_dir() else self.path.parent))
        self._found: dict[str, Evidence] = {}
        if not self.stems:
            raise RunError(
                f"{self.path}: no output-<model>.json here; write published files with `layerscope export --published`."
            )

    @property
    def stems(self) -> tuple[str, ...]:
        """The models' names as the files have them; of one model's JSON, that one."""
        if self.path.is_dir():
            return self.sources.stems
        return tuple(stem for stem in self.sources.stems if json_name(stem) == self.path.name)

    def __iter__(self) -> Iterator[Evidence]:
        """The evidence on every model."""
        return (self.evidence(stem) for stem in self.stems)

    def readable(self) -> tuple[list[Evidence], list[str]]:
        """The evidence on every model that can be read as a run, and why others cannot: a run that failed, say.

        Raises:
            RunError: none can.
        """
        read, reasons = list[Evidence](), list[str]()
        for stem in self.stems:
            try:
                read.append(self.evidence(stem))
            except RunError as error:
                reasons.append(str(error))
        if not read:
            raise RunError("\n".join(reasons))
        return read, reasons

    def evidence(self, stem: str) -> Evidence:
        """The evidence on one model.

        Raises:
            RunError: the folder has no such model, or it cannot be read as a run.
        """
        if stem not in self.stems:
            raise RunError(f"{self.path}: no model {stem!r} here; there are {', '.join(self.stems)}.")
        if stem not in self._found:
            run = read_run(self.sources.folder / json_name(stem))
            self._found[stem] = Evidence(run, self.sources, stem)
        return self._found[stem]
