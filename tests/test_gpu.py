"""The script for a GPU, whole, at sizes that measure nothing: its first run on one is not its first."""

import json
import sys

import gpu
import pytest
import torch

pytestmark = pytest.mark.gpu
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
    assert len(rows["kernels"]) == 3 and all(row["right"] and row["both_ms"] > 0 for row in rows["kernels"])
    losses = [float(row["loss"]) for row in rows["steps"]]
    assert len(losses) == 4 and max(losses) - min(losses) < (5e-2 if torch.cuda.is_available() else 1e-5)
    assert rows["generation"][0]["same_words"] == 1 or torch.cuda.is_available()
    assert {row["K"] for row in (*rows["overhead"], *rows["large"])} == {2}
    assert len(result["goals"]) == 4 and result["machine"].keys() > {"gpu", "torch", "triton"}


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
