"""The features of a run's images, computed once: of what is missing, each rank computes its share and keeps it."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from multicoco.config import RunConfig
from multicoco.data.collate import ImageInputs
from multicoco.data.example import Example, ImageSource, load_image
from multicoco.data.features import KEY, FeatureStore, Keys, images_key
from multicoco.data.kept import picked
from multicoco.data.loader import Encoder, in_order
from multicoco.data.verified import Entries, VerifiedImages, content_of, digest_of
from multicoco.engine.keeping import IMAGES, folder_of
from multicoco.engine.ranks import agree, gather, in_turn, own_places, rank, world_size
from multicoco.errors import UserError
from multicoco.files import sweep, write_json
from multicoco.latent.reasoner import LatentReasoner
from multicoco.models.backbone import Backbone

Images = tuple[ImageSource, ...]  # of an example

CHUNK = 64  # examples of a rank between two files
VISIBLE_SECONDS = 60  # until what one host has written must be seen by all
# of a model's config: what says nothing of its images
_OF_TEXT = ("text_config", "vocab_size", "architectures", "transformers_version", "dtype", "torch_dtype")


class _Read(NamedTuple):
    """Images as their model takes them.

    Attributes:
        noted: of those whose files had to be read.
        written: how they are, as of `ImageInputs.tokens`.
    """

    key: str = ""
    noted: Entries | None = None
    written: Sequence[Any] = ()
    tensors: dict[str, Tensor] | None = None


class _Keys(Dataset[_Read]):
    """Images' keys alone, of examples that have some."""

    def __init__(self, examples: Sequence[Example], verified: VerifiedImages):
        self.examples = examples
        self.verified = verified

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> _Read:
        images = self.examples[place].images
        return self.read(images) if images else _Read()

    def read(self, images: Images) -> _Read:
        key = images_key([self.verified.digest(image) for image in images])
        return _Read(key, self.verified.taken())


class _Pictures(_Keys):
    """Images with what the model takes of them."""

    def __init__(self, examples: Sequence[Example], verified: VerifiedImages, encoder: Encoder):
        super().__init__(examples, verified)
        self.encoder = encoder

    def read(self, images: Images) -> _Read:
        contents = [content_of(image) for image in images]  # read once: what is kept is of what the key is of
        names = ["an image" if isinstance(image, bytes) else str(image) for image in images]
        inputs = self.encoder.read_images(list(map(load_image, contents, names)))
        key = images_key(list(map(digest_of, contents)))
        return _Read(key, written=inputs.tokens, tensors=inputs.tensors)


