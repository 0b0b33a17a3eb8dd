from dataclasses import replace

import pytest
import torch
from planned import PLAIN, WORK, model

from multicoco.planning.geometry import ModelGeometry
from multicoco.planning.memory import peak_memory
from multicoco.planning.resident import LIBRARIES, HostMemory, host_memory

SETTING = replace(PLAIN, stage=2, ranks=2)


def host(geometry: ModelGeometry, asynchronous: bool = True, **changes) -> HostMemory:
    setting = replace(SETTING, **changes)
    return host_memory(geometry, setting, peak_memory(geometry, WORK, setting), asynchronous)


@pytest.mark.parametrize("stage", range(4))
def test_rank_0_copies_the_weights_and_every_rank_its_share_of_the_optimizer(stage):
    geometry = model(torch.bfloat16)
    share = 12 * (geometry.trainable if stage == 0 else -(-geometry.trainable // 2))
    copies = host(geometry, stage=stage)
    assert copies.copied == (1 if stage == 3 else 2) * 2 * geometry.parameters + share
    assert copies.copied_by_others == (share if stage else 0)


def test_the_copy_of_a_share_is_smaller_the_more_ranks_there_are():
    geometry = model()
    copies = [host(geometry, ranks=ranks).copied_by_others for ranks in (1, 4)]
    assert copies[0] == pytest.approx(4 * copies[1], rel=1e-3)


def test_without_an_asynchronous_save_only_rank_0_holds_anything_and_only_the_weights():
    geometry = model()
    assert host(geometry, asynchronous=False) == HostMemory(0, 4 * geometry.parameters, 0)


def test_frozen_parts_are_copied_as_weights_alone():
    trained, frozen = model(), model(vision_tower=True)
    saved = host(trained, ranks=1).copied - host(frozen, ranks=1).copied
    assert saved == 12 * (trained.trainable - frozen.trainable) > 0


def test_a_node_holds_what_all_of_its_ranks_do():
    memory = host(model(), stage=3, offload="all")
    others = LIBRARIES + memory.offloaded + memory.copied_by_others
    assert memory.offloaded > 0 and memory.rank_0 > others
    assert memory.node(1) == memory.rank_0 and memory.node(4) == memory.rank_0 + 3 * others
