"""The endpoints of the API: each turns a request into one call of the service, and what comes of it into an answer."""

from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from layerscope.serving.code import code_of
from layerscope.serving.endpoints import Answer, Endpoint, body_of, query_of
from layerscope.serving.errors import RequestError
from layerscope.serving.following import EventStream, wait_for
from layerscope.serving.jobs import Job, Snapshot, State
from layerscope.serving.limits import MOST_CHARACTERS, MOST_TOP, MOST_WORDS
from layerscope.serving.records import LookRecord, as_json
from layerscope.serving.schemas import (
    Code,
    DifferenceAsked,
    DifferenceTold,
    JobTold,
    LookAsked,
    LookJobTold,
    LookQuery,
    LookRefused,
    Models,
    Nothing,
    PageTold,
    ResultQuery,
)
from layerscope.serving.service import Service

DIFFERENCE_S = 120.0
"""How long a request waits for a difference, with all that is before it in the queue."""


class Api:
    """The handlers, on a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoints(self) -> list[Endpoint]:
        """All of them, in the order in which they are documented."""
        return [*self._of_looks(), *self._of_results(), *self._of_runs()]

    def _of_looks(self) -> list[Endpoint]:
        """To ask for looks, and to see how they stand."""
        job = {200: Answer("How it stands.", JobTold)}
        return [
            Endpoint("GET", "/api/models", "The models that are served.", self.models, {200: Answer("All.", Models)}),
            Endpoint(
                "POST",
                "/api/looks",
                "Look at a text.",
                self.post_look,
                {
                    200: Answer("The look is done within the time that was waited.", LookJobTold),
                    202: Answer("It is queued or running.", LookJobTold),
                    409: Answer("The look that was waited for was cancelled.", LookRefused),
                    422: Answer("The request is not as it should be, or there can be no such look.", LookRefused),
                    500: Answer("Something went wrong inside layerscope.", LookRefused),
                    503: Answer("There is not enough memory for it, or the server is stopping.", LookRefused),
                },
                body=LookAsked,
                query=LookQuery,
                refusals=(429,),
            ),
            Endpoint(
                "GET",
                "/api/looks/{id}",
                "How a look stands, and its result once it is done.",
                self.get_look,
                {200: Answer("How it stands.", LookJobTold)},
                query=ResultQuery,
                refusals=(404,),
            ),
            Endpoint(
                "DELETE",
                "/api/looks/{id}",
                "Cancel a look: one that waits is dropped, one that runs ends at its next step.",
                self.cancel_look,
                job,
                refusals=(404,),
            ),
            Endpoint(
                "GET",
                "/api/looks/{id}/events",
                "A look as it goes, as server-sent events: queued, running, progress, and last done, failed or "
                "cancelled; the data of each is what GET /api/looks/{id}?result=none gives.",
                self.look_events,
                {200: Answer("Events.", None, "text/event-stream")},
                refusals=(404,),
            ),
        ]

    def _of_results(self) -> list[Endpoint]:
        """What there is of a finished look, and of two."""
        return [
            Endpoint(
                "GET",
                "/api/looks/{id}/page",
                "A finished look as the components of the page take it.",
                self.look_page,
                {200: Answer("The data.", PageTold)},
                refusals=(404, 409, 503),
            ),
            Endpoint(
                "GET",
                "/api/looks/{id}/grid.csv",
                "The grid of a finished look, a line for each lens, layer and position.",
                self.look_csv,
                {200: Answer("The table.", None, "text/csv")},
                refusals=(404, 409, 503),
            ),
            Endpoint(
                "GET",
                "/api/looks/{id}/code",
                "A program and a command that repeat a look.",
                self.look_code,
                {200: Answer("Both.", Code)},
                refusals=(404,),
            ),
            Endpoint(
                "POST",
                "/api/differences",
                "Two finished looks side by side, layer by layer at their last tokens.",
                self.post_difference,
                {200: Answer("The difference.", DifferenceTold)},
                body=DifferenceAsked,
                refusals=(404, 409, 429, 503),
            ),
        ]

    def _of_runs(self) -> list[Endpoint]:
        """To measure a look's text in full."""
        job = {200: Answer("How it stands.", JobTold)}
        return [
            Endpoint(
                "POST",
                "/api/looks/{id}/run",
                "Probe the text of a finished look in full; nothing is done again that is there or under way.",
                self.post_run,
                {202: Answer("It is queued, running or done.", JobTold)},
                body=Nothing,
                refusals=(404, 409, 429, 503),
            ),
            Endpoint("GET", "/api/looks/{id}/run", "How that probe stands.", self.get_run, job, refusals=(404,)),
            Endpoint("DELETE", "/api/looks/{id}/run", "Cancel that probe.", self.cancel_run, job, refusals=(404,)),
            Endpoint(
                "GET",
                "/api/looks/{id}/run/events",
                "That probe as it goes, as server-sent events like those of a look.",
                self.run_events,
                {200: Answer("Events.", None, "text/event-stream")},
                refusals=(404,),
            ),
            Endpoint(
                "GET",
                "/api/looks/{id}/run.zip",
                "The run folder of that probe, with its page view.html.",
                self.run_zip,
                {200: Answer("The archive.", None, "application/zip")},
                refusals=(404, 409, 503),
            ),
        ]

    async def models(self, request: Request) -> ASGIApp:
        """All models, and what looks may ask for."""
        models = self._service.models
        listed = [
            {
                "name": each.name,
                "n_layers": each.n_layers,
                "d_vocab": each.d_vocab,
                "lenses": each.lenses,
                "resident": models.is_open(each.name),
                "chat": each.has_chat_template,
            }
            for each in models.served.values()
        ]
        limits = {
            "characters": MOST_CHARACTERS,
            "tokens": self._service.options.max_tokens,
            "tracked": MOST_WORDS,
            "top": MOST_TOP,
        }
        return _json({"models": listed, "limits": limits})

    async def post_look(self, request: Request) -> ASGIApp:
        """A look, with its result if it was waited for."""
        query = query_of(LookQuery, request)
        asked = body_of(LookAsked, await request.body())
        record = self._service.look(asked, known=not query.wait)
        if not query.wait:
            return await self._told(record, "none", 202)
        await wait_for(self._service.queue, record.job, query.wait, request.receive)
        now = self._service.queue.snapshot(record.job)
        status = 200 if now.state is State.DONE else 202
        return await self._told(record, query.result, status if now.failure is None else now.failure.status)

    async def get_look(self, request: Request) -> ASGIApp:
        """How it stands."""
        query = query_of(ResultQuery, request)
        return await self._told(self._record(request), query.result, 200)

    async def cancel_look(self, request: Request) -> ASGIApp:
        """Cancel it."""
        return self._cancelled(self._record(request).job)

    async def look_events(self, request: Request) -> ASGIApp:
        """It as it goes."""
        record = self._record(request)
        return EventStream(self._service.queue, record.job, lambda now: _look_told(record, now))

    async def look_page(self, request: Request) -> ASGIApp:
        """It for the page."""
        return await self._finished(request, "page", "application/json")

    async def look_csv(self, request: Request) -> ASGIApp:
        """Its grid."""
        return await self._finished(request, "csv", "text/csv", "grid.csv")

    async def look_code(self, request: Request) -> ASGIApp:
        """What repeats it."""
        asked = self._record(request).asked
        code = code_of(asked, self._service.models.named(asked.model), self._service.options)
        return _json(code.model_dump(mode="json"))

    async def post_run(self, request: Request) -> ASGIApp:
        """Probe its text."""
        body_of(Nothing, await request.body())
        return self._job(self._service.run(_id(request)), 202)

    async def get_run(self, request: Request) -> ASGIApp:
        """How that stands."""
        return self._job(self._run(request))

    async def cancel_run(self, request: Request) -> ASGIApp:
        """Cancel it."""
        return self._cancelled(self._run(request))

    async def run_events(self, request: Request) -> ASGIApp:
        """It as it goes."""
        return EventStream(self._service.queue, self._run(request), _job_told)

    async def run_zip(self, request: Request) -> ASGIApp:
        """What came of it."""
        job = self._run(request)
        now = self._service.queue.snapshot(job)
        if now.failure is not None:
            raise RequestError(now.failure.sentence, status=now.failure.status)
        if now.state is not State.DONE:
            raise RequestError(f"The probe is {now.state}; ask again when it is done.", status=409)
        return _file(job.result, "application/zip", "run.zip")

    async def post_difference(self, request: Request) -> ASGIApp:
        """Two looks side by side."""
        asked = body_of(DifferenceAsked, await request.body())
        job = self._service.difference(asked.a, asked.b)
        await wait_for(self._service.queue, job, DIFFERENCE_S, request.receive)
        now = self._service.queue.snapshot(job)
        if now.failure is not None:
            raise RequestError(now.failure.sentence, status=now.failure.status)
        if now.state is not State.DONE:
            self._service.queue.cancel(job)
            raise RequestError(f"The difference was not done within {DIFFERENCE_S:g} s; ask again later.", status=503)
        return _json(job.result)

    def _record(self, request: Request) -> LookRecord:
        return self._service.records.of(_id(request))

    def _run(self, request: Request) -> Job:
        job = self._record(request).run
        if job is None:
            raise RequestError("The look was not probed; ask for it with POST /api/looks/{id}/run.", status=404)
        return job

    async def _told(self, record: LookRecord, form: str, status: int) -> Response:
        """How a look stands, with its result in the form that was asked for if there is one."""
        now = self._service.queue.snapshot(record.job)
        told = as_json(_look_told(record, now))
        if now.state is State.DONE and form != "none":
            result = await run_in_threadpool(record.told, form)
            told = told[:-1] + f',"{form}":'.encode() + result + b"}"  # made of JSON already, and large
        return Response(told, status, media_type="application/json")

    async def _finished(self, request: Request, form: str, kind: str, name: str | None = None) -> Response:
        record = self._service.records.finished(_id(request))
        content = await run_in_threadpool(record.told, form)
        return Response(content, media_type=kind) if name is None else _file(content, kind, name)

    def _cancelled(self, job: Job) -> Response:
        self._service.queue.cancel(job)
        return self._job(job)

    def _job(self, job: Job, status: int = 200) -> Response:
        return _json(_job_told(self._service.queue.snapshot(job)), status)


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _job_told(now: Snapshot) -> dict[str, Any]:
    return {
        "id": now.id,
        "state": now.state,
        "position_in_queue": now.position_in_queue,
        "progress": None if now.progress is None else asdict(now.progress),
        "error": None if now.failure is None else now.failure.sentence,
        "seconds": now.seconds,
    }


def _look_told(record: LookRecord, now: Snapshot) -> dict[str, Any]:
    asked = record.asked.model_dump(mode="json", exclude_unset=True)
    return _job_told(now) | {"model": record.asked.model, "asked": asked}


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, media_type="application/json")


def _file(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
