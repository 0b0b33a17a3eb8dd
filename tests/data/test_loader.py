import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from multicoco.curriculum import Branch, ExampleTokens, Supervision, layout
from multicoco.data.collate import Collator
from multicoco.data.example import Example
from multicoco.data.loader import Encoder, RankBatches, ReasoningDataset, check_donors, make_loader
from multicoco.data.prompt import PromptBuilder
from multicoco.errors import UserError
from multicoco.models.families.internvl import InternVL
from multicoco.models.tiny import build_tokenizer

sizes = {
    "n": st.integers(1, 60),
    "batch_size": st.integers(1, 5),
    "world_size": st.integers(1, 4),
    "accumulation": st.integers(1, 3),
    "seed": st.none() | st.text(max_size=4),
}


def all_ranks(n, batch_size, world_size, accumulation, seed):
    return [list(RankBatches(n, batch_size, rank, world_size, accumulation, seed)) for rank in range(world_size)]


@given(**sizes)
def test_every_example_counts_exactly_once(n, batch_size, world_size, accumulation, seed):
    ranks = all_ranks(n, batch_size, world_size, accumulation, seed)
    counted = [index for batches in ranks for batch in batches for index, counts in batch if counts]
    assert sorted(counted) == list(range(n))
    assert {len(batch) for batches in ranks for batch in batches} == {batch_size}
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) % accumulation == 0


@given(**sizes)
def test_a_step_sees_the_same_examples_on_any_number_of_ranks(n, batch_size, world_size, accumulation, seed):
    ranks = all_ranks(n, batch_size, world_size, accumulation, seed)
    alone = list(RankBatches(n, batch_size * world_size * accumulation, 0, 1, 1, seed))
    for step, batch in enumerate(alone):
        micro = range(step * accumulation, (step + 1) * accumulation)
        pieces = [pick for m in micro for batches in ranks for pick in batches[m]]
        assert pieces == batch


