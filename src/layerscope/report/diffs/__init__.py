"""The report on a comparison that `layerscope diff` wrote: every number with the line of its JSON that shows it."""

from pathlib import Path

from layerscope.analysis.diff_files import read_diff
from layerscope.analysis.model_diff import ModelDiff
from layerscope.errors import RunError
from layerscope.report.cited.document import Report
from layerscope.report.cited.sources import read_json
from layerscope.report.diffs.of_models import report_of_models
from layerscope.report.diffs.of_runs import report_of_runs
from layerscope.report.diffs.quoted import Quoted

NAME = "evaluation-diff.md"
"""The report's file."""


def diff_report(path: Path) -> Report:
    """The report on one comparison.

    Args:
        path: its `diff.json`, of two models, or `run-diff.json`, of two runs.

    Raises:
        RunError: the file cannot be read, or holds no such comparison.
    """
    found = read_diff(path)
    try:
        document = read_json(path.name, path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from error
    if isinstance(found, ModelDiff):
        return report_of_models(found, Quoted(found.variant.id, document))
    return report_of_runs(found, Quoted(found.variant.model_id, document))
