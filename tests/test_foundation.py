"""What all trainers share: registration, defaults, schedules, files that are whole or absent."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl_blackbox.trainers.blackbox import files
from dassl_blackbox.trainers.blackbox.config import build_schedule, extend_cfg, register_trainer
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from support import OURS, REPO, arguments, defaults

# Registration and defaults


def test_registering_ours_twice_is_silent(capsys):
    for name, cls in OURS.items():
        copied = type(name, (cls.__bases__[0],), {})  # the same file, copied into a fork
        assert register_trainer(cls) is cls and register_trainer(copied) is copied
        assert TRAINER_REGISTRY.get(name) is cls
    assert capsys.readouterr() == ("", "")


FORK = """
import sys
sys.path.append("compat")  # where no Dassl is installed
from dassl.engine import TRAINER_REGISTRY, TrainerX

class ZIP(TrainerX):
    pass

TRAINER_REGISTRY.register(ZIP)
import train

cfg = train.setup_cfg(train.parse_args(sys.argv[1:]))
assert "ZIP" not in cfg.TRAINER and "SONAR" in cfg.TRAINER and TRAINER_REGISTRY.get("ZIP") is ZIP
assert train.main(train.parse_args(sys.argv[1:])) == 0
"""


def test_a_fork_with_a_zip_of_its_own_keeps_it_and_has_the_others(data_root, tmp_path):
    line = arguments("SONAR", data_root, tmp_path, "TRAINER.SONAR.TEXTS", 0)
    done = subprocess.run(
        [sys.executable, "-c", FORK, *map(str, line)], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Note: a trainer named ZIP is registered already, by __main__;")
    assert "=> result" in done.stdout


def test_extending_a_configuration_twice_changes_nothing():
    cfg = defaults()
    cfg.ORACLE.MAX_QUERIES, cfg.DATASET.SUBSAMPLE_CLASSES = 7, "base"
    before = cfg.dump()
    extend_cfg(cfg)
    assert cfg.dump() == before


def test_a_forks_own_keys_are_kept():
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    extend_cfg(cfg)
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "new" and cfg.ORACLE.MAX_QUERIES == 5000


# Schedules


@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_the_schedule_is_dassls(warm_up):
    cfg = defaults()
    cfg.merge_from_list(
        [
            "OPTIM.LR",
            0.002,
            "OPTIM.MAX_EPOCH",
            10,
            "OPTIM.LR_SCHEDULER",
            "cosine",
            "OPTIM.WARMUP_EPOCH",
            warm_up,
            "OPTIM.WARMUP_TYPE",
            "constant",
            "OPTIM.WARMUP_CONS_LR",
            1e-5,
        ]
    )
    optimizer, rates = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.002), []
    schedule = build_schedule(optimizer, cfg.OPTIM)
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [1e-5] * warm_up + [
        0.001 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(10 - warm_up)
    ]
    assert rates == pytest.approx(expected, rel=1e-6)


# Files are whole or not there


def write_half(f):
    f.write(b"half of")
    raise OSError(28, "No space left on device")


def interrupted(f):
    f.write(b"half of")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "content, error", [(write_half, BlackBoxError), (interrupted, KeyboardInterrupt)]
)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, content, error):
    path = tmp_path / "folder" / "file"
    files.write_atomically(path, b"the old one")
    with pytest.raises(error):
        files.write_atomically(path, content)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_checkpoint_that_does_not_fit_on_the_disk(tmp_path):
    files.save({"x": torch.zeros(3)}, tmp_path, "model.pth.tar-1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for name in ("model.pth.tar-1", "model.pth.tar-2"):
            with pytest.raises(
                BlackBoxError,
                match=f"Could not write {tmp_path}/{name}.*What was there before is whole",
            ):
                files.save({"x": torch.zeros(100_000)}, tmp_path, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_pointer_file_names_the_newest_and_not_the_best(tmp_path):
    assert files.newest(tmp_path) is None
    path = files.save({}, tmp_path, "model.pth.tar-1")
    files.save({}, tmp_path, files.BEST)
    assert files.newest(tmp_path) == path == tmp_path / "model.pth.tar-1"


def test_the_package_is_imported_without_open_clip_and_pycma():
    """Everything but the local model runs where open_clip is not installed; pycma is slow."""
    code = (
        "import sys; sys.modules['open_clip'] = None; import dassl_blackbox;"
        "from dassl_blackbox.trainers.blackbox import oracle, prompts, optimizers, search;"
        "from dassl_blackbox import plots, results; assert 'cma' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
