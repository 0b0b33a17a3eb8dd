import pytest
import torch
from reference import LATENT, llama

from multicoco.engine.thought_weights import THOUGHTS, load_thoughts, save_thoughts
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.latent.thoughts import Projected, Projection, hidden_state


def reasoner(kind: str = "mlp", to_embeddings: bool = False, seed: int = 0) -> LatentReasoner:
    model = llama()
    thoughts = Projected(hidden_state, Projection(model, kind, to_embeddings, seed))
    return LatentReasoner(model, LATENT, thoughts=thoughts)


@pytest.mark.parametrize("trains", [True, False])
def test_they_come_back_as_they_were_saved(tmp_path, trains):
    saved, loaded = reasoner(to_embeddings=True), reasoner(to_embeddings=True, seed=1)
    saved.thought_source.projection.target_norm.fill_(3.0)
    save_thoughts(tmp_path, saved.thought_source.state_dict())
    load_thoughts(loaded, str(tmp_path), trains)
    expected, found = saved.thought_source.state_dict(), loaded.thought_source.state_dict()
    assert len(expected) == 7 and expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_plain_thought_leaves_no_file_and_needs_none(tmp_path):
    save_thoughts(tmp_path, {})
    assert not list(tmp_path.iterdir())
    load_thoughts(LatentReasoner(llama(), LATENT), str(tmp_path), trains=False)


def test_training_starts_a_projection_and_an_evaluation_does_not(tmp_path):
    load_thoughts(reasoner(), str(tmp_path), trains=True)
    with pytest.raises(UserError, match=r"projected, but thoughts.safetensors is not beside .*coconut.projection"):
        load_thoughts(reasoner(), str(tmp_path), trains=False)
    load_thoughts(reasoner("none", to_embeddings=True), str(tmp_path), trains=False)  # a norm alone is not trained


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: reasoner("linear"), "projected otherwise than this run's"),
        (lambda: reasoner("mlp", to_embeddings=True), "target_norm"),
        (lambda: LatentReasoner(llama(), LATENT), "the run nothing"),
    ],
)
def test_those_of_another_kind_are_refused(tmp_path, trains, other, says):
    save_thoughts(tmp_path, reasoner().thought_source.state_dict())
    with pytest.raises(UserError, match=says):
        load_thoughts(other(), str(tmp_path), trains)


def test_damaged_ones_are_named(tmp_path):
    (tmp_path / THOUGHTS).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match=r"thoughts.safetensors is cut or damaged"):
        load_thoughts(reasoner(), str(tmp_path), trains=True)
