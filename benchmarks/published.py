"""How the published codes ask the model, each in its own way, written anew: 77 positions for every
class, padding included.

Each takes a `LocalOracle` (for its model and class names), pixels `[B, 3, H, W]` and contexts
`[P, n, D]`, and returns logits `[P, B, C]`.
"""

import torch
import torch.nn.functional as F


def image_features(oracle, pixels):
    with oracle.autocast():
        return F.normalize(
            oracle.model.encode_image(pixels.to(oracle.device, oracle.dtype)).float(), dim=-1
        )


def text_features(oracle, contexts):
    with oracle.autocast():
        return F.normalize(oracle.text.encode_plain(contexts.to(oracle.device)).float(), dim=-1)


def logits(oracle, image, text):
    return oracle.scale * image @ text.transpose(-1, -2)


def zip_step(oracle, pixels, contexts):
    """One candidate at a time, and the image tower again for every one."""
    return torch.stack(
        [
            logits(oracle, image_features(oracle, pixels), text_features(oracle, context[None])[0])
            for context in contexts
        ]
    )


def cbbt_step(oracle, pixels, contexts):
    """The images once, the candidates in a batch."""
    return logits(oracle, image_features(oracle, pixels), text_features(oracle, contexts))


def craft_step(oracle, pixels, contexts):
    """The images' features from before (`pixels` are features), one candidate at a time."""
    return torch.stack(
        [logits(oracle, pixels, text_features(oracle, context[None])[0]) for context in contexts]
    )


STEPS = {"ZIP": zip_step, "CBBT": cbbt_step, "CraFT": craft_step}
