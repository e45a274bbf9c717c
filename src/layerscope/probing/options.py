"""What a probe can be asked for: keywords of `layerscope.probe`, options of `layerscope probe`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from layerscope.interventions import Directions, Positions
from layerscope.model.options import OpenOptions
from layerscope.suite import Suite, SuiteSource
from layerscope.suite.suite import AnswerForm, Judge

_Options = TypeVar("_Options", bound="SuiteOptions")
RENAMED = {"sidecars": "lens_dir"}
"""Old names of options, which still work."""


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(OpenOptions):
    """What a model is asked, and the lenses that it is read through."""

    suite: SuiteSource = "capitals"
    """A built-in suite, or a file of facts: .toml, .jsonl, .json, .csv, .tsv or .txt; in Python also a list of them."""
    columns: str | Mapping[str, str] | None = None
    """Which columns or fields of a file of facts to take, as in `prompt=question,answer=obj,subject=subj`; default:
    those of the shapes that are known."""
    limit: int | None = None
    """Ask only the first facts, so many of them; default: all."""
    sample: int | None = None
    """Ask only so many facts, drawn with `seed`; default: all."""
    lenses: str | Sequence[str] | None = None
    """Lenses, comma-separated, of logit, next_norm, raw, tuned, ridge, prism and jacobian; default: the
    protocol's own, and the fitted ones that `lens_dir` holds for the model."""
    lens_dir: Path | str | None = None
    """Folder of fitted lenses, or of a single one (the bundled model has its own)."""
    seed: int = 316
    """Seed of every random generator; recorded."""

    def read_suite(self) -> Suite:
        """The suite, or so much of it as is to be asked.

        Raises:
            SuiteError: it cannot be found, read or asked.
        """
        from layerscope.suite import load_suite  # here, for it loads a library that help need not wait for

        return load_suite(self.suite, columns=self.columns, limit=self.limit, sample=self.sample, seed=self.seed)

    def with_suite_read(self: _Options) -> _Options:
        """The same options with the suite read already; raises like `read_suite`."""
        return replace(self, suite=self.read_suite(), columns=None, limit=None, sample=None)


@dataclass(frozen=True, kw_only=True)
class BakeoffOptions(SuiteOptions):
    """How lenses are held against each other."""

    directions: Directions = "both"
    """What is exchanged: the span of `both` answers' directions, or the one of their `difference`."""
    all_layers: bool = False
    """Exchange at every layer, for the table of exchanges; default: where the answer is carried, which is what the
    summary is of."""
    text: Sequence[str] = ()
    """Text on whose held-out part every lens is measured: a .txt, .jsonl or .parquet file, or a data set's id on the
    Hub; repeatable; default: passages of layerscope's own."""
    field: str | None = None
    """Name of the field that holds a document's text, in all but .txt files; default: text."""
    tokens: str | int | None = None
    """How much of that text to read, as 500k or 2M tokens: with what a fit was told, its held-out part is the same;
    default: 2M."""
    rank: int = 32
    """Rank to which a tuned lens' maps are held in an entrant of its own; 0 for none."""
    nulls: bool = True
    """Exchange along the directions of each fitted lens with its weights shuffled, too."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(SuiteOptions):
    """How a model is probed."""

    calibrate: Path | str | None = None
    """Text to fit a `ridge` lens on first and read through it too: a .txt, .jsonl or .parquet file, or a data set's id
    on the Hub."""
    tokens: str | int | None = None
    """How much of that text to read, as 500k or 1M tokens; default: 20k."""
    answer_form: AnswerForm = "auto"
    """How answers follow their prompts: `auto` (as the suite has it, else as the model itself prefers; protocol
    published: after a space wherever possible), `space` or `none`."""
    system: str | None = None
    """What a system message says in front of every chat that has none."""
    template_options: Mapping[str, bool | int | float | str] | Sequence[str] | None = None
    """Arguments of the chat template, each as enable_thinking=false; repeatable."""
    positions: str = "auto"
    """`auto` (all of the first prompt, the last of the others; protocol published: all), `last` or `all`."""
    judge: Judge | None = None
    """What milestones are about: an answer's `first_piece`, or the `whole` of it; default: what the suite says."""
    top_k: int = 20
    """How many of the largest logits a row lists."""
    protocol: str = "standard"
    """Definitions: `standard`, or `published` (those of the published tables)."""
    control: str = "none"
    """Ask a twin with shuffled weights too: `none`, `shuffled-weights` (those of the blocks), or
    `shuffled-weights:all` (embedding and unembedding too)."""
    causal: bool = True
    """Write residuals of facts into the runs of others of the same template, at every layer, and see whether the answer
    goes with them."""
    causal_positions: Positions = "default"
    """Where they are written: `default` (the subject's last token and the prompt's last one) or `all` (a map of layers
    and positions)."""
    sublayers: bool = False
    """Take the lead of each answer apart: what attention, MLP and heads of every block add to it at the last token."""
    neurons: bool = False
    """With `sublayers`: name the MLP neurons with the largest shares too."""
    ablate: Sequence[str] | None = None
    """Put a part out of action and read everything without it: `block:12.attn`, `block:12.mlp`, `head:12.7` or
    `neurons:12:5,77`; repeatable. Blocks are counted by the layer that they write, from 1; heads and neurons from 0."""
    ablate_with: str = "zero"
    """What stands for the parts: `zero`, or their `mean` over all tokens of the run's prompts."""
    second_forward: str = "auto"
    """A second forward pass, to see whether the first repeats: `auto` (where it might not), `always` or `off`."""
