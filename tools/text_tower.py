"""What a causal text tower of open_clip says of a text, without the padding behind it."""

import torch
import torch.nn.functional as F
from open_clip.model import CLIP


def text_features(model: CLIP, ids: torch.Tensor) -> torch.Tensor:
    """Token numbers `[B, L]` -> unit vectors `[B, E]`, read at the end of text.

    The end of text has the highest number, as in CLIP's tokenizer. A causal tower sees nothing of
    what follows it, so columns of padding alone are left out.
    """
    end = ids.argmax(1)
    length = int(end.max()) + 1
    x = model.token_embedding(ids[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), end])
    return F.normalize((x @ model.text_projection).float(), dim=1)
