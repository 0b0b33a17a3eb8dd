import re

import pytest
from planned import found_for, planned_model, run

from multicoco.planning.candidates import Candidate
from multicoco.planning.cost import Cluster
from multicoco.planning.explanation import explain

CLUSTER = Cluster(nodes=1, gpus=4, gpu_memory=80)
RUN = run(batch_size=1, gradient_accumulation_steps=1, coconut={"enabled": True, "first_stage": 2})
BUCKETS, LIVE = "`reduce_bucket_size`", "`stage3_max_live_parameters`"


@pytest.fixture(scope="module")
def found() -> list[Candidate]:
    return found_for(RUN, CLUSTER)


@pytest.mark.parametrize(
    ("stage", "offload", "said"),
    [
        (0, "none", set()),
        (1, "none", {BUCKETS}),
        (2, "optimizer", {BUCKETS, "`offload_optimizer`:"}),
        (3, "none", {LIVE}),
        (3, "all", {LIVE, "`offload_optimizer` and `offload_param`:"}),
    ],
)
def test_each_choice_is_explained_and_no_other(found, stage, offload, said):
    chosen = next(c for c in found if (c.setting.stage, c.setting.offload) == (stage, offload))
    text = explain(chosen, planned_model(RUN), CLUSTER)
    assert f"`zero_optimization.stage` {stage}: " in text and "keep the global batch of 4." in text
    choices = {BUCKETS, LIVE, "`offload_optimizer`:", "`offload_optimizer` and `offload_param`:"}
    assert {choice for choice in choices if choice in text} == said
    assert re.search(r"In the CPU's memory, while a checkpoint is written: [\d.]+ GiB on rank 0", text)
    assert re.search(r"- 3 latent passes: they leave ([\d.]+, ){2}[\d.]+ MiB of activations for backward", text)
