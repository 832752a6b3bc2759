"""Items of Dassl's loaders, whichever process makes them: augmented from the run's seed."""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from dassl.data.data_manager import DatasetWrapper

from .decoding import naming
from .pictures import Pictures


class Augmentation:
    """Decides every draw of an image's augmentation: from the run's seed, the image and the epoch.

    So worker processes, which get a copy at an epoch's start, draw as the main process would; and
    the random states of the process that draws are left as if nothing had been drawn.

    Args:
        seed: SEED; a negative one is replaced by a random one, which the run's checkpoints keep.
        views: INPUT.VIEWS: this many views of an image take turns by epoch; 0: ever new ones.
    """

    def __init__(self, seed: int, views: int = 0):
        self.seed = seed if seed >= 0 else secrets.randbits(62)
        self.views, self.epoch = views, 0

    @contextmanager
    def of(self, index: int) -> Iterator[None]:
        """Within this context all random sources of transforms begin where the image decides."""
        view = self.epoch % self.views if self.views else self.epoch
        digest = hashlib.sha256(f"{self.seed} {index} {view}".encode()).digest()
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            random.seed(digest)
            np.random.seed(np.frombuffer(digest, np.uint32))
            # the CPU's generator alone: `torch.manual_seed` tells every device, which takes longer
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class ImageReader(DatasetWrapper):
    """Dassl's dataset wrapper, item for item, over `pictures`, its draws decided by `augmentation`.

    Raises:
        BlackBoxError: an image cannot be decoded, or the transforms do not fit it; it is named.
    """

    def __init__(
        self, pictures: Pictures, augmentation: Augmentation, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.pictures, self.augmentation = pictures, augmentation

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        picture = self.pictures.open(item.impath)
        made = {name: getattr(item, name) for name in ("label", "domain", "impath")}
        made["index"] = index
        several = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        cure = "Change INPUT.TRANSFORMS, or the settings of INPUT that they take."
        with naming(item.impath, "cannot be transformed", cure), self.augmentation.of(index):
            for n, transform in enumerate(several, 1):
                views = [transform(picture) if transform else picture for _ in range(self.k_tfm)]
                made["img" if n == 1 else f"img{n}"] = views if self.k_tfm > 1 else views[0]
            if self.return_img0:
                made["img0"] = self.to_tensor(picture)
        return made
