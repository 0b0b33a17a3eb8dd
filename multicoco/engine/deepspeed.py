"""The DeepSpeed engine around a LatentReasoner: process group, initialisation, whole weights out of ZeRO's shards."""

import copy
import os
import resource
import socket
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from deepspeed.constants import TORCH_DISTRIBUTED_DEFAULT_PORT
from deepspeed.runtime.config import DeepSpeedConfig
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from transformers import PreTrainedModel

from multicoco.config import RunConfig
from multicoco.engine.builds import prepare_builds
from multicoco.engine.ds_config import ModelShape
from multicoco.engine.optimizer import build_optimizer, reset_optimizer_state
from multicoco.engine.ranks import gather, rank
from multicoco.engine.rates import parameter_groups
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.checkpointing import checkpoint_activations

_PORTS = range(10000, 32768)  # above, Linux gives them to outgoing connections


def free_port() -> int:
    """A TCP port on which nothing of this host listens, of those that no outgoing connection is given: the ranks open
    it only later."""
    for port in SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("", port))
            return port
    raise UserError(f"no port of {_PORTS.start} to {_PORTS.stop - 1} is free on this host: end what listens there")


def init_distributed() -> tuple[int, int]:
    """Joins the process group that `deepspeed`, `torchrun` or `mpirun` describes, or makes one of this process alone.

    Returns: (rank, world size).

    Raises:
        UserError: the port to meet at is taken; on rank 0, which opens it. mpirun's ranks need mpi4py.
    """
    if "OMPI_COMM_WORLD_SIZE" in os.environ and "RANK" not in os.environ:
        _ask_mpi()
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    if "OMP_NUM_THREADS" not in os.environ:  # DeepSpeed's launcher would give every rank all cores
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    prepare_builds()
    try:
        deepspeed.init_distributed(verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']} of {os.environ['MASTER_ADDR']} is in use, perhaps by another run there: "
            "give the launcher another with --master_port"
        ) from error
    dist.barrier()
    # on CPUs of one host DeepSpeed maps a file of 66 MiB per rank and never removes it; by now every rank has mapped it
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
    Path(f"/dev/shm/{name}_{dist.get_rank()}").unlink(missing_ok=True)
    return dist.get_rank(), dist.get_world_size()


