"""The words nearest to each learned token of a run, as CoOp's script of this name shows them:

    python interpret_prompt.py output/caltech101/ZIP/vit_b16_16shots/seed1 3

Distances are Euclidean, between the token and the embeddings that the oracle gives for words; whole words of CLIP's vocabulary are compared.
"""

import argparse
import sys
from pathlib import Path

import dassl_blackbox  # noqa: F401  first: it finds a Dassl
import open_clip
import torch
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl_blackbox.datasets.base import DatasetError
from dassl_blackbox.trainers.blackbox.config import extend_cfg
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError


def load_run(folder, root):
    """The trainer of a finished run with its model, from the configuration beside it."""
    config = Path(folder) / "config.yaml"
    if not config.is_file():
        raise BlackBoxError(
            f"There is no run in {folder}: it has no config.yaml. Give a run's output folder, the one that holds log.txt."
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(str(config))
    if root:
        cfg.DATASET.ROOT = root
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    trainer = build_trainer(cfg)
    trainer.load_model(folder)
    return trainer


def learned_context(trainer):
    """`[n, D]`: of a black-box run its prompt space's, of a white-box run the tuned context."""
    with torch.no_grad():
        context = (
            trainer.learner().contexts[0] if hasattr(trainer, "learner") else trainer.model.ctx
        )
    if not len(context):
        raise BlackBoxError("This run has no context: zero-shot learns no token.")
    return context.float()


def whole_words(tokenizer):
    """Words of the vocabulary that are one token each."""
    words = {
        token.removesuffix("</w>"): number
        for token, number in tokenizer.encoder.items()
        if token.endswith("</w>")
    }
    return [word for word, number in words.items() if tokenizer.encode(word) == [number]]


def nearest_words(context, embed, topk):
    """For each token of `[n, D]` its `topk` nearest words: [[(word, distance)]]. `embed` gives `[m, D]` of m words in one string."""
    words = whole_words(open_clip.tokenizer.SimpleTokenizer())
    distances = torch.cdist(context, embed(" ".join(words)).to(context.device))
    values, indices = distances.topk(topk, largest=False)
    return [
        [(words[i], value) for i, value in zip(row, near)]
        for row, near in zip(indices.tolist(), values.tolist())
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="output folder of a run")
    parser.add_argument("topk", type=int, nargs="?", default=3, help="words to show for each token")
    parser.add_argument(
        "--root", default="", help="folder of the data sets, where it has moved since"
    )
    args = parser.parse_args(arguments)
    try:
        trainer = load_run(args.folder, args.root)
        context = learned_context(trainer)
        embed = trainer.oracle.embed if hasattr(trainer, "oracle") else trainer.embed
        for number, near in enumerate(nearest_words(context, embed, args.topk), start=1):
            print(f"{number}: " + ", ".join(f"{word} ({distance:.4f})" for word, distance in near))
    except (BlackBoxError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
