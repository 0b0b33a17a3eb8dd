"""The questions that a run was asked, as its data has them: their pictures, the written steps, their groups."""

from multicoco.config import load_config
from multicoco.data.example import Example
from multicoco.data.sources.of_run import load_of_run
from multicoco.errors import UserError
from multicoco.report.folder import RunFolder


def read_examples(run: RunFolder) -> dict[tuple[str, str], Example]:
    """By id and question; without the data, none, which is noted among the run's problems."""
    if not run.config.get("val_path"):
        return {}
    try:
        config = load_config(run.path / "config.yaml", saved=True)
        places = {"data_dir": str(run.base / config.data_dir)}
        if config.image_dir:
            places["image_dir"] = str(run.base / config.image_dir)
        found = config.model_copy(update=places)
        path, most = str(config.val_path), config.max_val_samples
        examples = load_of_run(found, path, most, on_bad_record="skip", verify_images=False)
    except UserError as error:
        first = " ".join(str(error).split("\n")[:2])
        run.problems.append(f"without pictures and written steps, the questions' data is not to be had: {first}")
        return {}
    return {(example.id, example.conversation): example for example in examples}
