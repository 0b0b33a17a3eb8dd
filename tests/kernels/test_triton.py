"""Triton's kernels, compiled for an H100, for which it takes none: the compiler takes them, and they fit."""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from multicoco_kernels import triton as kernels

HALF = ("GRAD_OUT", "Q", "K", "V", "OUT")


def shared(kernel, constants):
    '''Bytes of shared memory.'''
    types = {name: f"*{'bf16' if name in HALF else 'fp32'}" for name in kernel.arg_names if name.isupper()}
    types["START"] = "*i64"
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32)).metadata.shared


found = {}
for head_dim in (64, 128, 256):
    rows = kernels._tile_rows(kernels.QUERY_TILE, head_dim)
    q = torch.empty(1, 1, rows, head_dim, dtype=torch.bfloat16, device="meta")  # the longest segment that is short
    reach = SimpleNamespace(keys=torch.empty(1, 1, 999, head_dim, device="meta"), end=500 + rows)
    assert kernels._is_short(q, reach.keys) and not kernels._is_short(torch.cat([q, q], 2), reach.keys)
    launch = kernels._Launch(q, reach, 0.1)
    found[head_dim] = shared(kernels._backward_split, {**launch.tiles, "FRESH": False})
found["one column"] = shared(kernels._forward_split, kernels._Launch(q[:, :, :1], reach, 0.1).tiles)
found["combined"] = shared(kernels._combine, {"SPLITS": 64, "BLOCK_D": 128})
print(json.dumps(found))
"""
LEAST_OF_GPUS = 99 * 2**10  # of compute capability 8.6, 8.9 and 12.0; an A100 has 163, an H100 227 KiB


@pytest.mark.distributed
def test_they_are_compiled_and_fit_the_shared_memory_of_any_gpu(tmp_path):
    """In a process of its own: what is interpreted once is in all of it."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"64", "128", "256", "one column", "combined"}
    assert min(found.values()) > 0 and max(found.values()) <= LEAST_OF_GPUS