def _ask_mpi() -> None:
    """Sets the variables by which the ranks meet, as torchrun would; under OpenMPI's `mpirun`."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"started by mpirun, but mpi4py cannot be imported ({error}): pip install mpi4py") from error
    deepspeed.comm.mpi_discovery(int(os.environ.get("MASTER_PORT", TORCH_DISTRIBUTED_DEFAULT_PORT)), verbose=False)
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"]
    MPI.Finalize()  # mpirun takes a process that ends without it for a crash; the ranks talk through gloo or NCCL


def build_engine(reasoner: LatentReasoner, config: RunConfig, ds_config: dict[str, Any]) -> DeepSpeedEngine:
    """Wraps the model for training with a resolved ds_config (see `engine.ds_config`).

    Raises:
        UserError: DeepSpeed does not take a value, this machine cannot train in the precision asked for, or learning
            rates are for other parts than those that train.
    """
    for precision, supported in (
        ("fp16", get_accelerator().is_fp16_supported),
        ("bf16", get_accelerator().is_bf16_supported),
    ):
        if ds_config[precision]["enabled"] and not supported():
            raise UserError(
                f"{precision}: true, but {get_accelerator().device_name()} cannot train in it: set it to false"
            )
    try:
        DeepSpeedConfig(ds_config)
    except Exception as error:  # it raises many kinds, for nothing but what is written in the file
        raise UserError(f"{config.deepspeed}: DeepSpeed does not take it: {error}") from error
    reasoner.train()  # from_pretrained leaves a model in evaluation mode, where nothing is recomputed or dropped out
    if config.activation_checkpointing:
        beside = [] if reasoner.objective is None else reasoner.objective.children()
        for model in (reasoner.model, *(module for module in beside if isinstance(module, PreTrainedModel))):
            checkpoint_activations(model)
    zero = ds_config["zero_optimization"]
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    groups = parameter_groups(reasoner, config.lr)
    if zero["stage"] == 3:
        # by default DeepSpeed takes some mixtures of experts for leaves, whose gradients it reduces once for each call
        ds_config = ds_config | {"zero_optimization": zero | {"leaf_module": {"classes": []}}}
    engine, *_ = deepspeed.initialize(
        model=reasoner,
        model_parameters=[parameter for group in groups for parameter in group["params"]],
        optimizer=build_optimizer(groups, config, offloaded, sharded=zero["stage"] > 0),
        config=ds_config,
    )
    if config.fp16:
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # max_skipped_steps ends the run, and says why
    reset_optimizer_state(engine)  # the wrapper of bf16 and fp16 without ZeRO has taken a step, with gradients of 0
    if zero["stage"] == 3:
        # what computes with parameters of other modules must have them registered, or ZeRO-3 does not gather them
        owners: dict[nn.Module, nn.Module] = {reasoner.cross_entropy: reasoner.model.get_output_embeddings()}
        owners |= {} if reasoner.objective is None else reasoner.objective.weights_of_others()
        owners |= {module: module for module in reasoner.modules() if isinstance(module, TrainableTokensLayer)}
        computed_with = [(module, parameter) for module, owner in owners.items() for parameter in owner.parameters()]
        beside_modules = reasoner.model.base_model.parameters(recurse=False)
        computed_with += [
            (module, parameter) for parameter in beside_modules for module in (reasoner.embedding, reasoner.keeping)
        ]
        for module, parameter in computed_with:
            deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def model_shape(reasoner: LatentReasoner, passes: int) -> ModelShape:
    """The sizes that `resolve_ds_config` needs, of a model that is not sharded yet."""
    decoder = reasoner.decoder
    return ModelShape(
        hidden_size=reasoner.model.config.get_text_config().hidden_size,
        parameters=sum(parameter.numel() for parameter in reasoner.parameters()),
        decoder_parameters=sum(parameter.numel() for parameter in decoder.parameters())
        - sum(parameter.numel() for parameter in decoder.get_input_embeddings().parameters()),
        passes=passes,
    )


def forget_trace(engine: DeepSpeedEngine) -> None:
    """At a stage transition, when the number of passes changes: ZeRO-3 decides anew what it lets go of, and when.

    DeepSpeed 0.19 caches these decisions by coordinator, module and place in the trace, and keeps them when the trace
    is recorded again; a coordinator that is a copy starts with none.
    """
    offload = engine.optimizer.parameter_offload
    offload.param_coordinator = copy.copy(offload.param_coordinator)


def device() -> torch.device:
    return torch.device(get_accelerator().current_device_name())


def peak_memory() -> int:
    """Bytes, of the rank that has taken the most since it started: allocated on an accelerator, resident on CPUs.
    Collective."""
    if device().type == "cpu":
        here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    else:
        here = get_accelerator().max_memory_allocated()
    return max(gather(here))


def whole_state_dict(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The model's weights on the CPU, on rank 0 (None elsewhere); every rank must call it.

    Gathers one parameter at a time, so no device ever holds more than one whole parameter beyond its shards.
    """
    on_rank_0 = rank() == 0
    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if on_rank_0:
                state[name] = parameter.detach().cpu().clone()
    persistent = model.state_dict().keys() if on_rank_0 else ()
    state.update({name: buffer.cpu() for name, buffer in model.named_buffers() if name in persistent})
    return state if on_rank_0 else None


def thought_state_dict(reasoner: LatentReasoner) -> dict[str, torch.Tensor]:
    """What is trained of the thoughts themselves, on the CPU, on rank 0; empty where there is nothing. Collective."""
    source = reasoner.thought_source
    return whole_state_dict(source) or {} if isinstance(source, nn.Module) else {}
