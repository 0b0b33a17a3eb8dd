import pytest

from multicoco.config import check_keys, nearest
from multicoco.errors import UserError


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lerning_rate=1", "lerning_rate (--set lerning_rate=1): unknown key"),
        ("coconut.c_thougt=1", "did you mean coconut.c_thought?"),
        ("c_thougt=1", "did you mean coconut.c_thought?"),
        ("num_epoch=1", "did you mean num_epochs?"),
        ("lr=fast", "lr (--set lr=fast): "),
        ("batch_size=0", "must be greater than 0 (got 0)"),
        ("batch_size=true", "batch_size"),
        ("bf16=1", "bf16 (--set bf16=1): "),
        ("generation.top_p=1.5", "generation.top_p (--set generation.top_p=1.5): "),
        ("wandb=online", "wandb (--set wandb=online): "),
        ("wandb.tags=a", "must be a list, such as [a, b]"),
        ("lr=.inf", "lr (--set lr=.inf): must be a finite number"),
        ("betas=[0.9]", "betas (--set betas=[0.9]): "),
        ("betas=0.9", "must be a list, such as [0.9, 0.999]"),
        ("resume=yesterday", "resume (--set resume=yesterday): must be 'auto' or must be a valid boolean or"),
        ("coconut.epochs_per_stage=[]", "coconut.epochs_per_stage (--set "),
        ("coconut={c_thought: x}", "coconut.c_thought (--set coconut={c_thought: x}): must be a valid integer"),
        ("cococnut.enabled=true", "did you mean coconut?"),
        ("lr={vision: 1e-3}", "must be 'vision_tower', 'projector', 'language_model' or 'new_tokens'"),
        ("lr={projector: 0}", "lr (--set lr={projector: 0}): must be a valid number or must be greater than 0"),
        ("lr=", "lr (--set lr=): must be a valid number or must be a mapping of keys (got None)"),
        ("mode=trian", "mode (--set mode=trian): "),
        ("model_id=", "model_id (--set model_id=): "),
        ("name=a/b", "name (--set name=a/b): must be the name of a folder"),
        ("name=..", "name (--set name=..): must be the name of a folder"),
        ("name=''", "name (--set name=''): must be the name of a folder"),
        ("lr=[1", "--set lr=[1: not valid YAML in line 1"),
    ],
)
def test_names_key_place_and_remedy(run, error, override, expected):
    assert expected in error(run, override)


def test_names_the_file_of_the_chain_that_set_the_key(write, error):
    base = write("lr: x\ngeneration:\n  top_pp: 1\n", "base.yaml")
    message = error(write())
    assert f"lr ({base}:5): must be a valid number or must be a mapping of keys (got 'x')" in message
    assert f"generation.top_pp ({base}:7): unknown key, did you mean generation.top_p?" in message


def test_names_the_last_one_that_set_the_key(write, error):
    write({"lr": 1}, "base.yaml")
    run = write({"lr": "x"})
    assert f"lr ({run}:" in error(run)
    assert "coconut.c_thought (--set coconut={c_thought: x})" in error(
        run, "coconut.c_thought=1", "coconut={c_thought: x}"
    )


def test_lists_every_problem_at_once(run, error):
    message = error(run, "lr=x", "seed=-1", "foo=1")
    assert all(key in message for key in ("lr (", "seed (", "foo ("))


def test_missing_keys(tmp_path, error):
    (tmp_path / "run.yaml").write_text("{}")
    message = error(tmp_path / "run.yaml")
    assert all(f"{key}: missing" in message for key in ("mode", "name", "model_id"))


def test_shows_the_beginning_of_a_long_value(write, error):
    message = error(write({"seed": "x" * 10_000}))
    assert "(got 'xxx" in message and len(message) < 1000


class TestNearest:
    VALID = ("seed", "coconut", "coconut.c_thought", "generation", "generation.top_p")

    @pytest.mark.parametrize("written", ["seed", "coconut.c_thought", "coconut.1", "generation.generation"])
    def test_is_never_what_was_written_nor_its_section(self, written):
        meant = nearest(written, self.VALID)
        assert meant is None or not f"{written}.".startswith(f"{meant}.")

    def test_is_found_by_the_last_part(self):
        assert nearest("c_thougt", self.VALID) == nearest("lora.c_thought", self.VALID) == "coconut.c_thought"


def test_names_of_keys_on_a_command_line_are_checked():
    check_keys(["lr", "coconut", "coconut.c_thought"], "--allow-change")
    with pytest.raises(UserError, match="--allow-change lrr: unknown key, did you mean lr\\?"):
        check_keys(["lr", "lrr"], "--allow-change")
