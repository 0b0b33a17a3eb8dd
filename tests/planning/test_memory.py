import json
import sys
from dataclasses import asdict, replace

import plan_memory
import pytest
import torch
from plan_memory import CASES, Case, batch, build_reasoner
from planned import NOTHING, PLAIN, WORK, model
from reference import qwen2
from supervised import make_examples, make_method, make_reasoner, make_rows, training_loss

from multicoco.latent.schedule import SEQUENTIAL, Jacobi
from multicoco.planning.geometry import Workload, geometry_of
from multicoco.planning.memory import pass_activations, peak_memory
from multicoco.planning.trace import LiveBytes
from multicoco_kernels import BufferPool, KeyMask, LayerCache

# in place of a run: what `in_new_process` does to the C library's allocator, then the measurement
MEASURE = """
import ctypes, json, sys
sys.path += {path}
import plan_memory

for option, value in ((-3, 2**16), (-1, 0)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    ctypes.CDLL(None).mallopt(option, value)
measured = plan_memory.allocated(plan_memory.Case(**{case}))
if rank == 0:
    with open({out!r}, "w") as file:
        json.dump(measured, file)
plan_memory.torch.distributed.barrier()
plan_memory.end_process(0)
"""


@pytest.mark.distributed
def test_what_is_allocated_copied_and_resident_is_as_predicted(tmp_path, monkeypatch, run_server, one_thread):
    """What is allocated in forked ranks, what is resident in a process that has imported all by itself."""
    in_new_process = plan_memory.measure

    def measure(case: Case, threads: int, *options: str, frees: bool = True) -> dict[str, int]:
        if options:
            return in_new_process(case, threads, *options, frees=frees)
        out = tmp_path / "measured.json"
        patch = MEASURE.format(path=sys.path, case=asdict(case), out=str(out))
        ended = run_server.run(tmp_path / "none.yaml", ranks=case.ranks, patch=patch)
        assert ended.codes == [0] * case.ranks, ended.said
        return json.loads(out.read_text())

    cases = ["zero2 tied frozen sim_cot", "zero3 bf16, 2 ranks"]
    smaller = json.dumps({"layers": 2, "prompt": 100, "written": 40})
    arguments = ["--threads", "1", "--out", str(tmp_path), "--cases", *cases, "--resident", cases[0]]
    monkeypatch.setattr(plan_memory, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["plan_memory.py", *arguments, "--geometry", smaller])
    plan_memory.main()
    rows = json.loads((tmp_path / "plan_memory.json").read_text())["rows"]
    assert [row["case"] for row in rows] == cases
    assert all(row["measured_mib"] > 100 and abs(row["ratio"] - 1) <= 0.15 for row in rows), rows
    assert all(row["copy_mib"] > 100 and abs(row["copy_ratio"] - 1) <= 0.01 for row in rows), rows
    assert rows[0]["resident_mib"] > rows[0]["measured_mib"] + rows[0]["copy_mib"]
    assert abs(rows[0]["resident_ratio"] - 1) <= 0.15 and "resident_ratio" not in rows[1]


@pytest.mark.parametrize("images", [False, True])
def test_cases_with_and_without_images_can_be_measured(images):
    [case, *_] = [case for case in CASES.values() if case.images == images]
    case = replace(case, layers=1, hidden=48, vocabulary=50, prompt=3, latents=2, written=2, bf16=False)
    assert build_reasoner(case)(**batch(case), n_passes=3).loss.isfinite()


