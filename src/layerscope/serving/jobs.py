"""Jobs and the queue in which they wait for the one thread that computes; who watches a job is told of every change."""

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from layerscope.progress import Observer
from layerscope.serving.errors import QueueFullError


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Progress:
    """How far a running job is."""

    stage: str
    """`opening`, `blocks` or `vocabulary`."""
    done: int
    total: int


@dataclass(frozen=True)
class Failure:
    """Why a job has no result."""

    sentence: str
    status: int
    """What HTTP calls it."""


@dataclass(eq=False)
class Job:
    """A piece of work; what changes in it is written by its queue alone."""

    work: Callable[["JobObserver"], Any]
    """What is done in the computing thread; gives the result."""
    session: str | None = None
    """Whose it is, so that a later one can take its place."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = State.QUEUED
    progress: Progress | None = None
    result: Any = None
    """None until it is done."""
    failure: Failure | None = None
    """Of one that failed or was cancelled."""
    seconds: float | None = None
    """How long it ran."""
    awaited: int = 0
    """Requests that wait for it or watch it."""
    known: bool = True
    """Whether a client has its id, and may ask for it later."""
    cancelling: str | None = None
    """Why it is to end early, in a sentence."""
    watchers: list[Callable[[], None]] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Snapshot:
    """How a job stood at one moment."""

    id: str
    state: State
    position_in_queue: int | None
    """How many are before it, the running one included; None where it does not wait."""
    progress: Progress | None
    """None where it does not run."""
    failure: Failure | None
    seconds: float | None


class CancelledError(Exception):
    """Ends a running job from within: raised where its observer is told of progress, and never seen outside."""


class JobObserver(Observer):
    """Tells the queue how a job goes, and ends one that nobody wants any more."""

    def __init__(self, queue: "JobQueue", job: Job) -> None:
        self._queue, self._job = queue, job

    def opening(self) -> None:
        """A model is opened first."""
        self._moved("opening", 0, 1)

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the model that have run."""
        self._moved("blocks", done, total)

    def vocabulary(self, done: int, total: int) -> None:
        """Ids of the vocabulary that have been swept."""
        self._moved("vocabulary", done, total)

    def _moved(self, stage: str, done: int, total: int) -> None:
        if self._job.cancelling is not None:
            raise CancelledError
        self._queue.moved(self._job, Progress(stage, done, total))


class JobQueue:
    """Jobs one after another, first come first served; safe to use from any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False

    def submit(self, job: Job, *, supersede: bool = False) -> None:
        """Put a job at the end.

        Args:
            supersede: cancel what is unfinished of the job's session.

        Raises:
            QueueFullError: too many are waiting, or the server is stopping.
        """
        with self._changed:
            if supersede and job.session is not None:
                running = [] if self._running is None else [self._running]
                for other in [*self._waiting, *running]:
                    if other.session == job.session:
                        self._cancel(other, "A later look of the same session took its place.")
            if self._closed:
                raise QueueFullError("The server is stopping; start it again.", status=503)
            if len(self._waiting) >= self._capacity:
                raise QueueFullError(f"{self._capacity} looks are waiting already; ask again in a moment.", status=429)
            self._waiting.append(job)
            self._changed.notify_all()

    def take(self) -> Job | None:
        """The next job, which is running from then on; waits for one. None when the queue is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            job = self._running = self._waiting.popleft()
            job.state = State.RUNNING
            self._tell(job, *self._waiting)
            return job

    def moved(self, job: Job, progress: Progress) -> None:
        """A running job is so far."""
        with self._changed:
            job.progress = progress
            self._tell(job)

    def end(self, job: Job, seconds: float, *, result: Any = None, failure: Failure | None = None) -> None:
        """A running job is done, or failed."""
        with self._changed:
            self._running = None
            job.result, job.failure, job.seconds = result, failure, seconds
            job.state = State.DONE if failure is None else State.FAILED
            self._tell(job)

    def end_cancelled(self, job: Job, seconds: float) -> None:
        """A running job has ended early."""
        with self._changed:
            self._running = None
            job.failure = Failure(job.cancelling or "It was cancelled.", 409)
            job.state, job.seconds = State.CANCELLED, seconds
            self._tell(job)

    def cancel(self, job: Job, why: str = "It was cancelled.") -> None:
        """Drop a job that waits, end a running one at its next step; nothing where it has ended."""
        with self._changed:
            self._cancel(job, why)

    def snapshot(self, job: Job) -> "Snapshot":
        """How a job stands now."""
        with self._changed:
            position = None
            if job.state is State.QUEUED and job in self._waiting:
                position = self._waiting.index(job) + (self._running is not None)
            progress = job.progress if job.state is State.RUNNING else None
            return Snapshot(job.id, job.state, position, progress, job.failure, job.seconds)

    @contextmanager
    def watched(self, job: Job, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` at each change, in whatever thread it happens; it must return at once.

        Once nobody watches a job whose id no client has, it is cancelled.
        """
        with self._changed:
            job.awaited += 1
            job.watchers.append(tell)
        try:
            yield
        finally:
            with self._changed:
                job.awaited -= 1
                job.watchers.remove(tell)
                if not job.awaited and not job.known:
                    self._cancel(job, "The client that waited for it went away.")

    def close(self) -> None:
        """Cancel everything, and take nothing more."""
        with self._changed:
            self._closed = True
            running = [] if self._running is None else [self._running]
            for job in [*self._waiting, *running]:
                self._cancel(job, "The server was stopped.")
            self._changed.notify_all()

    def _cancel(self, job: Job, why: str) -> None:
        if job.state is State.QUEUED and job in self._waiting:
            self._waiting.remove(job)
            job.state, job.failure = State.CANCELLED, Failure(why, 409)
            self._tell(job, *self._waiting)
        elif job.state is State.RUNNING and job.cancelling is None:
            job.cancelling = why

    def _tell(self, *jobs: Job) -> None:
        for job in jobs:
            for tell in job.watchers:
                tell()
