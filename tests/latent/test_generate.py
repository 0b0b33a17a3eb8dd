import torch
from reference import PAD, internvl
from transformers import GenerationConfig

from multicoco.latent.generate import generate_after, log_likelihoods
from multicoco.latent.reasoner import LatentReasoner


def prompts(n_rows: int, seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 60, (n_rows, 14), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_the_prompt_is_encoded_once_for_all_choices_and_samples(one_thread):
    model = internvl(seed=1).eval()
    reasoner = LatentReasoner(model, None)
    columns = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: columns.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        passes = reasoner.run_passes(**prompts(3, 1))
    assert sum(columns) == 14
    columns.clear()
    words = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 6], [7, 8, 9]]).expand(3, -1, -1)
    log_likelihoods(model, passes, words, words)
    assert columns == [1 + 5]  # the last column, then 1, 2, 5, 7 and 8: what follows the last word of each is not asked
    columns.clear()
    config = GenerationConfig(
        max_new_tokens=2, do_sample=True, num_return_sequences=5, eos_token_id=None, pad_token_id=PAD
    )
    assert len(generate_after(model, passes, config)) == 15
    assert columns == [1, 1]
