"""ZeRO-3 gathers each parameter once per step: counted through whole runs of the trainer on 2 ranks.

A step is steady from the third one on after a start, a stage transition or an evaluation: DeepSpeed sees that its
trace is another, records the new one, and follows it.
"""

import json
import sys
from pathlib import Path

import pytest
from homes import make_home
from runs import RunServer

LIMIT = 1.05  # of the model's bytes; the excess over 1 is the padding of shards


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Rows, and some whole micro-batches, without an image; rows with fewer latents than others; a short last batch."""
    home = make_home(
        tmp_path_factory.mktemp("gathering"),
        n_train=17,
        n_val=5,
        config="""
mode: coconut_train
num_epochs: 4
batch_size: 2
coconut: {enabled: true, c_thought: 2, max_latent_stage: 3, epochs_per_stage: 1, first_stage: 0}
generation: {max_new_tokens: 4}
""",
    )
    path = home / "scenes" / "aokvqa_v1p0_train.json"
    records = json.loads(path.read_text())
    for index in range(0, len(records), 2):  # text only, with one to three steps
        steps = ["one", "two", "three"][: 1 + index % 3]
        records[index] = {"question": records[index]["question"], "steps": steps, "answer": "red"}
    path.write_text(json.dumps(records))
    return home


def count(server: RunServer, home: Path, name: str, zero: dict, *overrides: str) -> dict:
    limits = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": "auto"}
    (home / f"{name}.json").write_text(json.dumps({"zero_optimization": {"stage": 3, **limits, **zero}}))
    settings = [f"name={name}", f"deepspeed={home}/{name}.json", *overrides]
    out = home / f"{name}.counts"
    counting = f"import sys, pathlib; sys.path += {sys.path}; import gathers; gathers.count_into(pathlib.Path('{out}'))"
    ended = server.run(home / "run.yaml", *settings, ranks=2, patch=counting)
    assert ended.codes == [0, 0], ended.said
    return json.loads(out.read_text())


def steady_steps(counts: dict) -> list[float]:
    """Bytes gathered in each steady step, of the model's."""
    steps, disturbed = counts["steps"], {0, *counts["evaluated_after"]}
    disturbed |= {i for i in range(1, len(steps)) if steps[i]["stage"] != steps[i - 1]["stage"]}
    steady = [i for i in range(len(steps)) if not disturbed & {i, i - 1}]
    assert {step["stage"] for step in steps} == {steps[i]["stage"] for i in steady}
    return [steps[i]["bytes"] / counts["model_bytes"] for i in steady]


@pytest.mark.distributed
@pytest.mark.parametrize(("uniform_prob", "checkpointing"), [(0.0, False), (0.3, True)])
def test_each_parameter_is_gathered_once_a_step(run_server, home, uniform_prob, checkpointing):
    name = f"once_{uniform_prob}_{checkpointing}"
    settings = (f"coconut.uniform_prob={uniform_prob}", f"activation_checkpointing={str(checkpointing).lower()}")
    counts = count(run_server, home, name, {"stage3_max_live_parameters": 10**9}, *settings)
    assert len(counts["evaluated_after"]) == 4 and {step["images"] for step in counts["steps"]} == {0, 1}
    assert max(steady_steps(counts)) <= LIMIT
    assert min(steady_steps(counts)) >= 1


@pytest.mark.distributed
def test_so_it_is_when_thoughts_are_made_in_parallel_and_the_model_itself_reads_them(run_server, home):
    reading = ("mode=train", "method=sim_cot", "sim_cot.decoder=self")
    course = ("coconut.jacobi_iterations=2", "coconut.uniform_prob=0.3", "coconut.first_stage=3", "num_epochs=1")
    counts = count(run_server, home, "parallel", {"stage3_max_live_parameters": 10**9}, *reading, *course)
    assert min(steady_steps(counts)) >= 1 and max(steady_steps(counts)) <= LIMIT


ASKING = {
    "codi": ("method=codi", "coconut.first_stage=null", "coconut.projection=mlp"),
    "adapters": ("method=sim_cot", "coconut.first_stage=3", "sim_cot.decoder=adapters", "sim_cot.decoder_rank=2"),
    "codi_sim_cot": ("method=codi_sim_cot", "coconut.first_stage=null"),  # whose decoder is a copy
    "c_mtp": ("method=c_mtp", "coconut.first_stage=3", "coconut.uniform_prob=0.3", "c_mtp.words=12"),
}


@pytest.mark.distributed
@pytest.mark.parametrize("name", ASKING)
def test_so_it_is_when_a_method_asks_for_more_than_labels(run_server, home, name):
    settings = ("mode=train", *ASKING[name], "num_epochs=1")
    counts = count(run_server, home, name, {"stage3_max_live_parameters": 10**9}, *settings)
    assert min(steady_steps(counts)) >= 1 and max(steady_steps(counts)) <= LIMIT
