"""An interrupted run that is started again ends like the one that was not: the same losses and weights, bit by bit."""

import random
import shutil
import signal
from pathlib import Path

import pytest
from fault_runs import ROOT
from runs import entries

pytestmark = pytest.mark.distributed


def losses(run: Path) -> dict[int, float]:
    """By step; a step that was trained again after a crash must have had the same loss."""
    found: dict[int, float] = {}
    for entry in entries(run):
        if "train/loss" in entry:
            assert found.setdefault(entry["step"], entry["train/loss"]) == entry["train/loss"]
    return found


def weights(run: Path) -> bytes:
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text()
    return (newest / "model" / "model.safetensors").read_bytes()


def zero(stage: int) -> str:
    return f"deepspeed={ROOT}/ds_configs/zero{stage}.json"


# what makes runs faster and is off by default: docs/performance.md
FASTER = ("group_by_length=true", "features=cache", "freeze.vision_tower=true", "freeze.projector=true")


def settings_of(run: Path, stage: int) -> tuple[str, ...]:
    """Under ZeRO-3 with all of FASTER on, features in the run's own folder."""
    return (zero(stage), *((*FASTER, f"features_dir={run}/features") if stage == 3 else ()))


@pytest.fixture(scope="module")
def unbroken(runs):
    """The run folder of a run without interruption, for a ZeRO stage and a number of ranks; made once for each."""
    made = {}

    def run(stage: int, ranks: int) -> Path:
        if (stage, ranks) not in made:
            name = f"unbroken_{stage}_{ranks}"
            made[stage, ranks] = runs.home / "runs" / name
            codes, said = runs(name, *settings_of(made[stage, ranks], stage), ranks=ranks)
            assert codes == [0] * ranks, said
        return made[stage, ranks]

    return run


@pytest.mark.parametrize(
    ("stage", "ranks", "number", "workers", "asynchronous"),
    [
        (1, 2, signal.SIGTERM, 0, "true"),
        (2, 1, signal.SIGTERM, 1, "false"),
        (3, 2, signal.SIGUSR1, 1, "true"),
    ],
)
def test_a_preempted_run_goes_on_bit_by_bit(runs, unbroken, stage, ranks, number, workers, asynchronous):
    expected = unbroken(stage, ranks)
    name, dice = f"preempted_{stage}_{ranks}_{number}", random.Random(f"{stage} {number}")
    run, preempted = runs.home / "runs" / name, 0
    given = settings_of(run, stage)
    while preempted < 2:
        kill = {"since": "step", "after": dice.uniform(0, 0.5), "signal": number, "ranks": [dice.randrange(ranks)]}
        settings = (*given, f"num_workers={workers}", f"asynchronous_save={asynchronous}", "save_every_steps=2")
        codes, said = runs(name, *settings, ranks=ranks, kill=kill)
        assert codes in ([0] * ranks, [143] * ranks), said
        if codes[0] == 0:  # the signal came too late: once more from the start
            shutil.rmtree(run)
            preempted = 0
        else:
            assert "the same command goes on from there" in said
            preempted += 1
    codes, said = runs(name, *given, ranks=ranks)
    assert codes == [0] * ranks and "going on from" in said, said
    assert losses(run) == losses(expected)
    assert weights(run) == weights(expected)


NOTHING_LEFT = "nothing is left to train"  # killed between its last checkpoint and its end


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_a_run_killed_again_and_again_loses_nothing(runs, unbroken, stage, ranks):
    """kill -9 of one rank or of all, 8 times at random moments of a run that saves after every step."""
    expected = unbroken(stage, ranks)
    name, dice, kills = f"killed_{stage}_{ranks}", random.Random(stage), 0
    run = runs.home / "runs" / name
    given = (*settings_of(run, stage), "save_every_steps=1")
    while kills < 8:
        since = dice.choice(["start", "step", "step"])
        kill = {
            "since": since,
            "after": dice.uniform(0, 2.0 if since == "start" else 0.5),
            "signal": signal.SIGKILL,
            "ranks": dice.choice([[0], [ranks - 1], list(range(ranks))]),
        }
        codes, said = runs(name, *given, ranks=ranks, kill=kill)
        kills += runs.killed
        if codes == [0] * ranks or NOTHING_LEFT in said:  # it had come to its end: once more from the start
            assert weights(run) == weights(expected)
            shutil.rmtree(run)
        else:
            assert set(codes) <= {0, -signal.SIGKILL}, said
    codes, said = runs(name, *given, ranks=ranks)
    assert codes == [0] * ranks or NOTHING_LEFT in said, said
    assert losses(run) == losses(expected)
    assert weights(run) == weights(expected)
    assert not [*run.glob("checkpoints/*.unfinished"), *run.glob("checkpoints/*.removed")]


@pytest.mark.parametrize(
    ("before", "after"), [((1, 2), (2, 1)), ((2, 1), (3, 2)), ((2, 1), (2, 2)), ((3, 2), (3, 1)), ((3, 2), (1, 1))]
)
def test_a_run_goes_on_with_other_ranks_and_another_zero_stage(runs, unbroken, before, after):
    """From within an epoch, with the same global batch; ranks sum in another order, so to fp32 rounding."""
    (stage, ranks), name = before, f"elastic_{before}_{after}".replace(" ", "")
    batch = lambda ranks: ("batch_size=1", f"gradient_accumulation_steps={8 // ranks}")  # noqa: E731
    kill = {"since": "step", "after": 0.1, "signal": signal.SIGTERM, "ranks": [0]}
    codes, said = runs(name, zero(stage), *batch(ranks), ranks=ranks, kill=kill)
    assert codes == [143] * ranks, said
    stage, ranks = after
    codes, said = runs(name, zero(stage), *batch(ranks), ranks=ranks)
    assert codes == [0] * ranks and "going on from" in said, said
    found, expected = losses(runs.home / "runs" / name), losses(unbroken(1, 2))
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)


def test_a_change_to_zero_0_is_refused_and_loses_nothing(runs, unbroken):
    run = shutil.copytree(unbroken(2, 1), runs.home / "runs" / "to_zero0")
    shutil.rmtree(run / "checkpoints" / "epoch_0002")
    (runs.home / "zero0.json").write_text('{"zero_optimization": {"stage": 0}}')
    codes, said = runs("to_zero0", f"deepspeed={runs.home}/zero0.json")
    assert codes == [1]
    [message] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "is of ZeRO stage 2, this run of stage 0" in message and "Traceback" not in said
    codes, said = runs("to_zero0", zero(2))
    assert codes == [0] and weights(run) == weights(unbroken(2, 1))
