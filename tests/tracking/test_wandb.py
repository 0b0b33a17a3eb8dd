import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tracked import SUMMARY, lines, run_config

import multicoco.tracking.wandb
from multicoco.config import Wandb
from multicoco.tracking import Tracker


class WandbServer:
    """Enough of a W&B server for a run to start."""

    def __init__(self):
        self.is_failing = False

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                answer = json.dumps({"data": self.answer(body)}).encode()
                handler.send_response(500 if self.is_failing else 200)
                handler.send_header("Content-Length", str(len(answer)))
                handler.end_headers()
                handler.wfile.write(answer)

            def log_message(handler, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: bytes) -> dict:
        if b"upsertBucket" not in request:
            return {"viewer": {"id": "v", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        project = {"id": "p", "name": "multicoco", "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": json.loads(request)["variables"]["name"], "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": run, "inserted": True}}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class TestWandb:
    @pytest.fixture
    def fake(self, monkeypatch):
        """A stand-in for the wandb module that notes its calls, and fails where it is told to."""
        calls, failing, logins = [], set(), []

        def call(name):
            def record(*args, **kwargs):
                if name in failing:
                    raise ConnectionError("unreachable")
                calls.append((name, args, kwargs))
                return run

            return record

        run = SimpleNamespace(log=call("log"), finish=call("finish"), id="abc")
        module = SimpleNamespace(init=call("init"), login=lambda **_: bool(logins), Settings=lambda **_: None)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return SimpleNamespace(calls=calls, failing=failing, logins=logins)

    def test_a_resumed_run_goes_on_in_the_same_wandb_run(self, tmp_path, fake):
        config = run_config(wandb=Wandb(mode="offline"))
        tracker = Tracker(tmp_path, config)
        assert tracker.wandb_id == "abc" and fake.calls[-1][2]["id"] is None
        Tracker(tmp_path, config, tracker.wandb_id)
        assert (fake.calls[-1][2]["id"], fake.calls[-1][2]["resume"]) == ("abc", "allow")

    def run(self, tmp_path, mode) -> list[dict]:
        tracker = Tracker(tmp_path, run_config(wandb=Wandb(mode=mode, tags=["t"])))
        for step in (1, 2):
            tracker.log({"a": step}, step=step)
        tracker.close()
        return lines(tmp_path / "metrics.jsonl")

    @pytest.mark.parametrize("mode", ["online", "offline"])
    def test_logs_every_step(self, tmp_path, fake, mode):
        fake.logins.append("user")
        self.run(tmp_path, mode)
        assert [name for name, *_ in fake.calls] == ["init", "log", "log", "finish"]
        init = fake.calls[0][2]
        assert (init["project"], init["name"], init["mode"], init["tags"]) == ("multicoco", "x", mode, ["t"])
        assert init["config"]["model_id"] == "m"
        assert [kwargs["step"] for _, _, kwargs in fake.calls[1:3]] == [1, 2]

    def test_online_without_a_login_goes_offline_with_a_warning(self, tmp_path, fake, caplog):
        self.run(tmp_path, "online")
        assert fake.calls[0][2]["mode"] == "offline"
        assert caplog.text.count("no login") == 1

    def test_disabled_does_not_import_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
        assert len(self.run(tmp_path, "disabled")) == 2

    def test_a_start_that_fails_online_is_made_offline(self, tmp_path, fake, monkeypatch, caplog):
        def init(**settings):
            if settings["mode"] == "online":
                raise TimeoutError("unreachable")
            return offline(**settings)

        fake.logins.append("user")
        offline = sys.modules["wandb"].init
        monkeypatch.setattr(sys.modules["wandb"], "init", init)
        self.run(tmp_path, "online")
        assert [name for name, *_ in fake.calls] == ["init", "log", "log", "finish"]
        assert fake.calls[0][2]["mode"] == "offline" and "unreachable" in caplog.text

    @pytest.mark.parametrize("where", ["init", "log", "finish"])
    def test_its_failures_never_stop_a_run(self, tmp_path, fake, caplog, where):
        fake.failing.add(where)
        with caplog.at_level(logging.WARNING):
            assert len(self.run(tmp_path, "offline")) == 2
        assert caplog.text.count("unreachable") == 1

    @pytest.mark.parametrize(
        ("keys", "mode"),
        [
            ({"tracking": ["wandb"]}, "online"),
            ({"tracking": ["wandb"], "wandb": Wandb(mode="offline")}, "offline"),
            ({"wandb": Wandb(mode="offline")}, "offline"),  # as configs of before `tracking` ask for it
            ({}, None),
            ({"wandb": Wandb(mode="disabled")}, None),
        ],
    )
    def test_it_is_asked_for_by_tracking_or_by_its_mode(self, tmp_path, fake, keys, mode):
        fake.logins.append("user")
        Tracker(tmp_path, run_config(**keys))
        assert [call[2]["mode"] for call in fake.calls] == ([mode] if mode else [])

    @pytest.mark.distributed
    def test_the_real_one_has_samples_with_their_pictures_as_a_table(self, tmp_path):
        in_new_process(run_with_samples, tmp_path)
        staged = {path.read_bytes() for path in (tmp_path / "data" / "artifacts" / "staging").iterdir()}
        [table] = [json.loads(content) for content in staged if b'"columns"' in content]  # none of cot.zero
        files = {sha256(content).hexdigest(): content for content in staged}
        shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["id"] for row in shown] == ["q0", "q1", "q2"]
        assert shown[0] == {
            **{"id": "q0", "picture 1": None, "picture 2": None, "question": "<b>0</b>", "choices": "red, blue"},
            **{"generated": "Answer: blue", "extracted": "blue", "gold": "red", "correct": False},
            **{"new_tokens": 3, "latent_tokens": 2},
        }
        assert shown[1]["picture 2"] is None
        for row, column, colour in ((1, "picture 1", 1), (2, "picture 1", 2), (2, "picture 2", 3)):
            picture = Image.open(io.BytesIO(files[shown[row][column]["sha256"]]))
            assert picture.size == (512, 256) and picture.getpixel((0, 0)) == (colour, 0, 0)

    @pytest.mark.distributed
    @pytest.mark.parametrize("failure", ["never there", "answers with errors", "goes away"])
    def test_the_real_one_with_a_server_that_fails_does_not_hold_a_run_up(self, tmp_path, failure):
        said = in_new_process(run_against_failing_server, tmp_path, failure)
        assert len(lines(tmp_path / "metrics.jsonl")) == 49
        assert ("logging offline" if failure == "never there" else "could not finish") in said
        assert list((tmp_path / "wandb").glob("*run-*/*.wandb"))  # for `wandb sync`

    @pytest.mark.distributed
    def test_the_real_one_without_a_login_writes_offline_files_under_the_run(self, tmp_path):
        in_new_process(run_without_login, tmp_path)
        assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def in_new_process(function: Callable, *arguments) -> str:
    """The real wandb keeps its server and login as long as a process lives. Returns what was logged."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(timeout=100)


def run_against_failing_server(folder: Path, failure: str) -> str:
    server, said = WandbServer(), io.StringIO()
    logging.getLogger("multicoco").addHandler(logging.StreamHandler(said))
    os.environ.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=40 * "a")
    multicoco.tracking.wandb.SECONDS = 3
    if failure == "never there":
        server.close()
    tracker = Tracker(folder, run_config(wandb=Wandb(mode="online")))
    tracker.log({"a": 1}, step=1)
    if failure == "answers with errors":
        server.is_failing = True
    elif failure == "goes away":
        server.close()
    for step in range(2, 50):
        tracker.log({"a": step}, step=step)
    tracker.close()
    return said.getvalue()


def run_with_samples(folder: Path) -> None:
    """Four questions with none, one, two and three pictures, of which three questions are to be seen."""
    about = {"choices": ["red", "blue"], "generated": "Answer: blue", "extracted": 1, "gold": 0, "correct": False}
    cost = {"new_tokens": 3, "latent_tokens": 2}
    samples = [{"id": f"q{place}", "question": f"<b>{place}</b>", **about, **cost} for place in range(4)]

    def pictures(place: int) -> list[Image.Image]:
        return [Image.new("RGB", (1024, 512), (place + n, 0, 0)) for n in range(place)]

    os.environ["WANDB_DATA_DIR"] = str(folder / "data")
    tracker = Tracker(folder, run_config(wandb=Wandb(mode="offline", samples=3)))
    tracker.log_evaluation("final", "cot", SUMMARY, samples, 1, pictures)
    tracker.log_evaluation("final", "cot.zero", SUMMARY | {"intervention": "zero"}, samples, 1, pictures)
    tracker.close()


def run_without_login(folder: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        os.environ.pop(name, None)
    os.environ.update(dict.fromkeys(("HOME", "WANDB_CONFIG_DIR", "NETRC"), str(folder / "nobody")))
    tracker = Tracker(folder, run_config(wandb=Wandb(mode="online")))
    tracker.log({"a": 1}, step=1)
    tracker.close()
