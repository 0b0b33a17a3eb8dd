from types import SimpleNamespace

import numpy as np
import pytest
from homes import make_home
from hypothesis import given
from hypothesis import strategies as st

from multicoco.config import RunConfig, load_config
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.example import Example
from multicoco.data.sources import load_of_run
from multicoco.engine import lengths
from multicoco.engine.assembly import encoder_of
from multicoco.engine.lengths import check_prompt_lengths, those_that_fit
from multicoco.errors import UserError
from multicoco.methods import method_class
from multicoco.models.reader import load_reader

KEYS = {"name": "run", "model_id": "model", "train_path": "train.json", "mode": "coconut_train", "num_epochs": 3}
COCONUT = {"enabled": True, "c_thought": 2, "max_latent_stage": 2}
METHOD = method_class("coconut")(RunConfig(**KEYS, coconut=COCONUT), LatentTokens(97, 98, 99))
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=6)  # prompt, steps of 3 tokens
STAGES = range(4)


def encode(example: Example, asked: str) -> ExampleTokens:
    prompt, steps = example.choices
    return ExampleTokens([1] * prompt, [[2] * 3] * steps, [3, 4])


ENCODER = SimpleNamespace(tokens=encode)


def config(**keys) -> RunConfig:
    return RunConfig(**KEYS, coconut=COCONUT, **keys)


def examples(sizes) -> list[Example]:
    return [Example(f"q{i}", "q", (), size, (), None, None) for i, size in enumerate(sizes)]


def rows(example: Example) -> list[int]:
    """Lengths in the stages."""
    return [len(METHOD.train_row(encode(example, ""), stage, 0, example.id)[0]) for stage in STAGES]


def refused(check) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
    return None


@given(sizes=SIZES, most=st.integers(1, 40), positions=st.none() | st.integers(1, 40))
def test_kept_is_what_no_stage_makes_too_long_whole_and_in_order(sizes, most, positions):
    given, limit = examples(sizes), min(most, positions or most)
    short = [x for x in given if max(rows(x)) + 4 <= limit]  # whatever thoughts a stage may have
    long = [x for x in given if max(rows(x)) > limit]
    skipping = config(max_length=most, too_long="skip")
    kept: list[Example] = []

    def leave_out() -> None:
        kept.extend(those_that_fit(skipping, positions, given, ENCODER, METHOD, STAGES))

    message = refused(leave_out)
    if message is None:
        assert kept == [x for x in given if x in kept] and all(x in kept for x in short)
        assert not any(x in kept for x in long)
    else:  # nothing is left to train on
        assert not short and f"{len(given)} of {len(given)} records" in message and "too_long: skip" not in message
    strict = config(max_length=most)
    refusal = refused(lambda: those_that_fit(strict, positions, given, ENCODER, METHOD, STAGES))
    assert (refusal is None) == (kept == given)


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_any_number_of_ranks_keeps_the_same_and_each_measures_a_share(monkeypatch, n_ranks, capsys):
    given = examples([(size, size % 3) for size in (9, 2, 4, 8, 1, 7, 3)])
    skipping = config(max_length=15, too_long="skip")
    alone = those_that_fit(skipping, None, given, ENCODER, METHOD, STAGES)
    said = capsys.readouterr().out
    assert 0 < len(alone) < len(given) and f"{len(given) - len(alone)} of 7 records" in said
    ranks, measured = iter(range(n_ranks)), []

    def count(example: Example, asked: str) -> ExampleTokens:
        measured.append(example.id)
        return encode(example, asked)

    def gather(own):
        shares = [given[rank::n_ranks] for rank in range(n_ranks)]
        return [np.array([lengths.longest_row(METHOD, encode(x, ""), STAGES) for x in share]) for share in shares]

    monkeypatch.setattr(lengths, "own_places", lambda n: np.arange(next(ranks), n, n_ranks))
    monkeypatch.setattr(lengths, "gather", gather)
    counting = SimpleNamespace(tokens=count)
    for _ in range(n_ranks):
        assert those_that_fit(skipping, None, given, counting, METHOD, STAGES) == alone
    assert sorted(measured) == [x.id for x in given]


