"""Every model family through the real launcher: written reasoning, one latent stage from it, and an evaluation in all
modes, each on a form that data is published in. Tiny models with random weights: it shows that it runs, not that it
learns."""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from common import RESULTS
from forms import FORMS
from measuring import Report

from multicoco.models.tiny import TINY
from multicoco.tasks.scenes import render_scenes

ROOT = Path(__file__).resolve().parents[1]
N_TRAIN, N_VAL = 16, 6
CASES = {  # family: form of its data, ZeRO stage
    "internvl": ("A-OKVQA, flattened", 2),
    "idefics3": ("A-OKVQA, hub's parquet", 3),
    "qwen2_vl": ("M3CoT, hub's parquet", 2),
    "qwen2_5_vl": ("LLaVA's conversations", 2),
    "qwen3_vl": ("ScienceQA, problems.json", 3),
    "text": ("GSM8K", 2),
    "text_without_chats": ("GSM8K", 2),
    "gemma2": ("GSM8K", 3),
}
OTHER = ("A-OKVQA, release", 2)  # of a family that is not named above
RUNS = {
    "cot": ["mode=cot_train", "num_epochs=1"],
    "coconut": [
        "mode=coconut_train",
        "num_epochs=2",
        "coconut={enabled: true, c_thought: 2, max_latent_stage: 1, first_stage: 0}",
    ],
    "evaluation": ["mode=eval_only", "coconut.enabled=true", "eval_config={vanilla: true, cot: true, coconut: true}"],
}
STARTS_FROM = {"coconut": "cot", "evaluation": "coconut"}


def prepare(family: str, form: str, stage: int, home: Path) -> Path:
    """Data in a form, a tiny model and a run config in a folder of their own; returns the config."""
    scenes = home / "scenes"
    render_scenes(scenes, N_TRAIN, N_VAL, 0, kinds=("tile",))
    paths = []
    for split in ("train", "val"):
        records = json.loads((scenes / f"aokvqa_v1p0_{split}.json").read_text())
        paths.append(FORMS[form](scenes, records, scenes / f"{split}_of_form"))
    texts = [" ".join([one["question"], *one["choices"], *one["rationales"]]) for one in records]
    TINY[family]([*texts, "0 1 2 3 4 5 6 7 8 9 The tiles are marked"], home / "model")
    config = home / "run.yaml"
    config.write_text(f"""
inherits: null
mode: cot_train
name: run
output_dir: {home}/runs
model_id: {home}/model
data_dir: {scenes}
train_path: {paths[0]}
val_path: {paths[1]}
num_workers: 0
batch_size: 2
eval_batch_size: 3
lr: 1e-3
log_every_steps: 1
report: false
generation: {{max_new_tokens: 12}}
deepspeed: {ROOT}/ds_configs/zero{stage}.json
""")
    return config


def launch(run: str, config: Path, launcher: str) -> dict[str, Any]:
    """One run to its end; what it has left to tell of."""
    settings = [*RUNS[run], f"name={run}"]
    folder = config.parent / "runs" / run
    if run in STARTS_FROM:
        settings.append(f"load_model_path={folder.with_name(STARTS_FROM[run])}")
    command = [*shlex.split(launcher), "train.py", str(config), *(part for s in settings for part in ("--set", s))]
    started = perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = perf_counter() - started
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        return {"ended": "badly", "seconds": seconds}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    summaries = [json.loads(path.read_text()) for path in sorted((folder / "evaluation").glob("*.json"))]
    whole = all(math.isfinite(loss) for loss in losses) and all(summary["n"] == N_VAL for summary in summaries)
    return {
        "ended": "well" if whole and summaries else "with numbers missing",
        "steps": len(losses),
        "stages": sorted({line["train/stage"] for line in lines if "train/stage" in line}),
        "asked_as": [summary["mode"] for summary in summaries],
        "passes": max(summary["mean_latent_passes"] for summary in summaries),
        "seconds": seconds,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--families", nargs="+", default=[*TINY], metavar="NAME", help="default: all; stored rows of others stay"
    )
    options.add_argument("--launcher", default="deepspeed --num_gpus 2", help="what stands before train.py")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    args = options.parse_args()
    report = Report("families", {"launcher": args.launcher, "train": N_TRAIN, "val": N_VAL}, args.out)
    stored = json.loads(report.path.read_text())["rows"] if report.path.exists() else []
    for row in stored:
        if row["family"] not in args.families:
            report.add(row)
    for family in args.families:
        form, stage = CASES.get(family, OTHER)
        with TemporaryDirectory() as home:
            config = prepare(family, form, stage, Path(home))
            for run in RUNS:
                row = {"family": family, "form": form, "zero": stage, "run": run}
                report.add({**row, **launch(run, config, args.launcher)})
    well = sum(row["ended"] == "well" for row in report.rows)
    report.goal("runs that end well", f"{len(report.rows)}", well, well == len(report.rows))
    report.finish()
    sys.exit(well < len(report.rows))


if __name__ == "__main__":
    main()
