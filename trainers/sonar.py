"""SONAR: scores of names as representations. Ours."""

from collections.abc import Mapping
from typing import Any

import torch

from . import blackbox as bb


def affordable_texts(cfg: Any, classes: int, images: int) -> int:
    """Further texts that the budget pays for, with every training image scored once."""
    wanted, budget = cfg.TRAINER.SONAR.TEXTS, cfg.ORACLE.MAX_QUERIES
    if not budget:
        return wanted
    each = budget // len(bb.oracle.bill.batches_of(images, bb.oracle.QUERY_IMAGES))
    return min(wanted, max(0, each - 1) * classes)


def kept_texts(classes: int, further: int) -> int:
    """Further texts that evaluation asks about: half of the cost in training, but C at least."""
    half = (1 + -(-further // classes)) // 2
    return min(further, classes * max(1, half - 1))


class Pool:
    """An evaluator around Dassl's: told logits and what they were made from, it pools them all."""

    def __init__(self, inner: Any, head: bb.scores.ScoreHead) -> None:
        self.inner, self.head = inner, head

    def reset(self) -> None:
        self.told: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.inner.reset()

    def process(self, answers: torch.Tensor, labels: torch.Tensor) -> None:
        self.told.append((answers, labels))

    def evaluate(self) -> Mapping[str, float]:
        answers, labels = (torch.cat(parts) for parts in zip(*self.told, strict=True))
        logits, rows = answers.tensor_split([len(self.head.classes)], dim=1)
        answers = self.head.pooled(logits, rows)
        self.inner.process(answers.clamp_min(1e-30).log(), labels)
        return self.inner.evaluate()


@bb.register_trainer
class SONAR(bb.ProbeTrainer):
    """Searches nothing: logistic regression on the scores of further texts, beside zero-shot.

    Access: words and pictures in, logits (or log-probabilities) out. Every view of a training image
    is scored once. A request about at most 128 images costs `1 + ceil(TEXTS / C)` queries for C
    classes, and about half of that in evaluation (not with `ORACLE.TOP_K`); without further texts
    (`TEXTS 0`) and views it is the head alone, on the answers about one prompt.

    Nearest to it: SiM (arXiv:2506.04005), ridge regression on scores of generic words. Here the
    head begins at zero-shot, under priors that do not depend on the number of images, and a cache
    like Tip-Adapter's (arXiv:2207.09519) stands beside it where images that are held out want it.
    """

    keys = {
        **bb.probe_keys(folds=True),
        "TEXTS": bb.Key(500, bb.whole(0, 100_000), "further texts, whatever the number of classes"),
        "BANK": bb.Key(
            bb.bank.NAMES,
            bb.text(bb.bank.NAMES, bb.bank.PHRASES),
            "further texts: names, phrases, or a file with a name a line",
            names_file=True,
        ),
        "POOL": bb.Key(False, bb.flag(), "label the images of evaluation together, not one by one"),
    }
    head: bb.scores.ScoreHead
    reads_features = False
    unread: bb.BlackBoxError | None = None  # why there are no further texts

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        if cfg.TRAINER.SONAR.POOL:
            self.evaluator = Pool(self.evaluator, self.head)

    def build_head(self, generator: torch.Generator) -> bb.scores.ScoreHead:
        node, dataset, texts = self.cfg.TRAINER.SONAR, self.dm.dataset, None
        classes = dataset.classnames
        count = affordable_texts(self.cfg, len(classes), len(dataset.train_x))
        try:
            texts = bb.bank.further_texts(node.BANK, count, classes, self.template, generator)
        except bb.BlackBoxError as e:  # evaluation needs no bank: a checkpoint has its texts
            self.unread = e
        further = len(texts) if texts else 0
        if further < node.TEXTS and not self.unread:
            of_bank = f"TRAINER.SONAR.BANK has {further:,}"
            limit = of_bank if further < count else f"the budget pays for {further:,}"
            print(
                f"Note: {limit} further texts of the {node.TEXTS:,} of TRAINER.SONAR.TEXTS; with "
                f"fewer than the numbers of the model's joint space the head sees less of an image"
            )
        shown = further if self.cfg.ORACLE.TOP_K else kept_texts(len(classes), further)
        head = bb.scores.ScoreHead(classes, further, shown)
        if texts:
            head.texts, head.template = list(texts.names), texts.template
        return head

    def prompt(self, tested: bool = False) -> bb.Prompt:
        """The class texts and the further ones: in evaluation those that the head reads."""
        if self.unread and not tested:
            raise self.unread
        names, head = self.head.texts, self.head
        if tested and head.at_home:
            names = [names[i] for i in head.kept]
        return bb.Prompt(texts=bb.oracle.Texts.of(names, head.template) if names else None)

    def price(self, images: int, tested: bool = True) -> bb.oracle.bill.Price:
        # a model of one's own may turn out to let out the largest scores alone, of all texts then
        unfitted = bool((self.head.scale == 1).all())
        open_end = ":" in self.cfg.ORACLE.API and unfitted and not self.unread
        return super().price(images, tested and not open_end)

    def fit(self, gathered: bb.Gathered) -> str:
        return self.head.fit(gathered, self.folds)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        classes = self.dm.dataset.classnames
        if self.head.names == classes:
            return
        if not self.head.moves:  # the checkpoint's: its budget may have paid for none
            raise bb.BlackBoxError(
                f"{directory} has a head for {bb.record.few(self.head.names)}, here they are "
                f"{bb.record.few(classes)}: without further texts it cannot move to other classes. "
                f"Train with TRAINER.SONAR.TEXTS above 0, and a budget that pays for them."
            )
        self.head.move(classes, self.mean_scores())

    @torch.no_grad()
    def mean_scores(self) -> torch.Tensor:
        """Mean of the centred zero-shot logits `[C]` over the images that the head learnt from, as
        far as they are the data set's. They are asked about once more: a query a batch.
        """
        total, known = torch.zeros(self.num_classes, device=self.device), set(self.head.names)
        made = self.loaded_from["settings"]
        drawn = bb.data.of_all_classes(self.cfg, int(made["SEED"]), int(made["DATASET.NUM_SHOTS"]))
        items = [item for item in drawn if item.classname in known]
        print(
            f"The head is asked about other classes than those of its training; of the new ones it "
            f"has their zero-shot scores, less the means over {len(items):,} training images"
        )
        if not items:  # another data set
            return total
        with self.oracle.evaluation():
            for batch in self.loader(items, None, bb.oracle.QUERY_IMAGES):
                scores = self.oracle.query(self.oracle.upload(batch["img"]), bb.Prompt())[0]
                total += (scores - scores.mean(-1, keepdim=True)).sum(0)
        return total / len(items)

    def model_inference(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`; with `POOL`, what the head reads besides."""
        if not self.cfg.TRAINER.SONAR.POOL:
            return super().model_inference(pixels)
        scores = self.oracle.query(self.oracle.upload(pixels), self.prompt(tested=True))[0]
        return torch.cat([self.head(scores), self.head.read(scores)], dim=1)
