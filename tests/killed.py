"""A life of `train.py` in a process of its own, which a signal can end at a given moment.

It counts for itself what the model is asked.
"""

import multiprocessing
import os
import signal
import sys

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import torch
import train
from dassl_blackbox.trainers.blackbox import trainer as loop
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.trainer import Trainer

torch.set_num_threads(1)


def live(until, count_file, output_file, arguments):
    """Run `train.py` and exit with its status.

    Args:
        until: `checkpoint:k`, right after the k-th checkpoint is written; `half:k`, when half of it
            is written; `query:k`, when the model has been asked for the k-th time; `step:k`, right
            after the k-th step; or `never`. By SIGKILL, unless another signal is named behind:
            `query:3:SIGTERM`.
        count_file: gets a letter a query.
        output_file: gets stdout and stderr.
    """
    multiprocessing.set_start_method(
        "fork", force=True
    )  # of the loaders' workers: as in any process that was not forked here
    with open(output_file, "ab") as f:
        os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    given = until.split(":")
    moment, number, name = [*given, *("never", "0", "SIGKILL")[len(given) :]]
    left = {moment: int(number)}

    def reach(what):
        if what in left:
            left[what] -= 1
            if left[what] == 0:
                os.kill(os.getpid(), getattr(signal, name))

    def counted(operation, count):
        """An operation of the model that is so many queries, by what it is asked for."""
        original = getattr(LocalOracle, operation)

        def ask(self, *asked):
            with open(count_file, "a") as f:
                f.write("q" * count(self, *asked))
            reach("query")
            return original(self, *asked)

        setattr(LocalOracle, operation, ask)

    def requests(oracle, prompt):
        """Candidates, and lists of further texts, each as long as that of the classes."""
        further = 0 if prompt.texts is None else len(prompt.texts)
        return len(prompt) + len(range(0, further, len(oracle.text.names)))

    def save(*args):
        path = original_save(*args)
        reach("checkpoint")
        return path

    def dump(state, f):
        f.write(b"half a checkpoint")
        f.flush()
        reach("half")
        f.seek(0)
        original_dump(state, f)

    def report(self, summary):
        original_report(self, summary)
        reach("step")

    original_save, original_dump = loop.save, torch.save
    original_report = Trainer.report
    counted("query", lambda oracle, images, prompt: requests(oracle, prompt))
    counted("image_features", lambda oracle, images: 1)
    counted("text_features", requests)
    loop.save, torch.save = save, dump
    Trainer.report = report
    sys.exit(train.main(train.parse_args(arguments)))
