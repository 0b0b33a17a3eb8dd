import json

import pytest
import torch
from homes import REPO

from multicoco.errors import UserError
from multicoco.models.authors import AUTHORS_TOKENS, load_authors_weights
from multicoco.models.backbone import load_backbone


def authors_checkpoint(text_model, folder, path, tied, vocab_size):
    """What the authors' code saves: their three tokens behind the tokenizer's own, and the rows after them cut off."""
    theirs = load_backbone(text_model(folder, tied, vocab_size))
    torch.manual_seed(1)
    theirs.model.resize_token_embeddings(len(theirs.tokenizer) + 3, mean_resizing=False)
    for parameter in theirs.model.parameters():
        parameter.data.normal_()
    state = {f"base_causallm.{key}": tensor for key, tensor in theirs.model.state_dict().items()}
    torch.save(state | {"embedding.weight": theirs.model.get_input_embeddings().weight}, path)
    return theirs.model.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [400, None])
def test_weights_of_the_authors_code_give_its_logits(text_model, tmp_path, tied, vocab_size):
    theirs = authors_checkpoint(text_model, tmp_path / "model", tmp_path / "checkpoint_1", tied, vocab_size)
    backbone = load_backbone(str(tmp_path / "model"))
    own_words = len(backbone.tokenizer)
    load_authors_weights(backbone, tmp_path / "checkpoint_1")
    ids = backbone.tokenizer.convert_tokens_to_ids(list(AUTHORS_TOKENS))
    assert len(set(ids)) == 3 and backbone.latent_tokens is not None
    words = [5, 6, 7]
    with torch.no_grad():
        expected = theirs(torch.tensor([[*words, own_words, own_words + 2, own_words + 1, 8]])).logits
        logits = backbone.model.eval()(torch.tensor([[*words, ids[0], ids[2], ids[1], 8]])).logits
    torch.testing.assert_close(logits[..., [*range(own_words), *ids]], expected)


def test_weights_of_the_authors_code_before_the_latent_stages(text_model, tmp_path):
    theirs = load_backbone(text_model(tmp_path / "model"))
    torch.save({f"base_causallm.{k}": v + 1 for k, v in theirs.model.state_dict().items()}, tmp_path / "cot")
    backbone = load_backbone(str(tmp_path / "model"))
    load_authors_weights(backbone, tmp_path / "cot")
    assert backbone.latent_tokens is None
    for key, tensor in theirs.model.state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[key], tensor + 1)


class Burglar:
    def __reduce__(self):
        return print, ("burgled",)


NORM = "base_causallm.model.norm.weight"


def cut_vocabulary(state):
    return {k: v[:-1] if "embed" in k or "lm_head" in k else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda s: {k: v for k, v in s.items() if k != NORM}, ["missing model.norm.weight"]),
        (lambda s: s | {"base_causallm.extra": torch.ones(1), "more": torch.ones(1)}, ["unexpected extra", "more"]),
        (lambda s: s | {NORM: torch.ones(7)}, ["model.norm.weight is (7,), the model's (32,)"]),
        (lambda s: s | {"embedding.weight": s["embedding.weight"] + 1}, ["embedding.weight and the base model's"]),
        (lambda s: s | {"x": Burglar()}, ["could run code"]),
        (lambda s: [1, 2], ["cannot be read as a state dict"]),
        (cut_vocabulary, ["embed_tokens.weight is", "lm_head.weight is"]),
    ],
)
def test_other_files_are_refused_with_all_that_does_not_fit(text_model, tmp_path, capsys, change, messages):
    path = tmp_path / "checkpoint_1"
    authors_checkpoint(text_model, tmp_path / "model", path, tied=False, vocab_size=400)
    torch.save(change(torch.load(path)), path)
    with pytest.raises(UserError) as caught:
        load_authors_weights(load_backbone(str(tmp_path / "model")), path)
    for message in [*messages, str(path)]:
        assert message in str(caught.value)
    assert "burgled" not in capsys.readouterr().out


@pytest.mark.distributed
def test_weights_of_the_authors_code_are_evaluated_with_and_without_interventions(text_model, tmp_path, run_server):
    authors_checkpoint(text_model, tmp_path / "model", tmp_path / "checkpoint_1", tied=False, vocab_size=400)
    questions = [{"question": f"Is {i}?", "steps": ["It is."] * 2, "answer": f"{i}"} for i in range(3)]
    (tmp_path / "val.json").write_text(json.dumps(questions))
    (tmp_path / "run.yaml").write_text(f"""
mode: eval_only
name: theirs
output_dir: {tmp_path}
model_id: {tmp_path}/model
load_model_path: {tmp_path}/checkpoint_1
data_dir: {tmp_path}
val_path: val.json
num_workers: 0
deepspeed: {REPO}/ds_configs/zero2.json
coconut: {{enabled: true, c_thought: 1, max_latent_stage: 2}}
generation: {{max_new_tokens: 2}}
eval_config: {{coconut: true, interventions: [zero, transplant]}}
""")
    ended = run_server.run(tmp_path / "run.yaml")
    assert ended.codes == [0], ended.said
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "theirs" / "evaluation").iterdir()}
    assert sorted(found) == ["coconut", "coconut.transplant", "coconut.zero"]
    assert {summary["mean_latent_passes"] for summary in found.values()} == {2}
    assert found["coconut"]["mean_gold_logprob"] != found["coconut.zero"]["mean_gold_logprob"]
