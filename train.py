"""Trains or evaluates one run config, under `deepspeed`, `torchrun` or plain `python`.

deepspeed --num_gpus 2 train.py args/scenes_cot.yaml --set lr=1e-3
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data workers are forked

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # runs from a checkout that is not installed, on every host

from multicoco.errors import UserError  # noqa: E402
from multicoco.process import end_process  # noqa: E402

PREEMPTED = 128 + 15  # the exit code of a process that SIGTERM has ended


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train or evaluate a MultiCoCo run config.")
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
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    is_rank_0 = os.environ.get("RANK", "0") == "0"
    try:
        from multicoco.config import check_keys, load_config  # asks installed methods for their keys, which may fail

        overrides = [
            *args.overrides,
            *([f"deepspeed={args.deepspeed_config}"] if args.deepspeed_config else []),
        ]
        config = load_config(args.config, overrides)
        check_keys(args.allow_change, "--allow-change")
        if args.print_config:
            if is_rank_0:
                print(config.to_yaml(), end="")
            return 0
        from multicoco.engine.preemption import Preempted  # imports torch, as the next does transformers and deepspeed
        from multicoco.trainer import Trainer

        trainer = Trainer(config, args.allow_change)
    except UserError as error:  # raised on every rank
        if is_rank_0:
            print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        trainer.run()
    except Preempted:
        if is_rank_0:
            print("stopped by a signal, with a checkpoint: the same command goes on from there", file=sys.stderr)
        return PREEMPTED
    except UserError as error:
        if is_rank_0 and error.on_all_ranks:
            print(f"error: {error}", file=sys.stderr)
        elif not error.on_all_ranks:
            print(f"error on rank {trainer.rank}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    end_process(main())
