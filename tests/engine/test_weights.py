import json

import pytest
from homes import flip_a_bit, make_run

from multicoco.engine.weights import embedding_rows, find_weights
from multicoco.errors import UserError


@pytest.mark.parametrize(
    ("accuracies", "chosen", "why"),
    [([0.1, 0.3, 0.2], 2, "best"), ([0.3, 0.3], 2, "best"), ([None, None], 2, "latest"), ([0.1, None], 1, "best")],
)
def test_a_run_folder_gives_its_best_weights_or_the_latest(tmp_path, accuracies, chosen, why):
    run = make_run(tmp_path, accuracies)
    weights = find_weights(str(run))
    assert weights.source == str(run / "checkpoints" / f"epoch_{chosen:04d}" / "model")
    assert weights.how.startswith(why) and weights.state.epoch == chosen


@pytest.mark.parametrize(
    ("accuracies", "stages", "chosen"),
    [([0.9, 0.2, 0.4, 0.3], [1, 2, 2, 2], 3), ([0.9, None, None], [1, 2, 2], 3), ([0.9, 0.1], [0, 1], 2)],
)
def test_the_best_is_one_of_the_last_stage(tmp_path, accuracies, stages, chosen):
    """Which still writes most of its steps, a first stage is often the most accurate: it is another task."""
    weights = find_weights(str(make_run(tmp_path, accuracies, stages)))
    assert weights.state.epoch == chosen
    assert f"(stage {stages[chosen - 1]}, epoch {chosen})" in weights.how


def test_a_checkpoint_gives_its_own_weights_and_anything_else_is_left_to_transformers(tmp_path):
    run = make_run(tmp_path, [0.9, 0.1])
    checkpoint = run / "checkpoints" / "epoch_0002"
    assert find_weights(str(checkpoint)).source == str(checkpoint / "model")
    hub_id = find_weights("OpenGVLab/InternVL3-1B-hf")
    assert hub_id.source == "OpenGVLab/InternVL3-1B-hf" and hub_id.state is None


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    run = make_run(tmp_path, [0.1])
    (run / "checkpoints" / "epoch_0002.unfinished").mkdir()
    (run / "checkpoints" / "epoch_0002.unfinished" / "trainer.json").write_text("{}")
    assert find_weights(str(run)).source.endswith("epoch_0001/model")


def test_damaged_weights_are_not_loaded(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    flip_a_bit(run / "checkpoints" / "epoch_0002" / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"best checkpoint of .*epoch_0002.* are damaged: model.safetensors"):
        find_weights(str(run))


def test_the_folder_above_a_run_is_that_run_if_it_is_the_only_one(tmp_path):
    make_run(tmp_path / "runs" / "first", [0.1])
    (tmp_path / "runs" / "notes").mkdir()
    assert find_weights(str(tmp_path / "runs")).source.endswith("first/checkpoints/epoch_0001/model")
    make_run(tmp_path / "runs" / "second", [0.1])
    with pytest.raises(UserError, match=r"holds several runs: name one of .*first, .*second"):
        find_weights(str(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("config", "rows"), [({"vocab_size": 7}, 7), ({"text_config": {"vocab_size": 8}}, 8), ({}, None), ([], None)]
)
def test_the_rows_of_a_checkpoints_embeddings(tmp_path, config, rows):
    assert embedding_rows(tmp_path) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert embedding_rows(tmp_path) == rows
