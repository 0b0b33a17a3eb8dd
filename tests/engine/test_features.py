"""Features that are kept against features that are computed: the same bits, whatever is in a batch."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from homes import make_home
from PIL import Image
from runs import losses, signalled_at

from multicoco.config import RunConfig
from multicoco.curriculum import layout
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.features import FEATURES
from multicoco.data.loader import Encoder, ReasoningDataset
from multicoco.data.verified import VerifiedImages
from multicoco.engine.assembly import encoder_of
from multicoco.engine.features import Features
from multicoco.engine.features_ahead import keep_ahead
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import Backbone, load_backbone
from multicoco.models.tiny import TINY
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.registry import load
from multicoco.tasks.scenes import render_scenes

FAMILIES = [name for name in TINY if TINY[name].sees_images and load("families", name).keeps_features]


def config_of(folder: Path, **keys) -> RunConfig:
    frozen = {"vision_tower": True, "projector": not keys.pop("trains_projector", False)}
    given = {"mode": "cot_train", "name": "run", "train_path": "t.json", "features": "cache", "num_workers": 0}
    return RunConfig(**given | {"model_id": str(folder / "model"), "output_dir": str(folder), "freeze": frozen} | keys)


def pictures(folder: Path, n: int = 5) -> list[Example]:
    """Of different sizes; one without an image, one with two."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(n):
        paths.append(folder / f"{i}.png")
        pixels = random.integers(0, 255, (84 + 28 * (i % 2), 84 + 28 * (i % 3), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    examples = [Example(str(i), "red", (path,), (), ("blue",), "red", None) for i, path in enumerate(paths)]
    return [
        *examples,
        Example("none", "red", (), (), ("blue",), "red", None),
        Example("two", "red", tuple(paths[:2]), (), (), "red", None),
    ]


class Setting:
    """A model with what reads examples for it, with features kept or without."""

    def __init__(self, folder: Path, backbone: Backbone, **keys):
        self.config = config_of(folder, **keys)
        self.backbone = backbone
        self.reasoner = LatentReasoner(backbone.model, None)
        self.encoder: Encoder = encoder_of(self.config, backbone, "2026-11-25")
        self.features = Features(self.config, backbone, self.reasoner, self.encoder)

    def loss(self, examples: list[Example], places: list[int]) -> list[torch.Tensor]:
        """And the gradients of the embeddings and of the projector, as far as it trains."""
        dataset = ReasoningDataset(examples, self.encoder, "reasoning", lambda _, tokens: layout(tokens, 0, ()))
        collate = Collator(self.backbone.tokenizer.pad_token_id, None, self.backbone.family.batch)
        batch = collate([dataset[place, True] for place in places])
        tensors = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        projector = self.backbone.family.part(self.backbone.model, "projector").parameters()
        looked_at = [self.backbone.model.get_input_embeddings().weight, *(p for p in projector if p.requires_grad)]
        loss = self.reasoner(**tensors, **batch["inputs"]).loss
        return [loss.detach(), *torch.autograd.grad(loss, looked_at)]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tmp_path_factory) -> tuple[Path, Backbone]:
    folder = tmp_path_factory.mktemp(request.param)
    TINY[request.param](["red blue"], folder / "model", 0, hidden_size=32, text_layers=2)
    backbone = load_backbone(str(folder / "model"), max_image_tiles=4)
    for part in ("vision_tower", "projector"):
        backbone.family.part(backbone.model, part).requires_grad_(False)
    return folder, backbone


@pytest.mark.parametrize("trains_projector", [False, True])
def test_loss_and_gradients_are_the_same_bits_whatever_is_in_a_batch(
    tiny, trains_projector, tmp_path, one_thread, monkeypatch
):
    folder, backbone = tiny
    projector = backbone.family.part(backbone.model, "projector").requires_grad_(trains_projector)
    examples = pictures(tmp_path)
    batches = [[0, 1, 2], [2, 5], [5], [6, 3, 0, 5], [4]]
    keys = {"output_dir": str(tmp_path), "trains_projector": trains_projector}
    kept = Setting(folder, backbone, **keys)
    kept.features.keep(examples[:3])
    kept.features.keep(examples)
    if trains_projector:  # what is kept is none of its weights'
        with torch.no_grad():
            for parameter in projector.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
    plain = Setting(folder, backbone, **keys)
    wanted = [plain.loss(examples, places) for places in batches]
    again = Setting(folder, backbone, **keys)
    called = []
    monkeypatch.setattr(type(backbone.family), "all_features", lambda *_: called.append(1))
    again.features.keep(examples)  # all is there
    for setting in (kept, again):
        for places, of_plain in zip(batches, wanted, strict=True):
            found = setting.loss(examples, places)
            assert all(torch.equal(one, other) for one, other in zip(found, of_plain, strict=True))
    assert not called and (len(wanted[0]) > 2) == trains_projector


@pytest.fixture(scope="module")
def internvl(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("internvl")
    TINY["internvl"](["red blue"], folder / "model", 0, hidden_size=32, text_layers=1)
    return folder


def computed(setting: Setting, examples: list[Example]) -> int:
    """How many images are encoded to keep these."""
    calls = []
    family = setting.backbone.family
    encode = family.all_features
    setting.backbone.family.__dict__["all_features"] = lambda *args: calls.append(1) or encode(*args)
    setting.features.keep(examples)
    del setting.backbone.family.__dict__["all_features"]
    return len(calls)


def test_a_changed_file_weight_or_tile_limit_is_a_miss_and_new_words_are_none(internvl, tmp_path):
    examples = pictures(tmp_path)
    backbone = load_backbone(str(internvl / "model"), max_image_tiles=4)
    keys = {"output_dir": str(tmp_path)}
    assert computed(Setting(internvl, backbone, **keys), examples) == 6
    add_latent_tokens(backbone)
    assert computed(Setting(internvl, backbone, **keys), examples) == 0
    setting = Setting(internvl, backbone, **keys)
    setting.features.keep(examples)
    Image.new("RGB", (90, 60), "red").save(tmp_path / "3.png")
    assert computed(Setting(internvl, backbone, **keys), examples) == 1
    with pytest.raises(UserError, match=r"3\.png: changed since the run began"):
        setting.encoder.images(examples[3])
    fewer = load_backbone(str(internvl / "model"), max_image_tiles=3)
    assert computed(Setting(internvl, fewer, **keys), examples) == 6
    with torch.no_grad():
        next(backbone.family.part(backbone.model, "projector").parameters()).view(-1)[0] += 1e-6
    assert computed(Setting(internvl, backbone, **keys), examples) == 6
    half = load_backbone(str(internvl / "model"), torch.bfloat16, max_image_tiles=4)
    assert computed(Setting(internvl, half, **keys), examples) == 6
    assert half.model.dtype == torch.bfloat16 and len(list((tmp_path / "features").iterdir())) == 4


def test_a_second_start_reads_no_image_and_no_step_does(internvl, tmp_path, monkeypatch):
    examples = pictures(tmp_path)
    backbone = load_backbone(str(internvl / "model"), max_image_tiles=4)
    keys = {"output_dir": str(tmp_path)}
    read, opened, read_bytes = [], Image.open, Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    monkeypatch.setattr(Image, "open", lambda file, **how: read.append(str(file)) or opened(file, **how))

    def start() -> set[str]:
        read.clear()
        setting = Setting(internvl, backbone, **keys)
        setting.features.keep(examples)
        for example in examples:
            setting.encoder.images(example)
        return set(read)

    assert start() >= {f"{i}.png" for i in range(5)}
    assert not start()
    os.utime(tmp_path / "2.png", ns=(1, 1))
    assert start() == {"2.png"} and not start()
    Image.new("RGB", (90, 60), "red").save(tmp_path / "3.png")
    assert "3.png" in start() and not start()


def test_an_image_that_cannot_be_decoded_is_not_taken_for_one_that_was(internvl, tmp_path):
    backbone = load_backbone(str(internvl / "model"), max_image_tiles=4)
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    setting = Setting(internvl, backbone, output_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"bad\.png"):
        setting.features.keep([Example("0", "red", (path,), (), ("blue",), "red", None)])
    with pytest.raises(UserError, match=r"bad\.png"):
        VerifiedImages(setting.features.verified.path).verify(path)


def test_where_no_more_can_be_written_images_are_encoded_as_ever(internvl, tmp_path, monkeypatch, capsys):
    examples = pictures(tmp_path)
    backbone = load_backbone(str(internvl / "model"), max_image_tiles=4)
    setting = Setting(internvl, backbone, output_dir=str(tmp_path))
    setting.features.keep(examples[:2])
    assert FEATURES in setting.encoder.images(examples[0]).tensors
    monkeypatch.setattr("multicoco.data.features.save_file", _fail)
    setting.features.keep(examples)
    assert "No space left" in capsys.readouterr().out
    assert all("pixel_values" in setting.encoder.images(example).tensors for example in examples[:5])
    monkeypatch.undo()
    assert computed(Setting(internvl, backbone, output_dir=str(tmp_path)), examples) == 4


def _fail(tensors: dict, path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_an_unreadable_image_and_a_model_without_images_are_errors(internvl, tmp_path):
    backbone = load_backbone(str(internvl / "model"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = Example("bad", "red", (tmp_path / "bad.png",), (), (), "red", None)
    with pytest.raises(UserError, match=r"bad\.png: cannot be read"):
        Setting(internvl, backbone, output_dir=str(tmp_path)).features.keep([bad])
    TINY["text"](["red blue"], tmp_path / "text", 0, hidden_size=32, text_layers=1)
    with pytest.raises(UserError, match="of a qwen2 model no features of images are kept"):
        Setting(internvl, load_backbone(str(tmp_path / "text")))


def test_a_folder_that_can_only_be_read_is_read(internvl, tmp_path, monkeypatch, capsys):
    examples = pictures(tmp_path)
    backbone = load_backbone(str(internvl / "model"), max_image_tiles=4)
    keys = {"output_dir": str(tmp_path)}
    Setting(internvl, backbone, **keys).features.keep(examples[:3])
    [folder] = (tmp_path / "features").iterdir()
    (folder / "about.json").unlink()
    monkeypatch.setattr("multicoco.engine.features.write_json", _refuse)
    monkeypatch.setattr("multicoco.data.features.save_file", _refuse)
    setting = Setting(internvl, backbone, **keys)
    assert computed(setting, examples[:3]) == 0 and not setting.features.gave_up
    assert FEATURES in setting.encoder.images(examples[0]).tensors
    setting.features.keep(examples)  # of some nothing is kept
    assert (
        "Read-only file system" in capsys.readouterr().out
        and "pixel_values" in setting.encoder.images(examples[0]).tensors
    )


def _refuse(*_: object) -> None:
    raise OSError(30, "Read-only file system")


def test_what_a_killed_run_has_left_half_written_goes_at_the_next_start(internvl, tmp_path):
    examples = pictures(tmp_path)
    backbone = load_backbone(str(internvl / "model"), max_image_tiles=4)
    Setting(internvl, backbone, output_dir=str(tmp_path)).features.keep(examples[:1])
    [folder] = (tmp_path / "features").iterdir()
    left = folder / ".0123.unfinished"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert computed(Setting(internvl, backbone, output_dir=str(tmp_path)), examples[:2]) == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_ahead_of_a_run_a_full_disk_is_an_error_that_loses_nothing(internvl, tmp_path, monkeypatch):
    render_scenes(tmp_path / "scenes", 3, 2, 1, kinds=("tile",))
    keys = {"output_dir": str(tmp_path), "data_dir": str(tmp_path / "scenes"), "train_path": "aokvqa_v1p0_train.json"}
    config = config_of(internvl, answer_format="text", **keys)
    alone = SimpleNamespace(device=torch.device("cpu"), watched=nullcontext)
    monkeypatch.setattr("multicoco.engine.features_ahead.ProcessGroup", lambda seconds: alone)
    with monkeypatch.context() as full, pytest.raises(UserError, match="not all features could be kept"):
        full.setattr("multicoco.data.features.save_file", _fail)
        keep_ahead(config)
    assert "features of the images of 3 examples" in keep_ahead(config)


@pytest.mark.distributed
def test_features_are_kept_ahead_of_the_run(internvl, tmp_path, run_server):
    render_scenes(tmp_path / "scenes", 3, 2, 1, kinds=("tile",))
    keys = {"output_dir": str(tmp_path), "data_dir": str(tmp_path / "scenes"), "val_path": "aokvqa_v1p0_val.json"}
    config = config_of(internvl, train_path="aokvqa_v1p0_train.json", answer_format="text", **keys)
    with pytest.raises(UserError, match="features is null"):
        keep_ahead(config.model_copy(update={"features": None}))
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    command = "from multicoco import cli, process; process.end_process(cli.main(['features', 'run.yaml']))"
    ended = run_server.run(tmp_path / "run.yaml", patch=command)  # it makes a process group
    assert ended.codes == [0] and "features of the images of 5 examples" in ended.said[0], ended.said
    [folder] = (tmp_path / "features").iterdir()
    assert json.loads((folder / "about.json").read_text())["family"] == "InternVL"


COUNTED = "import sys, pathlib; sys.path += {path}; import gathers; gathers.count_into(pathlib.Path('{out}'))"


@pytest.mark.distributed
@pytest.mark.parametrize(("family", "trains_projector"), [("internvl", False), ("llava_onevision", True)])
def test_a_run_on_two_ranks_even_an_interrupted_one_is_the_run_without_and_leaves_the_tower_alone(
    run_server, tmp_path, family, trains_projector
):
    """Under ZeRO-3, the weights of what is not called are gathered no more."""
    home = make_home(
        tmp_path,
        13,
        2,
        f"""mode: coconut_train
num_epochs: 2
eval_every_epochs: 2
batch_size: 2
freeze: {{vision_tower: true, projector: {str(not trains_projector).lower()}}}
generation: {{max_new_tokens: 3}}
coconut: {{enabled: true, max_latent_stage: 1, first_stage: 1}}
""",
        family,
    )
    path = home / "scenes" / "aokvqa_v1p0_train.json"
    records = json.loads(path.read_text())
    records[::3] = [{"question": "red", "steps": ["one"], "answer": "red"} for _ in records[::3]]
    path.write_text(json.dumps(records))
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 10**9}
    (home / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))

    def run(name: str, code: int, patch: str, *settings: str) -> None:
        given = (f"name={name}", f"deepspeed={home}/zero3.json", *settings)
        ended = run_server.run(home / "run.yaml", *given, ranks=2, patch=patch)
        assert ended.codes == [code] * 2, ended.said

    counts = {}
    for name, settings in (("plain", ()), ("kept", ("features=cache",))):
        counting = COUNTED.format(path=[str(Path(__file__).parent), *sys.path], out=home / f"{name}.counts")
        if settings and trains_projector:
            run(name, 143, signalled_at(2), *settings)
        run(name, 0, counting, *settings)
        counts[name] = json.loads((home / f"{name}.counts").read_text())
    found = {name: losses(home / "runs" / name) for name in counts}
    assert found["kept"] == found["plain"] and len(found["plain"]) >= 8
    samples = {name: sorted((home / "runs" / name / "samples").iterdir())[-1].read_text() for name in counts}
    assert samples["kept"] == samples["plain"]
    model = load_backbone(str(home / "model"))
    parts = [part for part in model.family.parts if part != "projector" or not trains_projector]
    seen = [p.numel() for name in parts for p in model.family.part(model.model, name).parameters()]
    share = 1 - sum(seen) / sum(p.numel() for p in model.model.parameters())
    last = {name: counted["steps"][-1]["bytes"] / counted["model_bytes"] for name, counted in counts.items()}
    assert last["plain"] > 0.99 and last["kept"] < share + 0.1 < 0.8
