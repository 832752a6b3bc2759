"""Runs over services of other people's: embeddings in OpenAI's format, Hugging Face's scores, a
class of one's own. What came back equals the local model, and is asked for once.
"""

import pickle
import sqlite3
import time

import pytest
import torch
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle.http import Http, Refused
from dassl_blackbox.trainers.blackbox.oracle.interface import AccessDenied
from dassl_blackbox.trainers.blackbox.oracle.services import build_service
from dassl_blackbox.trainers.blackbox.oracle.services.answers import Answers
from dassl_blackbox.trainers.blackbox.oracle.services.disk import Disk
from dassl_blackbox.trainers.blackbox.oracle.services.pictures import to_8bit
from dassl_blackbox.trainers.blackbox.oracle.texts import Texts
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError
from services import KEY, openai, tiny, zero_shot
from support import accuracy, bill, build, defaults, difference, run, test_logits, trained

SPELLINGS = "modality", "items", "data_uri"
NAMES = ["zero", "one_two", "three"]
SCALE = tiny().description.logit_scale
SHORT = {  # what a method of features takes long for
    "CLAP": ("TRAINER.CLAP.VIEWS", "1"),
    "GDA": ("TRAINER.GDA.VIEWS", "1"),
    "LFA": ("TRAINER.LFA.VIEWS", "1"),
    "RLA": ("TRAINER.RLA.VIEWS", "1"),
    "SONAR": ("TRAINER.SONAR.VIEWS", "1"),
    "TipAdapterF": ("TRAINER.TIPADAPTERF.VIEWS", "1"),
}
# of heads that make more of the last bits of features: so much comes of noise of 3e-8 as well
APART = {"LFA": 0.2, "SONAR": 1e-2}
LOCAL = ("ORACLE.GRANTS", "('logits', 'features')")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BLACKBOX_KEY", KEY)


