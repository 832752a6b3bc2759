"""Services that score a picture on texts and let nothing else out."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from math import log

import torch

from ...run.errors import BlackBoxError
from ..interface import Images
from ..prompt import Prompt
from .answers import hashed
from .base import ServiceOracle, Several
from .pictures import Pictures, first_of_each, png, to_8bit

SMALLEST = torch.finfo(torch.float32).tiny
CERTAIN = log(0.99)
LOWEST = log(SMALLEST)  # about -87: what a probability that underflowed counts as


class ScoreService(ServiceOracle):
    """Grants logits: log-probabilities, which are the model's logits less a number an image.

    The number is that of all texts of a request, further texts and class texts together. Cross
    entropy, a softmax and an argmax do not see it. A probability below the smallest normal number
    of float32 counts as that: about -87, beyond which the order of texts is lost. Scores that are
    independent of each other, as SigLIP's sigmoids are, do not sum to 1: their logarithm is
    `log sigmoid` of the logit, which keeps the order, but not the differences.

    A service of one's own overrides `score`, and mostly calls `post`. A call is about one picture.
    """

    grants = frozenset({"logits"})

    @abstractmethod
    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        """Log-probabilities `[M]` of a PNG file on M different texts, in their order."""

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        """Name the C classes.

        Raises:
            BlackBoxError: two of them have the same text: answers come back by text. (Further texts
                that are alike are sent once.)
        """
        super().set_classes(names, template)
        text, times = Counter(self.classes).most_common(1)[0]
        if times > 1:
            raise BlackBoxError(
                f"{times} classes have the same text, {text!a}, and {self.line.url} answers by "
                f"text. Give each class a name of its own."
            )

    def scored(self, picture: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """The answer `[M]` about one 8-bit picture `[3, H, W]`.

        Raises:
            BlackBoxError: there are other than M numbers, or one is not a number.
        """
        row = torch.as_tensor(self.score(png(picture), texts)).detach().float().cpu()
        self.count(calls=1, pictures=1, texts=len(texts))
        if row.shape != (len(texts),) or row.isnan().any() or row.isposinf().any():
            raise BlackBoxError(
                f"{self.line.url} gives scores {list(row.shape)} for {len(texts)} texts, where as "
                f"many numbers are expected."
            )
        row = row.clamp_min(LOWEST)
        self.look(picture, row)
        return row

    def sees(self, pictures: Several, answers: Several) -> bool:
        """Whether not all have the same scores; rounded ones of which one is nearly 1 may have."""
        first = answers[0]
        same = [row.shape == first.shape and torch.allclose(row, first) for row in answers]
        return not all(same) or first.max().item() > CERTAIN

    def rows(self, images: Images, texts: list[str]) -> torch.Tensor:
        """`[B, M]` of uploaded pictures; each content is sent once, and kept before the next."""
        assert isinstance(images, Pictures)  # of this oracle's own upload
        kind, first = hashed("scores", *texts), first_of_each(images.ids)
        found = self.answers.known(kind, first, len(texts))
        unknown = [name for name in first if name not in found]
        self.count(pictures_cached=len(images) - len(unknown))
        for name in unknown:
            found[name] = self.scored(images.content[first[name]], texts)
            self.answers.keep(kind, {name: found[name]})
        return torch.stack([found[name] for name in images.ids])

    @torch.no_grad()
    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        self.require("logits", *prompt.grants)
        asked = self.texts_of(prompt)
        texts = list(dict.fromkeys(asked))
        place = {text: i for i, text in enumerate(texts)}
        columns = [place[text] for text in asked]
        if prompt.pictures is None:
            logits = self.rows(images, texts)[None]
        else:
            pictures = prompt.pictures.flatten(0, 1)
            rows = [self.scored(to_8bit(pixels, self.description), texts) for pixels in pictures]
            logits = torch.stack(rows).unflatten(0, prompt.pictures.shape[:2])
        return logits[..., columns].expand(len(prompt), -1, -1).to(self.device)

    def image_features(self, images: Images) -> torch.Tensor:
        self.require("features")
        raise NotImplementedError  # for a service of one's own that grants them

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        self.require("features")
        raise NotImplementedError  # for a service of one's own that grants them

    def calls(self, pictures: int, texts: int) -> int:
        return pictures
