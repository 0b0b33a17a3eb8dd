"""Arms are asked as they are at the end of their training, and gone on from there: all after as many steps."""

from pathlib import Path

import yaml
from fake_runs import started

from multicoco.cli import main
from multicoco.study.schema import StudyResult


def as_an_earlier_version_left_it(run: str) -> Path:
    """A run that was given the folder of the one before it, of which it took the best checkpoint."""
    [file] = Path("studies/tiny").glob(f"{run}/config.yaml")
    config = yaml.safe_load(file.read_text())
    folder = Path(config["load_model_path"])
    assert folder.name == "epoch_0002", "the last one"
    file.write_text(yaml.safe_dump(config | {"load_model_path": str(folder.parents[1])}))
    return folder


def test_what_started_from_the_best_checkpoint_does_not_count(written, study, capsys):
    study["seeds"] = [0]
    del study["arms"]["direct"]
    study["arms"]["start"]["set"]["num_epochs"] = 2
    assert main(["study", str(written())]) == 0
    started()
    as_an_earlier_version_left_it("hidden-*/seed_0/val-*")  # asked again, which costs little
    assert main(["study", str(written())]) == 0
    assert started() == ["hidden/seed_0/val"]
    assert "hidden/0 on val again, of its last checkpoint" in capsys.readouterr().out
    last = as_an_earlier_version_left_it("hidden-*/seed_0/train")
    assert main(["study", str(written())]) == 1  # not trained again without being told
    assert started() == [] and "did not start from the last checkpoint of" in capsys.readouterr().err
    found = StudyResult.model_validate_json(Path("studies/tiny/study.json").read_text())
    assert {run.arm for run in found.runs} == {"start"}
    (last.parent / "epoch_0001" / "trainer.json").unlink()  # where the best one is the last, all stands
    assert main(["study", str(written())]) == 0
    assert started() == []
