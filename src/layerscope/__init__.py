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

_HOMES = {
    "AnalysedRun": "layerscope.analysis.analysed_run",
    "Archive": "layerscope.report.cited.archive",
    "AuditResult": "layerscope.audit.audit",
    "CausalLM": "layerscope.model.causal_lm",
    "Corpus": "layerscope.fitting.corpus",
    "FittedLens": "layerscope.lenses",
    "LayerscopeError": "layerscope.errors",
    "Lens": "layerscope.lenses",
    "LogitLens": "layerscope.lenses",
    "NextNormLens": "layerscope.lenses",
    "PrismLens": "layerscope.lenses",
    "PrismSettings": "layerscope.fitting.options",
    "Prompt": "layerscope.suite",
    "RawLens": "layerscope.lenses",
    "Residuals": "layerscope.model.residuals",
    "Run": "layerscope.run",
    "Suite": "layerscope.suite",
    "TunedLens": "layerscope.lenses",
    "TunedSettings": "layerscope.fitting.options",
    "audit_report": "layerscope.audit.audit_report",
    "bind_lenses": "layerscope.lenses",
    "builtin_suites": "layerscope.suite",
    "fit_prism": "layerscope.fitting.prism",
    "fit_tuned": "layerscope.fitting.tuned",
    "load_suite": "layerscope.suite",
    "probe": "layerscope.probing.probe",
    "read_corpus": "layerscope.fitting.corpus",
    "read_fitted_lens": "layerscope.lenses",
    "read_published": "layerscope.published.read.reader",
}

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
