"""Everything that is to be known of this engine on a GPU, in ten minutes on one of 80 GB, without a network.

Kernels against the reference (right first, then fast), a step with latents over one without at InternVL3-1B's sizes
with random weights, the same step and an answer as others write them, and a step of an 8B model. What goes wrong in
one part is a row, and the others run. Without a GPU it runs on the CPU, at sizes given with --geometry: to be tested.
"""

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from common import EOS, LATENT, WORD, InternVL3Geometry, parser, peak_resident
from measuring import Report, synchronize
from rivals import STEPS, Task, answer_without_cache
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import profile, supported_activities
from transformers import GenerationConfig, PreTrainedModel

from multicoco import LatentReasoner
from multicoco.latent.column_graphs import ColumnGraphs
from multicoco.latent.recording import CudaRecorder
from multicoco.models.checkpointing import checkpoint_activations
from multicoco_kernels import BufferPool, KeyMask, LayerCache, cached_attention, first_handle
from multicoco_kernels.operator import Note

KERNELS = ("triton", "flash")
SEGMENTS = ((0, None), (1, 1), (4, 1), (16, 1))  # prefixes before it, and its columns: a latent column, or a prefix
WAYS = ("forward", "both")
READ_ON_HOST = ("input_ids", "attention_mask", "labels")  # of what the trainer gives to the passes
ANSWERS = {"batch": 64}  # at a time: a column of 16 rows starts as many kernels, and leaves a GPU idle
# of an InternVL3-8B: Qwen2.5-7B behind the same vision tower
LARGE = {"layers": 28, "hidden": 3584, "intermediate": 18944, "heads": 28, "kv_heads": 4, "batch": 4}
LARGE_BYTES = 72e9  # weights and gradients in bf16, once in fp32 while it is made, and activations
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-5}  # relative to the largest entry


