"""Registering, and keys: what does not fit is one sentence that names the key, however it came."""

import os
import re
import subprocess
import sys
from functools import partial, reduce
from operator import getitem

import pytest
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl_blackbox.trainers.blackbox import config as keys
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip.models import PRECISIONS
from dassl_blackbox.trainers.blackbox.optimizers import COVARIANCES
from support import OURS, REPO, arguments, defaults, examples, own, sentence

ERROR = partial(pytest.raises, BlackBoxError)


def unread(cfg):
    """Keys that are not at their defaults, and have no effect."""
    default = keys.leaves(defaults())
    changed = {name for name, value in keys.leaves(cfg).items() if value != default[name]}
    return changed - keys.values_read(cfg).keys()


def config(trainer="ZIP", *options, path=None):
    """A sound configuration of a trainer, with further options."""
    cfg = defaults()
    path = path or REPO / "configs" / "trainers" / trainer / "tiny.yaml"
    keys.merge_files(cfg, [str(REPO / "configs" / "datasets" / "digits.yaml"), str(path)])
    cfg.TRAINER.NAME = trainer
    keys.put(cfg, dict(zip(options[::2], options[1::2])), "the options")
    return cfg


def test_registering_ours_twice_is_silent(capsys):
    for name, cls in OURS.items():
        copied = type(name, (cls.__bases__[0],), {})  # the same file, copied into a fork
        assert keys.register_trainer(cls) is cls and keys.register_trainer(copied) is copied
        assert TRAINER_REGISTRY.get(name) is cls
    assert capsys.readouterr() == ("", "")


FORK = """
import sys
sys.path.append("compat")  # where no Dassl is installed
from dassl.engine import TRAINER_REGISTRY, TrainerX

ZIP = TRAINER_REGISTRY.register()(type("ZIP", (TrainerX,), {}))
sys.modules["open_clip"] = None  # all but the local model is imported without; pycma is slow
import dassl_blackbox
from dassl_blackbox import plots, results
from dassl_blackbox.trainers.blackbox import oracle, prompts, optimizers, trainer
assert "cma" not in sys.modules

del sys.modules["open_clip"]
import train
cfg = train.setup_cfg(train.parse_args(sys.argv[1:]))
assert "ZIP" not in cfg.TRAINER and "SONAR" in cfg.TRAINER and TRAINER_REGISTRY.get("ZIP") is ZIP
assert train.main(train.parse_args(["--no-train", *sys.argv[1:]])) == 0
"""


