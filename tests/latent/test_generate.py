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
    words = torch.arange(8).view(4, 2)
    for place in range(4):
        log_likelihoods(model, passes, words[place].expand(3, -1), words[place].expand(3, -1))
    assert columns == [3] * 4  # the last column and the words
    columns.clear()
    config = GenerationConfig(
        max_new_tokens=2, do_sample=True, num_return_sequences=5, eos_token_id=None, pad_token_id=PAD
    )
    assert len(generate_after(model, passes, config)) == 15
    assert columns == [1, 1]
