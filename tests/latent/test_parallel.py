"""Parallel thoughts against Jacobi iterations written out row by row in plain PyTorch, and against sequential ones.

Tolerances: as in test_reasoner.py, fp32's, in which transformers computes norms and rotary angles.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import EOS, LATENT, MODELS, PAD, assert_same_gradients, gradients, mixed_batch, qwen2, windowed
from supervised import alone
from torch import Tensor
from transformers import GenerationConfig

from multicoco.interventions import parse
from multicoco.latent.generate import generate_after, log_likelihoods
from multicoco.latent.interventions import UNTOUCHED, Intervened, replacement, unit_noise
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.schedule import SEQUENTIAL, Jacobi
from multicoco.latent.thoughts import Projected, Projection, hidden_state
from multicoco.models.checkpointing import checkpoint_activations

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
K = 3  # the most thoughts of a row of `mixed_batch`


def hidden_states(model, embeds: list[Tensor]) -> Tensor:
    return model.get_decoder()(inputs_embeds=torch.stack(embeds)[None], use_cache=False).last_hidden_state[0]


def jacobi(model, ids: list[int], inputs: dict[str, Tensor], iterations: int, thought=lambda h, k: h) -> list[Tensor]:
    """What a row is fed in the end: z_k^0 is the token's embedding, z_k^t = f(h_k-1^t-1), all k at once."""
    embeds = alone(model, ids, inputs).embeds
    columns = [column for column, token in enumerate(ids) if token == LATENT]
    for _ in range(iterations):
        hidden = hidden_states(model, embeds)
        for k, column in enumerate(columns):
            embeds[column] = thought(hidden[column - 1], k)
    return embeds


def expected_loss(model, batch: dict[str, Tensor], iterations: int, thought=lambda h, k: h) -> Tensor:
    """The mean cross-entropy of all labelled positions."""
    logits, targets = [], []
    for i, real in enumerate(batch["attention_mask"].bool()):
        ids, labels = batch["input_ids"][i][real].tolist(), batch["labels"][i][real]
        inputs = {key: batch[key][i : i + 1] for key in ("pixel_values",) if key in batch}
        hidden = hidden_states(model, jacobi(model, ids, inputs, iterations, thought))
        labelled = (labels[1:] != -100).nonzero()[:, 0]
        logits.append(model.lm_head(hidden[labelled]))
        targets.append(labels[labelled + 1])
    return F.cross_entropy(torch.cat(logits), torch.cat(targets))


