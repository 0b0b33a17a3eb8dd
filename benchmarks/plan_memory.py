"""`multicoco plan`'s peak memory against that of real training steps, under many settings of the engine.

Each case trains in a process of its own, or two, with the ds_config that the planner itself writes for it. What is
measured is the bytes that PyTorch's allocator has given out, at their peak after the first step: PyTorch's profiler
notes every allocation, so the figure is the same on a busy machine, and holds nothing of Python, of the libraries'
code or of oneDNN's scratch space, which a GPU's memory would not hold either. The CPU is both device and host here, so
what the planner puts on either counts. Of some cases the memory that the system shows as resident during a save is
measured as well.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from common import EOS, LATENT, allocated_peak, in_new_process, parser, peak_resident
from deepspeed import DeepSpeedEngine
from measuring import Report
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_leaves
from transformers import InternVLConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from multicoco.config import RunConfig
from multicoco.engine.assembly import model_dtype
from multicoco.engine.deepspeed import build_engine, init_distributed, model_shape, whole_state_dict
from multicoco.engine.ds_config import resolve_ds_config
from multicoco.engine.state_files import StateFiles
from multicoco.latent.objective import Objective
from multicoco.latent.reasoner import LatentReasoner
from multicoco.methods import method_class
from multicoco.methods.method import Beside
from multicoco.models.freezing import freeze
from multicoco.planning.geometry import Workload, geometry_of
from multicoco.planning.memory import peak_memory
from multicoco.planning.resident import host_memory
from multicoco.planning.setting import Setting, ds_config, overrides
from multicoco.process import end_process

IMAGE, TILE_TOKENS, TILE_SIZE = 3, 64, 224
STEP_TOKENS = 24  # of each written step
FIRST_STEP = "first step"
TOLERANCE = 0.15


@dataclass(frozen=True)
class Case:
    """A model, a batch and an engine. Figures without a comment are as in the planner's Setting and Workload."""

    stage: int = 0
    ranks: int = 1
    offload: str = "none"
    checkpointing: bool = False
    micro_batch: int = 2
    accumulation: int = 1
    max_live: int = 10**9
    latents: int = 4
    prompt: int = 200  # text alone
    written: int = 60
    bf16: bool = False
    tied: bool = False
    images: bool = True  # one tile an example
    frozen: bool = False  # the vision tower
    decoder: str | None = None  # of sim_cot
    layers: int = 6
    hidden: int = 384
    vocabulary: int = 8000

    @property
    def setting(self) -> Setting:
        bucket = self.hidden**2 if self.stage == 3 else 2_000_000
        return Setting(
            self.stage,
            self.offload,
            self.checkpointing,
            self.micro_batch,
            self.accumulation,
            self.ranks,
            bucket,
            self.max_live,
            foreach=False,
        )

    @property
    def workload(self) -> Workload:
        tiles = int(self.images)
        beside = Beside(self.latents, 1, STEP_TOKENS) if self.decoder else None
        return Workload(tiles, tiles * TILE_TOKENS + self.prompt, self.latents, self.written, beside=beside)

    @property
    def config(self) -> RunConfig:
        method = {"method": "sim_cot", "sim_cot": {"decoder": self.decoder}} if self.decoder else {"method": "coconut"}
        return RunConfig(
            mode="train",
            **method,
            name="case",
            model_id="none",
            train_path="none.json",
            bf16=self.bf16,
            freeze={"vision_tower": self.frozen},
            coconut={"enabled": True, "first_stage": 1},
            **overrides(self.setting),
        )

    def objective(self, model: PreTrainedModel) -> Objective | None:
        return method_class(self.config.trained_method)(self.config).objective(model)

    @property
    def model_config(self) -> PreTrainedConfig:
        text = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "tie_word_embeddings": self.tied,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": EOS,
        }
        if not self.images:
            return Qwen2Config(**text)
        vision = {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "image_size": (TILE_SIZE, TILE_SIZE),
            "patch_size": (14, 14),
        }
        return InternVLConfig(
            vision_config=vision,
            text_config={"model_type": "qwen2", **text},
            image_token_id=IMAGE,
            image_seq_length=TILE_TOKENS,
            tie_word_embeddings=self.tied,
        )


