"""Hundreds of bad inputs: each is a UserError that names its file or key, at once, and nothing on disk changes."""

import copy
import hashlib
import io
import json
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from multicoco.cli import main as command_line
from multicoco.config import RunConfig, Section, load_config
from multicoco.data.sources import load_examples
from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.errors import UserError

GOOD_CONFIG = {
    "mode": "cot_train",
    "name": "run",
    "model_id": "model",
    "train_path": "train.json",
    "eval_config": {"cot": True},
    "val_path": "val.json",
}
GOOD_DS_CONFIG = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto"}
SECONDS = 30  # far above any of them, on a busy machine too; a hang is minutes
counted: set[str] = set()


@pytest.fixture
def folder(tmp_path) -> Path:
    Image.effect_noise((64, 48), 50).convert("RGB").save(tmp_path / "7.png")
    Image.effect_noise((64, 48), 50).convert("RGB").save(tmp_path / "8.jpg")
    return tmp_path


def record(image: str = "7.png", **changes) -> dict:
    question = "What is it? The choices are 0 : a cat, 1 : a dog"
    return {"image": image, "question": question, "steps": ["It barks."], "answer": "1"} | changes


def tree(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, label: str, call: Callable[[], object], *named: str, may_pass: bool = False) -> None:
    """The call must end in a UserError that says all of `named`, or, where the damage may be harmless, pass."""
    before, started = tree(folder), time.monotonic()
    try:
        call()
        assert may_pass, f"{label}: accepted"
    except UserError as error:
        for part in named:
            assert part in str(error), f"{label}: {error} does not name {part}"
        assert len(str(error)) < 3000, f"{label}: a page of a message"
    assert time.monotonic() - started < SECONDS, label
    assert tree(folder) == before, label
    assert label not in counted, label
    counted.add(label)


def config_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        keys += config_keys(inner, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return keys


@pytest.mark.parametrize("value", [{"a": [1]}, [[None]]], ids=["mapping", "nested list"])
def test_no_key_takes_a_value_of_any_shape(folder, value):
    path = folder / "run.yaml"
    for key in config_keys(RunConfig):
        content = copy.deepcopy(GOOD_CONFIG)
        *sections, leaf = key.split(".")
        place = content
        for part in sections:
            place = place.setdefault(part, {})
        place[leaf] = value
        path.write_text(yaml.safe_dump(content))
        refused(folder, f"config {key} {value}", lambda: load_config(path), str(path), key)


@pytest.mark.parametrize("text", ["", "x: [", "[1, 2]", "- a", "7", "'text'", "\t- :", "a: b: c", "mode: *none"])
def test_a_config_that_is_no_mapping(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    refused(folder, f"config text {text!r}", lambda: load_config(path), str(path))


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch burgled']",
        "!!python/object/new:os.system ['touch burgled']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!command x",
    ],
)
def test_yaml_tags_that_build_objects(folder, monkeypatch, tag):
    monkeypatch.chdir(folder)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD_CONFIG) + f"project: {tag}\n")
    refused(folder, f"tag {tag}", lambda: load_config(path), str(path))
    path.write_text(yaml.safe_dump(GOOD_CONFIG))
    refused(folder, f"override with tag {tag}", lambda: load_config(path, [f"lr={tag}"]))
    assert load_config(path, [f"project={tag}"]).project == tag  # text, as it is written


@pytest.mark.parametrize(
    "override",
    ["", "=", "name", "=x", "lr=[", "a.b.c=1", "name.x=1", "lr=high", "lr=1e999", "seed=-1", "seed=1e99", "lr=1 # x"],
)
def test_overrides(folder, override):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD_CONFIG))
    refused(folder, f"override {override!r}", lambda: load_config(path, [override]), "--set")


def test_config_files_that_are_none(folder):
    (folder / "folder.yaml").mkdir()
    (folder / "latin.yaml").write_bytes(b"name: \xff\xfe")
    (folder / "nul.yaml").write_bytes(b"\0" * 100)
    (folder / "self.yaml").write_text("inherits: self.yaml")
    (folder / "orphan.yaml").write_text("inherits: gone.yaml")
    (folder / "deep.yaml").write_text("a: " + "[" * 5000)
    (folder / "loop.yaml").write_text("coconut: &a {b: *a}")
    (folder / "two.yaml").write_text("seed: 1\n---\nseed: 2\n")
    (folder / "tab.yaml").write_text("coconut:\n\tenabled: true\n")
    (folder / "twice.yaml").write_text("coconut.enabled: true\ncoconut: {enabled: false}\n")
    (folder / "wide.yaml").write_bytes("seed: 1".encode("utf-16-le"))
    names = ("folder", "latin", "nul", "self", "orphan", "deep", "missing", "loop", "two", "tab", "twice", "wide")
    for name in names:
        path = folder / f"{name}.yaml"
        refused(folder, f"config file {name}", lambda path=path: load_config(path), str(path))


@pytest.mark.parametrize(
    "text", ["$NOT_SET/x", "${NOT_SET}", "~no_such_user/x", "$(pwd)", "${A:-b}", " ~/x", '"a\\0b"']
)
def test_paths_that_lead_nowhere(folder, monkeypatch, text):
    monkeypatch.chdir(folder)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD_CONFIG))
    for key in ("output_dir", "image_dir", "name"):
        refused(folder, f"path {key} {text!r}", lambda key=key: load_config(path, [f"{key}={text}"]), key)


