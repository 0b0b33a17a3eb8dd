"""The benchmarks run, at a size that measures nothing, and what they compare are the same computations."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import baselines
import data_memory
import methods
import pytest
import starting
import startup
from measuring import Report, Timing

from multicoco.models.tiny import build_tiny_internvl

ROOT = Path(__file__).resolve().parent.parent
TINY = {"layers": 2, "hidden": 32, "intermediate": 48, "heads": 4, "vocabulary": 50, "batch": 2, "prefix": 9}


Run = Callable[..., dict]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, one_thread) -> Run:
    """Does a benchmark in this process: what it has stored, and what it has printed."""

    def run(name: str, *arguments: str, geometry: dict = TINY) -> dict:
        options = ["--repeats", "1", "--threads", "1", "--out", str(tmp_path), "--geometry", json.dumps(geometry)]
        monkeypatch.setattr(sys, "argv", [name, *options, *arguments])
        import_module(name).main()
        [result] = tmp_path.iterdir()
        return json.loads(result.read_text()) | {"printed": capsys.readouterr().out}

    return run


def launch(out: Path, launcher: list[str], name: str, *arguments: str) -> str:
    """Does a benchmark in processes of its own, and returns what is printed."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    done = subprocess.run(
        [*launcher, str(ROOT / "benchmarks" / f"{name}.py"), "--out", str(out), *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_interrupted_run_keeps_every_row_and_time_and_the_results_before(tmp_path, capsys):
    (tmp_path / "sums.json").write_text("the results before")
    report = Report("sums", {"n": 3}, tmp_path)
    report.add({"way": "by hand", "seconds": 1.25})
    assert "by hand" in capsys.readouterr().out  # not only at the end

    def stop() -> None:
        if report.timed[0]["fast"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.in_turn({"fast": lambda: None, "stopped": stop}, repeats=2)
    kept = json.loads((tmp_path / "sums.unfinished.json").read_text())
    assert kept["rows"] == [{"way": "by hand", "seconds": 1.25}] and kept["settings"] == {"n": 3}
    [timed] = kept["timed"]
    assert len(timed["fast"]) == 1 and not timed["stopped"]
    assert (tmp_path / "sums.json").read_text() == "the results before"
    report.goal("seconds", "<= 2", 1.25, True)
    report.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["sums.json"]
    assert json.loads((tmp_path / "sums.json").read_text())["goals"][0]["met"] == "yes"


def test_a_ratio_comes_with_its_range_over_the_turns():
    slow, fast = Timing([4.0, 9.0, 6.0]), Timing([2.0, 3.0, 3.0])
    assert slow.over(fast, "ratio") == {"ratio": 2.0, "ratio_lowest": 2.0, "ratio_highest": 3.0}


def test_latent_overhead(run):
    result = run("latent_overhead")
    assert [row["K"] for row in result["rows"]] == [0, 1, 2, 4, 6, 12]
    assert result["goals"][0]["measured"] == pytest.approx(result["rows"][4]["ratio"], rel=5e-3)  # three digits
    assert result["settings"]["prefix"] == 9 and result["machine"].keys() > {"cpu", "cores", "memory_gib", "torch"}
    assert all(row["ratio_lowest"] <= row["ratio_highest"] for row in result["rows"])


@pytest.mark.distributed
def test_baselines_compute_the_same_loss(run, monkeypatch):
    """Of one way the memory is measured, in a process of its own."""
    measured, alone = "multicoco, checkpointing", baselines.in_new_process
    monkeypatch.setattr(baselines, "in_new_process", lambda *a: alone(*a) if measured in a else {"peak": 2**20})
    sizes = {"hidden": 64, "intermediate": 128, "prefix": 200}  # activations beyond what malloc keeps of freed memory
    rows = run("baselines", "--vocabularies", "50", geometry=TINY | sizes)["rows"]
    assert [row["words"] for row in rows] == 6 * [50]
    losses = [float(row["loss"]) for row in rows]
    assert max(losses) - min(losses) < 1e-5  # fp32, printed to six digits
    peaks = {row["way"]: row["peak_mib"] for row in rows}
    assert 0 < peaks.pop(measured) != 1 and {*peaks.values()} == {1.0}


def test_generation_gives_the_same_tokens(run):
    assert "are the same both ways" in run("generation", "--new-tokens", "3")["printed"]


def test_cached_attention(run):
    rows = run("cached_attention", "--lengths", "40", "200", geometry={})["rows"]
    saved = {(row["length"], row["way"]): row["saved_kib"] for row in rows}
    for kernel in ("cpu", "reference"):
        assert saved[40, kernel] == saved[200, kernel]  # nothing that grows with the cache
    assert saved[200, "concatenate + sdpa"] > 4 * saved[40, "concatenate + sdpa"]
    peak = {row["way"]: row["peak_kib"] for row in rows if row["length"] == 200}
    assert saved[200, "cpu"] < peak["cpu"] < peak["concatenate + sdpa"]


@pytest.mark.distributed
def test_checkpointing(tmp_path):
    """In a process of its own, which becomes a rank."""
    options = ["--repeats", "1", "--threads", "1", "--geometry", '{"hidden_size": 32, "text_layers": 1}']
    launch(tmp_path, [sys.executable], "checkpointing", *options)
    rows = json.loads((tmp_path / "checkpointing.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["deepspeed alone", "multicoco", "multicoco, asynchronous"]
    assert rows[1]["mib"] > rows[0]["mib"] > 0  # the weights once more


@pytest.mark.distributed
def test_gathering_counts_a_step(tmp_path):
    """One of its sides."""
    build_tiny_internvl(["start at red"], tmp_path / "model", hidden_size=32, text_layers=2)
    side = json.dumps({"checkpointing": True, "live": "half"})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    printed = launch(tmp_path, launcher, "gathering", "--side", side, "--latents", "2")
    measured = json.loads(printed.splitlines()[-1])
    assert measured["gathers"] > 0 and 1 <= measured["gathered_of_model"] < 8


def test_methods_compute_the_losses_that_they_are_compared_with(tmp_path, monkeypatch):
    task = methods.Task(**TINY | {"latents": 2, "suffix": 5, "parallel_latents": 4})
    monkeypatch.setattr(methods, "in_new_process", lambda *_: {"peak": 2**20})
    report = Report("methods", task, tmp_path)
    for plain in ("coconut", "parallel, in sequence"):
        methods.compare(report, task, plain, repeats=1)
    losses: dict[str, dict[str, float]] = {}
    for row in report.rows:
        losses.setdefault(row["method"], {})[row["way"]] = float(row["loss"])
        assert row["step_s"] > 0 and row["K"] == (4 if row["method"].startswith("parallel") else 2)
    compared = {name: of for name, of in losses.items() if len(of) == 2}
    assert losses.keys() == methods.METHODS.keys() and len(compared) == 7
    for name, of in compared.items():
        assert of["multicoco"] == pytest.approx(of["as published"], abs=1e-5), name  # fp32, printed to six digits
    assert len(report.goals) == 8 and losses["parallel, jacobi"] != losses["parallel, in sequence"]


def test_memory_of_a_method_is_measured_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["methods.py", "--threads", "1", "--geometry", json.dumps(TINY), "--memory-of", "codi", "as published"],
    )
    methods.main()
    assert json.loads(capsys.readouterr().out)["peak"] >= 0


def test_features_cache_gives_the_same_losses(run):
    sizes = {"vision_layers": 1, "vision_hidden": 32, "tile_size": 56, "batch": 2}
    result = run("features_cache", "--tiles", "2", "--images", "3", geometry=TINY | {"vocabulary": 500} | sizes)
    assert result["printed"].count("the losses are the same") == len(result["rows"]) == 4
    assert all(row["first_epoch_s"] > row["kept_s"] > 0 and row["mib_an_image"] > 0 for row in result["rows"])


def test_length_groups(run):
    result = run("length_groups", "--examples", "16", geometry=TINY | {"vocabulary": 50})
    assert all(row["grouped"] < row["shuffled"] for row in result["rows"][:-1]) and len(result["rows"]) == 10
    assert result["goals"][0]["met"] == "yes" and result["rows"][-1]["speed_up"] > 0


def test_evaluation_batching_gives_the_same_tokens(run):
    result = run("evaluation_batching", "--new-tokens", "5", "--mean", "4", "--batches", "2")
    assert "the tokens are the same both ways" in result["printed"]
    assert [row["speed_up"] > 0 for row in result["rows"]] == [True, True]


@pytest.mark.distributed
def test_a_start_is_measured_on_all_ranks(tmp_path, run_server):
    config = starting.generate(tmp_path / "data", 60)
    assert len([*(tmp_path / "data" / "images").iterdir()]) == 2
    patch = f"import os, sys; sys.path += {sys.path}; os.environ['STARTED'] = '0'; import starting; starting.watch(4)"
    patch += "; from multicoco.engine import keeping; keeping.KEPT_FROM = 60"
    ended = run_server.run(config, ranks=2, patch=patch)
    assert ended.codes == [0, 0], ended.said
    text = ended.said[0]
    measured = json.loads(text[text.index('{"first_step_s"') :].splitlines()[0])
    assert 1e9 < measured["first_step_s"] < 1e10 and 0 < measured["step_s"] < 60  # since 1970, here
    kept = sorted(path.suffix for path in (tmp_path / "data" / "runs" / ".examples").iterdir())
    assert kept == [".examples", ".npy", ".npy"]  # where they begin, and the images
    assert 100 < measured["worker_mib"] <= measured["peak_mib"] and measured["rank_mib"] <= measured["peak_mib"]


@pytest.mark.distributed
def test_what_surrounds_a_step_is_no_more_than_it_was(tmp_path, run_server):
    asked = ["step_overhead", "--repeats", "1", "--threads", "1", "--steps", "5", "--out", str(tmp_path)]
    asked += ["--geometry", json.dumps({"hidden_size": 32, "text_layers": 2})]
    patch = f"import sys; sys.path += {sys.path}; sys.argv = {asked}; import step_overhead; step_overhead.main(); "
    patch += "from multicoco.process import end_process; end_process(0)"
    (tmp_path / "run.yaml").write_text("")
    ended = run_server.run(tmp_path / "run.yaml", patch=patch)
    assert ended.codes == [0], ended.said
    result = json.loads((tmp_path / "step_overhead.json").read_text())
    [row] = result["rows"]
    assert row["loop_ms"] > 0 < row["bare_ms"] and row["operators_bare"] > 1000
    assert 10 < row["operators"] - row["operators_bare"] < 130  # with one log entry of five steps; else of ten


@pytest.mark.parametrize(("module", "rows"), [(startup, 4), (data_memory, 2)])
def test_starts_of_every_size_are_a_table(tmp_path, monkeypatch, module, rows):
    asked = []
    keys = ("first_step_s", "cpu_s", "step_s", "rank_mib", "peak_mib", "worker_mib")
    monkeypatch.setattr(module, "generate", lambda folder, records: asked.append(records) or folder)
    monkeypatch.setattr(module, "run", lambda config, steps: dict.fromkeys(keys, 50.0 + len(asked)))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--records", "10", "20", "--out", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    module.main()
    result = json.loads((tmp_path / f"{module.__name__}.json").read_text())
    assert asked == [10, 20] and len(result["rows"]) == rows
    assert result["goals"][0]["measured"] == 52 and result["goals"][0]["met"] == "yes"
