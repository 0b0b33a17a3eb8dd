"""Attention over a static cache on the CPU: C++ for short segments, `flash` for long ones.

PyTorch's flash kernel works on blocks of queries and, for a segment of one column, leaves all but a row of each idle;
the C++ kernel splits the cache's length instead. It is compiled on first use (or ahead, `MULTICOCO_BUILD_OPS=1 pip
install .`), once for each instruction set, so that hosts of different ages can share a home folder.
"""

import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from multicoco_kernels import flash
from multicoco_kernels.cache import LayerCache

SOURCE = Path(__file__).resolve().parent / "csrc" / "cached_attention.cpp"
SHORT_ROWS = 16  # query rows per key/value head up to which C++ is the faster one: benchmarks/cached_attention.py

_INSTRUCTIONS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}


def extension_name() -> str:
    return f"multicoco_cached_attention_{torch.backends.cpu.get_cpu_capability().lower()}"


def compile_flags() -> list[str]:
    """Not -ffast-math: masked scores are minus infinity."""
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])
    return ["-O3", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", *instructions]


@functools.cache
def _extension() -> ModuleType | None:
    """The compiled kernel: built ahead, kept from an earlier run, or built now; None, with one warning, without it."""
    try:
        return importlib.import_module(f"multicoco_kernels.{extension_name()}")
    except ImportError:
        pass
    try:
        return _build_or_load()
    except (RuntimeError, OSError, ImportError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "error:" in line), lines[0])
        warnings.warn(
            f"the C++ attention kernel could not be built ({reason}); PyTorch's own takes its place, which is slower "
            "in latent passes: install a C++ compiler and ninja to have it",
            stacklevel=2,
        )
        return None


def _build_or_load() -> ModuleType:
    """Each process that finds no library compiles in a folder of its own and moves the result into place: unlike
    PyTorch's lock file, nothing waits for ever for a process that was killed."""
    import ninja  # neither is needed where the kernel was built ahead
    from torch.utils import cpp_extension

    name = extension_name()
    version = hashlib.sha256(SOURCE.read_bytes() + repr((torch.__version__, compile_flags())).encode()).hexdigest()
    kept = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    library = kept / f"{name}_{version[:16]}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if library.exists():
        spec = importlib.util.spec_from_file_location(name, library)
        assert spec and spec.loader  # Python knows its own suffix
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"multicoco_kernels: compiling {SOURCE.name} for this machine, once (about a minute)", file=sys.stderr)
    # PyTorch looks for the program on the path, where it is not if the virtual environment is not activated
    os.environ["PATH"] = os.pathsep.join((os.environ["PATH"], ninja.BIN_DIR))
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept) as folder:  # the same file system, so that the move is atomic
        built: ModuleType = cpp_extension.load(
            name, [str(SOURCE)], extra_cflags=compile_flags(), build_directory=folder
        )
        os.replace(str(built.__file__), library)
    return built


def _kernel_for(q: Tensor, cache: LayerCache) -> ModuleType | None:
    rows = q.shape[1] // cache.keys.shape[1] * q.shape[2]
    return _extension() if rows <= SHORT_ROWS else None


def forward(q: Tensor, cache: LayerCache, start: int, scale: float) -> tuple[Tensor, Tensor]:
    """q (B, H, S, D) -> out (B, H, S, D), and lse (B, H, S)."""
    if kernel := _kernel_for(q, cache):
        bias = cache.mask.bias(torch.promote_types(q.dtype, torch.float32))
        out, lse = kernel.forward(q, cache.keys, cache.values, bias, start, scale)
        return out, lse
    return flash.forward(q, cache, start, scale)


def backward(
    grad_out: Tensor, q: Tensor, out: Tensor, lse: Tensor, cache: LayerCache, start: int, scale: float
) -> Tensor:
    """Adds dK and dV to the cache's gradient buffers; returns dq (B, H, S, D)."""
    if kernel := _kernel_for(q, cache):
        bias = cache.mask.bias(lse.dtype)
        keys, values = cache.keys, cache.values
        grad_q: Tensor = kernel.backward(grad_out, q, out, lse, keys, values, bias, start, scale, *cache.gradients())
        return grad_q
    return flash.backward(grad_out, q, out, lse, cache, start, scale)