def test_the_cache_is_as_large_as_the_real_one():
    geometry = geometry_of(qwen2().config, torch.bfloat16, NOTHING)
    text, rows, work = geometry.text, 3, replace(WORK, tiles=0)
    like = torch.empty(rows, text.num_key_value_heads, 1, text.hidden_size // text.num_attention_heads).bfloat16()
    cache = LayerCache(like, KeyMask(torch.ones(rows, work.length, dtype=torch.bool)), BufferPool())
    buffers = [cache.keys, cache.values, *cache.gradients()[:2]]
    expected = text.num_hidden_layers * sum(buffer.nbytes for buffer in buffers)
    assert peak_memory(geometry, work, replace(PLAIN, micro_batch=rows)).device["KV cache"] == expected


@pytest.mark.parametrize("keys", [{"decoder_layers": 1}, {"decoder": "adapters", "decoder_rank": 8}])
def test_what_a_decoder_of_steps_leaves_for_backward_is_as_predicted(keys):
    """Measured: the bytes of what operations have made that is alive after a forward, with the decoder and without."""
    measured, predicted = [], []
    for name, own in (("sim_cot", {"sim_cot": keys}), ("coconut", {})):
        method = make_method(name, **own)
        reasoner, rows = make_reasoner(method, qwen2()).train(), 4 * make_rows(method, "qwen2", 3)[:1]
        training_loss(method, reasoner, rows, 3).backward()  # from here on the buffers of the caches are there
        with LiveBytes() as counted:
            loss = training_loss(method, reasoner, rows, 3)
            measured.append(counted.live)
        loss.backward()
        tokens = make_examples("qwen2")[0]
        extent, beside = method.extent(tokens, 3), method.beside(tokens, 3)
        work = Workload(0, extent.context, extent.thoughts, extent.written, beside=beside)
        geometry = geometry_of(qwen2().config, torch.float32, NOTHING, method.objective)
        memory = peak_memory(geometry, work, replace(PLAIN, micro_batch=4))
        predicted.append(memory.parts["activations"])
    assert predicted[0] - predicted[1] == pytest.approx(measured[0] - measured[1], rel=0.15)


def test_what_words_that_thoughts_say_leave_for_backward_is_as_predicted():
    """Measured likewise, of more words and of fewer."""
    measured, predicted = [], []
    for words in (4, 40):
        method = make_method("c_mtp", c_mtp={"words": words})
        reasoner, rows = make_reasoner(method, qwen2()).train(), 4 * make_rows(method, "qwen2", 3)[:1]
        with LiveBytes() as counted:
            loss = training_loss(method, reasoner, rows, 3)
            measured.append(counted.live)
        loss.backward()
        extent = method.extent(make_examples("qwen2")[0], 3)
        work = Workload(0, extent.context, extent.thoughts, extent.written, said=method.said(3))
        geometry = geometry_of(qwen2().config, torch.float32, NOTHING, projection=method.projection)
        memory = peak_memory(geometry, work, replace(PLAIN, micro_batch=4))
        predicted.append(memory.parts["activations"])
        assert memory.parts["logits"] > geometry.trace.loss(4 * work.said).forward > 0
    assert predicted[1] - predicted[0] == pytest.approx(measured[1] - measured[0], rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_leaves_activations_for_its_columns(checkpointing):
    setting = replace(PLAIN, checkpointing=checkpointing)
    passes = pass_activations(model(), WORK, setting)
    columns = [WORK.prompt, 1, 1, 1 + WORK.written]
    assert [nbytes / passes[1] for nbytes in passes] == columns


def test_each_stage_shares_more():
    geometry = model(torch.bfloat16)
    peaks = [peak_memory(geometry, WORK, replace(PLAIN, stage=stage, ranks=8)).peak for stage in range(4)]
    assert peaks[0] > peaks[1] >= peaks[2] > peaks[3]


def test_what_parallel_thoughts_write_over_is_kept_in_the_cache():
    work = Workload(0, 20, 6, 8, schedule=Jacobi(2))
    assert work.segments == [26, 6, 14] and work.written_over == 12 and work.length == 34
    geometry = model()
    parallel, sequential = (
        peak_memory(geometry, replace(work, schedule=schedule), PLAIN).parts["KV cache"]
        for schedule in (work.schedule, SEQUENTIAL)
    )
    assert parallel - sequential == PLAIN.micro_batch * 12 * geometry.cache_numbers * 2 * geometry.width


def test_a_branch_shares_the_columns_of_the_cache_and_writes_over_what_follows_the_fork():
    work = Workload(0, 20, 3, 8, shared=19, branch=30)
    assert work.segments == [20, 1, 1, 9, 30] and (work.columns, work.cached, work.written_over) == (61, 49, 12)
    short = replace(work, branch=4)  # padded to what it writes over
    assert short.segments[-1] == 12 and (short.cached, short.written_over, short.labelled) == (31, 12, 12)
    geometry = model()
    divided, apart = (peak_memory(geometry, one, PLAIN) for one in (work, Workload(0, 20, 3, 26, rows=2)))
    assert divided.peak < apart.peak  # as two rows of as many columns


def test_gradients_of_latent_passes_are_whole_in_every_stage():
    config = qwen2().config
    config.num_hidden_layers, config.intermediate_size, config.layer_types = 24, 8192, 24 * ["full_attention"]
    geometry = geometry_of(config, torch.bfloat16, NOTHING)
    whole = geometry.width * geometry.decoder_layer.trainable * geometry.decoder_layer.copies
    for stage in (1, 2, 3):
        setting = replace(PLAIN, stage=stage, ranks=64, max_live=1, micro_batch=1, checkpointing=True)
        latent, plain = (peak_memory(geometry, Workload(0, 20, latents, 8), setting) for latents in (3, 0))
        assert latent.device["unfinished gradients"] == whole
        assert latent.peak - plain.peak > 0.8 * whole


@pytest.mark.parametrize("stage", range(4))
def test_checkpointing_and_smaller_micro_batches_take_less(stage):
    geometry, setting = model(), replace(PLAIN, stage=stage, micro_batch=8)
    work = replace(WORK, prompt=200)
    smaller = replace(setting, micro_batch=4, accumulation=2)
    peak = peak_memory(geometry, work, setting).peak
    assert peak_memory(geometry, work, replace(setting, checkpointing=True)).peak < peak
    assert peak_memory(geometry, work, smaller).peak < peak


def test_frozen_parts_have_neither_gradients_nor_optimizer():
    trained, frozen = model(), model(vision_tower=True)
    saved = 8 * (trained.trainable - frozen.trainable)
    assert saved > 0
    states = [peak_memory(geometry, WORK, PLAIN).device["optimizer"] for geometry in (trained, frozen)]
    assert states[0] - states[1] == saved


def test_offload_moves_states_to_the_host():
    geometry = model(torch.bfloat16)
    setting = replace(PLAIN, stage=3, ranks=2)
    none, optimizer, everything = (
        peak_memory(geometry, WORK, replace(setting, offload=offload)) for offload in ("none", "optimizer", "all")
    )
    assert not none.host and "optimizer" in optimizer.host and "parameters" in everything.host
    assert none.peak > optimizer.peak > everything.peak
