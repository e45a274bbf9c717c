"""Texts that were looked at, measured in full as a probe measures them, for a run folder and its page."""

from collections.abc import Sequence
from dataclasses import replace

from layerscope.looking.make import suite_of
from layerscope.looking.options import LookOptions
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.probe import probe
from layerscope.progress import Observer
from layerscope.run import Run

LEAST_LISTED = 20
"""Tokens that are listed at every place, at least: a page has room for them."""


def probed(model: CausalLM, texts: Sequence[str], options: LookOptions, observer: Observer) -> Run:
    """Probe the texts at all positions; lenses, chats and the answer as for the look.

    Raises:
        LayerscopeError: whatever a probe cannot do.
    """
    like = {name: getattr(options, name) for name in ("lens_dir", "system", "template_options")}
    if options.lenses != LookOptions.lenses:
        like["lenses"] = options.lenses  # else all that a probe reads through
    suite = suite_of(texts, replace(options, track=None))
    return probe(model, suite=suite, positions="all", top_k=max(LEAST_LISTED, options.top), observer=observer, **like)
