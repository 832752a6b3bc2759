"""Tables of the runs below a folder:

python -m dassl_blackbox.results output            # a row a group of seeds
python -m dassl_blackbox.results output --wide     # with all counts of queries
python -m dassl_blackbox.results output --across   # data sets across, with mean
python -m dassl_blackbox.results output/base2new --base2new   # harmonic mean H
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

import tabulate

from .console import note, parser_of, tool
from .datasets.table import ROWS
from .published import DATASETS, FIGURES
from .runs import ACCESS, Run, once, read_result
from .trainers.blackbox import record
from .trainers.blackbox.config import ours
from .trainers.blackbox.errors import BlackBoxError, first_line, printable

Cell = TypeVar("Cell", bound=Hashable)
ZERO_SHOT = "ZeroshotOracle"
HEADERS: tuple[str, ...] = (
    "run",
    "method",
    "access",
    "seeds",
    "test accuracy %",
    "training queries",
    "of these lost",
    "pictures sent",
    "evaluation queries",
    "queries a test batch",
    "seconds",
)
SHOWN = (
    "access",
    "test accuracy %",
    "training queries",
    "pictures sent",
    "queries a test batch",
)
FOLD, RUN, HEADER = 18, 13, 8  # characters of a cell's lines: the narrow table has about 80
FORMULA = tuple("=+-@＝＋－＠")  # what makes a spreadsheet compute a cell
LOST = (
    "! : more than a tenth of a run's training queries were lost when its process was ended, and "
    "trained nothing"
)


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard error (ddof 1); the error is None for a single value."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return fmean(values), error


@dataclass
class Group:
    """The seeds of one experiment."""

    path: Path  # below the folder that was searched, without `seed<k>`
    runs: list[Run]

    @property
    def known(self) -> Run:
        """A run that tells what all of them are: one whose configuration is sound."""
        return next((run for run in self.runs if run.dataset != "?"), self.runs[0])

    @property
    def dataset(self) -> str:
        return self.known.dataset

    @property
    def label(self) -> str:
        """The path without the data set's part: the same for one method on all of them."""
        known = {row.name: row.config for row in ROWS}
        name = self.known.registered
        return "/".join(part for part in self.path.parts if part != known.get(name, name))

    @property
    def access(self) -> str:
        """The most demanding of what the method needs, "?" where that is not known."""
        return self.known.access

    @property
    def demand(self) -> int:
        """The place of `access` in the order of tables: words first, what is not known last."""
        order = list(ACCESS.values())
        return order.index(self.access) if self.access in order else len(order)

    @property
    def lost_much(self) -> bool:
        return any(run.lost_much for run in self.runs)

    def mean_and_error(self) -> tuple[float, float | None]:
        return mean_and_error([run.metrics["accuracy"] for run in self.runs])

    def cell(self) -> str:
        """The mean, its error where there are several seeds, and marks: of val, of lost queries."""
        mean, error = self.mean_and_error()
        spread = "" if error is None else f" ± {error:.1f}"
        split = " (val)" if self.known.split == "val" else ""
        return f"{mean:.1f}{spread}{split}" + (" !" if self.lost_much else "")

    def mean(self) -> float:
        return self.mean_and_error()[0]


def groups(root: str | Path) -> list[Group]:
    """Finished runs below `root`, and evaluations that no training ended in, grouped over seeds.

    What is left out is noted on stderr.
    """
    found: dict[Path, list[Run]] = {}
    for name, folders, files in sorted(os.walk(root, onerror=lambda e: note(first_line(e)))):
        traces = {"log.txt", record.NAME} & {*folders, *files}
        if not traces:
            continue
        folder = Path(name)
        try:
            run = read_result(folder)
        except BlackBoxError as e:
            note(str(e))
            continue
        if run is None or "accuracy" not in run.metrics:
            note(f"{folder / min(traces)} has no result: the run is not finished, and is left out.")
            continue
        seed = re.fullmatch(r"seed\d+", folder.name) and folder != Path(root)
        group = folder.parent if seed else folder
        found.setdefault(Path(printable(str(group.relative_to(root)))), []).append(run)
    made = [Group(path, once(runs)) for path, runs in found.items() if alike(path, runs)]
    for each in made:
        check_names(each.known)
    return made


def check_names(run: Run) -> None:
    """Note a folder that is named after another trainer, data set or number of shots."""
    folder, configs = run.folder.parent, {row.config: row.name for row in ROWS}
    shots = re.findall(r"(?<!\d)(\d+)shots|shots_(\d+)", str(folder))
    for what, told, named in (
        ("trainer", run.trainer, ours().keys() & folder.parts),
        ("data set", run.registered, {configs[part] for part in configs.keys() & folder.parts}),
        ("number of shots", run.shots, {int(a or b) for a, b in shots}),
    ):
        if named and told not in {*named, "?", None}:
            names = ", ".join(sorted(map(str, named)))
            note(f"{folder} names the {what} {names}, and its run is of {told}, which counts.")


