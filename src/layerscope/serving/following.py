"""Following jobs from the event loop: waiting for one, and telling of one as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Receive, Scope, Send

from layerscope.serving.jobs import Job, JobQueue, Snapshot, State

STILL_HERE_S = 15.0
"""How often something is sent to those who watch, so that no connection is taken for dead."""


class ClientGoneError(Exception):
    """Nobody is there any more to be answered."""


@asynccontextmanager
async def _watching(queue: JobQueue, job: Job, receive: Receive) -> AsyncIterator[Callable[[], Any]]:
    """Gives what waits for the next change; that raises ClientGoneError once the client has gone away."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    gone = asyncio.create_task(_gone(receive))
    gone.add_done_callback(lambda _: changed.set())

    async def change() -> None:
        await changed.wait()
        changed.clear()
        if gone.done():
            raise ClientGoneError

    def tell() -> None:
        loop.call_soon_threadsafe(changed.set)

    try:
        with queue.watched(job, tell):
            yield change
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def wait_for(queue: JobQueue, job: Job, seconds: float | None, receive: Receive) -> None:
    """Return when a job has ended, or so many seconds have passed, after which the client knows the job.

    Raises:
        ClientGoneError: the client went away; what nobody else waits for is cancelled then.
    """
    async with _watching(queue, job, receive) as change:
        try:
            async with asyncio.timeout(seconds):
                while not queue.snapshot(job).state.is_final:
                    await change()
        except TimeoutError:
            pass
        job.known = True


class EventStream:
    """A response that tells of a job until it ends, as `text/event-stream`.

    The name of an event is the job's state, or `progress`; its data is what `tell` makes of a snapshot.
    """

    def __init__(self, queue: JobQueue, job: Job, tell: Callable[[Snapshot], dict[str, Any]]) -> None:
        self._queue, self._job, self._tell = queue, job, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the job has ended or the client goes away."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(text: str, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        try:
            async with _watching(self._queue, self._job, receive) as change:
                last: Snapshot | None = None
                while last is None or not last.state.is_final:
                    now = self._queue.snapshot(self._job)
                    if now != last:
                        await write(self._event(now))
                        last = now
                        continue
                    try:
                        async with asyncio.timeout(STILL_HERE_S):
                            await change()
                    except TimeoutError:
                        await write(": still here\n\n")
        except ClientGoneError:
            return
        await write("", more=False)

    def _event(self, now: Snapshot) -> str:
        name = "progress" if now.state is State.RUNNING and now.progress is not None else now.state
        data = json.dumps(self._tell(now), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return f"event: {name}\ndata: {data}\n\n"
