"""What an endpoint of the API is: where, what it takes, what it gives; routes and OpenAPI are both made of these."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp

from layerscope.serving.errors import RequestError
from layerscope.serving.schemas import Asked

Sent = TypeVar("Sent", bound=BaseModel)
MOST_TOLD = 5
"""Mistakes of one request that are named."""


@dataclass(frozen=True)
class Answer:
    """What an endpoint gives with one status."""

    text: str
    """When, in words."""
    model: type[BaseModel] | None = None
    """What its JSON holds; None of other content."""
    kind: str = "application/json"


@dataclass(frozen=True)
class Endpoint:
    """One method at one path."""

    method: str
    path: str
    summary: str
    handler: Callable[[Request], Awaitable[ASGIApp]]
    answers: Mapping[int, Answer]
    body: type[Asked] | None = None
    query: type[Asked] | None = None
    refusals: tuple[int, ...] = field(default=())
    """Statuses of refusals beyond those that any request can meet."""


def body_of(model: type[Sent], text: bytes) -> Sent:
    """The body of a request.

    Raises:
        RequestError: it is not what the model describes.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise _wrong(error, "The body") from error


def query_of(model: type[Sent], request: Request) -> Sent:
    """The query of a request.

    Raises:
        RequestError: it is not what the model describes.
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise _wrong(error, "The query") from error


def _wrong(error: ValidationError, what: str) -> RequestError:
    """What is wrong, without a word of what came, which may be long or private."""
    mistakes = error.errors(include_input=False, include_url=False, include_context=False)
    named = [f"{_place(mistake['loc'])}{mistake['msg']}" for mistake in mistakes[:MOST_TOLD]]
    more = f" (and {len(mistakes) - MOST_TOLD} more)" if len(mistakes) > MOST_TOLD else ""
    return RequestError(f"{what} is not as it should be: {'; '.join(named)}{more}; /api/ says what goes there.")


def _place(loc: tuple[int | str, ...]) -> str:
    where = ".".join(map(str, loc))[:100]
    return f"{where}: " if where else ""
