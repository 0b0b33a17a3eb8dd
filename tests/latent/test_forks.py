"""Rows that divide against two forwards over whole rows, whose shared columns are computed twice.

Tolerances: as in test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import pytest
import torch
from reference import IMAGE, IMAGE_TOKENS, LATENT, MODELS, PAD, SIGHTED, assert_same_gradients, gradients, windowed
from torch import Tensor

from multicoco.curriculum import Branch, Fork, Supervision
from multicoco.data.collate import Collator, Row
from multicoco.latent.forks import ways
from multicoco.latent.objective import Asked, Objective
from multicoco.latent.passes import Passes
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.schedule import SEQUENTIAL, Branched, Jacobi, OnePass, Pass, Sequential
from multicoco.models.checkpointing import checkpoint_activations

ANSWER = 2  # tokens after the announcement
GRID = torch.tensor([[1, 4, 6]])  # of a Qwen's picture: 24 patches, 6 tokens
SHAPES = [(3, 3, 3, 9), (1, 0, 5, 3), (4, 1, 4, 6), (2, 2, 9, 3)]  # prompt, thoughts, words after them, branch


def make_rows(name: str, shapes=SHAPES) -> list[Row]:
    rng = torch.Generator().manual_seed(4)

    def words(n: int) -> list[int]:
        return torch.randint(0, 58, (n,), generator=rng).tolist()

    rows = []
    for i, (n_prompt, n_thoughts, n_written, n_branch) in enumerate(shapes):
        image, inputs = [], {}
        if name == "internvl":
            image, inputs = [IMAGE] * IMAGE_TOKENS, {"pixel_values": torch.randn(1, 3, 56, 56, generator=rng)}
        elif "qwen" in name and "vl" in name and i != 1:
            pixels = torch.randn(24, 3 * 2 * 14 * 14, generator=rng)
            image, inputs = [IMAGE] * 6, {"pixel_values": pixels, "image_grid_thw": GRID}
        prompt = [*words(1), *image, *words(n_prompt)]
        context, written, other = [*prompt, 58, *[LATENT] * n_thoughts, 59], words(n_written), words(n_branch)
        supervision = Supervision(branch=Branch(len(prompt), other, other), answer=ANSWER)
        labels = [-100] * len(context) + written
        rows.append(Row([*context, *written], labels, i, inputs=inputs, supervision=supervision))
    return rows


def collated(rows: list[Row], reasoner: LatentReasoner) -> tuple[dict[str, Tensor], dict]:
    """What `forward` takes, and its supervision."""
    batch, dtype = Collator(PAD, LATENT, reasoner.family.batch, min_length=6)(rows), reasoner.model.dtype
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in batch["inputs"].items()}
    return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")} | inputs, batch["supervision"]


def total(reasoner: LatentReasoner, hidden: list[Tensor], labels: list[Tensor], layers: list[Tensor]) -> Tensor:
    """A loss of both ways whose gradient goes into both, from the head and from every layer in one column."""
    one, other = (reasoner.language_loss(h, of, None) for h, of in zip(hidden, labels, strict=True))
    return one + 0.7 * other + (layers[0] - layers[1]).square().mean() + layers[1].sin().mean()


class BothWays(Objective):
    def asked(self, reasoner, supervision):
        return Asked(tapped=supervision["announced"])

    def forward(self, reasoner, batch):
        fork = batch.supervision["fork"]
        return total(reasoner, ways(batch.passes.hidden, fork), ways(batch.labels, fork), batch.passes.layers.unbind(1))


def two_forwards(reasoner: LatentReasoner, rows: list[Row]) -> Tensor:
    plain = [Row(row.input_ids, row.labels, row.index, inputs=row.inputs) for row in rows]
    other = []
    for row in rows:
        prompt = row.input_ids[: row.branch.after]
        labels = [-100] * len(prompt) + row.branch.labels
        other.append(Row([*prompt, *row.branch.input_ids], labels, row.index, inputs=row.inputs))
    passes: list[Passes] = []
    of_labels = []
    for way in (plain, other):
        tokens, _ = collated(way, reasoner)
        of_labels.append(tokens.pop("labels"))
        last = tokens["attention_mask"].cumsum(-1).argmax(-1, keepdim=True)
        passes.append(reasoner.run_passes(**tokens, asked=Asked(tapped=last - ANSWER)))
    return total(reasoner, [one.hidden for one in passes], of_labels, [one.layers[:, 0] for one in passes])


@pytest.mark.parametrize(
    ("name", "kernel", "dtype", "schedule", "checkpointing"),
    [
        ("internvl", "auto", torch.float64, SEQUENTIAL, False),
        ("internvl", "auto", torch.float64, SEQUENTIAL, True),
        ("internvl", "auto", torch.float32, SEQUENTIAL, True),
        ("qwen2_vl", "auto", torch.float64, SEQUENTIAL, True),  # positions along three axes
        ("qwen3_vl", "auto", torch.float64, SEQUENTIAL, False),  # features that enter behind layers
        ("qwen2", "reference", torch.float64, SEQUENTIAL, True),
        ("qwen2", "flash", torch.float32, OnePass(), True),
        ("llama", "cpu", torch.float32, Jacobi(2), True),  # which writes over columns itself
        ("mistral", "auto", torch.float64, SEQUENTIAL, True),  # windows
        ("gemma3_text", "auto", torch.float64, Jacobi(2), False),
    ],
)
def test_loss_and_every_gradient_equal_those_of_two_forwards(name, kernel, dtype, schedule, checkpointing):
    of = (SIGHTED | MODELS).get(name) or (lambda: windowed(name))
    expected, divided = (
        LatentReasoner(of().to(dtype), LATENT, kernel, pass_schedule=schedule, objective=BothWays()).train()
        for _ in range(2)
    )
    if isinstance(schedule, OnePass):
        expected.latent_token_id = divided.latent_token_id = None
    loss = two_forwards(expected, make_rows(name))
    loss.backward()
    if checkpointing:
        checkpoint_activations(divided.model)
    tokens, supervision = collated(make_rows(name), divided)
    output = divided(**tokens, supervision=supervision)
    output.loss.backward()
    close = (1e-6, 1e-5) if dtype == torch.float64 else (1e-5, 1e-4)
    torch.testing.assert_close(output.loss, loss, rtol=close[0], atol=0)
    assert_same_gradients(divided.model, gradients(expected.model), close[1])


def test_shared_columns_are_run_once():
    """Counted: of every call of the decoder, rows times columns."""
    reasoner, run = LatentReasoner(MODELS["qwen2"]().double(), LATENT, objective=BothWays()), []
    reasoner.decoder.register_forward_pre_hook(
        lambda module, args, given: run.append(given["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    rows = make_rows("qwen2", [(20, 2, 3, 9)] * 4)
    tokens, supervision = collated(rows, reasoner)
    reasoner(**tokens, supervision=supervision)
    divided, run[:] = [*run], []
    two_forwards(reasoner, rows)
    shared, trunk, branch = 21, 7, 9
    assert sum(divided) == 4 * (shared + trunk + branch)
    assert sum(run) == 4 * (2 * shared + trunk + branch)


def test_branches_have_an_objective_and_no_thoughts():
    reasoner = LatentReasoner(MODELS["qwen2"](), LATENT)
    tokens, supervision = collated(make_rows("qwen2"), reasoner)
    with pytest.raises(ValueError, match="no objective that says what they are for"):
        reasoner(**tokens, supervision=supervision)
    tokens["input_ids"][0, supervision["fork"].branch + 1] = LATENT
    reasoner.objective = BothWays()
    with pytest.raises(ValueError, match="a branch has no thoughts"):
        reasoner(**tokens, supervision=supervision)


def test_a_branch_is_one_more_pass_over_what_it_writes_over():
    schedule = Branched(Sequential(), Fork(3, 8))
    assert schedule.passes([4], (), 14, None) == [Pass(0, 4), Pass(4, 8, 1), Pass(8, 14, at=3)]
    assert len(schedule.passes([4], (), 14, 4)) == 4 and schedule.n_passes(1) == 3
    for fork in (Fork(0, 8), Fork(3, 14), Fork(3, 10), Fork(9, 8)):  # nothing is shared, no branch, one that is shorter
        with pytest.raises(ValueError, match="cannot write over"):
            Branched(Sequential(), fork).passes([4], (), 14, None)
