r"""A grid of experiments: every trainer on every data set, with each number of shots and each seed:

python scripts/sweep.py --trainers SONAR ZIP --datasets digits shapes \
    --shots 4 16 --seeds 1 2 3 --cfg tiny --jobs 2 -- ORACLE.MAX_QUERIES 500

A run is the `python train.py --skip-done …` of scripts/main.sh, in the same folder: a finished one
is skipped and a crashed one goes on, whichever of the two began it. Relative paths start at the
checkout. What fails is tried once more, and listed when all have had their turn. After Ctrl-C,
SIGTERM, SIGHUP or a scheduler's signal, runs under way save and stop, and the same command goes on
from there. docs/REMOTE.md tells of a cluster (--ray ADDRESS).
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
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import redirect_stdout, suppress
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from dassl_blackbox.console import parser_of, tool
from dassl_blackbox.results import read, read_result, show, table
from dassl_blackbox.trainers.blackbox.config import ours
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, first_line
from dassl_blackbox.trainers.blackbox.files import write_atomically
from dassl_blackbox.trainers.blackbox.trainer import handled
from tqdm import tqdm

HOME = os.path.dirname(train.__file__)
POLL = 0.2  # seconds between looks at whether a run is to stop, or has ended
# what runs on a cluster's nodes get of this environment, by how the names begin
PASSED = "BLACKBOX_KEY", "DASSL", "HF_", "OMP_NUM_THREADS", "PYTHONPATH", "XDG_CACHE_HOME"
Call = Callable[[list[str]], list[str]]  # does what `work` does with the arguments of a run


def arguments(
    args: argparse.Namespace, trainer: str, dataset: str, shots: int, seed: int, folder: str
) -> list[str]:
    """The arguments of `train.py`, as of scripts/run.sh, and what probes share; options follow."""
    settings = f"configs/trainers/{trainer}/{args.cfg}"
    own = f"{settings}_{dataset}.yaml"
    probes = not getattr(ours().get(trainer), "learns_by_steps", True)
    return [
        *("--skip-done", "--root", args.root, "--seed", str(seed), "--trainer", trainer),
        *("--dataset-config-file", f"configs/datasets/{dataset}.yaml", "--config-file"),
        own if os.path.isfile(own) else f"{settings}.yaml",
        *("--output-dir", folder, "DATASET.NUM_SHOTS", str(shots)),
        *(("ORACLE.FEATURES", f"{args.output}/features") if probes else ()),
    ]


def is_done(arguments: list[str]) -> bool:
    """Whether `train.py` would skip the run; what it would refuse, it is left to say itself."""
    args = train.parse_args(arguments)
    cfg = train.setup_cfg(args)  # what is wrong with any of them is said before all begin
    with redirect_stdout(StringIO()), suppress(BlackBoxError):
        return train.is_done(args, cfg)
    return False


def work(arguments: list[str], environment: dict[str, str], signals: Sequence[int]) -> list[str]:
    """A `train.py`, and another where it fails; each of `signals` that is added is a SIGTERM to it.
    Returns for each "" where it was good, else its last line on stderr or the name of a signal.
    """
    said: list[str] = []
    while not signals and len(said) < 2 and "" not in said:
        with subprocess.Popen(
            [sys.executable, "train.py", *arguments],
            cwd=HOME,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C reaches the sweep alone
        ) as child:
            told, errors = 0, None
            try:
                while errors is None:
                    if told < len(signals):
                        child.terminate()
                        told += 1
                    with suppress(subprocess.TimeoutExpired):
                        errors = child.communicate(timeout=POLL)[1]
            finally:  # Ray cancels a task by a KeyboardInterrupt
                child.terminate()
                child.wait()
        if child.returncode < 0:
            errors = f"ended by {signal.Signals(-child.returncode).name}"
        last = (errors.strip() or "no message").splitlines()[-1]
        said.append(last if child.returncode else "")
    return said


def on_ray(args: argparse.Namespace, environment: dict[str, str], signals: Sequence[int]) -> Call:
    """A function that does a run as a task of Ray, which is started or connected to first."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"logging_level": "ERROR", "log_to_driver": False}
    if args.ray == "local":  # on loopback, as Ray is by itself on Windows and macOS alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
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


