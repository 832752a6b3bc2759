"""Services that let out features of pictures and texts; scores follow from them here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from ...run.errors import BlackBoxError
from ..http import Http
from ..interface import Images
from ..prompt import Prompt
from .answers import alike
from .base import ServiceOracle, Several
from .pictures import Pictures, first_of_each, png, to_8bit

ROUNDING = 1e-6  # of a cosine
SAMPLE = "a photo of a dog."  # a text that is asked about in every process


class FeatureService(ServiceOracle):
    """Grants logits and features. Logits are `ORACLE.LOGIT_SCALE` times the cosine.

    A service of one's own overrides `embed_texts` and `embed_images`, and mostly calls `post`. One
    text is embedded at the start: its length is that of all features, and where it differs from
    what is on disk, the service holds another model under the same name.

    Raises:
        BlackBoxError: the service cannot be reached, or refuses.
    """

    grants = frozenset({"features", "logits"})
    advice = "A smaller ORACLE.BATCH puts less into a request."

    def __init__(self, cfg: Any, line: Http, device: Any, client: str) -> None:
        super().__init__(cfg, line, device, client)
        self.last: tuple[list[str], torch.Tensor] | None = None  # texts, and their features
        sample = self.sent(self.embed_texts, [SAMPLE], "texts")[0]
        self.description = replace(self.description, embed_dim=len(sample))
        if self.answers.belong(sample):
            print(
                f"Note: {line.url} no longer answers about {self.model} as ORACLE.CACHE has it; "
                f"what is kept there is of another model, and is passed over"
            )

    # ------------------------------------------------------------------ what a service brings

    @abstractmethod
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Features `[M, E]` of at most `ORACLE.BATCH` texts; they need not be normalised."""

    @abstractmethod
    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        """Features `[B, E]` of at most `ORACLE.BATCH` PNG files; they need not be normalised."""

    # ------------------------------------------------------------------ features

    def sent(self, embed: Callable[[list], torch.Tensor], items: list, what: str) -> torch.Tensor:
        """Normalised features `[N, E]` of what is sent in one call, `N` at least 1.

        Raises:
            BlackBoxError: it is no such table, or of other numbers than before.
        """
        rows = torch.as_tensor(embed(items)).detach().float().cpu()
        self.count(calls=1, **{what: len(items)})
        width = self.description.embed_dim or rows.shape[-1]
        if rows.shape != (len(items), width):
            raise BlackBoxError(
                f"{self.line.url} gives features {list(rows.shape)} of {len(items)} {what}, where "
                f"[{len(items)}, {width}] is expected. Does {self.model} have one space for "
                f"pictures and texts?"
            )
        if not rows.isfinite().all():
            raise BlackBoxError(f"{self.line.url} gives features of {what} that are not finite.")
        return F.normalize(rows, dim=-1)

    def rows(
        self, kind: str, names: list[str], send: Callable[[list[int]], torch.Tensor]
    ) -> torch.Tensor:
        """Features `[N, E]` of named contents; `send` gets the numbers of those to be asked about.

        Each content is sent once, and what a call gave is kept before the next is made.
        """
        first = first_of_each(names)
        found = self.answers.known(kind, first, self.description.embed_dim)
        unknown = [name for name in first if name not in found]
        self.count(**{f"{kind}_cached": len(names) - len(unknown)})
        for start in range(0, len(unknown), self.batch):
            part = unknown[start : start + self.batch]
            fresh = dict(zip(part, send([first[name] for name in part]), strict=True))
            self.answers.keep(kind, fresh)
            found.update(fresh)
        return torch.stack([found[name] for name in names])

    def features_of(self, images: Images) -> torch.Tensor:
        """Normalised features `[B, E]`, float32."""
        assert isinstance(images, Pictures)  # of this oracle's own upload

        def send(numbers: list[int]) -> torch.Tensor:
            return self.sent_pictures(images.content[numbers])

        return self.rows("pictures", images.ids, send).to(self.device)

    def sent_pictures(self, content: torch.Tensor) -> torch.Tensor:
        rows = self.sent(self.embed_images, [png(picture) for picture in content], "pictures")
        for picture, row in zip(content, rows, strict=True):
            self.look(picture, row)
        return rows

    def sees(self, pictures: Several, answers: Several) -> bool:
        """Whether the first is nearest to itself in a file that is written otherwise.

        A model of texts that is given files as words embeds their bytes, not what they show.
        """
        first, others = answers[0], torch.stack(answers[1:])
        again = self.sent(self.embed_images, [png(pictures[0], compress_level=0)], "pictures")[0]
        return alike(first, again) and bool((others @ first).max() < again @ first - ROUNDING)

    def features_of_changed(self, pictures: torch.Tensor) -> torch.Tensor:
        """The same `[P, B, E]` of pixels `[P, B, 3, H, W]`; nothing of them is kept."""
        parts = pictures.flatten(0, 1).split(self.batch)  # of which there may be gigabytes
        rows = [self.sent_pictures(to_8bit(part, self.description)) for part in parts]
        return torch.cat(rows).unflatten(0, pictures.shape[:2]).to(self.device)

    def text_of(self, prompt: Prompt) -> torch.Tensor:
        """Normalised features `[C + M, E]` of the class texts and the further ones."""
        texts = self.texts_of(prompt)
        if self.last is None or self.last[0] != texts:

            def send(numbers: list[int]) -> torch.Tensor:
                return self.sent(self.embed_texts, [texts[i] for i in numbers], "texts")

            self.last = list(texts), self.rows("texts", texts, send).to(self.device)
        return self.last[1]

    # ------------------------------------------------------------------ questions

    @torch.no_grad()
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        text = self.text_of(prompt)
        if prompt.pictures is not None:
            image = self.features_of_changed(prompt.pictures)
        else:
            image = self.features_of(images)[None]
        logits = self.description.logit_scale * image @ text.mT
        return logits.expand(len(prompt), -1, -1).contiguous()

    @torch.no_grad()
    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        return self.features_of(images)

    @torch.no_grad()
    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features", *prompt.grants)
        return self.text_of(prompt).expand(len(prompt), -1, -1).clone()

    def calls(self, pictures: int, texts: int) -> int:
        return -(-pictures // self.batch) + -(-texts // self.batch)
