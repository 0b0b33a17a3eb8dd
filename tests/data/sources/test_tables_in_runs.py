"""A run on a table is the run on the JSON file of the same records, on two ranks whose workers read the pictures."""

import json
from pathlib import Path

import pytest
from homes import make_home
from runs import entries

pytestmark = pytest.mark.distributed
datasets = pytest.importorskip("datasets")


def metrics(folder: Path) -> list[tuple]:
    return [(line["step"], line.get("train/loss"), line.get("eval/cot/accuracy")) for line in entries(folder)]


def test_the_same_losses_and_answers(tmp_path, run_server):
    config = "mode: cot_train\nbatch_size: 2\ngeneration: {max_new_tokens: 4}\n"
    home = make_home(tmp_path, 7, 3, config)
    for split in ("train", "val"):
        records = json.loads((home / "scenes" / f"aokvqa_v1p0_{split}.json").read_text())
        for record in records:
            picture = home / "scenes" / f"{record.pop('split')}2017" / f"{record.pop('image_id'):012d}.png"
            record["image"] = {"bytes": picture.read_bytes(), "path": None}
            record["direct_answers"] = str(record["direct_answers"])  # as the hub's copy has them
        datasets.Dataset.from_list(records).cast_column("image", datasets.Image()).to_parquet(home / f"{split}.parquet")
    cache = f"import datasets\ndatasets.config.HF_DATASETS_CACHE = {str(tmp_path / 'cache')!r}\n"
    tables = [f"train_path={home / 'train.parquet'}", f"val_path={home / 'val.parquet'}"]
    found = {}
    for name, settings in (("json", []), ("parquet", tables)):
        ended = run_server.run(home / "run.yaml", f"name={name}", "num_workers=1", *settings, ranks=2, patch=cache)
        assert ended.codes == [0, 0], "\n".join(ended.said)
        found[name] = metrics(home / "runs" / name)
    assert found["parquet"] == found["json"] and len(found["json"]) >= 3
