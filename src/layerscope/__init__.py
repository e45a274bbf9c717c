"""layerscope: where in a language model's depth an answer becomes readable, and how far that may be trusted.

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
    from layerscope.analysis.analysed_run import AnalysedRun
    from layerscope.audit.audit import AuditResult
    from layerscope.audit.audit_report import audit_report
    from layerscope.errors import LayerscopeError
    from layerscope.fitting.corpus import Corpus, read_corpus
    from layerscope.fitting.options import PrismSettings, TunedSettings
    from layerscope.fitting.prism import fit_prism
    from layerscope.fitting.tuned import fit_tuned
    from layerscope.lenses import (
        FittedLens,
        Lens,
        LogitLens,
        NextNormLens,
        PrismLens,
        RawLens,
        TunedLens,
        bind_lenses,
        read_fitted_lens,
    )
    from layerscope.model.causal_lm import CausalLM
    from layerscope.model.residuals import Residuals
    from layerscope.probing.probe import probe
    from layerscope.published.read.reader import read_published
    from layerscope.report.cited.archive import Archive
    from layerscope.run import Run
    from layerscope.suite import Prompt, Suite, builtin_suites, load_suite

_NAMES = {
    "layerscope.analysis.analysed_run": "AnalysedRun",
    "layerscope.audit.audit": "AuditResult",
    "layerscope.audit.audit_report": "audit_report",
    "layerscope.errors": "LayerscopeError",
    "layerscope.fitting.corpus": "Corpus read_corpus",
    "layerscope.fitting.options": "PrismSettings TunedSettings",
    "layerscope.fitting.prism": "fit_prism",
    "layerscope.fitting.tuned": "fit_tuned",
    "layerscope.lenses": "FittedLens Lens LogitLens NextNormLens PrismLens RawLens TunedLens bind_lenses "
    "read_fitted_lens",
    "layerscope.model.causal_lm": "CausalLM",
    "layerscope.model.residuals": "Residuals",
    "layerscope.probing.probe": "probe",
    "layerscope.published.read.reader": "read_published",
    "layerscope.report.cited.archive": "Archive",
    "layerscope.run": "Run",
    "layerscope.suite": "Prompt Suite builtin_suites load_suite",
}
"""Names by their homes."""
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [
    "AnalysedRun",
    "Archive",
    "AuditResult",
    "CausalLM",
    "Corpus",
    "FittedLens",
    "LayerscopeError",
    "Lens",
    "LogitLens",
    "NextNormLens",
    "PrismLens",
    "PrismSettings",
    "Prompt",
    "RawLens",
    "Residuals",
    "Run",
    "Suite",
    "TunedLens",
    "TunedSettings",
    "audit_report",
    "bind_lenses",
    "builtin_suites",
    "fit_prism",
    "fit_tuned",
    "load_suite",
    "probe",
    "read_corpus",
    "read_fitted_lens",
    "read_published",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'layerscope' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
