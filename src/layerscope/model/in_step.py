"""A second forward of a module that runs each of its blocks right behind the first one, while the weights are there."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch


class _BrokenOffError(Exception):
    """Ends a second forward whose first one has failed; never leaves this module."""


class InStep:
    """The second forward, in a thread of its own that runs only while the first one waits for it.

    So whatever a module does around its blocks (masks, rotary angles, switches) it does for both by itself.
    """

    def __init__(self, forward: Callable[[], object]) -> None:
        """Take the second forward; its hooks call `pause` behind every block."""
        self._forward = forward
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._broken_off = self._ended = False
        self._thread: int | None = None
        self._executor = ThreadPoolExecutor(1)
        self._future: Future[None] | None = None

    def __enter__(self) -> "InStep":
        self._future = self._executor.submit(self._run)
        self._future.add_done_callback(lambda _: self._paused.release())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broken_off, self._ended = error is not None, True
        self._go.release()
        self._executor.shutdown()
        if error is None:
            self._raise()

    @property
    def is_this(self) -> bool:
        """Whether it is the second forward that asks."""
        return threading.get_ident() == self._thread

    def step(self) -> None:
        """Let it run its next block; for the first forward.

        Raises:
            Exception: whatever it raised.
        """
        if self._future is not None and self._future.done():
            raise RuntimeError("The second forward has ended before the first one; they should run as many blocks.")
        self._go.release()
        self._paused.acquire()
        self._raise()

    def pause(self) -> None:
        """Wait until the first forward has run its next block, or has come to its end; for the second one."""
        if self._ended:
            raise RuntimeError("The second forward runs more blocks than the first one; they should run as many.")
        self._paused.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._broken_off:
            raise _BrokenOffError

    def _run(self) -> None:
        self._thread = threading.get_ident()
        self._wait()
        with torch.inference_mode():  # which holds for one thread alone
            self._forward()

    def _raise(self) -> None:
        if self._future is not None and self._future.done():
            self._future.result()
