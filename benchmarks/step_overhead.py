"""What surrounds a step: the trainer's loop over a loop of nothing but forward, backward and the engine's step.

Both over the same batches of a tiny model with thoughts, whose steps are so short that what Python does around them
shows. A worker loads for the trainer's loop, which sends batches ahead, sums token counts and flags, keeps losses and
thoughts, and logs as by default; the bare loop has its batches at hand. `operators`: PyTorch's, that this process calls
in a step; what the loop has more of them is the same on every machine.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from common import parser
from measuring import Report
from starting import generate
from torch.utils._python_dispatch import TorchDispatchMode

from multicoco.config import load_config
from multicoco.process import end_process
from multicoco.training import build_run
from multicoco.training.loss_window import LossWindow

RATIO, OPERATORS = 1.15, 100  # at most


class Operators(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += 1
        return function(*args, **(kwargs or {}))


def loop(trainer, part) -> None:
    """As an epoch."""
    trainer.at.step = trainer.at.epoch_step = 0
    with trainer.tracker.progress(part.end, "steps") as progress:
        trainer._train_part(part, 0, LossWindow(trainer.group.device), progress)


def bare(trainer, part, steps) -> None:
    """What any loop has to call."""
    n_passes = trainer.method.passes(part.stage)
    for micro_batches in steps:
        for batch in micro_batches:
            loss = trainer.engine(**batch["on_device"], n_passes=n_passes, loss_divisor=100.0).loss
            trainer.engine.backward(loss)
            trainer.engine.step()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=50)
    args = options.parse_args()
    settings = {"steps": args.steps, "batch": 4, "latents": 3, **args.geometry}
    sizes = {key: value for key, value in settings.items() if key in ("hidden_size", "text_layers")}
    report = Report("step_overhead", settings, args.out)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = generate(Path(folder) / "data", args.steps * settings["batch"], sizes)
        coconut = f"{{enabled: true, max_latent_stage: {settings['latents']}, first_stage: {settings['latents']}}}"
        of_run = ("mode=coconut_train", f"coconut={coconut}", f"batch_size={settings['batch']}", "lr=1e-9")
        trainer = build_run(load_config(path, [*of_run, "log_every_steps=10", "self_check=false"]))
        torch.set_num_threads(args.threads)
        [part] = trainer.stages.of_epoch(0)
        trainer.stages.enter(part.stage, trainer.at)
        given = list(trainer.transfer.ahead(trainer.batches.steps(part, 0, 0)))
        sides = {"loop": partial(loop, trainer, part), "bare": partial(bare, trainer, part, given)}
        operators = {}
        for name, side in sides.items():
            with Operators() as counted:
                side()
            operators[name] = counted.n / len(given)
        times = report.in_turn(sides, args.repeats)
    report.add(
        {
            "loop_ms": 1000 * times["loop"].median / len(given),
            "bare_ms": 1000 * times["bare"].median / len(given),
            **times["loop"].over(times["bare"], "ratio"),
            "operators": operators["loop"],
            "operators_bare": operators["bare"],
        }
    )
    [row] = report.rows
    report.goal(
        "time of a step over its forward, backward and step alone", f"<= {RATIO}", row["ratio"], row["ratio"] <= RATIO
    )
    more = row["operators"] - row["operators_bare"]
    report.goal("operators around a step", f"<= {OPERATORS}", more, more <= OPERATORS)
    report.finish()


if __name__ == "__main__":
    main()
    end_process(0)
