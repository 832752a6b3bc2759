"""Every key has a rule: what does not fit is one sentence that names the key, however it came."""

import os
from functools import partial

import pytest
import yaml
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
from dassl_blackbox.trainers.blackbox.optimizers.cmaes import COVARIANCES
from dassl_blackbox.trainers.blackbox.record import counted
from support import OURS, REPO, defaults, examples, run
from train import before_and_now, grew, unread

CONFIGS = sorted((REPO / "configs" / "trainers").rglob("*.yaml"))
NAMES = sorted(leaves(defaults()))
ERROR = partial(pytest.raises, BlackBoxError)


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


# The table


def test_every_key_is_in_the_configuration_and_its_default_is_valid():
    known, needed = table(config()), {"DATASET.NAME", "MODEL.BACKBONE.NAME"}
    assert {name: key.default for name, key in known.items()} == leaves(defaults())
    assert {name for name, key in known.items() if not key.fits(key.default)} == needed
    assert all(key.about for key in all_keys().values()) and HOST.keys() <= known.keys()
    assert set(known["ORACLE.PREC"].valid.names) == set(PRECISIONS)
    assert set(known["TRAINER.CRAFT.COVARIANCE"].valid.names) == set(COVARIANCES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_configurations_of_the_project_are_sound_and_read(path):
    cfg = config(path.parent.name, path=path)
    check_cfg(cfg)
    assert not unread(cfg)


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


@pytest.mark.parametrize(
    "trainer, options, words",
    [
        ("CBBT", ["OPTIM.NAME", "sgd"], "OPTIM.NAME is 'sgd'; 'adam' is expected"),
        ("CBBT", ["OPTIM.LR_SCHEDULER", "single_step"], "OPTIM.LR_SCHEDULER is .* 'cosine'"),
        ("WhiteBox", ["OPTIM.LR_SCHEDULER", "multi_step"], "OPTIM.LR_SCHEDULER is .* 'cosine'"),
        ("CBBT", ["OPTIM.WARMUP_RECOUNT", "False"], "OPTIM.WARMUP_RECOUNT is False; True"),
        ("CBBT", ["OPTIM.WARMUP_TYPE", "linear"], "OPTIM.WARMUP_TYPE is 'linear'; 'constant'"),
    ],
)
def test_values_that_one_trainer_excludes(trainer, options, words):
    with ERROR(match=words):
        check_cfg(config(trainer, *options))


def test_a_fork_with_fewer_keys_and_one_that_is_blank():
    cfg = config()
    del cfg.TRAIN["COUNT_ITER"], cfg.TRAINER["DAELDG"], cfg.TRAINER["MCD"]
    cfg.TRAINER.MINE = type(cfg)({"OPTIONAL": None, "COUNT": -1})
    check_cfg(cfg)


# Keys without an effect


def test_keys_without_an_effect_are_told():
    for trainer, options in (
        ("ZIP", ["OPTIM.LR", "0.5", "TRAINER.CRAFT.DIM", "9", "TRAINER.ZIP.BETA", "0.5"]),
        ("ZIP", ["TRAINER.ZIP.SPACE", "context", "TRAINER.ZIP.RANK", "3"]),
        ("ZIP", ["TRAINER.ZIP.DIM", "9", "TRAINER.ZIP.STD", "0.3"]),
        ("CraFT", ["TRAINER.CRAFT.N_CTX", "16", "TRAINER.CRAFT.ID", "64"]),
        ("CraFT", ["TRAINER.CRAFT.HEAD", "False", "TRAINER.CRAFT.HEAD_LR", "0.1"]),
        ("CBBT", ["TRAINER.CBBT.ADAPTER_RATIO", "0.1"]),
        ("BPTVLM", ["TRAINER.BPTVLM.N_IMAGE", "0", "TRAINER.BPTVLM.DIM_IMAGE", "9"]),
        ("JOLT", ["TRAINER.JOLT.SPACE", "lowrank", "TRAINER.ZIP.ID", "64"]),
        ("WhiteBox", ["ORACLE.PREC", "fp16"]),
        ("ZeroshotOracle", ["ORACLE.MAX_QUERIES", "7"]),
    ):
        cfg, switches = config(trainer, *options), (".SPACE", ".HEAD", ".N_IMAGE")
        told = {key for key in options[::2] if not key.endswith(switches)}
        assert unread(cfg) == told, trainer


def test_keys_with_an_effect_are_not_told():
    for trainer, options in (
        ("ZIP", ["TRAINER.ZIP.RULE", "spsa-gc", "TRAINER.ZIP.BETA", "0.5"]),
        ("ZIP", ["TRAINER.ZIP.SPACE", "projection", "TRAINER.ZIP.STD", "0.3"]),
        ("ZIP", ["TRAINER.ZIP.N_CTX", "4"]),
        ("JOLT", ["TRAINER.JOLT.SPACE", "lowrank", "TRAINER.JOLT.ID", "64"]),
        ("CBBT", ["TRAINER.CBBT.ADAPTER", "True", "TRAINER.CBBT.ADAPTER_RATIO", "0.1"]),
        ("BPTVLM", ["TRAINER.BPTVLM.DIM_IMAGE", "9"]),
        ("CBBT", ["OPTIM.LR", "0.5", "ORACLE.MAX_QUERIES", "7"]),
        ("WhiteBox", ["OPTIM.LR", "0.5"]),
        ("ZeroshotOracle", ["ORACLE.PREC", "fp16", "TRAINER.ZEROSHOT.TEMPLATE", "{}"]),
    ):
        assert not unread(config(trainer, *options)), trainer


def test_nothing_is_told_of_a_trainer_that_is_not_ours():
    cfg = config("ZIP", "OPTIM.LR", "0.5", "TRAINER.CRAFT.DIM", "9")
    cfg.TRAINER.NAME = "CoOp"
    assert not unread(cfg)


@pytest.fixture
def variant(monkeypatch):
    """Registers a subclass of a trainer of ours for the time of a test."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
    return lambda parent, **content: register_trainer(type("Variant", (ours()[parent],), content))


def test_a_subclass_has_its_parents_node_or_one_of_its_own(variant):
    cfg = config("ZIP", "TRAINER.ZIP.RANK", "3")
    cfg.TRAINER.NAME = "Variant"
    assert node_of(variant("ZIP")) == "ZIP" and not unread(cfg)


def test_a_subclass_with_keys_of_its_own_has_its_own_node(variant):
    keys = {"RANK": Key(2, whole(1, 9), "another rank")}
    assert node_of(variant("ZeroshotOracle", keys=keys)) == "VARIANT"
    cfg = config("ZIP")
    assert cfg.TRAINER.VARIANT.RANK == 2 and "TEMPLATE" in cfg.TRAINER.ZEROSHOT
    cfg.TRAINER.VARIANT.RANK = 10
    with ERROR(match="^TRAINER.VARIANT.RANK is 10; a whole number from 1 to 9"):
        check_cfg(cfg)


# YAML files and options


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "given.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_value_is_refused(file, name):
    content = ""
    for depth, part in enumerate(name.split(".")):
        content += f"{'  ' * depth}{part}:\n"
    cfg = config()
    merge_files(cfg, [file(content)])
    with ERROR(match=f"^{name} is (None|not shown.*); .* expected"):
        check_cfg(cfg)


DAMAGED = {
    "empty": "",
    "comments alone": "# ORACLE:\n",
    "a list": "- ORACLE\n",
    "a word": "ORACLE",
    "two documents": "SEED: 1\n---\nSEED: 2\n",
    "cut off": "ORACLE: {PREC: fp1",
    "not UTF-8": b"ORACLE:\n  PREC: \xff\n",
    "binary": bytes(range(256)) * 20,
    "a key twice": "ORACLE:\n  TOP_K: 1\nSEED: 1\nORACLE:\n  PREC: fp16\n",
    "deep": "[" * 5000,
    "a Python object": "SEED: !!python/object/apply:os.getpid []\n",
    "a date that is none": "SEED: 2020-13-41\n",
    "a number that is none": "SEED: !!int one\n",
    "a number of 5,000 digits": "SEED: " + "1" * 5000,
    "a section with a value": "ORACLE: 3\n",
    "a key with a section": "SEED:\n  A: 1\n",
    "a section that is blank": "ORACLE:\n",
    "no such key": "ORACLE:\n  PRECISION: fp16\n",
    "a key that is a number": "7: 1\n",
    "a key that is blank": "? \n: 1\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_sentence_with_its_name(file, content):
    cfg, path = defaults(), file(content)
    with ERROR() as error:
        merge_files(cfg, [path])
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
    "options, words",
    [
        (["TRAINER.ZIP.RANKS", "3"], "no key 'TRAINER.ZIP.RANKS'.*Did you mean TRAINER.ZIP.RANK"),
        (["TRAINER.ZIP", "3"], "no key 'TRAINER.ZIP'.*Did you mean TRAINER.ZIP."),
        (["SEED.X", "3"], "no key 'SEED.X'"),
        (["", "3"], "no key ''"),
        (["SEED", "None"], "SEED is None"),
        (["TRAINER.ZIP.RANK", "many"], "RANK is 'many'; a whole number"),
        (["TRAINER.ZIP.RANK", "3.0"], "RANK is 3.0; a whole number"),
        (["TRAINER.ZIP.RANK", "True"], "RANK is True; a whole number"),
        (["TRAINER.ZIP.RANK", "1" * 5000], "RANK is '111"),
        (["TRAINER.ZIP.RANK", "[" * 5000], "RANK is '.*; a whole number"),
        (["TRAINER.ZIP.CTX_INIT", "7"], "CTX_INIT is 7; text"),
        (["USE_CUDA", "1"], "USE_CUDA is 1; a value such as True is expected"),
        (["OPTIM.LR", "nan"], "LR is 'nan'; a number above 0"),
        (["INPUT.SIZE", "32"], r"SIZE is 32; a value such as \(224, 224\) is expected"),
        (["OUTPUT_DIR", "7"], "OUTPUT_DIR is 7; text"),
        (["ORACLE.GRANTS", "('logits')"], "GRANTS is 'logits'; a tuple"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with ERROR(match=words) as error:
        check_cfg(config("ZIP", *options))
    assert "\n" not in str(error.value)


def test_values_become_the_types_of_their_defaults(file):
    cfg = defaults()
    content = "OPTIM:\n  LR: 1\nINPUT:\n  RRCROP_SCALE: (0.5, 1)\n  SIZE: [9, 9]\n"
    merge_files(cfg, ["", file(content)])
    given = {"TRAINER.CRAFT.BOUND": "0", "TRAINER.ZIP.A": "1e-3", "TEST.SPLIT": "val"}
    given |= {"TRAINER.ZEROSHOT.TEMPLATE": "{}", "TRAINER.ZIP.CTX_INIT": "'a photo'"}
    put(cfg, given, "the options")
    assert (cfg.TRAINER.ZEROSHOT.TEMPLATE, cfg.TRAINER.ZIP.CTX_INIT) == ("{}", "a photo")
    assert (cfg.OPTIM.LR, cfg.INPUT.SIZE, cfg.INPUT.RRCROP_SCALE) == (1.0, (9, 9), (0.5, 1))
    assert type(cfg.OPTIM.LR) is type(cfg.TRAINER.CRAFT.BOUND) is float
    assert (cfg.TRAINER.ZIP.A, cfg.TEST.SPLIT) == (0.001, "val")


# The command line

# beside the first bad value of each of a trainer's own keys
REFUSED = {
    "ZIP": [
        ("TEST.SPLIT", "foo"),
        ("TEST.FINAL_MODEL", "bestval"),
        ("MODEL.INIT_WEIGHTS", "weights.pth"),
        ("MODEL.BACKBONE.PRETRAINED", False),
        ("OPTIM.MAX_EPOCH", -1),
        ("DATALOADER.TEST.SAMPLER", "RandomClassSampler"),
        ("DATALOADER.K_TRANSFORMS", 2),
        ("DATALOADER.RETURN_IMG0", True),
        ("INPUT.NO_TRANSFORM", True),
        ("DATASET.NUM_SHOTS", 0),
        ("DATASET.SUBSAMPLE_CLASSES", "old"),
        ("DATASET.SOURCE_DOMAINS", "['a', 'DATASET.NUM_SHOTS', '3']"),
        ("TRAIN.PRINT_FREQ", 0),
        ("ORACLE.MAX_QUERIES", None),
        ("ORACLE.TOP_K", -1),
    ],
    "CraFT": [("TRAINER.CRAFT.CMA_OPTIONS", "['popsize', 3]")],
    "JOLT": [("TRAINER.JOLT.DAMPINGS", "()"), ("ORACLE.GRANTS", "('logits')")],
    "WhiteBox": [("OPTIM.LR", 0), ("OPTIM.STAGED_LR", True)],
    "ZeroshotOracle": [("TRAINER.ZEROSHOT.TEMPLATE", "{} {"), ("MODEL.HEAD.NAME", "mlp")],
}


@pytest.mark.parametrize("trainer", sorted(OURS))
def test_the_command_line_refuses_before_anything_is_loaded(
    data_root, tmp_path, capsys, monkeypatch, trainer
):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("open_clip.model.CLIP.__init__", load)
    node, keys = f"TRAINER.{node_of(OURS[trainer])}", OURS[trainer].keys
    own = [(f"{node}.{key}", examples(entry, False)[0]) for key, entry in keys.items()]
    for name, value in [*REFUSED.get(trainer, []), *own]:
        assert run(trainer, data_root, tmp_path / "out", name, value) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {name} is ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_line_refuses_files(data_root, tmp_path, capsys, file):
    flags = "--config-file", file("- ORACLE\n")
    assert run("ZIP", data_root, tmp_path / "out", flags=flags) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {flags[1]} is not YAML (it has no sections of keys"
    )


# The configuration beside a run


def test_the_settings_of_a_run_are_read_back_or_refused(file):
    cfg = config("ZIP", "DATASET.ROOT", "/nowhere")
    made, here = before_and_now(cfg, file(cfg.dump()))
    assert {name: made[name] for name in here} == here == counted(values_read(cfg))
    text = cfg.dump()
    cut = [text[: len(text) * part // 8] for part in range(8)]
    lacking = {**yaml.safe_load(text), "OPTIM": "adam"}
    for damaged in (*cut, text.encode().replace(b"ZIP", b"\xff"), "- a\n", yaml.dump(lacking)):
        path = file(damaged)
        with ERROR(match=f"^{path} "):
            before_and_now(cfg, path)
    assert not grew("ORACLE.MAX_QUERIES", "many", "3") and grew("ORACLE.MAX_QUERIES", "3", "0")
