"""The end of a process that has used torch.distributed."""

import atexit
import os
import sys
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Ends this process with an exit code: its exit handlers run, the interpreter's teardown does not.

    A thread of gloo that lets go of its last collective's tensor takes the GIL for it, some time after the collective
    has returned; if the interpreter is being torn down by then, that aborts the process (exit code -6). Leaving the
    process group does not help: DeepSpeed's references keep it and its threads alive.
    """
    atexit._run_exitfuncs()  # as multiprocessing does in its children
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
