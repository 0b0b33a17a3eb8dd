"""Rows that come and go against transformers' own `generate`, in which they come and go together."""

import pytest
import torch
from reference import EOS, LATENT, PAD, internvl, qwen2, qwen3_vl, windowed
from transformers import GenerationConfig, PreTrainedModel

from multicoco.latent.generate import Passes, generate_after
from multicoco.latent.greedy import GreedyAnswers
from multicoco.latent.reasoner import LatentReasoner

MODELS = {
    "qwen2": qwen2,
    "internvl": lambda: internvl(seed=1),
    "qwen3_vl": lambda: qwen3_vl(seed=1),
    "window": lambda: windowed("mistral"),
    "cap": lambda: windowed("gemma2", final_logit_softcapping=60.0),  # of what is spread below
}
NEW = 9


def passes_over(reasoner: LatentReasoner, n_rows: int, length: int) -> Passes:
    """Left-padded, of different lengths, thoughts in some; all end with a word."""
    rng = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 60, (n_rows, length), generator=rng)
    mask = torch.ones_like(ids)
    for row in range(n_rows):
        start = int(torch.randint(0, length - 5, (), generator=rng))
        ids[row, :start], mask[row, :start] = PAD, 0
        ids[row, length - 1 - row % 3 : length - 1] = LATENT
    with torch.no_grad():
        return reasoner.run_passes(ids, mask)


def reasoner_of(kind: str) -> LatentReasoner:
    model = MODELS[kind]().double().eval()
    model.get_output_embeddings().weight.data *= 20  # spreads the logits, so that rounding cannot decide a token
    return LatentReasoner(model, LATENT)


def together(model: PreTrainedModel, passes: Passes, ends: list[int]) -> list[list[int]]:
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=PAD)
    tokens = generate_after(model, passes, config).tolist()
    lengths = [next((i for i, token in enumerate(row) if token in ends), NEW - 1) + 1 for row in tokens]
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("ends", [[EOS], [*range(30)], [*range(0, 64, 3)], [*range(64)]])
def test_whoever_leaves_and_joins_says_what_is_said_together(kind, ends, one_thread):
    """Rows end at once, at different times, or not at all; others join, with longer and shorter prompts; some rows of a
    batch are left out."""
    reasoner = reasoner_of(kind)
    answers, said, expected, name = GreedyAnswers(reasoner.model, NEW, ends), {}, {}, 0
    for n_rows, length, most in ((5, 14, 3), (4, 23, 2), (3, 9, 5), (4, 17, 0)):
        passes = passes_over(reasoner, n_rows, length)
        rows = [*range(n_rows)][:: 2 if n_rows == 3 else 1]
        names = [*range(name, name + len(rows))]
        of_batch = together(reasoner.model, passes, ends)
        expected |= {one: of_batch[row] for one, row in zip(names, rows, strict=True)}
        name += len(rows)
        answers.join(passes, rows, names)
        answers.join(passes, [], [])  # as of a rank that has only what fills its batch up
        while len(answers) > most:
            said |= answers.step()
    assert said == expected and len(said) == 15


def test_nothing_is_computed_for_rows_that_have_left_nor_for_columns_that_nobody_sees(one_thread):
    reasoner, called = reasoner_of("qwen2"), []
    first, second = passes_over(reasoner, 7, 30), passes_over(reasoner, 2, 9)
    reasoner.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: called.append(tuple(kwargs["attention_mask"].shape)), with_kwargs=True
    )
    answers, said = GreedyAnswers(reasoner.model, NEW, [*range(20)]), {}
    answers.join(first, [*range(7)], [*range(7)])
    while answers:
        said |= answers.step()
    rows = [n for n, _ in called]
    assert rows == [sum(len(row) > step for row in said.values()) for step in range(len(rows))] and rows[-1] < 7
    called.clear()
    answers.join(second, [0], [7])
    answers.step()
    answers.join(second, [1], [8])
    answers.step()
    assert len(called) == 2 and max(columns for _, columns in called) <= 10  # not those of the first batch
