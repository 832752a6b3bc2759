"""Scores of Hugging Face's task zero-shot-image-classification."""

from __future__ import annotations

import base64
from typing import Any

import torch

from .scores import SMALLEST, ScoreService


class HuggingFaceService(ScoreService):
    """Inference endpoints, and whatever wraps that pipeline of `transformers`.

    `ORACLE.URL` is the whole address of the endpoint, which holds one model: no name is sent. A
    call is about one picture, and all labels come back, sorted by score. The template is ours, so
    that labels are whole texts.
    """

    advice = "A smaller INPUT.SIZE, or fewer texts, put less into a request."

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
