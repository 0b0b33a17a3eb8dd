"""What is planned of a run's data is what its own code takes of it."""

import ctypes
import gc
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from homes import make_home
from starting import resident

from multicoco.config import load_config
from multicoco.data.collate import Collator
from multicoco.data.features import FEATURES, FeatureStore
from multicoco.data.kept import KeptExamples, KeptRecords, keep
from multicoco.data.loader import RankBatches, ReasoningDataset, make_loader
from multicoco.data.order import grouped, shuffled
from multicoco.data.sources import load_examples, load_of_run
from multicoco.engine import keeping
from multicoco.engine.assembly import encoder_of, prompt_date
from multicoco.engine.records import lengths_file, load_training_records
from multicoco.engine.sizes import ExampleSizes, measure_sizes
from multicoco.methods import method_class
from multicoco.models.backbone import load_backbone
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.planning.data import held_each, image_bytes, paddings, places_each, step_bytes
from multicoco.planning.geometry import Workload, geometry_of
from multicoco.planning.sample import Sample, look_at
from multicoco.planning.setting import Setting

COCONUT = "mode: coconut_train\nnum_epochs: 2\nbatch_size: 4\ncoconut: {enabled: true, max_latent_stage: 1}\n"
ASKED = "reasoning"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("home"), 64, 2, COCONUT)
    path = home / "scenes" / "aokvqa_v1p0_train.json"
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        record["question"] += " red" * (number % 13)
    path.write_text(json.dumps(records))
    return home


def chosen(micro_batch: int) -> SimpleNamespace:
    """Of one rank, as far as it matters here."""
    return SimpleNamespace(setting=Setting(2, "none", False, micro_batch, 1, 1, 10**9, 10**9))


def sample_of(config) -> Sample:
    model = geometry_of(load_backbone(config.model_id).model.config, torch.float32, {})
    return look_at(config, model, 1, ASKED)


def test_a_rank_holds_the_places_of_millions_of_records(home, tmp_path):
    config, n = load_config(home / "run.yaml"), 5_000_000  # so that what is freed goes back to the system at once
    sample, [example] = sample_of(config), load_of_run(config, config.train_path, 1)
    keep(tmp_path / "one.examples", [("it", example)])
    content, [place, _] = (tmp_path / "one.examples").read_bytes(), np.load(tmp_path / "one.npy")
    places = np.repeat(place, n + 1)
    places["start"] = len(content) * np.arange(n + 1)
    np.save(tmp_path / "many.npy", places)
    del places
    (tmp_path / "many.examples").touch()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed goes now, not while this one measures
    before = resident()
    examples = KeptExamples(KeptRecords(tmp_path / "many.examples"), np.arange(n))
    batches = RankBatches(n, 4, 0, 1, order=shuffled(n, "0/0"))
    first, _ = batches[0][0]
    with (tmp_path / "many.examples").open("wb") as file:  # of all, the one that is read
        file.seek(len(content) * first)
        file.write(content)
    assert examples[first] == example
    gc.collect()
    assert 2**20 * (resident() - before) == pytest.approx(n * places_each(config, sample), rel=0.1)


def test_grouping_by_length_holds_lengths_too(home, tmp_path):
    config, n = load_config(home / "run.yaml", ["group_by_length=true"]), 20_000
    sample, method = sample_of(config), method_class("coconut")(config)
    parts = int(sample.sizes.n_parts[0])
    fixed = Sample(sample.examples, sample.tokens, ExampleSizes.of([[1] * parts]), n, 1)
    tracemalloc.start()
    places, sizes = np.arange(n), ExampleSizes(np.full(n, parts, np.int32), np.ones(n * parts, np.int32))
    order = grouped(sizes.at(method, 1), "0/0", 8)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(places) == len(order) and held == pytest.approx(n * places_each(config, fixed), rel=0.03)


def test_few_records_are_held_themselves(home):
    config = load_config(home / "run.yaml")
    sample, path = sample_of(config), home / "scenes" / config.train_path
    load_examples(path, home / "scenes")  # what is loaded with it, once
    tracemalloc.start()
    examples = load_examples(path, home / "scenes")
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample.records == len(examples) == 64
    assert len(examples) * held_each(config, sample) == pytest.approx(held, rel=0.25)


def test_features_take_of_the_disk_and_of_a_step_what_is_planned(home, tmp_path):
    config = load_config(home / "run.yaml", ["freeze.vision_tower=true", "freeze.projector=true", "features=cache"])
    backbone = load_backbone(config.model_id)
    family, model = backbone.family, backbone.model
    geometry = geometry_of(model.config, torch.float32, {}, kept_parts=("vision_tower", "projector"))
    with torch.no_grad():
        kept = family.kept(model, family.blank_tiles(1, torch.zeros(())), projected=True)
    images = {f"{i:040x}": {name: tensor.clone() for name, tensor in kept.items()} for i in range(50)}
    FeatureStore(tmp_path, family.names_kept(True)).write(images, {key: [geometry.tile_tokens] for key in images})
    [file] = tmp_path.glob("*.safetensors")
    assert file.stat().st_size == pytest.approx(50 * image_bytes(geometry, 1), rel=0.1)
    work = Workload(tiles=1, prompt=30, latents=2, written=8)
    assert step_bytes(geometry, work, chosen(4)) == family.batch([kept] * 4)[FEATURES].nbytes


def test_planned_padding_is_that_of_the_batches(home):
    config = load_config(home / "run.yaml")
    backbone = load_backbone(config.model_id)
    add_latent_tokens(backbone)
    method, encoder = (
        method_class("coconut")(config, backbone.latent_tokens),
        encoder_of(config, backbone, "2026-11-25"),
    )
    examples = load_of_run(config, config.train_path, None)
    dataset = ReasoningDataset(examples, encoder, ASKED, lambda example, tokens: method.train_row(tokens, 1, 0, ""))
    collator = Collator(backbone.tokenizer.pad_token_id, backbone.latent_tokens.latent, backbone.family.batch)
    sizes = measure_sizes(examples, encoder, ASKED).at(method, 1)
    planned = paddings(sample_of(config), method, chosen(4))
    for order, share in zip((shuffled(64, "0/0"), grouped(sizes, "0/0", 4)), planned, strict=True):
        masks = [x["attention_mask"] for x in make_loader(dataset, RankBatches(64, 4, 0, 1, order=order), collator, 0)]
        padding = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        assert padding == pytest.approx(share, abs=0.05)
    assert planned[1] < planned[0]


def test_lengths_that_a_start_has_remembered_are_those_of_all(home, monkeypatch):
    monkeypatch.setattr(keeping, "KEPT_FROM", 10)
    config = load_config(home / "run.yaml", [f"output_dir={home}/remembering"])
    monkeypatch.setattr("multicoco.planning.sample.MEASURED_EXAMPLES", 5)
    assert len(sample_of(config).sizes.n_parts) == 5
    backbone = load_backbone(config.model_id)
    add_latent_tokens(backbone)
    examples, date = load_training_records(config), prompt_date(config)
    file = lengths_file(config, examples, "parts", date, ASKED, len(backbone.tokenizer))
    measure_sizes(examples, encoder_of(config, backbone, date), ASKED, 0, file)
    sample = sample_of(config)
    assert (sample.records, len(sample.sizes.n_parts), len(sample.examples)) == (64, 64, 5)
