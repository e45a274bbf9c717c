"""The API described for programs, as OpenAPI 3.1, and for people, as a page made of that."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from layerscope.serving.endpoints import Answer, Endpoint
from layerscope.serving.schemas import Error

REF = "#/components/schemas/{model}"
_ALWAYS = {
    401: "Neither token nor cookie came with the request.",
    403: "The request comes from another site.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "A request that changes something is not JSON by its Content-Type.",
    421: "The server is not reached under the name that was used.",
    422: "The request is not as it should be, or cannot be carried out so.",
    500: "Something went wrong inside layerscope.",
}
_REFUSALS = {
    404: "There is no such look, or it is no longer kept.",
    409: "It is not done yet, or was cancelled.",
    429: "Too many are waiting already; Retry-After says when to ask again.",
    503: "There is not enough memory for it, or the server is stopping.",
}


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    given = [answer.model for endpoint in endpoints for answer in endpoint.answers.values() if answer.model is not None]
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "layerscope",
            "version": _version(),
            "description": "What a language model's layers would say after a text.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas([*given, Error, *bodies]),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def api_html(document: dict[str, Any]) -> str:
    """A page that says the same to people."""
    return _environment().get_template("api.html.j2").render(document=document, type_of=_type_in_words)


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    refusals = _ALWAYS | {status: _REFUSALS[status] for status in endpoint.refusals}
    documented = {status: Answer(text, Error) for status, text in refusals.items()} | dict(endpoint.answers)
    answers = {str(status): _answer(answer) for status, answer in sorted(documented.items())}
    operation: dict[str, Any] = {"summary": endpoint.summary, "responses": answers}
    if parameters := [*_in_path(endpoint.path), *_in_query(endpoint.query)]:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        content = {"application/json": {"schema": _reference(endpoint.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answer(answer: Answer) -> dict[str, Any]:
    schema = {"type": "string"} if answer.model is None else _reference(answer.model)
    return {"description": answer.text, "content": {answer.kind: {"schema": schema}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}


def _in_path(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(query: type[BaseModel] | None) -> Iterable[dict[str, Any]]:
    if query is None:
        return
    for name, schema in query.model_json_schema()["properties"].items():
        text = schema.pop("description", "")
        yield {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _schemas(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    _, made = models_json_schema([(model, "validation") for model in dict.fromkeys(models)], ref_template=REF)
    schemas: dict[str, Any] = made["$defs"]
    return schemas


def _type_in_words(schema: dict[str, Any]) -> str:
    """`list of Cell or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type_in_words, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type_in_words(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type_in_words(schema['additionalProperties'])}"
    return kind


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("layerscope.serving", "assets"), autoescape=True, undefined=StrictUndefined)


def _version() -> str:
    try:
        return version("layerscope")
    except PackageNotFoundError:
        return "0"
