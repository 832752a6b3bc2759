"""The words nearest to each learned token of a run, as CoOp's script of this name shows them:

    python interpret_prompt.py output/caltech101/ZIP/vit_b16_16shots/seed1 3

Distances are Euclidean, between the token and the embeddings that the oracle gives for words; whole
words of CLIP's vocabulary are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from dassl_blackbox.console import parser_of, tool  # isort: skip  first: it finds a Dassl
import open_clip
import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl_blackbox.trainers.blackbox import record
from dassl_blackbox.trainers.blackbox.config import check_cfg, defaults, merge_files
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, one_of
from dassl_blackbox.trainers.blackbox.files import missing
from dassl_blackbox.trainers.blackbox.search import SearchTrainer


def load_run(folder: str, root: str) -> TrainerBase:
    """The trainer of a finished run with its model, from the configuration beside it.

    Raises:
        BlackBoxError: no run, a damaged one, one of a trainer or data set that is not here, or one
            that is known to have no context.
    """
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise missing(config, Path(folder))
    cfg = defaults()
    merge_files(cfg, [str(config)])
    if root:
        cfg.DATASET.ROOT = root
    cfg.OUTPUT_DIR = ""  # nothing is written there
    one_of(f"trainer in {config}", cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    one_of(f"data set in {config}", cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if any("contexts" not in needs and "weights" not in needs for needs in told_needs(folder)):
        raise no_context(cfg.TRAINER.NAME)
    check_cfg(cfg)
    cfg.freeze()
    trainer = build_trainer(cfg)
    trainer.load_model(folder)
    return trainer


def told_needs(folder: str) -> list[list[str]]:
    """The grants that a run's results tell its method needs; none where they tell nothing."""
    try:
        results = record.read(Path(folder) / record.NAME).values()
    except BlackBoxError:
        return []
    return [result["access"] for result in results if isinstance(result.get("access"), list)]


def no_context(trainer: str) -> BlackBoxError:
    return BlackBoxError(
        f"{trainer} puts no context in front of the class texts: there is none to interpret."
    )


def learned_context(trainer: TrainerBase) -> torch.Tensor:
    """`[n, D]`: of a black-box run its prompt space's, of a white-box run the tuned context.

    Raises:
        BlackBoxError: nothing of the kind was learned.
    """
    with torch.no_grad():
        if hasattr(getattr(trainer, "model", None), "ctx"):
            context = trainer.model.ctx
        elif isinstance(trainer, SearchTrainer):
            prompt = trainer.learner()
            context = prompt.contexts[0] if prompt.tokens else ()
        else:
            context = ()
    if not len(context):
        raise no_context(type(trainer).__name__)
    return context.float()


def whole_words(tokenizer: open_clip.tokenizer.SimpleTokenizer) -> list[str]:
    """Words of the vocabulary that are one token each."""
    words = {
        token.removesuffix("</w>"): number
        for token, number in tokenizer.encoder.items()
        if token.endswith("</w>")
    }
    return [word for word, number in words.items() if tokenizer.encode(word) == [number]]


def nearest_words(
    context: torch.Tensor, embed: Callable[[str], torch.Tensor], topk: int
) -> list[list[tuple[str, float]]]:
    """For each token of `[n, D]` its `topk` nearest words, with their distances.

    Args:
        embed: gives `[m, D]` of m words in one string.

    Raises:
        BlackBoxError: so many words there are not.
    """
    words = whole_words(open_clip.tokenizer.SimpleTokenizer())
    if not 1 <= topk <= len(words):
        raise BlackBoxError(
            f"{topk} words for each token were asked for; a whole number from 1 to {len(words):,} "
            f"is expected."
        )
    distances = torch.cdist(context, embed(" ".join(words)).to(context.device))
    values, indices = distances.topk(topk, largest=False)
    return [
        [(words[i], value) for i, value in zip(row, near, strict=True)]
        for row, near in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of("interpret_prompt.py", __doc__)
    parser.add_argument("folder", help="output folder of a run")
    parser.add_argument("topk", type=int, nargs="?", default=3, help="words to show for each token")
    parser.add_argument(
        "--root", default="", help="folder of the data sets, where it has moved since"
    )
    args = parser.parse_args(arguments)
    trainer = load_run(args.folder, args.root)
    context = learned_context(trainer)
    embed = trainer.oracle.embed if hasattr(trainer, "oracle") else trainer.embed
    for number, near in enumerate(nearest_words(context, embed, args.topk), start=1):
        print(f"{number}: " + ", ".join(f"{word} ({distance:.4f})" for word, distance in near))


if __name__ == "__main__":
    sys.exit(tool(main))
