import dataclasses

import pytest
import torch
from reference import internvl, qwen2

from multicoco.config import RunConfig
from multicoco.config.schema import Lora
from multicoco.methods import method_class
from multicoco.methods.method import Beside
from multicoco.models.backbone import load_backbone
from multicoco.models.lora import add_lora
from multicoco.models.tiny import TINY
from multicoco.planning.cost import Cluster, step_cost
from multicoco.planning.geometry import ModelGeometry, Workload, geometry_of
from multicoco.planning.memory import peak_memory
from multicoco.planning.setting import Setting
from multicoco.registry import load


@pytest.mark.parametrize(
    "name", [name for name in TINY if TINY[name].sees_images and load("families", name).keeps_features]
)
def test_what_is_kept_of_a_tile_is_known_of_every_family(name, tmp_path):
    TINY[name](["red"], tmp_path / "model", 0, hidden_size=32, text_layers=1)
    backbone = load_backbone(str(tmp_path / "model"))
    family, model = backbone.family, backbone.model
    for kept_parts in (("vision_tower",), ("vision_tower", "projector")):
        projected = "projector" in kept_parts
        kept = family.kept(model, family.blank_tiles(1, torch.zeros(())), projected)
        geometry = geometry_of(model.config, torch.float32, {}, kept_parts=kept_parts)
        assert geometry.kept_bytes == sum(tensor.nbytes for tensor in kept.values()) > 0
        assert projected or geometry.trace.projector(2).saved > 0


@pytest.mark.parametrize("build", [qwen2, internvl])  # of which the second one's head is its embeddings
def test_adapters_are_counted_as_peft_adds_them(build):
    model, lora = build(), Lora(rank=4, target_modules=["q_proj", "down_proj"])
    planned = geometry_of(model.config, torch.float32, {}, lora=lora)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    add_lora(model, **lora.model_dump(), new_tokens=range(3))
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    layer = model.get_decoder().layers[0]
    assert planned.decoder_layer.trainable == sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert planned.decoder_layer.largest == max(p.numel() for p in layer.parameters() if p.requires_grad)
    assert planned.is_tied == tied


def reading(sim_cot: dict | None, lora: int | None = None) -> ModelGeometry:
    """An InternVL whose thoughts a decoder reads, or nothing does."""
    keys = {"name": "x", "model_id": "m", "mode": "train", "train_path": "t", "num_epochs": 3, "lora": {"rank": lora}}
    own = {"method": "coconut"} if sim_cot is None else {"method": "sim_cot", "sim_cot": sim_cot}
    config = RunConfig(**keys, **own, coconut={"enabled": True})
    method = method_class(config.trained_method)(config)
    return geometry_of(internvl().config, torch.float32, {}, method.objective, lora=config.lora)


@pytest.mark.parametrize(
    ("name", "keys", "own"),
    [
        ("coconut", {"projection": "mlp", "norm": "embedding"}, 2 * (32 * 32 + 32) + 2 * 32),
        ("c_mtp", {}, 33 * 32 + 33 * 8 * 32),
    ],
)
def test_what_makes_thoughts_of_hidden_states_is_counted(name, keys, own):
    config = {"name": "x", "model_id": "m", "mode": "train", "method": name, "train_path": "t", "num_epochs": 3}
    method = method_class(name)(RunConfig(**config, coconut={"enabled": True, **keys}))
    plain = geometry_of(internvl().config, torch.float32, {})
    planned = geometry_of(internvl().config, torch.float32, {}, method.objective, projection=method.projection)
    for count in ("parameters", "called_parameters", "trainable", "saved_parameters"):
        assert getattr(planned, count) == getattr(plain, count) + own


def test_a_decoder_that_reads_thoughts_is_counted():
    model = internvl()
    read = sum(p.numel() for part in (model.get_decoder(), model.lm_head) for p in part.parameters())
    read -= model.lm_head.weight.numel()  # tied
    linear = [layer for layer in model.get_decoder().modules() if isinstance(layer, torch.nn.Linear)]
    adapters = sum(3 * (layer.in_features + layer.out_features) for layer in linear)
    left_out = sum(p.numel() for layer in model.get_decoder().layers[1:] for p in layer.parameters())
    own = {"decoder": "adapters", "decoder_rank": 3}
    cases = {  # numbers that it has, and that are trained
        None: ({"decoder": "copy"}, read, read),
        "frozen": ({"freeze_decoder": True}, read, 0),
        "smaller": ({"decoder_layers": 1}, read - left_out, read - left_out),
        "itself": ({"decoder": "self"}, 0, 0),
        "adapters": (own, adapters, adapters),
    }
    for lora in (None, 2):
        alone = reading(None, lora)
        for keys, parameters, trained in cases.values():
            geometry = reading(keys, lora)
            assert geometry.parameters == geometry.called_parameters == alone.parameters + parameters
            assert geometry.trainable == alone.trainable + trained
            assert geometry.saved_parameters == alone.saved_parameters == alone.parameters
            assert alone.reader is None and geometry.reader.layer.copies == keys.get("decoder_layers", 3)
            assert geometry.reader.shares == (
                keys.get("decoder") in ("self", "adapters") and not (lora and keys == own)
            )


def test_what_a_decoder_runs_takes_memory_and_time():
    work, beside, cluster = Workload(tiles=1, prompt=30, latents=2, written=8), Beside(2, 1, 12), Cluster(1, 2, 80)
    itself, copy = reading({"decoder": "self"}), reading({})
    rows, columns = 2 * 2 + 1, 13
    for stage in (0, 2, 3):
        setting, more = Setting(stage, "none", False, 2, 1, 2, 1000, 10**9), dataclasses.replace(work, beside=beside)
        without, own, other = (peak_memory(*of, setting) for of in ((itself, work), (itself, more), (copy, more)))
        for part in ("KV cache", "activations"):
            assert without.parts[part] < own.parts[part] == other.parts[part]
        assert own.parts["KV cache"] - without.parts["KV cache"] == rows * columns * copy.cache_numbers * 2 * 8
        assert without.peak < own.peak < other.peak
        seconds = [step_cost(*of, setting, cluster).compute for of in ((itself, work), (itself, more), (copy, more))]
        assert seconds[0] < seconds[1] == seconds[2]
