r"""A grid of experiments: every trainer on every data set, with each number of shots and each seed:

python scripts/sweep.py --trainers SONAR ZIP --datasets digits shapes \
    --shots 4 16 --seeds 1 2 3 --cfg tiny --jobs 2 -- ORACLE.MAX_QUERIES 500

A run is the `python train.py --skip-done …` of scripts/main.sh, in the same folder: a finished one
is skipped and a crashed one goes on, whichever of the two began it. Relative paths start at the
checkout. What fails is tried once more, and listed when all have had their turn. After Ctrl-C,
SIGTERM, SIGHUP or a scheduler's signal, runs under way save and stop, and the same command goes on
from there.

With --ray the runs are tasks of Ray: without an address, of one that is started for the sweep and
listens on loopback alone; with one, of a cluster, on whose nodes the checkout, its Python
environment, the data and the output must lie at the same paths, as on a shared file system.

With --slurm FILE nothing runs: the file is a job array, a run a job, for `sbatch [OPTIONS] FILE`.
A job that is preempted, or near its time limit, saves, is requeued and goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import redirect_stdout, suppress
from io import StringIO
from itertools import product
from math import nan
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from dassl_blackbox.console import parser_of, tool
from dassl_blackbox.results import show, table
from dassl_blackbox.runs import read, read_result
from dassl_blackbox.trainers.blackbox.config import BACKBONES
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, first_line, one_of
from dassl_blackbox.trainers.blackbox.files import write_atomically
from dassl_blackbox.trainers.blackbox.trainer import handled
from tqdm import tqdm

HOME = str(Path(__file__).resolve().parents[1])
ATTEMPTS = 2
POLL = 0.2  # seconds between looks at whether a run is to stop, or has ended
# what runs on a cluster's nodes get of this environment, by how the names begin
PASSED = "BLACKBOX_KEY", "DASSL", "HF_", "OMP_NUM_THREADS", "PYTHONPATH", "XDG_CACHE_HOME"
# for a Ray that is started here: on loopback, which Ray does by itself on Windows and macOS alone
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
Call = Callable[[list[str]], list[str]]  # does what `work` does with the arguments of a run


def settings_of(trainer: str) -> set[str]:
    """What --cfg may be: a trainer's YAMLs, and those that differ from one by the backbone."""
    names = {path.stem for path in Path(HOME, "configs/trainers", trainer).glob("*.yaml")}
    return names.union(BACKBONES if "vit_b16" in names else ())


def arguments(
    args: argparse.Namespace, trainer: str, dataset: str, shots: int, seed: int, folder: str
) -> list[str]:
    """The arguments of `train.py`, as scripts/main.sh puts them together; those of `opts` follow.

    The settings are the trainer's for that data set where it has any, else those of the backbone.

    Raises:
        BlackBoxError: there is no such trainer, data set or configuration.
    """
    datasets = [path.stem for path in Path(HOME, "configs/datasets").glob("*.yaml")]
    one_of("trainer", trainer, os.listdir(Path(HOME, "configs/trainers")))
    one_of("data set", dataset, datasets)
    own, known = f"{args.cfg}_{dataset}", settings_of(trainer)
    if own not in known:
        one_of(f"configuration of {trainer} (--cfg)", args.cfg, known)
    config = f"configs/trainers/{trainer}/{own if own in known else args.cfg}.yaml"
    return [
        *("--skip-done", "--root", args.root, "--seed", str(seed), "--trainer", trainer),
        *("--dataset-config-file", f"configs/datasets/{dataset}.yaml"),
        *("--config-file", config, "--output-dir", folder, "DATASET.NUM_SHOTS", str(shots)),
    ]


def is_done(arguments: list[str]) -> bool:
    """Whether `train.py` would skip the run; what it would refuse, it is left to say itself."""
    args = train.parse_args(arguments)
    cfg = train.setup_cfg(args)  # what is wrong with any of them is said before all begin
    with redirect_stdout(StringIO()), suppress(BlackBoxError):
        return train.is_done(args, cfg)
    return False


def work(arguments: list[str], environment: dict[str, str], signals: Sequence[int]) -> list[str]:
    """A run, with a second attempt where the first fails; none once there are `signals`.

    Returns:
        What each attempt ended with, as `attempt` tells it.
    """
    said: list[str] = []
    while not signals and len(said) < ATTEMPTS and "" not in said:
        said.append(attempt(arguments, environment, signals))
    return said