@pytest.fixture
def service():
    """Makes servers, and closes them."""
    made = []

    def start(kind="modality", **options):
        made.append(zero_shot(SCALE) if kind == "hf" else openai(kind, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


def at(server, cache="", api="openai", **more):
    """Options of a run over a server."""
    given = {"URL": server.url, "API": api, "CACHE": cache, "LOGIT_SCALE": SCALE, "PATIENCE": 5.0}
    given |= more
    oracle = [part for key, value in given.items() for part in (f"ORACLE.{key}", str(value))]
    return [*oracle, "INPUT.SIZE", "(32, 32)", "INPUT.INTERPOLATION", "bicubic"]


def oracle_at(server, classes=NAMES, **more):
    """An oracle with classes, its pictures normalised as the model's are."""
    cfg, about = defaults(), tiny().description
    cfg.merge_from_list([*at(server, **more), "MODEL.BACKBONE.NAME", "tiny"])
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(about.mean), list(about.std)
    line = Http(cfg.ORACLE.URL, cfg.ORACLE.TIMEOUT, cfg.ORACLE.PATIENCE)
    oracle = build_service(cfg, line, "cpu", "a test")
    oracle.set_classes(classes, "a photo of a {}.")
    return oracle


def local_logits(pixels, texts):
    model = tiny()
    with torch.no_grad():
        image = model.model.encode_image(pixels)
        text = model.model.encode_text(model.tokenizer(texts))
    return SCALE * torch.cosine_similarity(image[:, None], text[None], dim=-1)


TEXTS = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
MORE = Texts.of(["cat", "a_dog"], "an image of {}")


# ---------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_answers_are_the_local_models(service, digits, spelling):
    server = service(spelling, scale=3.0)
    oracle = oracle_at(server, IMAGES=spelling, BATCH=25)
    images = oracle.upload(digits)
    expected = local_logits(digits, [*TEXTS, "an image of cat", "an image of a dog"])
    assert difference(oracle.query(images, Prompt(texts=MORE))[0], expected) < 1e-5
    assert difference(oracle.query(images, Prompt())[0], expected[:, :3]) < 1e-5
    assert oracle.description.embed_dim == 128
    feature = oracle.image_features(images)
    assert torch.allclose(feature.norm(dim=-1), torch.ones(60))
    text = oracle.text_features(Prompt())
    assert text.shape == (1, 3, 128)
    assert difference(SCALE * feature @ text[0].mT, expected[:, :3]) < 1e-5
    distinct = len(set(images.ids))
    assert [len(body["input"]) for body in server.requests[2:5]] == [25, 25, distinct - 50]
    assert oracle.usage() == {
        "calls": 5,
        "pictures": distinct,
        "texts": 6,
        "pictures_cached": 60 - distinct + 2 * 60,
        "texts_cached": 3,  # and those of the last question are at hand
    }
    assert server.pictures == distinct and server.texts == 6


def test_changed_pictures_are_asked_about_each_time(service, digits, tmp_path):
    server = service()
    oracle = oracle_at(server, cache=tmp_path)
    changed = torch.stack([digits[:5], digits[5:10]])
    expected = local_logits(digits[:10], TEXTS).unflatten(0, (2, 5))
    for _ in range(2):
        answer = oracle.query(oracle.upload(digits[:5]), Prompt(pictures=changed))
        assert difference(answer, expected) < 1e-5
    assert server.pictures == 20


def test_pictures_out_of_files_are_8_bits_again(digits):
    about = tiny().description
    pictures = to_8bit(digits, about)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (about.mean, about.std))
    assert torch.equal(pictures.float().div(255).sub(mean).div(std), digits)
    with pytest.raises(BlackBoxError, match="not finite"):
        to_8bit(digits * float("nan"), about)


@pytest.mark.parametrize("name", SHORT)
def test_methods_of_features_and_scores_run(service, data_root, tmp_path, name):
    server = service()
    here = trained(name, data_root, tmp_path / "here", *LOCAL, *SHORT[name])
    over = trained(name, data_root, tmp_path / "over", *at(server), *SHORT[name])
    assert difference(test_logits(over), test_logits(here)) < APART.get(name, 1e-4)
    assert bill(tmp_path / "here")["training"] == bill(tmp_path / "over")["training"]
    assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize("name", ["ZeroshotOracle", "SONAR", "GDA"])
def test_runs_have_the_local_accuracy(service, data_root, tmp_path, capsys, name):
    found = []
    for options in (LOCAL, at(service())):
        out = tmp_path / str(len(found))
        assert run(name, data_root, out, *options, *SHORT.get(name, ())) == 0
        found.append(accuracy(capsys.readouterr().out))
    assert found[0] == found[1]


def test_a_second_method_sends_no_picture(service, data_root, tmp_path):
    server, cache = service(), tmp_path / "cache"
    options = [*at(server, cache), "TRAINER.SONAR.VIEWS", "1", "TRAINER.SONAR.PROBES", "0"]
    assert run("SONAR", data_root, tmp_path / "a", *options) == 0
    assert server.pictures > 100
    before = server.pictures, server.texts
    assert run("GDA", data_root, tmp_path / "b", *at(server, cache), *SHORT["GDA"]) == 0
    assert (server.pictures, server.texts) == (before[0], before[1] + 1)


@pytest.mark.parametrize("api", ["openai", "hf"])
def test_blackvip_changes_pictures_over_a_service(service, data_root, tmp_path, api):
    server = service("hf" if api == "hf" else "modality")
    options = [*at(server, api=api), "OPTIM.MAX_EPOCH", "1", "ORACLE.MAX_QUERIES", "4"]
    options += ["DATASET.NUM_SHOTS", "1", "TEST.NO_TEST", "True"]
    assert run("BlackVIP", data_root, tmp_path, *options) == 0
    assert server.pictures == bill(tmp_path)["training"]["image_queries"] > 0


@pytest.mark.parametrize("name", ["BPTVLM", "CBBT", "CraFT", "JOLT", "ZIP"])
def test_soft_prompts_are_refused(service, data_root, tmp_path, name):
    server = service()
    with pytest.raises(AccessDenied, match="contexts.*SONAR"):
        build(name, data_root, tmp_path, *at(server))
    assert server.pictures == 0


# ---------------------------------------------------------------------- scores


def test_scores_are_logits_up_to_a_number_an_image(service, digits):
    server = service("hf")
    oracle = oracle_at(server, api="hf")
    twice = Texts.of(["cat", "cat", "a_dog"], "an image of {}")
    images = oracle.upload(digits[:6])
    answer = oracle.query(images, Prompt(texts=twice))[0]
    further = ["an image of cat", "an image of cat", "an image of a dog"]
    apart = answer - local_logits(digits[:6], TEXTS + further)
    assert (apart - apart.mean(-1, keepdim=True)).abs().max() < 1e-4
    assert server.texts == 6 * 5 and server.pictures == 6  # a text that is there twice is sent once
    oracle.query(images, Prompt(texts=twice))
    assert oracle.usage()["pictures"] == 6 and oracle.usage()["pictures_cached"] == 6


def test_a_probability_that_underflows_counts_as_the_smallest(service, digits):
    server = service("hf")
    oracle = oracle_at(server, api="hf")
    labels = [{"label": text, "score": score} for text, score in zip(TEXTS, (1.0, 0.0, 1e-300))]
    server.faults = [(200, {}, labels)]
    answer = oracle.query(oracle.upload(digits[:1]), Prompt())[0, 0]
    assert torch.allclose(answer, torch.tensor([0.0, -87.3365, -87.3365]))


def test_two_classes_of_one_text_are_refused_before_anything_is_sent(service, data_root, tmp_path):
    server = service("hf")
    with pytest.raises(BlackBoxError, match="2 classes have the same text, 'a photo of a b a.'"):
        oracle_at(server, ["b_a", "c", "b a"], api="hf")
    assert not server.requests


def test_sonar_over_scores_has_the_local_accuracy(service, data_root, tmp_path, capsys):
    found = []
    for options in (LOCAL, at(service("hf"), api="hf")):
        out = tmp_path / str(len(found))
        assert run("SONAR", data_root, out, *options, *SHORT["SONAR"]) == 0
        found.append(accuracy(capsys.readouterr().out))
    assert found[0] == found[1]


def test_features_are_no_score_services_to_give(service, data_root, tmp_path):
    with pytest.raises(AccessDenied, match="GDA asked for 'features'"):
        build("GDA", data_root, tmp_path, *at(service("hf"), api="hf"))


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "status, content, words",
    [
        (401, {"detail": "Unauthorized"}, "401: Unauthorized.*BLACKBOX_KEY"),
        (402, {"detail": "Insufficient balance"}, "a budget is spent: Insufficient balance"),
        (404, {"detail": "Not Found"}, "embeddings is not there.*ORACLE.URL"),
        (413, b"<html>too large</html>", "413: .*ORACLE.BATCH"),
        (400, {"error": {"message": "bad", "type": "t", "param": None, "code": 400}}, "400: bad"),
    ],
)
def test_what_no_repetition_cures_is_a_sentence(service, digits, status, content, words):
    server = service()
    oracle = oracle_at(server)
    server.always = status, {}, content
    with pytest.raises(Refused, match=words) as raised:
        oracle.query(oracle.upload(digits), Prompt())
    assert len(server.requests) == 2 and "\n" not in str(raised.value)