class Device:
    """Where it runs, in what, and what is asked of it: alike on a GPU and on a CPU."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.device, self.dtype = ("cuda", torch.bfloat16) if self.on_gpu else ("cpu", torch.float32)
        self.bytes = torch.cuda.get_device_properties(0).total_memory if self.on_gpu else 0

    def model(self, geometry: InternVL3Geometry) -> PreTrainedModel:
        with torch.device(self.device):  # random numbers of 8B parameters take minutes on a CPU
            model = geometry.model()
        return model.to(self.dtype).train()

    def inputs(self, geometry: InternVL3Geometry, latents: int | None = None) -> dict[str, Tensor]:
        return self.moved(geometry.inputs(latents))

    def moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {key: x.to(self.device) for key, x in batch.items()}
        return moved | {"pixel_values": moved["pixel_values"].to(self.dtype)}

    def busy(self, run: Callable[[], object], repeats: int, between: Callable[[], object] = lambda: None) -> float:
        """Seconds in which the device itself works, of one run: a column is so little work that on a GPU the time by
        the clock is the host's, which starts the kernels. 0 if PyTorch's profiler sees none.

        Args:
            between: called before each, and not counted.
        """
        kind, seconds = DeviceType.CUDA if self.on_gpu else DeviceType.CPU, []
        for _ in range(repeats):
            between()
            synchronize()
            with profile(activities=supported_activities()) as seen:
                run()
                synchronize()
            # of a GPU each event is a kernel or a copy, of a CPU an operator, perhaps within another
            own = [event for event in seen.events() if event.device_type == kind]
            took = (event.time_range.elapsed_us() if self.on_gpu else event.self_cpu_time_total for event in own)
            seconds.append(sum(took) / 1e6)
        return median(seconds)

    def peak_mib(self, run: Callable[[], object], reasoner: LatentReasoner) -> float:
        """What a run takes beyond weights and batch; gradients, caches and recordings that others have left are not
        there."""
        reasoner.zero_grad()
        reasoner.cache_buffers.clear()
        if reasoner.column_graphs is not None:
            reasoner.column_graphs = ColumnGraphs(CudaRecorder())
        gc.collect()
        if not self.on_gpu:
            before, peak = peak_resident(run)
            return (peak - before) / 2**20
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def kernels(report: Report, device: Device, geometry: InternVL3Geometry, repeats: int) -> None:
    """Each kernel on one latent column and on a prefix: largest difference to the reference in fp32 of the output and
    of each gradient; milliseconds forward and both ways, by the clock and of the device's own work with nothing in its
    caches, as between the layers of a model; and the share of the bandwidth of a plain copy that the latter reach."""
    numbers = torch.zeros(2**28 if device.on_gpu else 2**16, device=device.device)  # far more than caches hold
    numbers.clone()
    copying = device.busy(numbers.clone, repeats)
    for prefixes, columns in SEGMENTS:
        past, length = prefixes * geometry.prefix, columns or geometry.prefix
        sides, rows = {}, {}
        for kernel in (*KERNELS, "reference"):
            run = Column(device, geometry, past, length, kernel)
            row = {"part": "kernels", "kernel": kernel, "past": past, "columns": length}
            try:
                row["difference"] = run.difference()
                for way in (*WAYS, *WAYS):  # the second backward is another kernel, to be compiled
                    run.once(way)()
            except Exception as error:  # one that does not run here is no reason to measure no other
                report.add({**row, "error": f"{type(error).__name__}: {error}"[:200]})
                continue
            row["right"] = row["difference"] <= TOLERANCE[device.dtype]
            rows[kernel] = row
            if row["right"]:
                sides |= {f"{kernel} {way}": run.once(way) for way in WAYS}
        times = report.in_turn(sides, repeats)
        for kernel, row in rows.items():
            if row["right"]:
                for way in WAYS:
                    busy = device.busy(sides[f"{kernel} {way}"], repeats, between=numbers.zero_)
                    row |= {f"{way}_ms": 1e3 * times[f"{kernel} {way}"].median, f"{way}_busy_ms": 1e3 * busy}
                read = 2 * geometry.batch * geometry.kv_heads * (past + length) * geometry.head_dim
                of_copy = read * device.dtype.itemsize / (2 * numbers.nbytes)
                if row["forward_busy_ms"]:
                    row["forward_of_bandwidth"] = of_copy * copying / (row["forward_busy_ms"] / 1e3)
            report.add(row)
    worst = [row["right"] for row in report.rows if row.get("part") == "kernels" and "right" in row]
    report.goal("kernels that are right", f"all of {len(worst)}", sum(worst), all(worst) and bool(worst))


class Column:
    """A segment behind a filled cache, and what is to come out of it."""

    def __init__(self, device: Device, geometry: InternVL3Geometry, past: int, length: int, kernel: str):
        self.device, self.past, self.length, self.kernel = device, past, length, kernel
        self.scale = geometry.head_dim**-0.5
        rng = torch.Generator().manual_seed(past + length)

        def make(heads: int) -> Tensor:
            numbers = torch.randn(geometry.batch, heads, past + length, geometry.head_dim, generator=rng)
            return numbers.to(device.device, device.dtype)

        self.q, self.k, self.v = make(geometry.heads), make(geometry.kv_heads), make(geometry.kv_heads)
        valid = torch.ones(geometry.batch, past + length, dtype=torch.bool)
        valid[0, : (past + length) // 3] = False  # a padded row
        self.valid, self.grad = valid.to(device.device), make(geometry.heads)[:, :, past:]
        self.mask, self.pool = KeyMask(self.valid), BufferPool()
        self.cache = self.filled(device.dtype)

    def filled(self, dtype: torch.dtype) -> LayerCache:
        """With what the columns before the segment have left."""
        cache = LayerCache(self.k.to(dtype), self.mask, self.pool)
        cache.write(0, self.k[:, :, : self.past].to(dtype), self.v[:, :, : self.past].to(dtype))
        return cache

    def __call__(self, cache: LayerCache, kernel: str, backward: bool) -> list[Tensor]:
        """The segment's output and, with a backward, the gradients of its q, k and v."""
        own = [x[:, :, self.past :].to(cache.keys.dtype).requires_grad_() for x in (self.q, self.k, self.v)]
        handle = first_handle(self.q.device)
        handle.note = Note(cache, self.past, 0)
        out, _ = cached_attention(*own, handle, cache, self.past, self.scale, kernel)
        if not backward:
            return [out.detach()]
        seen = self.grad.to(out.dtype) * self.valid[:, None, self.past :, None]  # nothing is asked at padding
        return [out.detach(), *torch.autograd.grad(out, own, seen)]

    def difference(self) -> float:
        found = self.computed(self.filled(self.device.dtype), self.kernel)
        wanted = self.computed(self.filled(torch.float32), "reference")
        pairs = [(mine.float(), right) for mine, right in zip(found, wanted, strict=True)]
        return max(float((mine - right).abs().max() / right.abs().max()) for mine, right in pairs)

    def computed(self, cache: LayerCache, kernel: str) -> list[Tensor]:
        """All that comes of it where there is no padding. Behind others it is run backward twice: what the first one
        has stored of the keys' and values' gradients, all later ones add to."""
        results = self(cache, kernel, backward=True)
        if not cache.is_released:
            results = [*self(cache, kernel, backward=True), *cache.gradients()[:2]]
        shown = self.valid[:, None, :, None]
        return [x * shown[:, :, -x.shape[2] :] for x in results]

    def once(self, way: str) -> Callable[[], object]:
        def run() -> None:
            if self.cache.is_released:  # by the backward of a first segment
                self.cache = self.filled(self.device.dtype)
            self(self.cache, self.kernel, way == "both")

        return run


