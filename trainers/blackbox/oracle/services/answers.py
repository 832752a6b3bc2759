"""What a service has answered: in this process, and in a folder for the next one."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from .disk import Disk

LIMIT = 2**28  # bytes that are kept in this process
ROW_BYTES = 400  # of a row beside its numbers: name, tensor, place in the order
ALIKE = 0.99  # cosine of two answers of one model to one question


class Answers:
    """Rows of numbers, float32, by what was asked.

    Args:
        folder: for other processes; empty: there is none.
        owner: what says which model it is that answers; another owner has other answers.
    """

    def __init__(self, folder: str, owner: Iterable[str]) -> None:
        self.disk = Disk(folder) if folder else None
        self.owner = hashed(*owner)
        self.rows: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0

    def belong(self, sample: torch.Tensor) -> bool:
        """Begin anew where the model has changed behind its name.

        Args:
            sample: its answer `[E]` to a question that is asked in every process.

        Returns:
            Whether what is on disk is of another model, and is passed over.
        """
        if self.disk is None:
            return False
        key = hashed(self.owner, "sample")
        kept = row_of(self.disk.get(key))
        same = kept is not None and alike(kept, sample)
        if kept is None or not same:
            self.disk.put({key: bytes_of(sample)})
        first = kept if kept is not None and same else sample
        self.owner = hashed(self.owner, bytes_of(first).hex())
        return kept is not None and not same

    def known(self, kind: str, names: Iterable[str], size: int) -> dict[str, torch.Tensor]:
        """Those of the rows `[size]` that are there, by name."""
        found = {}
        for name in names:
            key = hashed(self.owner, kind, name)
            row = self.rows.get(key)
            if row is not None:
                self.rows.move_to_end(key)
            elif self.disk is not None and (row := row_of(self.disk.get(key))) is not None:
                self.remember(key, row)
            if row is not None and len(row) == size:
                found[name] = row
        return found

    def keep(self, kind: str, rows: Mapping[str, torch.Tensor]) -> None:
        """Keep rows by name."""
        keyed = {hashed(self.owner, kind, name): row for name, row in rows.items()}
        for key, row in keyed.items():
            self.remember(key, row.clone())  # not a view that keeps its whole batch alive
        if self.disk is not None:
            self.disk.put({key: bytes_of(row) for key, row in keyed.items()})

    def remember(self, key: str, row: torch.Tensor) -> None:
        """Keep a row in this process, the least recently used out first."""
        if key not in self.rows:
            self.bytes += row.nbytes + ROW_BYTES
        self.rows[key] = row
        while self.bytes > LIMIT and len(self.rows) > 1:
            self.bytes -= self.rows.popitem(last=False)[1].nbytes + ROW_BYTES


def hashed(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and F.cosine_similarity(a, b, dim=0).item() > ALIKE


def bytes_of(row: torch.Tensor) -> bytes:
    """Little-endian float32."""
    return row.detach().cpu().numpy().astype("<f4").tobytes()


def row_of(content: bytes | None) -> torch.Tensor | None:
    """The row that was written; None where there is none, or none of whole and finite numbers."""
    if not content or len(content) % 4:
        return None
    row = torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))
    return row if row.isfinite().all() else None
