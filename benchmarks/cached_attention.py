"""One latent column, forward and backward: cached_attention against a cache that is concatenated, by cache length."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import allocated_peak, parser
from measuring import Report
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from multicoco_kernels import BufferPool, KeyMask, LayerCache, cached_attention, first_handle

KERNELS = ("cpu", "flash", "reference")  # those that run without a GPU


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that the graph of a column keeps for backward, beyond the cache it attends to."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def peak_bytes(column: Callable[[], object]) -> int:
    """Most bytes that a column allocates at a time, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function("start"):
            pass
        column()
    return allocated_peak(profiler, after="start")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    settings = {"batch": 4, "heads": 14, "kv_heads": 2, "head_dim": 64, **args.geometry}  # heads as in InternVL3-1B
    batch, heads, kv_heads, dim = settings.values()
    scale = dim**-0.5
    report = Report("cached_attention", settings, args.out)
    for length in args.lengths:
        torch.manual_seed(0)
        past_k, past_v = (torch.randn(batch, kv_heads, length, dim, requires_grad=True) for _ in range(2))
        q = torch.randn(batch, heads, 1, dim, requires_grad=True)
        k, v = (torch.randn(batch, kv_heads, 1, dim, requires_grad=True) for _ in range(2))
        mask = KeyMask(torch.ones(batch, length + 1, dtype=torch.bool))
        caches = {kernel: LayerCache(k, mask, BufferPool()) for kernel in KERNELS}
        with torch.no_grad():
            queries = q.expand(-1, -1, length, -1)
            handles = {
                name: cached_attention(queries, past_k, past_v, first_handle(q.device), cache, 0, scale, "cpu")[1]
                for name, cache in caches.items()
            }

        def cached(kernel, caches=caches, handles=handles, length=length, qkv=(q, k, v)):
            return cached_attention(*qkv, handles[kernel], caches[kernel], length, scale, kernel)[0]

        def concatenated(past=(past_k, past_v), qkv=(q, k, v)):
            keys, values = (torch.cat(pair, dim=2) for pair in zip(past, qkv[1:], strict=True))
            return F.scaled_dot_product_attention(qkv[0], keys, values, scale=scale, enable_gqa=True)

        forwards = {
            **{kernel: lambda kernel=kernel, cached=cached: cached(kernel) for kernel in KERNELS},
            "concatenate + sdpa": concatenated,
        }
        wanted = dict.fromkeys(KERNELS, (q, k, v)) | {"concatenate + sdpa": (q, k, v, past_k, past_v)}
        sides = {
            name: lambda name=name, forward=forward: torch.autograd.grad(forward().sum(), wanted[name])  # noqa: B023
            for name, forward in forwards.items()
        }
        times = report.in_turn(sides, args.repeats)
        for name, forward in forwards.items():
            report.add(
                {
                    "length": length,
                    "way": name,
                    "ms": 1000 * times[name].median,
                    "saved_kib": saved_bytes(forward) / 1024,
                    "peak_kib": peak_bytes(sides[name]) / 1024,
                    **times["concatenate + sdpa"].over(times[name], "speed_up"),
                }
            )
    report.finish()


if __name__ == "__main__":
    main()