def some_groups(directory: str) -> list[Group]:
    """`groups` for a tool, which ends in a sentence where there are none."""
    if not Path(directory).is_dir():
        raise SystemExit(f"error: {directory}: no such folder")
    found = groups(directory)
    if not found:
        raise SystemExit(
            f"error: no finished run (a {record.NAME}, or a log.txt with an accuracy) below "
            f"{directory}"
        )
    return found


def alike(path: Path, runs: list[Run]) -> bool:
    """Whether runs can be averaged: seeds of one experiment, as far as they tell; if not, a note.

    Their queries may differ: a budget can end a run where it stands.
    """
    for name in ("trainer", "dataset", "backbone", "classes", "shots", "split"):
        values = {getattr(run, name) for run in runs} - {"?", None}
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values)))
            note(f"{path} holds runs that differ in {name} ({listed}), and is left out.")
            return False
    return True


def note_fewer_seeds(found: list[Group]) -> None:
    """Say which methods have fewer seeds than others; zero-shot is the same for all."""
    trained = [group for group in found if group.known.trainer != ZERO_SHOT]
    most = max((len(group.runs) for group in trained), default=0)
    for group in trained:
        if len(group.runs) < most:
            note(f"{group.path} has {len(group.runs)} of {most} seeds, and its mean is of these.")


def put(cells: dict[Cell, Group], cell: Cell, group: Group) -> None:
    """Put a group into a cell of a table or a plot; where another has it, a note."""
    if (first := cells.setdefault(cell, group)) is not group:
        note(f"{group.path} has the place of {first.path}, and is left out.")


def uncounted(runs: list[Run]) -> str:
    """What stands in place of counts that a run does not have; empty where all have them."""
    return max((run.uncounted for run in runs if run.counts is None), default="")


def mean_count(runs: list[Run], section: str, unit: str) -> str:
    counts = [run.counts[section][unit] for run in runs if run.counts is not None]
    return uncounted(runs) or f"{fmean(counts):,.0f}"


def test_queries(runs: list[Run]) -> str:
    """Queries that a batch of test images cost, on average."""
    known = [run.test_queries for run in runs if run.test_queries is not None]
    if len(known) < len(runs):
        return uncounted(runs) or "?"
    return f"{fmean(known):.2f}".rstrip("0").rstrip(".")


def row(group: Group) -> list:
    """The cells of a group below `HEADERS`."""
    runs = group.runs
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return [
        str(group.path),
        group.known.trainer,
        group.access,
        len(runs),
        group.cell(),
        mean_count(runs, "training", "queries"),
        mean_count(runs, "lost", "queries"),
        mean_count(runs, "training", "image_queries"),
        mean_count(runs, "evaluation", "queries"),
        test_queries(runs),
        f"{fmean(seconds):.0f}" if seconds else "–",
    ]


def table(found: list[Group], wide: bool = False) -> tuple[tuple[str, ...], list]:
    """Headers and rows, a row a group; what asks for least comes first within a data set.

    The narrow one has runs without the folders that all of them are in, and that of the method.
    """
    found = sorted(found, key=lambda group: (group.dataset, group.demand))
    if wide:
        return HEADERS, [row(group) for group in found]
    shared = os.path.commonpath([group.path.parent for group in found])
    rows = []
    for group in found:
        method, path = group.known.trainer, group.path.relative_to(shared)
        run = "/".join(part for part in path.parts if part != method) or str(path)
        rows.append([method, run, *narrow(group)])
    return ("method", f"run in {shared}/" if shared else "run", *SHOWN), rows


def narrow(group: Group) -> list:
    """The cells of a group below `SHOWN`."""
    cells = dict(zip(HEADERS, row(group), strict=True))
    return [cells[name] for name in SHOWN]


def across(found: list[Group], published: bool = False) -> tuple[tuple[str, ...], list]:
    """Headers and rows of the papers' table; the mean is given where no data set is missing."""
    order = {name: i for i, name in enumerate(row.name for row in ROWS)}
    names = sorted(
        {group.dataset for group in found} | set(DATASETS if published else ()),
        key=lambda name: order.get(name, len(order)),
    )
    rows = []
    for label in dict.fromkeys(group.label for group in found):
        cells: dict[str, Group] = {}
        for group in found:
            if group.label == label:
                put(cells, group.dataset, group)
        means = [cells[name].mean() if name in cells else None for name in names]
        shown = [cells[name].cell() if name in cells else "–" for name in names]
        rows.append([label, *shown, mean_of_all(means)])
    if published:
        rows += published_rows(names)
    return ("method", *names, "mean"), rows


def published_rows(names: list[str]) -> list:
    """Rows of published figures on these data sets."""
    rows = []
    for method, figures in FIGURES.items():
        figure_of = dict(zip(DATASETS, figures, strict=True))
        values = [figure_of.get(name) for name in names]
        shown = ["–" if value is None else f"{value:.1f}" for value in values]
        rows.append([f"{method} (published, ViT-B/16)", *shown, mean_of_all(values)])
    return rows


