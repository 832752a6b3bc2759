"""The text tower: trained to give the prototype of what a text means."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from sklearn.linear_model import ridge_regression
from text_tower import text_features
from tqdm import tqdm

from .wordnet import WordNet

# Of one's own making: none is the template of a data set of this project, save CLIP's plain one.
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a {}.",
    "{}",
    "the {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a photo of one {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "a small photo of the {}.",
    "a good photo of the {}.",
    "a drawing of a {}.",
    "a photo of a large {}.",
    "a photo of a small {}.",
    "this is a {}.",
    "a photo showing a {}.",
    "there is a {} in the picture.",
    "a {} on a white background.",
)
PLAIN_SHARE = 0.3  # of the names that are put into the first template
LONGEST_GLOSS = 24  # tokens
ADAM = {"betas": (0.9, 0.98), "weight_decay": 0.02}
WARM_UP = 100  # steps
KEEP_EVERY = 120  # seconds between checkpoints
INITIAL_RIDGE = 3.0


@dataclass
class Lesson:
    """Texts of one kind as token numbers, and the row of the prototype of each."""

    tokens: list[list[int]]
    rows: np.ndarray
    share: float  # of a batch


@dataclass
class Lessons:
    """All that the student is taught, on the tokens that occur in it.

    Lessons of `names` are put between the halves of a template, the others stand alone.
    """

    vocabulary: list[int]  # CLIP's numbers of the tokens in use; the end of text is the last
    templates: list[tuple[list[int], list[int]]]
    names: Lesson
    alone: list[Lesson]
    targets: torch.Tensor  # [R, E], of length one
    unseen: Lesson  # names kept aside at first


def word_targets(
    wordnet: WordNet, offsets: list[str], prototypes: torch.Tensor
) -> dict[str, torch.Tensor]:
    """For every word the mean of its meanings' prototypes, as often as it has each."""
    place = {offset: i for i, offset in enumerate(offsets)}
    words = sorted({w for offset in offsets for w in wordnet.synsets[offset].words})
    found = {}
    for word in words:
        shares = wordnet.shares(word, place.keys())
        if shares:
            rows, weights = zip(*((place[o], s) for o, s in shares.items()), strict=True)
            mixed = torch.tensor(weights) @ prototypes[list(rows)]
            found[word] = F.normalize(mixed, dim=0)
    return found


def prepare(
    wordnet: WordNet, offsets: list[str], prototypes: torch.Tensor, tokenizer: Any, seed: int
) -> Lessons:
    """Names in templates, names with the kind above them, and definitions.

    One meaning in fifty is kept aside with all its words, for the measure of new words.
    """
    rng = random.Random(seed)
    aside = {o for o in offsets if rng.random() < 0.02}
    taught = [i for i, o in enumerate(offsets) if o not in aside]
    hidden = {w for o in aside for w in wordnet.synsets[o].words}
    words = word_targets(wordnet, offsets, prototypes)
    names = [w for w in words if w not in hidden]
    kinds, kind_rows, glosses, gloss_rows = [], [], [], []
    for i in taught:
        synset, above = wordnet.synsets[offsets[i]], wordnet.chain(offsets[i], 2)
        glosses.append(synset.gloss)
        gloss_rows.append(i)
        for word in synset.words:
            for text in (f"{word}, a kind of {above[0]}", f"{word} {above[-1]}") if above else ():
                kinds.append(text)
                kind_rows.append(i)
    encode = tokenizer.encode
    halves = [tuple(encode(half) for half in t.split("{}")) for t in TEMPLATES]
    coded = [[encode(t) for t in texts] for texts in (names, kinds, glosses)]
    coded[2] = [tokens[:LONGEST_GLOSS] for tokens in coded[2]]
    hidden_names = sorted(hidden & words.keys())
    hidden_codes = [encode(w) for w in hidden_names]
    used = {t for texts in (*coded, *halves, hidden_codes) for tokens in texts for t in tokens}
    end = tokenizer.eot_token_id
    vocabulary = [*sorted(used - {end}), tokenizer.sot_token_id, end]
    number = {token: i for i, token in enumerate(vocabulary)}

    def renumber(texts: Sequence[list[int]]) -> list[list[int]]:
        return [[number[t] for t in tokens] for tokens in texts]

    first, last = len(offsets), len(offsets) + len(names)
    return Lessons(
        vocabulary,
        [tuple(renumber(pair)) for pair in halves],
        Lesson(renumber(coded[0]), np.arange(first, last), 0.6),
        [
            Lesson(renumber(coded[1]), np.array(kind_rows), 0.2),
            Lesson(renumber(coded[2]), np.array(gloss_rows), 0.2),
        ],
        torch.cat([prototypes, torch.stack([words[w] for w in (*names, *hidden_names)])]),
        Lesson(renumber(hidden_codes), np.arange(last, last + len(hidden_names)), 0.0),
    )


