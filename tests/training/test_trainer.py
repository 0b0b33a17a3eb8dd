"""Controls from a run config to their evaluation, on one rank and on two."""

import json
from pathlib import Path

import pytest
from homes import make_home
from runs import entries, logged, losses, signalled_at

from multicoco.config import load_config
from multicoco.data.sources import load_of_run
from multicoco.engine.assembly import encoder_of
from multicoco.engine.lengths import longest_row
from multicoco.engine.trainer_state import read_state
from multicoco.methods import method_class
from multicoco.models.reader import load_reader

pytestmark = pytest.mark.distributed
CONFIG = """mode: train
num_epochs: 2
generation: {max_new_tokens: 3}
coconut: {enabled: true, c_thought: 2, max_latent_stage: 1, first_stage: 1}
"""
COCONUT = ("method=coconut",)
ICOT = ("method=icot", "coconut.enabled=false", "icot.remove_per_epoch=2", "icot.remove_all_beyond=3")
GROUPED = (*ICOT, "group_by_length=true")  # in which nothing else is different either


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("controls"), 14, 3, CONFIG)


def cost(run: Path) -> tuple[int, int]:
    """Tokens and passes of a whole training."""
    state = read_state(run / "checkpoints" / "epoch_0002")
    assert 2**26 < state.peak_memory < 2**36
    return state.tokens, state.passes


@pytest.mark.parametrize(
    ("name", "latents", "passes", "settings"),
    [
        ("noise", 2, 0, ["method=coconut", "coconut.thoughts=noise"]),
        ("borrowed", 2, 2, ["method=coconut", "coconut.thoughts=borrowed"]),
        ("icot", 0, 0, GROUPED),
    ],
)
def test_a_control_trains_alike_on_any_number_of_ranks(home, run_server, name, latents, passes, settings):
    found = []
    for ranks in (1, 2):
        batch = (f"batch_size={4 // ranks}", f"name={name}_{ranks}")
        ended = run_server.run(home / "run.yaml", *settings, *batch, ranks=ranks)
        assert ended.codes == [0] * ranks, ended.said
        found.append(losses(home / "runs" / f"{name}_{ranks}"))
    assert len(found[0]) == 8 and found[0] == pytest.approx(found[1], rel=1e-4)
    padding = logged(home / "runs" / f"{name}_1", "train/padding")
    assert len(padding) == 8 and all(0 <= share < 0.9 for share in padding)
    for key in ("thoughts/norm", "thoughts/effective_rank"):  # of those that come from a pass
        measured = [logged(home / "runs" / f"{name}_{ranks}", key) for ranks in (1, 2)]
        assert len(measured[0]) == 8 * (passes > 0) and measured[0] == pytest.approx(measured[1], rel=1e-3)
    tokens, _ = cost(home / "runs" / f"{name}_1")
    assert cost(home / "runs" / f"{name}_2") == (tokens, 8 * (passes + 1)) and tokens > 2 * 14
    [file] = (home / "runs" / f"{name}_1" / "samples").glob("epoch_0002_*")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(sample["latent_tokens"], sample["latent_passes"]) for sample in samples} == {(latents, passes)}


def test_what_is_too_long_is_left_out_as_if_it_were_not_there_and_asked_all_the_same(home, run_server):
    records = json.loads((home / "scenes" / "aokvqa_v1p0_train.json").read_text())
    config = load_config(home / "run.yaml", COCONUT)
    encoder = encoder_of(config, load_reader(config.model_id, config.max_image_tiles, False), "2026-01-01")
    method = method_class("coconut")(config)
    examples = load_of_run(config, config.train_path, None)
    most = max(longest_row(method, encoder.tokens(x, "reasoning"), {1, 2}) for x in examples)
    for name, longer in (("long", "Look again. " * 20), ("short", "")):
        changed = [{**r, "question": longer + r["question"]} if i % 3 == 0 else r for i, r in enumerate(records)]
        if not longer:
            changed = [r for i, r in enumerate(records) if i % 3]
        (home / "scenes" / f"{name}.json").write_text(json.dumps(changed))
    settings = (*COCONUT, "val_path=long.json", f"max_length={most}")
    ended = run_server.run(home / "run.yaml", *settings, "train_path=long.json", "too_long=skip", "name=skip", ranks=2)
    assert ended.codes == [0, 0] and f"5 of 14 records are longer than {most} tokens" in ended.said[0], ended.said
    ended = run_server.run(home / "run.yaml", *settings, "train_path=short.json", "name=short", "batch_size=2")
    assert ended.codes == [0], ended.said
    skip, short = home / "runs" / "skip", home / "runs" / "short"
    assert len(losses(skip)) == 10 and losses(skip) == pytest.approx(losses(short), rel=1e-4)
    assert (logged(skip, "data/examples"), logged(skip, "data/too_long")) == ([9], [5])
    assert logged(short, "data/too_long") == []
    [file] = (skip / "samples").glob("epoch_0002_*")
    assert len(file.read_text().splitlines()) == 14


