"""Forks the ranks of runs that end with something to say, and ends the others as soon as one ends badly.

Reads one JSON object a line from stdin: {"what": how they end, "slow": ranks that take a while to say it, "ranks": n,
"kills": whether the others are ended}. Answers with a line of JSON: {"said": all that was said, "codes": exit codes,
"seconds": how long it took}. The ranks run train.main; their Trainer only meets the others and ends.
"""

import json
import os
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import train  # noqa: E402

import multicoco.config  # noqa: E402
from multicoco import process  # noqa: E402
from multicoco.engine import ranks  # noqa: E402
from multicoco.engine.deepspeed import free_port  # noqa: E402
from multicoco.engine.preemption import Preempted  # noqa: E402
from multicoco.errors import UserError  # noqa: E402

DELAY = 1.0  # seconds; more than the others need to end


class Trainer:
    """Ends in its constructor or in `run`, as `what` says."""

    what = ""

    def __init__(self, config: object, allow_change: object):
        dist.init_process_group("gloo")
        if self.what == "construction":
            ranks.agree(self.fail)
        if self.what == "construction on rank 1" and dist.get_rank() == 1:
            self.fail()
        if self.what == "construction, not agreed on":
            self.fail()

    def run(self) -> None:
        if self.what == "run":
            ranks.agree(self.fail, only_rank_0=True)
        if self.what == "run on rank 1" and dist.get_rank() == 1:
            self.fail()
        if self.what == "rank 0 dies":
            try:
                ranks.agree(self.fail)
            finally:
                if dist.get_rank() == 0:
                    os._exit(9)
        if self.what == "preempted":
            raise Preempted
        dist.barrier()

    def fail(self) -> None:
        raise UserError("the reason")


def become_rank(rank: int, request: dict, port: int, said: int) -> None:
    meeting = {"RANK": rank, "WORLD_SIZE": request["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in meeting.items()})
    os.dup2(said, 1)
    os.dup2(said, 2)
    Trainer.what = request["what"]
    slow = (lambda: time.sleep(DELAY)) if rank in request["slow"] else (lambda: None)
    tell, say = ranks.tell, train.say_before_meeting
    ranks.tell = lambda *arguments: (slow(), tell(*arguments))
    train.say_before_meeting = lambda text: (slow(), say(text))
    process.LINGER_SECONDS = request.get("linger", process.LINGER_SECONDS)
    wrong = request["what"] == "config" or (request["what"] == "config on rank 1" and rank == 1)
    multicoco.config.check_keys = lambda *_: None
    multicoco.config.load_config = lambda *_: (_ for _ in ()).throw(UserError("the reason")) if wrong else None
    sys.argv = ["train.py", "run.yaml", *(["--nonsense"] if request["what"] == "arguments" else ["--set", "a=b"])]
    train.end_process(train.main())


def serve(request: dict) -> dict:
    port, started = free_port(), time.monotonic()
    with tempfile.TemporaryFile() as said:
        running, codes = {}, {}
        for rank in range(request["ranks"]):
            if (pid := os.fork()) == 0:
                become_rank(rank, request, port, said.fileno())
            running[pid] = rank
        while running:
            pid, status = os.wait()
            codes[running.pop(pid)] = code = os.waitstatus_to_exitcode(status)
            if code and request["kills"]:
                for other in running:
                    os.kill(other, signal.SIGKILL)
        said.seek(0)
        text = said.read().decode()
    return {"said": text, "codes": [codes[rank] for rank in sorted(codes)], "seconds": time.monotonic() - started}


# what train.main imports when it comes to it
sys.modules["multicoco.training"] = types.SimpleNamespace(build_run=Trainer)  # type: ignore[assignment]
for line in sys.stdin:
    print(json.dumps(serve(json.loads(line))), flush=True)
