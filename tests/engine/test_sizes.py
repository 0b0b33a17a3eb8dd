import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from multicoco.config import RunConfig
from multicoco.curriculum import LatentTokens
from multicoco.data.collate import Collator, Row
from multicoco.data.example import Example
from multicoco.engine.assembly import encoder_of
from multicoco.engine.sizes import ExampleSizes, measure_sizes
from multicoco.errors import UserError
from multicoco.methods import method_class
from multicoco.models.reader import load_reader
from multicoco.models.tiny import TINY

KEYS = {"num_epochs": 4, "name": "run", "model_id": "none", "train_path": "t.json"}


@pytest.fixture(scope="module", params=[name for name in TINY if TINY[name].sees_images])
def reader(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    TINY[request.param](["red blue one two"], folder, 0, hidden_size=32, text_layers=1)
    return load_reader(str(folder), max_image_tiles=6)


@pytest.mark.parametrize("size", [(84, 84), (500, 90), (90, 500), (168, 252), (1000, 700)])
def test_an_image_has_the_tokens_that_its_size_tells(reader, tmp_path, size):
    """And a photograph that lies on its side those of its size upright."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.jpg", exif=exif)
    encoder = encoder_of(RunConfig(mode="cot_train", **KEYS), reader, "2026-11-25")
    example = Example("0", "red", (tmp_path / "a.png", tmp_path / "b.jpg"), (), (), "blue", None)
    assert encoder.tokens(example, "reasoning") == encoder(example, "reasoning")[0]


def test_a_batch_is_as_wide_as_sizes_tell_in_every_stage(reader, tmp_path):
    examples = []
    for i in range(4):
        Image.new("RGB", (84 * (1 + i % 2), 84 + 90 * i)).save(tmp_path / f"{i}.png")
        steps = tuple(["one", "two", "one"][: i % 4])
        examples.append(Example(str(i), "red " * (i + 1), (tmp_path / f"{i}.png",), (), steps, "blue", None))
    config = RunConfig(mode="coconut_train", coconut={"enabled": True, "max_latent_stage": 2, "first_stage": 0}, **KEYS)
    encoder = encoder_of(config, reader, "2026-11-25")
    method = method_class("coconut")(config, LatentTokens(9001, 9002, 9003))
    sizes = measure_sizes(examples, encoder, method.asked)
    for stage in range(4):
        rows = [Row(*method.train_row(encoder(e, method.asked)[0], stage, 0, e.id), i) for i, e in enumerate(examples)]
        columns = Collator(0, 9002, lambda inputs: {})(rows)["input_ids"].shape[1]
        assert columns <= sizes.at(method, stage).max(0).sum() <= columns + 4  # examples with fewer thoughts
    assert torch.tensor(sizes.at(method, 0))[:, 1].eq(0).all()


def test_an_image_that_cannot_be_read_is_named(reader, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    examples = [Example("0", "red", (tmp_path / "bad.png",), (), (), "blue", None)]
    config = RunConfig(mode="cot_train", **KEYS)
    with pytest.raises(UserError, match=r"bad\.png: cannot be read"):
        measure_sizes(examples, encoder_of(config, reader, "2026-11-25"), "reasoning")


@given(st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=5), max_size=9), st.integers(1, 4))
def test_shares_are_dealt_as_ranks_measure_them(examples, n_ranks):
    together = ExampleSizes.dealt([ExampleSizes.of(examples[rank::n_ranks]) for rank in range(n_ranks)])
    assert [[len(e.prompt), *map(len, e.steps), len(e.answer)] for e in together] == examples


def test_lengths_are_measured_once(tmp_path):
    TINY["text"](["red blue one two"], tmp_path / "model", 0, hidden_size=32, text_layers=1)
    config = RunConfig(mode="cot_train", **KEYS)
    encoder = encoder_of(config, load_reader(str(tmp_path / "model")), "2026-11-25")
    examples = [Example(str(i), "red " * i, (), (), ("one",) * i, "blue", None) for i in range(4)]
    method, file = method_class("cot")(config), tmp_path / "lengths"
    measured = measure_sizes(examples, encoder, method.asked, remembered=file).at(method, 0)
    assert (measure_sizes(examples, None, method.asked, remembered=file).at(method, 0) == measured).all()
    file.write_bytes(file.read_bytes()[:-4])  # not whole: measured again
    assert (measure_sizes(examples, encoder, method.asked, remembered=file).at(method, 0) == measured).all()
    assert measured[:, 0].tolist() == sorted(measured[:, 0].tolist())
    assert len(measure_sizes(examples[1:], encoder, method.asked, remembered=file).n_parts) == 3