def test_the_message_counts_names_the_longest_and_says_what_to_do(capsys):
    given = examples([(size, 0) for size in range(1, 10)])  # 8 more with answer, markers and thoughts
    message = refused(lambda: those_that_fit(config(max_length=10), None, given, ENCODER, METHOD, STAGES))
    assert (
        message and "train_path: 7 of 9 records are longer than 10 tokens, max_length ('q8' (17), 'q7' (16)" in message
    )
    assert "set too_long: skip" in message and "raise max_length" in message
    message = refused(lambda: those_that_fit(config(), 10, given, ENCODER, METHOD, STAGES))
    assert message and "10 tokens, all that the model takes" in message and "a model with more positions" in message
    those_that_fit(config(max_length=16, too_long="skip"), None, given, ENCODER, METHOD, STAGES)
    assert "1 of 9 records are longer than 16 tokens, max_length ('q8' (17)): left out" in capsys.readouterr().out


def test_what_is_remembered_is_not_measured_again(tmp_path):
    given, file = examples([(size, 0) for size in range(1, 10)]), tmp_path / "f.lengths"

    def fitting(encoder, most: int):
        skipping = config(max_length=most, too_long="skip")
        return those_that_fit(skipping, None, given, encoder, METHOD, STAGES, file)

    unread = SimpleNamespace(tokens=None)
    first = fitting(ENCODER, 12)
    assert 0 < len(first) < 9 and fitting(unread, 12) == first and len(fitting(unread, 13)) == len(first) + 1
    file.write_bytes(b"short")
    assert fitting(ENCODER, 12) == first == fitting(unread, 12)


def test_without_a_limit_nothing_is_measured():
    unread = SimpleNamespace(tokens=None)
    assert len(those_that_fit(config(), None, examples([(1, 1)]), unread, METHOD, STAGES)) == 1


def test_tokens_are_measured_as_they_are_trained_and_sizes_processed_once(tmp_path, monkeypatch):
    home = make_home(tmp_path, 6, 2, "mode: cot_train\n")
    run = load_config(home / "run.yaml")
    reader = load_reader(run.model_id, run.max_image_tiles, trust_remote_code=False)
    encoder = encoder_of(run, reader, "2026-01-01")
    read = load_of_run(run, run.train_path, None)
    whole = [encoder(x, "reasoning")[0] for x in read]
    processed: list[int] = []
    inner = encoder.read_images
    monkeypatch.setattr(encoder, "read_images", lambda images: processed.append(len(images)) or inner(images))
    assert [encoder.tokens(x, "reasoning") for x in read] == whole and processed == [1]


@given(sizes=SIZES, limit=st.integers(1, 40), new=st.integers(1, 10))
def test_an_answer_must_have_room_behind_the_longest_prompt(sizes, limit, new):
    longest = max(len(METHOD.prompt_row(encode(x, ""), 2)) for x in examples(sizes))
    message = refused(lambda: check_prompt_lengths(limit, examples(sizes), ENCODER, [METHOD], [0, 1, 2], new))
    assert (message is not None) == (longest + new > limit)
    if message and longest < limit:
        assert f"lower generation.max_new_tokens to {limit - longest}" in message


def test_thoughts_that_are_added_at_evaluation_need_room_too():
    limit = 5 + 2 + 4 + 1  # prompt, markers, the 4 thoughts of stage 2, an answer
    check_prompt_lengths(limit, examples([(5, 4)]), ENCODER, [METHOD], [2], 1)
    asked = (limit, examples([(5, 4)]), ENCODER, [METHOD], [2], 1)
    message = refused(lambda: check_prompt_lengths(*asked, extended_to=5))
    assert message and "record 'q0' is 12 tokens long" in message


def test_what_a_method_cannot_learn_from_is_refused_by_name_and_before_the_run():
    """Two thoughts, the last of which stand for all steps from the second on, of 3 tokens each."""
    keys, given = KEYS | {"mode": "train", "method": "c_mtp", "coconut": COCONUT}, examples([(1, 2), (1, 3)])
    few, enough = (RunConfig(**keys, c_mtp={"words": words}) for words in (2, 3))
    message = refused(lambda: those_that_fit(few, None, given, ENCODER, method_class("c_mtp")(few), STAGES))
    assert message.startswith("train_path: record 'q1': a thought would stand for 3 tokens")
    assert those_that_fit(enough, None, given, ENCODER, method_class("c_mtp")(enough), STAGES) == given
