"""Starts training runs quickly: imports everything once, then forks a process for every rank of a run.

Reads one JSON object a line from stdin: {"arguments": of train.py, "folder": to run in, "ranks": n, "log": path,
"patch": Python to execute first, "kill": null or {"since": "start" or "step", "file": what grows with a step, "after":
seconds, "signal": number, "ranks": [...]}}. The rest of a run's ranks are killed when one of them ends badly, as
launchers do, which leave them time after a preemption. Answers with a line of JSON: the ranks' exit codes, and whether
the kill came before the end.
"""

import gc
import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401  # and with it PyTorch's compiler
import train  # noqa: E402
import transformers.conversion_mapping  # noqa: E402
from deepspeed.comm.torch import build_shm_op  # noqa: E402
from transformers import InternVLForConditionalGeneration, Qwen2ForCausalLM  # noqa: E402, F401  # imported lazily

from multicoco import training  # noqa: E402, F401
from multicoco.engine.builds import prepare_builds  # noqa: E402
from multicoco.engine.deepspeed import free_port  # noqa: E402
from multicoco.process import end_process  # noqa: E402

transformers.conversion_mapping.get_checkpoint_conversion_mapping("llava")  # kept for all models once built
prepare_builds()
build_shm_op()  # or every rank asks the compiler and ninja whether it is still as built
gc.freeze()  # what is imported: ranks do not look through it when they collect, as DeepSpeed makes them
assert len(os.listdir("/proc/self/task")) == 1, "a forked process has but one of the threads"

GRACE_SECONDS = 30  # after a preemption, torchrun's
POLL_SECONDS = 0.5  # until a launcher notices that a rank has ended


def become_rank(rank: int, request: dict, port: int) -> None:
    os.setpgid(0, 0)  # a kill reaches the workers that load its data too
    os.chdir(request["folder"])
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(request["ranks"]),
        LOCAL_SIZE=str(request["ranks"]),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    log = os.open(f"{request['log']}.{rank}", os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["train.py", *request["arguments"]]
    try:
        exec(request["patch"], {"rank": rank})
        code = train.main()
    except BaseException:
        traceback.print_exc()
        code = 1
    end_process(code)


def serve(request: dict) -> dict:
    port = free_port()
    running = {}
    kill = request["kill"]
    growing = Path(kill["file"]) if kill and "file" in kill else None
    size_before = growing.stat().st_size if growing and growing.exists() else 0
    for rank in range(request["ranks"]):
        Path(f"{request['log']}.{rank}").write_text("")
        if (pid := os.fork()) == 0:
            become_rank(rank, request, port)
        running[pid] = rank
    pids, codes, killed = dict(running), {}, False
    since, deadline = {"start": time.monotonic()}, math.inf
    while running:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            codes[running.pop(done)] = code = os.waitstatus_to_exitcode(status)
            if code:
                grace = GRACE_SECONDS if code == train.PREEMPTED else POLL_SECONDS if code > 0 else 0
                deadline = time.monotonic() + grace
            continue
        if time.monotonic() > deadline:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        if growing and "step" not in since and growing.exists() and growing.stat().st_size > size_before:
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
