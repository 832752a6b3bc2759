"""What is read and typed first: links and commands of the documents name what there is."""

import importlib.util
import re
import sys

import pytest
from dassl_blackbox.serve.__main__ import main as serve
from dassl_blackbox.trainers.blackbox.config import defaults, merge_files
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from support import REPO, sentence

DOCUMENTS = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")])
FILE = re.compile(r"(?<![\w/])(?:scripts|benchmarks|tools)/[\w/]+\.(?:py|sh)")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@documents
def test_commands_name_what_there_is(path):
    text = path.read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"^    .*$", text, re.M))
    for module in re.findall(r"python -m (dassl_blackbox[\w.]*)", commands):
        assert importlib.util.find_spec(module), module
    for file in FILE.findall(commands):
        assert (REPO / file).is_file(), file
    for trainer, dataset, cfg in re.findall(r"scripts/main\.sh (\w+) (\w+) (\w+)", commands):
        settings = f"datasets/{dataset}", f"trainers/{trainer}/{cfg}"
        merge_files(defaults(), [str(REPO / "configs" / f"{name}.yaml") for name in settings])
    assert not re.search(r"pip install ['\"]?dassl-blackbox", text), "no index has the package"


@documents
def test_links_lead_to_a_file_and_to_a_heading_that_it_has(path):
    for name, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), name
        if anchor:
            text = re.sub(r"^```.*?^```", "", target.read_text("utf-8"), flags=re.M | re.S)
            words = [
                re.sub(r"[^\w\- ]", "", head) for head in re.findall(r"^#+ +(.+)$", text, re.M)
            ]
            # as GitHub makes them
            assert anchor in [head.lower().strip().replace(" ", "-") for head in words], anchor


def test_a_missing_extra_is_installed_from_a_clone(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "httpx", None)
    for name in ("remote", "services"):  # which may have imported it
        name = f"dassl_blackbox.trainers.blackbox.oracle.{name}"
        monkeypatch.delitem(sys.modules, name, raising=False)
    url = "ORACLE.URL", "http://127.0.0.1:9"
    cure = "needs the package httpx. In a clone of dassl-blackbox: pip install -e '.[remote]'"
    assert cure in sentence(capsys, "SONAR", data_root, tmp_path, *url)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(BlackBoxError, match=r"package uvicorn. .* pip install -e '.\[serve\]'$"):
        serve(["--backbone", "tiny", "--port", "0"])
