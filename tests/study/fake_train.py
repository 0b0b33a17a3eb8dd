"""Stands for train.py in a study: leaves what a run leaves, and notes that it was started.

`lr` of the config decides what is to happen: 1.0 fails, 0.5 is stopped by a signal the first time, 0.6 has the study
stopped by one; else it is how often answers are right."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from fake_runs import sample, write_samples

from multicoco.config import load_config

config = load_config(sys.argv[1], sys.argv[3::2])
with open("started.txt", "a") as file:
    print(config.run_dir, file=file)
if config.lr == 1.0:
    print("error: it is broken")
    sys.exit(1)
if config.lr == 0.5 and config.mode != "eval_only" and not config.run_dir.exists():
    config.run_dir.mkdir(parents=True)
    sys.exit(143)
if config.lr == 0.6:
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), Path("told.txt").touch(), sys.exit(143)))
    os.kill(int(os.environ["STUDY"]), int(os.environ["STUDY_SIGNAL"]))
    time.sleep(60)
config.run_dir.mkdir(parents=True, exist_ok=True)
(config.run_dir / "config.yaml").write_text(config.to_yaml())
if config.mode == "eval_only":
    assert (Path(str(config.load_model_path)) / "trainer.json").exists()
    asked = range(50)
    right = [sample(f"q{i}", (i * 37 + config.seed) % 50 < 50 * config.lr) for i in asked]
    write_samples(config.run_dir, config.trained_method, right)
else:
    for epoch in range(1, config.num_epochs + 1):
        checkpoint = config.run_dir / "checkpoints" / f"epoch_{epoch:04d}"
        checkpoint.mkdir(parents=True)
        cost = {"step": 10 * epoch, "tokens": 700 * epoch, "passes": 20 * epoch, "peak_memory": epoch}
        about = {
            "evaluated": True,
            "accuracy": 1 / epoch,
            "data": {"train_path": config.train_path},
        }  # the first is best
        about |= {"versions": {"torch": "2.13", "started": str(config.run_dir)}}
        (checkpoint / "trainer.json").write_text(json.dumps({"epoch": epoch, "stage": 0, **cost, **about}))
