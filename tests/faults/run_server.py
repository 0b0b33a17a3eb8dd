"""Starts training runs quickly: imports everything once, then forks a process for every rank of a run.

Reads one JSON object a line from stdin: {"arguments": [...], "ranks": n, "log": path, "metrics": path, "kill": null or
{"since": "start" or "step" (the first one logged), "after": seconds, "signal": number, "ranks": [...]}}. The rest of a
run's ranks are killed when one of them ends badly, as launchers do, which leave them time after a preemption. Answers
with a line of JSON: the ranks' exit codes, and whether the kill came before the end.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import train  # noqa: E402
from multicoco.engine.deepspeed import free_port  # noqa: E402
from multicoco.process import end_process  # noqa: E402

GRACE_SECONDS = 30  # after a preemption, torchrun's


def become_rank(rank: int, request: dict, port: int) -> None:
    os.setpgid(0, 0)  # a kill reaches the workers that load its data too
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(request["ranks"]),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    log = os.open(f"{request['log']}.{rank}", os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["train.py", *request["arguments"]]
    try:
        code = train.main()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    end_process(code)


def serve(request: dict) -> dict:
    port = free_port()
    running = {}
    for rank in range(request["ranks"]):
        Path(f"{request['log']}.{rank}").write_text("")
        if (pid := os.fork()) == 0:
            become_rank(rank, request, port)
        running[pid] = rank
    metrics = Path(request["metrics"])
    logged_before = metrics.stat().st_size if metrics.exists() else 0
    pids, codes, kill, killed = dict(running), {}, request["kill"], False
    since, deadline = {"start": time.monotonic()}, math.inf
    while running:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            codes[running.pop(done)] = code = os.waitstatus_to_exitcode(status)
            if code:
                deadline = time.monotonic() + (GRACE_SECONDS if code == train.PREEMPTED else 0)
            continue
        if time.monotonic() > deadline:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        if "step" not in since and metrics.exists() and metrics.stat().st_size > logged_before:
            since["step"] = time.monotonic()
        if kill and not killed and time.monotonic() - since.get(kill["since"], math.inf) > kill["after"]:
            killed = True
            for pid, rank in pids.items():
                if pid in running and rank in kill["ranks"]:
                    os.killpg(pid, kill["signal"])
        time.sleep(0.005)
    return {"codes": [codes[rank] for rank in sorted(codes)], "killed": killed}


for line in sys.stdin:
    print(json.dumps(serve(json.loads(line))), flush=True)