@given(**sizes, done=st.integers(0, 30), other_ranks=st.integers(1, 4))
def test_what_is_left_of_an_epoch_is_the_same_on_any_number_of_ranks(
    n, batch_size, world_size, accumulation, seed, done, other_ranks
):
    """An epoch begun on some ranks and gone on with on others, with the same global batch, is the whole epoch."""
    global_batch = batch_size * world_size * accumulation * other_ranks
    whole = list(RankBatches(n, global_batch, 0, 1, seed=seed))
    pieces = [
        list(RankBatches(n, global_batch // other_ranks, rank, other_ranks, seed=seed, done=done))
        for rank in range(other_ranks)
    ]
    left = [[pick for batches in pieces for pick in batches[step]] for step in range(len(pieces[0]))]
    assert whole[:done] + left == whole


@given(**sizes, cut=st.integers(0, 30))
def test_the_parts_of_an_epoch_are_the_epoch(n, batch_size, world_size, accumulation, seed, cut):
    whole, first, rest = (
        list(RankBatches(n, batch_size, 0, world_size, accumulation, seed, done, until))
        for done, until in ((0, None), (0, cut), (cut, None))
    )
    assert first + rest == whole


def test_order_is_kept_without_a_seed_and_changes_with_the_epoch():
    def flat(seed):
        return [index for batch in RankBatches(50, 1, 0, 1, seed=seed) for index, _ in batch]

    assert flat(None) == list(range(50))
    assert flat("0/1") == flat("0/1") != flat("0/2")
    assert sorted(flat("0/1")) == list(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_reads_images_into_tiles_and_tokens(tmp_path, workers):
    tokenizer = build_tokenizer(["a question"], vocab_size=300)
    image_token = tokenizer.context_image_token_id
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    examples = []
    for i, colour in enumerate(colours):
        Image.new("RGB", (56 * (i + 1), 56), colour).save(tmp_path / f"{i}.png")
        examples.append(Example(str(i), "q", (tmp_path / f"{i}.png",), (), (), "a", None))
    processor = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56},
        crop_to_patches=True,
        max_patches=12,
        image_mean=[0] * 3,
        image_std=[1] * 3,
    )
    family = InternVL(SimpleNamespace(image_token_id=image_token, image_seq_length=4))
    encoder = Encoder(PromptBuilder(tokenizer, images=family), partial(family.read_images, image_processor=processor))
    dataset = ReasoningDataset(examples, encoder, "reasoning", lambda _, tokens: layout(tokens, 0, ()))
    collator = Collator(tokenizer.pad_token_id, None, family.batch)
    batches = list(make_loader(dataset, RankBatches(3, 2, 0, 1), collator, workers))
    assert [batch["index"] for batch in batches] == [[0, 1], [2, 0]]
    assert [batch["counted"] for batch in batches] == [[True, True], [True, False]]
    tiles = [1, 3, 4, 1]  # 1x1, 2x1 and 3x1 tiles, with a thumbnail where there are several
    for batch, counts in zip(batches, (tiles[:2], tiles[2:]), strict=True):
        assert (batch["input_ids"] == image_token).sum(1).tolist() == [4 * n for n in counts]
        assert len(batch["inputs"]["pixel_values"]) == sum(counts)
        owners = [index for index, n in zip(batch["index"], counts, strict=True) for _ in range(n)]
        for tile, owner in zip(batch["inputs"]["pixel_values"], owners, strict=True):
            assert torch.allclose(tile.mean((1, 2)), torch.tensor(colours[owner]) / 255, atol=0.02)


def test_a_picture_that_the_model_does_not_take_is_named_by_its_record(tmp_path):
    def refuse(pictures):
        raise UserError("it is too thin")

    Image.new("RGB", (1, 1)).save(tmp_path / "thin.png")
    encoder = Encoder(PromptBuilder(build_tokenizer(["a question"], vocab_size=300)), refuse)
    example = Example("q7", "q", (tmp_path / "thin.png",), (), (), "a", None)
    for read in (encoder, encoder.tokens):
        with pytest.raises(UserError, match="record 'q7': it is too thin"):
            read(example, "reasoning")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_is_signalled_as_it_is_born_does_its_work(number):
    """And the process that made it hears signals as before."""
    is_due = True

    def signal_the_child() -> None:
        if is_due:
            os.kill(os.getpid(), number)

    os.register_at_fork(after_in_child=signal_the_child)  # for good: hence the flag
    dataset = {(index, True): index for index in range(4)}
    try:
        batches = list(make_loader(dataset, RankBatches(4, 2, 0, 1), list, num_workers=1))
    finally:
        is_due = False
    assert batches == [[0, 1], [2, 3]]
    assert not {signal.SIGTERM, signal.SIGUSR1} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def borrowing(n: int, draws: str = "0/1") -> ReasoningDataset:
    """Example i is of i + 1 words i; a donor adds what it was asked for by."""
    examples = [Example(str(i), "q", (), (), (), "a", None) for i in range(n)]
    encode = lambda example, asked: (ExampleTokens([int(example.id)] * (int(example.id) + 1)), {})  # noqa: E731
    arrange = lambda example, tokens: (tokens.prompt, tokens.prompt)  # noqa: E731
    return ReasoningDataset(
        examples, encode, "reasoning", arrange, draws, lambda tokens, ids: [*tokens.prompt, 90 + ids[0]]
    )


def test_donors_are_the_second_half_of_a_batch_and_carry_no_loss():
    dataset = borrowing(6)
    batch = Collator(98, None, lambda inputs: {})([dataset[index, True] for index in (4, 0, 2)])
    ids = [row[row != 98].tolist() for row in batch["input_ids"]]
    assert [row[0] for row in ids[:3]] == [4, 0, 2] and batch["index"][:3] == [4, 0, 2]
    for borrower, donor, index in zip((4, 0, 2), ids[3:], batch["index"][3:], strict=True):
        assert donor == [index] * (index + 1) + [90 + borrower] and index != borrower
    assert batch["counted"] == [True] * 3 + [False] * 3 and (batch["labels"][3:] == -100).all()


def test_whose_thoughts_are_borrowed_depends_on_epoch_and_example_alone():
    donors = lambda dataset: [dataset[i, True].donor.index for i in range(len(dataset))]  # noqa: E731
    first = donors(borrowing(50))
    assert first == donors(borrowing(50)) != donors(borrowing(50, "0/2"))
    assert all(donor != i for i, donor in enumerate(first)) and len(set(first)) > 20
    assert donors(borrowing(2)) == [1, 0]
    check_donors(2, "train_path")
    with pytest.raises(UserError, match="train_path has one example"):
        check_donors(1, "train_path")


def test_seeds_of_rows_depend_on_epoch_and_example_alone():
    seeds = [[borrowing(9, draws)[i, True].seed for i in range(9)] for draws in ("0/1", "0/1", "0/2")]
    assert seeds[0] == seeds[1] and len({*seeds[0], *seeds[2]}) == 18
    assert all(0 <= seed < 2**63 for seed in seeds[0])


def test_a_row_brings_what_its_own_tokens_are_supervised_by():
    examples = [Example(str(i), "q", (), (), (), "a", None) for i in range(2)]
    dataset = ReasoningDataset(
        examples,
        lambda example, asked: (ExampleTokens([int(example.id)]), {}),
        "reasoning",
        lambda example, tokens: (tokens.prompt, tokens.prompt),
        supervise=lambda example, tokens: Supervision([[*tokens.prompt, int(example.id)]], Branch(1, [9], [9])),
    )
    for pick in ((1, True), (0, False)):
        assert dataset[pick].supervision.stretches == [[pick[0]] * 2] and dataset[pick].branch.input_ids == [9]
