"""What a run's data takes: the memory of a rank, what is kept of images and how fast it is read, and padding."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from sys import getsizeof
from typing import Any

import numpy as np

from multicoco.config import RunConfig
from multicoco.data.order import POOL, POOLS, grouped, padding_share, shuffled
from multicoco.engine.keeping import KEPT_FROM
from multicoco.methods import Method
from multicoco.models.families import family_of
from multicoco.planning.candidates import GIB, MIB, Candidate
from multicoco.planning.cost import Cluster
from multicoco.planning.geometry import ModelGeometry, Workload
from multicoco.planning.sample import Sample

# bytes of a rank for each record that is not held itself
_PLACES = 16  # which one of the kept it is, and where it comes in the epoch
_GROUPED, _PART = 20, 4  # columns before and behind, how many parts; each part's length
_KEY = 44  # of its images, and the file that has their features
_HEADER = 130  # of a tensor in a file of features


def describe_data(
    config: RunConfig,
    model: ModelGeometry,
    method: Method,
    work: Workload,
    chosen: Candidate,
    cluster: Cluster,
    sample: Sample | None,
) -> Iterator[str]:
    """What there is to say of it, an item of a list each.

    Args:
        work: the stage with most passes.
    """
    if config.streaming:
        yield "Records are read while training: no rank holds them."
    elif sample is not None:
        n = len(sample.examples) if sample.records is None else sample.records
        each = held_each(config, sample)
        how = "held by each rank" if n < KEPT_FROM else "read where they are wanted, so that a rank holds their places"
        yield (
            f"{n:,} records, {how}: {n * each / MIB:.1f} MiB of a rank's CPU memory ({each:.0f} bytes each; "
            f"{1_000_000 * places_each(config, sample) / MIB:.0f} MiB of a million)."
        )
    if config.features:
        yield _describe_features(config, model, work, chosen, cluster, sample)
    if sample is not None and not config.streaming:
        shuffled_share, grouped_share = paddings(sample, method, chosen)
        yield (
            f"Padding in batches of {chosen.setting.micro_batch}, of the lengths of {len(sample.sizes.n_parts):,} "
            f"records: {shuffled_share:.0%} shuffled, {grouped_share:.0%} with `group_by_length`, whose steps would "
            f"have {(1 - shuffled_share) / (1 - grouped_share):.2f} times as many columns."
        )


def places_each(config: RunConfig, sample: Sample) -> float:
    """Bytes of a rank for each record that is read where it is wanted."""
    each = float(_PLACES)
    if config.group_by_length:
        each += _GROUPED + _PART * float(sample.sizes.n_parts.mean())
    if config.features:
        each += _KEY * sum(bool(example.images) for example in sample.examples) / len(sample.examples)
    return each


def held_each(config: RunConfig, sample: Sample) -> float:
    """Bytes of a rank for each record; of few, they are held themselves."""
    each = places_each(config, sample)
    if sample.records is not None and sample.records < KEPT_FROM:
        each += sum(map(_size, sample.examples)) / len(sample.examples)
    return each


def _size(value: Any) -> int:
    """Bytes of an object with all that it is made of."""
    if is_dataclass(value):
        of_fields = sum(_size(getattr(value, field.name)) for field in fields(value))
        return getsizeof(value) + getsizeof(vars(value)) + of_fields
    if isinstance(value, Mapping):
        return getsizeof(value) + sum(_size(key) + _size(of_key) for key, of_key in value.items())
    return getsizeof(value) + (sum(map(_size, value)) if isinstance(value, tuple) else 0)


def image_bytes(model: ModelGeometry, tiles: int) -> int:
    """On disk, of an example's one image."""
    n_tensors = 1 + len(family_of(model.config).names_kept(not model.projects_kept))  # and how it is written
    return tiles * model.kept_bytes + n_tensors * _HEADER


def step_bytes(model: ModelGeometry, work: Workload, chosen: Candidate) -> int:
    """Of features that a rank reads in a step."""
    return chosen.setting.micro_batch * chosen.setting.accumulation * work.rows * work.tiles * model.kept_bytes


def _describe_features(
    config: RunConfig, model: ModelGeometry, work: Workload, chosen: Candidate, cluster: Cluster, sample: Sample | None
) -> str:
    image = image_bytes(model, work.tiles if sample is None else sample.tiles)
    seen = 1000
    if sample is not None and sample.records is not None:
        seen = round(sample.records * sum(len(x.images) for x in sample.examples) / len(sample.examples))
    what = "What the vision tower makes is kept" if model.projects_kept else "Features are kept"
    read = step_bytes(model, work, chosen)
    rate = read / chosen.cost.seconds / 1e9
    return (
        f"{what}, and the vision tower is not called: {image / MIB:.1f} MiB of an image on disk, "
        f"{seen * image / GIB:.1f} GiB of {seen:,} such images. A rank reads {read / MIB:.0f} MiB a step: below "
        f"{rate:.2f} GB/s for each, and {cluster.gpus * rate:.2f} GB/s for a node, reading is what steps wait for."
    )


def paddings(sample: Sample, method: Method, chosen: Candidate) -> tuple[float, float]:
    """Of an epoch's columns in the deepest stage, those that hold nothing: shuffled, and grouped by length."""
    stages = method.schedule.reachable(method.config.num_epochs)
    sizes = sample.sizes.at(method, max(stages, key=method.passes))
    if sample.records is not None:  # a few stand for all, as far as it matters to how they are grouped
        sizes = np.resize(sizes, (max(len(sizes), min(sample.records, POOLS * POOL)), 2))
    setting = chosen.setting
    global_batch = setting.micro_batch * setting.accumulation * setting.ranks
    orders = shuffled(len(sizes), "plan"), grouped(sizes, "plan", global_batch)
    of_shuffled, of_grouped = (padding_share(sizes, order, setting.micro_batch) for order in orders)
    return of_shuffled, of_grouped