def test_a_fork_with_a_zip_of_its_own_keeps_it_and_has_the_others(data_root, tmp_path):
    line = arguments("SONAR", data_root, tmp_path, *own("SONAR", TEXTS=0))
    how = {"cwd": REPO, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", FORK, *line], **how)
    assert done.returncode == 0 and "This run would cost" in done.stdout, done.stderr
    assert re.match("Note: .*a trainer named ZIP", done.stderr)


def test_extending_a_configuration_twice_or_a_forks_own_keeps_what_is_there():
    for cfg in (defaults(), get_cfg_default()):
        cfg.DATASET.SUBSAMPLE_CLASSES = "new"
        keys.extend_cfg(cfg)
        assert cfg.DATASET.SUBSAMPLE_CLASSES == "new" and cfg.ORACLE.MAX_QUERIES == 5000
        cfg.ORACLE.MAX_QUERIES = 7
        before = cfg.dump()
        keys.extend_cfg(cfg)
        assert cfg.dump() == before


def test_every_key_is_in_the_configuration_and_its_default_is_valid():
    known, needed = keys.table(config()), {"DATASET.NAME", "MODEL.BACKBONE.NAME"}
    assert {name: key.default for name, key in known.items()} == keys.leaves(defaults())
    assert {name for name, key in known.items() if not key.fits(key.default)} == needed
    assert all(key.about for key in keys.all_keys().values()) and keys.HOST.keys() <= known.keys()
    assert set(known["ORACLE.PREC"].valid.names) == set(PRECISIONS)
    assert set(known["TRAINER.CRAFT.COVARIANCE"].valid.names) == set(COVARIANCES)


def test_the_configurations_of_the_project_are_sound_and_read():
    for path in (REPO / "configs" / "trainers").rglob("*.yaml"):
        cfg = config(path.parent.name, path=path)
        keys.check_cfg(cfg)
        assert not unread(cfg), path


@pytest.mark.parametrize("name", sorted({*keys.HOST, *keys.all_keys(), "USE_CUDA", "INPUT.SIZE"}))
def test_a_bad_value_is_a_sentence_with_the_keys_name(name):
    cfg, key = config(), keys.table(config())[name]
    *sections, last = name.split(".")
    node = reduce(getitem, sections, cfg)
    for value in examples(key, True)[:5]:
        dict.__setitem__(node, last, value)  # as code can, past yacs's checks
        keys.check_cfg(cfg)
    for value in examples(key, False):
        dict.__setitem__(node, last, value)
        with ERROR(match=f"^{name} is .* expected\\.") as error:
            keys.check_cfg(cfg)
        assert "\n" not in str(error.value)


def test_a_fork_with_fewer_keys_and_one_that_is_blank():
    cfg = config()
    del cfg.TRAIN["COUNT_ITER"], cfg.TRAINER["DAELDG"], cfg.TRAINER["MCD"]
    cfg.TRAINER.MINE = type(cfg)({"OPTIONAL": None, "COUNT": -1})
    keys.check_cfg(cfg)


ZIP, CRAFT = "TRAINER.ZIP.", "TRAINER.CRAFT."
READ = [
    ("ZIP", {"OPTIM.LR": 0.5, CRAFT + "DIM": 9, ZIP + "BETA": 0.5}, "all"),
    ("ZIP", {ZIP + "SPACE": "context", ZIP + "RANK": 3}, {ZIP + "RANK"}),
    ("CraFT", {CRAFT + "HEAD": False, CRAFT + "HEAD_LR": 0.1}, {CRAFT + "HEAD_LR"}),
    ("CBBT", {"TRAINER.CBBT.ADAPTER_RATIO": 0.1}, "all"),
    ("JOLT", {"TRAINER.JOLT.SPACE": "lowrank", ZIP + "ID": 64}, {ZIP + "ID"}),
    ("ZeroshotOracle", {"ORACLE.MAX_QUERIES": 7}, "all"),
    ("ZIP", {ZIP + "RULE": "spsa-gc", ZIP + "BETA": 0.5}, "none"),
    ("CBBT", {"TRAINER.CBBT.ADAPTER": True, "TRAINER.CBBT.ADAPTER_RATIO": 0.1}, "none"),
    ("WhiteBox", {"OPTIM.LR": 0.5}, "none"),
    ("ZeroshotOracle", {"ORACLE.PREC": "fp16", "TRAINER.ZEROSHOT.TEMPLATE": "{}"}, "none"),
]


@pytest.mark.parametrize("trainer, given, told", READ)
def test_keys_without_an_effect_are_told(trainer, given, told):
    cfg = config(trainer, *(str(word) for pair in given.items() for word in pair))
    assert unread(cfg) == {"all": set(given), "none": set()}.get(str(told), told)


def test_a_subclass_has_its_parents_node_or_with_keys_of_its_own_one_of_its_own(monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))

    cfg = config("ZIP", "TRAINER.ZIP.RANK", "3")
    cfg.TRAINER.NAME = "Same"
    same = keys.register_trainer(type("Same", (keys.ours()["ZIP"],), {}))
    assert keys.node_of(same) == "ZIP" and not unread(cfg)
    rank = {"RANK": keys.Key(2, keys.whole(1, 9), "another rank")}
    kinds = (keys.ours()["ZeroshotOracle"],)
    variant = keys.register_trainer(type("Variant", kinds, {"keys": rank}))
    assert keys.node_of(variant) == "VARIANT"
    cfg = config("ZIP")
    assert cfg.TRAINER.VARIANT.RANK == 2 and "TEMPLATE" in cfg.TRAINER.ZEROSHOT


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "given.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_blank_value_is_refused(file):
    sound = config()
    for name in keys.leaves(defaults()):
        parts = name.split(".")
        content = [f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts)]
        cfg = sound.clone()
        keys.merge_files(cfg, [file("".join(content))])
        with ERROR(match=f"^{name} is (None|not shown.*); .* expected"):
            keys.check_cfg(cfg)


