"""Threads that each multiply and count alone, so that one counts while another multiplies."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")
_Self = TypeVar("_Self", bound="Workers")


class Workers:
    """Some threads, each of which runs torch's operations on itself alone.

    With one thread there is nothing to share: what is submitted runs at once where it is submitted, as torch runs it
    there.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self: _Self) -> _Self:
        """Start the threads."""
        if self.n > 1:
            shared = torch.get_num_threads()
            started = threading.Barrier(self.n + 1)
            self._pool = ThreadPoolExecutor(self.n, thread_name_prefix="layerscope-worker", initializer=_run_alone)
            try:
                for _ in range(self.n):
                    self._pool.submit(started.wait)
                started.wait()
            except BaseException:  # those that have started wait for the others, who will not come
                started.abort()
                self._pool.shutdown()
                raise
            torch.set_num_threads(shared)  # what a thread sets for itself is also what later threads begin with
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads; what has not begun is dropped where an error is on its way."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)
            self._pool = None

    def submit(self, work: Callable[..., _Result], *arguments: Any) -> "Future[_Result]":
        """Let a thread do some work; in inference mode where the caller is."""
        if self._pool is not None:
            return self._pool.submit(_in_mode, torch.is_inference_mode_enabled(), work, *arguments)
        done: Future[_Result] = Future()
        done.set_result(work(*arguments))
        return done


def _run_alone() -> None:
    """Keep torch's operations on this thread, from now on.

    A thread begins with the number that was last set anywhere, but only looks for it when it is asked, or at its first
    operation, which would undo what was set before.
    """
    torch.get_num_threads()
    torch.set_num_threads(1)


def _in_mode(inference: bool, work: Callable[..., _Result], *arguments: Any) -> _Result:
    with torch.inference_mode(inference):
        return work(*arguments)
