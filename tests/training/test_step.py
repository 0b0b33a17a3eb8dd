"""What an optimizer step asks of the device: on the meta device there are no values, and whatever reads one fails."""

import json
from dataclasses import replace

import pytest
import torch
from homes import make_home
from reference import LATENT, MODELS, PAD, SIGHTED
from supervised import make_method, make_reasoner, make_rows

from multicoco.data.collate import Collator
from multicoco.training import step as step_module
from multicoco.training.step import train_step
from multicoco.training.transfer import Transfer

STAGE = 3


class Engine:
    """Of DeepSpeed's, what a step calls."""

    def __init__(self, reasoner):
        self.reasoner = reasoner
        self.stepped = 0

    def __call__(self, **inputs):
        return self.reasoner(**inputs)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.stepped += 1


@pytest.fixture
def meta(monkeypatch):
    """Streams, collectives and the way back of the flags of a device without values."""
    of_others, meta = torch.get_device_module, torch.device("meta")
    monkeypatch.setattr(torch, "get_device_module", lambda of: torch.cpu if of == meta else of_others(of))
    monkeypatch.setattr(step_module.dist, "all_reduce", lambda summed: None)
    monkeypatch.setattr(step_module, "OnItsWay", lambda flags: flags)
    return meta


def steps_of(method, reasoner, model, device, kept=lambda inputs: inputs):
    collator = Collator(PAD, LATENT, reasoner.family.batch, min_length=method.passes(STAGE))
    rows = [replace(row, inputs=kept(row.inputs)) for row in make_rows(method, model, STAGE)]
    return Transfer(device, reasoner.family.host_inputs).ahead([[collator(rows[:2]), collator(rows[2:])]])


