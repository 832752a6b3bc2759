"""A life of `train.py` in a process of its own, which can end by SIGKILL at a given moment and counts for itself what the model is asked."""

import multiprocessing
import os
import signal
import sys

import dassl_blackbox  # noqa: F401
import torch
import train
from dassl_blackbox.trainers.blackbox.run import checkpoints, files
from dassl_blackbox.trainers.blackbox.oracle.local import LocalOracle

torch.set_num_threads(1)


def live(until, count_file, output_file, arguments):
    """Run `train.py` and exit with its status.

    Args:
        until: `checkpoint:k`, right after the k-th checkpoint is written; `half:k`, when half of it is written; `query:k`, when the model has
            been asked for the k-th time; or `never`.
        count_file: gets a letter a query.
        output_file: gets stdout and stderr.
    """
    multiprocessing.set_start_method(
        "fork", force=True
    )  # of the loaders' workers: as in any process that was not forked here
    with open(output_file, "ab") as f:
        os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    moment, _, number = until.partition(":")
    left = {moment: int(number or 0)}

    def reach(what):
        if what in left:
            left[what] -= 1
            if left[what] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def query(self, images, contexts, image_tokens=None):
        with open(count_file, "a") as f:
            f.write("q" * len(contexts))
        reach("query")
        return original_query(self, images, contexts, image_tokens)

    def save(*args):
        path = original_save(*args)
        reach("checkpoint")
        return path

    def save_state(path, state):
        def content(f):
            f.write(b"half a checkpoint")
            f.flush()
            reach("half")
            f.seek(0)
            torch.save(state, f)

        files.write_atomically(path, content)

    original_query, original_save = LocalOracle.query, checkpoints.save
    LocalOracle.query, checkpoints.save, checkpoints.save_state = query, save, save_state
    sys.exit(train.main(train.parse_args(arguments)))
