"""What models make of their heads' logits, and what follows the passes where they are scaled or capped."""

import pytest
import torch
from reference import EOS, LATENT, PAD, RESCALED, own_logits, rescaled
from transformers import GenerationConfig

from multicoco.latent.generate import generate_after, log_likelihoods
from multicoco.latent.head import logits_of
from multicoco.latent.kinds import rescaling_of
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.rescaling import AS_THEY_ARE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", RESCALED)
@torch.no_grad()
def test_logits_are_those_of_the_models_own_forward(kind):
    """A cap to the last bit, which decides between tokens; a divisor is a factor here."""
    model, ids = rescaled(kind).eval(), torch.arange(9)[None]
    hidden = model.get_decoder()(ids).last_hidden_state
    assert rescaling_of(model.config) != AS_THEY_ARE
    rounding = 1e-6 if hasattr(model.config, "logits_scaling") else 0
    torch.testing.assert_close(logits_of(model)(hidden), model(ids).logits, rtol=rounding, atol=0)


@pytest.mark.parametrize("kind", ["gemma2", "cohere2"])
@torch.no_grad()
def test_what_follows_thoughts_is_what_recomputing_everything_gives(kind):
    """Rows of 2, 0 and 1 thoughts, left-padded, past the window of 6: greedy tokens, and likelihoods of a text."""
    model = rescaled(kind).double().eval()
    prompts = [[1, 2, 3, LATENT, LATENT, 4], [5, 6, 7, 8, 9, 10, 11, 12, 13], [14, LATENT, 15]]
    ids = torch.tensor([[PAD] * (9 - len(row)) + row for row in prompts])
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    expected, likelihoods, text = [], [], [20, 5, 6]
    for row in prompts:
        said: list[int] = []
        while len(said) < 5 and EOS not in said:
            said.append(int(own_logits(model, torch.tensor([row + said]), {})[0, -1].argmax()))
        expected.append(said)
        log_probs = own_logits(model, torch.tensor([row + text]), {})[0].log_softmax(-1)
        likelihoods.append(sum(log_probs[len(row) - 1 + n, text[n]] for n in (1, 2)))
    passes = LatentReasoner(model, LATENT).run_passes(ids, (ids != PAD).long())
    texts, labels = torch.tensor([text] * 3), torch.tensor([[-100, *text[1:]]] * 3)
    torch.testing.assert_close(
        log_likelihoods(model, passes, texts, labels), torch.stack(likelihoods), rtol=1e-5, atol=0
    )
    tokens = generate_after(model, passes, config).tolist()
    assert [row[: len(said)] for row, said in zip(tokens, expected, strict=True)] == expected