@pytest.mark.parametrize("step", [1, 2])  # heard of in the last one of a stage, or in the first of the next
def test_a_run_that_changes_its_stage_within_an_epoch_goes_on_from_there(home, run_server, step):
    name = f"preempted_{step}"
    settings = (*GROUPED, "batch_size=4", f"name={name}")
    ended = run_server.run(home / "run.yaml", *settings, patch=signalled_at(step))
    assert ended.codes == [143], ended.said
    ended = run_server.run(home / "run.yaml", *settings)
    assert ended.codes == [0] and "going on from" in ended.said[0], ended.said
    assert run_server.run(home / "run.yaml", *GROUPED, "batch_size=4", f"name=whole_{step}").codes == [0]
    assert losses(home / "runs" / name) == losses(home / "runs" / f"whole_{step}")
    assert cost(home / "runs" / name) == cost(home / "runs" / f"whole_{step}")


def test_stages_that_are_learned_end_early_however_often_the_run_is_interrupted(home, run_server):
    evaluated = """
from multicoco.evaluation.evaluator import Evaluator

Evaluator.run = lambda evaluator, name, stage, step: {"epoch_0002": 0.5}.get(name, 1.0)
"""
    keys = {"epochs_per_stage": 3, "max_latent_stage": 2, "advance_when_accuracy": 0.9}
    settings = ["method=coconut", "batch_size=4", *(f"coconut.{key}={value}" for key, value in keys.items())]

    def run(name: str, epochs: int, code: int = 0, patch: str = "") -> None:
        given = (*settings, f"name={name}", f"num_epochs={epochs}")
        ended = run_server.run(home / "run.yaml", *given, allow_change=("num_epochs",), patch=evaluated + patch)
        assert ended.codes == [code], ended.said

    run("uninterrupted", 4)
    run("interrupted", 1)  # ends after an evaluation, which its checkpoint was told afterwards
    run("interrupted", 4, code=143, patch=signalled_at(3))
    run("interrupted", 4)
    whole, parts = home / "runs" / "uninterrupted", home / "runs" / "interrupted"
    stages = {entry["train/epoch"]: entry["train/stage"] for entry in entries(whole) if "train/stage" in entry}
    assert stages == {1: 1, 2: 2, 3: 2, 4: 3}
    assert losses(parts) == losses(whole)


def test_a_run_stops_on_all_ranks_when_its_stage_collapses_and_goes_on_only_if_told_to(home, run_server):
    evaluated = """
from multicoco.evaluation.evaluator import Evaluator

Evaluator.run = lambda evaluator, name, stage, step: {"epoch_0002": 0.3}.get(name, 0.8)
"""
    settings = ["method=coconut", "batch_size=2", "name=collapsing", "num_epochs=3", "coconut.epochs_per_stage=3"]

    def run(share: str) -> tuple[list[int], str]:
        given = (*settings, f"coconut.collapse_below={share}")
        allowed = ("coconut.collapse_below",)
        ended = run_server.run(home / "run.yaml", *given, allow_change=allowed, patch=evaluated, ranks=2)
        return ended.codes, "".join(ended.said)

    for _ in range(2):  # and at once when it is started again
        codes, said = run("0.5")
        assert 0 not in codes and said.count("stage 1 has collapsed: accuracy is 0.300 after epoch 2") == 1
        assert "checkpoints/epoch_0001 (stage 1, accuracy 0.800)" in said and "Traceback" not in said
    codes, said = run("null")
    assert codes == [0, 0] and "changed: coconut.collapse_below" in said
    assert len(losses(home / "runs" / "collapsing")) == 3 * 4