def test_a_request_with_too_many_pictures_is_a_sentence_of_a_line(service, digits):
    oracle = oracle_at(service(), BATCH=40)
    with pytest.raises(Refused, match="422: .*at most 32 items.*ORACLE.BATCH") as raised:
        oracle.query(oracle.upload(digits), Prompt())
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)


def test_a_busy_service_is_waited_for_as_long_as_it_says(service, digits):
    server = service()
    oracle = oracle_at(server)
    server.faults = [(429, {"Retry-After": "1"}, {"error": {"message": "overloaded"}})]
    start = time.monotonic()
    oracle.query(oracle.upload(digits), Prompt())
    assert time.monotonic() - start > 1
    assert oracle.usage()["texts"] == 4 == server.texts


DAMAGED = {
    "garbage": b"\x00\xff<html>",
    "cut": b'{"object": "list", "data": [{"embed',
    "none": {"data": []},
    "no index": {"data": [{"embedding": [1.0, 2.0]}] * 3},
    "one twice": {"data": [{"index": 0, "embedding": [1.0, 2.0]}] * 3},
    "of words": {"data": [{"index": i, "embedding": ["a", "b"]} for i in range(3)]},
    "no base64": {"data": [{"index": i, "embedding": "%%%%"} for i in range(3)]},
    "cut base64": {"data": [{"index": i, "embedding": "AAAAAAA="} for i in range(3)]},
    "not finite": b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}, '
    b'{"index": 2, "embedding": [1]}]}',
    "ragged": {"data": [{"index": i, "embedding": [1.0] * (i + 1)} for i in range(3)]},
    "a list": [1, 2],
    "too large a number": b'{"data": [{"index": 0, "embedding": [1e999]}, {"index": 1, "embedding":'
    b' [1]}, {"index": 2, "embedding": [1]}]}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_answer_is_asked_for_again(service, digits, content):
    server = service()
    oracle = oracle_at(server)
    server.faults = [(200, {}, content)]
    answer = oracle.query(oracle.upload(digits), Prompt())[0]
    assert difference(answer, local_logits(digits, TEXTS)) < 1e-5


