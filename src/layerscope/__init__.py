"""layerscope: what a language model answers, from which depth on it can be decoded, and how far to trust that.

    import layerscope

    run = layerscope.probe("Qwen/Qwen3-8B", suite="capitals")
    run.rows                      # a polars frame: one row for each prompt, lens, layer and position
    run.show()                    # a page, in a notebook; run.plot("answer_rank") is one chart of it
    run.save("runs/qwen3-8b")
    layerscope.Run.read("runs/qwen3-8b")

Names load on first use, so that reading a run needs no tensor library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerscope.analysis.analysed_run import AnalysedRun as AnalysedRun
    from layerscope.analysis.answer_tracking import TrackedAnswers as TrackedAnswers
    from layerscope.analysis.task_scores import LensTasks as LensTasks
    from layerscope.audit.audit import AuditResult as AuditResult
    from layerscope.audit.audit_report import audit_report as audit_report
    from layerscope.diffing.diff import DiffResult as DiffResult
    from layerscope.diffing.diff import diff as diff
    from layerscope.diffing.runs import RunDiffResult as RunDiffResult
    from layerscope.diffing.runs import diff_runs as diff_runs
    from layerscope.errors import LayerscopeError as LayerscopeError
    from layerscope.fitting.corpus import Corpus as Corpus
    from layerscope.fitting.corpus import read_corpus as read_corpus
    from layerscope.fitting.jacobian import fit_jacobian as fit_jacobian
    from layerscope.fitting.options import JacobianSettings as JacobianSettings
    from layerscope.fitting.options import PrismSettings as PrismSettings
    from layerscope.fitting.options import RidgeSettings as RidgeSettings
    from layerscope.fitting.options import TunedSettings as TunedSettings
    from layerscope.fitting.prism import fit_prism as fit_prism
    from layerscope.fitting.ridge import fit_ridge as fit_ridge
    from layerscope.fitting.tuned import fit_tuned as fit_tuned
    from layerscope.lenses import FittedLens as FittedLens
    from layerscope.lenses import JacobianLens as JacobianLens
    from layerscope.lenses import Lens as Lens
    from layerscope.lenses import LogitLens as LogitLens
    from layerscope.lenses import NextNormLens as NextNormLens
    from layerscope.lenses import PrismLens as PrismLens
    from layerscope.lenses import RawLens as RawLens
    from layerscope.lenses import TunedLens as TunedLens
    from layerscope.lenses import bind_lenses as bind_lenses
    from layerscope.lenses import read_fitted_lens as read_fitted_lens
    from layerscope.lenses.answer_rows import AnswerRows as AnswerRows
    from layerscope.lenses.answer_rows import read_answer_rows as read_answer_rows
    from layerscope.looking.difference import Difference as Difference
    from layerscope.looking.difference import difference as difference
    from layerscope.looking.look import Look as Look
    from layerscope.looking.make import look as look
    from layerscope.looking.make import looks as looks
    from layerscope.looking.options import LookOptions as LookOptions
    from layerscope.model.causal_lm import CausalLM as CausalLM
    from layerscope.model.residuals import Residuals as Residuals
    from layerscope.probing.answer_rows import fit_answer_rows as fit_answer_rows
    from layerscope.probing.answer_rows import track_answers as track_answers
    from layerscope.probing.bakeoff import bakeoff as bakeoff
    from layerscope.probing.lens_tasks import score_lenses as score_lenses
    from layerscope.probing.probe import probe as probe
    from layerscope.probing.word_search import WordSearch as WordSearch
    from layerscope.probing.word_search import word_search as word_search
    from layerscope.published.read.reader import read_published as read_published
    from layerscope.report.cited.archive import Archive as Archive
    from layerscope.run import Run as Run
    from layerscope.suite import Prompt as Prompt
    from layerscope.suite import Suite as Suite
    from layerscope.suite import builtin_suites as builtin_suites
    from layerscope.suite import load_suite as load_suite
    from layerscope.suite.word_tasks import WordTask as WordTask
    from layerscope.suite.word_tasks import read_word_tasks as read_word_tasks

_NAMES = {
    "layerscope.analysis.analysed_run": "AnalysedRun",
    "layerscope.analysis.answer_tracking": "TrackedAnswers",
    "layerscope.analysis.task_scores": "LensTasks",
    "layerscope.audit.audit": "AuditResult",
    "layerscope.audit.audit_report": "audit_report",
    "layerscope.diffing.diff": "DiffResult diff",
    "layerscope.diffing.runs": "RunDiffResult diff_runs",
    "layerscope.errors": "LayerscopeError",
    "layerscope.fitting.corpus": "Corpus read_corpus",
    "layerscope.fitting.jacobian": "fit_jacobian",
    "layerscope.fitting.options": "JacobianSettings PrismSettings RidgeSettings TunedSettings",
    "layerscope.fitting.prism": "fit_prism",
    "layerscope.fitting.ridge": "fit_ridge",
    "layerscope.fitting.tuned": "fit_tuned",
    "layerscope.lenses": "FittedLens JacobianLens Lens LogitLens NextNormLens PrismLens RawLens TunedLens bind_lenses "
    "read_fitted_lens",
    "layerscope.lenses.answer_rows": "AnswerRows read_answer_rows",
    "layerscope.looking.difference": "Difference difference",
    "layerscope.looking.look": "Look",
    "layerscope.looking.make": "look looks",
    "layerscope.looking.options": "LookOptions",
    "layerscope.model.causal_lm": "CausalLM",
    "layerscope.model.residuals": "Residuals",
    "layerscope.probing.answer_rows": "fit_answer_rows track_answers",
    "layerscope.probing.bakeoff": "bakeoff",
    "layerscope.probing.lens_tasks": "score_lenses",
    "layerscope.probing.probe": "probe",
    "layerscope.probing.word_search": "WordSearch word_search",
    "layerscope.published.read.reader": "read_published",
    "layerscope.report.cited.archive": "Archive",
    "layerscope.run": "Run",
    "layerscope.suite": "Prompt Suite builtin_suites load_suite",
    "layerscope.suite.word_tasks": "WordTask read_word_tasks",
}
"""Names by their homes."""
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'layerscope' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
