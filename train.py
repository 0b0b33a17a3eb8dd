"""Trains or evaluates one run config, under `deepspeed`, `torchrun` or plain `python`.

deepspeed --num_gpus 2 train.py args/scenes_cot.yaml --set lr=1e-3
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data workers are forked

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # runs from a checkout that is not installed, on every host

from multicoco.errors import UserError  # noqa: E402
from multicoco.process import end_process, environment_rank, say_before_meeting  # noqa: E402

PREEMPTED = 128 + 15  # the exit code of a process that SIGTERM has ended


class ArgumentParser(argparse.ArgumentParser):
    """Raises a UserError instead of ending the process, which every rank would do with a message of its own."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}\n{self.format_usage().strip()}")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description="Train or evaluate a MultiCoCo run config.")
    parser.add_argument("config", help="YAML run config, for example args/aokvqa_cot.yaml")
    parser.add_argument("--deepspeed_config", metavar="PATH", help="ds_config that takes the place of the config's own")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override one key; repeatable",
    )
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="go on from a checkpoint although this key differs from what it was trained with; repeatable",
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    # the launchers of deepspeed and of older torch pass it
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    try:
        args = parse_args()
        from multicoco.config import check_keys, load_config  # asks installed methods for their keys, which may fail

        own_ds_config = [f"deepspeed={args.deepspeed_config}"] if args.deepspeed_config else []
        config = load_config(args.config, [*args.overrides, *own_ds_config])
        check_keys(args.allow_change, "--allow-change")
    except UserError as error:
        say_before_meeting(f"error: {error}")
        return 1
    if args.print_config:
        if environment_rank() == 0:
            print(config.to_yaml(), end="")
        return 0
    # these import torch, transformers and deepspeed
    from multicoco.engine.preemption import Preempted
    from multicoco.engine.ranks import tell
    from multicoco.training import build_run

    try:
        build_run(config, args.allow_change).run()
    except Preempted:
        tell("stopped by a signal, with a checkpoint: the same command goes on from there")
        return PREEMPTED
    except UserError as error:
        tell(f"error: {error}", error.on_all_ranks)
        return 1
    if config.report and environment_rank() == 0:
        from multicoco.report.at_end import report_at_end

        report_at_end(config.run_dir)
    return 0


if __name__ == "__main__":
    end_process(main())
