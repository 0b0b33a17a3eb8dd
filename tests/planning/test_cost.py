from dataclasses import replace

import pytest
import torch
from reference import internvl

from multicoco.planning.cost import Cluster, step_cost
from multicoco.planning.geometry import Workload, geometry_of
from multicoco.planning.setting import Setting

NOTHING = dict.fromkeys(("vision_tower", "projector", "language_model"), False)
MODEL = geometry_of(internvl().config, torch.bfloat16, NOTHING)
WORK = Workload(tiles=1, prompt=20, latents=3, written=8)
CLUSTER = Cluster(nodes=1, gpus=8, gpu_memory=80)
WEIGHTS = MODEL.width * MODEL.parameters


def setting(stage: int, ranks: int = 8, accumulation: int = 1, max_live: int = 10**9) -> Setting:
    return Setting(stage, "none", False, 1, accumulation, ranks, 1000, max_live)


@pytest.mark.parametrize(("stage", "volumes"), [(0, 2), (1, 3), (2, 3), (3, 2)])
def test_what_a_stage_sends_in_a_step(stage, volumes):
    cost = step_cost(MODEL, WORK, setting(stage), CLUSTER)
    assert cost.intra_bytes == pytest.approx(volumes * WEIGHTS * 7 / 8)
    assert cost.inter_bytes == 0


def test_only_zero_2_and_3_send_more_with_accumulation():
    ratios = [
        step_cost(MODEL, WORK, setting(stage, accumulation=4), CLUSTER).intra_bytes
        / step_cost(MODEL, WORK, setting(stage), CLUSTER).intra_bytes
        for stage in range(4)
    ]
    assert ratios == pytest.approx([1, 1, 3, 4])


def test_parameters_that_cannot_stay_are_gathered_in_every_pass():
    kept = step_cost(MODEL, WORK, setting(3), CLUSTER).intra_bytes
    gathered_again = step_cost(MODEL, WORK, setting(3, max_live=1), CLUSTER).intra_bytes
    more = (2 * 4 * MODEL.decoder_parameters + 2 * (MODEL.parameters - MODEL.decoder_parameters)) - MODEL.parameters
    assert gathered_again - kept == pytest.approx(MODEL.width * more * 7 / 8)


def test_one_link_of_each_node_leads_out_of_it():
    cost = step_cost(MODEL, WORK, setting(0, ranks=16), Cluster(nodes=2, gpus=8, gpu_memory=80))
    assert cost.inter_bytes == pytest.approx(2 * WEIGHTS * 15 / 16)
    assert cost.intra_bytes == pytest.approx(cost.inter_bytes * 7 / 8)


def test_one_gpu_sends_nothing_and_waits_for_nobody():
    for stage in range(4):
        cost = step_cost(MODEL, WORK, setting(stage, ranks=1), Cluster(nodes=1, gpus=1, gpu_memory=80))
        assert cost.intra_bytes == cost.inter_bytes == cost.exposed == 0


def test_time_grows_with_passes_and_slow_links_and_falls_with_faster_gpus():
    base = step_cost(MODEL, WORK, setting(0), CLUSTER)
    assert step_cost(MODEL, replace(WORK, latents=6), setting(0), CLUSTER).compute > 1.5 * base.compute
    assert step_cost(MODEL, WORK, setting(0), replace(CLUSTER, intra_node=1)).exposed > 100 * base.exposed
    long = replace(WORK, prompt=10**6)
    slow, fast = (step_cost(MODEL, long, setting(0), replace(CLUSTER, tflops=tflops)).compute for tflops in (1, 10))
    assert slow > 5 * fast


def test_a_latent_column_moves_its_weights_forward_and_backward_and_shares_the_weight_gradients():
    slow_memory = replace(CLUSTER, gpu_bandwidth=1e-3)
    few, many = (
        step_cost(MODEL, replace(WORK, latents=latents), setting(0), slow_memory).compute for latents in (3, 8)
    )
    moved = MODEL.width * MODEL.decoder_layer.copies * MODEL.decoder_layer.parameters
    assert many - few == pytest.approx(5 * 2 * moved / 1e6)
