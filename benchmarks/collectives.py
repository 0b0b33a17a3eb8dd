"""What ranks tell each other in a steady step, and what of a run grows with them: ranks as processes, with gloo.

Whole runs of the trainer with a tiny model and thoughts, on generated records of which every 50th has an image, up to a
checkpoint as at a scheduler's notice. Counted are the messages of a step, where PyTorch starts them, and what they are
given; the objects that a rank is told until then (`told`), the Python objects and arrays that it holds (`held`), and
the files that all leave (`files`, `disk`).
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, product
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process that is forked has but one of the threads

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STEADY = 4  # DeepSpeed has allocated and traced what it will
NAMES = {"allreduce_": "all_reduce", "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter"}
KINDS = tuple(NAMES.values())
ROOT = Path(__file__).resolve().parents[1]


class Messages(TorchDispatchMode):
    """Of this rank, by their kind, how many there were and how many bytes they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::")
            kind = NAMES.get(name, name)
            self.calls[kind] += 1
            self.bytes[kind] += sum(x.nbytes for x in _given(name, args))
        return function(*args, **(kwargs or {}))


def _given(name, args):
    """The tensors that a collective takes; behind those that it fills, where these are others."""
    return [x for x in tree_leaves(args[1] if name.endswith("_base_") else args[0]) if hasattr(x, "nbytes")]


def watch(out: Path) -> None:
    """Makes the run of this process count, write what its rank 0 has counted after a steady step, and end there."""
    import gc
    import pickle
    import signal
    import tracemalloc

    from multicoco.training import trainer as trainer_module

    told: list[int] = []

    def listening(tell: Callable[..., None]) -> Callable[..., None]:
        def listened(values, *args, **kwargs):
            tell(values, *args, **kwargs)
            told.append(sum(len(pickle.dumps(value)) for value in values))

        return listened

    for name in ("all_gather_object", "broadcast_object_list"):
        setattr(dist, name, listening(getattr(dist, name)))
    train_step, steps = trainer_module.train_step, []

    def counted(*arguments):
        steps.append(1)
        with Messages() as messages:
            stepped = train_step(*arguments)
        if len(steps) == STEADY:
            gc.collect()
            if dist.get_rank() == 0:
                held, _ = tracemalloc.get_traced_memory()
                counts = {"calls": messages.calls, "bytes": messages.bytes, "told": sum(told), "held": held}
                out.write_text(json.dumps(counts))
            os.kill(os.getpid(), signal.SIGTERM)
        return stepped

    trainer_module.train_step = counted
    tracemalloc.start()


def files_of(folder: Path) -> dict[str, int]:
    """Those that a run has left."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "disk": sum(sizes)}


def growth(of: dict[tuple[int, int], int]) -> float:
    """Of a figure by (ranks, records), at the corners of a rectangle: what each rank adds for each record."""
    (few, small), (many, large) = min(of), max(of)
    return (of[many, large] - of[many, small] - of[few, large] + of[few, small]) / ((many - few) * (large - small))


def as_rank(place: dict[str, str], config: Path, of_run: list[str], out: Path) -> None:
    """This process, from its start to its end."""
    from multicoco.config import load_config
    from multicoco.engine.preemption import Preempted
    from multicoco.training import build_run

    os.environ.update(place)
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    watch(out)
    with suppress(Preempted):
        build_run(load_config(config, of_run)).run()


def settings(folder: Path, stage: int, accumulation: int, records: int) -> list[str]:
    """Of a run in a new folder, in its parent's data, with so many of the records."""
    zero = ROOT / "ds_configs" / f"zero{stage}.json"
    if stage == 0:
        zero = folder.with_suffix(".json")
        zero.write_text('{"zero_optimization": {"stage": 0}}')
    return [
        f"output_dir={folder}",
        f"deepspeed={zero}",
        f"max_train_samples={records}",
        f"gradient_accumulation_steps={accumulation}",
        *("batch_size=1", "num_workers=0", "self_check=false", "mode=coconut_train"),
        "coconut={enabled: true, max_latent_stage: 1, first_stage: 1}",
    ]


def run(config: Path, stage: int, ranks: int, accumulation: int, records: int) -> dict:
    """One run of processes of its own."""
    from multicoco.engine.deepspeed import free_port

    folder = config.parent / f"zero{stage}_{ranks}_{accumulation}_{records}"
    out, of_run = folder.with_suffix(".counts"), settings(folder, stage, accumulation, records)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    places = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    forked(as_rank, [(place, config, of_run, out) for place in places])
    return {**json.loads(out.read_text()), **files_of(folder)}


def forked(function: Callable[..., None], of_processes: list[tuple]) -> None:
    """Calls it in a process for each tuple of arguments, of one that has imported everything and has one thread."""
    started = [get_context("fork").Process(target=function, args=arguments) for arguments in of_processes]
    for process in started:
        process.start()
    running = {process.sentinel for process in started}
    while running and not any(process.exitcode for process in started):
        running -= set(wait(running))
    for process in started:  # the others would wait for one that has failed
        process.terminate()
        process.join()
    assert {process.exitcode for process in started} == {0}, of_processes[-1]


def main() -> None:
    import tempfile

    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    from common import parser
    from measuring import Report
    from starting import generate

    import multicoco.training  # noqa: F401  # forked processes have it

    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    options.add_argument("--records", type=int, nargs=2, default=[5_000, 25_000], help="a small and a large set")
    args = options.parse_args()
    small, large = args.records
    few, many = args.ranks[0], args.ranks[-1]
    sizes = {"hidden_size": 32, "text_layers": 2, **args.geometry}
    report = Report("collectives", {"records": args.records, **sizes}, args.out)
    of_stages = ((stage, ranks, 1, small) for stage, ranks in product((2, 3), args.ranks))
    of_accumulation = ((stage, few, n, small) for stage, n in ((0, 1), (0, 4), (1, 1), (1, 4), (2, 4), (3, 4)))
    of_records = ((2, ranks, 1, large) for ranks in (few, many))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        forked(generate, [(Path(folder) / "data", large, sizes)])
        for stage, ranks, accumulation, records in chain(of_stages, of_accumulation, of_records):
            counts = run(Path(folder) / "data" / "run.yaml", stage, ranks, accumulation, records)
            messages = {
                f"{kind}{unit}": counts[of].get(kind, 0)
                for kind, (of, unit) in product(KINDS, (("calls", ""), ("bytes", "_bytes")))
            }
            about = {"zero": stage, "ranks": ranks, "micro_batches": accumulation, "records": records}
            report.add(about | messages | {key: counts[key] for key in ("told", "held", "files", "disk")})
    for stage in (2, 3):
        calls = {
            tuple(row[kind] for kind in KINDS)
            for row in report.rows
            if (row["zero"], row["micro_batches"]) == (stage, 1)
        }
        report.goal(f"numbers of messages of a step under ZeRO-{stage}, any ranks", "1", len(calls), len(calls) == 1)
    plain = {
        (row["ranks"], row["records"]): row
        for row in report.rows
        if (row["zero"], row["micro_batches"]) == (2, 1) and row["ranks"] in (few, many)
    }
    for what in ("told", "held", "disk"):
        each = growth({corner: row[what] for corner, row in plain.items()})
        report.goal(f"bytes {what}, for each rank and record", "< 1", each, abs(each) < 1)
    report.finish()


if __name__ == "__main__":
    main()