def run_all(args: argparse.Namespace, tasks: Mapping[str, list[str]]) -> set[str]:
    """Do what is not done of runs, by folder; returns the folders of those that failed.
    A signal stops those under way, and raises SystemExit.
    """
    left = {folder: task for folder, task in tasks.items() if not is_done(task)}
    done, failed, signals = len(tasks) - len(left), dict[str, str](), list[int]()
    print(f"{len(tasks)} runs, of which {done} are finished and skipped")
    cores = args.cpus_per_run if args.ray else (os.cpu_count() or 1) // args.jobs
    environment = {"OMP_NUM_THREADS": str(max(1, int(cores)))}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    call: Call = partial(work, environment=environment, signals=signals)
    if args.ray and left:
        call = on_ray(args, environment, signals)
    with (
        handled(lambda signum, frame: signals.append(signum)),  # after Ray, which does so too
        tqdm(total=len(tasks), initial=done, unit="run") as bar,
        ThreadPoolExecutor(len(tasks) if args.ray else args.jobs) as pool,
    ):
        waiting = {pool.submit(call, task): folder for folder, task in left.items()}
        try:
            while waiting:
                # Python handles a signal between two steps of the main thread: one that comes just
                # before a wait without an end would be handled at that end
                for future in wait(waiting, POLL, FIRST_COMPLETED).done:
                    folder, said = waiting.pop(future), future.result()
                    if "" in said:
                        again = f" (the first attempt: {said[0]})" if said[0] else ""
                        accuracy = float("nan")  # with TEST.NO_TEST
                        with suppress(BlackBoxError):
                            accuracy = read_result(folder)["accuracy"]
                        tqdm.write(f"{folder}: {accuracy:.1f} %{again}")
                    elif not signals:
                        failed[folder] = said[-1]
                    bar.set_postfix(failed=len(failed), refresh=False)
                    bar.update("" in said or not signals)
        except BaseException:
            signals.append(signal.SIGTERM)  # else the pool would do all that is left first
            raise
    if signals:
        name = signal.Signals(signals[0]).name
        print(f"\nStopped by {name}: the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    for folder, sentence in failed.items():
        print(f"{folder} failed: {sentence}", file=sys.stderr)
    return {*failed}


def parser_for(script: str, description: str | None, output: str) -> argparse.ArgumentParser:
    """The parser of a script that calls `run_all`."""
    parser = parser_of(f"scripts/{script}", description)
    add = parser.add_argument
    add("--seeds", type=partial(whole, least=0), nargs="+", default=[1, 2, 3], help="of runs")
    add("--cfg", default="tiny", help="name of the trainers' YAMLs")
    add("--root", default="data", help="folder of the data sets")
    add("--output", default=output, help="folder of the runs")
    add("--jobs", type=whole, default=1, help="runs at a time; each has its share of the cores")
    ray = "in place of --jobs, tasks of the cluster at ADDRESS, or of a Ray started on loopback"
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help=ray)
    add("--cpus-per-run", type=float, default=1, help="with --ray: cores that a run takes")
    add("--gpus-per-run", type=float, default=0, help="with --ray: GPUs, such as 0.25")
    return parser


def whole(text: str, least: int = 1) -> int:
    """A whole number, for argparse."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not from {least} on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_for("sweep.py", __doc__, "output")
    add = parser.add_argument
    add("--trainers", nargs="+", required=True, help="folders in configs/trainers")
    add("--datasets", nargs="+", required=True, help="names of YAMLs in configs/datasets")
    add("--shots", type=whole, nargs="+", default=[16], help="training images of a class")
    add("--tag", default="", help="added to a run's folder where options make it another one")
    add("--slurm", metavar="FILE", help="write a job array for sbatch, and run nothing")
    add("--dry-run", action="store_true", help="print the commands, and run nothing")
    further = "KEY VALUE options of every run; a -- before them ends the list of another option"
    add("opts", nargs=argparse.REMAINDER, help=further)
    args = parser.parse_args(argv)
    os.chdir(HOME)
    tasks, tag = {}, f"_{args.tag}" if args.tag else ""
    options = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    for each in product(args.datasets, args.trainers, args.shots, args.seeds):
        dataset, trainer, shots, seed = each
        folder = f"{args.output}/{dataset}/{trainer}/{args.cfg}_{shots}shots{tag}/seed{seed}"
        tasks[folder] = arguments(args, trainer, dataset, shots, seed, folder) + options
    if args.dry_run:
        print("\n".join(shlex.join(["python", "train.py", *task]) for task in tasks.values()))
        return 0
    if args.slurm:
        write_atomically(args.slurm, job_array(tasks).encode())
        print(f"{args.slurm}: {len(tasks)} jobs; sbatch {shlex.quote(args.slurm)}")
        return 0
    failed = run_all(args, tasks)
    if len(failed) < len(tasks):
        runs = read(args.output)
        mine = {os.path.relpath(os.path.dirname(folder), args.output) for folder in tasks}
        show(table(runs[runs.path.isin(mine)]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(tool(main))
