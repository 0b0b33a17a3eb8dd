"""For the benchmarks of starts and of data in memory: generated records, and a run on them that ends after some steps.

As a script, one rank of such a run; rank 0 prints what was measured as JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

IMAGE_EVERY = 50  # records
RANKS = 2


def generate(folder: Path, records: int, sizes: Mapping[str, int] | None = None) -> Path:
    """Records (JSON Lines), images, a tiny model that sees (of these sizes) and a run config, which is returned."""
    from PIL import Image

    from multicoco.models.tiny import build_tiny_internvl

    (folder / "images").mkdir(parents=True)
    with (folder / "train.jsonl").open("w") as file:
        for number in range(records):
            record = {
                "id": number,
                "question": f"Box {number % 977} holds {number % 89} red, {number % 53} blue balls. How many are red?",
                "steps": [f"Box {number % 977} is the one.", f"It holds {number % 89} red balls."],
                "answer": str(number % 89),
            }
            if number % IMAGE_EVERY == 0:
                record["image"] = f"images/{number}.png"
                Image.new("RGB", (28, 28), (number % 256, number // 256 % 256, number // 65536)).save(
                    folder / record["image"]
                )
            file.write(json.dumps(record) + "\n")
    build_tiny_internvl(
        ["Box holds red and blue balls How many are the one It 0 1 2 3"], folder / "model", **(sizes or {})
    )
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    config = {
        **{"name": "run", "output_dir": f"{folder}/runs", "model_id": f"{folder}/model", "data_dir": str(folder)},
        **{"train_path": "train.jsonl", "deepspeed": f"{folder}/zero.json", "mode": "cot_train", "num_epochs": 1},
        **{"batch_size": 4, "num_workers": 1, "answer_format": "text", "log_every_steps": 1000, "report": False},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder / "run.yaml"


def run(config: Path, steps: int = 20) -> dict:
    """Two ranks from their start to a step. Of the rank that has most: seconds to the first step, by the clock and of a
    core, seconds a step after it, and resident memory (MiB) at the end, at its most, and of its worker."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STARTED": repr(time.time())}
    done = subprocess.run(
        [*command, __file__, str(config), str(steps)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"first_step_s"')]
    return json.loads(line)


def resident(process: str = "self", key: str = "VmRSS") -> float:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith(key)]
    return int(line.split()[1]) / 1024


def watch(steps: int) -> None:
    """Makes the run of this process print what is measured after so many steps, and end there."""
    from multicoco.engine.ranks import gather
    from multicoco.training import trainer as trainer_module

    moments: list[float] = []
    worked: list[float] = []
    step = trainer_module.train_step

    def timed(*arguments):
        stepped = step(*arguments)
        moments.append(time.time())
        worked.append(time.process_time())
        if len(moments) == steps:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            own = (worked[0], resident(), resident(key="VmHWM"), max([0.0, *(resident(child) for child in children)]))
            memory = [max(of_ranks) for of_ranks in zip(*gather(own), strict=True)]
            measured = {
                "first_step_s": moments[0] - float(os.environ["STARTED"]),
                "step_s": median(after - before for before, after in pairwise(moments)),
                **dict(zip(("cpu_s", "rank_mib", "peak_mib", "worker_mib"), memory, strict=True)),
            }
            if int(os.environ["RANK"]) == 0:
                print(json.dumps(measured), flush=True)
            gather(None)
            os._exit(0)
        return stepped

    trainer_module.train_step = timed


def rank(config: Path) -> None:
    from multicoco.config import load_config
    from multicoco.training import build_run

    build_run(load_config(config)).run()


if __name__ == "__main__":
    watch(int(sys.argv[2]))
    rank(Path(sys.argv[1]))
