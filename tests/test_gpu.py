"""The script for a GPU, whole, at sizes that measure nothing: its first run on one is not its first."""

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path

import gpu
import pytest
import torch

from multicoco import registry
from multicoco_kernels import BufferPool

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[1]
TINY = {
    **{
        "layers": 2,
        "hidden": 16,
        "intermediate": 24,
        "heads": 2,
        "kv_heads": 2,
        "vocabulary": 50,
        "batch": 2,
        "prefix": 6,
    },
    **{"latents": 2, "suffix": 8, "vision_layers": 1, "vision_hidden": 32, "tile_size": 56},
}


def run(monkeypatch, out, *arguments: str) -> dict:
    command = ["gpu", "--repeats", "1", "--threads", "1", "--out", str(out), "--geometry", json.dumps(TINY), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    gpu.main()
    [file] = out.iterdir()
    return json.loads(file.read_text())


def test_every_part_runs_and_all_ways_compute_the_same(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(gpu, "LARGE_BYTES", 0)
    monkeypatch.setattr(gpu, "SEGMENTS", ((1, 1),))  # Triton's interpreter is slow
    result = run(monkeypatch, tmp_path)
    rows = {name: [row for row in result["rows"] if row["part"] == name] for name in gpu.PARTS}
    assert not [row for row in result["rows"] if "error" in row]
    assert len(rows["kernels"]) == 3 and all(row["right"] for row in rows["kernels"])
    timed = ("forward_ms", "both_ms", "forward_busy_ms", "both_busy_ms", "forward_of_bandwidth")
    assert all(row[key] > 0 for row in rows["kernels"] for key in timed)
    losses = [float(row["loss"]) for row in rows["steps"]]
    assert len(losses) == 5 and max(losses) - min(losses) < (5e-2 if torch.cuda.is_available() else 1e-5)
    assert rows["generation"][0]["same_words"] == 1 or torch.cuda.is_available()
    assert {row["K"] for row in (*rows["overhead"], *rows["large"])} == {2}
    assert len(result["goals"]) == 4 and result["machine"].keys() > {"gpu", "torch", "triton"}


LISTED = {"torch", "transformers", "PIL", "triton", "numpy", "safetensors", "tqdm"}  # the last with transformers


def test_it_imports_nothing_but_what_is_listed():
    """Followed through the files; what functions import they import where it is there, or are not called."""
    pending, seen, foreign = [Path(gpu.__file__), *map(place_of, LAZILY)], set[Path](), set[str]()
    while pending:
        if (path := pending.pop()) in seen:
            continue
        seen.add(path)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                of = node.module if isinstance(node, ast.ImportFrom) else None
                names = [f"{of}.{alias.name}" if of else alias.name for alias in node.names]
                for name in names:
                    own = [*filter(None, map(place_of, prefixes(name)))]
                    pending += own
                    if not own:
                        foreign.add(name.split(".")[0])
    assert {path.name for path in seen} > {"rivals.py", "reasoner.py", "flash.py", "internvl.py"}
    assert foreign - sys.stdlib_module_names == LISTED


LAZILY = ["multicoco.latent.reasoner", "multicoco_kernels.triton"]  # and the families of the registry
LAZILY += [place.split(":")[0] for place in registry._BUILT_IN["families"].values()]


def prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def place_of(name: str) -> Path | None:
    """The file of a module of ours."""
    for folder in (ROOT, ROOT / "kernels", ROOT / "benchmarks"):
        path = folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def test_memory_is_measured_with_gradients_whoever_was_measured_before():
    class Large(torch.nn.Linear):
        cache_buffers, column_graphs = defaultdict(BufferPool), None

    device = gpu.Device()
    layer, x = Large(4096, 4096, device=device.device), torch.ones(1, 4096, device=device.device)
    layer.cache_buffers[0].give([torch.ones(2**24, device=device.device)])
    layer(x).sum().backward()  # cuBLAS keeps what its first products take: 65 MiB on an H200
    for _ in range(2):
        assert 60 < device.peak_mib(lambda: layer(x).sum().backward(), layer) < 90
    assert not layer.cache_buffers


def test_time_of_the_device_is_of_what_it_is_asked_for_alone():
    device = gpu.Device()
    x = torch.ones(512, 512, device=device.device)
    once, often = (device.busy(lambda n=n: [x @ x for _ in range(n)], 3, between=lambda: x + x) for n in (2, 40))
    assert 0 < 8 * once < often


def test_a_kernel_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "KERNELS", ("flash",))
    monkeypatch.setattr(gpu.Column, "difference", lambda self: 0.1 * (self.kernel == "flash"))
    result = run(monkeypatch, tmp_path, "--parts", "kernels")
    timed = {row["kernel"]: "forward_ms" in row for row in result["rows"]}
    assert (
        timed == {"flash": False, "reference": True} and len(result["rows"]) == 8 and result["goals"][0]["met"] == "no"
    )


def test_what_goes_wrong_in_a_part_is_a_row_and_the_others_run(tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "PARTS", {"broken": broken, "whole": lambda report, *_: report.add({"part": "whole"})})
    assert run(monkeypatch, tmp_path / "a")["rows"] == [
        {"part": "broken", "error": "RuntimeError: no such kernel"},
        {"part": "whole"},
    ]
    rows = run(monkeypatch, tmp_path / "b", "--minutes", "-1")["rows"]
    assert [row["error"] for row in rows] == 2 * ["left out after -1 minutes"]


def test_without_a_gpu_and_sizes_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no GPU"):
        gpu.main()