WITHOUT_COCONUT = {"coconut": {"enabled": False}}
SEEING = ("internvl", "llava", "llava_onevision", "smolvlm", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize(
    ("name", "model", "keys"),
    [
        *(("coconut", model, {}) for model in SEEING),
        *((name, "qwen2", WITHOUT_COCONUT) for name in ("cot", "vanilla", "icot")),
        *((name, "qwen2", {}) for name in ("no_thoughts", "no_markers", "c_mtp", "codi", "sim_cot")),
        *(("coconut", "llama", {"coconut": {"thoughts": kind}}) for kind in ("detached", "pause", "noise")),
        *(("coconut", "llama", {"coconut": keys}) for keys in ({"jacobi_iterations": 1}, {"gradient_passes": 1})),
        ("coconut", "llama", {"coconut": {"projection": "mlp", "norm": "embedding"}}),
        ("codi_sim_cot", "llama", {"sim_cot": {"decoder": "adapters", "decoder_rank": 2, "reads": "last"}}),
    ],
)
def test_a_step_reads_nothing_from_the_device(meta, name, model, keys):
    method = make_method(name, **keys)
    with torch.device("meta"):
        reasoner = make_reasoner(method, (MODELS | SIGHTED)[model]()).train()
    take_a_step(method, reasoner, steps_of(method, reasoner, model, meta))


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("model", [model for model in SEEING if model != "llava"])  # of no family, so nothing is kept
def test_nor_does_one_on_what_is_kept_of_images(meta, model, projected):
    method, here = make_method("coconut"), SIGHTED[model]()
    with torch.device("meta"):
        reasoner = make_reasoner(method, SIGHTED[model]()).train()
    reasoner.family.part(reasoner.model, "vision_tower").requires_grad_(False)

    @torch.no_grad()
    def kept(inputs):
        return reasoner.family.kept(here, inputs, projected)

    take_a_step(method, reasoner, steps_of(method, reasoner, model, meta, kept))


def take_a_step(method, reasoner, steps):
    reasoner.kernel = "reference"
    engine = Engine(reasoner)
    [micro_batches] = steps
    stepped = train_step(engine, method, micro_batches, method.passes(STAGE), flags=[1, 0])
    assert engine.stepped == 2 and reasoner.decoder.layers[0].self_attn.v_proj.weight.grad.is_meta
    assert {x.device.type for x in (stepped.losses, stepped.counts, stepped.flags, *stepped.thoughts)} == {"meta"}
    assert stepped.flags.shape == stepped.counts.shape == stepped.losses.shape == (2,)


def test_what_each_rank_brings_goes_along_with_the_counts(monkeypatch):
    method = make_method("codi")
    reasoner = make_reasoner(method, MODELS["qwen2"]()).train()
    monkeypatch.setattr(step_module, "world_size", lambda: 2)
    monkeypatch.setattr(step_module.dist, "all_reduce", lambda summed: summed.mul_(2).add_(summed.new_tensor(ADDED)))
    [micro_batches] = steps_of(method, reasoner, "qwen2", torch.device("cpu"))
    stepped = train_step(Engine(reasoner), method, micro_batches, method.passes(STAGE), flags=[1, 0])
    assert stepped.flags.read() == [2, 1]
    total = sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
    assert stepped.counts.tolist()[1] == 2 * total and stepped.losses.isfinite().all()


def test_a_step_in_which_no_row_counts_has_no_gradient(monkeypatch):
    method = make_method("coconut")
    reasoner = make_reasoner(method, MODELS["qwen2"]()).train()
    monkeypatch.setattr(step_module.dist, "all_reduce", lambda summed: None)
    collator = Collator(PAD, LATENT, reasoner.family.batch, min_length=method.passes(STAGE))
    rows = [replace(row, counted=False) for row in make_rows(method, "qwen2", STAGE)]
    [micro_batches] = Transfer(torch.device("cpu"), reasoner.family.host_inputs).ahead([[collator(rows)]])
    stepped = train_step(Engine(reasoner), method, micro_batches, method.passes(STAGE), flags=[0])
    gradients = [parameter.grad for parameter in reasoner.parameters() if parameter.grad is not None]
    assert stepped.losses.tolist() == [0] and gradients and all(not gradient.any() for gradient in gradients)


ADDED = [0, 0, 0, 0, 0, 0, 1]  # by the other rank: labelled, all, codi's three, and the flags


READS = """
import json, pathlib, traceback
from torch.utils._python_dispatch import TorchDispatchMode
from multicoco.training import trainer

found, step, done = set(), trainer.train_step, []
# the last one by a masked_select of its own, also where there are no values
READING = [f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "masked_scatter_backward")]

class Reads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in READING:
            frames = [frame for frame in traceback.extract_stack() if "/site-packages/torch/" not in frame.filename]
            packages = [frame for frame in frames if "/deepspeed/" in frame.filename or "/multicoco/" in frame.filename]
            found.add((pathlib.Path(packages[-1].filename).name, packages[-1].name))
        return function(*args, **(kwargs or {}))

def watched(*arguments):
    done.append(1)
    with Reads():
        stepped = step(*arguments)
    if len(done) == 3:  # a steady one
        pathlib.Path("reads.json").write_text(json.dumps(sorted(found)))
    found.clear()
    return stepped

trainer.train_step = watched
"""
# of what the loader gave
ON_HOST = {("step.py", "<genexpr>"), ("reasoner.py", "language_loss"), ("sighted.py", "embed")}
BY_DEEPSPEED = {("utils.py", "is_invalid_grad_norm"), ("stage_1_and_2.py", "_optimizer_step")}


@pytest.mark.distributed
def test_deepspeed_asks_for_the_gradient_norm_and_nobody_else_for_anything(tmp_path, run_server):
    home = make_home(tmp_path, 12, 0, "mode: cot_train\nnum_epochs: 1\nbatch_size: 4\nmax_grad_norm: 1.0\n")
    ended = run_server.run(home / "run.yaml", "val_path=null", "self_check=false", patch=READS)
    assert ended.codes == [0], ended.said
    assert {tuple(read) for read in json.loads((home / "reads.json").read_text())} == ON_HOST | BY_DEEPSPEED