def attempt(arguments: list[str], environment: dict[str, str], signals: Sequence[int]) -> str:
    """One `train.py`, which gets a SIGTERM for each entry that is added to `signals`.

    Returns:
        Nothing where it was good, else the last line on stderr or the name of a signal.
    """
    with subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=HOME,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C reaches the sweep alone, which passes it on
    ) as child:
        told, errors = 0, None
        try:
            while errors is None:
                if told < len(signals):
                    child.terminate()
                    told += 1
                with suppress(subprocess.TimeoutExpired):
                    errors = child.communicate(timeout=POLL)[1]
        except BaseException:  # Ray cancels a task by a KeyboardInterrupt
            child.terminate()
            child.communicate()
            raise
    if child.returncode < 0:
        return f"ended by {signal.Signals(-child.returncode).name}"
    return (errors.strip() or "no message").splitlines()[-1] if child.returncode else ""


def on_ray(args: argparse.Namespace, signals: Sequence[int]) -> Call:
    """A function that does a run as a task of Ray, which is started or connected to first.

    Raises:
        BlackBoxError: there is no Ray, or less than a run is to take.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"logging_level": "ERROR", "log_to_driver": False}
    if args.ray == "local":
        os.environ.update(LOOPBACK, RAY_AUTH_TOKEN=secrets.token_hex(32))
        options["include_dashboard"] = False
    try:
        import ray

        ray.init(args.ray, **options)  # and shut down when this process ends
    except ImportError as e:
        raise BlackBoxError("--ray needs Ray: pip install -e '.[ray]'") from e
    except (OSError, RuntimeError, ValueError) as e:
        raise BlackBoxError(f"There is no Ray at '{args.ray}' ({first_line(e)}).") from e
    for kind, share in (("CPU", args.cpus_per_run), ("GPU", args.gpus_per_run)):
        if share > (there := ray.cluster_resources().get(kind, 0)):
            raise BlackBoxError(f"--{kind.lower()}s-per-run is {share:g}, and Ray has {there:g}.")
    environment = {"OMP_NUM_THREADS": str(max(1, int(args.cpus_per_run)))}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    task = ray.remote(num_cpus=args.cpus_per_run, num_gpus=args.gpus_per_run)(work)

    def call(arguments: list[str]) -> list[str]:
        run = task.remote(arguments, environment, ())
        while not signals and not ray.wait([run], timeout=POLL)[0]:
            pass
        if signals:
            ray.cancel(run)
        try:
            return ray.get(run)
        except ray.exceptions.RayError as e:
            return [first_line(e)]

    return call


def job_array(tasks: Mapping[str, list[str]]) -> str:
    """A script for `sbatch`: Slurm tells its first process two minutes before a job's end."""
    runs = "\n".join(f"{n}) run=({shlex.join(task)}) ;;" for n, task in enumerate(tasks.values()))
    return f"""#!/bin/bash
#SBATCH --job-name=dassl-blackbox
#SBATCH --array=0-{len(tasks) - 1}
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
case $SLURM_ARRAY_TASK_ID in
{runs}
esac
again() {{ kill -TERM $!; wait $!; scontrol requeue "$SLURM_JOB_ID"; exit; }}
trap again TERM
cd {shlex.quote(HOME)} || exit 1
{shlex.quote(sys.executable)} train.py "${{run[@]}}" &
wait $!
"""


