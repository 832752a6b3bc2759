"""The client of our own server: every trainer runs over it unchanged."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import quote

import torch

from ..errors import BlackBoxError, BudgetSpent
from .bill import UNITS
from .http import Http, Transient
from .interface import Images, NoClasses, Oracle, Refused
from .prompt import Prompt, Texts
from .wire import DIGEST, MEDIA, REQUEST, Contents, as_8bit, described, digest_of, pack, unpack

UPLOAD_BYTES = 2**24  # of one request with images
ENVELOPE, NAME = 2**12, 80  # bytes of a body beside its tensors and names; of an image's name
KNOWN = 100_000  # names of images that are remembered as sent
AGAIN = 100  # repetitions where the server lost what a request names, or has it elsewhere


class RemoteOracle(Oracle):
    """Asks a server of `dassl_blackbox.serve`; no weight comes to this side.

    Texts and images are sent once, named by their content. A server that does not know a name says
    so, and is sent the content again: one that was started anew goes on where it was.

    Args:
        line: the connection.
        device: where answers are put.
        name: the model that is expected (`MODEL.BACKBONE.NAME`).
        client: name of the method that asks, for error messages.
        top_k: log-probabilities that are expected to be let out of an image (`ORACLE.TOP_K`): what
            is fitted to logits is not asked for on anything else; 0: logits.

    Raises:
        BlackBoxError: the server cannot be reached, speaks otherwise, holds another model, or lets
            out something else.
    """

    remedy = (
        "Its owner grants it, with the server's --grants or among the grants of your key; "
        "ORACLE.GRANTS has no effect here."
    )

    def __init__(
        self, line: Http, device: torch.device, name: str, client: str, top_k: int = 0
    ) -> None:
        self.line, self.device, self.client = line, device, client
        try:
            about = line.ask("GET", "/v1/description", entries)
            self.description = described(about["model"])
            self.grants, self.most = frozenset(about["grants"]), int(about["max_bytes"])
            lets_out = int(about["top_k"])
        except (json.JSONDecodeError, LookupError, TypeError, AttributeError, Refused) as e:
            if isinstance(e, Refused) and e.status != 404:
                raise
            raise BlackBoxError(
                f"{line.url} is no server of dassl_blackbox.serve: what it says of itself cannot "
                f"be read. Check ORACLE.URL; for other services, set ORACLE.API."
            ) from e
        if self.description.name != name:
            raise BlackBoxError(
                f"MODEL.BACKBONE.NAME is {name!r}, but {line.url} holds "
                f"{self.description.name!r}. Set it to that name, if that model is meant."
            )
        if lets_out != top_k:
            what = f"the {lets_out} largest log-probabilities" if lets_out else "all logits"
            raise BlackBoxError(
                f"ORACLE.TOP_K is {top_k}, but {line.url} lets out {what} of an image. Set it to "
                f"{lets_out}; a head is of use on the answers that it was fitted to alone."
            )
        self.classes: Texts | None = None
        # names of images that the server has had, oldest first
        self.sent: dict[str, None] = {}

    def allowance(self) -> dict[str, int]:
        used = self.line.ask("GET", "/v1/usage", entries)
        limits = {unit: used[f"max_{unit}"] for unit in UNITS}
        return {unit: max(0, most - used[unit]) for unit, most in limits.items() if most}

    def set_classes(self, names: Sequence[str], template: str = "{}.") -> None:
        self.classes = Texts.of(names, template)
        self.room = self.send_texts(self.classes)

    def send_texts(self, texts: Texts) -> int:
        """Tell the server a list of texts; returns how many context tokens fit before them."""
        body = {"names": list(texts.names), "template": texts.template}
        try:
            return self.line.ask("POST", "/v1/texts", entries, json=body)["room"]
        except UnicodeEncodeError as e:
            raise BlackBoxError(
                "A class name or the template is no text that UTF-8 can hold. Rename it."
            ) from e

    def named_classes(self) -> Texts:
        if self.classes is None:
            raise NoClasses
        return self.classes

    def check(self, n: int) -> None:
        if self.named_classes() and n > self.room:
            raise BlackBoxError(
                f"The texts of the classes leave room for {self.room} context tokens in "
                f"{self.description.name}, and there are {n}. Shorten a name or the context."
            )

    def embed(self, words: str) -> torch.Tensor:
        path = f"/v1/embedding?words={quote(words)}"
        return self.line.ask("GET", path, tensor).to(self.device)

    def upload(self, images: torch.Tensor) -> Images:
        """The images are sent when they are first asked about."""
        self.description.check_images(images)
        pictures = as_8bit(images, self.description)
        return Contents(images.cpu() if pictures is None else pictures)

    def send_images(self, images: Contents, wanted: Collection[str]) -> None:
        """Send those of the images whose names are wanted, each once."""
        rows = {name: i for i, name in enumerate(images.ids) if name in wanted}
        room = min(UPLOAD_BYTES, self.most - ENVELOPE)
        each = max(1, room // max(1, images.pixels[:1].nbytes))
        numbers = list(rows.values())
        for start in range(0, len(numbers), each):
            body = pack({"images": images.pixels[numbers[start : start + each]]})
            self.line.ask("POST", "/v1/images", entries, content=body, headers=of_body(body))
        self.sent.update(dict.fromkeys(rows))
        while len(self.sent) > KNOWN:
            del self.sent[next(iter(self.sent))]

    def query(self, images: Images, prompt: Prompt) -> torch.Tensor:
        return self.in_parts("/v1/query", images, prompt, len(images))

    def image_features(self, images: Images) -> torch.Tensor:
        return self.ask("/v1/features/images", images, None)

    def text_features(self, prompt: Prompt) -> torch.Tensor:
        return self.in_parts("/v1/features/texts", None, prompt, self.description.embed_dim)

    def in_parts(
        self, path: str, images: Images | None, prompt: Prompt, numbers: int
    ) -> torch.Tensor:
        """One answer, in as many requests as the server's bound on bodies and answers wants, of so
        many numbers about one candidate and one text.

        Each is about a part of the candidates: together they cost what one would, unless there are
        further texts, which each would be charged for.
        """
        if prompt.texts is not None:
            return self.ask(path, images, prompt)
        answer = numbers * len(self.named_classes()) * torch.float32.itemsize
        sent = sum(part.nbytes for part in prompt.tensors().values()) // len(prompt)
        room = self.most - ENVELOPE - NAME * (0 if images is None else len(images))
        at_once = min(self.most // max(1, answer), room // max(1, sent))
        answers: list[torch.Tensor] = []
        for part in prompt.split(max(1, at_once)):
            try:
                answers.append(self.ask(path, images, part))
            except Refused as e:
                if answers:  # which are billed
                    kind = BudgetSpent if isinstance(e, BudgetSpent) else BlackBoxError
                    raise kind(str(e)) from e
                raise
        return torch.cat(answers)

    def ask(self, path: str, images: Images | None, prompt: Prompt | None) -> torch.Tensor:
        """One request, under one name, until it is answered."""
        about: dict[str, Any] = {}
        tensors = {} if prompt is None else prompt.tensors()
        if prompt is not None:
            about["classes"] = self.named_classes().id
            about["texts"] = None if prompt.texts is None else prompt.texts.id
        if isinstance(images, Contents) and "pictures" not in tensors:
            about["images"] = images.ids
            self.send_images(images, set(images.ids) - self.sent.keys())
        body = pack(tensors, about)
        headers = {**of_body(body), REQUEST: uuid.uuid4().hex}
        for _ in range(AGAIN):
            try:
                found = self.line.ask("POST", path, tensor, content=body, headers=headers)
                return found.to(self.device)
            except Refused as e:
                missing = e.body.get("missing") if isinstance(e.body, dict) else None
                if e.status != 404 or not isinstance(missing, dict):
                    raise
                if isinstance(images, Contents):
                    self.send_images(images, missing.get("images") or ())
                if missing.get("texts") and prompt is not None:
                    for texts in filter(None, (self.classes, prompt.texts)):
                        self.send_texts(texts)
        raise BlackBoxError(
            f"{self.line.url} says again and again that it does not know what it was sent. Give "
            f"it more room for what it keeps (--store-mb)."
        )


def of_body(body: bytes) -> dict[str, str]:
    return {"Content-Type": MEDIA, DIGEST: digest_of(body)}


def whole(answer: Any) -> bytes:
    """The body of an answer; raises Transient where it did not come whole."""
    if answer.headers.get(DIGEST) != digest_of(answer.content):
        raise Transient("the answer is damaged, or has no Content-Digest")
    return answer.content


def entries(answer: Any) -> dict[str, Any]:
    """The entries of a JSON object."""
    return json.loads(whole(answer))


def tensor(answer: Any) -> torch.Tensor:
    """The tensor that answers a question."""
    return unpack(whole(answer))[0]["answer"]
