import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

import multicoco.tracking
from multicoco.config import RunConfig, Wandb, load_config
from multicoco.errors import UserError
from multicoco.tracking import Tracker, environment


def run_config(**fields) -> RunConfig:
    return RunConfig(mode="cot_train", name="x", model_id="m", train_path="t", **fields)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SUMMARY = {"mode": "cot", "accuracy": 0.5, "n": 2, "ci95": [0.1, 0.9], "chance": None, "seconds": 1.0}


def test_metrics_lines_carry_step_and_time_and_are_there_at_once(tmp_path):
    tracker = Tracker(tmp_path, run_config())
    tracker.log({"train/loss": 1.5, "train/lr": float("nan"), "stage": 1}, step=3)
    [line] = lines(tmp_path / "metrics.jsonl")
    assert line.pop("time") > 1.7e9
    assert line == {"step": 3, "train/loss": 1.5, "train/lr": None, "stage": 1}


def test_a_second_start_appends_and_keeps_an_earlier_config(tmp_path):
    for lr in (1.0, 2.0, 2.0):
        tracker = Tracker(tmp_path, run_config(lr=lr))
        tracker.log({"a": 1}, step=1)
        tracker.close()
    assert len(lines(tmp_path / "metrics.jsonl")) == 3
    assert load_config(tmp_path / "config.yaml").lr == 2.0
    assert load_config(tmp_path / "config.1.yaml").lr == 1.0
    assert not (tmp_path / "config.2.yaml").exists()


def test_an_evaluation_leaves_summary_samples_and_metrics(tmp_path):
    tracker = Tracker(tmp_path, run_config())
    samples = [{"id": "1", "generated": "Zürich\n"}, {"id": "2", "generated": ""}]
    tracker.log_evaluation("epoch_0001", "cot", SUMMARY, samples, step=7)
    assert lines(tmp_path / "samples" / "epoch_0001_cot.jsonl") == samples
    assert json.loads((tmp_path / "evaluation" / "cot.json").read_text()) == SUMMARY
    [line] = lines(tmp_path / "metrics.jsonl")
    assert line["eval/cot/accuracy"] == 0.5 and line["step"] == 7


def test_official_scores_are_logged_and_shown_and_predictions_written(tmp_path, capsys):
    for enabled in (False, True):
        tracker = Tracker(tmp_path, run_config(), enabled=enabled)
        scores = {"aokvqa/multiple_choice": 0.25, "aokvqa/multiple_choice_n": 8}
        tracker.log_evaluation("final", "cot", SUMMARY | scores, [], step=7)
        tracker.write_predictions("final", "cot", "aokvqa", {"q": {"multiple_choice": "ü"}})
        assert (tmp_path / "predictions").exists() == enabled
    predictions = json.loads((tmp_path / "predictions" / "final_cot.aokvqa.json").read_text())
    assert predictions == {"q": {"multiple_choice": "ü"}}
    assert lines(tmp_path / "metrics.jsonl")[-1]["eval/cot/aokvqa/multiple_choice"] == 0.25
    assert "official: aokvqa/multiple_choice 0.250\n" in capsys.readouterr().out


def test_thoughts_are_whole_and_belong_to_the_samples_of_their_name(tmp_path, monkeypatch, caplog):
    tracker, path = Tracker(tmp_path, run_config()), tmp_path / "thoughts" / "final_cot.safetensors"
    tracker.log_evaluation("final", "cot", SUMMARY, [], step=1)
    tracker.log_thoughts("final", "cot", b"seen")
    assert path.read_bytes() == b"seen" and [*path.parent.iterdir()] == [path]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        tracker.log_thoughts("final", "cot", b"half of")
    assert path.read_bytes() == b"seen" and "thoughts of" in caplog.text and "No space left" in caplog.text
    tracker.log_evaluation("final", "cot", SUMMARY, [], step=2)
    assert not path.exists()


def test_environment_names_versions_and_revision(tmp_path):
    Tracker(tmp_path, run_config())
    saved = json.loads((tmp_path / "environment.json").read_text())
    assert saved["torch"] == version("torch")
    assert saved["python"] == ".".join(map(str, sys.version_info[:3]))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (saved["git"] or {}).get("commit", "") == head.stdout.strip()
    assert saved["multicoco"] == multicoco.__version__
    assert environment()["command"] and saved["cpu"] and saved["cores"] == os.cpu_count()


def test_the_revision_is_that_of_the_source_and_tells_changes(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    source = tmp_path / "tracking.py"
    monkeypatch.setattr("multicoco.tracking.__file__", str(source))
    source.write_text("")
    assert environment()["git"] is None  # no repository
    git("init")
    git("commit", "--allow-empty", "-m", "x")
    assert environment()["git"] is None  # one that does not hold the source
    git("add", source.name)
    git("commit", "-m", "x")
    assert environment()["git"]["dirty"] is False
    source.write_text("changed")
    assert environment()["git"]["dirty"] is True


def test_the_progress_bar_shows_on_rank_0_alone(tmp_path, capsys):
    for enabled in (False, True):
        with Tracker(tmp_path, run_config(), enabled=enabled).progress(3, "training") as progress:
            progress.update(3)
        assert ("training" in capsys.readouterr().err) is enabled


def test_other_ranks_write_nothing(tmp_path):
    tracker = Tracker(tmp_path / "run", run_config(wandb=Wandb(mode="online")), enabled=False)
    tracker.log({"a": 1}, step=1)
    tracker.log_evaluation("e", "cot", SUMMARY, [], step=1)
    tracker.log_thoughts("e", "cot", b"seen")
    with tracker.progress(3, "x") as progress:
        progress.update()
    tracker.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/run cannot be written"):
        Tracker(tmp_path / "file" / "run", run_config())


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
    multicoco.tracking._WANDB_SECONDS = 3
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


def run_without_login(folder: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        os.environ.pop(name, None)
    os.environ.update(dict.fromkeys(("HOME", "WANDB_CONFIG_DIR", "NETRC"), str(folder / "nobody")))
    tracker = Tracker(folder, run_config(wandb=Wandb(mode="online")))
    tracker.log({"a": 1}, step=1)
    tracker.close()


def test_a_full_disk_costs_lines_but_not_the_run(tmp_path, caplog):
    tracker = Tracker(tmp_path, run_config())
    tracker.metrics_file.close()
    tracker.metrics_file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    with caplog.at_level(logging.WARNING):
        tracker.log({"a": 1}, step=1)
    assert "metrics.jsonl" in caplog.text and "No space left" in caplog.text
