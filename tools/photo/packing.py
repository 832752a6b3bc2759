"""The files of an embedded model: most weights in 8 bits, with a factor a row."""

from __future__ import annotations

import torch

LEAST = 4096  # numbers of a tensor that is worth it


def pack(state: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `embedded_state_dict` reads, of a state dict whose token embeddings are those `rows`.

    Matrices and kernels become whole numbers from -127 to 127 times a factor for each of their
    first dimension; running statistics stay as they are; the rest is of half precision.
    """
    touched = state["token_embedding.weight"]
    packed = {"token_embedding.rows": rows.to(torch.int32)}
    rest = {k: v for k, v in state.items() if k != "token_embedding.weight"}
    for name, value in {**rest, "token_embedding.touched": touched}.items():
        if value.ndim > 1 and value.numel() >= LEAST:
            largest = value.flatten(1).abs().amax(1).clamp(min=1e-12)
            scale = (largest / 127).view(-1, *[1] * (value.ndim - 1))
            packed[name] = (value / scale).round().to(torch.int8)
            packed[name + ".scale"] = scale
        elif value.is_floating_point() and "running_" not in name:
            packed[name] = value.half()
        else:
            packed[name] = value
    return {name: value.contiguous() for name, value in packed.items()}
