"""What crosses the wall around a model: no graph, nothing that is not granted, no input twice."""

import weakref

import pytest
import torch
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied, Meter
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import EVERYTHING, contexts_of, counter, oracle_over, pixels
from support import difference


@pytest.mark.parametrize("metered", [False, True])
def test_nothing_that_comes_out_has_a_graph(loaded, metered):
    oracle = oracle_over(loaded("tiny"))
    oracle = Meter(oracle) if metered else oracle
    images = oracle.upload(pixels(oracle).requires_grad_())
    contexts = contexts_of(oracle).requires_grad_()
    tokens = torch.zeros(2, 1, oracle.description.image_width, requires_grad=True)
    answers = [
        oracle.embed("a photo"),
        oracle.query(images, Prompt(contexts)),
        oracle.query(images, Prompt(contexts, tokens)),
        oracle.image_features(images),
        oracle.text_features(Prompt(contexts)),
        oracle.query(images, Prompt(contexts)),
    ]
    for answer in answers:
        assert not answer.requires_grad and answer.grad_fn is None and not answer.is_inference()


def test_an_answer_that_is_changed_does_not_change_the_next(loaded):
    oracle = oracle_over(loaded("tiny"))
    images, contexts = oracle.upload(pixels(oracle)), contexts_of(oracle)
    before = oracle.query(images, Prompt(contexts)).clone()
    for answer in (
        oracle.image_features(images),
        oracle.text_features(Prompt(contexts)),
        oracle.query(images, Prompt(contexts)),
        oracle.embed("a photo"),
    ):
        answer.zero_()
    assert torch.equal(oracle.query(images, Prompt(contexts)), before)


@pytest.mark.parametrize("grants", [("contexts", "logits"), EVERYTHING])
def test_an_upload_is_encoded_once_and_freed_with_its_name(loaded, grants):
    oracle, visual = oracle_over(load_model("tiny"), grants), None
    visual, images = counter(oracle.model.visual.ln_post), pixels(oracle)
    kept, name = weakref.ref(images), oracle.upload(images)
    del images
    for seed in range(3):
        oracle.query(name, Prompt(contexts_of(oracle, seed=seed)))
    assert len(visual) == 1
    oracle.query(oracle.upload(pixels(oracle, seed=5)), Prompt(contexts_of(oracle)))
    oracle.query(name, Prompt(contexts_of(oracle)))
    assert len(visual) == 2
    assert len(oracle.encoded) == 1  # the other one's name is gone already
    del name
    assert kept() is None and len(oracle.encoded) == len(oracle.pixels) == 0


def test_text_is_encoded_once_for_the_same_contexts(loaded):
    oracle = oracle_over(load_model("tiny"))
    calls, contexts = counter(oracle.model.ln_final), contexts_of(oracle)
    first = oracle.query(oracle.upload(pixels(oracle)), Prompt(contexts))
    oracle.query(oracle.upload(pixels(oracle, seed=3)), Prompt(contexts.clone()))
    assert len(calls) == 1
    contexts.mul_(2)  # in place: other contexts behind the same tensor
    assert (
        difference(oracle.query(oracle.upload(pixels(oracle)), Prompt(contexts)), first) > 1e-3
        and len(calls) == 2
    )
    oracle.set_classes(["seven"])
    assert (
        oracle.query(oracle.upload(pixels(oracle)), Prompt(contexts)).shape == (2, 3, 1)
        and len(calls) == 3
    )


DENIED = {
    "contexts": lambda oracle, images: oracle.query(images, Prompt(contexts_of(oracle))),
    "logits": lambda oracle, images: oracle.query(images, Prompt(contexts_of(oracle))),
    "image_tokens": lambda oracle, images: oracle.query(
        images, Prompt(contexts_of(oracle), torch.zeros(2, 1, 192))
    ),
    "features": lambda oracle, images: oracle.image_features(images),
    "features ": lambda oracle, images: oracle.text_features(Prompt(contexts_of(oracle))),
}


@pytest.mark.parametrize("metered", [False, True])
@pytest.mark.parametrize("grant", DENIED)
def test_what_is_not_granted_is_denied(loaded, grant, metered):
    what = grant.strip()
    oracle = oracle_over(loaded("tiny"), [g for g in EVERYTHING if g != what])
    oracle = Meter(oracle) if metered else oracle
    with pytest.raises(
        AccessDenied, match=f"^SomeMethod asked for '{what}', which this oracle does not grant"
    ):
        DENIED[grant](oracle, oracle.upload(pixels(oracle)))
    if metered:
        assert oracle.counts["training"]["queries"] == 0
