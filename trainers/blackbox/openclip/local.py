"""The oracle over a model on this machine, and its features of images by what they show."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import BlackBoxError
from ..files import write_atomically
from ..oracle.interface import QUERY_IMAGES, Images, Oracle, few_at_a_time
from ..oracle.prompt import Prompt, Texts
from . import patches
from .blocks import TextPath
from .models import HALF, LoadedModel

ROW_BYTES = 768  # of a key, its place in an OrderedDict and a tensor, beside the tensor's numbers
FEW = 8
Pixels = Callable[[list[int] | slice], torch.Tensor]  # of some images of a batch
Encode = Callable[[torch.Tensor], torch.Tensor]  # [B, 3, H, W] -> [B, E]


class FeatureStore(OrderedDict[bytes, torch.Tensor]):
    """Rows `[E]` by content, within `limit` bytes, the least recently used out first.

    With a `folder`, whole batches are kept there too, for processes that ask about the same ones.
    """

    def __init__(self, limit: int = 2**29, folder: Path | None = None) -> None:
        super().__init__()
        self.limit, self.folder, self.weights = limit, folder, torch.zeros(2, 0)

    def fingerprints(self, pixels: torch.Tensor) -> list[bytes]:
        """128 bits of every image `[B, 3, H, W]`: two sums, modulo 2^64, of its pixels' bits times
        random odd numbers; the chance that two different images share both is below 2^-60.
        """
        bits = pixels.float().flatten(1).contiguous().view(torch.int32)
        if self.weights.shape[1] != bits.shape[1]:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randint(-(2**62), 2**62, (2, bits.shape[1]), generator=generator)
            self.weights = (drawn * 2 + 1).to(bits.device)
        sums = [
            torch.stack([(part * weights).sum(1) for weights in self.weights], dim=1)
            for part in few_at_a_time(bits)
        ]
        return [row.tobytes() for row in torch.cat(sums).cpu().numpy()]

    def fill(self, pixels: torch.Tensor, encode: Encode) -> torch.Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`; `encode` gets those that are not known."""
        keys = self.fingerprints(pixels)
        if not self.folder or all(key in self for key in keys):
            return self.named(keys, pixels.__getitem__, encode)
        path = self.folder / hashlib.sha256(b"".join(keys)).hexdigest()
        with suppress(OSError):
            content = path.read_bytes()
            kept = content[32:]
            if hashlib.sha256(kept).digest() == content[:32]:
                rows = torch.frombuffer(bytearray(kept), dtype=torch.float32).to(pixels.device)
                return self.named(keys, rows.view(len(keys), -1).__getitem__, lambda found: found)
        rows = self.named(keys, pixels.__getitem__, encode)
        kept = rows.cpu().numpy().tobytes()
        with suppress(BlackBoxError):  # a full disk, or others that write it too, cost time alone
            write_atomically(path, hashlib.sha256(kept).digest() + kept)
        return rows

    def named(self, keys: list[bytes], pixels: Pixels, encode: Encode) -> torch.Tensor:
        """The same of images whose contents are named; each content is encoded once.

        A few unknown ones go together with others of their batch: products of very few rows take
        other kernels, whose last bits differ.
        """
        first = {key: i for i, key in reversed([*enumerate(keys)])}
        found = {key: self[key] for key in first if key in self}
        unknown = sorted(i for key, i in first.items() if key not in found)
        if unknown:
            others = sorted({*range(len(keys))}.difference(unknown))[: max(0, FEW - len(unknown))]
            whole = len(unknown) + len(others) == len(keys)
            encoded = encode(pixels(slice(None) if whole else unknown + others))
            rows = encoded[unknown] if whole else encoded[: len(unknown)]
            # copied: a view would keep the whole batch alive
            found.update((keys[i], row.clone()) for i, row in zip(unknown, rows, strict=True))
        for key in keys:
            self[key] = found[key]
            self.move_to_end(key)
        features = torch.stack([found[key] for key in keys])
        while len(self) > self.limit // (features[0].nbytes + ROW_BYTES):
            self.popitem(last=False)
        return features


