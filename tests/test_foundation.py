"""What all trainers share: registration, defaults, files that are whole or absent."""

import resource
import subprocess
import sys

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl_blackbox.trainers.blackbox import files
from dassl_blackbox.trainers.blackbox.config import extend_cfg, register_trainer
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from support import OURS, REPO, arguments, defaults, own


def test_registering_ours_twice_is_silent(capsys):
    for name, cls in OURS.items():
        copied = type(name, (cls.__bases__[0],), {})  # the same file, copied into a fork
        assert register_trainer(cls) is cls and register_trainer(copied) is copied
        assert TRAINER_REGISTRY.get(name) is cls
    assert capsys.readouterr() == ("", "")


def python(code, *args):
    """Code in a process of its own; what it said on stdout and stderr."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


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
    line = arguments("SONAR", data_root, tmp_path, *own("SONAR", TEXTS=0))
    out, err = python(FORK, *line)
    assert err.startswith("Note: __main__ has a trainer named ZIP; ours is left out")
    assert "=> result" in out


def test_the_package_is_imported_without_open_clip_and_pycma():
    """Everything but the local model runs where open_clip is not installed; pycma is slow."""
    python(
        "import sys; sys.modules['open_clip'] = None; import dassl_blackbox;"
        "from dassl_blackbox.trainers.blackbox import oracle, prompts, optimizers, trainer;"
        "from dassl_blackbox import plots, results; assert 'cma' not in sys.modules"
    )


def test_extending_a_configuration_twice_or_a_forks_own_keeps_what_is_there():
    for cfg in (defaults(), get_cfg_default()):
        cfg.DATASET.SUBSAMPLE_CLASSES = "new"
        extend_cfg(cfg)
        assert cfg.DATASET.SUBSAMPLE_CLASSES == "new" and cfg.ORACLE.MAX_QUERIES == 5000
        cfg.ORACLE.MAX_QUERIES = 7
        before = cfg.dump()
        extend_cfg(cfg)
        assert cfg.dump() == before


def failing(error):
    def write(f):
        f.write(b"half of")
        raise error

    return write


@pytest.mark.parametrize(
    "error, seen",
    [(OSError(28, "No space left on device"), BlackBoxError), (KeyboardInterrupt(),) * 2],
)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error, seen):
    path = tmp_path / "folder" / "file"
    files.write_atomically(path, b"the old one")
    with pytest.raises(seen if isinstance(seen, type) else type(seen)):
        files.write_atomically(path, failing(error))
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_checkpoint_that_does_not_fit_on_the_disk(tmp_path):
    files.save({"x": torch.zeros(3)}, tmp_path, "model.pth.tar-1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for name in ("model.pth.tar-1", "model.pth.tar-2"):
            words = f"Could not write {tmp_path}/{name}.*What was there before is whole"
            with pytest.raises(BlackBoxError, match=words):
                files.save({"x": torch.zeros(100_000)}, tmp_path, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_pointer_file_names_the_newest_and_not_the_best(tmp_path):
    assert files.newest(tmp_path) is None
    path = files.save({}, tmp_path, "model.pth.tar-1")
    files.save({}, tmp_path, files.BEST)
    assert files.newest(tmp_path) == path == tmp_path / "model.pth.tar-1"
