"""Methods from a run config to their evaluation: alike on one rank and on two that share every weight, and going on."""

from pathlib import Path

import pytest
from homes import make_home
from runs import losses, signalled_at

pytestmark = pytest.mark.distributed
CONFIG = """mode: train
num_epochs: 2
generation: {max_new_tokens: 3}
eval_config: {interventions: [noise], thoughts: true}
coconut: {enabled: true, c_thought: 2, max_latent_stage: 1, first_stage: 1}
"""
SHARDED = {
    "zero2": '{"zero_optimization": {"stage": 2}}',
    "zero3": '{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}',
}
CHECKPOINTED = "activation_checkpointing=true"
METHODS = {
    "projected": ("method=coconut", "coconut.projection=mlp", "coconut.norm=embedding", "coconut.gradient_passes=1"),
    "codi": ("method=codi", "coconut.projection=mlp", "codi.distillation_weight=2", "coconut.first_stage=null"),
    "codi_sim_cot": (
        *("method=codi_sim_cot", "sim_cot.weight=0.5", "coconut.first_stage=null", "coconut.jacobi_iterations=1"),
        CHECKPOINTED,
    ),
    "adapters": ("method=sim_cot", "sim_cot.decoder=adapters", "sim_cot.decoder_rank=2", CHECKPOINTED),
    "c_mtp": ("method=c_mtp", "c_mtp.words=12"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("methods"), 8, 3, CONFIG)
    for stage, content in SHARDED.items():
        (home / f"{stage}.json").write_text(content)
    return home


@pytest.fixture(scope="module")
def whole(home, run_server) -> dict[str, Path]:
    """The run folder of each method that has been trained on one rank."""
    folders = {}
    for name, settings in METHODS.items():
        ended = run_server.run(home / "run.yaml", *settings, "batch_size=4", f"name={name}")
        assert ended.codes == [0], ended.said
        folders[name] = home / "runs" / name
    return folders


@pytest.mark.parametrize(
    ("name", "sharded"),
    [(name, sharded) for name in METHODS for sharded in SHARDED if (name, sharded) != ("projected", "zero2")],
)
def test_two_ranks_train_as_one_process_does(home, run_server, whole, name, sharded):
    settings = (*METHODS[name], "batch_size=2", f"name={name}_{sharded}", f"deepspeed={sharded}.json")
    ended = run_server.run(home / "run.yaml", *settings, ranks=2)
    assert ended.codes == [0, 0], ended.said
    assert len(losses(whole[name])) == 4
    assert losses(home / "runs" / f"{name}_{sharded}") == pytest.approx(losses(whole[name]), rel=1e-4)


@pytest.mark.parametrize("name", ["projected", "adapters", "codi_sim_cot", "c_mtp"])
def test_a_run_that_ends_within_an_epoch_goes_on_bit_for_bit(home, run_server, whole, name):
    settings = (*METHODS[name], "batch_size=4", f"name={name}_preempted")
    ended = run_server.run(home / "run.yaml", *settings, patch=signalled_at(3))
    assert ended.codes == [143], ended.said
    ended = run_server.run(home / "run.yaml", *settings)
    assert ended.codes == [0] and "going on from" in ended.said[0], ended.said
    assert losses(home / "runs" / f"{name}_preempted") == losses(whole[name])


@pytest.mark.parametrize("name", ["projected", "adapters", "c_mtp"])
def test_what_is_trained_beside_the_model_is_evaluated(home, run_server, whole, name):
    weights = f"load_model_path=runs/{name}/checkpoints/epoch_0002"
    evaluation = ("mode=eval_only", weights, f"name={name}_evaluated")
    ended = run_server.run(home / "run.yaml", *METHODS[name][:1], *evaluation)  # its keys are the checkpoint's
    assert ended.codes == [0] and "as the checkpoint was trained" in ended.said[0], ended.said
    folders = (whole[name] / "samples", home / "runs" / f"{name}_evaluated" / "samples")
    trained, evaluated = (
        [path.read_text() for path in sorted(folder.glob(f"{when}_*.jsonl"))]
        for folder, when in zip(folders, ("epoch_0002", "final"), strict=True)
    )
    assert len(trained) == 2 and "logprob" in trained[0] and evaluated == trained  # as trained, and with noise
