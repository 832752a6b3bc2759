"""Runs that live in several processes, and are ended by signals on the way."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver

import killed
import pytest
from support import REPO, arguments, bill, last_checkpoint, run

server = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def processes():
    """Lives are forked from a process that has imported everything: a second saved for each."""
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(REPO), str(REPO / "tests")])
        patch.setenv("PYTHONPATH", path, prepend=os.pathsep)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        server.set_forkserver_preload(["killed"])
        forkserver.ensure_running()
    yield


class Lives:
    """A run of twenty steps with a checkpoint every two, lived in several processes."""

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
        target = (until, self.counted, self.printed, self.arguments)
        life = server.Process(target=killed.live, args=target)
        life.start()
        return life

    def live(self, until="never", status=None):
        """One life, see `killed.live`; it must end with `status`, by default that of its signal."""
        life = self.start(until)
        life.join(120)
        if status is None:
            ended_by = (until.split(":")[2:] or ["SIGKILL"])[0]
            number = getattr(signal, ended_by)
            status = -number if ended_by == "SIGKILL" else 128 + number
            status = 0 if until == "never" else status
        assert life.exitcode == status, self.printed.read_text()

    def inside(self):
        """Queries that the model was asked, by its own count."""
        return len(self.counted.read_text())

    def billed(self):
        counts = bill(self.out)
        return sum(counts[purpose]["queries"] for purpose in ("training", "evaluation"))

    def steps(self):
        return last_checkpoint(self.out)["blackbox"]["steps_done"]
