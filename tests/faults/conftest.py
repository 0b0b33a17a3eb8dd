import pytest
from fault_runs import Runs
from homes import make_home

N_TRAIN, N_VAL = 38, 4


@pytest.fixture(scope="session")
def runs(tmp_path_factory, run_server) -> Runs:
    """A data set, a tiny model and a Coconut config with a stage transition."""
    config = """mode: coconut_train
batch_size: 2
gradient_accumulation_steps: 2
num_epochs: 2
lr_schedule: linear
generation: {max_new_tokens: 3}
coconut: {enabled: true, epochs_per_stage: 1, max_latent_stage: 1, first_stage: 0, uniform_prob: 0.3}
"""
    home = make_home(tmp_path_factory.mktemp("faults"), N_TRAIN, N_VAL, config)
    return Runs(home, run_server)
