"""What is installed: every package and its files, the version, the configurations."""

import runpy

import dassl_blackbox
import pytest
import setuptools
from dassl_blackbox.configs import __main__ as configs
from dassl_blackbox.trainers.blackbox.config import BACKBONES, defaults, leaves, merge_files
from support import REPO

CONFIGS = sorted(path.relative_to(REPO / "configs") for path in REPO.glob("configs/**/*.yaml"))


@pytest.fixture(scope="module")
def declared():
    """The arguments of `setup()`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPO)
        given = {}
        patch.setattr(setuptools, "setup", given.update)
        runpy.run_path(str(REPO / "setup.py"))
    return given


def test_every_folder_with_python_files_is_a_package(declared):
    found = {path.parent.relative_to(REPO) for path in REPO.glob("dassl_blackbox/**/*.py")}
    for folder in ("trainers", "datasets", "configs", "compat"):
        found |= {path.parent.relative_to(REPO) for path in (REPO / folder).rglob("*.py")}
    names = {".".join(folder.parts) for folder in found}
    ours = {
        name if name.split(".")[0] == "dassl_blackbox" else f"dassl_blackbox.{name}"
        for name in names
    }
    assert ours | {"dassl_blackbox.compat"} == set(declared["packages"])


@pytest.mark.parametrize(
    "package, folder, suffixes",
    [
        ("dassl_blackbox.configs", "configs", {".yaml"}),
        ("dassl_blackbox.trainers.blackbox", "trainers/blackbox", {".json", ".safetensors"}),
    ],
)
def test_files_that_are_no_python_are_declared(declared, package, folder, suffixes):
    kept = {
        path for rule in declared["package_data"][package] for path in (REPO / folder).glob(rule)
    }
    assert kept == {path for path in (REPO / folder).rglob("*") if path.suffix in suffixes}


def test_the_version_is_that_of_the_change_log():
    log = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    assert dassl_blackbox.__version__ in log


def test_the_page_of_keys_is_what_is_printed(call):
    page = (REPO / "docs" / "KEYS.md").read_text(encoding="utf-8")
    assert call(configs.main, "--keys") == (0, page, ""), "print it anew"


def test_the_configurations_are_copied_once(tmp_path, call):
    status, out, _ = call(configs.main, tmp_path / "mine")
    assert status == 0 and out == f"{tmp_path}/mine: {len(CONFIGS)} configurations\n"
    for path in CONFIGS:
        assert (tmp_path / "mine" / path).read_bytes() == (REPO / "configs" / path).read_bytes()
    status, _, err = call(configs.main, tmp_path / "mine")
    assert status == 1 and "exist already. Choose another folder." in err


@pytest.mark.parametrize("name, backbone", BACKBONES.items())
@pytest.mark.parametrize("trainer", [path.name for path in REPO.glob("configs/trainers/*")])
def test_a_file_of_another_backbone_is_that_of_vit_b16_with_its_name(trainer, name, backbone):
    made = []
    for file in (f"{name}.yaml", "vit_b16.yaml"):
        cfg = defaults()
        merge_files(cfg, [str(REPO / "configs" / "trainers" / trainer / file)])
        made.append(leaves(cfg))
    assert made[0] == made[1] | {"MODEL.BACKBONE.NAME": backbone} != made[1]