def test_an_answer_that_stops_half_way_is_asked_for_again(service, digits):
    server = service()
    oracle = oracle_at(server)
    server.faults = [(200, {"Content-Length": "1000"}, b'{"data": [')]
    assert oracle.query(oracle.upload(digits), Prompt()).shape == (1, 60, 3)


def test_answers_that_stay_damaged_are_not_bought_for_ever(service, digits):
    server = service("hf")
    oracle = oracle_at(server, api="hf", PATIENCE=60.0)
    server.always = 200, {}, [{"label": "another", "score": 0.5}]
    with pytest.raises(BlackBoxError, match="answers, but not as expected.*ORACLE.API"):
        oracle.query(oracle.upload(digits), Prompt())
    assert len(server.requests) == 5


def test_a_space_of_pictures_alone_is_a_sentence(service, digits):
    server = service()
    oracle = oracle_at(server)
    rows = [{"index": i, "embedding": [1.0] * 64} for i in range(3)]
    server.faults = [(200, {}, {"data": rows})]
    with pytest.raises(BlackBoxError, match=r"\[3, 64\] of 3 texts, where \[3, 128\] is expected"):
        oracle.query(oracle.upload(digits), Prompt())


def test_a_spent_budget_ends_a_run_with_a_sentence(service, data_root, tmp_path, capsys):
    server = service()
    server.always = 402, {}, {"error": {"message": "You exceeded your current quota"}}
    assert run("SONAR", data_root, tmp_path, *at(server)) == 1
    assert "exceeded your current quota" in capsys.readouterr().err


def test_no_key_is_written_anywhere(service, data_root, tmp_path, capsys):
    server = service()
    options = at(server, tmp_path / "cache")
    assert run("ZeroshotOracle", data_root, tmp_path / "a", *options) == 0
    server.always = 401, {}, {"detail": "Unauthorized"}
    assert run("ZeroshotOracle", data_root, tmp_path / "b", *options) == 1
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(KEY.encode() in path.read_bytes() for path in written)


# ---------------------------------------------------------------------- what is kept


def asked(server, digits, cache, **more):
    """Pictures that a new oracle sends."""
    before, oracle = server.pictures, oracle_at(server, cache=cache, **more)
    answer = oracle.query(oracle.upload(digits), Prompt())[0]
    assert difference(answer, local_logits(digits, TEXTS)) < 1e-5
    return server.pictures - before


def test_answers_outlive_the_process_by_what_they_are_about(service, digits, tmp_path):
    server = service()
    first = asked(server, digits[:20], tmp_path)
    assert first > 10 and asked(server, digits[:20], tmp_path) == 0
    assert asked(server, digits[:20], tmp_path, LOGIT_SCALE=SCALE) == 0
    assert asked(server, digits[:20], "") == first
    scores = service("hf")
    assert asked_scores(scores, digits[:20], tmp_path) == first
    assert asked_scores(scores, digits[:20], tmp_path) == 0


def asked_scores(server, digits, cache):
    before, oracle = server.pictures, oracle_at(server, cache=cache, api="hf")
    oracle.query(oracle.upload(digits), Prompt())
    return server.pictures - before


@pytest.mark.parametrize("what", ["a file", "a database of noise", "no package"])
def test_a_folder_that_cannot_be_used_is_passed_over(
    service, digits, tmp_path, capsys, monkeypatch, what
):
    folder = tmp_path / "cache"
    if what == "a file":
        folder.write_text("x")
    elif what == "a database of noise":
        (folder / "answers").mkdir(parents=True)
        (folder / "answers" / "cache.db").write_bytes(b"noise" * 5000)
    else:
        monkeypatch.setitem(__import__("sys").modules, "diskcache", None)
    assert asked(service(), digits[:3], folder) > 0
    assert f"Note: answers are not kept in ORACLE.CACHE, {folder} (" in capsys.readouterr().out


def test_home_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    Disk("~/kept").put({"a": b"1234"})
    assert Disk(str(tmp_path / "kept")).get("a") == b"1234"


