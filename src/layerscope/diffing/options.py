"""What a comparison of two models can be asked for: keywords of `layerscope.diff`, options of `layerscope diff`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layerscope.model.options import OpenOptions
from layerscope.suite import Suite, SuiteSource


@dataclass(frozen=True, kw_only=True)
class DiffOptions(OpenOptions):
    """How a variant is held against its base."""

    adapter: str | Path | None = None
    """Folder of an adapter to apply to the variant; with no variant named that is the base itself."""
    variant_revision: str | None = None
    """Branch, tag or commit of the variant's Hub id; with no variant named that is the base's."""
    suite: SuiteSource | None = "capitals"
    """A built-in suite, a file of facts, or `none`; in Python also a list of facts."""
    columns: str | Mapping[str, str] | None = None
    """Which columns or fields of a file of facts to take, as in `prompt=question,answer=obj`."""
    limit: int | None = None
    """Ask only the first facts, so many of them; default: all."""
    text: Sequence[str] = ()
    """Text that both read: a .txt, .jsonl or .parquet file, or a data set's id on the Hub; repeatable; default: four
    passages of layerscope's own."""
    field: str = "text"
    """Name of the field that holds a document's text, in all but .txt files."""
    tokens: str | int = "4096"
    """How much of that text to read, as 500k or 2M tokens."""
    seq_len: int = 512
    """Positions of a sequence, BOS included; no more than the model reads."""
    modules: bool = False
    """Put every linear layer of the variant into the base's block alone, too: one more run of a block for each."""
    noise_floor: bool = True
    """Hold the base against itself, too, its first two sequences alone in place of beside others: two more
    passes."""
    seed: int = 316
    """Of the draw of positions that every layer is decoded at."""

    def read_suite(self) -> Suite | None:
        """The suite, or so much of it as is to be asked; None for none.

        Raises:
            SuiteError: it cannot be found, read or asked.
        """
        from layerscope.suite import load_suite  # here, for it loads a library that help need not wait for

        if self.suite is None or self.suite == "none":
            return None
        return load_suite(self.suite, columns=self.columns, limit=self.limit, sample=None, seed=self.seed)

    def with_suite_read(self) -> "DiffOptions":
        """The same options with the suite read already; raises like `read_suite`."""
        return replace(self, suite=self.read_suite(), columns=None, limit=None)
