"""Who is told how a probe or a fit goes: the plan, the blocks, the vocabulary, the fitted layers."""

import logging
from typing import Protocol, runtime_checkable

log = logging.getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """Is told how a probe goes; the command line draws it, a script may leave it out."""

    def plan(self, text: str) -> None:
        """One line on what will be done, before any work."""

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the model that have run."""

    def vocabulary(self, done: int, total: int) -> None:
        """Ids of the vocabulary that have been swept."""


class Silent:
    """An observer that only logs the plan."""

    def plan(self, text: str) -> None:
        """Log it."""
        log.info(text)

    def blocks(self, done: int, total: int) -> None:
        """Nothing."""

    def vocabulary(self, done: int, total: int) -> None:
        """Nothing."""


@runtime_checkable
class FitObserver(Protocol):
    """Is told how a fit goes."""

    def plan(self, text: str) -> None:
        """One line on what will be done, before any work."""

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the model that all text has passed, and layers that are fitted."""

    def layer(self, layer: int, worth: str) -> None:
        """A layer is done; what its lens is worth, in words."""


class SilentFit:
    """A fit's observer that only logs the plan and the layers."""

    def plan(self, text: str) -> None:
        """Log it."""
        log.info(text)

    def blocks(self, done: int, total: int) -> None:
        """Nothing."""

    def layer(self, layer: int, worth: str) -> None:
        """Log it."""
        log.info("layer %d %s", layer, worth)