class Features:
    """What is kept of the images of a run, and given to its encoder: features or, where the projector is not frozen,
    what it makes them from. So all checkpoints of a run that trains the projector find the same.

    Only of a model whose vision tower does not train; all ranks call `keep`, once the weights are loaded.

    Raises:
        UserError: of the model's family none are kept.
    """

    def __init__(self, config: RunConfig, backbone: Backbone, reasoner: LatentReasoner, encoder: Encoder):
        self.config = config
        self.backbone = backbone
        self.reasoner = reasoner
        self.encoder = encoder
        self.root = Path(config.features_dir or Path(config.output_dir) / "features")
        self.projected = config.freeze.projector
        self.verified = VerifiedImages(folder_of(config) / IMAGES)
        self.store: FeatureStore | None = None
        self.gave_up = False
        if not backbone.family.keeps_features:
            raise UserError(
                f"features is cache, but of a {backbone.model.config.model_type} model no features of images are kept: "
                "leave it out"
            )

    def keep(self, examples: Sequence[Example], between: Callable[[], None] = lambda: None) -> None:
        """Has the encoder give what is kept of these examples' images, too; first computes what is missing. Collective.

        Where there is no more room for it the images are encoded whenever they are seen, those of before as well.

        Args:
            between: called now and then, on all ranks; may raise.

        Raises:
            UserError: an image cannot be read, the model's features cannot be kept, or hosts see different folders.
        """
        if self.gave_up:
            return
        with torch.random.fork_rng(devices=[]):  # loaders draw from it, and what follows must be as without
            keys, noted = self._keys_of(examples)
            if not (keys != b"").any():
                return
            problem = self._keep(examples, keys, between)
        if problem is None:
            self.encoder.kept = self._read_images
            if rank() == 0:
                self.verified.save(noted)  # now that all have been decoded, here or when their features were made
            return
        self.gave_up, self.encoder.kept = True, None
        if rank() == 0:
            print(f"features: {problem}: images are encoded whenever they are seen", flush=True)

    def _keys_of(self, examples: Sequence[Example]) -> tuple[Keys, list[Entries]]:
        """In their order, empty where there is no image, and what had to be read for them; each rank reads its
        share."""
        own = _Keys(picked(examples, own_places(len(examples))), self.verified)
        read = agree(lambda: _keys_and_noted(in_order(own, self.config.num_workers)))
        shares, noted = zip(*gather(read), strict=True)
        new = list(chain.from_iterable(noted))
        self.verified.learn(new)
        return in_turn(shares), new

    def _keep(self, examples: Sequence[Example], keys: Keys, between: Callable[[], None]) -> str | None:
        """Returns: why not all could be kept, if so."""
        store = self.store = self.store or self._open()
        each, places = np.unique(keys, return_index=True)
        each, places = each[each != b""], places[each != b""]
        wanted = agree(lambda: self._missing(store, each), only_rank_0=True)
        problem = None
        if len(wanted):
            first = np.sort(places[np.isin(each, wanted)])
            problem = self._compute(store, picked(examples, first), between)
        if problem is None:
            agree(lambda: self._find(store, each))
        return problem

    def _open(self) -> FeatureStore:
        """Of the weights that the model has now."""
        family = self.backbone.family
        about = self._about()
        folder = self.root / sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

        def make() -> None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder} cannot be written ({error}): set another features_dir") from error
            sweep(folder)
            with suppress(OSError):  # people read it; a folder that is full, or read only, may hold all that is wanted
                if not (folder / "about.json").exists():
                    write_json(folder / "about.json", about)

        agree(make, only_rank_0=True)
        return FeatureStore(folder, family.names_kept(self.projected), self.verified.digest)

    def _about(self) -> dict[str, Any]:
        """Everything that an image's features depend on, beside the image."""
        from multicoco.engine.deepspeed import whole_state_dict  # `multicoco ask` does without DeepSpeed

        backbone, family = self.backbone, self.backbone.family
        passed = [name for name in family.parts if name != "projector" or self.projected]
        parts = nn.ModuleDict({name: family.part(backbone.model, name) for name in passed})
        weights = whole_state_dict(parts)
        config = {key: value for key, value in backbone.model.config.to_dict().items() if key not in _OF_TEXT}
        config = {key: value for key, value in config.items() if not key.startswith("_") and "token" not in key}
        config = {key: value for key, value in config.items() if not isinstance(value, dict) or key == "vision_config"}
        about = {
            "family": type(family).__qualname__,
            "kept": family.names_kept(self.projected),
            "config": config,
            "processing": backbone.image_processor.to_dict(),
            "weights": _hash(weights) if weights is not None else None,
            "dtype": str(next(parts.parameters()).dtype),
            "computed on": [self.reasoner.decoder.device.type, platform.machine()],
            **{package: version(package) for package in ("torch", "transformers", "pillow")},
        }
        readable: dict[str, Any] = json.loads(json.dumps(about, default=str))
        return agree(lambda: readable, only_rank_0=True)

    def _missing(self, store: FeatureStore, keys: Keys) -> Keys:
        store.look()
        return store.missing(keys)

    def _compute(self, store: FeatureStore, examples: Sequence[Example], between: Callable[[], None]) -> str | None:
        """Returns: why not all could be kept, if so."""
        most = -(-len(examples) // world_size())  # every rank calls the model as often, as ZeRO-3 needs
        share = picked(examples, own_places(len(examples)))
        pictures = in_order(_Pictures(share, self.verified, self.encoder), self.config.num_workers)
        was_training = self.reasoner.training
        self.reasoner.eval()
        try:
            with tqdm(total=most, desc="encoding images", disable=rank() != 0, mininterval=1) as progress:
                for first in range(0, most, CHUNK):
                    between()
                    size = min(CHUNK, most - first)
                    read = agree(lambda size=size: list(islice(pictures, size)))  # type: ignore[misc]
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
        """Example by example, so that what is kept of one does not depend on others; of ranks with fewer of them than
        calls the rest are of blank pictures."""
        model, family, device = self.backbone.model, self.backbone.family, self.reasoner.decoder.device
        like = torch.empty(0, dtype=model.dtype, device=device)
        images = {}
        for picture in read:
            assert picture.tensors is not None
            inputs = {name: x if name in family.host_inputs else x.to(device) for name, x in picture.tensors.items()}
            kept = self.reasoner.keeping(family, model, inputs, self.projected)
            images[picture.key] = {name: tensor.cpu().contiguous() for name, tensor in kept.items()}
        for _ in range(calls - len(read)):
            self.reasoner.keeping(family, model, family.smallest_picture(like), self.projected)
        return images

    def _find(self, store: FeatureStore, keys: Keys) -> None:
        deadline = time.monotonic() + VISIBLE_SECONDS
        while True:
            store.look()
            if not len(missing := store.missing(keys)):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        raise UserError(
            f"{store.folder}: of {len(missing)} examples no features are found, although ranks have written them: set "
            "features_dir to a folder that all hosts see, and leave images alone while a run reads them"
        )

    def _read_images(self, sources: Sequence[ImageSource]) -> ImageInputs:
        """Of an example without images, no features: its batch must not look like one of pixels."""
        assert self.store is not None
        images = self.store.read_images(sources)
        return images if sources else ImageInputs(tensors=self._none)

    @property
    def _none(self) -> dict[str, Tensor]:
        """Of no image, (0, L, ...), as what is kept of some is."""
        assert self.store is not None
        any_image = self.store.read(self.store.keys[0].decode())
        assert any_image is not None  # `keep` has found some
        name, *_ = self.backbone.family.names_kept(self.projected)
        return {name: any_image[name][:0]}


def _keys_and_noted(read: Iterable[_Read]) -> tuple[Keys, list[Entries]]:
    """Nothing is held of an image that is known but its key."""
    keys, noted = bytearray(), []
    for picture in read:
        keys += picture.key.encode().ljust(KEY.itemsize, b"\0")
        if picture.noted is not None and len(picture.noted):
            noted.append(picture.noted)
    return np.frombuffer(bytes(keys), KEY), noted


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
