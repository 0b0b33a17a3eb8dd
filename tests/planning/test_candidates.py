import pytest
import torch
from planned import found_for, run
from reference import internvl

from multicoco.config import RunConfig
from multicoco.planning.candidates import GIB, HEADROOM, Candidate, candidates, choose
from multicoco.planning.cost import Cluster
from multicoco.planning.geometry import Workload, geometry_of


@pytest.fixture(scope="module")
def found() -> list[Candidate]:
    return found_for(run(), Cluster(nodes=1, gpus=4, gpu_memory=80))


@pytest.mark.parametrize("gpu_memory", [80, 0.001])
def test_what_is_chosen_is_the_fastest_that_fits(found, gpu_memory):
    chosen = choose(found, Cluster(nodes=1, gpus=4, gpu_memory=gpu_memory))
    assert chosen.memory.peak <= (1 - HEADROOM) * gpu_memory * GIB
    faster = [candidate for candidate in found if candidate.cost.seconds < chosen.cost.seconds]
    assert all(candidate.memory.peak > (1 - HEADROOM) * gpu_memory * GIB for candidate in faster)


def test_zero3_may_keep_the_language_model_or_all_gathered(monkeypatch):
    model = geometry_of(internvl().config, torch.float32, {})
    monkeypatch.setattr("multicoco.planning.setting._MAX_LIVE", model.decoder_parameters // 2)
    config = RunConfig(mode="cot_train", name="live", model_id="none", train_path="none.json", batch_size=1)
    cluster = Cluster(nodes=2, gpus=4, gpu_memory=80)
    found = candidates(config, model, [Workload(tiles=1, prompt=30, latents=4, written=8)], cluster)
    plain = [c for c in found if c.setting.stage == 3 and c.setting.offload == "none" and not c.setting.checkpointing]
    few, decoder, everything = sorted(plain, key=lambda c: c.setting.max_live)
    assert decoder.setting.max_live == model.decoder_parameters and everything.setting.max_live == model.parameters
    assert few.cost.intra_bytes > decoder.cost.intra_bytes > everything.cost.intra_bytes
    assert few.memory.peak < decoder.memory.peak < everything.memory.peak


def test_adapters_have_no_states_but_their_own():
    plain, adapted = (
        choose(found_for(run(lora={"rank": rank}, batch_size=1), cluster), cluster).memory.parts
        for rank in (None, 2)
        for cluster in [Cluster(nodes=1, gpus=1, gpu_memory=80)]
    )
    assert adapted["optimizer"] < 0.9 * plain["optimizer"]
    assert adapted["parameters"] > plain["parameters"]
