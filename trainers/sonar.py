"""SONAR: scores of names as representations. Ours."""

from __future__ import annotations

from dataclasses import replace

import torch

from .blackbox.collector import Collector, Gathered
from .blackbox.engine import BlackBoxTrainer
from .blackbox.heads import AffineScores
from .blackbox.heads.folds import folds_of
from .blackbox.heads.scores import fit_scores
from .blackbox.keys import Key, text, whole
from .blackbox.optimizers import Fixed
from .blackbox.probes import NAMES, PHRASES, probe_texts
from .blackbox.prompts import ClassTexts, MoreTexts
from .blackbox.recipe import Recipe
from .blackbox.registry import register_trainer
from .blackbox.templates import template_for, template_keys


@register_trainer
class SONAR(BlackBoxTrainer):
    """Searches nothing: a convex head on the scores of the class texts and of further texts.

    Access: words and pictures in, logits (or log-probabilities) out. Every view of a training image
    is scored once. A request about at most 128 images costs `1 + PROBES` queries, in training and
    in evaluation; without further texts (`PROBES 0`) and views it is the head alone, on the answers
    about one prompt.

    Prior work: SiM (arXiv:2506.04005) regresses on scores of generic words, CLAP (arXiv:2312.12730)
    and GDA (arXiv:2402.04087) fit few-shot heads on features. Here the head begins at zero-shot,
    reads logits alone, and its penalty is chosen on images that it did not learn from.
    """

    keys = {
        **template_keys(),
        # C further texts each, for the C classes of the task
        "PROBES": Key(4, whole(0, 1000), "further queries a batch, in evaluation too"),
        "BANK": Key(
            NAMES,
            replace(text(), names=(NAMES, PHRASES)),
            "further texts: names, phrases, or a file with a name a line",
            names_file=True,
        ),
        "VIEWS": Key(4, whole(0, 1000), "augmented views of a training image, beside itself"),
        "FOLDS": Key(5, whole(2, 100), "parts of the training images that are held out in turn"),
    }

    def build_recipe(self, generator: torch.Generator) -> Recipe:
        node, dataset = self.cfg.TRAINER.SONAR, self.dm.dataset
        template, classes = template_for(self.cfg), dataset.classnames
        count = node.PROBES * len(classes)
        texts = probe_texts(node.BANK, count, classes, template, generator)
        if count and (found := len(texts) if texts else 0) < count:
            print(
                f"Note: TRAINER.SONAR.BANK has {found:,} further texts of the {count:,} that "
                f"PROBES {node.PROBES} asks for with {len(classes):,} classes"
            )
        head = AffineScores([len(classes), *([len(texts)] if texts else [])])
        folds = folds_of(dataset.train_x, node.FOLDS)

        def solve(gathered: Gathered) -> str:
            return fit_scores(head, gathered, folds)

        return Recipe(
            MoreTexts(texts) if texts else ClassTexts(),
            Fixed(),
            head,
            Collector(solve, len(classes)),
            views=node.VIEWS,
            template=template,
        )
