"""The engine settings that are compared with a single process, and the batches they train on."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from reference import IMAGE, IMAGE_TOKENS, LATENT, PAD, SIGHTED, internvl, text_model
from transformers import PreTrainedModel

from multicoco.config import RunConfig
from multicoco.models.freezing import freeze
from multicoco.models.lora import add_lora, add_token_rows

GLOBAL_BATCH = 4
PASSES = 3  # of each micro-batch, over the language model; what ZeRO-3 does in a step takes time by their square
OFFLOAD = {"device": "cpu"}
LOSS_SCALE = {
    "initial_scale_power": 12,
    "loss_scale_window": 2,
    "hysteresis": 1,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1.0,
}
LOWEST_LOSS_SCALE = LOSS_SCALE | {"min_loss_scale": 2.0**12}
SWITCHES = {
    "contiguous_gradients": False,
    "reduce_scatter": False,
    "reduce_bucket_size": 1000,
    "use_multi_rank_bucket_allreduce": False,
    "allgather_partitions": False,
    "allgather_bucket_size": 1000,
    "overlap_comm": False,
    "round_robin_gradients": True,
}
ZERO3_SWITCHES = {
    "contiguous_gradients": False,
    "reduce_bucket_size": 1000,
    "overlap_comm": True,
    "sub_group_size": 5000,
    "stage3_prefetch_bucket_size": 1000,
    "stage3_param_persistence_threshold": 40,
    "stage3_max_live_parameters": 5000,
    "stage3_max_reuse_distance": 5000,
    "stage3_gather_16bit_weights_on_model_save": True,
    "stage3_use_all_reduce_for_fetch_params": True,
    "stage3_allgather_sequential": True,
}
SMALL_BUFFERS = {"pin_memory": False, "buffer_count": 2, "buffer_size": 10_000, "max_in_cpu": 1000}
RATES = {"vision_tower": 1e-3, "projector": 3e-2, "language_model": 1e-2, "new_tokens": 3e-3}
RATES_OF_LORA = {"projector": 3e-2, "language_model": 1e-2, "new_tokens": 3e-3}  # its vision tower is frozen
SHARDED = {"stage3_param_persistence_threshold": 0}  # at DeepSpeed's own, nothing of a model this small is let go


@dataclass(frozen=True)
class Case:
    """Steps 0 .. reset_after - 1 are one stage, the others the next; in the last two, ZeRO-3 follows its trace. In the
    step `poisoned` rank 1's loss is not a number. Of the ds_config, zero is the section of this name, fp16 this one but
    for `enabled`, other the rest. Of families other than InternVL that see, the rows of rank 1 have no images in every
    other step."""

    zero: dict = field(default_factory=dict)
    other: dict = field(default_factory=dict, kw_only=True)
    checkpointing: bool = False
    frozen: bool = False
    accumulation: int = 1
    steps: int = 4
    reset_after: int = 2
    poisoned: int | None = None
    bf16: bool = False
    fp16: dict | None = None
    lora: bool = False
    tied: bool = True
    experts: bool = False
    thoughts: Literal["hidden", "noise", "borrowed", "parallel"] = "hidden"
    rates: dict[str, float] | None = None
    family: str = "internvl"


SIX = {"steps": 6, "reset_after": 3}  # with steps behind one that is skipped, in either stage
TEXTS = ("llama", "mistral", "gemma2", "gemma3_text")  # without a window, and with one in all or some layers
FAMILIES = (*TEXTS, *(name for name in SIGHTED if name != "internvl"))  # with which all other cases are
PLAIN = Case()
CASES = {
    **{
        f"zero{stage}{'_checkpointing' * checkpointing}": Case({"stage": stage}, checkpointing)
        for stage in range(4)
        for checkpointing in (False, True)
    },
    "zero2_accumulation": Case({"stage": 2}, accumulation=2),
    "zero3_accumulation": Case({"stage": 3}, checkpointing=True, accumulation=2),
    "zero2_frozen": Case({"stage": 2}, checkpointing=True, frozen=True),
    "zero3_frozen": Case({"stage": 3}, checkpointing=True, frozen=True),
    **{f"zero{stage}_poisoned": Case({"stage": stage}, poisoned=1, **SIX) for stage in range(4)},
    "zero2_poisoned_offload": Case({"stage": 2, "offload_optimizer": OFFLOAD}, poisoned=4, **SIX),
    **{
        f"zero{stage}_bf16{'_checkpointing' * checkpointing}": Case({"stage": stage}, checkpointing, bf16=True)
        for stage in range(4)
        for checkpointing in (False, True)
    },
    "zero2_bf16_offload_frozen": Case({"stage": 2, "offload_optimizer": OFFLOAD}, True, frozen=True, bf16=True),
    "zero3_bf16_offload": Case({"stage": 3, "offload_optimizer": OFFLOAD, "offload_param": OFFLOAD}, bf16=True),
    "zero3_offload_frozen": Case({"stage": 3, "offload_optimizer": OFFLOAD}, frozen=True),
    "zero1_fp16": Case({"stage": 1}, poisoned=2, **SIX, fp16=LOWEST_LOSS_SCALE),
    "zero2_fp16_accumulation": Case(
        {"stage": 2}, checkpointing=True, accumulation=2, poisoned=2, **SIX, fp16=LOSS_SCALE
    ),
    "zero2_fp16_offload": Case(
        {"stage": 2, "offload_optimizer": OFFLOAD}, frozen=True, poisoned=2, **SIX, fp16=LOSS_SCALE
    ),
    "zero3_fp16": Case({"stage": 3, **SHARDED}, poisoned=2, **SIX, fp16=LOSS_SCALE),
    "zero3_fp16_offload_lora": Case(
        {"stage": 3, **SHARDED, "offload_optimizer": OFFLOAD, "offload_param": OFFLOAD},
        checkpointing=True,
        poisoned=2,
        **SIX,
        fp16=LOWEST_LOSS_SCALE,
        lora=True,
    ),
    **{f"zero{stage}_lora": Case({"stage": stage}, lora=True) for stage in range(3)},
    "zero2_lora_bf16_frozen": Case({"stage": 2}, checkpointing=True, frozen=True, bf16=True, lora=True),
    "zero3_lora": Case({"stage": 3, **SHARDED}, lora=True),
    "zero3_lora_untied_checkpointing": Case({"stage": 3, **SHARDED}, checkpointing=True, lora=True, tied=False),
    "zero3_lora_offload_param": Case({"stage": 3, **SHARDED, "offload_param": OFFLOAD}, frozen=True, lora=True),
    "zero1_switches": Case({"stage": 1, **SWITCHES}, accumulation=2),
    "zero2_switches": Case({"stage": 2, **SWITCHES, "overlap_comm": True}, accumulation=2),
    "zero3_switches": Case({"stage": 3, **ZERO3_SWITCHES}, checkpointing=True),
    "zero3_offload_switches": Case(
        {
            "stage": 3,
            "offload_optimizer": OFFLOAD | {"ratio": 0.5, "pin_memory": False},
            "offload_param": OFFLOAD | SMALL_BUFFERS,
        }
    ),
    "zero3_experts": Case({"stage": 3, **SHARDED}, checkpointing=True, experts=True),
    **{
        f"zero{stage}_{thoughts}": Case({"stage": stage, **(SHARDED if stage == 3 else {})}, thoughts=thoughts)
        for stage in (2, 3)
        for thoughts in ("noise", "borrowed")
    },
    "zero2_parallel": Case({"stage": 2}, accumulation=2, thoughts="parallel"),
    "zero3_parallel": Case({"stage": 3, **SHARDED}, checkpointing=True, thoughts="parallel"),
    **{f"zero2_{family}": Case({"stage": 2}, family=family) for family in FAMILIES},
    **{f"zero3_{family}": Case({"stage": 3, **SHARDED}, checkpointing=True, family=family) for family in FAMILIES},
    "zero3_hpz": Case({"stage": 3, **SHARDED, "zero_hpz_partition_size": 2}),
    "zero2_bf16_switches": Case(
        {"stage": 2},
        bf16=True,
        other={"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}},
    ),
    "zero0_rates": Case(rates=RATES),
    "zero2_rates": Case({"stage": 2}, rates=RATES),
    "zero3_rates_untied": Case({"stage": 3, **SHARDED}, checkpointing=True, tied=False, rates=RATES),
    "zero3_rates_lora": Case({"stage": 3, **SHARDED}, frozen=True, lora=True, rates=RATES_OF_LORA),
    "zero2_rates_offload": Case({"stage": 2, "offload_optimizer": OFFLOAD}, rates=RATES),
    "zero2_fp16_static": Case({"stage": 2}, poisoned=1, fp16={"loss_scale": 4096}),
    "zero1_offload": Case({"stage": 1, "offload_optimizer": OFFLOAD}),
    "zero2_offload": Case({"stage": 2, "offload_optimizer": OFFLOAD}),
    "zero3_offload": Case({"stage": 3, "offload_optimizer": OFFLOAD, "offload_param": OFFLOAD}, checkpointing=True),
}


def precision(case: Case) -> torch.dtype:
    return torch.bfloat16 if case.bf16 else torch.float16 if case.fp16 else torch.float32


def build_model(case: Case) -> PreTrainedModel:
    if case.family == "internvl":
        model = internvl(tied=case.tied, experts=case.experts, layers=2)
    elif case.family in TEXTS:
        model = text_model(case.family, initializer_range=0.05)
    else:
        model = SIGHTED[case.family](tied=case.tied, spread=0.05, layers=2)  # with more, rounding grows faster in AdamW
    if case.family == "qwen3_vl_moe":  # as from_pretrained does; one by one, what is called depends on the tokens
        model.set_experts_implementation("grouped_mm")
    if case.lora:
        add_lora(model, rank=4, alpha=8, new_tokens=[LATENT])
    elif case.rates:
        add_token_rows(model, [LATENT])
    freeze(model, vision_tower=case.frozen)
    return model


def run_config(case: Case) -> RunConfig:
    return RunConfig(
        mode="coconut_train",
        name="case",
        model_id="none",
        train_path="train.json",
        coconut={"enabled": True, "first_stage": 1},
        activation_checkpointing=case.checkpointing,
        batch_size=GLOBAL_BATCH // 2 // case.accumulation,
        gradient_accumulation_steps=case.accumulation,
        bf16=case.bf16,
        fp16=case.fp16 is not None,
        lr=case.rates or 1e-2,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_grad_norm=0.5,
        lr_schedule="cosine",
        warmup_steps=1,
    )


def image_tokens(case: Case) -> int:
    """Of LLaVA-OneVision's images: of the whole, and of one tile, whose four rows end with a new line."""
    return 16 + 4 * (4 + 1) if case.family == "llava_onevision" else IMAGE_TOKENS


