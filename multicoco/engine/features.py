"""The features of a run's images, computed once: of what is missing, each rank computes its share and keeps it."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from multicoco.config import RunConfig
from multicoco.data.example import Example, ImageSource, load_image
from multicoco.data.features import FEATURES, FeatureStore, content_of, image_key
from multicoco.data.loader import Encoder, in_order
from multicoco.engine.deepspeed import whole_state_dict
from multicoco.engine.ranks import agree, gather, rank, world_size
from multicoco.errors import UserError
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import Backbone

CHUNK = 64  # images of a rank between two files
VISIBLE_SECONDS = 60  # until what one host has written must be seen by all
# of a model's config: what says nothing of its images
_OF_TEXT = ("text_config", "vocab_size", "architectures", "transformers_version", "dtype", "torch_dtype")


class _Read(NamedTuple):
    """An image as its model takes it, or what is wrong with it.

    Attributes:
        written: how it is, as of `models.families.ImageInputs.tokens`.
    """

    key: str = ""
    written: Any = 0
    tensors: dict[str, Tensor] | None = None
    error: UserError | None = None


class _Keys(Dataset[_Read]):
    """Images' keys alone."""

    def __init__(self, sources: Sequence[ImageSource]):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, place: int) -> _Read:
        try:
            return self.read(self.sources[place])
        except UserError as error:  # which a worker would raise as another one
            return _Read(error=error)

    def read(self, source: ImageSource) -> _Read:
        return _Read(image_key(content_of(source)))


class _Pictures(_Keys):
    """Images with what the model takes of them."""

    def __init__(self, sources: Sequence[ImageSource], encoder: Encoder):
        super().__init__(sources)
        self.encoder = encoder

    def read(self, source: ImageSource) -> _Read:
        content = content_of(source)  # read once: what is kept is of what the key is of
        image = load_image(content, "an image" if isinstance(source, bytes) else str(source))
        inputs = self.encoder.read_images([image])
        return _Read(image_key(content), inputs.tokens[0], inputs.tensors)


