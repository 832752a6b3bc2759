"""Runs that live in several processes, and are ended by signals on the way."""

import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver

import dassl_blackbox  # noqa: F401  # isort: skip  finds a Dassl
import pytest
import torch
import train
from dassl_blackbox.trainers.blackbox import trainer as loop
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.trainer import Trainer
from support import REPO, arguments, bill, last_checkpoint, run

torch.set_num_threads(1)
server = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def processes():
    """Lives are forked from a process that has imported everything: a second saved for each."""
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(REPO), str(REPO / "tests")])
        patch.setenv("PYTHONPATH", path, prepend=os.pathsep)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        server.set_forkserver_preload(["lives"])
        forkserver.ensure_running()
    yield


def live(until, count_file, output_file, arguments):
    """Run `train.py` in this process, which writes to a file, and exit with its status.

    Args:
        until: `checkpoint:k`, right after the k-th checkpoint is written; `half:k`, when half of it
            is written; `query:k`, when the model has been asked for the k-th time; `step:k`, right
            after the k-th step; or `never`. By SIGKILL, or as in `query:3:SIGTERM`.
        count_file: gets a letter a query, counted apart from the meter.
    """
    # the loaders' workers begin as in any process that was not forked here
    multiprocessing.set_start_method("fork", force=True)
    with open(output_file, "ab") as f:
        for number in (1, 2):
            os.dup2(f.fileno(), number)
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

    def after(what, original):
        def done(*args):
            result = original(*args)
            reach(what)
            return result

        return done

    def dump(state, f):
        f.write(b"half a checkpoint")
        f.flush()
        reach("half")
        f.seek(0)
        original_dump(state, f)

    original_dump = torch.save
    counted("query", lambda oracle, images, prompt: requests(oracle, prompt))
    counted("image_features", lambda oracle, images: 1)
    counted("text_features", requests)
    loop.save, torch.save = after("checkpoint", loop.save), dump
    Trainer.report = after("step", Trainer.report)
    sys.exit(train.main(train.parse_args(arguments)))


class Lives:
    """A run with a checkpoint every tenth of it, lived in several processes."""

    def __init__(self, name, root, limit, folder, *options):
        self.out, self.counted, self.printed = folder / "run", folder / "count", folder / "printed"
        self.name, self.root, self.options, self.limit = name, root, (*limit, *options), limit[1]
        self.twin = folder / "uninterrupted"
        self.arguments = arguments(name, root, self.out, *self.options)

    def uninterrupted(self):
        """The last checkpoint of the same run in this process, which nothing ends."""
        assert run(self.name, self.root, self.twin, *self.options) == 0
        return last_checkpoint(self.twin)

    def start(self, until="never"):
        life = server.Process(target=live, args=(until, self.counted, self.printed, self.arguments))
        life.start()
        return life

    def live(self, until="never"):
        """One life, see `live`; it must end with the status of its signal."""
        life = self.start(until)
        life.join(120)
        number = getattr(signal, (until.split(":")[2:] or ["SIGKILL"])[0])
        ended = -number if number == signal.SIGKILL else 128 + number
        status = 0 if until == "never" else ended
        assert life.exitcode == status, self.printed.read_text()

    def inside(self):
        """Queries that the model was asked, by its own count."""
        return len(self.counted.read_text())

    def billed(self):
        counts = bill(self.out)
        return sum(counts[purpose]["queries"] for purpose in ("training", "evaluation"))

    def steps(self):
        return last_checkpoint(self.out)["blackbox"]["steps_done"]
