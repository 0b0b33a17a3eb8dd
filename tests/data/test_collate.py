import torch
from hypothesis import given
from hypothesis import strategies as st

from multicoco.curriculum import IGNORE_INDEX, Branch, Supervision
from multicoco.data.collate import Collator, Row
from multicoco.models.families.internvl import InternVL

PAD, LATENT = 98, 99
BATCH = InternVL(None).batch
words = st.lists(st.integers(0, 90), min_size=1, max_size=6)


@st.composite
def rows(draw):
    context = draw(words) + [LATENT] * draw(st.integers(0, 4))
    answer = draw(words)
    tiles = draw(st.none() | st.integers(1, 3))
    return Row(
        context + answer,
        [IGNORE_INDEX] * len(context) + answer,
        index=draw(st.integers(0, 9)),
        counted=draw(st.booleans()),
        inputs={} if tiles is None else {"pixel_values": torch.rand(tiles, 3, 2, 2)},
    )


@given(
    batch=st.lists(rows(), min_size=1, max_size=5),
    for_generation=st.booleans(),
    min_length=st.integers(1, 30),
)
def test_padding_loses_nothing_and_lines_up(batch, for_generation, min_length):
    out = Collator(PAD, LATENT, BATCH, for_generation, min_length)(batch)
    ids, mask, labels = out["input_ids"], out["attention_mask"].bool(), out["labels"]
    assert ids.shape == mask.shape == labels.shape and ids.shape[1] >= min_length
    firsts = set()
    for i, row in enumerate(batch):
        assert ids[i, mask[i]].tolist() == row.input_ids
        assert (ids[i, ~mask[i]] == PAD).all() and (labels[i, ~mask[i]] == IGNORE_INDEX).all()
        assert labels[i, mask[i]].tolist() == (row.labels if row.counted else [IGNORE_INDEX] * len(row.labels))
        columns = mask[i].nonzero()[:, 0]
        assert len(columns) == columns[-1] - columns[0] + 1  # padding only outside the row
        if for_generation:
            assert mask[i, -1]
        elif LATENT in row.input_ids:
            firsts.add(ids[i].tolist().index(LATENT))
    assert len(firsts) <= 1  # one common first latent column
    tiles = [row.inputs["pixel_values"] for row in batch if row.inputs]
    assert out["inputs"].keys() == ({"pixel_values"} if tiles else set())
    assert not tiles or torch.equal(out["inputs"]["pixel_values"], torch.cat(tiles))
    assert out["index"] == [row.index for row in batch] and out["counted"] == [row.counted for row in batch]


@given(batch=st.lists(rows(), min_size=1, max_size=5))
def test_as_many_latent_columns_as_the_longest_chain(batch):
    longest = max(row.input_ids.count(LATENT) for row in batch)
    ids = Collator(PAD, LATENT, BATCH)(batch)["input_ids"]
    assert int((ids == LATENT).any(0).sum()) == longest


def test_supervision_follows_its_rows():
    none = IGNORE_INDEX
    supervised = [
        Row([1, LATENT, LATENT, 2, 3], [0] * 5, 0, supervision=Supervision([[7, 8, 9], [7]], answer=1)),
        Row([4, 5, LATENT, 2, 3], [0] * 5, 0, counted=False, supervision=Supervision([[6]], answer=2)),
    ]
    out = Collator(PAD, LATENT, lambda inputs: {})(supervised)
    found = out["supervision"]
    assert found["stretches"].tolist() == [[[7, 8, 9], [7, none, none]], [[6, none, none], [none] * 3]]
    assert found["counted"].tolist() == [True, False]
    assert out["input_ids"].gather(1, found["announced"]).tolist() == [[2], [LATENT]]
    assert [bool((row != none).any()) for row in out["labels"]] == [True, False]


@st.composite
def divided(draw):
    row, branch = draw(rows()), draw(words)
    at = min(draw(st.integers(1, 4)), len(row.input_ids) - 1)
    row.supervision = Supervision(branch=Branch(at, branch, branch), answer=draw(st.integers(0, 2)))
    return row


@given(batch=st.lists(divided().filter(lambda row: row.branch.after > 0), min_size=1, max_size=4))
def test_branches_are_lined_up_and_stand_behind_all_rows(batch):
    out = Collator(PAD, LATENT, BATCH)(batch)
    fork, ids, mask = out["supervision"]["fork"], out["input_ids"], out["attention_mask"].bool()
    assert ids.shape[1] - fork.branch >= fork.branch - fork.column > 0
    for i, row in enumerate(batch):
        trunk, branch = slice(0, fork.branch), slice(fork.branch, None)
        assert ids[i, trunk][mask[i, trunk]].tolist() == row.input_ids
        assert ids[i, branch][mask[i, branch]].tolist() == row.branch.input_ids
        assert mask[i, : fork.column].sum() == row.branch.after and mask[i, fork.column]
        labels = row.branch.labels if row.counted else [IGNORE_INDEX] * len(row.branch.labels)
        assert out["labels"][i, branch][mask[i, branch]].tolist() == labels
        before = row.supervision.answer + 1  # from the end of each way
        ends = [int(mask[i, trunk].nonzero()[-1]) + 1, fork.branch + len(row.branch.input_ids)]
        assert out["supervision"]["announced"][i].tolist() == [end - before for end in ends]


def test_rows_without_supervision_have_none():
    rows = [Row([1, LATENT, 2], [1, 1, 2], 0)]
    assert Collator(PAD, LATENT, lambda inputs: {})(rows)["supervision"] == {}
    bare = Collator(PAD, LATENT, lambda inputs: {})([Row([1], [1], 0, supervision=Supervision())])["supervision"]
    assert bare["stretches"].tolist() == [[[IGNORE_INDEX]]]