class Student:
    """open_clip's text tower over the tokens in use.

    Args:
        model: an open_clip CLIP, whose text tower is trained in place; its token embedding is
            replaced by one of the tokens in use.
    """

    def __init__(self, model: Any, lessons: Lessons, seed: int) -> None:
        self.model, self.lessons = model, lessons
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        width = model.token_embedding.embedding_dim
        model.token_embedding = torch.nn.Embedding(len(lessons.vocabulary), width)
        self.start_from_bags()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        model = self.model
        towers = (model.token_embedding, model.transformer, model.ln_final)
        inner = [p for tower in towers for p in tower.parameters()]
        return [*inner, model.positional_embedding, model.text_projection]

    @torch.no_grad()
    def start_from_bags(self) -> None:
        """Begin as the mean of the tokens, each with the meaning that a ridge regression gives it.

        The prototypes' first principal directions are the width of the tower; its first layer
        looks at all tokens alike and adds their mean, the others begin close to nothing.
        """
        lessons, model = self.lessons, self.model
        width = model.token_embedding.embedding_dim
        basis = torch.linalg.svd(lessons.targets.double(), full_matrices=False).Vh[:width].float()
        basis = basis * basis[:, :1].sign()  # [D, E]
        vectors = torch.from_numpy(
            token_meanings(lessons, (lessons.targets @ basis.T).numpy())
        ).float()
        vectors = vectors / vectors.norm(dim=1).mean()
        model.token_embedding.weight.copy_(vectors + 0.1 * width**-0.5 * torch.randn_like(vectors))
        model.positional_embedding.normal_(std=0.01)
        model.text_projection.copy_(basis)
        identity = torch.eye(width)
        for i, block in enumerate(model.transformer.resblocks):
            block.mlp.c_proj.weight.mul_(0.1)
            block.attn.out_proj.weight.mul_(0.1)
            if i == 0:
                block.attn.in_proj_weight[: 2 * width].mul_(0.1)
                block.attn.in_proj_weight[2 * width :].copy_(identity)
                block.attn.out_proj.weight.copy_(identity)

    def pad(self, texts: list[list[int]]) -> torch.Tensor:
        """Token numbers between the start and the end of text, `[B, L]`."""
        end = len(self.lessons.vocabulary) - 1
        ids = torch.zeros(len(texts), max(map(len, texts)) + 2, dtype=torch.long)
        for row, tokens in zip(ids, texts, strict=True):
            row[: len(tokens) + 2] = torch.tensor([end - 1, *tokens, end])
        return ids

    def batches(self, size: int, review: bool) -> list[tuple[torch.Tensor, np.ndarray]]:
        """A batch of every kind of text: token numbers `[B, L]` and rows of `targets`.

        In a review it is names alone, those that were kept aside among them.
        """
        lessons, rng, found = self.lessons, self.rng, []
        names = self.all_names if review else lessons.names
        for lesson in (names,) if review else (names, *lessons.alone):
            chosen = rng.integers(len(lesson.tokens), size=round(size * lesson.share))
            texts = [lesson.tokens[i] for i in chosen]
            if lesson is names:
                plain = rng.random(len(texts)) < PLAIN_SHARE
                drawn = np.where(plain, 0, rng.integers(len(TEMPLATES), size=len(texts)))
                halves = [lessons.templates[i] for i in drawn]
                texts = [a + text + b for (a, b), text in zip(halves, texts, strict=True)]
            found.append((self.pad(texts), lesson.rows[chosen]))
        return found

    @functools.cached_property
    def all_names(self) -> Lesson:
        names, unseen = self.lessons.names, self.lessons.unseen
        rows = np.concatenate([names.rows, unseen.rows])
        return Lesson(names.tokens + unseen.tokens, rows, 1.0)

    def train(self, steps: int, size: int, rate: float, kept: Path, review: bool = False) -> None:
        """Least cosine distance by AdamW, from the last checkpoint in the file `kept`, if any."""
        optim = torch.optim.AdamW(self.parameters, lr=rate, **ADAM)
        first = self.resume(optim, kept)
        last_kept = time.monotonic()
        progress = tqdm(
            range(first, steps),
            initial=first,
            total=steps,
            desc="names again" if review else "text tower",
        )
        for step in progress:
            share = min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
            optim.param_groups[0]["lr"] = rate * share
            loss = torch.zeros(())
            for ids, rows in self.batches(size, review):
                near = (text_features(self.model, ids) * self.lessons.targets[rows]).sum(1)
                loss = loss + (1 - near).sum() / size
            optim.zero_grad()
            loss.backward()
            optim.step()
            if time.monotonic() - last_kept > KEEP_EVERY:
                self.keep(optim, step + 1, kept)
                last_kept = time.monotonic()
            progress.set_postfix(cosine=f"{1 - loss.item():.3f}", refresh=False)
        self.keep(optim, steps, kept)

    def keep(self, optim: torch.optim.Optimizer, step: int, kept: Path) -> None:
        content = {
            "model": [p.detach() for p in self.parameters],
            "optim": optim.state_dict(),
            "rng": self.rng.bit_generator.state,
            "step": step,
        }
        torch.save(content, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)

    def resume(self, optim: torch.optim.Optimizer, kept: Path) -> int:
        if not kept.exists():
            return 0
        content = torch.load(kept, weights_only=True)
        with torch.no_grad():
            for own, stored in zip(self.parameters, content["model"], strict=True):
                own.copy_(stored)
        optim.load_state_dict(content["optim"])
        self.rng.bit_generator.state = content["rng"]
        return content["step"]

    @torch.no_grad()
    def agreement(self) -> dict[str, float]:
        """Mean cosine with the prototype in the plain template: of taught and of new names."""
        lessons, (front, back), found = self.lessons, self.lessons.templates[0], {}
        for kind, lesson in {"taught": lessons.names, "kept aside": lessons.unseen}.items():
            count = min(2000, len(lesson.tokens))
            some = np.random.default_rng(0).choice(len(lesson.tokens), count, replace=False)
            ids = self.pad([front + lesson.tokens[i] + back for i in some])
            features = text_features(self.model, ids)
            near = (features * lessons.targets[lesson.rows[some]]).sum(1)
            found[kind] = round(near.mean().item(), 3)
        return found


def token_meanings(lessons: Lessons, targets: np.ndarray) -> np.ndarray:
    """Ridge regression from bags of tokens to prototypes, `[V, D]`."""
    rows, columns, values, wanted = [], [], [], []
    for lesson in (lessons.names, *lessons.alone):
        for tokens, row in zip(lesson.tokens, lesson.rows, strict=True):
            rows += [len(wanted)] * len(tokens)
            columns += tokens
            values += [1 / max(1, len(tokens))] * len(tokens)
            wanted.append(row)
    shape = len(wanted), len(lessons.vocabulary)
    bags = scipy.sparse.csr_matrix((values, (rows, columns)), shape)
    return ridge_regression(
        bags, targets[wanted], INITIAL_RIDGE, solver="sparse_cg", max_iter=60, tol=1e-4
    ).T
