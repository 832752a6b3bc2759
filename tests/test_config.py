"""Every key has a rule: what does not fit is one sentence that names the key, however it came."""

import os
from functools import partial

import pytest
from dassl.engine import TRAINER_REGISTRY
from dassl_blackbox.trainers.blackbox.config import (
    HOST,
    Key,
    all_keys,
    check_cfg,
    leaves,
    merge_files,
    node_of,
    ours,
    put,
    register_trainer,
    table,
    values_read,
    whole,
)
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip.models import PRECISIONS
from dassl_blackbox.trainers.blackbox.optimizers import COVARIANCES
from support import OURS, REPO, defaults, examples, sentence

CONFIGS = sorted((REPO / "configs" / "trainers").rglob("*.yaml"))
ERROR = partial(pytest.raises, BlackBoxError)


def unread(cfg):
    """Keys that are not at their defaults, and have no effect."""
    default = leaves(defaults())
    changed = {name for name, value in leaves(cfg).items() if value != default[name]}
    return changed - values_read(cfg).keys()


def config(trainer="ZIP", *options, path=None):
    """A sound configuration of a trainer, with further options."""
    cfg = defaults()
    path = path or REPO / "configs" / "trainers" / trainer / "tiny.yaml"
    merge_files(cfg, [str(REPO / "configs" / "datasets" / "digits.yaml"), str(path)])
    cfg.TRAINER.NAME = trainer
    put(cfg, dict(zip(options[::2], options[1::2])), "the options")
    return cfg


def assign(cfg, name, value):
    """Set a key as code can, past yacs's checks."""
    *sections, key = name.split(".")
    for section in sections:
        cfg = cfg[section]
    dict.__setitem__(cfg, key, value)


def test_every_key_is_in_the_configuration_and_its_default_is_valid():
    known, needed = table(config()), {"DATASET.NAME", "MODEL.BACKBONE.NAME"}
    assert {name: key.default for name, key in known.items()} == leaves(defaults())
    assert {name for name, key in known.items() if not key.fits(key.default)} == needed
    assert all(key.about for key in all_keys().values()) and HOST.keys() <= known.keys()
    assert set(known["ORACLE.PREC"].valid.names) == set(PRECISIONS)
    assert set(known["TRAINER.CRAFT.COVARIANCE"].valid.names) == set(COVARIANCES)


def test_the_configurations_of_the_project_are_sound_and_read():
    for path in CONFIGS:
        cfg = config(path.parent.name, path=path)
        check_cfg(cfg)
        assert not unread(cfg), path


@pytest.mark.parametrize("name", sorted({*HOST, *all_keys(), "USE_CUDA", "INPUT.SIZE"}))
def test_a_bad_value_is_a_sentence_with_the_keys_name(name):
    cfg, key = config(), table(config())[name]
    for value in examples(key, True)[:5]:
        assign(cfg, name, value)
        check_cfg(cfg)
    for value in examples(key, False):
        assign(cfg, name, value)
        with ERROR() as error:
            check_cfg(cfg)
        text = str(error.value)
        assert text.startswith(f"{name} is ") and " expected." in text, (value, text)
        assert "\n" not in text


def test_a_fork_with_fewer_keys_and_one_that_is_blank():
    cfg = config()
    del cfg.TRAIN["COUNT_ITER"], cfg.TRAINER["DAELDG"], cfg.TRAINER["MCD"]
    cfg.TRAINER.MINE = type(cfg)({"OPTIONAL": None, "COUNT": -1})
    check_cfg(cfg)


