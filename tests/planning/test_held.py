from dataclasses import replace

import pytest
import torch
from planned import NOTHING, PLAIN, WORK, model
from reference import qwen2

from multicoco.planning.geometry import geometry_of
from multicoco.planning.held import PARTS
from multicoco.planning.memory import peak_memory


@pytest.mark.parametrize("stage", range(4))
def test_a_part_is_never_less_than_at_the_peak(stage):
    memory = peak_memory(model(torch.bfloat16), WORK, replace(PLAIN, stage=stage, ranks=2))
    at_peak = {part: sum(memory.device.get(kind, 0) for kind in kinds) for part, kinds in PARTS.items()}
    assert all(0 < memory.parts[part] >= at_peak[part] for part in PARTS)
    assert sum(at_peak.values()) + memory.device["inputs"] == memory.peak


@pytest.mark.parametrize(("checkpointing", "latents", "whole"), [(False, 3, True), (True, 3, False), (False, 0, False)])
def test_zero_3_lets_go_of_layers_in_backward_but_after_several_passes(checkpointing, latents, whole):
    geometry = model()
    live = geometry.decoder_parameters // 4
    setting = replace(PLAIN, stage=3, ranks=2, max_live=live, checkpointing=checkpointing)
    gathered = peak_memory(geometry, replace(WORK, latents=latents), setting).parts["parameters"]
    shard = geometry.width * -(-geometry.parameters // 2)
    assert gathered - shard == geometry.width * (geometry.decoder_parameters if whole else live)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_larger_than_the_bucket_waits_for_the_next(stage):
    config = qwen2().config
    config.tie_word_embeddings, config.vocab_size = False, 1000
    geometry, work = geometry_of(config, torch.float32, NOTHING), replace(WORK, tiles=0)
    head = geometry.head.largest
    settings = [replace(PLAIN, stage=stage, ranks=2, reduce_bucket=bucket) for bucket in (head, head - 1)]
    fits, waits = (peak_memory(geometry, work, setting).parts["gradients"] for setting in settings)
    assert waits > fits