def check(name: str, batch, reasoner: LatentReasoner, loss: Tensor, expected, checkpointing: bool, n_calls: int):
    calls: list[int] = []
    reasoner.train().decoder.register_forward_hook(lambda *_: calls.append(1))
    if checkpointing:
        checkpoint_activations(reasoner.model)
    output = reasoner(**batch)
    output.loss.backward()
    assert len(calls) == n_calls
    torch.testing.assert_close(output.loss, loss, rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(reasoner.model, gradients(expected), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["internvl", "qwen2"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_loss_and_gradients_equal_the_iterations_written_out(name, iterations, checkpointing):
    batch, expected = mixed_batch(name), MODELS[name]().double()
    loss = expected_loss(expected, batch, iterations)
    loss.backward()
    reasoner = LatentReasoner(MODELS[name]().double(), LATENT, pass_schedule=Jacobi(iterations))
    check(name, batch, reasoner, loss, expected, checkpointing, iterations + 1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kernel", ["reference", "cpu", "flash"])
def test_projected_and_constant_thoughts_whatever_the_kernel(kernel, checkpointing):
    batch, expected, model = mixed_batch("qwen2"), qwen2().double(), qwen2().double()
    own, projection = (Projection(of, "mlp", to_embeddings=True, seed=3) for of in (expected, model))
    counts = (batch["input_ids"] == LATENT).sum(-1)

    def loss_of(n_last: int) -> Tensor:
        total = torch.zeros(())
        for i, count in enumerate(counts.tolist()):
            one = {key: value[i : i + 1] for key, value in batch.items()}
            share = (one["labels"] != -100).sum() / (batch["labels"] != -100).sum()
            cut = lambda h, k, count=count: own(h if count - k <= n_last else h.detach())  # noqa: E731
            total = total + share * expected_loss(expected, one, 2, cut)
        return total

    loss = loss_of(1)
    loss.backward()
    thoughts = Projected(hidden_state, projection)
    reasoner = LatentReasoner(model, LATENT, kernel, thoughts, gradient_passes=1, pass_schedule=Jacobi(2))
    check("qwen2", batch, reasoner, loss, expected, checkpointing, 3)
    assert_same_gradients(projection, gradients(own), GRADIENT_TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["internvl", "llama"])
@pytest.mark.parametrize("gradient_passes", [None, 2, 0])
def test_as_many_iterations_as_thoughts_are_sequential_ones(name, gradient_passes, checkpointing):
    """A theorem for causal attention: with the first k thoughts right, the next iteration's k + 1-st is. And one
    iteration fewer is something else."""
    batch, expected = mixed_batch(name), MODELS[name]().double()
    sequential = LatentReasoner(expected, LATENT, gradient_passes=gradient_passes)
    loss = sequential(**batch).loss
    loss.backward()
    parallel = [
        LatentReasoner(MODELS[name]().double(), LATENT, gradient_passes=gradient_passes, pass_schedule=Jacobi(n))
        for n in (K, K - 1)
    ]
    check(name, batch, parallel[0], loss, expected, checkpointing, K + 1)
    assert (parallel[1](**batch).loss - loss).abs() > 1e-6 * loss


def test_behind_a_window_too():
    batch, found = mixed_batch("qwen2"), []
    for schedule in (SEQUENTIAL, Jacobi(K)):
        reasoner = LatentReasoner(windowed("qwen2", sliding_window=4).double(), LATENT, pass_schedule=schedule)
        loss = reasoner(**batch).loss
        loss.backward()
        found.append((loss, gradients(reasoner.model)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=LOSS_TOLERANCE, atol=0)
    assert_same_gradients(reasoner.model, found[0][1], GRADIENT_TOLERANCE)


@pytest.mark.parametrize("n_passes", [4, 5, 9])
def test_passes_that_make_up_the_number_change_nothing(n_passes):
    batch, reasoner, calls = mixed_batch("qwen2"), LatentReasoner(qwen2().double(), LATENT, pass_schedule=Jacobi(3)), []
    plain = reasoner(**batch).loss
    reasoner.decoder.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(reasoner(**batch, n_passes=n_passes).loss, plain, rtol=LOSS_TOLERANCE, atol=0)
    without = batch | {"input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == LATENT, 5)}
    reasoner(**without, n_passes=n_passes)
    assert len(calls) == 2 * n_passes


def test_a_module_of_the_thoughts_is_called_alike_whatever_a_batch_holds():
    """As ZeRO-3 needs; and hidden states of 0, of padding, leave no gradient that is not a number."""
    for schedule in (SEQUENTIAL, Jacobi(2)):
        counts = []
        for n_latents in (0, 1, 3):
            model, calls = qwen2(), []
            model.get_input_embeddings().weight.data[PAD] = 0
            thoughts = Projected(hidden_state, Projection(model, "none", to_embeddings=True))
            thoughts.projection.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            reasoner = LatentReasoner(model, LATENT, thoughts=thoughts, pass_schedule=schedule)
            rows = [[5, 6, *[LATENT] * n_latents, 7, 8, 9, 10], [PAD, PAD, PAD, 1, 2, 3, 4, 5, 6][: 6 + n_latents]]
            ids = torch.tensor(rows)
            labels = ids.masked_fill((ids == PAD) | (ids == LATENT), -100)
            reasoner(ids, (ids != PAD).long(), labels=labels, n_passes=4).loss.backward()
            assert all(gradient.isfinite().all() for gradient in gradients(model).values())
            counts.append(len(calls))
        assert counts == [3, 3, 3]


def saved_for_backward(schedule, n_latents: int) -> int:
    """Bytes of keys and values that are kept because they were written over."""
    kept = 0
    reasoner = LatentReasoner(qwen2(), LATENT, pass_schedule=schedule)
    ids = torch.tensor([[1, 2, 3, *[LATENT] * n_latents, 4, 5]])
    nodes, seen = [reasoner(ids, torch.ones_like(ids), labels=ids).loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        overwritten = getattr(node, "overwritten", None)
        kept += 0 if overwritten is None else overwritten.keys.nbytes + overwritten.values.nbytes
        nodes += [after for after, _ in node.next_functions]
    return kept


def test_what_is_kept_is_every_iterations_latent_columns_and_no_more():
    column = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, bytes
    assert saved_for_backward(SEQUENTIAL, 5) == 0
    assert [saved_for_backward(Jacobi(n), 5) for n in (1, 3, 5)] == [n * 5 * column for n in (1, 3, 5)]


SPECS = ("zero", "first", "noise", "perturb(1)", "permute", "only(2, zero)", "mask")
CONFIG = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)


@pytest.fixture(scope="module")
def model(one_thread):
    """Whose answers hang on its thoughts."""
    model = qwen2(seed=1).double().eval()
    model.lm_head.weight.data *= 20  # spreads the logits, so that rounding cannot decide a token
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.data *= 20
    return model


@pytest.fixture(scope="module")
def prompts() -> dict[str, Tensor]:
    """Left-padded, of 3, 2 and 3 thoughts."""
    rows = [[1, 2, 3, 4, 50, *[LATENT] * n, 51] for n in (3, 2)] + [[7, 8, 50, *[LATENT] * 3, 51]]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def answer(model, prompts, iterations: int | None, intervened=UNTOUCHED) -> tuple[Tensor, Tensor, list]:
    schedule = SEQUENTIAL if iterations is None else Jacobi(iterations)
    reasoner = LatentReasoner(copy.deepcopy(model), LATENT, pass_schedule=schedule)
    n_passes = reasoner.pass_schedule.n_passes(3) + intervened.hides
    with torch.no_grad():
        passes = reasoner.run_passes(**prompts, n_passes=n_passes, intervened=intervened)
        texts, labels = torch.tensor([[20, 5, 6]] * 3), torch.tensor([[-100, 5, 6]] * 3)
        measured = log_likelihoods(reasoner.model, passes, texts, labels)
        return generate_after(reasoner.model, passes, CONFIG), measured, passes.thoughts_by_row()


@pytest.mark.parametrize("iterations", [1, 2])
def test_generation_goes_on_from_the_iterations(model, prompts, iterations):
    tokens, _, thoughts = answer(model, prompts, iterations)
    for i, real in enumerate(prompts["attention_mask"].bool()):
        ids = prompts["input_ids"][i][real].tolist()
        embeds = [x.detach() for x in jacobi(model, ids, {}, iterations)]
        fed = torch.stack([embeds[column] for column, token in enumerate(ids) if token == LATENT])
        torch.testing.assert_close(thoughts[i], fed, rtol=1e-5, atol=1e-6)
        new: list[int] = []
        while len(new) < 4 and EOS not in new:
            more = [*model.get_input_embeddings()(torch.tensor(new, dtype=torch.long))]
            new.append(int(model.lm_head(hidden_states(model, [*embeds, *more])[-1]).argmax()))
        assert tokens[i, : len(new)].tolist() == new


@pytest.mark.parametrize("spec", SPECS)
def test_interventions_on_as_many_iterations_as_thoughts_are_those_on_sequential_ones(model, prompts, spec):
    intervention = parse(spec)
    noise = torch.stack([unit_noise(3, 32, bits).double() for bits in (1, 2, 3)])
    given = noise if intervention.kind in ("noise", "perturb") else 3 * noise
    how = lambda: Intervened(replacement(intervention, given), hides=spec == "mask")  # noqa: E731
    sequential, parallel, fewer = (answer(model, prompts, n, how()) for n in (None, 3, 1))
    assert torch.equal(sequential[0], parallel[0])
    torch.testing.assert_close(sequential[1], parallel[1], rtol=1e-5, atol=1e-5)
    for one, other in zip(sequential[2], parallel[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    untouched = answer(model, prompts, 1)
    assert (fewer[1] - untouched[1]).abs().min() > 1e-6  # on fewer it does something too
