"""Wire formats of services that exist."""

from __future__ import annotations

import base64
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from .services import SMALLEST, FeatureService, ScoreService


class OpenAIService(FeatureService):
    """`POST {ORACLE.URL}/embeddings`: the URL ends before that path, as in `…/v1`.

    Infinity, Jina and Xinference speak it, and LiteLLM's proxy for Bedrock, Vertex, Cohere and
    Voyage (vLLM for texts alone: its pictures are `messages` of a chat). `ORACLE.IMAGES` says how a
    picture is written:

        modality   {"input": ["data:image/png;base64,…"], "modality": "image"}     (Infinity)
        items      {"input": [{"image": "…"}]}, texts {"input": [{"text": "…"}]}   (Jina)
        data_uri   {"input": ["data:image/png;base64,…"]}                          (LiteLLM)
    """

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        items = [{"text": text} for text in texts] if self.spelling == "items" else texts
        return self.embedded(items, "text")

    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        coded = [base64.b64encode(picture).decode() for picture in pictures]
        if self.spelling == "items":
            return self.embedded([{"image": code} for code in coded], "image")
        return self.embedded([f"data:image/png;base64,{code}" for code in coded], "image")

    def embedded(self, items: list, modality: str) -> torch.Tensor:
        """Features `[N, E]` of what one request holds."""
        body: dict[str, Any] = {"model": self.model, "input": items}
        if self.spelling == "modality":
            body |= {"modality": modality, "encoding_format": "base64"}
        return self.post("/embeddings", body, lambda answer: table(answer, len(items)))


def table(answer: Any, count: int) -> torch.Tensor:
    """The features `[N, E]` of a decoded answer, put in order by "index" where it has any.

    Raises:
        ValueError, LookupError or TypeError: it is none, not about N items, or not of numbers.
    """
    data = answer["data"]
    order = [entry.get("index") for entry in data]
    if set(order) == {None}:
        order = list(range(len(data)))
    if len(data) != count or set(order) != set(range(count)):
        raise ValueError(f"an index of {str(order)[:60]}, where 0 to {count - 1} are expected")
    placed = sorted(zip(order, data, strict=True), key=itemgetter(0))
    found = torch.from_numpy(np.stack([numbers(entry["embedding"]) for _, entry in placed]))
    if not found.numel() or not found.isfinite().all():
        raise ValueError("embeddings that are empty or not finite")
    return found


def numbers(written: Any) -> np.ndarray:
    """A list of numbers, or base64 of little-endian float32, as `[E]`."""
    if isinstance(written, str):
        written = np.frombuffer(base64.b64decode(written, validate=True), "<f4")
    return np.asarray(written, np.float32)


class HuggingFaceService(ScoreService):
    """The task zero-shot-image-classification: inference endpoints, and whatever wraps that
    pipeline of `transformers`.

    `ORACLE.URL` is the whole address of the endpoint, which holds one model: no name is sent. All
    labels come back, sorted by score. The template is ours, so that labels are whole texts.
    """

    def score(self, picture: bytes, texts: list[str]) -> torch.Tensor:
        body = {
            "inputs": base64.b64encode(picture).decode(),
            "parameters": {"candidate_labels": texts, "hypothesis_template": "{}"},
        }
        return self.post("", body, lambda answer: in_order(answer, texts))


def in_order(answer: Any, texts: list[str]) -> torch.Tensor:
    """Log-probabilities `[M]` of `[{"label", "score"}, …]`, in the order of the texts.

    Raises:
        ValueError, LookupError or TypeError: it is no such list, or about other texts.
    """
    scores = {entry["label"]: entry["score"] for entry in answer}
    if len(answer) != len(texts) or scores.keys() != set(texts):
        raise ValueError(f"{len(answer)} labels, which are not the {len(texts)} that were sent")
    found = torch.tensor([float(scores[text]) for text in texts], dtype=torch.float64)
    if not ((found >= 0) & (found < 1 + 1e-3)).all():
        raise ValueError("scores that are not between 0 and 1")
    return found.clamp_min(SMALLEST).log().float()