ZIP, CRAFT = "TRAINER.ZIP.", "TRAINER.CRAFT."
READ = [
    ("ZIP", {"OPTIM.LR": 0.5, CRAFT + "DIM": 9, ZIP + "BETA": 0.5}, "all"),
    ("ZIP", {ZIP + "SPACE": "context", ZIP + "RANK": 3}, {ZIP + "RANK"}),
    ("CraFT", {CRAFT + "HEAD": False, CRAFT + "HEAD_LR": 0.1}, {CRAFT + "HEAD_LR"}),
    ("CBBT", {"TRAINER.CBBT.ADAPTER_RATIO": 0.1}, "all"),
    ("JOLT", {"TRAINER.JOLT.SPACE": "lowrank", ZIP + "ID": 64}, {ZIP + "ID"}),
    ("WhiteBox", {"ORACLE.PREC": "fp16"}, "all"),
    ("ZeroshotOracle", {"ORACLE.MAX_QUERIES": 7}, "all"),
    ("ZIP", {ZIP + "RULE": "spsa-gc", ZIP + "BETA": 0.5}, "none"),
    ("ZIP", {ZIP + "SPACE": "projection", ZIP + "STD": 0.3}, "none"),
    ("JOLT", {"TRAINER.JOLT.SPACE": "lowrank", "TRAINER.JOLT.ID": 64}, "none"),
    ("CBBT", {"TRAINER.CBBT.ADAPTER": True, "TRAINER.CBBT.ADAPTER_RATIO": 0.1}, "none"),
    ("CBBT", {"OPTIM.LR": 0.5, "ORACLE.MAX_QUERIES": 7}, "none"),
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
    same = register_trainer(type("Same", (ours()["ZIP"],), {}))
    assert node_of(same) == "ZIP" and not unread(cfg)
    keys = {"RANK": Key(2, whole(1, 9), "another rank")}
    variant = register_trainer(type("Variant", (ours()["ZeroshotOracle"],), {"keys": keys}))
    assert node_of(variant) == "VARIANT"
    cfg = config("ZIP")
    assert cfg.TRAINER.VARIANT.RANK == 2 and "TEMPLATE" in cfg.TRAINER.ZEROSHOT
    cfg.TRAINER.VARIANT.RANK = 10
    with ERROR(match="^TRAINER.VARIANT.RANK is 10; a whole number from 1 to 9"):
        check_cfg(cfg)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "given.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_blank_value_is_refused(file):
    sound = config()
    for name in leaves(defaults()):
        parts = name.split(".")
        content = [f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts)]
        cfg = sound.clone()
        merge_files(cfg, [file("".join(content))])
        with ERROR(match=f"^{name} is (None|not shown.*); .* expected"):
            check_cfg(cfg)


DAMAGED = {
    "empty": "",
    "a list": "- ORACLE\n",
    "two documents": "SEED: 1\n---\nSEED: 2\n",
    "cut off": "ORACLE: {PREC: fp1",
    "not UTF-8": b"ORACLE:\n  PREC: \xff\n",
    "binary": bytes(range(256)) * 20,
    "a key twice": "ORACLE:\n  TOP_K: 1\nSEED: 1\nORACLE:\n  PREC: fp16\n",
    "deep": "[" * 5000,
    "a Python object": "SEED: !!python/object/apply:os.getpid []\n",
    "a date that is none": "SEED: 2020-13-41\n",
    "a number of 5,000 digits": "SEED: " + "1" * 5000,
    "a section with a value": "ORACLE: 3\n",
    "a key with a section": "SEED:\n  A: 1\n",
    "a section that is blank": "ORACLE:\n",
    "no such key": "ORACLE:\n  PRECISION: fp16\n",
    "a key that is a number": "7: 1\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_sentence_with_its_name(file, content):
    path = file(content)
    with ERROR() as error:
        merge_files(defaults(), [path])
    assert path in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600 + len(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "self").symlink_to("self")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", tmp_path / "self", "/dev/zero"):
        with ERROR(match=f"^{path} cannot be read"):
            merge_files(defaults(), [str(path)])
    with ERROR(match="configs/datasets has .* digits.yaml, "):
        merge_files(defaults(), [str(REPO / "configs" / "datasets" / "digit.yaml")])
    with ERROR(match="configs/trainers/ZIP has .*tiny.yaml"):
        merge_files(defaults(), [str(REPO / "configs" / "trainers" / "ZIP")])


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("TRAINER.ZIP.RANKS", "3", "no key 'TRAINER.ZIP.RANKS'.*Did you mean TRAINER.ZIP.RANK"),
        ("TRAINER.ZIP", "3", "no key 'TRAINER.ZIP'.*Did you mean TRAINER.ZIP."),
        ("SEED.X", "3", "no key 'SEED.X'"),
        ("", "3", "no key ''"),
        ("TRAINER.ZIP.RANK", "many", "RANK is 'many'; a whole number"),
        ("TRAINER.ZIP.RANK", "3.0", "RANK is 3.0; a whole number"),
        ("TRAINER.ZIP.RANK", "1" * 5000, "RANK is '111"),
        ("TRAINER.ZIP.RANK", "[" * 5000, "RANK is '.*; a whole number"),
        ("TRAINER.ZIP.CTX_INIT", "7", "CTX_INIT is 7; text"),
        ("USE_CUDA", "1", "USE_CUDA is 1; a value such as True is expected"),
        ("OPTIM.LR", "nan", "LR is 'nan'; a number above 0"),
        ("INPUT.SIZE", "32", r"SIZE is 32; a value such as \(224, 224\) is expected"),
        ("ORACLE.GRANTS", "('logits')", "GRANTS is 'logits'; a tuple"),
        # what CBBT excludes
        ("OPTIM.NAME", "sgd", "OPTIM.NAME is 'sgd'; 'adam' is expected"),
        ("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.LR_SCHEDULER is .* 'cosine'"),
    ],
)
def test_options_that_do_not_fit(name, value, words):
    with ERROR(match=words) as error:
        check_cfg(config("CBBT", name, value))
    assert "\n" not in str(error.value)


