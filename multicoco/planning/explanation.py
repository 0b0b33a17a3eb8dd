"""Why a setting: each choice, and what it follows from."""

import torch

from multicoco.planning.candidates import GIB, MIB, Candidate, kinds
from multicoco.planning.cost import Cluster
from multicoco.planning.geometry import ModelGeometry
from multicoco.planning.resident import LIBRARIES


def explain(chosen: Candidate, model: ModelGeometry, cluster: Cluster) -> str:
    """Each choice, and what it follows from."""
    setting, memory, host, cost = chosen.setting, chosen.memory, chosen.host, chosen.cost
    activations = memory.device.get("activations", 0) + memory.device.get("vision activations", 0)
    stage = {
        0: "everything fits on every GPU, and gradients are reduced once a step",
        1: "each rank keeps its share of AdamW's state; gradients are reduced once a step",
        2: "each rank keeps its share of AdamW's state and of the gradients",
        3: "each rank keeps its share of the parameters too, and gathers the others when they are needed",
    }[setting.stage]
    lines = [
        f"- `zero_optimization.stage` {setting.stage}: {stage}.",
        f"- `activation_checkpointing` {str(setting.checkpointing).lower()}: activations take "
        f"{activations / GIB:.1f} GiB at the peak.",
        f"- `batch_size` {setting.micro_batch}, `gradient_accumulation_steps` {setting.accumulation}: the fastest that "
        f"fit of those that keep the global batch of {setting.micro_batch * setting.accumulation * setting.ranks}.",
    ]
    if setting.offload != "none":
        lines.append(
            f"- `offload_optimizer`{' and `offload_param`' * (setting.offload == 'all')}: "
            f"{cluster.gpus * memory.offloaded / GIB:.0f} GiB of each node's CPU memory in exchange for GPU memory."
        )
    if setting.stage in (1, 2):
        lines.append(
            f"- `reduce_bucket_size` {setting.reduce_bucket}: two buckets, "
            f"{2 * setting.reduce_bucket * model.width / GIB:.1f} GiB while gradients come in."
        )
    if setting.stage == 3:
        held = "all of them, each gathered once a micro-batch"
        if model.parameters > setting.max_live:
            held = f"{setting.max_live / model.parameters:.0%} of the model, the rest is gathered again"
            if setting.max_live >= model.decoder_parameters:
                held = "the language model, which stays gathered from pass to pass; the rest is gathered again"
        lines.append(f"- `stage3_max_live_parameters` {setting.max_live}: {held}.")
    if len(chosen.passes) > 1:
        gradients = model.width * model.decoder_layer.trainable * model.decoder_layer.copies
        left = ", ".join(f"{nbytes / MIB:.1f}" for nbytes in chosen.passes)
        lines.append(
            f"- {len(chosen.passes)} latent passes: they leave {left} MiB of activations for backward, in their order. "
            f"The language model's gradients are whole on every GPU ({gradients / GIB:.1f} GiB) until the first pass "
            "has given its part, whatever the ZeRO stage."
        )
    lines += [
        f"- Peak {memory.peak / GIB:.1f} of {cluster.gpu_memory:g} GiB a GPU ({kinds(memory.device)}).",
        f"- In the CPU's memory, while a checkpoint is written: {host.rank_0 / GIB:.1f} GiB on rank "
        f"0 (copied for the save {host.copied / GIB:.1f}, offloaded {host.offloaded / GIB:.1f}, libraries "
        f"{LIBRARIES / GIB:.1f}), {host.node(cluster.gpus) / GIB:.1f} GiB on its node. On CPUs the peak comes on top: "
        f"{(memory.peak + host.rank_0) / GIB:.1f} GiB resident, and what the C library keeps of freed memory.",
        f"- A step of {cost.seconds:.2f} s: {cost.compute:.2f} computing, {cost.exposed:.2f} waiting for other GPUs, "
        f"{cost.optimizer:.2f} in AdamW. Estimated, not measured.",
        f"- While loading, each rank holds the whole model in the CPU's memory: "
        f"{cluster.gpus * loaded_bytes(model) / GIB:.0f} GiB a node.",
    ]
    return "\n".join(lines)


def loaded_bytes(model: ModelGeometry) -> int:
    """Of the whole model as `load_backbone` has it: fp16 runs load fp32."""
    return model.parameters * (2 if model.dtype == torch.bfloat16 else 4)