def overhead(report: Report, device: Device, geometry: InternVL3Geometry, repeats: int, part: str = "overhead") -> None:
    """A step with K latents over one pass on the same tokens, and the peak of its memory."""
    model = device.model(geometry)
    if part == "large":
        for parameter in model.base_model.vision_tower.parameters():
            parameter.requires_grad_(False)
        checkpoint_activations(model)
    reasoner = LatentReasoner(model, LATENT)

    def step(inputs: dict[str, Any]) -> None:
        reasoner.zero_grad()
        reasoner(**inputs).loss.backward()

    with_, without = geometry.inputs(), geometry.inputs(0)
    without["input_ids"][without["input_ids"] == LATENT] = WORD
    sides = {
        name: partial(step, device.moved(batch) | {"on_host": {key: batch[key] for key in READ_ON_HOST}})
        for name, batch in {"with": with_, "without": without}.items()
    }
    times = report.in_turn(sides, repeats)
    row = {"part": part, "K": geometry.latents, "batch": geometry.batch, "step_s": times["with"].median}
    row |= {"one_pass_s": times["without"].median, **times["with"].over(times["without"], "ratio")}
    row |= {f"{name}_busy_s": device.busy(side, 1) for name, side in sides.items()}
    row["peak_mib"] = device.peak_mib(sides["with"], reasoner)
    report.add(row)
    ratio = row["ratio"]
    report.goal(f"{part}: step with K = {geometry.latents} over one pass", "<= 1.15", ratio, ratio <= 1.15)


def large(report: Report, device: Device, geometry: InternVL3Geometry, repeats: int) -> None:
    """The same for a model of 8B parameters, its vision tower frozen, with activation checkpointing."""
    if device.on_gpu and device.bytes < LARGE_BYTES:
        report.add({"part": "large", "error": f"{device.bytes / 2**30:.0f} GiB of memory are too few"})
        return
    overhead(report, device, geometry, repeats, "large")


