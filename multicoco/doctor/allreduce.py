"""Started by the launcher on all ranks: the bandwidth of an all_reduce.

deepspeed --hostfile hostfile --no_local_rank --module multicoco.doctor.allreduce SECONDS
"""

import json
import signal
import sys
from statistics import median
from time import perf_counter

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from multicoco.engine.deepspeed import device, init_distributed
from multicoco.errors import UserError
from multicoco.process import end_process

BYTES = 64 * 2**20
REPEATS = 5
MARK = "allreduce: "


def measure(rank: int, n: int) -> None:
    """Collective. Rank 0 prints the bus bandwidth in GB/s, as nccl-tests define it: in a ring, each of the n ranks
    sends 2 (n - 1) / n of the bytes."""
    buffer, seconds = torch.zeros(BYTES // 4, device=device()), []
    for _ in range(1 + REPEATS):  # the first one makes the connections
        dist.barrier()
        started = perf_counter()
        dist.all_reduce(buffer)
        get_accelerator().synchronize()
        seconds.append(perf_counter() - started)
    if rank == 0:
        bandwidth = 2 * (n - 1) / n * BYTES / median(seconds[1:]) / 1e9
        print(MARK + json.dumps({"ranks": n, "gb_per_s": bandwidth}), flush=True)


if __name__ == "__main__":
    signal.alarm(int(sys.argv[1]))  # ends this process wherever it hangs, and also when the launcher is gone
    try:
        measure(*init_distributed())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        end_process(1)
    end_process(0)
