import os
import sys
import time

from .tools import mkdir_if_missing


class Logger:
    """Stands in for stdout: what is printed goes to the console and to a new file at `fpath`."""

    def __init__(self, fpath=None):
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            self.file = open(fpath, "w")  # noqa: SIM115  closed by `close`

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def write(self, msg):
        self.console.write(msg)
        if self.file is not None:
            self.file.write(msg)

    def flush(self):
        self.console.flush()
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self):
        """Close the file; the console was not opened here, and stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output=None):
    """Send stdout also to `output` (a .txt or .log file) or to `output`/log.txt.

    An existing log is kept, and a date is added to the name of the new one.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(fpath)
