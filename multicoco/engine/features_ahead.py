"""`multicoco features`: the features of a run's images, before the run."""

from multicoco.config import RunConfig
from multicoco.engine.assembly import assemble, prompt_date, weights_of
from multicoco.engine.process_group import ProcessGroup
from multicoco.engine.records import load_records, load_training_records
from multicoco.errors import UserError


def keep_ahead(config: RunConfig) -> str:
    """Keeps those of all training and validation records; on as many ranks as a launcher has started.

    Returns: what is kept, and where.

    Raises:
        UserError: the run would not use them, or they cannot all be written; see also `Features`.
    """
    if config.features is None:
        raise UserError("features is null, so the run would not use what is kept: set features to cache")
    group = ProcessGroup(config.lost_rank_seconds)
    asked = load_records(config, config.val_path, config.max_val_samples)
    examples = [*(load_training_records(config) if config.train_path else ()), *asked]
    weights = weights_of(config)
    assembly = assemble(config, weights, prompt_date(config, weights.state), examples, group.device)
    assembly.reasoner.to(group.device)
    features = assembly.features
    assert features is not None  # by the config
    with group.watched():
        features.keep(examples)
    if features.store is None:
        return "no record has an image"
    if features.gave_up:
        raise UserError(
            f"{features.store.folder}: not all features could be kept, see above: make room there or set another "
            "features_dir, and start again; those that are kept are not computed anew"
        )
    size = sum(path.stat().st_size for path in features.store.files)
    kept = f"features of the images of {len(features.store.keys)} examples, {size / 2**30:.2f} GiB"
    return f"{features.store.folder}: {kept}"