def test_what_is_damaged_on_disk_is_as_what_is_missing(tmp_path):
    disk, file = Disk(str(tmp_path)), tmp_path / "answers" / "cache.db"
    disk.put({name: name.encode() * 8 for name in ("a", "b", "c")})
    with sqlite3.connect(file) as database:
        database.execute("UPDATE Cache SET value = zeroblob(24) WHERE key = 'a'")
        loaded = sqlite3.Binary(pickle.dumps(Loaded(tmp_path / "loaded")))
        database.execute("UPDATE Cache SET value = ?, mode = 4 WHERE key = 'b'", (loaded,))
    fresh = Disk(str(tmp_path))
    assert [fresh.get(name) for name in "abcd"] == [None, None, b"c" * 8, None]
    assert not (tmp_path / "loaded").exists()


class Loaded:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.write_text, ("x",)


def test_another_model_behind_the_name_is_asked_anew(service, digits, tmp_path, capsys):
    server = service()
    assert asked(server, digits[:3], tmp_path) > 0
    noise = torch.randn(128).tolist()
    server.faults = [(200, {}, {"data": [{"index": 0, "embedding": noise}]})]
    assert asked(server, digits[:3], tmp_path) > 0
    assert "no longer answers about tiny as ORACLE.CACHE has it" in capsys.readouterr().out


def test_what_is_kept_in_a_process_is_bounded(monkeypatch):
    from dassl_blackbox.trainers.blackbox.oracle.services import answers as module

    monkeypatch.setattr(module, "LIMIT", 3 * (16 + module.ROW_BYTES))
    answers = Answers("", ["a model"])
    answers.keep("text", {str(i): torch.full((4,), float(i)) for i in range(5)})
    assert sorted(answers.known("text", map(str, range(5)), 4)) == ["2", "3", "4"]
    assert answers.known("image", "234", 4) == {} == answers.known("text", "234", 5)


# ---------------------------------------------------------------------- bills, own services


def test_what_a_run_comes_to_is_told_before_it(service):
    oracle = oracle_at(service(), PRICE=0.0001)
    assert oracle.quote(800, 40) == "about 27 calls, 800 pictures, 0.08 by ORACLE.PRICE"
    assert oracle_at(service("hf"), api="hf").quote(1, 9) == "about 1 call, 1 picture"


def test_the_bill_has_the_money(service, digits):
    oracle = oracle_at(service(), PRICE=0.5)
    oracle.query(oracle.upload(digits[:2]), Prompt())
    assert oracle.usage()["money"] == 1.0


OWN = """
import base64
import torch
from dassl_blackbox.trainers.blackbox.oracle.services import FeatureService

class Mine(FeatureService):
    def embed_texts(self, texts):
        return self.post("/embeddings", {"input": texts, "modality": "text"}, rows)
    def embed_images(self, pictures):
        coded = ["data:image/png;base64," + base64.b64encode(png).decode() for png in pictures]
        return self.post("/embeddings", {"input": coded, "modality": "image"}, rows)

def rows(body):
    return torch.tensor([entry["embedding"] for entry in body["data"][::-1]])
"""


def test_a_service_of_ones_own(service, data_root, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_service_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for options in ((), at(service(), api="my_service_of_a_test:Mine")):
        assert run("ZeroshotOracle", data_root, tmp_path / str(len(found)), *options) == 0
        found.append(accuracy(capsys.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "api, words",
    [
        ("no_such_module:Mine", "the class Mine of the module no_such_module is not found"),
        ("json:Mine", "the class Mine of the module json is not found"),
        ("json:JSONDecoder", "which is no subclass of FeatureService or ScoreService"),
    ],
)
def test_a_class_that_is_no_service_is_a_sentence(service, api, words):
    with pytest.raises(BlackBoxError, match=words):
        oracle_at(service(), api=api)


@pytest.mark.parametrize(
    "names, template, words",
    [
        ([], "{}", "There are no classes"),
        (["a", 3], "{}", "3 is not a text"),
        (["a", "\ud800"], "{}", "is not a text"),
        (["a", " _"], "{}", "has no words"),
        (["a"], "a photo", "has no slot"),
    ],
)
def test_names_that_cannot_be_sent_are_sentences(service, names, template, words):
    oracle = oracle_at(service())
    with pytest.raises(BlackBoxError, match=words):
        oracle.set_classes(names, template)
