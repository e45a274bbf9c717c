"""Who is told how a probe or a fit goes: the plan, the blocks, the vocabulary, the fitted layers."""

import logging
from typing import Protocol, runtime_checkable

log = logging.getLogger(__name__)


@runtime_checkable
class _AnyObserver(Protocol):
    """What is told of a probe as of a fit."""

    def plan(self, text: str) -> None:
        """One line on what will be done, before any work."""
        log.info(text)

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the model that have run; of a fit, that all text has passed, and layers that are fitted."""
        return


@runtime_checkable
class Observer(_AnyObserver, Protocol):
    """Is told how a probe goes; the command line draws it, a script may leave it out."""

    def vocabulary(self, done: int, total: int) -> None:
        """Ids of the vocabulary that have been swept."""
        return

    def patches(self, done: int, total: int) -> None:
        """Blocks that have run on residuals written into other runs."""
        return


@runtime_checkable
class FitObserver(_AnyObserver, Protocol):
    """Is told how a fit goes."""

    def layer(self, layer: int, summary: str) -> None:
        """A layer is done; what its lens is worth, in words."""
        log.info("layer %d %s", layer, summary)


class Silent(Observer):
    """An observer that only logs the plan."""


class SilentFit(FitObserver):
    """A fit's observer that only logs the plan and the layers."""
