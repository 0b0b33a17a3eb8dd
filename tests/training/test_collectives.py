"""What ranks tell each other in a step, and what they hold: as many messages on any number of them."""

import json
import sys

import collectives
import pytest
import starting
import torch
from collectives import KINDS, files_of, growth

from multicoco.planning.cost import Cluster, step_cost
from multicoco.planning.geometry import Workload, geometry_of, read_model_config
from multicoco.planning.setting import Setting

pytestmark = pytest.mark.distributed
FEW, MANY = 64, 3064  # records


@pytest.fixture(scope="module")
def counts_of(tmp_path_factory, run_server):
    """As `benchmarks/collectives.py` counts: of a ZeRO stage, a number of ranks, of micro-batches and of records."""
    config = starting.generate(
        tmp_path_factory.mktemp("collectives") / "data", MANY, {"hidden_size": 32, "text_layers": 2}
    )
    done: dict[tuple[int, int, int, int], dict] = {}

    def counts(stage: int, ranks: int, accumulation: int, records: int = FEW) -> dict:
        asked = stage, ranks, accumulation, records
        if asked not in done:
            folder = config.parent / "_".join(map(str, asked))
            out, of_run = folder.with_suffix(".counts"), collectives.settings(folder, stage, accumulation, records)
            patch = f"import sys, pathlib; sys.path += {sys.path}; import collectives; "
            patch += f"from multicoco.engine import keeping; keeping.KEPT_FROM = {FEW}; "
            patch += f"collectives.watch(pathlib.Path({str(out)!r}))"
            ended = run_server.run(config, *of_run, ranks=ranks, patch=patch)
            assert ended.codes == [143] * ranks, ended.said  # as at a scheduler's notice
            kept, model = files_of(folder / ".examples"), str(config.parent / "model")
            done[asked] = {**json.loads(out.read_text()), "kept": kept, "model": model}
        return done[asked]

    return counts


def messages(counts: dict) -> tuple[int, ...]:
    """All-reduces, all-gathers, reduce-scatters; there are no others."""
    assert counts["calls"].keys() <= set(KINDS)
    return tuple(counts["calls"].get(kind, 0) for kind in KINDS)


def test_messages_of_a_step_are_as_many_on_any_number_of_ranks(counts_of):
    # token counts and flags, gradients, their norm; weights
    assert messages(counts_of(2, 2, 1)) == messages(counts_of(2, 4, 1)) == (3, 1, 0)
    few, many = (messages(counts_of(3, ranks, 1, MANY)) for ranks in (2, 4))
    assert few == many and few[0] == 2 and min(few[1:]) > 2


def test_nothing_grows_with_ranks_and_records(counts_of):
    of = {(2, FEW): counts_of(2, 2, 1), (4, FEW): counts_of(2, 4, 1)}
    of |= {(ranks, MANY): counts_of(3, ranks, 1, MANY) for ranks in (2, 4)}  # what is added by ZeRO-3 cancels out
    for what, at_most in (("told", 1), ("held", 16)):  # bytes; of Python's own objects some are there by chance
        assert abs(growth({corner: counts[what] for corner, counts in of.items()})) < at_most, what
    for records in (FEW, MANY):
        assert of[2, records]["kept"] == of[4, records]["kept"]
    assert of[2, MANY]["kept"]["disk"] > of[2, FEW]["kept"]["disk"]


def test_zero_1_reduces_gradients_once_a_step_and_zero_2_with_every_micro_batch(counts_of):
    once, again = counts_of(1, 2, 4), counts_of(2, 2, 4)
    assert messages(once) == messages(counts_of(2, 2, 1)) == (3, 1, 0) and messages(again) == (3 + 3, 1, 0)
    assert once["bytes"] == counts_of(2, 2, 1)["bytes"]
    small, gradients = 100, once["bytes"]["all_reduce"]
    assert 4 * gradients - 4 * small < again["bytes"]["all_reduce"] < 4 * gradients


@pytest.mark.parametrize(
    ("stage", "ranks", "accumulation", "records"), [(1, 2, 4, FEW), (2, 2, 4, FEW), (3, 4, 1, MANY)]
)
def test_a_rank_sends_what_is_planned(counts_of, stage, ranks, accumulation, records):
    """As in rings, by which the planner and docs/scale.md count."""
    counts = counts_of(stage, ranks, accumulation, records)
    given = {kind: counts["bytes"].get(kind, 0) for kind in KINDS}  # a gather is given a share of what comes of it
    sent = (2 * given["all_reduce"] + given["reduce_scatter"]) * (ranks - 1) / ranks + given["all_gather"] * (ranks - 1)
    model = geometry_of(read_model_config(counts["model"], False), torch.float32, {})
    work, setting = Workload(1, 30, 1, 8), Setting(stage, "none", False, 1, accumulation, ranks, 10**9, 10**9)
    assert sent == pytest.approx(step_cost(model, work, setting, Cluster(1, ranks, 80)).intra_bytes, rel=0.03)
