import pytest

from multicoco.config import load_config

COCONUT = ["mode=coconut_train", "coconut.enabled=true", "coconut.first_stage=1"]
EVALUATION = ["mode=eval_only", "val_path=v", "eval_config.cot=true"]
ADVANCING = [*COCONUT, "coconut.advance_when_accuracy=0.9", "coconut.epochs_per_stage=2", "val_path=v"]
ALL_FROZEN = [f"freeze.{part}=true" for part in ("vision_tower", "projector", "language_model")]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mode=coconut_train"], ["mode is coconut_train", "coconut.enabled is false"]),
        (["coconut.enabled=true"], ["mode is cot_train", "coconut.enabled is true"]),
        (["mode=vanilla_train", "coconut.enabled=true"], ["mode is vanilla_train", "coconut.enabled is true"]),
        (["mode=train", "method=coconut"], ["method is coconut but coconut.enabled is false"]),
        (["mode=train", "method=cot", "coconut.enabled=true"], ["method is cot but coconut.enabled is true"]),
        (["mode=eval_only", "val_path=v", "method=coconut"], ["method is coconut but coconut.enabled is false"]),
        (["mode=train"], ["mode is train but method is null", "coconut"]),
        (["method=vanilla"], ["mode is cot_train but method is vanilla", "set mode to train"]),
        (["eval_config.coconut=true"], ["eval_config.coconut is true", "coconut.enabled is false"]),
        (["eval_config.methods=[codi]"], ["eval_config.methods has codi", "coconut.enabled is false"]),
        (["eval_config.methods=[cod]"], ["eval_config.methods", "'cod' is none of the methods, did you mean codi?"]),
        (
            ["features=cache", "freeze.projector=true"],
            ["features is cache but freeze.vision_tower is false: what it makes of an image changes"],
        ),
        (["streaming=true", "group_by_length=true"], ["group_by_length is true, which measures all examples"]),
        (
            ["streaming=true", "features=cache", "freeze.vision_tower=true", "freeze.projector=true"],
            ["streaming is true", "features is cache, which computes all images' ahead"],
        ),
        ([*COCONUT, "streaming=true", "coconut.thoughts=borrowed"], ["coconut.thoughts is borrowed but streaming"]),
        (["stream_lanes=4"], ["stream_lanes is set but streaming is false"]),
        (["shuffle_buffer=4"], ["shuffle_buffer is set but streaming is false"]),
        (["features_dir=kept"], ["features_dir is set but features is null"]),
        (["train_path=null"], ["mode is cot_train", "train_path is null"]),
        (["mode=eval_only", "eval_config.cot=true"], ["mode is eval_only", "val_path is null"]),
        (["mode=eval_only", "val_path=v"], ["mode is eval_only", "none of eval_config.cot", "name a method"]),
        (
            ["lr={language_model: 1e-3, projector: 1e-4}", "freeze.projector=true"],
            ["lr.projector is set but freeze.projector is true"],
        ),
        (
            [*COCONUT, "lr={language_model: 1e-3}", "coconut.stage_lr=[1e-3]"],
            ["coconut.stage_lr is set but lr has a rate for each part"],
        ),
        (["coconut.stage_lr=[1e-3]", "reset_optimizer=false"], ["coconut.stage_lr is set but reset_optimizer"]),
        (
            [*COCONUT, "coconut.c_thought=0", "coconut.thoughts=pause"],
            ["coconut.thoughts is pause but coconut.c_thought is 0", "leave it at hidden"],
        ),
        (
            ["mode=train", "method=no_markers", "coconut.enabled=true", "coconut.thoughts=noise", "num_epochs=2"],
            ["coconut.thoughts is noise but method is no_markers, which has none"],
        ),
        (
            [*COCONUT, "coconut.gradient_passes=1", "coconut.thoughts=pause"],
            ["coconut.gradient_passes is 1 but coconut.thoughts is pause", "leave it at null"],
        ),
        (
            [*COCONUT, "coconut.gradient_passes=3", "coconut.c_thought=2"],
            ["coconut.gradient_passes is 3 but there are at most 2 thoughts"],
        ),
        (
            [*COCONUT, "coconut.jacobi_iterations=1", "coconut.thoughts=noise"],
            [
                "coconut.jacobi_iterations is 1 but coconut.thoughts is noise, which waits for no pass",
                "leave it at null",
            ],
        ),
        (
            [*EVALUATION, "eval_config.think_then_write=1"],
            ["eval_config.think_then_write is 1 but no method is evaluated that thinks", "eval_config.coconut"],
        ),
        (
            [*COCONUT, "eval_config.think_then_write=1", "eval_config.eval_latent_tokens=1"],
            ["eval_config.think_then_write is 1 but eval_config.eval_latent_tokens is set", "leave one at null"],
        ),
        (
            [*COCONUT, "eval_config.think_then_write=0", "eval_config.answer_by=likelihood"],
            ["eval_config.think_then_write is 0 but eval_config.answer_by is likelihood"],
        ),
        (
            [*COCONUT, "coconut.jacobi_iterations=3", "coconut.c_thought=2"],
            ["coconut.jacobi_iterations is 3 but there are at most 2 thoughts", "in sequence after 2: lower it"],
        ),
        (
            [*COCONUT, "coconut.projection=mlp", "coconut.thoughts=noise"],
            ["coconut.projection is mlp but coconut.thoughts is noise, no hidden state", "leave it at none"],
        ),
        (
            ["mode=train", "method=no_thoughts", *COCONUT[1:], "coconut.norm=embedding"],
            ["coconut.norm is embedding but there are no thoughts"],
        ),
        (
            [*COCONUT, "coconut.c_thought=0", "coconut.gradient_passes=0", "coconut.jacobi_iterations=1"],
            [f"coconut.{key} but there are no thoughts" for key in ("gradient_passes is 0", "jacobi_iterations is 1")],
        ),
        ([*COCONUT[:2], "coconut.first_stage=3"], ["coconut.first_stage is 3", "the last stage is 2"]),
        (
            ["tracking=[wandb]", "wandb.mode=disabled"],
            ["tracking has wandb but wandb.mode is disabled", "leave wandb out"],
        ),
        (["bf16=true", "fp16=true"], ["bf16 and fp16 are both true"]),
        (
            ["val_path=v", "eval_config.inputs=question_only"],
            ["eval_config.inputs is question_only but mode is cot_train", "eval_only"],
        ),
        (
            [*EVALUATION, "eval_config.inputs=other_image", "eval_config.interventions=[zero]"],
            ["eval_config.inputs is other_image but eval_config.interventions is set"],
        ),
        (
            [*EVALUATION, "eval_config.inputs=other_image", "eval_config.thoughts=true"],
            ["eval_config.inputs is other_image but eval_config.thoughts is set"],
        ),
        (["coconut.uniform_prob=0.1"], ["coconut.uniform_prob is 0.1", "mode is cot_train"]),
        (
            ["lora.rank=8", "freeze.language_model=true"],
            ["lora.rank is 8 but freeze.language_model is true", "set it to false"],
        ),
    ],
)
def test_contradictions(run, error, overrides, expected):
    message = error(run, *overrides)
    assert all(part in message for part in expected)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["save_only_improve=true"], "save_only_improve is true but val_path is null"),
        (["eval_config.vanilla=true"], "eval_config.vanilla is true but val_path is null"),
        (["eval_config.methods=[icot]"], "eval_config.methods has icot but val_path is null"),
        (["eval_config.interventions=[zero]"], "eval_config.interventions are set but val_path is null"),
        (["eval_config.thoughts=true"], "eval_config.thoughts is true but val_path is null"),
        ([*COCONUT, "coconut.collapse_below=0.5"], "collapse_below is 0.5 but val_path is null"),
        ([*COCONUT, "coconut.advance_when_accuracy=0.9"], "advance_when_accuracy is 0.9 but val_path is null"),
        (
            [*COCONUT, "coconut.advance_when_accuracy=0.9", "val_path=v", "eval_config.cot=true"],
            "advance_when_accuracy is 0.9 but coconut is trained and not evaluated",
        ),
        (
            [*COCONUT[:2], "coconut.first_stage=2", "coconut.advance_when_accuracy=0.9", "val_path=v"],
            "coconut.advance_when_accuracy is 0.9 but coconut has one stage, 2: leave it at null",
        ),
        (
            [*COCONUT, "coconut.advance_when_accuracy=0.9", "val_path=v", "num_epochs=5"],  # stages of one epoch
            "coconut.advance_when_accuracy is 0.9 but no evaluation finds a stage that is not over anyway",
        ),
        (
            [*ADVANCING, "num_epochs=6", "eval_every_epochs=2"],
            "no evaluation finds a stage that is not over anyway, eval_every_epochs being 2",
        ),
        (
            [*ADVANCING, "eval_config.think_then_write=0"],
            "advance_when_accuracy is 0.9 but eval_config.think_then_write is 0, and not what the stage has",
        ),
        (
            [*ADVANCING, "coconut.max_latent_stage=2", "num_epochs=6", "eval_config.eval_latent_tokens=2"],
            "advance_when_accuracy is 0.9 but eval_config.eval_latent_tokens is 2, and not what the stage has",
        ),
        (
            [*COCONUT, "coconut.collapse_below=0.5", "val_path=v", "num_epochs=3", "eval_every_epochs=3"],
            "collapse_below is 0.5 but the one evaluation is after the last of 3 epochs, eval_every_epochs being 3",
        ),
        (["resume=1"], "resume is 1 but num_epochs is 1"),
        (["resume=7", "num_epochs=5"], "resume is 7 but num_epochs is 5"),
        ([*EVALUATION, "resume=true"], "resume is True but mode is eval_only"),
        ([*EVALUATION, "resume=2", "num_epochs=5"], "resume is 2 but mode is eval_only"),
        ([*COCONUT, "sim_cot.weight=3"], "sim_cot.weight is set but the method is coconut, which does not read it"),
        (["icot.smoothing=null"], "icot.smoothing is set but the method is cot, which does not read it"),
        (
            ["mode=train", "method=codi", "coconut.enabled=true", "c_mtp.weight=2"],
            "c_mtp.weight is set but the method is codi, which does not read it: leave it out, or train c_mtp",
        ),
        (["lora.alpha=32"], "lora.rank is null"),
        (["lora.target_modules=[q_proj]"], "lora.rank is null"),
        (ALL_FROZEN, "are all true but mode is cot_train"),
        ([*COCONUT, "coconut.first_stage=0"], "num_epochs is 1 and coconut.first_stage 0: in stage 0"),
        ([*COCONUT[:2], "num_epochs=5", "coconut.epochs_per_stage=5"], "there are no thoughts yet"),
        ([*COCONUT[:2], "num_epochs=4", "coconut.epochs_per_stage=[4, 1]"], "set coconut.first_stage to 1"),
        (["max_train_samples=0"], "max_train_samples"),
        (["max_val_samples=0"], "max_val_samples"),
        (["generation.max_new_tokens=0"], "generation.max_new_tokens"),
        (["num_epochs=0"], "num_epochs"),
    ],
)
def test_what_would_never_do_anything(run, error, overrides, expected):
    assert expected in error(run, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            *COCONUT,
            "coconut.uniform_prob=0.1",
            "val_path=v",
            "eval_config.coconut=true",
            "eval_config.eval_latent_tokens=1",
        ],
        [*COCONUT, "mode=eval_only", "val_path=v", "eval_config.coconut=true"],
        [*EVALUATION, "sim_cot.weight=3"],  # of the checkpoint
        [*COCONUT, "sim_cot.weight=1"],  # as it is anyway
        [*COCONUT, "eval_config.think_then_write=0"],
        [*COCONUT, "eval_config.eval_latent_tokens=2"],  # more than it is trained with
        [*COCONUT[:2], "load_model_path=cot"],  # starts at stage 1
        [*COCONUT[:2], "coconut.uniform_prob=0.1"],  # thoughts are drawn in stage 0 too
        [*COCONUT, "coconut.c_thought=0"],
        ADVANCING,  # a run of one epoch may be gone on with
        [*ADVANCING, "num_epochs=6"],
        [*ADVANCING, "num_epochs=6", "eval_config.eval_latent_tokens=1"],  # as both stages have
        [*COCONUT, "coconut.gradient_passes=2", "coconut.c_thought=2"],
        [*COCONUT, "coconut.jacobi_iterations=2", "coconut.c_thought=2"],
        [*COCONUT, "coconut.projection=linear", "coconut.norm=embedding", "coconut.thoughts=borrowed"],
        [*COCONUT[:2], "coconut.first_stage=2"],
        ["mode=train", "method=no_thoughts", *COCONUT[1:], "val_path=v", "eval_config.coconut=true"],
        [*COCONUT[:2], "num_epochs=6", "coconut.epochs_per_stage=5"],
        [*EVALUATION, *ALL_FROZEN, "train_path=null"],
        [*EVALUATION, "lora.alpha=32", "save_only_improve=true"],  # as inherited from the training's config
        [*EVALUATION, "resume=false"],
        ["mode=eval_only", "val_path=v", "method=cot"],
        ["freeze.vision_tower=true", "freeze.projector=true", "eval_config.eval_latent_tokens=9"],
        ["save_only_improve=true", "val_path=v", "bf16=true"],
        ["resume=4", "num_epochs=5"],
        ["resume=true"],
        ["eval_every_epochs=9"],
        ["lora.rank=8", "lora.alpha=32"],
    ],
    ids=" ".join,
)
def test_what_can_be_is_taken(run, overrides):
    load_config(run, overrides)
