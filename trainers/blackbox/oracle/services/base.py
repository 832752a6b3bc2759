"""What services have in common: what is known of the model, requests, and what they come to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from ...run.errors import BlackBoxError, first_line
from ..http import Http, Missing, Refused, Transient
from ..interface import Description, Images, NoClasses, Oracle
from ..prompt import Prompt
from .answers import Answers, hashed
from .pictures import Pictures, to_8bit
from .wording import class_texts, counted, money

FEW = 8  # pictures whose answers are compared
UNLIKE = 4.0  # mean difference of two pictures that look unlike, in levels of 0 to 255
TRIES = 2  # of a request whose answers cannot be read; each of them may be billed
COUNTS = ("calls", "pictures", "texts", "pictures_cached", "texts_cached")
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
Parsed = TypeVar("Parsed")
Several = tuple[torch.Tensor, ...]


class ServiceOracle(Oracle):
    """A model behind a service that takes words and pictures, and lets out features or scores.

    What the service does not tell is taken from the configuration: the size, normalisation and
    interpolation of pictures (`INPUT`, undone before they are sent), the temperature
    (`ORACLE.LOGIT_SCALE`) and the model's name (`MODEL.BACKBONE.NAME`). What only methods read that
    are not granted, such as the width of a token, is 0 or None.

    Answers about pictures and texts are kept in this process and in the folder `ORACLE.CACHE`, by
    content. Pictures that a method changed are new each time, and nothing is kept of them.

    Args:
        cfg: Dassl configuration with our nodes.
        line: the connection to `ORACLE.URL`.
        device: where answers are put.
        client: name of the method that asks, for error messages.
    """

    advice: ClassVar[str] = ""  # what to do where a request is too large

    def __init__(self, cfg: Any, line: Http, device: Any, client: str) -> None:
        node = cfg.ORACLE
        self.line, self.device, self.client = line, torch.device(device), client
        self.model, self.price, self.spelling = cfg.MODEL.BACKBONE.NAME, node.PRICE, node.IMAGES
        self.batch = node.BATCH
        self.description = described(cfg)
        line.advice = {413: self.advice, 422: self.advice}
        owner = node.API, line.url.rstrip("/"), self.model, self.spelling
        self.answers = Answers(node.CACHE, owner)
        self.remedy = (
            f"The service {line.url} takes words and pictures and lets out nothing else. Choose a "
            f"method that needs no more, such as SONAR, or ask the model's owner for the server of "
            f"dassl_blackbox.serve, which can grant all."
        )
        self.tally = dict.fromkeys(COUNTS, 0)
        self.classes: list[str] = []
        self.first: list[tuple[torch.Tensor, torch.Tensor]] = []  # pictures and their answers

    # ------------------------------------------------------------------ access

    def check(self, n: int) -> None:
        if n:
            self.require("contexts")

    def embed(self, words: str) -> torch.Tensor:
        self.require("contexts")
        raise NotImplementedError  # for a service of one's own that grants it

    # ------------------------------------------------------------------ texts and pictures

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.classes = class_texts(names, template)

    def texts_of(self, prompt: Prompt) -> list[str]:
        """The C class texts, and the prompt's M further ones behind them."""
        if not self.classes:
            raise NoClasses
        if prompt.texts is None:
            return self.classes
        return self.classes + class_texts(prompt.texts.names, prompt.texts.template)

    def upload(self, images: torch.Tensor) -> Images:
        """They are sent when they are first asked about, as PNG files; see `to_8bit`."""
        self.description.check_images(images)
        return Pictures(to_8bit(images, self.description))

    # ------------------------------------------------------------------ doubts

    def look(self, picture: torch.Tensor, answer: torch.Tensor) -> None:
        """Compare the answers about the first few pictures, before more of them are paid for.

        Args:
            picture: 8-bit values `[3, H, W]`; it counts where it looks unlike the first one.
            answer: about it.

        Raises:
            BlackBoxError: they are not about what the pictures show.
        """
        if len(self.first) == FEW:
            return
        if self.first and (picture.float() - self.first[0][0].float()).abs().mean() < UNLIKE:
            return
        self.first.append((picture, answer))
        if len(self.first) == FEW and not self.sees(*zip(*self.first, strict=True)):
            raise BlackBoxError(
                f"{self.line.url} answers, but not about what pictures show: different pictures "
                f"are answered alike, or one picture differently where its file is written "
                f"differently. {self.model} may read texts alone, or take pictures in another form "
                f"than ORACLE.IMAGES {self.spelling}: check both. {self.tally['pictures']:,} "
                f"pictures were sent."
            )

    @abstractmethod
    def sees(self, pictures: Several, answers: Several) -> bool:
        """Whether answers are about these pictures, all of which look unlike the first."""

    # ------------------------------------------------------------------ requests

    def post(self, path: str, body: Any, parse: Callable[[Any], Parsed]) -> Parsed:
        """What `parse` makes of the JSON that answers a request with this JSON.

        An exception of `parse` means that the answer is damaged: the request is made again, though
        not more than a few times, since a service bills what it answers.

        Args:
            path: behind `ORACLE.URL`, such as "/embeddings", or nothing.
            body: what is sent.
            parse: decoded JSON to numbers.

        Raises:
            BlackBoxError: the service refuses, cannot be reached, or answers otherwise.
        """
        url, tries = self.line.address(path), 0

        def read(answer: Any) -> Parsed:
            nonlocal tries
            tries += 1
            try:
                return parse(answer.json())
            except UNREADABLE as e:
                what = self.line.quoted(f"{type(e).__name__}: {first_line(e)}")
                if tries < TRIES:
                    raise Transient(f"the answer cannot be read, {what}") from e
                raise BlackBoxError(
                    f"{url} answers, but not as expected ({what}). Check ORACLE.URL, ORACLE.API "
                    f"and ORACLE.IMAGES."
                ) from e

        try:
            return self.line.ask("POST", path, read, json=body)
        except Missing as e:
            raise Refused(f"{url} is not there (404). Check ORACLE.URL and ORACLE.API.") from e

    # ------------------------------------------------------------------ what it comes to

    def count(self, **more: int) -> None:
        for name, number in more.items():
            self.tally[name] += number

    def usage(self) -> dict[str, int | float]:
        """What this process has asked so far, and with `ORACLE.PRICE` the money of it.

        Calls that were answered, pictures and texts that were sent in them, and those that were not
        since their answers were kept. A call that was tried again counts once.
        """
        paid = {"money": round(self.price * self.tally["pictures"], 6)} if self.price else {}
        return {**self.tally, **paid}

    @abstractmethod
    def calls(self, pictures: int, texts: int) -> int:
        """Calls that so many pictures and texts take, if none is known."""

    def quote(self, pictures: int, texts: int) -> str:
        """What so many pictures and texts would come to, as a phrase."""
        paid = f", {money(self.price * pictures)} by ORACLE.PRICE" if self.price else ""
        calls = counted(self.calls(pictures, texts), "call")
        return f"about {calls}, {counted(pictures, 'picture')}{paid}"


def described(cfg: Any) -> Description:
    """What a configuration tells of a model whose service tells nothing."""
    api, name, given = cfg.ORACLE.API, cfg.MODEL.BACKBONE.NAME, cfg.INPUT
    return Description(
        name=name,
        width=0,
        image_width=None,
        embed_dim=0,
        context_length=0,
        image_size=tuple(given.SIZE),
        mean=tuple(given.PIXEL_MEAN),
        std=tuple(given.PIXEL_STD),
        interpolation=given.INTERPOLATION,
        logit_scale=cfg.ORACLE.LOGIT_SCALE,
        token_std=0.0,
        patch_mean=None,
        patch_std=None,
        fingerprint=hashed(api, name),
    )
