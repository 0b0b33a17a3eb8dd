import dataclasses
import json

import torch
from homes import make_home
from reference import llava

from multicoco.config import RunConfig, load_config
from multicoco.data.prompt import PromptBuilder
from multicoco.data.sources import load_examples
from multicoco.methods import method_class
from multicoco.models.backbone import load_backbone
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.planning.geometry import geometry_of, read_model_config
from multicoco.planning.workload import Lengths, stage_workloads


def test_measured_lengths_are_those_of_the_longest_rows_that_are_trained(tmp_path):
    coconut = "coconut: {enabled: true, c_thought: 2, max_latent_stage: 2, first_stage: 0}\n"
    home = make_home(tmp_path, 20, 2, f"mode: coconut_train\nnum_epochs: 4\n{coconut}")
    config = load_config(home / "run.yaml")
    records = json.loads((home / "scenes" / config.train_path).read_text())
    image = f"train2017/{records[7].pop('image_id'):012d}.png"
    records[7]["images"] = [image, image, image]
    (home / "scenes" / config.train_path).write_text(json.dumps(records))
    model = geometry_of(read_model_config(config.model_id, False), torch.float32, config.freeze.model_dump())
    workloads, *_ = stage_workloads(config, model, tiles=1, assumed=None)
    assert [work.tiles for work in workloads] == [3, 3]

    backbone = load_backbone(config.model_id)
    add_latent_tokens(backbone)
    prompt = PromptBuilder(backbone.tokenizer, config.answer_format, backbone.family)
    examples = load_examples(home / "scenes" / config.train_path, home / "scenes")
    latent = backbone.latent_tokens
    method = method_class("coconut")(config, latent)
    assert [work.latents for work in workloads] == [0, 4]
    for stage, work in zip((0, 2), workloads, strict=True):
        tokens = [prompt(x, "reasoning", [model.tile_tokens] * len(x.images)) for x in examples]
        rows = [method.train_row(t, stage, 0, x.id)[0] for t, x in zip(tokens, examples, strict=True)]
        if work.latents:
            firsts = [row.index(latent.latent) for row in rows]
            assert work.prompt == max(firsts)
            assert work.written == max(len(r) - first - work.latents for r, first in zip(rows, firsts, strict=True))
        else:
            assert max(map(len, rows)) == work.length


def test_no_example_is_planned_for_that_is_longer_than_is_trained_on(tmp_path):
    coconut = "coconut: {enabled: true, c_thought: 2, max_latent_stage: 2, first_stage: 0}\n"
    home = make_home(tmp_path, 4, 2, f"mode: coconut_train\nnum_epochs: 4\n{coconut}")
    model = geometry_of(
        read_model_config(f"{home}/model", False), torch.float32, load_config(home / "run.yaml").freeze.model_dump()
    )

    def planned(*overrides: str, assumed: Lengths | None = None) -> list[int]:
        config = load_config(home / "run.yaml", overrides)
        return [work.length for work in stage_workloads(config, model, tiles=1, assumed=assumed)[0]]

    first, last = planned()
    assert last < first
    assert planned(f"max_length={first}") == [first, last]
    assert planned(f"max_length={first - 3}") == [first - 3, min(last, first - 3)]
    assert planned("max_length=200", assumed=Lengths(prompt=500)) == [200, 200]


def test_controls_of_one_pass_are_planned_with_one_and_borrowed_thoughts_with_a_donor_for_every_row(tmp_path):
    config = "mode: coconut_train\nnum_epochs: 4\ncoconut: {enabled: true, c_thought: 2, max_latent_stage: 2}\n"
    home = make_home(tmp_path, 4, 2, config)

    def last(thoughts: str):
        config = load_config(home / "run.yaml", f"coconut.thoughts={thoughts}".split())
        model = geometry_of(read_model_config(config.model_id, False), torch.float32, config.freeze.model_dump())
        return stage_workloads(config, model, tiles=1, assumed=None)[0][-1]

    plain = last("hidden")
    assert len(plain.segments) == 5 and plain.rows == 1
    for thoughts in ("pause", "noise"):
        assert len(last(thoughts).segments) == 1 and last(thoughts).rows == 1
    assert len(last("hidden coconut.jacobi_iterations=2").segments) == 3
    assert last("borrowed") == dataclasses.replace(plain, rows=2)
    taught = last("hidden mode=train method=codi coconut.first_stage=null")
    assert taught.rows == 1 and taught.segments[:4] == plain.segments[:4] and len(taught.segments) == 6
    assert taught.segments[-1] >= taught.branch > 0
    assert (taught.shared, taught.columns) == (taught.prompt - 1, taught.length + taught.segments[-1])
    said = last("hidden mode=train method=c_mtp c_mtp.words=90")  # of the stage that has most to say, not of the first
    assert len(said.segments) == 1 and said.said == 4 * 90


def test_an_image_of_a_model_of_no_family_is_one_picture_or_as_many_as_are_asked_for():
    keys = {"name": "x", "model_id": "m", "mode": "train", "method": "cot", "train_path": "t"}
    model = geometry_of(llava().config, torch.float32, {})
    for tiles, prompt in ((None, 10 + 4), (3, 10 + 3 * 4)):
        [work], source, _ = stage_workloads(RunConfig(**keys), model, tiles, Lengths(prompt=10))
        assert (work.tiles, work.prompt) == (tiles or 1, prompt)
        assert ("its processor alone knows" in source) == (tiles is None)
