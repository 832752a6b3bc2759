"""What is installed: every package and its files, the version, the configurations."""

import runpy

import dassl_blackbox
import pytest
import setuptools
from dassl_blackbox.configs import __main__ as configs
from dassl_blackbox.trainers.blackbox.config import BACKBONES, defaults, leaves, merge_files
from support import REPO


def test_every_folder_with_python_files_is_a_package_and_other_files_are_declared(monkeypatch):
    monkeypatch.chdir(REPO)
    declared = {}
    monkeypatch.setattr(setuptools, "setup", declared.update)
    runpy.run_path(str(REPO / "setup.py"))
    folders = "trainers", "datasets", "configs", "compat", "dassl_blackbox"
    found = {
        path.parent.relative_to(REPO) for top in folders for path in (REPO / top).rglob("*.py")
    }
    names = {".".join(folder.parts) for folder in found}
    ours = {f"dassl_blackbox.{name}".replace("x.dassl_blackbox", "x") for name in names}
    assert ours | {"dassl_blackbox.compat"} == {*declared["packages"]}
    for package, suffixes in (("configs", "yaml"), ("trainers.blackbox", "json safetensors")):
        folder, rules = REPO / package.replace(".", "/"), declared["package_data"]
        kept = {path for rule in rules[f"dassl_blackbox.{package}"] for path in folder.glob(rule)}
        assert kept == {path for end in suffixes.split() for path in folder.rglob(f"*.{end}")}


def test_the_version_is_in_the_change_log():
    assert dassl_blackbox.__version__ in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_page_of_keys_is_what_is_printed(call):
    page = (REPO / "docs" / "KEYS.md").read_text(encoding="utf-8")
    assert call(configs.main, "--keys") == (0, page, ""), "print it anew"


def test_the_configurations_are_copied_once(tmp_path, call):
    files = [path.relative_to(REPO / "configs") for path in REPO.glob("configs/**/*.yaml")]
    status, out, _ = call(configs.main, tmp_path / "mine")
    assert status == 0 and out == f"{tmp_path}/mine: {len(files)} configurations\n"
    for path in files:
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
