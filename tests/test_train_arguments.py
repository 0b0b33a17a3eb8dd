"""The arguments of train.py, as far as `--print-config` goes."""

import sys

import pytest
import train
import yaml


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Runs `train.py ARGUMENTS --print-config` on a run config in $PLACE; gives its exit code, output and message."""
    (tmp_path / "run.yaml").write_text("{mode: cot_train, name: x, model_id: m, train_path: t.json}")
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("UNSET", raising=False)

    def print_config(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--print-config"])
        code = train.main()
        output = capsys.readouterr()
        return code, output.out, output.err

    return print_config


def test_paths_are_expanded(tmp_path, shown):
    code, out, _ = shown(
        "$PLACE/run.yaml", "--deepspeed_config", "${PLACE}/zero.json", "--set", "output_dir=$PLACE/runs"
    )
    config = yaml.safe_load(out)
    assert (code, config["deepspeed"], config["output_dir"]) == (0, f"{tmp_path}/zero.json", f"{tmp_path}/runs")


def test_text_arrives_whole(shown):
    _, out, _ = shown("$PLACE/run.yaml", "--set", "reasoning_instruction=Give the # of the right choice.")
    assert yaml.safe_load(out)["reasoning_instruction"] == "Give the # of the right choice."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["$UNSET/run.yaml"], "UNSET is not set"),
        (["$PLACE/run.yaml", "--deepspeed_config", "$UNSET/x"], "UNSET is not set"),
        (
            ["$PLACE/run.yaml", "--allow-change", "num_epoch"],
            "--allow-change num_epoch: unknown key, did you mean num_",
        ),
        (["$PLACE/run.yaml", "--set", "lr"], "--set key=value"),
    ],
)
def test_mistakes_get_one_message(shown, arguments, said):
    code, out, err = shown(*arguments)
    assert (code, out) == (1, "") and err.startswith("error: ") and said in err
