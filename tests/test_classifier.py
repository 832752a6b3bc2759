"""ScoreClassifier and its commands: what is asked, what it costs, what is kept, what is refused."""

import csv
import json
import pickle
import re
import sys
from argparse import Namespace
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest
from dassl_blackbox import ScoreClassifier
from dassl_blackbox.answers import BadExamples, listed
from dassl_blackbox.commands import draw, main
from dassl_blackbox.datasets.generated import digits
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError, BudgetSpent
from PIL import Image
from served import KEY as SERVER_KEY
from served import serving
from services import at, tiny
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from support import REPO, trained

SMALL = {"texts": 60, "views": 1, "flip": False, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files: `train/<class>/`, three a class; `new/`, four a class."""
    root = tmp_path_factory.mktemp("digits")
    draw(Namespace(folder=root, shots=3))
    for path in (root / "new").iterdir():
        if int(path.stem[-2:]) > 4:
            path.unlink()
    return root


@pytest.fixture(scope="module")
def fitted(folder):
    return ScoreClassifier("tiny", **SMALL).fit(folder / "train")


def truth(folder):
    return [path.rsplit("/", 1)[-1].split("_")[0] for path in listed(folder / "new")]


def array(path):
    return np.asarray(Image.open(path))


def test_what_is_quoted_is_billed_and_nothing_is_asked_twice(folder):
    clf = ScoreClassifier("tiny", **SMALL)
    quoted = clf.quote(folder / "train")
    assert clf.fit(folder / "train").bill_ == quoted
    assert quoted == {"queries": 2 * (1 + 6), "pictures": 60, "calls": 2}
    assert clf.fit(folder / "train").bill_ == quoted
    more = clf.quote(folder / "new", purpose="predict")
    clf.predict(folder / "new")
    total = {name: quoted[name] + more[name] for name in quoted}
    assert more["pictures"] == 40 and clf.bill_ == total
    clf.predict(folder / "new", pool=True)
    assert clf.bill_ == total
    new = clf.quote([listed(folder / "new")[0]], ["ten"], purpose="add")
    clf.add([listed(folder / "new")[0]], ["ten"])
    # the new picture about all texts, those of before about the class names alone
    assert new["pictures"] == 62 and new["queries"] == 2 * (1 + 6) + 2
    assert clf.bill_ == {name: total[name] + new[name] for name in total}
    assert clf.classes_[-1] == "ten"


@contextmanager
def over_http(service, state, monkeypatch, kind, cache=""):
    """(ScoreClassifier over a server, with more arguments, and that server) of a wire format."""
    if kind == "ours":
        monkeypatch.setenv("BLACKBOX_KEY", SERVER_KEY)
        with serving(state) as server:
            yield partial(ScoreClassifier, server.url), server
        return
    server, about = service(kind), tiny().description
    words = at(server, api="hf" if kind == "hf" else "openai", PRICE=0.5, CACHE=str(cache))
    words += ["INPUT.SIZE", (32, 32), "INPUT.PIXEL_MEAN", list(about.mean)]
    words += ["INPUT.PIXEL_STD", list(about.std), "INPUT.INTERPOLATION", "bicubic"]
    yield partial(ScoreClassifier, "tiny", options=dict(zip(words[::2], words[1::2]))), server


@pytest.mark.parametrize("kind", ["modality", "hf", "ours"])
def test_the_same_lines_over_http(service, folder, tmp_path, monkeypatch, kind):
    """The quote is the bill of the service, and the answers are those in process."""
    local = ScoreClassifier("tiny", **SMALL).fit(folder / "train")
    state, cache = tmp_path / "state", tmp_path / "cache"
    with over_http(service, state, monkeypatch, kind, cache) as (made, server):
        clf = made(**SMALL)
        quoted = clf.quote(folder / "train")
        assert kind == "ours" or not server.requests
        assert clf.fit(folder / "train").bill_ == quoted
        more = clf.quote(folder / "new", purpose="predict")
        labels = clf.predict(folder / "new")
        assert clf.bill_ == {name: quoted[name] + more[name] for name in quoted}
        assert (labels == local.predict(folder / "new")).mean() > 0.9
        assert kind == "ours" or clf.bill_["money"] == 0.5 * clf.bill_["pictures"]
        again = made(**SMALL)
        known = again.quote(folder / "train")  # by ORACLE.CACHE
        assert again.fit(folder / "train").bill_ == known
        assert kind == "ours" or known["pictures"] == 0


@pytest.mark.parametrize("kind", ["modality", "hf", "ours", "tiny"])
def test_views_that_come_out_alike_are_quoted_as_they_are_billed(
    service, folder, tmp_path, monkeypatch, kind
):
    """Crops of a few pixels, one picture under two names, and classes whose texts are alike."""
    draw = np.random.default_rng(0)
    X = [draw.integers(0, 256, (2, 2 + n % 2, 3)).astype(np.uint8) for n in range(12)]
    X, y = [*X, X[0], np.repeat(X[2], 1, 0)], ["a_b", "a b", "c"] * 4 + ["a_b", "c"]
    names, more = {label: label for label in y}, [array(p) for p in listed(folder / "new")[:3]]
    made, server = partial(ScoreClassifier, "tiny"), None
    with ExitStack() as stack:
        if kind != "tiny":
            http = over_http(service, tmp_path / "state", monkeypatch, kind)
            made, server = stack.enter_context(http)
        clf = made(names, **SMALL | {"views": 4})
        quoted = clf.quote(X, y)
        assert clf.fit(X, y).bill_ == quoted
        for ask, given in (
            ("predict", ([*X, *more[:1]],)),
            ("add", (more, ["c", "a_b", "c"])),
            ("add", (more[:1], ["new"])),
            ("predict", (more,)),
        ):
            before, further = clf.bill_, clf.quote(*given, purpose=ask)
            getattr(clf, ask)(*given)
            assert clf.bill_ == {name: before[name] + further[name] for name in before}
        if kind in ("modality", "hf"):
            asked = clf.answers_.oracle.counts["training"]["image_queries"]
            assert server.pictures == clf.bill_["pictures"] < asked


def test_it_is_the_trainer_s_head(data_root, tmp_path):
    options = "TRAINER.SONAR.VIEWS", "1", "TRAINER.SONAR.TEXTS", "60", "ORACLE.MAX_QUERIES", "0"
    trainer = trained("SONAR", data_root, tmp_path, *options)
    dataset = trainer.dm.dataset
    clf = ScoreClassifier(
        "tiny", dataset.classnames, template=trainer.template, random_state=1, **SMALL
    )
    clf.fit([i.impath for i in dataset.train_x], [i.classname for i in dataset.train_x])
    assert clf.bill_["queries"] == trainer.oracle.counts["training"]["queries"]
    score = clf.score([i.impath for i in dataset.test], [i.classname for i in dataset.test])
    assert 100 * score == pytest.approx(trainer.calibrated.results["accuracy"])


def test_a_saved_head_needs_no_data(fitted, folder, tmp_path):
    path = tmp_path / "head.safetensors"
    clf = ScoreClassifier("tiny", **SMALL)
    (tmp_path / "train").symlink_to(folder / "train")
    clf.fit(tmp_path / "train").save(path)
    (tmp_path / "train").unlink()
    assert path.stat().st_size < 5_000_000 and b"pickle" not in path.read_bytes()
    again = ScoreClassifier.load(path, progress=False)
    assert again.bill_ == {"queries": 0, "pictures": 0, "calls": 0}
    probabilities = clf.predict_proba(folder / "new")
    assert np.allclose(again.predict_proba(folder / "new"), probabilities, atol=1e-5)
    new = listed(folder / "new")
    again.add([new[0], new[1]], ["ten", "ten"])
    ten = again.predict_proba(new)[:, -1]
    assert ten[:2].min() > ten[2:].mean()
    assert (again.predict(new[2:]) == fitted.predict(new[2:])).mean() > 0.8


def test_another_model_or_file_is_refused(fitted, folder, tmp_path):
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    other = ScoreClassifier.load(path, model="photo")
    with pytest.raises(BlackBoxError, match=r"another model than photo, .* fit a new head"):
        other.predict(folder / "new")
    for content in (b"", path.read_bytes()[:200], b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(BlackBoxError, match=r"head.safetensors is no head that was saved"):
            ScoreClassifier.load(path)


def test_a_budget_is_kept_and_nothing_is_lost(folder):
    clf = ScoreClassifier("tiny", max_pictures=90, **SMALL).fit(folder / "train")
    spent, labels = clf.bill_, clf.predict(listed(folder / "new")[:5])
    with pytest.raises(BudgetSpent, match="35 pictures are needed, and 25 of max_pictures 90"):
        clf.predict(folder / "new")
    with pytest.raises(BudgetSpent, match="Nothing was sent"):
        clf.add(listed(folder / "new")[5:], truth(folder)[5:])
    assert clf.bill_["pictures"] == spent["pictures"] + 5
    assert (clf.predict(listed(folder / "new")[:5]) == labels).all()


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        ("train/four", None, "should hold a folder for each class"),
        (".", None, "lies in a folder within one"),
        ("nowhere", ["a"], "neither a picture nor a folder"),
        (["train/four/four_01.png"], ["four"], "one class alone, four"),
        (["train/four/four_01.png"] * 2, [0.5, 1.7], "Unknown label type"),
        (["gone.png", "gone.png"], ["a", "b"], "gone.png cannot be decoded"),
        ([np.zeros((4, 4), np.float32)] * 2, ["a", "b"], "Picture 0 is of float32, (4, 4)"),
        ([], [], "There is no label"),
        (["train/four/four_01.png"], ["a", "b"], "inconsistent numbers of samples"),
    ],
)
def test_what_nothing_can_be_learnt_from(folder, monkeypatch, X, y, words):
    monkeypatch.chdir(folder)
    clf = ScoreClassifier("tiny", **SMALL)
    with pytest.raises((BlackBoxError, ValueError), match=re.escape(words)):
        clf.fit(X, y)
    assert not any(clf.bill_.values())


def test_labels_outside_the_classes_names_and_no_pictures(folder, fitted):
    with pytest.raises(BadExamples, match="The label 'eight' is none of the classes one, two"):
        ScoreClassifier("tiny", ["one", "two"]).fit(folder / "train")
    with pytest.raises(BadExamples, match="have one name"):
        ScoreClassifier("tiny", {0: "one", 1: "one"}).fit([], [])
    with pytest.raises(BadExamples, match="There are no pictures"):
        fitted.predict([])
    names = {number: name for number, name in enumerate(["zero", "one", "two"])}
    clf = ScoreClassifier("tiny", names, **SMALL).fit([], [])
    assert clf.quote(folder / "new", purpose="predict")["queries"] == 1
    assert set(clf.predict(folder / "new")) <= {0, 1, 2}
    # a class without pictures is known by its name
    some = [path for path in listed(folder / "train") if "two" not in path]
    clf = ScoreClassifier("tiny", ["zero", "one", "two"], **SMALL)
    some = [path for path in some if "zero" in path or "one" in path]
    clf.fit(some, ["zero" if "zero" in path else "one" for path in some])
    assert clf.predict_proba(folder / "new").shape == (40, 3)


def test_pictures_that_show_no_class():
    known, train, rest = ("zero", "one", "two", "three", "four"), [], []
    for part, _, name, picture in digits():
        (train if part == "train" and name in known else rest).append((picture, name))
    X, y = zip(*train[::4])
    clf = ScoreClassifier("tiny", unknown="?", **SMALL).fit(X, y)
    X, y = zip(*rest[-400::4])
    strange = clf.predict(X) == "?"
    shown = np.isin(y, known)
    assert strange[~shown].mean() > 2 * strange[shown].mean() and strange[shown].mean() < 0.15
    with pytest.raises(BadExamples, match="one class needs two pictures"):
        ScoreClassifier("tiny", unknown="?", **SMALL).fit(X[:2], ["a", "b"])


def test_pictures_that_are_pooled_are_as_sure_as_single_ones(fitted, folder):
    single = fitted.predict_proba(folder / "new")
    pooled = fitted.predict_proba(folder / "new", pool=True)
    assert np.allclose(pooled.sum(1), 1) and not np.allclose(pooled, single, atol=0.05)
    assert pooled.max(1).mean() == pytest.approx(single.max(1).mean(), abs=0.01)


def test_suggestions_differ_and_cost_nothing_afterwards(fitted, folder):
    clf = pickle.loads(pickle.dumps(fitted))
    pool = listed(folder / "new")
    first = clf.suggest(pool, 5)
    spent = clf.bill_
    assert len(set(first)) == 5 and clf.suggest(pool, 5) == first
    clf.predict(pool)
    assert clf.bill_ == spent
    clf.add([pool[i] for i in first], [truth(folder)[i] for i in first])
    assert clf.bill_["pictures"] == spent["pictures"] + 5  # their augmented views
    assert len(clf.suggest(pool, 99)) == 40 and clf.bill_["pictures"] == spent["pictures"] + 5


def test_it_is_one_of_scikit_learn_s(folder):
    paths = listed(folder / "train")
    X = np.array(paths, dtype=object)
    y = np.array([path.split("/")[-2] for path in paths])
    clf = ScoreClassifier("tiny", **SMALL | {"views": 0})
    assert clone(clf).get_params() == clf.get_params()
    assert cross_val_score(clf, X, y, cv=3).mean() > 0.5
    pipeline = make_pipeline(FunctionTransformer(lambda X: [array(path) for path in X]), clf)
    assert pipeline.fit(X, y).score(X, y) > 0.8


class OfTables(ScoreClassifier):
    """The rows of a table as pictures, with a bar for each number."""

    def __init__(
        self, model="tiny", classes=None, *, texts=20, views=0, progress=False, random_state=0
    ):
        super().__init__(
            model, classes, texts=texts, views=views, progress=progress, random_state=random_state
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = True, False
        return tags

    def drawn(self, X, reset=False):
        X = validate_data(self, X, reset=reset, dtype=np.float64)
        levels = np.clip(128 + 32 * X, 0, 255).astype(np.uint8)
        return [np.asarray(Image.fromarray(row[None]).resize((32, 32), 0)) for row in levels]

    def fit(self, X, y=None):
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        return super().fit(self.drawn(X, reset=True), column_or_1d(y, warn=True))

    def predict_proba(self, X, pool=False):
        check_is_fitted(self)
        return super().predict_proba(self.drawn(X), pool)

    def predict(self, X, pool=False):
        check_is_fitted(self)
        return super().predict(self.drawn(X), pool)


CANNOT = {
    "check_methods_subset_invariance": "an image tower's last bits depend on the batch",
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_s_own_checks():
    found = check_estimator(OfTables(), expected_failed_checks=CANNOT, on_skip=None)
    assert sum(check["status"] == "passed" for check in found) >= 53


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["dassl-blackbox", *map(str, words)])
    capsys.readouterr()
    return main(), capsys.readouterr()


def test_two_commands_label_a_folder(folder, tmp_path, monkeypatch, capsys):
    head, page = tmp_path / "head.safetensors", tmp_path / "page.html"
    options = "--model", "tiny", "--texts", 60, "--views", 1, "--no-flip"
    (tmp_path / "new").symlink_to(folder / "new")
    status, quoted = command(monkeypatch, capsys, "quote", folder / "train", *options)
    assert status == 0 and quoted.out == "14 queries, 60 pictures, 2 calls\n"
    status, said = command(
        monkeypatch, capsys, "fit", folder / "train", *options, "--out", head, "ORACLE.PREC", "fp32"
    )
    assert status == 0 and "30 pictures of 10 classes" in said.out and quoted.out in said.out
    status, said = command(monkeypatch, capsys, "predict", head, tmp_path / "new", "--html", page)
    rows = list(csv.DictReader(said.out.splitlines()))
    assert [row["path"] for row in rows] == listed(tmp_path / "new") and status == 0
    assert np.mean([row["label"] == name for row, name in zip(rows, truth(folder))]) > 0.6
    assert page.read_text().count("<img") == 40
    status, said = command(
        monkeypatch, capsys, "predict", head, tmp_path / "new", "--format", "jsonl", "--pool"
    )
    assert len([json.loads(line) for line in said.out.splitlines()]) == 40


def test_a_broken_picture_is_named_or_left_out(folder, fitted, tmp_path, monkeypatch, capsys):
    fitted.save(tmp_path / "head.safetensors")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "broken.png").write_bytes(b"nothing")
    (pictures / "sound.png").write_bytes((folder / "new" / "two_01.png").read_bytes())
    words = "predict", tmp_path / "head.safetensors", pictures
    status, said = command(monkeypatch, capsys, *words)
    assert status == 1 and "broken.png cannot be decoded" in said.err and not said.out
    status, said = command(monkeypatch, capsys, *words, "--skip-broken")
    assert status == 0 and "left out" in said.err and said.out.count("\n") == 2


@pytest.mark.parametrize("name", ["ZIP", "SONAR", "TipAdapterF", "ZeroshotOracle"])
def test_a_run_labels_pictures_without_its_data_set(data_root, tmp_path, monkeypatch, capsys, name):
    trainer = trained(name, data_root, tmp_path / "run")
    tested = [item.impath for item in trainer.dm.dataset.test]
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.DATASET.ROOT = str(tmp_path / "gone")
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    (tmp_path / "test").mkdir()
    for number, path in enumerate(tested):
        (tmp_path / "test" / f"{number:04}.png").symlink_to(path)
    if name != "ZeroshotOracle":  # the checkpoint alone is read
        (tmp_path / "run" / "metrics.json").write_text("{")
    status, said = command(monkeypatch, capsys, "predict", tmp_path / "run", tmp_path / "test")
    rows = list(csv.DictReader(said.out.splitlines()))
    right = [row["label"] == i.classname for row, i in zip(rows, trainer.dm.dataset.test)]
    found = trainer.calibrated.results["accuracy"]
    assert status == 0 and 100 * np.mean(right) == pytest.approx(found)
    assert not (tmp_path / "gone").exists()


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    draw(Namespace(folder=tmp_path / "digits", shots=4))
    monkeypatch.chdir(tmp_path)
    text, names = (REPO / "docs" / "USE.md").read_text(encoding="utf-8"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert names["clf"].classes_[-1] == "ten" and names["probabilities"].shape == (200, 11)
