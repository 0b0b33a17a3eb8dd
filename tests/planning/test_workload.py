import torch
from homes import make_home

from multicoco.config import load_config
from multicoco.data.aokvqa import load_examples
from multicoco.data.loader import train_layout
from multicoco.data.prompt import PromptBuilder
from multicoco.models.backbone import load_backbone
from multicoco.models.vocabulary import add_latent_tokens
from multicoco.planning.geometry import ModelGeometry, read_model_config
from multicoco.planning.workload import stage_workloads
from multicoco.trainer import build_schedule


def test_measured_lengths_are_those_of_the_longest_rows_that_are_trained(tmp_path):
    coconut = "coconut: {enabled: true, c_thought: 2, max_latent_stage: 2, first_stage: 0}\n"
    home = make_home(tmp_path, 20, 2, f"mode: coconut_train\nnum_epochs: 4\n{coconut}")
    config = load_config(home / "run.yaml")
    model = ModelGeometry(read_model_config(config.model_id, False), torch.float32, config.freeze.model_dump())
    workloads, _ = stage_workloads(config, model, tiles=1, assumed=None)

    backbone = load_backbone(config.model_id)
    add_latent_tokens(backbone)
    prompt = PromptBuilder(
        backbone.tokenizer, config.answer_format, model.config.image_token_id, model.config.image_seq_length
    )
    examples = load_examples(home / "scenes" / config.train_path, home / "scenes")
    schedule, latent = build_schedule(config), backbone.latent_tokens
    assert [work.latents for work in workloads] == [0, 4]
    for stage, work in zip((0, 2), workloads, strict=True):
        rows = [train_layout(x, prompt(x, "coconut", n_tiles=1), schedule, stage, 0, latent)[0] for x in examples]
        if work.latents:
            firsts = [row.index(latent.latent) for row in rows]
            assert work.prompt == max(firsts)
            assert work.written == max(len(r) - first - work.latents for r, first in zip(rows, firsts, strict=True))
        else:  # an empty latent block still has its two ends
            assert 0 <= max(map(len, rows)) - work.length <= 2
