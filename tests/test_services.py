"""Runs over services of other people's: embeddings in OpenAI's format, Hugging Face's scores.
What came back equals the local model, and is asked for once.
"""

import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.oracle import Prompt
from dassl_blackbox.trainers.blackbox.oracle.interface import AccessDenied
from dassl_blackbox.trainers.blackbox.oracle.prompt import Texts
from dassl_blackbox.trainers.blackbox.oracle.wire import to_8bit
from services import KEY, SCALE, TEXTS, at, local_logits, oracle_at, tiny
from support import accuracy, bill, build, difference, run, test_logits, trained

SPELLINGS = "modality", "items", "data_uri"
SHORT = {  # what a method of features takes long for
    "CLAP": ("TRAINER.CLAP.VIEWS", "1"),
    "GDA": ("TRAINER.GDA.VIEWS", "1"),
    "LFA": ("TRAINER.LFA.VIEWS", "1"),
    "RLA": ("TRAINER.RLA.VIEWS", "1"),
    "SONAR": ("TRAINER.SONAR.VIEWS", "1"),
    "TipAdapterF": ("TRAINER.TIPADAPTERF.VIEWS", "1"),
}
# of a head that makes more of the last bits of features: so much comes of noise of 3e-8 as well
APART = {"SONAR": 1e-2}
LOCAL = ("ORACLE.GRANTS", "('logits', 'features')")
MORE = Texts.of(["cat", "a_dog"], "an image of {}")


# Embeddings


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
    # the first picture comes twice: its answer must not depend on how its file is written
    assert [len(body["input"]) for body in server.requests[2:6]] == [25, 1, 25, distinct - 50]
    assert oracle.usage() == {
        "calls": 6,
        "pictures": distinct + 1,
        "texts": 6,
        "pictures_cached": 60 - distinct + 2 * 60,
        "texts_cached": 3 + 3,
    }
    assert server.pictures == distinct + 1 and server.texts == 6


def test_changed_pictures_are_asked_about_each_time(service, digits, tmp_path):
    server = service()
    oracle = oracle_at(server, cache=tmp_path)
    changed = torch.stack([digits[:5], digits[5:10]])
    expected = local_logits(digits[:10], TEXTS).unflatten(0, (2, 5))
    for _ in range(2):
        answer = oracle.query(oracle.upload(digits[:5]), Prompt(pictures=changed))
        assert difference(answer, expected) < 1e-5
    assert server.pictures == 20 + 1  # the first one twice


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
    options = [*at(server, cache), "TRAINER.SONAR.VIEWS", "1", "TRAINER.SONAR.TEXTS", "0"]
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
    twice = int(api == "openai")  # the first one
    assert server.pictures - twice == bill(tmp_path)["training"]["image_queries"] > 0


@pytest.mark.parametrize("name", ["BPTVLM", "CBBT", "CraFT", "JOLT", "ZIP"])
def test_soft_prompts_are_refused(service, data_root, tmp_path, name):
    server = service()
    with pytest.raises(AccessDenied, match="contexts.*SONAR"):
        build(name, data_root, tmp_path, *at(server))
    assert server.pictures == 0


# Scores


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


def test_two_classes_of_one_text_are_one_label(service, digits):
    server = service("hf")
    oracle = oracle_at(server, ["b_a", "c", "b a"], api="hf")
    answer = oracle.query(oracle.upload(digits[:1]), Prompt())[0, 0]
    assert answer[0] == answer[2] != answer[1] and server.texts == 2


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


# Bills


def test_what_a_run_comes_to_is_told_before_it(service):
    oracle = oracle_at(service(), PRICE=0.0001)
    # ten texts are new, and one picture is sent once more
    asked = [([800], [Texts.of(map(str, range(10)))])]
    told = {"calls": 27, "pictures": 801, "texts": 10, "money": 0.0801}
    assert oracle.quote(asked) == told
    told = {"calls": 800, "pictures": 800, "texts": 8000}
    assert oracle_at(service("hf"), api="hf").quote(asked) == told


def test_the_bill_has_the_money(service, digits):
    oracle = oracle_at(service(), PRICE=0.5)
    oracle.query(oracle.upload(digits[:2]), Prompt())
    assert oracle.usage()["money"] == 1.0