class Features:
    """What is kept of the images of a run, and given to its encoder.

    Only of a model whose vision tower and projector do not train; all ranks call `keep`, once the weights are loaded.

    Raises:
        UserError: the model sees no images.
    """

    def __init__(self, config: RunConfig, backbone: Backbone, reasoner: LatentReasoner, encoder: Encoder):
        self.config = config
        self.backbone = backbone
        self.reasoner = reasoner
        self.encoder = encoder
        self.root = Path(config.features_dir or Path(config.output_dir) / "features")
        self.store: FeatureStore | None = None
        self.known: set[ImageSource] = set()
        self.gave_up = False
        if not backbone.family.sees_images:
            backbone.family.kept(backbone.model, {})

    def keep(self, examples: Sequence[Example], between: Callable[[], None] = lambda: None) -> None:
        """Has the encoder give what is kept of these examples' images, too; first computes what is missing. Collective.

        Where there is no more room for it the images are encoded whenever they are seen, those of before as well.

        Args:
            between: called now and then, on all ranks; may raise.

        Raises:
            UserError: an image cannot be read, the model's features cannot be kept, or hosts see different folders.
        """
        shown = dict.fromkeys(chain.from_iterable(example.images for example in examples))
        new = [image for image in shown if image not in self.known]
        if self.gave_up or not new:
            return
        with torch.random.fork_rng(devices=[]):  # loaders draw from it, and what follows must be as without
            problem = self._keep(new, between)
        if problem is None:
            self.known.update(new)
            self.encoder.kept = self._read_images
            return
        self.gave_up, self.encoder.kept = True, None
        if rank() == 0:
            print(f"features: {problem}: images are encoded whenever they are seen", flush=True)

    def _keep(self, sources: Sequence[ImageSource], between: Callable[[], None]) -> str | None:
        """Returns: why not all could be kept, if so."""
        store = self.store = self.store or self._open()
        keys = self._keys_of(sources)
        wanted = agree(lambda: self._missing(store, keys), only_rank_0=True)
        of_key = dict(zip(keys, sources, strict=True))
        problem = self._compute(store, [of_key[key] for key in wanted], between) if wanted else None
        if problem is None:
            agree(lambda: self._find(store, keys))
        return problem

    def _open(self) -> FeatureStore:
        """Of the weights that the model has now."""
        family = self.backbone.family
        about = self._about()
        folder = self.root / sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

        def make() -> None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(f"{folder} cannot be written ({error}): set another features_dir") from error

        agree(make, only_rank_0=True)
        return FeatureStore(folder, [FEATURES, *family.beside_features])

    def _about(self) -> dict[str, Any]:
        """Everything that an image's features depend on, beside the image."""
        backbone, family = self.backbone, self.backbone.family
        parts = nn.ModuleDict({name: family.part(backbone.model, name) for name in family.parts})
        weights = whole_state_dict(parts)
        config = {key: value for key, value in backbone.model.config.to_dict().items() if key not in _OF_TEXT}
        config = {key: value for key, value in config.items() if not key.startswith("_") and "token" not in key}
        config = {key: value for key, value in config.items() if not isinstance(value, dict) or key == "vision_config"}
        about = {
            "family": type(family).__qualname__,
            "config": config,
            "processing": backbone.image_processor.to_dict(),
            "weights": _hash(weights) if weights is not None else None,
            "dtype": str(next(parts.parameters()).dtype),
            "computed on": [self.reasoner.decoder.device.type, platform.machine()],
            **{package: version(package) for package in ("torch", "transformers", "pillow")},
        }
        readable: dict[str, Any] = json.loads(json.dumps(about, default=str))
        return agree(lambda: readable, only_rank_0=True)

    def _keys_of(self, sources: Sequence[ImageSource]) -> list[str]:
        """In their order; each rank reads its share."""
        own = list(in_order(_Keys(sources[rank() :: world_size()]), self.config.num_workers))
        agree(lambda: _refuse(own))
        shares = gather([read.key for read in own])
        return [shares[place % len(shares)][place // len(shares)] for place in range(len(sources))]

    def _missing(self, store: FeatureStore, keys: Sequence[str]) -> list[str]:
        store.look()
        return store.missing(keys)

    def _compute(self, store: FeatureStore, sources: Sequence[ImageSource], between: Callable[[], None]) -> str | None:
        """Returns: why not all could be kept, if so."""
        most = -(-len(sources) // world_size())  # every rank calls the model as often, as ZeRO-3 needs
        pictures = in_order(_Pictures(sources[rank() :: world_size()], self.encoder), self.config.num_workers)
        was_training = self.reasoner.training
        self.reasoner.eval()
        try:
            with tqdm(total=most, desc="encoding images", disable=rank() != 0, mininterval=1) as progress:
                for first in range(0, most, CHUNK):
                    between()
                    size = min(CHUNK, most - first)
                    read = list(islice(pictures, size))
                    agree(lambda read=read: _refuse(read))  # type: ignore[misc]
                    images = self._encode(read, size)
                    written = {picture.key: picture.written for picture in read}
                    problems = gather(_problem_of_writing(store, images, written))
                    if problem := next(filter(None, problems), None):
                        return problem
                    progress.update(size)
        finally:
            self.reasoner.train(was_training)
        return None

    @torch.no_grad()
    def _encode(self, read: Sequence[_Read], calls: int) -> dict[str, dict[str, Tensor]]:
        """Image by image, so that what is kept of one does not depend on others; of ranks with fewer images than calls
        the rest are of blank ones."""
        model, family, device = self.backbone.model, self.backbone.family, self.reasoner.decoder.device
        like = torch.empty(0, dtype=model.dtype, device=device)
        images = {}
        for picture in read:
            assert picture.tensors is not None
            inputs = {name: x if name in family.host_inputs else x.to(device) for name, x in picture.tensors.items()}
            kept = family.kept(model, inputs)
            images[picture.key] = {name: tensor.cpu().contiguous() for name, tensor in kept.items()}
        for _ in range(calls - len(read)):
            family.kept(model, family.smallest_picture(like))
        return images

    def _find(self, store: FeatureStore, keys: Sequence[str]) -> None:
        deadline = time.monotonic() + VISIBLE_SECONDS
        while True:
            store.look()
            if not (missing := store.missing(keys)):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        raise UserError(
            f"{store.folder}: of {len(missing)} images no features are found there, although ranks have written them: "
            "set features_dir to a folder that all hosts see, and leave images alone while a run reads them"
        )

    def _read_images(self, sources: Sequence[ImageSource]) -> Any:
        """Of an example without images, no features: its batch must not look like one of pixels."""
        assert self.store is not None
        images = self.store.read_images(sources)
        return images if sources else images._replace(tensors={FEATURES: self._no_features})

    @property
    def _no_features(self) -> Tensor:
        """(0, L, D), as those of the images are."""
        assert self.store is not None
        any_image = self.store.read(self.store.keys[0].decode())
        assert any_image is not None  # `keep` has found some
        return any_image[FEATURES][:0]


def _refuse(read: Sequence[_Read]) -> None:
    for picture in read:
        if picture.error is not None:
            raise picture.error


def _problem_of_writing(
    store: FeatureStore, images: dict[str, dict[str, Tensor]], written: dict[str, Any]
) -> str | None:
    try:
        if images:
            store.write(images, written)
    except OSError as error:
        return f"{store.folder} cannot hold more ({error})"
    return None


def _hash(weights: dict[str, Tensor]) -> str:
    found = sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
