"""Batches of training, of examples whose lengths differ before and behind the thoughts."""

from types import SimpleNamespace

import pytest

from multicoco.config import RunConfig
from multicoco.curriculum import ExampleTokens, LatentTokens
from multicoco.data.example import Example
from multicoco.methods import Part, method_class
from multicoco.training.batches import TrainingBatches

TOKENS = LatentTokens(97, 98, 99)
LENGTHS = {"long": (20, 1), "late": (2, 9)}  # of prompt and answer


def encode(example: Example, asked: str) -> tuple[ExampleTokens, dict]:
    prompt, answer = LENGTHS[example.id]
    return ExampleTokens([1] * prompt, [[2, 3]], [4] * answer), {}


@pytest.mark.parametrize(("name", "columns"), [("coconut", 20 + 3 + 9), ("c_mtp", 20 + 3 + 1)])
def test_rows_are_lined_up_for_passes_alone(name, columns):
    """With the thought in the same column, which waits for the pass before it; C-MTP's rows take one pass."""
    keys = {"mode": "train", "name": "run", "model_id": "m", "train_path": "t", "batch_size": 2, "num_workers": 0}
    config = RunConfig(**keys, method=name, coconut={"enabled": True, "first_stage": 1})
    method, model = method_class(name)(config, TOKENS), SimpleNamespace(config=SimpleNamespace())
    backbone = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=0), family=SimpleNamespace(batch=lambda inputs: {}), model=model
    )
    reasoner = SimpleNamespace(latent_token_id=TOKENS.latent, objective=None)
    assembly = SimpleNamespace(backbone=backbone, reasoner=reasoner, encoder=encode)
    examples = [Example(name, "q", (), (), ("s",), "a", None) for name in LENGTHS]
    [[batch]] = TrainingBatches(config, examples, assembly, method).steps(Part(1, 0, 1), 0, 0)
    assert batch["input_ids"].shape == (2, columns)
    assert batch["attention_mask"].sum() == sum(map(sum, LENGTHS.values())) + 2 * 3
    longest = max(method.extent(encode(example, "")[0], 1).length for example in examples)
    assert (columns == longest) == (method.passes(1) == 1)  # as it is planned for
