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
if config.mode == "eval_only":
    assert (Path(str(config.load_model_path)) / "checkpoints").exists()
    asked = range(50)
    right = [sample(f"q{i}", (i * 37 + config.seed) % 50 < 50 * config.lr) for i in asked]
    write_samples(config.run_dir, config.trained_method, right)
else:
    checkpoint = config.run_dir / "checkpoints" / "epoch_0001"
    checkpoint.mkdir(parents=True)
    about = {"evaluated": True, "data": {"train_path": config.train_path}}
    about |= {"versions": {"torch": "2.13", "started": str(config.run_dir)}}
    cost = {"step": 10, "tokens": 700, "passes": 20}
    cost = {key: value * config.num_epochs for key, value in cost.items()} | {"peak_memory": config.num_epochs}
    state = {"epoch": config.num_epochs, "stage": 0, **cost, **about}
    (checkpoint / "trainer.json").write_text(json.dumps(state))
