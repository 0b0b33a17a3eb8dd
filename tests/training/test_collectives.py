"""What ranks tell each other in a step: as many messages on any number of them."""

import json
import sys
from pathlib import Path

import pytest
from homes import REPO, make_home

pytestmark = pytest.mark.distributed
CONFIG = """
mode: coconut_train
num_epochs: 1
batch_size: 2
coconut: {enabled: true, max_latent_stage: 1, first_stage: 1}
"""


@pytest.fixture(scope="module")
def calls_of(tmp_path_factory, run_server):
    """Collectives of a steady step, by their names: of a ZeRO stage, a number of ranks and of micro-batches."""
    home = make_home(tmp_path_factory.mktemp("collectives"), 64, 0, CONFIG)

    def calls(stage: int, ranks: int, accumulation: int) -> dict[str, int]:
        name = f"zero{stage}_{ranks}_{accumulation}"
        paths = [*sys.path, str(Path(__file__).parent)]
        counting = f"import sys, pathlib; sys.path += {paths}; import collectives; "
        counting += f"collectives.count_into(pathlib.Path('{home}/{name}.counts'))"
        settings = (
            f"name={name}",
            f"deepspeed={REPO}/ds_configs/zero{stage}.json",
            "val_path=null",
            "self_check=false",
        )
        settings += (f"gradient_accumulation_steps={accumulation}", "log_every_steps=100")
        ended = run_server.run(home / "run.yaml", *settings, ranks=ranks, patch=counting)
        assert ended.codes == [0] * ranks, ended.said
        counted: dict[str, int] = json.loads((home / f"{name}.counts").read_text())["calls"]
        return counted

    return calls


def test_messages_of_a_step_are_as_many_on_any_number_of_ranks(calls_of):
    # token counts and flags, gradients, their norm; weights
    assert calls_of(2, 2, 1) == calls_of(2, 4, 1) == {"allreduce_": 3, "_allgather_base_": 1}


def test_zero_1_reduces_gradients_once_a_step_and_zero_2_with_every_micro_batch(calls_of):
    assert calls_of(1, 2, 4) == {"allreduce_": 3, "_allgather_base_": 1}
    assert calls_of(2, 2, 4) == {"allreduce_": 3 + 3, "_allgather_base_": 1}
