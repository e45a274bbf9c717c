"""The one thread that computes: it takes job after job, and ends each with a result or a sentence."""

import logging
import threading
import time

from layerscope.errors import LayerscopeError
from layerscope.serving.errors import UNEXPECTED, status_of
from layerscope.serving.jobs import CancelledError, Failure, Job, JobObserver, JobQueue

log = logging.getLogger(__name__)


class Worker(threading.Thread):
    """Works off a queue until it is closed."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(name="layerscope-looks", daemon=True)
        self._queue = queue

    def run(self) -> None:
        """Take and do, until there is nothing more to take."""
        while (job := self._queue.take()) is not None:
            self._do(job)

    def _do(self, job: Job) -> None:
        began = time.perf_counter()
        try:
            result = job.work(JobObserver(self._queue, job))
        except CancelledError:
            self._queue.end_cancelled(job, time.perf_counter() - began)
        except LayerscopeError as error:
            failure = Failure(str(error), status_of(error))
            self._queue.end(job, time.perf_counter() - began, failure=failure)
        except Exception:  # a fault of ours must not end the thread that all others wait for
            log.exception("a look could not be made")
            self._queue.end(job, time.perf_counter() - began, failure=Failure(UNEXPECTED, 500))
        else:
            self._queue.end(job, time.perf_counter() - began, result=result)
