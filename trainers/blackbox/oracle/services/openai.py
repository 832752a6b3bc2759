"""Embeddings as OpenAI's `/v1/embeddings` gives them, with pictures among what is embedded.

Infinity, Jina and Xinference speak it, and LiteLLM's proxy for Bedrock, Vertex, Cohere and Voyage
(vLLM for texts alone: its pictures are `messages` of a chat). They differ in how a picture is
written, which `ORACLE.IMAGES` says:

    modality   {"input": ["data:image/png;base64,…"], "modality": "image"}     (Infinity)
    items      {"input": [{"image": "…"}]}, texts {"input": [{"text": "…"}]}   (Jina)
    data_uri   {"input": ["data:image/png;base64,…"]}                          (LiteLLM)
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import torch

from .features import FeatureService

PATH = "/embeddings"
DATA = "data:image/png;base64,"


class OpenAIService(FeatureService):
    """`POST {ORACLE.URL}/embeddings`: the URL ends before that path, as in `…/v1`."""

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        items = [{"text": text} for text in texts] if self.spelling == "items" else texts
        return self.embedded(items, "text")

    def embed_images(self, pictures: list[bytes]) -> torch.Tensor:
        coded = [base64.b64encode(picture).decode() for picture in pictures]
        if self.spelling == "items":
            return self.embedded([{"image": code} for code in coded], "image")
        return self.embedded([DATA + code for code in coded], "image")

    def embedded(self, items: list, modality: str) -> torch.Tensor:
        """Features `[N, E]` of what one request holds."""
        body: dict[str, Any] = {"model": self.model, "input": items}
        if self.spelling == "modality":
            body |= {"modality": modality, "encoding_format": "base64"}
        return self.post(PATH, body, lambda answer: table(answer, len(items)))


def table(answer: Any, count: int) -> torch.Tensor:
    """The features `[N, E]` of a decoded answer, put in order by "index" where it has any.

    Raises:
        ValueError, LookupError or TypeError: it is none, not about N items, or not of numbers.
    """
    data = answer["data"]
    if len(data) != count:
        raise ValueError(f"{len(data)} embeddings where {count} are expected")
    order = [entry.get("index") for entry in data]
    if order == [None] * count:
        order = list(range(count))
    rows = {i: numbers(entry["embedding"]) for i, entry in zip(order, data, strict=True)}
    if rows.keys() != set(range(count)):
        raise ValueError(f"an index of {str(order)[:60]}, where 0 to {count - 1} are expected")
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError("embeddings of different lengths")
    found = torch.from_numpy(np.stack([rows[i] for i in range(count)]))
    if not found.numel() or not found.isfinite().all():
        raise ValueError("embeddings that are empty or not finite")
    return found


def numbers(written: Any) -> np.ndarray:
    """A list of numbers, or base64 of little-endian float32, as `[E]`."""
    if isinstance(written, str):
        try:
            row = np.frombuffer(base64.b64decode(written, validate=True), "<f4")
        except binascii.Error as e:
            raise ValueError(f"an embedding that is no base64: {e}") from e
    else:
        row = np.asarray(written)
        if row.dtype.kind not in "fi":
            raise ValueError("an embedding that is not of numbers")
    if row.ndim != 1:
        raise ValueError("an embedding that is no list of numbers")
    return row.astype(np.float32)