class LocalOracle(Oracle):
    """A frozen open_clip model that answers queries: CLIP, CustomTextCLIP or CoCa, any image tower.

    Features of images are kept while their name lives, and within a bound beyond that, or in the
    folder `features`; those of the last texts, so that a test pass encodes its prompt once.
    `client` is the method that asks.

    Example:
        oracle = LocalOracle(load_model("tiny"))
        oracle.set_classes(["cat", "dog"], "a photo of a {}.")
        logits = oracle.query(oracle.upload(images), Prompt())  # [1, B, 2]
    """

    def __init__(
        self,
        loaded: LoadedModel,
        grants: Sequence[str] = ("contexts", "logits"),
        client: str = "a method",
        features: str = "",
    ) -> None:
        self.model, self.device, self.precision = loaded.model, loaded.device, loaded.precision
        self.description, self.grants, self.client = loaded.description, frozenset(grants), client
        self.text, self.further_text = TextPath(loaded), TextPath(loaded)
        self.short = patches.fits(self.model.visual)
        convolutions = sum(isinstance(part, nn.Conv2d) for part in self.model.visual.modules())
        few = convolutions > 1 and self.device.type == "cpu"  # a transformer's cuts the patches
        self.tower_batch = patches.CONVOLVED if few else QUERY_IMAGES
        made_by = f"{self.description.fingerprint[:16]}-{self.precision}-{self.device.type}"
        folder = Path(features, made_by).expanduser() if features else None
        self.store = FeatureStore(folder=folder)
        self.dtype = HALF.get(loaded.precision, torch.float32)
        self.scale, bias = self.model.logit_scale.detach().float().exp(), self.model.logit_bias
        self.bias = None if bias is None else bias.detach().float()
        self.pixels = WeakKeyDictionary[Images, torch.Tensor]()
        self.encoded = WeakKeyDictionary[Images, torch.Tensor]()
        # the last contexts and further texts, with their text features
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None
        self.further: tuple[Texts, torch.Tensor] | None = None

    def autocast(self) -> AbstractContextManager:
        kind = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=kind, enabled=self.precision == "amp")

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.text.set_classes(names, template)
        self.last = None

    def check(self, n: int) -> None:
        self.text.check(n)

    @torch.no_grad()
    def embed(self, words: str) -> torch.Tensor:
        return self.text.look_up([self.text.encode(words)])[0].float()

    def upload(self, images: torch.Tensor) -> Images:
        self.description.check_images(images)
        name = Images(len(images))
        self.pixels[name] = images
        return name

    def features_of(self, images: Images) -> torch.Tensor:
        """Normalised features `[B, E]`, float32, in the tower's own precision."""
        if images not in self.encoded:
            parts = self.pixels[images].split(QUERY_IMAGES)
            found = [self.store.fill(part.to(self.device), self.encode_pixels) for part in parts]
            self.encoded[images] = torch.cat(found)
            if "image_tokens" not in self.grants:
                del self.pixels[images]  # nothing can ask for the pixels again
        return self.encoded[images]

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised features `[B, E]` of `[B, 3, H, W]` on the device."""
        if self.short:
            none = pixels.new_zeros(1, 0, self.description.image_width or 0)
            return self.encode_with_tokens(pixels, none)[0]
        with self.autocast():
            parts = pixels.to(self.dtype).split(self.tower_batch)
            found = torch.cat([self.model.encode_image(part) for part in parts])
            return F.normalize(found.float(), dim=-1)

    def encode_with_tokens(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[P, B, E]` of image tokens `[P, n_V, W]`, before `ln_pre` behind all patches."""
        if self.short:
            with self.autocast():
                features = patches.encode(self.model.visual, pixels.to(self.dtype), tokens)
                return F.normalize(features.float(), dim=-1)

        def append(module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            (x,) = inputs
            return torch.cat([x, tokens[len(found)].to(x.dtype).expand(len(x), -1, -1)], dim=1)

        found: list[torch.Tensor] = []
        with self.model.visual.ln_pre.register_forward_pre_hook(append):
            while len(found) < len(tokens):
                found.append(self.encode_pixels(pixels))
        return torch.stack(found)

    def features_with_tokens(self, images: Images, tokens: torch.Tensor) -> torch.Tensor:
        if self.description.image_width is None:
            name = self.description.name
            raise BlackBoxError(f"{name} admits no image tokens. Choose a ViT of open_clip's own.")
        parts, tokens = self.pixels[images].split(QUERY_IMAGES), tokens.to(self.device)
        found = [self.encode_with_tokens(part.to(self.device), tokens) for part in parts]
        return torch.cat(found, dim=1)

    def features_of_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """`[P, B, E]` of pixels `[P, B, 3, H, W]`, which are new each time: nothing is kept."""
        parts = pictures.flatten(0, 1).split(QUERY_IMAGES)
        found = [self.encode_pixels(part.to(self.device)) for part in parts]
        return torch.cat(found).unflatten(0, pictures.shape[:2])

    def text_of(self, prompt: Prompt) -> torch.Tensor:
        """Normalised features `[P, C + M, E]` of the class texts and the M further ones."""
        none, texts = torch.zeros(1, 0, self.description.width, device=self.device), prompt.texts
        contexts = none if prompt.contexts is None else prompt.contexts.to(self.device)
        with self.autocast():
            if self.last is None or not torch.equal(self.last[0], contexts):
                self.last = contexts.clone(), self.text(contexts)
            if texts is None:
                return self.last[1]
            if self.further is None or self.further[0] != texts:
                self.further_text.set_classes(texts.names, texts.template)
                self.further = texts, self.further_text(none)
        return torch.cat([self.last[1], self.further[1].expand(len(contexts), -1, -1)], dim=1)

    def score(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Logits `[P, B, C]` of image features `[B, E]` or `[P, B, E]` and texts `[P, C, E]`."""
        logits = (self.scale * image) @ text.transpose(1, 2)
        return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        text = self.text_of(prompt)
        if prompt.pictures is not None:
            image = self.features_of_pictures(prompt.pictures)
        elif prompt.image_tokens is not None:
            image = self.features_with_tokens(images, prompt.image_tokens)
        else:
            image = self.features_of(images)
        return self.score(image, text)

    @torch.no_grad()
    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        return self.features_of(images).clone()

    @torch.no_grad()
    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features", *prompt.grants)
        return self.text_of(prompt).clone()
