"""The questions that a run was asked, as its data file has them: their pictures, and the written steps."""

from multicoco.data.example import Example
from multicoco.data.sources import load_examples
from multicoco.errors import UserError
from multicoco.report.folder import RunFolder


def read_examples(run: RunFolder) -> dict[tuple[str, str], Example]:
    """By id and question; without the file, none, which is noted among the run's problems."""
    config = run.config
    if not (name := config.get("val_path")):
        return {}
    root = run.base / str(config.get("data_dir", "."))
    try:
        examples = load_examples(
            root / str(name),
            run.base / str(config["image_dir"]) if config.get("image_dir") else root,
            config.get("steps_from", "sentences"),
            "skip",
            config.get("max_val_samples"),
            verify_images=False,
            source=config.get("source"),
        )
    except UserError as error:
        first = str(error).splitlines()[0]
        run.problems.append(f"without pictures and written steps, the questions' file is not to be had: {first}")
        return {}
    return {(example.id, example.question): example for example in examples}
