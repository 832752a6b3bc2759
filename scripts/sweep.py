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
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import redirect_stdout, suppress
from io import StringIO
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from dassl_blackbox.console import parser_of, tool
from dassl_blackbox.results import groups, show, table
from dassl_blackbox.runs import read_result
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, first_line, one_of
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


def grid(args: argparse.Namespace) -> dict[str, list[str]]:
    """The arguments of `train.py` by output folder, as scripts/main.sh puts them together.

    Raises:
        BlackBoxError: there is no such trainer, data set, configuration or option.
    """
    tasks, tag = {}, f"_{args.tag}" if args.tag else ""
    for dataset, trainer, shots, seed in product(
        args.datasets, args.trainers, args.shots, args.seeds
    ):
        config = config_of(trainer, dataset, args.cfg)
        folder = f"{args.output}/{dataset}/{trainer}/{args.cfg}_{shots}shots{tag}/seed{seed}"
        tasks[folder] = [
            *("--skip-done", "--root", args.root, "--seed", str(seed), "--trainer", trainer),
            *("--dataset-config-file", f"configs/datasets/{dataset}.yaml"),
            *("--config-file", config, "--output-dir", folder),
            *("DATASET.NUM_SHOTS", str(shots), *args.opts),
        ]
        train.setup_cfg(train.parse_args(tasks[folder]))
    return tasks


def config_of(trainer: str, dataset: str, cfg: str) -> str:
    """The trainer's settings for that data set where it has any, else those of the backbone.

    Raises:
        BlackBoxError: one of the three names is unknown.
    """
    folder = Path("configs/trainers")
    one_of("trainer (--trainers)", trainer, [path.name for path in folder.iterdir()])
    known = [path.stem for path in Path("configs/datasets").glob("*.yaml")]
    one_of("data set (--datasets)", dataset, known)
    own, known = f"{cfg}_{dataset}", [path.stem for path in (folder / trainer).glob("*.yaml")]
    if own not in known:
        one_of(f"configuration of {trainer} (--cfg)", cfg, known)
    return f"{folder / trainer}/{own if own in known else cfg}.yaml"


def is_done(arguments: list[str]) -> bool:
    """Whether `train.py` would skip the run; what it would refuse, it is left to say itself."""
    args = train.parse_args(arguments)
    with redirect_stdout(StringIO()), suppress(BlackBoxError):
        return train.is_done(args, train.setup_cfg(args))
    return False


def work(arguments: list[str], environment: dict[str, str], signals: Sequence[int]) -> list[str]:
    """A run, with a second attempt where the first fails; none once there are `signals`.

    Returns:
        What each attempt ended with: an empty text where it was good, else the last line on stderr
        or the name of a signal.
    """
    said: list[str] = []
    while not signals and len(said) < ATTEMPTS and "" not in said:
        command = [sys.executable, "train.py", *arguments]
        said.append(attempt(command, environment, signals, HOME))
    return said