CASES = {
    "zero0": Case(),
    "zero0 bf16": Case(bf16=True),
    "zero0 tied checkpointing K=8": Case(tied=True, checkpointing=True, latents=8, micro_batch=4),
    "zero0 accumulation": Case(accumulation=2, images=False),
    "zero1 bf16 accumulation": Case(stage=1, bf16=True, accumulation=2),
    "zero1 offload": Case(stage=1, offload="optimizer", images=False),
    "zero2 tied frozen": Case(stage=2, tied=True, frozen=True),
    "zero2 checkpointing accumulation K=2": Case(stage=2, checkpointing=True, accumulation=2, latents=2),
    "zero2 text K=0": Case(stage=2, images=False, latents=0, micro_batch=4),
    "zero2 checkpointing frozen B=8": Case(stage=2, checkpointing=True, frozen=True, micro_batch=8),
    "zero2 wide vocabulary": Case(stage=2, images=False, vocabulary=32_000, written=200),
    "zero2 bf16 offload accumulation": Case(stage=2, bf16=True, offload="optimizer", accumulation=2),
    "zero2 tied frozen sim_cot": Case(stage=2, tied=True, frozen=True, decoder="copy"),
    "zero2 sim_cot, self": Case(stage=2, decoder="self"),
    "zero3 K=1": Case(stage=3, latents=1),
    "zero0, 2 ranks": Case(ranks=2, latents=1),
    "zero1 bf16, 2 ranks": Case(stage=1, ranks=2, bf16=True),
    "zero2 bf16, 2 ranks": Case(stage=2, ranks=2, bf16=True, micro_batch=4),
    "zero2 checkpointing, 2 ranks": Case(stage=2, ranks=2, checkpointing=True),
    "zero3 bf16, 2 ranks": Case(stage=3, ranks=2, bf16=True),
    "zero3 checkpointing K=2, 2 ranks": Case(stage=3, ranks=2, checkpointing=True, latents=2),
    "zero3 K=0, 2 ranks": Case(stage=3, ranks=2, latents=0),
    "zero3 few live, 2 ranks": Case(stage=3, ranks=2, max_live=5_000_000),
    "zero3 language model live, 2 ranks": Case(stage=3, ranks=2, max_live=13_000_000),
    "zero3 bf16 offload, 2 ranks": Case(stage=3, ranks=2, bf16=True, offload="all"),
}


RESIDENT = ("zero0", "zero2 bf16, 2 ranks", "zero2 checkpointing frozen B=8", "zero3 bf16 offload, 2 ranks")


def predict(case: Case) -> dict[str, int]:
    """Bytes of rank 0: of a step, on what would be its device and its host; of a save's copy; and all that it holds."""
    config = case.config
    model = geometry_of(case.model_config, model_dtype(config), config.freeze.model_dump(), case.objective)
    memory = peak_memory(model, case.workload, case.setting)
    host = host_memory(model, case.setting, memory, asynchronous=True)
    return {
        "peak": memory.peak + memory.offloaded,
        "copied": host.copied,
        "resident": memory.peak + host.rank_0,
    }


def measure(case: Case, threads: int, *options: str, frees: bool = True) -> dict[str, int]:
    """What `allocated` or `resident` returns, in one process or, through torchrun, in several.

    Args:
        frees: as of `in_new_process`.
    """
    arguments = ["--threads", str(threads), "--measure", json.dumps(asdict(case)), *options]
    if case.ranks == 1:
        return in_new_process(__file__, *arguments, frees=frees)
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", str(case.ranks))
    return in_new_process("-m", *launcher, __file__, *arguments, frees=frees)


def batch(case: Case) -> dict[str, Any]:
    work, rows = case.workload, case.micro_batch
    ids = torch.randint(IMAGE + 1, case.vocabulary, (rows, work.length))
    ids[:, : work.tiles * TILE_TOKENS] = IMAGE
    ids[:, work.prompt : work.prompt + work.latents] = LATENT
    labels = ids.clone()
    labels[:, : work.length - work.written] = -100
    images = {"pixel_values": torch.randn(rows, 3, TILE_SIZE, TILE_SIZE)} if case.images else {}
    steps = torch.randint(IMAGE + 1, case.vocabulary, (rows, work.latents, STEP_TOKENS))
    counted, divisors = torch.ones(rows, dtype=torch.bool), torch.tensor([steps.numel()])
    asked = {"supervision": {"stretches": steps, "counted": counted, "divisors": divisors}} if case.decoder else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **images, **asked}


def build_reasoner(case: Case) -> LatentReasoner:
    auto = {"qwen2": "Qwen2ForCausalLM", "internvl": "InternVLForConditionalGeneration"}
    model = getattr(transformers, auto[case.model_config.model_type])._from_config(
        case.model_config, dtype=model_dtype(case.config)
    )
    freeze(model.train(), **case.config.freeze.model_dump())
    return LatentReasoner(model, LATENT, objective=case.objective(model))


