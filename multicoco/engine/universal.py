"""DeepSpeed's universal checkpoint, by which a run goes on with other ranks or another ZeRO stage."""

import io
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal

from multicoco.errors import UserError

TAG = "state"  # the folder of a checkpoint's state, within DeepSpeed's own


@contextmanager
def plain_data_only() -> Iterator[None]:
    """Inside, no torch.load runs code, not even DeepSpeed's own, which ask for it."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


def to_universal(source: Path, target: Path) -> None:
    """DeepSpeed's conversion, by which a checkpoint becomes independent of ranks and ZeRO stage."""
    shutil.rmtree(target, ignore_errors=True)
    (target / TAG).mkdir(parents=True)
    options = Namespace(  # relative: it takes a path's brackets and such for patterns
        input_folder=str(source.relative_to(target.parent)),
        output_folder=str(Path(target.name, TAG)),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with chdir(target.parent), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
        _fit_every_stage(source, target / TAG)
    except Exception as error:  # rank 0 alone has it, so it must become one that `agree` passes on
        raise UserError(f"{source} cannot be converted for another number of ranks: {error!r}") from error


def _fit_every_stage(source: Path, target: Path) -> None:
    """DeepSpeed reads a converted checkpoint at stage 3 only if it was written there, and below only from below: each
    looks for the same numbers in places and shapes of its own. Here they are put where either looks."""
    names = {"mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"}  # counters, schedule
    for missing in [name for name in names if not (target / name).exists()]:
        [present] = names - {missing}
        shutil.copy2(source / present, target / missing)
    path = target / "zero" / "optimizer_state.pt"
    common = torch.load(path, weights_only=True)
    parameters = [file.parent for file in path.parent.glob("*/exp_avg.pt")]
    if "optimizer_state_dict" in common:  # from stage 3: AdamW's step count once
        step = common["optimizer_state_dict"]["state"][0]["step"]
        groups = torch.load(target / "zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=True)["param_shapes"]
        shapes = {name: shape for group in groups for name, shape in group.items()}
        for folder in parameters:
            torch.save(step, folder / "step.pt")
            for file in (folder / f"{key}.pt" for key in ("fp32", "exp_avg", "exp_avg_sq")):
                flat = torch.load(file, weights_only=True)
                torch.save({"param": flat.view(shapes[folder.name])}, file)
    else:  # with every parameter
        step = torch.load(parameters[0] / "step.pt", weights_only=True)
        common["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": common["param_groups"]}
    torch.save({"ds_version": deepspeed.__version__} | common, path)