def test_values_become_the_types_of_their_defaults(file):
    cfg = defaults()
    content = "OPTIM:\n  LR: 1\nINPUT:\n  RRCROP_SCALE: (0.5, 1)\n  SIZE: [9, 9]\n"
    merge_files(cfg, ["", file(content)])
    given = {"TRAINER.CRAFT.BOUND": "0", "TRAINER.ZIP.A": "1e-3", "TEST.SPLIT": "val"}
    given |= {"TRAINER.ZEROSHOT.TEMPLATE": "{}", "TRAINER.ZIP.CTX_INIT": "'a photo'"}
    put(cfg, given, "the options")
    found = {name: leaves(cfg)[name] for name in given}
    assert found == {
        **given,
        **{"TRAINER.CRAFT.BOUND": 0.0, "TRAINER.ZIP.A": 0.001, "TRAINER.ZIP.CTX_INIT": "a photo"},
    }
    assert (cfg.OPTIM.LR, cfg.INPUT.SIZE, cfg.INPUT.RRCROP_SCALE) == (1.0, (9, 9), (0.5, 1))
    assert type(cfg.OPTIM.LR) is type(cfg.TRAINER.CRAFT.BOUND) is float


# beside the first bad value of each of a trainer's own keys
REFUSED = {
    "ZIP": {
        **{"TEST.SPLIT": "foo", "TEST.FINAL_MODEL": "bestval", "MODEL.INIT_WEIGHTS": "weights.pth"},
        **{"MODEL.BACKBONE.PRETRAINED": False, "OPTIM.MAX_EPOCH": -1, "TRAIN.PRINT_FREQ": 0},
        **{"DATALOADER.TEST.SAMPLER": "RandomClassSampler", "DATALOADER.K_TRANSFORMS": 2},
        **{"DATALOADER.RETURN_IMG0": True, "INPUT.NO_TRANSFORM": True, "DATASET.NUM_SHOTS": 0},
        **{"DATASET.SUBSAMPLE_CLASSES": "old", "ORACLE.MAX_QUERIES": None, "ORACLE.TOP_K": -1},
        "DATASET.SOURCE_DOMAINS": "['a', 'DATASET.NUM_SHOTS', '3']",
    },
    "CraFT": {"TRAINER.CRAFT.CMA_OPTIONS": "['popsize', 3]"},
    "JOLT": {"TRAINER.JOLT.DAMPINGS": "()", "ORACLE.GRANTS": "('logits')"},
    "WhiteBox": {"OPTIM.LR": 0, "OPTIM.STAGED_LR": True, "OPTIM.LR_SCHEDULER": "multi_step"},
    "ZeroshotOracle": {"TRAINER.ZEROSHOT.TEMPLATE": "{} {", "MODEL.HEAD.NAME": "mlp"},
}


@pytest.mark.parametrize("trainer", sorted(OURS))
def test_it_is_refused_before_anything_is_loaded(data_root, tmp_path, capsys, monkeypatch, trainer):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("open_clip.model.CLIP.__init__", load)
    node, keys = f"TRAINER.{node_of(OURS[trainer])}", OURS[trainer].keys
    bad = {f"{node}.{key}": examples(entry, False)[0] for key, entry in keys.items()}
    for name, value in [*REFUSED.get(trainer, {}).items(), *bad.items()]:
        said = sentence(capsys, trainer, data_root, tmp_path / "out", name, value)
        assert said.startswith(f"error: {name} is ")
    assert not (tmp_path / "out").exists()