def mean_of_all(values: list[float | None]) -> str:
    """The mean, where none is missing."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):.1f}" if len(known) == len(values) else "–"


def base2new(found: list[Group]) -> tuple[tuple[str, ...], list]:
    """Headers and rows: accuracy on base and on new classes, and their harmonic mean.

    That of several data sets is the harmonic mean of the means, as in CoCoOp's paper.
    """
    halves: dict[tuple[str, str], dict[str, Group]] = {}
    for group in found:
        if group.path.parts[:1] in (("train_base",), ("test_new",)):
            rest = Group(Path(*group.path.parts[1:]), group.runs)
            put(halves.setdefault((rest.label, group.dataset), {}), group.path.parts[0], group)
    rows = []
    for label in dict.fromkeys(label for label, _ in halves):
        pairs = {
            name: both
            for (of, name), pair in halves.items()
            if of == label
            and len(pair) == 2
            and (both := of_same_seeds(pair["train_base"], pair["test_new"]))
        }
        rows += [
            [label, name, base.cell(), new.cell(), f"{harmonic(base.mean(), new.mean()):.1f}"]
            for name, (base, new) in pairs.items()
        ]
        if len(pairs) > 1:
            means = [fmean(pair[half].mean() for pair in pairs.values()) for half in (0, 1)]
            rows.append(
                [label, "mean", f"{means[0]:.1f}", f"{means[1]:.1f}", f"{harmonic(*means):.1f}"]
            )
    return ("method", "data set", "base", "new", "H"), rows


def of_same_seeds(base: Group, new: Group) -> tuple[Group, Group] | None:
    """The seeds that both halves have; None where there are none. What is left out is noted."""
    names = [{run.seed_name for run in half.runs} for half in (base, new)]
    if names[0] != names[1]:
        lone = ", ".join(sorted(names[0] ^ names[1]))
        note(f"{base.path} has {lone} of one half alone, which is left out.")
    shared = names[0] & names[1]
    if not shared:
        return None
    one, other = (
        Group(half.path, [run for run in half.runs if run.seed_name in shared])
        for half in (base, new)
    )
    return one, other


def harmonic(base: float, new: float) -> float:
    return 2 * base * new / (base + new) if base + new else 0.0


def show(headers: Sequence[str], rows: list, form: str = "simple", fold: bool = True) -> None:
    """Print a table in a format of tabulate, or as CSV.

    Args:
        fold: whether long cells of the format "simple" have several lines.
    """
    cells = [[printable(str(cell)) for cell in line] for line in (headers, *rows)]
    if form == "csv":
        safe = [["'" * cell.startswith(FORMULA) + cell for cell in line] for line in cells]
        csv.writer(sys.stdout, lineterminator="\n").writerows(safe)
        return
    if fold and form == "simple":
        # a header has the width of its column: the first two name runs, the others hold figures
        cells = [
            [
                folded(cell, RUN if j == 1 else FOLD if i or j < 1 else HEADER)
                for j, cell in enumerate(line)
            ]
            for i, line in enumerate(cells)
        ]
    tabulate.MIN_PADDING = 0  # beside the gap between columns
    print(tabulate.tabulate(cells[1:], headers=cells[0], tablefmt=form, disable_numparse=True))


def folded(cell: str, width: int) -> str:
    """Lines of at most `width`, which end with a folder, else with a word, if they can."""
    some = f".{{0,{width - 1}}}"
    return "\n".join(map(str.rstrip, re.findall(f"{some}.$|{some}/|{some}[_ -]|{some}.", cell)))


def main() -> None:
    parser = parser_of("-m dassl_blackbox.results", __doc__)
    parser.add_argument("directory", help="folder that holds <run>/seed<k>/ at any depth")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--wide", action="store_true", help="all columns, which csv always has")
    shape.add_argument("--across", action="store_true", help="data sets across, methods down")
    shape.add_argument("--base2new", action="store_true", help="base, new, and their harmonic mean")
    parser.add_argument(
        "--published",
        action="store_true",
        help="with --across: rows of published figures (ViT-B/16, 16 shots)",
    )
    parser.add_argument(
        "--format",
        default="simple",
        choices=["csv", *tabulate.tabulate_formats],
        metavar="FORMAT",
        help="csv, or a table format of tabulate, such as github",
    )
    args = parser.parse_args()
    if args.published and not args.across:
        parser.error("--published adds rows to the table of --across")
    found = some_groups(args.directory)
    wide = args.wide or args.format == "csv"
    if args.across or not (wide or args.base2new):  # which tell the seeds, or compare them
        note_fewer_seeds(found)
    if args.across:
        headers, rows = across(found, args.published)
    elif not args.base2new:
        headers, rows = table(found, wide)
    else:
        headers, rows = base2new(found)
        if not rows:
            raise SystemExit(
                f"error: {args.directory} has no experiment in both train_base and test_new. Run "
                f"scripts/base2new_train.sh and scripts/base2new_test.sh, and give the folder that "
                f"holds the two."
            )
    show(headers, rows, args.format, fold=not (args.wide or args.across))
    say = note if args.format == "csv" else print
    if args.format != "csv":
        print(
            "± is the standard error over seeds; a query is one candidate scored on one batch\n"
            "of at most 128 images; – : none is counted, or no run; ? : not known"
        )
    if any(group.lost_much for group in found):
        say(LOST)


if __name__ == "__main__":
    sys.exit(tool(main))