def attempt(
    command: list[str], environment: dict[str, str], signals: Sequence[int], folder: str = "."
) -> str:
    """One `train.py`, which gets a SIGTERM for each entry that is added to `signals`."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
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
    last = (errors.decode(errors="replace").strip() or "no message").splitlines()[-1]
    return last if child.returncode else ""


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


def run_all(args: argparse.Namespace, tasks: dict[str, list[str]], bar: tqdm) -> dict[str, str]:
    """Do runs; returns the last sentences of those that failed.

    Raises:
        SystemExit: a signal came, and those under way have stopped; 128 + its number.
    """
    failed: dict[str, str] = {}
    signals: list[int] = []
    share = str(max(1, (os.cpu_count() or 1) // args.jobs))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share)}
    call = on_ray(args, signals) if args.ray else lambda task: work(task, threads, signals)
    workers = len(tasks) if args.ray else args.jobs
    with (
        handled(lambda signum, frame: signals.append(signum)),  # after Ray, which does so too
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            futures = {pool.submit(call, tasks[folder]): folder for folder in tasks}
            for future in as_they_end(futures):
                folder, said = futures[future], future.result()
                if "" in said:
                    again = f" (the first attempt: {said[0]})" if said[0] else ""
                    tqdm.write(f"{folder}: {figures(folder)}{again}")
                elif not signals:
                    failed[folder] = said[-1]
                    tqdm.write(f"{folder}: failed")
                bar.set_postfix(failed=len(failed), refresh=False)
                bar.update("" in said or not signals)
        except BaseException:
            signals.append(signal.SIGTERM)  # else the pool would do all that is left first
            raise
    end_if(signals)
    return failed


def as_they_end(futures: Iterable[Future]) -> Iterator[Future]:
    """Futures in the order in which they end.

    Python handles a signal between two steps of the main thread: one that comes just before a wait
    without an end would be handled at that end.
    """
    left = set(futures)
    while left:
        done, left = wait(left, POLL, FIRST_COMPLETED)
        yield from done


def end_if(signals: Sequence[int]) -> None:
    """End the tool where signals came, when the runs under way have stopped."""
    if signals:
        name = signal.Signals(signals[0]).name
        print(f"\nStopped by {name}: the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + signals[0])


def figures(folder: str) -> str:
    """Accuracy and queries of a finished run, as far as they are known."""
    run = read_result(folder)
    if run is None or "accuracy" not in run.metrics:
        return "finished, without an accuracy"
    asked = "" if run.counts is None else f", {run.counts['training']['queries']:,} queries"
    return f"{run.metrics['accuracy']:.1f} %{asked}"


def parse_args() -> argparse.Namespace:
    parser = parser_of("scripts/sweep.py", __doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", required=True, help="folders in configs/trainers")
    add("--datasets", nargs="+", required=True, help="names of YAMLs in configs/datasets")
    add("--shots", type=int, nargs="+", default=[16], help="training images of a class")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of draws and methods")
    add("--cfg", default="tiny", help="name of the trainers' YAMLs")
    add("--root", default="data", help="folder of the data sets")
    add("--output", default="output", help="folder of the runs")
    add("--tag", default="", help="added to a run's folder where options make it another one")
    add("--jobs", type=int, default=1, help="runs at a time; each has its share of the cores")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="in place of --jobs")
    add("--cpus-per-run", type=float, default=1, help="with --ray: cores that a run takes")
    add("--gpus-per-run", type=float, default=0, help="with --ray: GPUs, such as 0.25")
    add("--dry-run", action="store_true", help="print the commands, and run nothing")
    further = "KEY VALUE options of every run; a -- before them ends the list of another option"
    add("opts", nargs=argparse.REMAINDER, help=further)
    args = parser.parse_args()
    if min(args.jobs, *args.shots) < 1 or not all(0 <= seed < 2**32 for seed in args.seeds):
        parser.error("--jobs and --shots are 1 or more, --seeds from 0 to 2**32 - 1")
    args.opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    return args


def main() -> int:
    args = parse_args()
    os.chdir(HOME)
    tasks = grid(args)
    if args.dry_run:
        print("\n".join(shlex.join(["python", "train.py", *tasks[folder]]) for folder in tasks))
        return 0
    left = {folder: tasks[folder] for folder in tasks if not is_done(tasks[folder])}
    print(f"{len(tasks)} runs, of which {len(tasks) - len(left)} are finished and skipped")
    failed = {}
    if left:
        with tqdm(total=len(tasks), initial=len(tasks) - len(left), unit="run") as bar:
            failed = run_all(args, left, bar)
    mine = {Path(folder).parent.relative_to(args.output) for folder in tasks}
    found = [group for group in groups(args.output) if group.path in mine]
    if found:
        show(*table(found))
        print("± is the standard error over seeds")
    for folder, sentence in failed.items():
        log = f"{folder}/log.txt"
        where = f"log: {log}" if os.path.isfile(log) else "no log"
        print(f"{folder} failed ({where}): {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(tool(main))