def run_all(args: argparse.Namespace, tasks: Mapping[str, list[str]]) -> dict[str, str]:
    """Do what is not done of runs, by folder; returns the last sentences of those that failed.

    Raises:
        SystemExit: a signal came, and those under way have stopped; 128 + its number.
    """
    left = [folder for folder in tasks if not is_done(tasks[folder])]
    done = len(tasks) - len(left)
    print(f"{len(tasks)} runs, of which {done} are finished and skipped")
    if not left:
        return {}
    failed: dict[str, str] = {}
    signals: list[int] = []
    share = str(max(1, (os.cpu_count() or 1) // args.jobs))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share)}
    call = on_ray(args, signals) if args.ray else lambda task: work(task, threads, signals)
    with (
        handled(lambda signum, frame: signals.append(signum)),  # after Ray, which does so too
        tqdm(total=len(tasks), initial=done, unit="run") as bar,
        ThreadPoolExecutor(len(left) if args.ray else args.jobs) as pool,
    ):
        try:
            futures: dict[Future, str] = {pool.submit(call, tasks[path]): path for path in left}
            waiting = set(futures)
            while waiting:
                # Python handles a signal between two steps of the main thread: one that comes just
                # before a wait without an end would be handled at that end
                ended, waiting = wait(waiting, POLL, FIRST_COMPLETED)
                for future in ended:
                    folder, said = futures[future], future.result()
                    if "" in said:
                        again = f" (the first attempt: {said[0]})" if said[0] else ""
                        found = read_result(folder) or {"accuracy": nan}
                        tqdm.write(f"{folder}: {found['accuracy']:.1f} %{again}")
                    elif not signals:
                        failed[folder] = said[-1]
                        tqdm.write(f"{folder}: failed")
                    bar.set_postfix(failed=len(failed), refresh=False)
                    bar.update("" in said or not signals)
        except BaseException:
            signals.append(signal.SIGTERM)  # else the pool would do all that is left first
            raise
    if signals:
        name = signal.Signals(signals[0]).name
        print(f"\nStopped by {name}: the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    return failed


def tell(failed: Mapping[str, str]) -> int:
    """Say what failed; returns the exit status."""
    for folder, sentence in failed.items():
        log = f"{folder}/log.txt"
        where = f"log: {log}" if os.path.isfile(log) else "no log"
        print(f"{folder} failed ({where}): {sentence}", file=sys.stderr)
    return 1 if failed else 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("scripts/sweep.py", __doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", required=True, help="folders in configs/trainers")
    add("--datasets", nargs="+", required=True, help="names of YAMLs in configs/datasets")
    add("--shots", type=whole(1), nargs="+", default=[16], help="training images of a class")
    add("--tag", default="", help="added to a run's folder where options make it another one")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="in place of --jobs")
    add("--cpus-per-run", type=float, default=1, help="with --ray: cores that a run takes")
    add("--gpus-per-run", type=float, default=0, help="with --ray: GPUs, such as 0.25")
    add("--slurm", metavar="FILE", help="write a job array for Slurm, and run nothing")
    add("--dry-run", action="store_true", help="print the commands, and run nothing")
    add_common(parser, "output")
    further = "KEY VALUE options of every run; a -- before them ends the list of another option"
    add("opts", nargs=argparse.REMAINDER, help=further)
    args = parser.parse_args(argv)
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    return args


def add_common(parser: argparse.ArgumentParser, output: str) -> None:
    add = parser.add_argument
    add("--seeds", type=whole(0), nargs="+", default=[1, 2, 3], help="of draws and methods")
    add("--cfg", default="tiny", help="name of the trainers' YAMLs")
    add("--root", default="data", help="folder of the data sets")
    add("--output", default=output, help="folder of the runs")
    add("--jobs", type=whole(1), default=1, help="runs at a time; each has its share of the cores")


def whole(least: int) -> Callable[[str], int]:
    """A whole number from `least` to 2**32 - 1, for argparse."""

    def number(text: str) -> int:
        if not least <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to 2**32 - 1")
        return int(text)

    return number


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    os.chdir(HOME)
    tasks, tag = {}, f"_{args.tag}" if args.tag else ""
    for dataset, trainer, shots, seed in product(
        args.datasets, args.trainers, args.shots, args.seeds
    ):
        folder = f"{args.output}/{dataset}/{trainer}/{args.cfg}_{shots}shots{tag}/seed{seed}"
        tasks[folder] = arguments(args, trainer, dataset, shots, seed, folder) + args.opts
    if args.dry_run:
        print("\n".join(shlex.join(["python", "train.py", *task]) for task in tasks.values()))
        return 0
    if args.slurm:
        write_atomically(args.slurm, job_array(tasks).encode())
        print(f"{args.slurm}: {len(tasks)} jobs; sbatch {shlex.quote(args.slurm)}")
        return 0
    failed = run_all(args, tasks)
    mine = {os.path.relpath(os.path.dirname(folder), args.output) for folder in tasks}
    if len(failed) < len(tasks):
        runs = read(args.output)
        show(table(runs[runs.path.isin(mine)]))
        print("± is the standard error over seeds")
    return tell(failed)


if __name__ == "__main__":
    sys.exit(tool(main))