def build(case: Case) -> DeepSpeedEngine:
    """In this process, one of case.ranks."""
    _, world_size = init_distributed()
    config, reasoner = case.config, build_reasoner(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ds_config.json")
        path.write_text(json.dumps(ds_config(case.setting)))
        resolved = resolve_ds_config(path, config, world_size, model_shape(reasoner, case.latents + 1))
    return build_engine(reasoner, config, resolved)


def train(case: Case, engine: DeepSpeedEngine, inputs: dict[str, Any]) -> None:
    """One optimizer step."""
    for _ in range(case.accumulation):
        loss = engine(**inputs, n_passes=case.latents + 1).loss
        engine.backward(loss)
        engine.step()
        del loss


def copy_for_save(engine: DeepSpeedEngine) -> tuple[dict, dict | None]:
    """What an asynchronous save holds until it is written: DeepSpeed's files, and the weights."""
    files = engine.checkpoint_engine = StateFiles(copying=True)
    engine._copy_recovery_script = lambda folder: None
    engine.save_checkpoint("not written", tag="state", save_latest=False)
    return files.contents, whole_state_dict(engine.module.model)


def allocated(case: Case) -> dict[str, int]:
    """The peak of the steps after the first, of the worst rank, and the size of a save's copy on rank 0."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        engine, inputs = build(case), batch(case)
        for step in range(3 if case.stage == 3 else 2):  # ZeRO-3 knows from the third on what to fetch ahead
            with record_function(FIRST_STEP if step == 0 else "step"):
                train(case, engine, inputs)
    peak = torch.tensor(allocated_peak(profiler, after=FIRST_STEP))
    torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX)
    tensors = [x.untyped_storage() for x in tree_leaves(copy_for_save(engine)) if isinstance(x, torch.Tensor)]
    return {"peak": int(peak), "copied": sum({x.data_ptr(): x.nbytes() for x in tensors}.values())}


def resident(case: Case) -> dict[str, int]:
    """What the system says that this process holds, at the peak of a step during a save, and before it has a model."""
    init_distributed()
    libraries, _ = peak_resident(lambda: None)
    engine, inputs = build(case), batch(case)
    for _ in range(3):
        train(case, engine, inputs)
    copied = copy_for_save(engine)
    _, peak = peak_resident(lambda: train(case, engine, inputs))
    del copied
    return {"libraries": libraries, "resident": peak}


def compare(name: str, case: Case, threads: int, is_resident_measured: bool, frees: bool) -> dict[str, str | float]:
    """A row."""
    predicted, measured = predict(case), measure(case, threads)
    row = {
        "case": name,
        "predicted_mib": predicted["peak"] / 2**20,
        "measured_mib": measured["peak"] / 2**20,
        "ratio": predicted["peak"] / measured["peak"],
        "copy_mib": measured["copied"] / 2**20,
        "copy_ratio": predicted["copied"] / measured["copied"],
    }
    if is_resident_measured:
        seen = measure(case, threads, "--as-the-system-sees-it", frees=frees)
        row |= {
            "libraries_mib": seen["libraries"] / 2**20,
            "resident_mib": seen["resident"] / 2**20,
            "resident_ratio": predicted["resident"] / seen["resident"],
        }
    return row


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", default=list(CASES), help="names of cases (default: all)")
    options.add_argument("--measure", type=json.loads, help="train this case here and print what it took")
    options.add_argument("--as-the-system-sees-it", action="store_true", help="with --measure: resident memory")
    options.add_argument("--resident", nargs="*", default=RESIDENT, help="cases of which that is measured, too")
    options.add_argument(
        "--default-malloc", action="store_true", help="resident memory with what the C library keeps of freed memory"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        case = Case(**args.measure)
        measured = resident(case) if args.as_the_system_sees_it else allocated(case)
        if torch.distributed.get_rank() == 0:
            print(json.dumps(measured), flush=True)
        torch.distributed.barrier()
        end_process(0)
    report = Report("plan_memory", asdict(Case()), args.out)
    for name in args.cases:
        case = replace(CASES[name], **args.geometry)
        report.add(compare(name, case, args.threads, name in args.resident, not args.default_malloc))
    worst = max(abs(row["ratio"] - 1) for row in report.rows)
    aim = f"within {TOLERANCE:.0%}"
    report.goal("predicted peak memory, largest error of a case", aim, worst, worst <= TOLERANCE)
    if errors := [abs(row["resident_ratio"] - 1) for row in report.rows if "resident_ratio" in row]:
        report.goal("likewise, resident during a save", aim, max(errors), max(errors) <= TOLERANCE)
    report.finish()


if __name__ == "__main__":
    main()
