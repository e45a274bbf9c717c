"""The explorer's server, asked over real sockets: its numbers are a look's, and what it refuses stays refused."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import pytest
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer

import layerscope as package
from command_line import ENVIRONMENT, layerscope
from layerscope.looking.difference import difference, difference_as_json
from layerscope.model.causal_lm import CausalLM
from layerscope.serving.app import make_app
from layerscope.serving.code import code_of
from layerscope.serving.errors import UNEXPECTED
from layerscope.serving.jobs import Job, State
from layerscope.serving.limits import MOST_CHARACTERS
from layerscope.serving.models import OpenModels
from layerscope.serving.options import Limits, ServeOptions
from layerscope.serving.page import explorer_html, policy_of
from layerscope.serving.schemas import LookAsked
from layerscope.serving.server import is_loopback, listening, names_of
from layerscope.view.page.blocks import FLOATS
from served import ASKED, TEXT, Answer, Running, serving
from tiny_models import TINY

LIMITS = Limits(queued=6, kept=40, body_s=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template."""
    folder = TINY["qwen3"].build(tmp_path_factory.mktemp("served") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalLM:
    """The same model, open beside the server's."""
    return CausalLM.open(folder, device="cpu")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with serving(make_app([folder, folder.parent / "model"], ServeOptions(device="cpu"), limits=LIMITS)) as running:
        yield running


@contextmanager
def held(server: Running) -> Iterator[None]:
    """Nothing is computed meanwhile."""
    begun, gate = threading.Event(), threading.Event()

    def work(observer: object) -> None:
        begun.set()
        gate.wait()

    server.service.queue.submit(Job(work))
    begun.wait()
    try:
        yield
    finally:
        gate.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A model that takes ten seconds for a text, unless it is ended; the event says that it has begun."""
    begun, forward = threading.Event(), CausalLM.forward

    def slowly(self: CausalLM, *args: object, progress: Callable[[int, int], None], **kwargs: object):
        for i in range(1000):
            begun.set()
            progress(0, self.n_layers)
            time.sleep(0.01)
            assert i < 999, "nobody ended it"
        return forward(self, *args, progress=progress, **kwargs)

    monkeypatch.setattr(CausalLM, "forward", slowly)
    return begun


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


# --- The numbers


def test_a_look_is_what_layerscope_look_gives(server: Running, model: CausalLM):
    found = server.look()
    here = package.look(model, **ASKED)
    assert found["look"] == json.loads(json.dumps(here.to_dict()))
    assert (found["state"], found["error"], found["progress"], found["position_in_queue"]) == ("done", None, None, None)
    assert found["model"] == "model" and found["asked"] == {"model": "model", **ASKED} and found["seconds"] > 0
    again = server.ask("GET", f"/api/looks/{found['id']}").json
    assert again == found
    without = server.ask("GET", f"/api/looks/{found['id']}?result=none").json
    assert "look" not in without and without["id"] == found["id"]


def test_what_is_asked_for_is_what_is_looked_at(server: Running, model: CausalLM):
    for asked in (
        {"layers": "0,2-", "positions": "1-2", "track": None, "answer": None},
        {"positions": None, "track": "Paris, Rome", "lenses": ["next_norm"], "top": 1},
        {"chat": True, "system": "Be short.", "track": []},
        {"track": "", "positions": "last"},
    ):
        found = server.look(**asked)["look"]
        theirs = {**ASKED, **asked}
        theirs["track"] = theirs["track"] or None
        assert found == json.loads(json.dumps(package.look(model, **theirs).to_dict()))


def cells_of(page: dict[str, Any], lens: str) -> dict[str, Any]:
    """The arrays of a block, as the page reads them: [layer, position] or [layer, position, entry]."""
    prompt = page["run"]["prompts"][0]
    data = prompt["blocks"][lens]
    shape = (page["run"]["n_layers"] + 1, len(data["positions"]))
    n, k = shape[0] * shape[1], data["top_k"]
    content, at, arrays = zlib.decompress(b64decode(page["blocks"][data["id"]])), 0, {}
    parts = [*((name, "<f4", 1) for name in FLOATS), ("rank", "<u4", 1), ("tokens", "<u4", k), ("codes", "<u2", k)]
    for name, dtype, width in [*parts, ("state", "u1", 1)]:
        size = n * width * np.dtype(dtype).itemsize
        array = np.frombuffer(content[at : at + size], dtype)
        arrays[name] = (
            array.reshape(*shape, width) if width == k and name in ("tokens", "codes") else array.reshape(shape)
        )
        at += size
    assert at == len(content)
    return arrays


@pytest.mark.parametrize("layers", [None, "1,3-"])
def test_the_page_s_blocks_are_the_look_s_grid_cell_by_cell(layers: str | None, server: Running, model: CausalLM):
    asked = {**ASKED, "layers": layers}
    here = package.look(model, **asked)
    answer = server.ask("POST", "/api/looks?wait=60&result=page", {"model": "model", **asked})
    page = answer.json["page"]
    assert page == server.ask("GET", f"/api/looks/{answer.json['id']}/page").json
    ids, texts = page["vocabulary"]["ids"], page["vocabulary"]["texts"]
    for a, lens in enumerate(here.lens_names):
        cells = cells_of(page, lens)
        unread = [layer for layer in range(model.n_layers + 1) if layer not in here.layers]
        assert not cells["state"][unread].any() and not cells["tokens"][unread].any()
        assert (cells["state"][list(here.layers)] == 1).all()
        for b, layer in enumerate(here.layers):
            for c in range(len(here.positions)):
                at, there = (a, b, c), (layer, c)
                numbers = [here.entropy_bits[at], here.kl_to_final_bits[at], here.top_probs[at][0]]
                numbers.append(np.exp(here.tracked[0].log_prob[at]))
                assert [cells[name][there] for name in FLOATS] == list(np.array(numbers, np.float32))
                assert cells["rank"][there] == here.tracked[0].rank[at]
                assert [ids[token - 1] for token in cells["tokens"][there]] == here.top_ids[at].tolist()
                assert [texts[token - 1] for token in cells["tokens"][there]] == here.top_tokens[at].tolist()
                p = 2 ** (-cells["codes"][there].astype(float) / 1024)
                np.testing.assert_allclose(p, here.top_probs[at], rtol=4e-4)


def test_the_page_has_what_the_grid_shows_beside_its_cells(server: Running, model: CausalLM):
    here = package.look(model, **ASKED)
    page = server.ask("GET", f"/api/looks/{server.look(layers='0,2-')['id']}/page").json
    (prompt,) = page["run"]["prompts"]
    assert list(prompt["tokens"].values()) == list(here.tokens) and prompt["last"] == len(here.tokens) - 1
    assert (prompt["answers"], prompt["text"], prompt["fact"]) == (["Berlin"], TEXT, TEXT)
    assert page["run"]["lenses"] == ["logit", "raw"] and page["run"]["headline"] == "logit"
    assert page["run"]["statuses"]["logit"][-1] == "model" and page["run"]["statuses"]["logit"][1] is None
    assert page["run"]["statuses"]["raw"][-1] == "decoded"
    assert page["output"] == json.loads(json.dumps(here.to_dict()["output"])) and page["identity"]["ok"]
    assert [tracked["word"] for tracked in page["tracked"]] == ["Berlin", "Paris", " is"]
    for tracked, ours in zip(page["tracked"], here.tracked, strict=True):
        if tracked["token_place"] is not None:
            assert page["vocabulary"]["ids"][tracked["token_place"] - 1] == tracked["id"]
        for a, lens in enumerate(here.lens_names):
            ranks = tracked["rank"][lens]
            assert len(ranks) == model.n_layers + 1 and set(ranks[1]) == {None} == set(tracked["p"][lens][1])
            for layer in (0, *range(2, model.n_layers + 1)):
                assert [rank or 0 for rank in ranks[layer]] == ours.rank[a, layer].tolist()
    for lens, layers in prompt["milestones"].items():
        on_top = here.rank("Berlin", lens=lens).filter(rank=1)["layer"].to_list()
        assert layers == {"rank_1": next(layer for layer in on_top if layer != 1)}


def test_where_the_identity_check_fails_no_probability_is_sent(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerscope.probing.outputs.TOLERANCE_BITS", -1.0)
    page = server.ask("GET", f"/api/looks/{server.look()['id']}/page").json
    cells = cells_of(page, "logit")
    assert all(np.isnan(cells[name]).all() for name in FLOATS) and (cells["codes"] == 65535).all()
    assert cells["tokens"].all() and not page["run"]["probabilities"]
    assert set(page["run"]["statuses"]["logit"]) == {"withheld"}


def test_the_grid_is_to_be_had_as_a_table(server: Running, model: CausalLM):
    here = package.look(model, **ASKED)
    answer = server.ask("GET", f"/api/looks/{server.look()['id']}/grid.csv")
    table = pl.read_csv(StringIO(answer.content.decode()))
    assert table["entropy_bits"].to_list() == here.grid["entropy_bits"].to_list()
    assert [json.loads(row) for row in table["top_tokens"]] == here.grid["top_tokens"].to_list()
    assert [json.loads(row) for row in table["top_probs"]] == here.grid["top_probs"].to_list()
    assert table["rank of Berlin"].to_list() == here.tracked[0].rank.ravel().tolist()
    assert answer.headers["content-disposition"] == 'attachment; filename="grid.csv"'


def test_the_difference_is_that_of_the_two_looks(server: Running, model: CausalLM):
    other = "The capital of France is called"
    ids = [server.look(text=text)["id"] for text in (TEXT, other)]
    found = server.ask("POST", "/api/differences", {"a": ids[0], "b": ids[1]}).json
    here = difference(*(package.look(model, **{**ASKED, "text": text}) for text in (TEXT, other)))
    assert found == json.loads(json.dumps(difference_as_json(here)))
    missing = server.ask("POST", "/api/differences", {"a": ids[0], "b": "nothing"})
    assert missing.status == 404 and missing.error.startswith("There is no look of that id")


# --- What repeats a look


@pytest.mark.parametrize(
    "asked",
    [
        ASKED,
        {
            "text": "-x 'y' \"z\"\n\\ $HOME {1}",
            "answer": "-",
            "track": " a,b",
            "layers": "0-1",
            "lenses": ["raw", "logit"],
        },
        {"text": "Hi", "chat": True, "system": "Be\nshort.", "top": 2},
    ],
)
def test_the_printed_program_and_command_repeat_the_look(
    asked: dict[str, Any], server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = server.look(**{"track": None, "answer": None, "lenses": "logit", "positions": None, "top": 5, **asked})
    code = server.ask("GET", f"/api/looks/{found['id']}/code").json
    names: dict[str, Any] = {}
    exec(code["python"], names)
    assert json.loads(json.dumps(names["look"].to_dict())) == found["look"]
    assert "next: " in capsys.readouterr().out
    echo = ("import json, sys", "print(json.dumps(sys.argv[1:]))")
    script = tmp_path / "layerscope"
    script.write_text(f"#!{sys.executable}\n" + "\n".join(echo))
    script.chmod(0o755)
    shell = subprocess.run(["sh", "-c", f"PATH={tmp_path}:$PATH; {code['shell']} "], capture_output=True, text=True)
    words = json.loads(shell.stdout)
    done = layerscope(words[0], "--json", *words[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == found["look"]


def test_what_a_shell_cannot_pass_is_said(server: Running):
    served = server.service.models.named("model")
    for asked, note in (({"text": "a\0b"}, "NUL"), ({"text": "a", "track": ["b,c"]}, "splits words at commas")):
        code = code_of(LookAsked(model="model", **asked), served, server.service.options)
        assert code.shell is None and note in code.note and compile(code.python, "look", "exec")


def test_the_bundled_model_s_program_names_no_folder():
    models = OpenModels([], ServeOptions())
    asked = LookAsked(model="layerscope/reference", text=TEXT, answer="Berlin")
    code = code_of(asked, models.named("layerscope/reference"), ServeOptions())
    assert "reference_model" not in code.python and exec(code.python, {}) is None
    assert models.named("layerscope/reference").lenses == ("logit", "next_norm", "raw", "tuned", "prism")


# --- How jobs go


def test_a_look_waits_its_turn_and_is_told_as_it_goes(server: Running):
    with held(server):
        first, second = (server.ask("POST", "/api/looks", {"model": "model", "text": TEXT}) for _ in range(2))
        assert (first.status, first.json["state"]) == (202, "queued")
        assert (first.json["position_in_queue"], second.json["position_in_queue"]) == (1, 2)
        early = server.ask("GET", f"/api/looks/{first.json['id']}/page")
        assert early.status == 409 and early.error == "The look is queued; ask again when it is done."
        stream = events_of(server, second.json["id"])
        assert next(stream) == ("queued", second.json)
    told = list(stream)
    names = [name for name, _ in told]
    assert names[-1] == "done" and set(names[:-1]) <= {"queued", "running", "progress"}
    assert names == sorted(names, key=["queued", "running", "progress", "done"].index)
    for name, state in told:
        assert state["state"] == ("running" if name == "progress" else name)
        assert name != "progress" or state["progress"]["stage"] in ("blocks", "vocabulary")
    assert list(events_of(server, second.json["id"])) == told[-1:]


def events_of(server: Running, look_id: str, path: str = "events") -> Iterator[tuple[str, dict[str, Any]]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", f"/api/looks/{look_id}/{path}", headers={"Authorization": f"Bearer {server.token}"})
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    name = ""
    try:
        while line := answer.readline().decode():
            if line.startswith("event: "):
                name = line.removeprefix("event: ").strip()
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))
    finally:
        answer.close()
        connection.close()


def test_a_look_that_waits_can_be_cancelled(server: Running):
    with held(server):
        asked = server.ask("POST", "/api/looks", {"model": "model", "text": TEXT}).json
        stream = events_of(server, asked["id"])
        assert next(stream)[0] == "queued"
        gone = server.ask("DELETE", f"/api/looks/{asked['id']}").json
        assert (gone["state"], gone["error"]) == ("cancelled", "It was cancelled.")
        assert [name for name, _ in stream] == ["cancelled"]
    assert server.ask("GET", f"/api/looks/{asked['id']}/page").status == 409
    assert server.look()["state"] == "done"


def test_a_look_that_runs_can_be_cancelled(server: Running, slow: threading.Event, monkeypatch: pytest.MonkeyPatch):
    asked = server.ask("POST", "/api/looks", {"model": "model", "text": TEXT}).json
    slow.wait(10)
    running = server.ask("GET", f"/api/looks/{asked['id']}").json
    assert running["state"] == "running" and running["progress"]["stage"] == "blocks"
    server.ask("DELETE", f"/api/looks/{asked['id']}")
    assert list(events_of(server, asked["id"]))[-1][0] == "cancelled"
    monkeypatch.undo()
    assert server.look()["state"] == "done"  # the model is as it was


def test_a_later_look_takes_the_place_of_what_its_session_is_typing(server: Running, slow: threading.Event):
    typed = {"model": "model", "text": TEXT, "session": "mine", "supersede": True}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.ask, "POST", "/api/looks?wait=30", typed)
        slow.wait(10)
        other = server.ask("POST", "/api/looks", typed | {"session": "another's"}).json
        second = server.ask("POST", "/api/looks", typed).json
        answer = first.result()
        assert (answer.status, answer.json["state"]) == (409, "cancelled")
        assert answer.error == "A later look of the same session took its place."
        third = server.ask("POST", "/api/looks", typed).json
        assert server.ask("GET", f"/api/looks/{second['id']}").json["state"] == "cancelled"
        assert server.ask("GET", f"/api/looks/{other['id']}").json["state"] in ("queued", "running")
        for each in (other, third):
            server.ask("DELETE", f"/api/looks/{each['id']}")
    until(lambda: server.waiting_job(third["id"]).state is State.CANCELLED)


def test_who_waits_too_short_is_told_how_it_stands(server: Running):
    with held(server):
        answer = server.ask("POST", "/api/looks?wait=0.05", {"model": "model", "text": TEXT})
        assert (answer.status, answer.json["state"]) == (202, "queued")
    until(lambda: server.waiting_job(answer.json["id"]).state is State.DONE)  # its id is known, so it is not cancelled
    assert server.ask("GET", f"/api/looks/{answer.json['id']}").json["look"]["text"] == TEXT


def test_what_a_client_that_goes_away_waited_for_is_cancelled(server: Running, slow: threading.Event):
    before = set(server.service.records._records)
    body = json.dumps({"model": "model", "text": TEXT}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request(server, "POST", "/api/looks?wait=60", body))
        assert slow.wait(10)
    (look_id,) = set(server.service.records._records) - before
    until(lambda: server.waiting_job(look_id).state is State.CANCELLED)
    told = server.ask("GET", f"/api/looks/{look_id}").json
    assert told["error"] == "The client that waited for it went away."


def test_a_client_that_watches_keeps_what_another_waits_for(server: Running):
    before = set(server.service.records._records)
    body = json.dumps({"model": "model", "text": TEXT}).encode()
    with held(server):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(request(server, "POST", "/api/looks?wait=60", body))
            until(lambda: len(set(server.service.records._records) - before) == 1)
            (look_id,) = set(server.service.records._records) - before
            stream = events_of(server, look_id)
            assert next(stream)[0] == "queued"
        until(lambda: server.waiting_job(look_id).awaited == 1)
    assert list(stream)[-1][0] == "done"


def request(server: Running, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """As it stands on the wire."""
    given = {
        "Host": f"127.0.0.1:{server.port}",
        "Authorization": f"Bearer {server.token}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_a_full_queue_says_when_to_come_again(server: Running):
    with held(server):
        answers = [server.ask("POST", "/api/looks", {"model": "model", "text": TEXT}) for _ in range(LIMITS.queued + 1)]
        assert [answer.status for answer in answers] == [202] * LIMITS.queued + [429]
        assert answers[-1].headers["retry-after"] == "1" and "looks are waiting already" in answers[-1].error
        for answer in answers[:-1]:
            server.ask("DELETE", f"/api/looks/{answer.json['id']}")


def test_many_requests_at_once_are_all_answered(server: Running):
    def one(i: int) -> int:
        if i % 4 == 0:
            return server.ask("GET", "/api/models").status
        return server.ask("POST", "/api/looks?wait=30&result=none", {"model": "model", "text": f"{TEXT} {i}"}).status

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(one, range(200)))
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 50 + LIMITS.queued
    assert server.look()["state"] == "done"


def test_a_probe_of_the_text_is_to_be_had_as_a_run_folder(server: Running, tmp_path: Path):
    found = server.look()
    path = f"/api/looks/{found['id']}/run"
    assert server.ask("GET", path).status == server.ask("GET", f"{path}.zip").status == 404
    with held(server):
        asked, again = (server.ask("POST", path, {}) for _ in range(2))
        assert asked.status == 202 and again.json == asked.json and asked.json["state"] == "queued"
        assert server.ask("GET", f"{path}.zip").status == 409
    told = list(events_of(server, found["id"], "run/events"))
    assert told[-1][0] == "done", told[-1]
    assert server.ask("GET", path).json["state"] == "done"
    archive = zipfile.ZipFile(BytesIO(server.ask("GET", f"{path}.zip").content))
    archive.extractall(tmp_path)
    (run_folder,) = tmp_path.iterdir()
    run = package.Run.read(run_folder)
    assert [prompt.text for prompt in run.record.suite.prompts] == [TEXT] and run.record.protocol.lenses == (
        "logit",
        "raw",
    )
    assert "<html" in (run_folder / "view.html").read_text(encoding="utf-8")
    with held(server):
        other = server.ask("POST", "/api/looks", {"model": "model", "text": TEXT}).json["id"]
        assert server.ask("POST", f"/api/looks/{other}/run", {}).status == 409


def test_a_fault_of_ours_is_told_without_a_traceback(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*args: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("layerscope.serving.service.LookPlan", broken)
    answer = server.ask("POST", "/api/looks?wait=30", {"model": "model", "text": TEXT})
    assert (answer.status, answer.error) == (500, UNEXPECTED) and b"secret" not in answer.content
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr("layerscope.serving.api.code_of", broken)
    found = server.look()
    answer = server.ask("GET", f"/api/looks/{found['id']}/code")
    assert (answer.status, answer.error) == (500, UNEXPECTED) and b"secret" not in answer.content


@pytest.mark.slow
def test_only_so_many_finished_looks_are_kept(folder: Path):
    with serving(make_app([folder], ServeOptions(device="cpu"), limits=Limits(kept=2))) as server:
        first, second, third = (server.look(text=text)["id"] for text in ("One", "Two", "Three"))
        assert server.ask("GET", f"/api/looks/{first}").status == 404
        assert server.ask("GET", f"/api/looks/{second}").status == 200  # asked for last
        server.look(text="Four")
        assert server.ask("GET", f"/api/looks/{third}").status == 404
    with serving(make_app([folder], ServeOptions(device="cpu"), limits=Limits(kept_bytes=1))) as server:
        one, two = (server.look(text=text)["id"] for text in ("One", "Two"))
        assert [server.ask("GET", f"/api/looks/{each}").status for each in (one, two)] == [404, 200]


# --- Models


def test_models_are_known_by_name_with_their_lenses(server: Running, model: CausalLM):
    found = server.ask("GET", "/api/models").json
    assert [each["name"] for each in found["models"]] == ["model", "model-2"]
    first = found["models"][0]
    assert (first["n_layers"], first["d_vocab"]) == (model.n_layers, model.d_vocab)
    assert first["lenses"] == ["logit", "next_norm", "raw"] and first["resident"] and first["chat"]
    assert found["limits"]["tokens"] == 1024


@pytest.mark.slow
def test_a_model_for_which_there_is_no_room_is_closed_and_opened_again(folder: Path, model: CausalLM):
    with serving(make_app([folder, folder], ServeOptions(device="cpu"), room_bytes=1)) as server:
        open_ones = lambda: [each["resident"] for each in server.ask("GET", "/api/models").json["models"]]  # noqa: E731
        assert open_ones() == [False, True]
        first, second = server.look(model="model"), server.look(model="model-2")
        assert open_ones() == [False, True]
        for form in ("", "/page", "/grid.csv"):
            assert server.ask("GET", f"/api/looks/{first['id']}{form}").status == 200
        assert server.ask("GET", f"/api/looks/{first['id']}").json == first
        assert server.service.records.of(first["id"]).look is None
        found = server.ask("POST", "/api/differences", {"a": first["id"], "b": second["id"]}).json
        assert found["reason"] is None and all(layer["js_bits"] == 0 for layer in found["layers"])


def test_models_that_fit_stay_open(folder: Path):
    models = OpenModels([folder, folder], ServeOptions(device="cpu"))
    one = models.of("model")
    assert models.of("model-2") is not one and models.of("model") is one
    given = CausalLM.open(folder, device="cpu")
    models = OpenModels([given, folder, folder], ServeOptions(), room_bytes=1)
    assert models.is_open("model") and models.of("model") is given  # one that came open is not closed


# --- Who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost", "127.0.0.1:1", "127.0.0.2:{port}", ""]
)
def test_another_name_is_refused(host: str, server: Running):
    answer = server.ask("GET", "/api/models", Host=host.format(port=server.port))
    assert answer.status == 421 and "not reached under that name" in answer.error


def test_our_own_names_are_taken(server: Running):
    for name in ("localhost", "LOCALHOST", "127.0.0.1"):
        host = f"{name}:{server.port}"
        assert server.ask("GET", "/api/models", Host=host, Origin=f"http://{host}".lower()).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_site_is_refused(headers: dict[str, str], server: Running):
    given = {name: value.format(port=server.port) for name, value in headers.items()}
    for method, path in (("GET", "/api/models"), ("POST", "/api/looks"), ("GET", f"/?token={server.token}")):
        answer = server.ask(method, path, **given)
        assert answer.status == 403 and "Another site may not ask" in answer.error
        assert not any(name.startswith("access-control") for name in answer.headers)
    same = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert server.ask("GET", "/api/models", **same).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic {token}"},
        {"Authorization": "Bearer {token}x"},
        {"Cookie": "layerscope-{port}={token}"},
        {"Cookie": "layerscope-{port}="},
        {"Cookie": "layerscope-1={cookie}"},
        {"Authorization": "Bearer \xff"},
    ],
)
def test_who_brings_no_token_is_refused(headers: dict[str, str], server: Running):
    cookie = cookie_of(server).partition("=")[2]
    known = {"token": server.token, "port": server.port, "cookie": cookie}
    given = {name: value.format(**known) for name, value in headers.items()}
    for path in ("/", "/api/", "/api/models", "/api/openapi.json", "/nothing", "/?token=wrong", "/api/models?token=x"):
        answer = server.raw("GET", path, given)
        assert answer.status == 401 and "answers its owner alone" in answer.error
        assert answer.headers["www-authenticate"] == "Bearer"


def cookie_of(server: Running) -> str:
    answer = server.raw("GET", f"/?token={server.token}", {})
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert answer.headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")
    return answer.headers["set-cookie"].partition(";")[0]


def test_the_token_is_exchanged_for_a_cookie(server: Running):
    cookie = cookie_of(server)
    assert cookie.startswith(f"layerscope-{server.port}=") and server.token not in cookie
    for others in ("", '; a={"b": [1, 2]}; c', '; layerscope-1=x; d="'):
        for given in (cookie + others, f"x=y z{others}; {cookie}"):
            assert server.raw("GET", "/api/models", {"Cookie": given}).status == 200
    twice = server.raw("GET", f"/?token={server.token}&token=x", {})
    assert twice.status == 401


def test_every_answer_is_closed_to_other_sites(server: Running):
    for path in ("/", "/api/", "/api/models", "/api/openapi.json", "/nothing"):
        headers = server.ask("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "'unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
    assert server.raw("GET", "/", {}).headers["x-frame-options"] == "DENY"  # refusals too
    preflight = server.ask("OPTIONS", "/api/looks", Origin="http://evil.example")
    assert preflight.status == 403 and not any(name.startswith("access-control") for name in preflight.headers)


def test_a_page_s_policy_names_its_own_scripts_and_styles():
    policy = policy_of("<style>a{}</style><script>let x = 1 < 2 && '&amp;';</script><script>\n</script>")
    assert policy.count("sha256-") == 3 and "connect-src 'self'" in policy
    assert "script-src 'none'" in policy_of("<p>nothing</p>")
    assert "sha256-" in policy_of(explorer_html()) and "http" not in policy_of(explorer_html())


# --- What is refused


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"model": "../../etc/passwd"}, "There is no such model here; choose from model, model-2."),
        ({"model": "/"}, "There is no such model here"),
        ({"model": ""}, "There is no such model here"),
        ({"text": ""}, "text: String should have at least 1 character"),
        ({"text": 1}, "text: Input should be a valid string"),
        ({"text": "x" * (MOST_CHARACTERS + 1)}, f"text: String should have at most {MOST_CHARACTERS} characters"),
        ({"text": " a" * 2000}, "this server takes at most 1,024; shorten it"),
        ({"text": "\ud800"}, "The body is not as it should be"),
        ({"top": 0}, "top: Input should be greater than or equal to 1"),
        ({"top": 201}, "top: Input should be less than or equal to 200"),
        ({"top": "5"}, "top: Input should be a valid integer"),
        ({"top": True}, "top: Input should be a valid integer"),
        ({"track": ["a"] * 17}, "List should have at most 16 items"),
        ({"track": ",".join("abcdefghijklmnopq")}, "A look follows at most 16 words"),
        ({"track": "a,,b"}, "An empty word came"),
        ({"lenses": "tuned"}, "There is no lens 'tuned' for model; choose from logit, next_norm, raw."),
        ({"lenses": "../lens"}, "There is no lens '../lens'"),
        ({"lenses": "logit,logit"}, "logit"),
        ({"layers": "99"}, "The layers are counted from 0 to 4 here"),
        ({"layers": "9" * 201}, "layers: String should have at most 200 characters"),
        ({"positions": "first"}, "'first' names no tokens"),
        ({"system": "Be short."}, "A system message belongs to a chat"),
        ({"lens_dir": "/"}, "lens_dir: Extra inputs are not permitted"),
        ({"trust_remote_code": True}, "trust_remote_code: Extra inputs are not permitted"),
        ({"template_options": {}}, "template_options: Extra inputs are not permitted"),
        ({"session": "s" * 65}, "session: String should have at most 64 characters"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_a_sentence(asked: dict[str, Any], says: str, server: Running):
    answer = server.ask("POST", "/api/looks?wait=30", {"model": "model", "text": TEXT, **asked})
    assert answer.status == 422 and says in answer.error and b"Traceback" not in answer.content


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"a":' * 30_000, b"\xff\xfe", b'{"model":"model","text":NaN}'],
)
def test_what_is_no_request_is_refused(body: bytes, server: Running):
    answer = server.ask("POST", "/api/looks", body)
    assert answer.status == 422 and answer.error.startswith("The body is not as it should be")


def test_queries_and_methods_that_there_are_not_are_refused(server: Running):
    asked = {"model": "model", "text": TEXT}
    for query in ("wait=-1", "wait=1e9", "wait=nan", "wait=x", "result=all", "other=1"):
        answer = server.ask("POST", f"/api/looks?{query}", asked)
        assert answer.status == 422 and answer.error.startswith("The query is not as it should be"), query
    for method, path, status in (
        ("PUT", "/api/looks", 405),
        ("GET", "/api/looks", 405),
        ("GET", "/api/looks/none", 404),
        ("DELETE", "/api/looks/none", 404),
        ("GET", "/api/looks/none/events", 404),
        ("GET", "/api/looks/..%2f..%2fetc/page", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/api/../assets/explorer.html", 404),
        ("POST", "/", 405),
    ):
        answer = server.ask(method, path)
        assert answer.status == status and answer.error, path


def test_what_would_list_too_much_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerscope.serving.service.MOST_LISTED", 100)
    answer = server.ask("POST", "/api/looks?wait=30", {"model": "model", "text": TEXT, "positions": "all"})
    assert (
        answer.status == 422 and "A look lists at most 100 tokens altogether, but this one would list" in answer.error
    )


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data", "application/jsonx"]
)
def test_what_a_form_could_send_is_refused(kind: str, server: Running):
    for method, path in (("POST", "/api/looks"), ("DELETE", "/api/looks/x"), ("POST", "/api/differences")):
        answer = server.ask(method, path, {"model": "model", "text": TEXT}, Content_Type=kind)
        assert answer.status == 415 and "Content-Type: application/json" in answer.error
    assert server.ask("POST", "/api/looks", {}, Content_Type="application/json; charset=utf-8").status == 422


def told(server: Running, sent: bytes, more: bytes = b"") -> bytes:
    """What comes back on a socket of our own until it is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(sent)
        found = b""
        try:
            client.sendall(more)
            while part := client.recv(65536):
                found += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return found


def test_a_body_is_counted_as_it_comes(server: Running):
    too_much = LIMITS.body_bytes + 1
    by_length = request(server, "POST", "/api/looks", Content_Length=str(10**12))
    assert told(server, by_length).startswith(b"HTTP/1.1 413 ")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    chunked = request(server, "POST", "/api/looks", Content_Length="", Transfer_Encoding="chunked")
    answer = told(server, chunked + chunk * (1 + too_much // 0x10000))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"at most 262,144 bytes" in answer
    assert server.look()["state"] == "done"


def test_a_body_that_does_not_come_is_not_waited_for(server: Running):
    began = time.monotonic()
    answer = told(server, request(server, "POST", "/api/looks", Content_Length="10"), b"{")
    assert answer.startswith(b"HTTP/1.1 408 ") and time.monotonic() - began < 5


def test_broken_requests_leave_the_server_whole(server: Running):
    for sent in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  /  HTTP/9.9\r\n\r\n",
    ):
        assert re.match(rb"HTTP/1.1 4\d\d |$", told(server, sent))
    two_hosts = request(server, "GET", "/api/models").replace(b"\r\n\r\n", b"\r\nHost: evil.example\r\n\r\n")
    assert re.match(rb"HTTP/1.1 4(00|21) ", told(server, two_hosts))
    assert server.ask("GET", "/api/models").status == 200


# --- The description


def test_the_description_is_whole_and_its_schemas_are_sound(server: Running):
    document = server.document
    assert document["openapi"] == "3.1.0"
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"] and {"401", "403", "421", "422"} <= operation["responses"].keys(), path
            named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
    page = server.ask("GET", "/api/").content.decode()
    assert all(f"{path}</code>" in page for path in document["paths"])
    assert not re.search(r"<script|https?://", page)


def test_an_answer_that_is_not_as_described_would_be_seen(server: Running):
    broken = Answer(200, {"content-type": "application/json"}, b'{"models": [], "limits": {}}')
    with pytest.raises(Exception, match="is a required property"):
        server.check("GET", "/api/models", broken)


# --- The command


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(folder: Path, tmp_path: Path):
    words = (sys.executable, "-m", "layerscope", "serve", str(folder), "--device", "cpu", "--no-open")
    with subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, stdout=-1, stderr=-1, text=True
    ) as process:
        try:
            line, second = process.stdout.readline(), process.stdout.readline()
            address = urlsplit(line.removeprefix("explorer · ").strip())
            token = address.query.removeprefix("token=")
            assert address.hostname == "127.0.0.1" and len(token) >= 32
            served = Running(token, address.port)
            assert served.raw("GET", f"/?token={token}", {}).status == 303
            assert served.ask("GET", "/api/models").json["models"][0]["name"] == "model"
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=20)
        finally:
            process.kill()  # nothing where it has ended
    assert process.returncode == 0, errors
    assert (second, rest) == ("Ctrl-C ends it\n", "explorer ended\n")
    assert token not in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_served_is_refused_before_anything_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with listening("127.0.0.1", 0) as taken:
        for words, sentence in (
            ((str(tmp_path / "nothing"),), "There is no folder"),
            ((str(folder), str(folder), "--revision", "main"), "A revision belongs to one model"),
            ((str(folder), "--port", str(taken.getsockname()[1])), "cannot be listened on"),
            ((str(folder), "--host", "no.such.host.invalid"), "cannot be listened on"),
            ((str(folder), "--lens-dir", "nothing"), "no such folder"),
            ((str(folder), "--max-tokens", "0"), "max_tokens should be at least 1"),
        ):
            done = layerscope("serve", *words, cwd=tmp_path)
            assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    monkeypatch.setattr("layerscope.cli.serve.find_spec", lambda name: None)
    done = layerscope("serve", cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'layerscope[serve]'" in done.stderr


def test_who_is_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.org", "")))
    assert "0.0.0.0" not in names_of("0.0.0.0") and "example.org" in names_of("example.org")
