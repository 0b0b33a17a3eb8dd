"""What the benchmarks share: their options, the model and batch they measure, and how memory is measured."""

import argparse
import gc
import json
import os
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._C._profiler import _EventType
from torch.profiler import profile
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LATENT, WORD, EOS, IMAGE = 1, 2, 0, 3  # ids; words begin at WORD
RESULTS = Path(__file__).parent / "results"


@dataclass
class Geometry:
    """A random Qwen2 and a batch of one length: prefix, latent tokens, suffix. Labels are on the suffix."""

    layers: int = 8
    hidden: int = 512
    intermediate: int = 2048
    heads: int = 8
    kv_heads: int = 2
    vocabulary: int = 32_000
    batch: int = 4
    prefix: int = 512
    latents: int = 6
    suffix: int = 64

    def text_config(self) -> dict:
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": EOS,
        }

    def model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        return Qwen2ForCausalLM(Qwen2Config(**self.text_config()))

    def inputs(self, latents: int | None = None) -> dict[str, torch.Tensor]:
        """ids, mask and labels (B, T); of the latent columns, the first `latents` (default all) are latent."""
        rng = torch.Generator().manual_seed(1)
        length = self.prefix + self.latents + self.suffix
        ids = torch.randint(WORD, self.vocabulary, (self.batch, length), generator=rng)
        latents = self.latents if latents is None else latents
        ids[:, self.prefix : self.prefix + latents] = LATENT
        labels = ids.clone()
        labels[:, : self.prefix + self.latents] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass
class InternVL3Geometry(Geometry):
    """InternVL3-1B with random weights; the prefix of every row begins with an image of one tile."""

    layers: int = 24
    hidden: int = 896
    intermediate: int = 4864
    heads: int = 14
    vocabulary: int = 151_674
    batch: int = 16
    prefix: int = 256 + 64
    vision_layers: int = 24
    vision_hidden: int = 1024
    tile_size: int = 448

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def tile_tokens(self) -> int:
        return (self.tile_size // 14) ** 2 // 4

    def model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        vision = {
            "hidden_size": self.vision_hidden,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": 16,
            "intermediate_size": 4 * self.vision_hidden,
            "attention_bias": True,
            "image_size": (self.tile_size, self.tile_size),
            "patch_size": (14, 14),
        }
        config = InternVLConfig(
            vision_config=vision,
            text_config={"model_type": "qwen2", **self.text_config()},
            image_token_id=IMAGE,
            image_seq_length=self.tile_tokens,
            tie_word_embeddings=False,
        )
        return InternVLForConditionalGeneration(config)

    def inputs(self, latents: int | None = None) -> dict[str, torch.Tensor]:
        inputs = super().inputs(latents)
        ids = inputs["input_ids"]
        ids[ids == IMAGE] = WORD
        ids[:, : self.tile_tokens] = IMAGE
        return inputs | {"pixel_values": torch.zeros(self.batch, 3, self.tile_size, self.tile_size)}


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark; those of Geometry replace single values of it."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--repeats", type=int, default=7, help="timed runs of each side, taken in turn")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    options.add_argument("--geometry", type=json.loads, default={}, help='JSON, for example {"layers": 2}')
    return options


def peak_resident(run: Callable[[], object]) -> tuple[int, int]:
    """Bytes of resident memory before a run, and at its peak. Linux."""
    gc.collect()

    def status(key: str) -> int:
        [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)]
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = status("VmRSS")
    run()
    return before, status("VmHWM")


def allocated_peak(profiler: profile, after: str) -> int:
    """Most bytes at a time that were allocated in a profile, after the end of the `record_function` of this name.

    gloo's threads free tensors unseen by the profiler. Of memory that is given out again the old tenant must have been
    freed; with a low MALLOC_MMAP_THRESHOLD_ addresses come round soon.
    """
    allocations, pending = [], list(profiler.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        elif event.name == after:
            since = event.end_time_ns
    starts: list[int] = []
    sizes: dict[int, int] = {}
    total = peak = 0
    for moment, address, size in sorted(allocations, key=lambda allocation: allocation[0]):
        if size < 0:
            if address in sizes:
                del starts[bisect_left(starts, address)]
                total -= sizes.pop(address)
            continue
        first = last = bisect_left(starts, address)
        if first and starts[first - 1] + sizes[starts[first - 1]] > address:
            first -= 1
        while last < len(starts) and starts[last] < address + size:
            last += 1
        total += size - sum(sizes.pop(start) for start in starts[first:last])
        starts[first:last] = [address]
        sizes[address] = size
        if moment > since:
            peak = max(peak, total)
    return peak


def in_new_process(script: str, *arguments: str, frees: bool = True) -> dict:
    """What a benchmark prints as JSON when run for one side alone.

    Args:
        frees: freed memory goes back to the system at once; otherwise the C library keeps some for later, as it does.
    """
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"} if frees else {})
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class Gathers:
    """Counts what this rank gathers from now on, at DeepSpeed's communication layer: below all that could ask for it.

    Attributes:
        calls, bytes: collectives so far, and the size of what came out of them.
    """

    def __init__(self):
        import deepspeed.comm  # of no use to those who count nothing, and not everywhere

        self.calls = self.bytes = 0
        backend = deepspeed.comm.comm.cdb
        for name in ("all_gather", "all_gather_into_tensor", "all_gather_coalesced"):
            setattr(backend, name, self._counted(getattr(backend, name)))

    def _counted(self, function: Callable) -> Callable:
        def counted(*args, **kwargs):
            outputs = kwargs.get("output_tensor", kwargs.get("output_tensors", args[0] if args else None))
            self.calls += 1
            for output in outputs if isinstance(outputs, list | tuple) else [outputs]:
                self.bytes += output.numel() * output.element_size()
            return function(*args, **kwargs)

        return counted
