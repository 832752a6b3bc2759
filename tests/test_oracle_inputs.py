"""Odd texts and pictures: the oracle takes them as open_clip does, or a sentence says why not."""

import pytest
import torch
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import contexts_of, oracle_over, pixels, reference
from support import difference


def test_texts_that_do_not_fit(loaded):
    oracle = oracle_over(loaded("tiny"))
    with pytest.raises(BlackBoxError, match="'x x .* x' takes 81 tokens .* 77 positions. Shorten"):
        oracle.set_classes(["one", " ".join("x" * 80)])
    oracle.set_classes(["one", " ".join("x" * 70)])
    images = oracle.upload(pixels(oracle))
    assert oracle.query(images, Prompt(contexts_of(oracle, n=4))).shape == (
        2,
        3,
        2,
    )  # 4 + 71 + SOS + EOT = 77
    with pytest.raises(BlackBoxError, match="with 5 context tokens, SOS and EOT that is 78"):
        oracle.query(images, Prompt(contexts_of(oracle, n=5)))


SLOTS = ["{} {", "} {}", "{} {0}", "{} {name!r:>{w}}", "{{}} {}", "{}%s\\\\1"]


@pytest.mark.parametrize("kind", ["tiny", "not causal"])
@pytest.mark.parametrize("template", SLOTS)
def test_braces_in_templates_and_names_are_text(loaded, kind, template):
    names = ["a{}b", "{0}", "}{", "{", "two {x!r}"]
    oracle = oracle_over(loaded(kind), names=names, template=template)
    images = pixels(oracle)
    texts = [template.replace("{}", name) for name in names]
    logits = oracle.query(
        oracle.upload(images), Prompt(torch.zeros(1, 0, oracle.description.width))
    )
    assert difference(logits[0], reference(loaded(kind), images, texts)) < 1e-5


@pytest.mark.parametrize(
    "names, template, words",
    [
        (["one", ""], "{}.", "The class name '' has no words"),
        (["one", " \t\n"], "{}.", r"The class name ' .t.n' has no words"),
        (["one", "___"], "a {}.", "The class name '___' has no words"),
        (["one", "\0"], "{}.", r"The class name '.x00' has no words"),
        (["one", "caf\udce9"], "{}.", r"'caf.udce9' is not a text that can be read.*Rename"),
        (["one", 7], "{}.", "7 is not a text that can be read"),
        (["one", None], "{}.", "None is not a text that can be read"),
        (["one"], "{}<end_of_text>", "holds a token that begins or ends texts"),
        (["one"], "<START_OF_TEXT> {}", "holds a token that begins or ends texts"),
        (["one"], "a photo.", "The template 'a photo.' has no slot"),
        (["one"], "", "The template '' has no slot"),
        (["one"], "caf\udce9 {}", "is not a text that can be read"),
    ],
)
def test_class_texts_that_say_nothing_are_a_sentence(loaded, names, template, words):
    oracle = oracle_over(loaded("tiny"))
    images, contexts = oracle.upload(pixels(oracle)), contexts_of(oracle)
    before = oracle.query(images, Prompt(contexts))
    with pytest.raises(BlackBoxError, match=words) as caught:
        oracle.set_classes(names, template)
    str(caught.value).encode("ascii")  # whatever the terminal shows, it shows this
    assert torch.equal(
        oracle.query(images, Prompt(contexts)), before
    )  # the classes are the former ones


def test_words_that_cannot_be_read(loaded):
    with pytest.raises(BlackBoxError, match="is not a text that can be read"):
        oracle_over(loaded("tiny")).embed("a photo of a caf\udce9")


def test_an_oracle_without_classes(loaded):
    oracle = LocalOracle(loaded("tiny"))
    with pytest.raises(BlackBoxError, match="set_classes first"):
        oracle.query(oracle.upload(pixels(oracle)), Prompt(contexts_of(oracle)))


@pytest.mark.parametrize("shape", [(2, 3, 31, 32), (2, 3, 64, 64), (3, 32, 32), (2, 1, 32, 32)])
def test_uploads_of_another_shape(loaded, shape):
    oracle = oracle_over(loaded("tiny"))
    with pytest.raises(BlackBoxError, match=r"tiny takes \[B, 3, 32, 32\]"):
        oracle.upload(torch.zeros(shape))