def row(step: int, index: int, n_image: int = IMAGE_TOKENS) -> tuple[list[int], list[int]]:
    """(input_ids, labels): an image, 2 to 5 words, 0 to 2 latents, 3 to 4 labelled words."""
    rng = torch.Generator().manual_seed(100 * step + index)
    words = torch.randint(0, 60, (9,), generator=rng).tolist()
    context = [IMAGE] * n_image + words[: 2 + index] + [LATENT] * ((step + index) % PASSES)
    answer = words[-(3 + index % 2) :]
    return context + answer, [-100] * len(context) + answer


def donor(step: int, index: int) -> tuple[list[int], list[int]]:
    """Of a row: the next one of the global batch, with as many latents as the row has, and no labels."""
    context = row(step, (index + 1) % GLOBAL_BATCH)[0][: IMAGE_TOKENS + 2 + (index + 1) % GLOBAL_BATCH]
    ids = context + [LATENT] * row(step, index)[0].count(LATENT)
    return ids, [-100] * len(ids)


def has_image(case: Case, step: int, index: int) -> bool:
    sometimes = case.family in SIGHTED and (step % 2 == 0 or index < GLOBAL_BATCH // 2)
    return case.family == "internvl" or sometimes


def collate(step: int, indices: range, case: Case = PLAIN) -> dict[str, torch.Tensor]:
    borrows, n_image = case.thoughts == "borrowed", image_tokens(case)
    rows = [row(step, i, n_image) for i in indices] + [donor(step, i) for i in indices if borrows]
    length, first = 20 + n_image, 8 + n_image
    batch = {
        "input_ids": torch.full((len(rows), length), PAD),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), -100),
    }
    images = [*indices, *((i + 1) % GLOBAL_BATCH for i in indices if borrows)]
    for i, (ids, labels) in enumerate(rows):
        if not has_image(case, step, images[i]):
            ids, labels = ids[n_image:], labels[n_image:]
        left = first - (ids.index(LATENT) if LATENT in ids else 4 + n_image)
        batch["input_ids"][i, left : left + len(ids)] = torch.tensor(ids)
        batch["attention_mask"][i, left : left + len(ids)] = 1
        batch["labels"][i, left : left + len(ids)] = torch.tensor(labels)
    pixels = torch.Generator().manual_seed(step)
    images = [i for i in images if has_image(case, step, i)]
    if images and case.family in ("internvl", "internvl3_5", "idefics3", "llava", "smolvlm"):
        batch["pixel_values"] = torch.randn(GLOBAL_BATCH, 3, 56, 56, generator=pixels)[images]
    elif images and case.family == "llava_onevision":
        pixel_values = torch.randn(GLOBAL_BATCH, 2, 3, 56, 56, generator=pixels)[images]
        batch["pixel_values"] = pixel_values.flatten(0, 1)
        batch["image_sizes"] = torch.tensor([[56, 56]] * len(images))
        batch["batch_num_images"] = torch.ones(len(images), dtype=torch.long)
    elif images:  # of 4 x 4 patches
        batch["pixel_values"] = torch.randn(GLOBAL_BATCH, 16, 3 * 2 * 14 * 14, generator=pixels)[images].flatten(0, 1)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(images))
    return batch


def seeds(step: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One for each row, of what stands in it."""
    return batch["input_ids"].sum(-1) + 10_000 * step


def batches(case: Case, step: int, rank: int = 0, world_size: int = 1) -> list[dict[str, torch.Tensor]]:
    """A rank's micro-batches of a step; a single process gets the whole global batch in one."""
    accumulation = case.accumulation if world_size > 1 else 1
    size = GLOBAL_BATCH // (accumulation * world_size)
    starts = [(micro * world_size + rank) * size for micro in range(accumulation)]
    return [collate(step, range(start, start + size), case) for start in starts]
