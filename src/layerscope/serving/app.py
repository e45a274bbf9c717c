"""The explorer as an ASGI app, for the command, for tests, and for who embeds it."""

import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from layerscope.errors import LayerscopeError
from layerscope.model.causal_lm import CausalLM
from layerscope.serving.api import Api
from layerscope.serving.errors import UNEXPECTED, status_of
from layerscope.serving.following import ClientGoneError
from layerscope.serving.guard import LOOPBACK, Guard
from layerscope.serving.models import OpenModels
from layerscope.serving.openapi import api_html, openapi
from layerscope.serving.options import Limits, ServeOptions
from layerscope.serving.page import explorer_html, policy_of
from layerscope.serving.service import Service

_NOBODY_THERE = 499
"""What servers note for a client that went away before it was answered."""


class Explorer:
    """An ASGI app with what an owner needs of it: the token, and a way to end what is under way."""

    def __init__(self, service: Service, token: str, app: ASGIApp) -> None:
        self.service, self.token = service, token
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def close(self) -> None:
        """Cancel all looks, so that no answer is waited for any more."""
        self.service.close()


def make_app(
    models: Sequence[str | Path | CausalLM] = (),
    options: ServeOptions | None = None,
    *,
    token: str | None = None,
    names: Collection[str] = LOOPBACK,
    limits: Limits | None = None,
    room_bytes: int | None = None,
) -> Explorer:
    """The explorer of some models, which are opened here and now.

    Args:
        models: folders, Hub ids or open models; the bundled one where there are none.
        options: how they are opened and served.
        token: what whoever asks has to bring; a random one where not given.
        names: host names, without a port, under which the server may be reached.
        limits: what it takes on and keeps.
        room_bytes: what the weights of all open models may take together; see `OpenModels`.

    Raises:
        LayerscopeError: a model cannot be opened.
    """
    options, limits = options or ServeOptions(), limits or Limits()
    token = token or secrets.token_urlsafe(24)
    service = Service(OpenModels(models, options, room_bytes=room_bytes), options, limits)
    return Explorer(service, token, Guard(_app(service), token=token, names=names, limits=limits))


def _app(service: Service) -> Starlette:
    endpoints = Api(service).endpoints()
    document = openapi(endpoints)

    @asynccontextmanager
    async def computing(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()
            await run_in_threadpool(service.join)

    async def described(request: Request) -> Response:
        return JSONResponse(document)

    async def described_for_people(request: Request) -> Response:
        return _html(api_html(document))

    async def explorer(request: Request) -> Response:
        return _html(explorer_html())

    return Starlette(
        routes=[
            Route("/", explorer),
            Route("/api/", described_for_people),
            Route("/api/openapi.json", described),
            *(Route(each.path, each.handler, methods=[each.method]) for each in endpoints),
        ],
        exception_handlers={
            LayerscopeError: _refused,
            HTTPException: _not_found,
            ClientGoneError: _unanswered,
            Exception: _failed,
        },
        lifespan=computing,
    )


def _html(text: str) -> Response:
    return HTMLResponse(text, headers={"Content-Security-Policy": policy_of(text)})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LayerscopeError)
    status = status_of(error)
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse({"error": str(error)}, status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is nothing at this address", 405: "This address does not take that method"}
    sentence = f"{words.get(error.status_code, error.detail)}; /api/ lists what there is."
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _unanswered(request: Request, error: Exception) -> Response:
    return Response(status_code=_NOBODY_THERE)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": UNEXPECTED}, 500)