def ds_config(path: Path) -> dict:
    config = RunConfig.model_validate(GOOD_CONFIG)
    return resolve_ds_config(path, config, 2, ModelShape(64, 1000, 600, 7))


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_optimization": 3},
        {"zero_optimization": {"stage": 4}},
        {"zero_optimization": {"stage": "three"}},
        {"zero_optimization": {"stage": None}},
        {"bf16": True},
        {"bf16": {"enabled": True}},
        {"fp16": {"enabled": True}},
        {"fp16": []},
        {"gradient_clipping": 0.5},
        {"train_batch_size": 3},
        {"train_micro_batch_size_per_gpu": 7},
        {"gradient_accumulation_steps": 9},
        {"optimizer": {"type": "SGD"}},
        {"optimizer": "AdamW"},
        {"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}},
        {"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}},
        {"optimizer": {"type": "AdamW", "params": 5}},
        {"scheduler": {"type": "OneCycle"}},
        {"activation_checkpointing": {"cpu_checkpointing": True}},
        {"communication_data_type": "auto"},
    ],
    ids=json.dumps,
)
def test_ds_configs(folder, changes):
    path = folder / "ds.json"
    path.write_text(json.dumps(GOOD_DS_CONFIG | changes))
    refused(folder, f"ds_config {changes}", lambda: ds_config(path), str(path))


def test_json_files_that_are_cut_or_no_json(folder):
    """Every proper beginning of a list or an object is broken."""
    sides = {
        "ds_config": (GOOD_DS_CONFIG, ds_config),
        "records": ([record(), record("8.jpg")], lambda path: load_examples(path, folder)),
    }
    for name, (content, load) in sides.items():
        path, text = folder / f"{name}.json", json.dumps(content)
        for length in range(0, len(text) - 1, max(1, len(text) // 25)):
            path.write_text(text[:length])
            refused(folder, f"{name} cut at {length}", lambda load=load, path=path: load(path), str(path))
        junk = {"nul": b"\0" * 50, "latin": b'["\xff"]', "deep": b"[" * 100_000, "number": b"7", "text": b'"a"'}
        for kind, raw in junk.items():
            path.write_bytes(raw)
            refused(folder, f"{name} {kind}", lambda load=load, path=path: load(path), str(path))


@pytest.mark.parametrize("key", ["image", "question", "steps", "answer"])
@pytest.mark.parametrize("value", [7, True, "", [], {}, [[1]], "\0", ..., "../../etc/passwd", "/etc/passwd"])
def test_records(folder, key, value):
    """Some of these are legal in some places; whatever is refused is refused by file and record."""
    bad = {k: v for k, v in record(**{key: value}).items() if v is not ...}
    path = folder / "data.json"
    path.write_text(json.dumps([record(), bad]))
    legal = (key, value) in [("steps", []), ("image", ...)] or (key == "steps" and isinstance(value, str))
    refused(
        folder,
        f"record {key} {value!r}",
        lambda: load_examples(path, folder),
        *(str(path), "record 1"),
        may_pass=legal or (key == "question" and isinstance(value, str) and bool(value.strip())),
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_images(folder):
    path, image = folder / "data.json", folder / "bad.png"
    path.write_text(json.dumps([record(), record("bad.png")]))
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    bad = {"empty": b"", "text": b"no image", "html": b"<html>", "svg": svg, "pdf": b"%PDF-1.7", "zeros": b"\0" * 999}
    bad |= {f"bomb {size}": bomb(*size) for size in ((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0))}
    unusual = io.BytesIO()
    Image.new("RGB", (4, 4)).save(unusual, "SGI")
    bad["SGI"] = unusual.getvalue()
    for suffix, good in (("png", folder / "7.png"), ("jpg", folder / "8.jpg")):
        content = good.read_bytes()
        bad |= {f"{suffix} cut at {n}": content[:n] for n in range(1, len(content) - 20, len(content) // 12)}
    for kind, content in bad.items():
        image.write_bytes(content)
        refused(folder, f"image {kind}", lambda: load_examples(path, folder), str(path), "record 1", "bad.png")
    dice = random.Random(0)
    for suffix, good in (("png", folder / "7.png"), ("jpg", folder / "8.jpg")):
        for flip in range(15):  # may decode all the same, into other colours
            content = bytearray(good.read_bytes())
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            image.write_bytes(content)
            refused(folder, f"{suffix} flip {flip}", lambda: load_examples(path, folder), "bad.png", may_pass=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["summarize", "--out", "x.json"],
        ["summarize", "--out", "x.json", "--cot", "nowhere"],
        ["prepare", "model", "--data", "nowhere.json", "--out", "x"],
        ["prepare", "model", "--data", "7.png", "--out", "x"],
        ["prepare", "model", "--data", "7.png", "--out", "."],
        ["prepare", "scenes", "--out", "x", "--kinds", "cube"],
        ["prepare", "scenes", "--out", "x", "--hops", "0"],
        ["prepare", "scenes", "--out", "x", "--train", "-1"],
        ["prepare", "scenes", "--out", "7.png"],
    ],
    ids=" ".join,
)
def test_commands_end_with_one_message(folder, monkeypatch, capsys, arguments):
    monkeypatch.chdir(folder)
    before = tree(folder)
    assert command_line(arguments) != 0
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert tree(folder) == before
    counted.add(" ".join(arguments))


def test_there_were_at_least_200():
    """Runs last; counts what the tests above have tried."""
    assert len(counted) >= 200
