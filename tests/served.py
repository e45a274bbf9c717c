"""The explorer's server on a thread, and what it answers, held against what it documents."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator

from layerscope.serving.app import Explorer
from layerscope.serving.jobs import Job
from layerscope.serving.server import Server, listening

TEXT = "The capital of Germany is called"
ASKED = {
    "text": TEXT,
    "answer": "Berlin",
    "track": ["Paris", " is"],
    "lenses": "logit,raw",
    "positions": "all",
    "top": 7,
}


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        return self.json["error"]


@dataclass
class Running:
    """A server on a thread; every answer in JSON is held against the OpenAPI document."""

    token: str
    port: int
    explorer: Explorer | None = None
    document: dict[str, Any] = field(default_factory=dict)

    def raw(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        given = {"Authorization": f"Bearer {self.token}"}
        if method != "GET":
            given["Content-Type"] = "application/json"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.raw(method, path, given, sent)
        self.check(method, path, answer)
        return answer

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Hold the answer against what is documented."""
        templates = {re.sub(r"{\w+}", "[^/]+", each): each for each in self.document.get("paths", {})}
        found = [each for pattern, each in templates.items() if re.fullmatch(pattern, urlsplit(path).path)]
        if not found or method.lower() not in self.document["paths"][found[0]]:
            return
        ((kind, content),) = self.document["paths"][found[0]][method.lower()]["responses"][str(answer.status)][
            "content"
        ].items()
        assert answer.headers["content-type"].partition(";")[0] == kind
        if kind == "application/json":
            whole = content["schema"] | {"components": self.document["components"]}
            Draft202012Validator(whole).validate(answer.json)

    def look(self, **asked: object) -> dict[str, Any]:
        """A finished look."""
        answer = self.ask("POST", "/api/looks?wait=60", {"model": "model", **ASKED, **asked})
        assert answer.status == 200, answer.content
        return answer.json

    @property
    def service(self) -> Any:
        return self.explorer.service

    def waiting_job(self, look_id: str) -> Job:
        return self.service.records.of(look_id).job


@contextmanager
def serving(explorer: Explorer) -> Iterator[Running]:
    listener = listening("127.0.0.1", 0)
    server = Server(explorer)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        running = Running(explorer.token, listener.getsockname()[1], explorer)
        running.document = running.ask("GET", "/api/openapi.json").json
        yield running
    finally:
        server.should_exit = True
        thread.join()