DAMAGED = {
    "empty": "",
    "cut off": "ORACLE: {PREC: fp1",
    "not UTF-8": b"ORACLE:\n  PREC: \xff\n",
    "a key twice": "ORACLE:\n  TOP_K: 1\nSEED: 1\nORACLE:\n  PREC: fp16\n",
    "deep": "[" * 5000,
    "a Python object": "SEED: !!python/object/apply:os.getpid []\n",
    "a key with a section": "SEED:\n  A: 1\n",
    "a section that is blank": "ORACLE:\n",
    "no such key": "ORACLE:\n  PRECISION: fp16\n",
    "a key that is a number": "7: 1\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_sentence_with_its_name(file, content):
    path = file(content)
    with ERROR() as error:
        keys.merge_files(defaults(), [path])
    assert path in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600 + len(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", "/dev/zero"):
        with ERROR(match=f"^{path} cannot be read"):
            keys.merge_files(defaults(), [str(path)])
    with ERROR(match="configs/datasets has .* digits.yaml, "):
        keys.merge_files(defaults(), [str(REPO / "configs" / "datasets" / "digit.yaml")])


UNFIT = [
    ("TRAINER.ZIP.RANKS", "3", "no key 'TRAINER.ZIP.RANKS'.*Did you mean TRAINER.ZIP.RANK"),
    ("TRAINER.ZIP.RANK", "3.0", "RANK is 3.0; a whole number"),
    ("TRAINER.ZIP.RANK", "[" * 5000, "RANK is '.*; a whole number"),
    ("TRAINER.ZIP.CTX_INIT", "7", "CTX_INIT is 7; text"),
    ("USE_CUDA", "1", "USE_CUDA is 1; a value such as True is expected"),
    ("INPUT.SIZE", "32", r"SIZE is 32; a value such as \(224, 224\) is expected"),
    ("ORACLE.GRANTS", "('logits')", "GRANTS is 'logits'; a tuple"),
    # what CBBT excludes
    ("OPTIM.NAME", "sgd", "OPTIM.NAME is 'sgd'; 'adam' is expected"),
    ("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.LR_SCHEDULER is .* 'cosine'"),
]


@pytest.mark.parametrize("name, value, words", UNFIT)
def test_options_that_do_not_fit(name, value, words):
    with ERROR(match=words) as error:
        keys.check_cfg(config("CBBT", name, value))
    assert "\n" not in str(error.value)


def test_values_become_the_types_of_their_defaults(file):
    cfg = defaults()
    content = "OPTIM:\n  LR: 1\nINPUT:\n  RRCROP_SCALE: (0.5, 1)\n  SIZE: [9, 9]\n"
    keys.merge_files(cfg, ["", file(content)])
    given = {"TRAINER.CRAFT.BOUND": "0", "TRAINER.ZIP.A": "1e-3", "TEST.SPLIT": "val"}
    given |= {"TRAINER.ZEROSHOT.TEMPLATE": "{}", "TRAINER.ZIP.CTX_INIT": "'a photo'"}
    keys.put(cfg, given, "the options")
    found = [keys.leaves(cfg)[name] for name in given]
    assert found == [0.0, 0.001, "val", "{}", "a photo"]
    assert (cfg.OPTIM.LR, cfg.INPUT.SIZE, cfg.INPUT.RRCROP_SCALE) == (1.0, (9, 9), (0.5, 1))
    assert type(cfg.OPTIM.LR) is type(cfg.TRAINER.CRAFT.BOUND) is float


@pytest.mark.parametrize("trainer", sorted(OURS))
def test_it_is_refused_before_anything_is_loaded(data_root, tmp_path, capsys, monkeypatch, trainer):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("open_clip.model.CLIP.__init__", load)
    key, entry = next(iter(OURS[trainer].keys.items()), ("", None))
    bad = {"DATASET.NUM_SHOTS": 0, "ORACLE.MAX_QUERIES": None}
    if entry:
        bad[f"TRAINER.{keys.node_of(OURS[trainer])}.{key}"] = examples(entry, False)[0]
    for name, value in bad.items():
        said = sentence(capsys, trainer, data_root, tmp_path / "out", name, value)
        assert said.startswith(f"error: {name} is ")
    assert not (tmp_path / "out").exists()
