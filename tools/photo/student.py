"""The text tower: trained to give the prototype of what a text means."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from sklearn.linear_model import ridge_regression
from tqdm import tqdm

from .teacher import WordNet
from .tower import text_features

# Of one's own making: none is the template of a data set of this project, save CLIP's plain one.
TEMPLATES = (
    *("a photo of a {}.", "a photo of the {}.", "a {}.", "{}", "the {}.", "a photo of {}."),
    *("a picture of a {}.", "an image of a {}.", "a photo of one {}.", "a close-up photo of a {}."),
    *("a blurry photo of a {}.", "a small photo of the {}.", "a good photo of the {}."),
    *("a drawing of a {}.", "a photo of a large {}.", "a photo of a small {}.", "this is a {}."),
    *("a photo showing a {}.", "there is a {} in the picture.", "a {} on a white background."),
)
PLAIN_SHARE = 0.3  # of the names that are put into the first template
LONGEST_GLOSS = 24  # tokens
WARM_UP = 100  # steps
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
    found = {}
    for word in sorted({w for offset in offsets for w in wordnet.synsets[offset].words}):
        shares = wordnet.shares(word, place.keys())
        if shares:
            rows = [place[offset] for offset in shares]
            found[word] = F.normalize(torch.tensor([*shares.values()]) @ prototypes[rows], dim=0)
    return found


def prepare(
    wordnet: WordNet, offsets: list[str], prototypes: torch.Tensor, tokenizer: Any, seed: int
) -> Lessons:
    """Names in templates, names with the kind above them, and definitions.

    One meaning in fifty is kept aside with all its words, for the measure of new words.
    """
    rng = random.Random(seed)
    aside = {o for o in offsets if rng.random() < 0.02}
    hidden = {w for o in aside for w in wordnet.synsets[o].words}
    words = word_targets(wordnet, offsets, prototypes)
    names, unseen = [w for w in words if w not in hidden], sorted(hidden & words.keys())
    kinds, kind_rows, glosses, gloss_rows = [], [], [], []
    for i, offset in enumerate(offsets):
        if offset in aside:
            continue
        synset, above = wordnet.synsets[offset], wordnet.chain(offset, 2)
        glosses.append(synset.gloss)
        gloss_rows.append(i)
        for word in synset.words if above else ():
            kinds += [f"{word}, a kind of {above[0]}", f"{word} {above[-1]}"]
            kind_rows += [i, i]
    encode = tokenizer.encode
    halves = [tuple(encode(half) for half in t.split("{}")) for t in TEMPLATES]
    coded = [[encode(text) for text in texts] for texts in (names, kinds, glosses, unseen)]
    coded[2] = [tokens[:LONGEST_GLOSS] for tokens in coded[2]]
    used = {t for texts in (*coded, *halves) for tokens in texts for t in tokens}
    end = tokenizer.eot_token_id
    vocabulary = [*sorted(used - {end}), tokenizer.sot_token_id, end]
    number = {token: i for i, token in enumerate(vocabulary)}

    def lesson(texts: list[list[int]], rows: Any, share: float) -> Lesson:
        renumbered = [[number[t] for t in tokens] for tokens in texts]
        return Lesson(renumbered, np.array(rows), share)

    first, last = len(offsets), len(offsets) + len(names)
    return Lessons(
        vocabulary,
        [tuple(lesson(pair, 0, 0).tokens) for pair in halves],
        lesson(coded[0], range(first, last), 0.6),
        [lesson(coded[1], kind_rows, 0.2), lesson(coded[2], gloss_rows, 0.2)],
        torch.cat([prototypes, torch.stack([words[w] for w in (*names, *unseen)])]),
        lesson(coded[3], range(last, last + len(unseen)), 0.0),
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
        self.start_from_bags(width)
        towers = (model.token_embedding, model.transformer, model.ln_final)
        inner = [p for tower in towers for p in tower.parameters()]
        self.parameters = [*inner, model.positional_embedding, model.text_projection]

    @torch.no_grad()
    def start_from_bags(self, width: int) -> None:
        """Begin as the mean of the tokens, each with the meaning that a ridge regression gives it.

        The prototypes' first principal directions are the width of the tower; its first layer
        looks at all tokens alike and adds their mean, the others begin close to nothing.
        """
        targets, model = self.lessons.targets, self.model
        basis = torch.linalg.svd(targets.double(), full_matrices=False).Vh[:width].float()
        basis = basis * basis[:, :1].sign()  # [D, E]
        vectors = torch.from_numpy(token_meanings(self.lessons, (targets @ basis.T).numpy()))
        vectors = vectors.float()
        vectors = vectors / vectors.norm(dim=1).mean()
        model.token_embedding.weight.copy_(vectors + 0.1 * width**-0.5 * torch.randn_like(vectors))
        model.positional_embedding.normal_(std=0.01)
        model.text_projection.copy_(basis)
        for block in model.transformer.resblocks:
            block.mlp.c_proj.weight.mul_(0.1)
            block.attn.out_proj.weight.mul_(0.1)
        first, identity = model.transformer.resblocks[0].attn, torch.eye(width)
        first.in_proj_weight[: 2 * width].mul_(0.1)
        first.in_proj_weight[2 * width :].copy_(identity)
        first.out_proj.weight.copy_(identity)

    def pad(self, texts: list[list[int]]) -> torch.Tensor:
        """Token numbers between the start and the end of text, `[B, L]`."""
        end = len(self.lessons.vocabulary) - 1
        ids = torch.zeros(len(texts), max(map(len, texts)) + 2, dtype=torch.long)
        for row, tokens in zip(ids, texts, strict=True):
            row[: len(tokens) + 2] = torch.tensor([end - 1, *tokens, end])
        return ids

    def batch(self, names: Lesson, alone: list[Lesson], size: int) -> list[tuple]:
        """A batch of every kind of text: token numbers `[B, L]` and rows of `targets`."""
        rng, found = self.rng, []
        for lesson in (names, *alone):
            chosen = rng.integers(len(lesson.tokens), size=round(size * lesson.share))
            texts = [lesson.tokens[i] for i in chosen]
            if lesson is names:
                plain = rng.random(len(texts)) < PLAIN_SHARE
                drawn = np.where(plain, 0, rng.integers(len(TEMPLATES), size=len(texts)))
                halves = [self.lessons.templates[i] for i in drawn]
                texts = [a + text + b for (a, b), text in zip(halves, texts, strict=True)]
            found.append((self.pad(texts), lesson.rows[chosen]))
        return found

    def train(self, steps: int, size: int, rate: float, review: bool = False) -> None:
        """Least cosine distance by AdamW.

        In a review it is of names alone, those that were kept aside among them.
        """
        names, unseen, alone = self.lessons.names, self.lessons.unseen, self.lessons.alone
        if review:
            rows = np.concatenate([names.rows, unseen.rows])
            names, alone = Lesson(names.tokens + unseen.tokens, rows, 1.0), []
        optim = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
        progress = tqdm(range(steps), desc="names again" if review else "text tower")
        for step in progress:
            share = min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
            optim.param_groups[0]["lr"] = rate * share
            loss = torch.zeros(())
            for ids, rows in self.batch(names, alone, size):
                near = (text_features(self.model, ids) * self.lessons.targets[rows]).sum(1)
                loss = loss + (1 - near).sum() / size
            optim.zero_grad()
            loss.backward()
            optim.step()
            progress.set_postfix(cosine=f"{1 - loss.item():.3f}", refresh=False)

    @torch.no_grad()
    def agreement(self) -> dict[str, float]:
        """Mean cosine with the prototype in the plain template: of taught and of new names."""
        lessons, (front, back), found = self.lessons, self.lessons.templates[0], {}
        for kind, lesson in {"taught": lessons.names, "kept aside": lessons.unseen}.items():
            count = min(2000, len(lesson.tokens))
            some = np.random.default_rng(0).choice(len(lesson.tokens), count, replace=False)
            ids = self.pad([front + lesson.tokens[i] + back for i in some])
            near = (text_features(self.model, ids) * lessons.targets[lesson.rows[some]]).sum(1)
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
