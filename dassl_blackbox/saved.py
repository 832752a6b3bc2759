"""The file of a fitted `ScoreClassifier`: tensors, and JSON in their metadata; never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .answers import BadExamples
from .datasets.listing import UNREADABLE
from .trainers.blackbox.errors import BlackBoxError, first_line
from .trainers.blackbox.files import write_atomically
from .trainers.blackbox.heads.scores import ScoreHead
from .trainers.blackbox.oracle import Texts

ENTRY = "dassl_blackbox"  # of the metadata
MOST = 4_000_000  # bytes of answers in a file


def write(clf: Any, path: str | Path) -> None:
    """Save the head, and the answers that it was fitted to if they have at most `MOST` bytes."""
    head, params = clf.head_.get_extra_state(), clf.get_params(deep=False)
    tensors = {f"near.{name}": part for name, part in clf.near_.items()}
    tensors |= {name: part for name, part in head.items() if isinstance(part, Tensor)}
    if 0 < sum(2 * rows.numel() for rows in clf.rows_) <= MOST:
        tensors["answers"] = torch.stack(clf.rows_).half()
    about = {
        "params": {**params, "classes": [*clf.names_.items()]},
        "head": {name: part for name, part in head.items() if name not in tensors},
        "further": clf.further_ and [clf.further_.names, clf.further_.template],
        "weights": clf.answers_.weights,
        "pictures": [one if isinstance(one, str) else "" for one in clf.pictures_],
        "labels": clf.labels_,
        "contents": clf.contents_,
    }
    try:
        text = json.dumps(about)
    except TypeError as e:
        raise BadExamples(f"Labels are saved where they are text or numbers ({e}).") from e
    content = {name: part.contiguous() for name, part in tensors.items()}
    write_atomically(path, save(content, {ENTRY: text}))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Parameters, attributes and the model's fingerprint of the classifier in a file."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()[ENTRY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        params, further = about["params"], about["further"]
        params["classes"] = {label: name for label, name in params["classes"]}
        near = [name for name in tensors if name.startswith("near.")]
        found = {name: about[name] for name in ("pictures", "labels", "contents")}
        found |= {
            "further": Texts.of(*further) if further else None,
            "near": {name.removeprefix("near."): tensors.pop(name) for name in near},
            "rows": [*tensors.pop("answers", torch.empty(0)).float()],
            "head": ScoreHead([*params["classes"].values()], len(further[0]) if further else 0),
        }
        found["head"].set_extra_state({**about["head"], **tensors})
        return params, {f"{name}_": part for name, part in found.items()}, about["weights"]
    except (*UNREADABLE, SafetensorError, AttributeError, LookupError) as e:
        raise BlackBoxError(f"{path} is no head that was saved ({first_line(e)}).") from e