def steps(report: Report, device: Device, geometry: InternVL3Geometry, repeats: int) -> None:
    """A whole step: ours, and as it is written elsewhere, all with the same weights."""
    model = device.model(geometry)
    reasoner, task = (
        LatentReasoner(model, LATENT),
        Task(model, device.inputs(geometry), geometry.prefix, geometry.latents),
    )
    own = model.get_decoder().config._attn_implementation
    losses: dict[str, float] = {}

    def step(name: str, loss_of: Callable[[], Tensor]) -> None:
        model.zero_grad()
        # the ways of others run with PyTorch's attention, as they do elsewhere
        model.get_decoder().set_attn_implementation(own if name.startswith("multicoco") else "sdpa")
        loss = loss_of()
        loss.backward()
        losses[name] = loss.item()

    on_host = {key: x for key, x in geometry.inputs().items() if key in READ_ON_HOST}
    ways = {"multicoco": lambda: reasoner(**task.inputs, on_host=on_host).loss}
    by_kernel = LatentReasoner(model, LATENT, cuda_graphs=False)
    ways |= {"multicoco, kernel by kernel": lambda: by_kernel(**task.inputs, on_host=on_host).loss}
    ways |= {name: partial(way, task) for name, way in STEPS.items()}
    sides = {name: partial(step, name, loss_of) for name, loss_of in ways.items()}
    peaks: dict[str, float] = {}
    for name, side in [*sides.items()]:
        try:
            peaks[name] = device.peak_mib(side, reasoner)
        except torch.OutOfMemoryError:
            report.add({"part": "steps", "way": name, "error": "out of memory"})
            del sides[name]
        device.free()
    times = report.in_turn(sides, repeats)
    for name in sides:
        speed = times[name].over(times["multicoco"], "time_of_ours")
        about = {"loss": f"{losses[name]:.6f}", "step_s": times[name].median, "peak_mib": peaks[name]}
        report.add({"part": "steps", "way": name, **about, **speed})


@torch.no_grad()
def generation(report: Report, device: Device, geometry: InternVL3Geometry, repeats: int) -> None:
    """Answers of a batch from the cache, against one at a time with everything computed again."""
    geometry = replace(geometry, suffix=8)
    model, new = device.model(geometry).eval(), 16
    inputs = {key: x for key, x in device.inputs(geometry).items() if key != "labels"}
    first = {key: x[:1] for key, x in device.inputs(geometry).items()}
    reasoner, task = LatentReasoner(model, LATENT), Task(model, first, geometry.prefix, geometry.latents)
    own = model.get_decoder().config._attn_implementation
    config = GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=EOS
    )
    found = {}

    def batched() -> None:
        model.get_decoder().set_attn_implementation(own)
        found["batched"] = reasoner.generate(**inputs, generation_config=config)

    def one_by_one() -> None:
        model.get_decoder().set_attn_implementation("sdpa")
        found["one"] = answer_without_cache(task, new)

    times = report.in_turn({"batched": batched, "one by one": one_by_one}, repeats)
    ratio = geometry.batch * times["one by one"].median / times["batched"].median
    same = float((found["batched"][:1] == found["one"]).float().mean())
    report.add(
        {
            **{"part": "generation", "batch": geometry.batch},
            **{"examples_per_s": geometry.batch / times["batched"].median},
            **{"one_by_one_per_s": 1 / times["one by one"].median, "speed_up": ratio, "same_words": same},
        }
    )
    report.goal("examples/s, batched over one by one", ">= 30", ratio, ratio >= 30)


PARTS = {"kernels": kernels, "overhead": overhead, "steps": steps, "generation": generation, "large": large}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=9, help="no part begins after so many")
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    args = options.parse_args()
    device, geometry = Device(), InternVL3Geometry(**args.geometry)
    if not device.on_gpu and not args.geometry:
        sys.exit("there is no GPU: to try the script on the CPU, give --geometry with small sizes")
    torch.set_num_threads(args.threads)
    own_sizes = {"generation": ANSWERS, "large": LARGE}
    sizes = {name: InternVL3Geometry(**{**own_sizes.get(name, {}), **args.geometry}) for name in PARTS}
    report, deadline = Report("gpu", geometry, args.out), time.monotonic() + 60 * args.minutes
    for name in args.parts:
        if time.monotonic() > deadline:
            report.add({"part": name, "error": f"left out after {args.minutes:g} minutes"})
            continue
        try:
            PARTS[name](report, device, sizes[name], args.repeats)
        except Exception as error:  # what is measured is kept, and the other parts are measured
            report.add({"part": name, "error": f"{type(error).__name__}: {error}"[:300]})
        device.free()
    report.finish()


if __name__ == "__main__":
    main()
