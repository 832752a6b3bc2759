"""A scikit-learn classifier of pictures, over a vision-language model that answers with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from . import saved
from .alike import nearest, nearness, spread_out
from .answers import Answers, BadExamples, Bill, Gallery, Question, labelled, listed, named
from .trainers.blackbox.bank import NAMES, PLAIN, further_texts
from .trainers.blackbox.errors import BudgetSpent
from .trainers.blackbox.heads.scores import ScoreHead
from .trainers.blackbox.heads.selection import Gathered, folds_of
from .trainers.blackbox.oracle import Texts
from .trainers.blackbox.probe import SMALL
from .trainers.blackbox.rng import seeded_generator
from .trainers.sonar import SONAR, kept_texts

FOLDS = SONAR.keys["FOLDS"].default  # parts of the training pictures, held out in turn


class ScoreClassifier(ClassifierMixin, BaseEstimator):
    """Labels pictures by a head on the scores that a model gives to the classes' and other names.

    The head is SONAR's (docs/SONAR.md). The model's answers are kept by content: nothing is asked
    twice. A class without pictures is known by its name, and without any it is zero-shot.

    X is a list of paths, PIL images or arrays of 8-bit levels `[H, W, 3]` or `[H, W]`; or a folder,
    for the pictures in it and below (`listed` tells their order).

    Args:
        model: `photo`, `tiny`, CLIP's and open_clip's names, or the URL of a dassl_blackbox.serve.
        classes: the labels, which are the classes' names too, or a dictionary from label to name;
            None: the labels that `fit` is given, sorted.
        template: of the class texts, with the slot {}.
        texts, views: further texts; augmented views of a training picture, beside itself.
        flip: whether a picture's mirror image is of the same class, as a letter's is not.
        unknown: the label of pictures of none of the classes, if there may be any.
        max_queries, max_pictures: budgets of this object; 0 for none.
        options: keys of docs/KEYS.md, for a service say {"ORACLE.URL": "https://…", "ORACLE.API":
            "openai", "ORACLE.PRICE": 0.0001}; its key is in the environment, BLACKBOX_KEY.
        random_state, progress: seed of texts and views, None: any; whether a bar is shown.

    Attributes: `classes_`, the labels in the order of `predict_proba`'s columns; `bill_`, what was
    asked so far: queries, pictures and calls, and of a service texts, money, tokens if it tells.

    Errors are BlackBoxError: BadExamples, which is a ValueError, or BudgetSpent, before a call.

    Example:
        clf = ScoreClassifier("photo").fit(["1.jpg", "2.jpg", "3.jpg"], ["ant", "bee", "bee"])
        clf.predict("new/")
    """

    names_: dict[Any, str]
    labels_: list[Any]

    def __init__(
        self,
        model: str = "photo",
        classes: Sequence[Any] | Mapping[Any, str] | None = None,
        *,
        template: str = PLAIN,
        texts: int = SONAR.keys["TEXTS"].default,
        views: int = SONAR.keys["VIEWS"].default,
        flip: bool = True,
        unknown: Any = None,
        max_queries: int = 0,
        max_pictures: int = 0,
        options: Mapping[str, Any] | None = None,
        random_state: int | None = 0,
        progress: bool = True,
    ) -> None:
        self.model, self.classes, self.template, self.texts = model, classes, template, texts
        self.views, self.flip, self.unknown, self.options = views, flip, unknown, options
        self.max_queries, self.max_pictures = max_queries, max_pictures
        self.random_state, self.progress = random_state, progress

    def fit(self, X: Any, y: Any = None) -> ScoreClassifier:
        """Learn from pictures and labels, any number a class; or from a folder of class folders."""
        return self._learn(X, y)

    def add(self, X: Any, y: Any = None) -> ScoreClassifier:
        """Learn from more pictures; a new label is a class more, behind the others."""
        check_is_fitted(self, "head_")
        return self._learn(X, y, more=True)

    def predict_proba(self, X: Any, pool: bool = False) -> np.ndarray:
        """Probabilities `[N, C]`; with `pool`, pictures that are alike get alike ones."""
        return self._told(X, pool)[0]

    def predict(self, X: Any, pool: bool = False) -> np.ndarray:
        """Labels `[N]`; `unknown`, if that is given, for pictures that are near no class."""
        found, read = self._told(X, pool)
        labels = self.classes_[found.argmax(1)]
        if self.unknown is None:
            return labels
        return np.where(nearest(read, self.near_) < self.near_["least"], self.unknown, labels)

    def suggest(self, X: Any, n: int = 10) -> list[int]:
        """Numbers of the n pictures of X that are most worth a label: between two classes, and
        unlike the training pictures and each other.

        They are asked about all further texts: then `predict` on them is free, `add` but for views.
        """
        check_is_fitted(self, "head_")
        rows = self._ask(Gallery(listed(X)), 0, self._question())[0]
        best = self.head_(rows[:, self._columns()]).softmax(1).topk(2).values
        return spread_out(1 - best[:, 0] + best[:, 1], rows, torch.cat([rows[:0], *self.rows_]), n)

    def quote(self, X: Any, y: Any = None, purpose: str = "fit") -> Bill:
        """What `fit` (or `add`, `predict`) adds to `bill_`, but for tokens; nothing is sent."""
        if purpose == "predict":
            check_is_fitted(self, "head_")
            asked = self._question(self.head_.kept)
            return self._opened().price(Gallery(listed(X)), 0, asked, self.seed_)
        trial, gallery = self._begun(X, y, more=purpose == "add")
        return trial._opened().price(gallery, self.views, trial._question(), trial.seed_)

    @property
    def bill_(self) -> Bill:
        return self._opened().bill()

    def _opened(self) -> Answers:
        """What the model answered; the answers of another are forgotten."""
        source = self.model, dict(self.options or {}), self.flip
        if getattr(self, "source_", None) != source:
            self.source_, self.answers_ = source, Answers(*source)
        return self.answers_

    def _begun(self, X: Any, y: Any, more: bool = False) -> tuple[ScoreClassifier, Gallery]:
        """A copy that has the classes, labels and pictures; with `more`, beside those of before."""
        new, (pictures, labels) = copy(self), labelled(X, y)
        check_consistent_length(pictures, labels)
        labels = np.asarray(labels).tolist()
        if labels:
            check_classification_targets(labels)
        classes, known = self.classes, []
        if more:
            known, pictures = self.contents_, [*self.pictures_, *pictures]
            classes = self.names_ | {one: str(one) for one in labels if one not in self.names_}
            labels = [*self.labels_, *labels]
        new.names_ = named(classes, labels)
        if self.unknown is not None and len(set(labels)) == len(labels):
            raise BadExamples("With a label for unknown pictures, one class needs two pictures.")
        new.classes_, new.labels_, new.pictures_ = np.array([*new.names_]), labels, pictures
        gallery, names = Gallery(pictures, known), [*new.names_.values()]
        if more:
            new._opened().impute(gallery, self.views, self._question(), new._question())
        else:
            new.seed_ = -1 if self.random_state is None else self.random_state
            generator = seeded_generator(new.seed_)
            new.further_ = further_texts(NAMES, self.texts, names, self.template, generator)
        return new, gallery

    def _question(self, part: Sequence[int] | None = None) -> Question:
        """The class texts, and part of the further ones or all."""
        further, classes = self.further_, Texts.of(self.names_.values(), self.template)
        return Question(classes, further, range(len(further or ())) if part is None else part)

    def _ask(self, gallery: Gallery, views: int, asked: Question) -> list[Tensor]:
        """Scores `[N, C + M]` of the pictures and of each view, if the budget pays for all."""
        answers, spent = self._opened(), self.bill_
        price = answers.price(gallery, views, asked)
        for name in ("queries", "pictures"):
            limit = getattr(self, f"max_{name}")
            if limit and spent[name] + price[name] > limit:
                price = answers.price(gallery, views, asked, self.seed_)
            if limit and spent[name] + price[name] > limit:
                raise BudgetSpent(
                    f"{price[name]:,} {name} are needed, and {max(0, limit - spent[name]):,} of "
                    f"max_{name} {limit:,} are left. Nothing was sent: raise it, or lower views or "
                    f"texts, or give fewer pictures."
                )
        with tqdm(total=price["pictures"], unit=" pictures", disable=not self.progress) as bar:
            return answers.ask(gallery, views, asked, self.seed_, bar)

    def _learn(self, X: Any, y: Any, more: bool = False) -> ScoreClassifier:
        """Ask about pictures and views, and fit a head; nothing changes where that fails."""
        new, gallery = self._begun(X, y, more)
        names, count, asked = [*new.names_], len(new.labels_), new._question()
        keep = kept_texts(len(names), len(asked.part)) if count else 0
        new.head_ = ScoreHead([*new.names_.values()], len(asked.part), keep).requires_grad_(False)
        new.rows_ = new._ask(gallery, self.views, asked) if count else []
        new.contents_, new.near_ = gallery.contents, {}
        if count:
            place = torch.tensor([names.index(label) for label in new.labels_])
            items = zip(gallery.contents, place.tolist(), strict=True)
            folds = folds_of([SimpleNamespace(impath=c, label=n) for c, n in items], FOLDS)
            every = [part.repeat(1 + self.views) for part in (place, torch.arange(count))]
            gathered = Gathered(torch.cat(new.rows_), *every)
            with threadpool_limits(1 if count * len(names) < SMALL else None):
                new.head_.fit(gathered, folds)
            if self.unknown is not None:
                read = new.head_.read(gathered.rows[:, new._columns()])
                new.near_ = nearness(read, gathered, len(names))
        self.__dict__.update(new.__dict__)
        return self

    def _columns(self) -> Tensor:
        """What the head reads of the scores about all texts."""
        first, kept = range(len(self.classes_)), self.head_.kept
        return torch.tensor([*first, *(len(first) + i for i in kept)])

    def _told(self, X: Any, pool: bool) -> tuple[np.ndarray, Tensor]:
        """Probabilities `[N, C]`, and what the head read of the pictures."""
        check_is_fitted(self, "head_")
        gallery, head = Gallery(listed(X)), self.head_
        if not gallery.items:
            raise BadExamples("There are no pictures.")
        rows = self._ask(gallery, 0, self._question(head.kept))[0]
        logits, read = head(rows), head.read(rows)
        if pool:
            return head.pooled(logits, read).numpy(), read
        return logits.double().softmax(1).numpy(), read

    def save(self, path: str | Path) -> None:
        """Write tensors and JSON, never code: the head, and the answers behind it up to 4 MB."""
        check_is_fitted(self, "head_")
        saved.write(self, path)

    @classmethod
    def load(cls, path: str | Path, **params: Any) -> ScoreClassifier:
        """The classifier in a file of `save`; `params` replace its own: where its model is now, by
        `model` or `options`, or `progress`.
        """
        made, attributes, weights = saved.read(path)
        clf = cls(**{**made, **params})
        clf.__dict__.update(attributes, seed_=made["random_state"] or 0)
        clf.names_, clf.classes_ = made["classes"], np.array([*made["classes"]])
        clf._opened().weights, asked = weights, clf._question()
        for view, rows in enumerate(clf.rows_):
            keys = [(content, view) for content in clf.contents_]
            clf.answers_.put(keys, rows, asked.classes, asked.texts)
            clf.answers_.learnt.update(keys)
        return clf
