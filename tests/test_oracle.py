"""The oracle over a model answers what open_clip does, and lets nothing else out or in twice."""

import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip import blocks
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.local import ROW_BYTES, FeatureStore, LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied, Meter, interface
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import EVERYTHING, contexts_of, oracle_over, pixels, reference
from support import difference, seeded


def ask(oracle, images, *prompt, **more):
    return oracle.query(oracle.upload(images), Prompt(*prompt, **more))


@pytest.mark.parametrize("kind", [*EMBEDDED, "bias", pytest.param("RN50", marks=pytest.mark.long)])
def test_logits_and_features_are_open_clips(loaded, kind):
    oracle = oracle_over(loaded(kind))
    images, words = pixels(oracle), oracle.embed("a photo of a")
    names = ["zero", "a rather long name", "two", "Three", "four"]
    expected = reference(loaded(kind), images, [f"a photo of a {name}." for name in names])
    assert expected.std(1).min() > 1e-3 * expected.abs().max()  # the names matter
    logits = ask(oracle, images, words[None])
    assert logits.shape == (1, 3, 5) and logits.dtype == torch.float32
    assert difference(logits[0], expected) < 1e-5
    assert difference(ask(oracle, images, 1.5 * words[None])[0], expected) > 1e-3
    image = oracle.image_features(oracle.upload(images))
    text = oracle.text_features(Prompt(words[None]))
    assert torch.allclose(image.norm(dim=-1), torch.ones(3))
    assert difference(oracle.score(image, text), logits) < 1e-5


TEMPLATES = ["a photo of a {}, a type of pet.", "} {}", "{} {0}%s\\\\1", "{} {name!r:>{w}}"]


@pytest.mark.parametrize("kind", ["tiny", "not causal"])
def test_without_context_the_text_is_the_template_whatever_its_braces(loaded, kind):
    names = ["a{}b", "{0}", "}{", "two {x!r}", "long_name"]
    for template in TEMPLATES:
        oracle = oracle_over(loaded(kind), names=names, template=template)
        images = pixels(oracle)
        texts = [template.replace("{}", name.replace("_", " ")) for name in names]
        logits = ask(oracle, images)
        assert difference(logits[0], reference(loaded(kind), images, texts)) < 1e-5
        assert torch.equal(logits, ask(oracle, images, torch.zeros(1, 0, oracle.description.width)))


@pytest.mark.parametrize("kind", ["tiny", "resnet", "not causal"])
def test_candidates_and_images_together_equal_them_apart(loaded, kind, monkeypatch):
    oracle = oracle_over(loaded(kind))
    images, contexts = pixels(oracle, 150), contexts_of(oracle, P=5)  # more than go in at once
    whole = ask(oracle, images, contexts)
    assert whole.shape == (5, 150, 5) and difference(whole[:1], whole[1:2]) > 1e-3
    monkeypatch.setattr(blocks, "CPU_POSITIONS", 1)
    parts = [torch.cat([ask(oracle, p, c[None]) for c in contexts]) for p in images.split(50)]
    assert difference(whole, torch.cat(parts, dim=1)) < 1e-5


@pytest.mark.parametrize("kind", ["tiny", "custom"])
def test_image_tokens_equal_a_forward_by_hand(loaded, kind):
    """They follow the patches, after the position embedding and before `ln_pre`."""
    oracle, visual = oracle_over(loaded(kind)), loaded(kind).model.visual
    images, contexts = pixels(oracle), contexts_of(oracle, P=2)
    tokens = torch.randn(2, 3, oracle.description.image_width, generator=seeded(2))
    logits, found = ask(oracle, images, contexts, tokens), []
    with torch.no_grad():
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(3, 1, -1), patches], 1)
        x = x + visual.positional_embedding
        for candidate in tokens:
            y = visual.ln_pre(torch.cat([x, candidate.expand(3, -1, -1)], 1))
            y = visual.ln_post(visual.transformer(y)[:, 0]) @ visual.proj
            found.append(F.normalize(y, dim=-1))
    expected = oracle.score(torch.stack(found), oracle.text_features(Prompt(contexts)))
    assert difference(logits, expected) < 1e-5
    plain = ask(oracle, images, contexts)  # no hook stays behind
    assert difference(plain, expected) > 1e-3
    assert difference(ask(oracle, images, contexts, tokens[:, :0]), plain) < 1e-5


def test_changed_pictures_are_scored_in_place_of_the_images_and_not_kept(loaded):
    oracle = Meter(oracle_over(loaded("tiny")))
    images, contexts = pixels(oracle), contexts_of(oracle)
    changed = torch.stack([images, images.flip(-1)])
    answer = ask(oracle, images, contexts, pictures=changed)
    assert len(oracle.inner.store) == 0
    assert oracle.counts["training"] == {"queries": 2, "image_queries": 2 * len(images)}
    for candidate, context, picture in zip(answer, contexts, changed, strict=True):
        assert difference(candidate, ask(oracle, picture.clone(), context[None])[0]) < 1e-5


def test_nothing_that_comes_out_has_a_graph_or_is_part_of_the_next_answer(loaded):
    oracle = Meter(oracle_over(loaded("tiny")))
    images = oracle.upload(pixels(oracle).requires_grad_())
    prompt = Prompt(contexts_of(oracle).requires_grad_())
    tokens = torch.zeros(2, 1, oracle.description.image_width, requires_grad=True)
    before = oracle.query(images, prompt).clone()
    for answer in (
        oracle.embed("a photo"),
        oracle.query(images, Prompt(prompt.contexts, tokens)),
        oracle.image_features(images),
        oracle.text_features(prompt),
        oracle.query(images, prompt),
    ):
        assert not answer.requires_grad and answer.grad_fn is None and not answer.is_inference()
        answer.zero_()
    assert torch.equal(oracle.query(images, prompt), before)


TOKENS = torch.ones(1, 1, 192)
DENIED = {
    "contexts": lambda oracle, images: oracle.query(images, Prompt(contexts_of(oracle))),
    "logits": lambda oracle, images: oracle.query(images, Prompt()),
    "image_tokens": lambda oracle, images: oracle.query(images, Prompt(None, TOKENS)),
    "features": lambda oracle, images: oracle.image_features(images),
    "features ": lambda oracle, images: oracle.text_features(Prompt()),
}


def test_what_is_not_granted_is_denied(loaded):
    for grant, request in DENIED.items():
        oracle = oracle_over(loaded("tiny"), [g for g in EVERYTHING if g != grant.strip()])
        for asked in oracle, Meter(oracle):
            with pytest.raises(AccessDenied, match=f"SomeMethod asked for '{grant.strip()}'"):
                request(asked, asked.upload(pixels(oracle)))
        assert asked.counts["training"]["queries"] == 0


def counter(module):
    """How often a module ran, as a list that grows."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_an_upload_is_encoded_once_and_freed_with_its_name():
    oracle = oracle_over(load_model("tiny"))
    encoded, images = counter(oracle.model.visual.ln_post), pixels(oracle)
    kept, name = weakref.ref(images), oracle.upload(images)
    del images
    for seed in range(3):
        oracle.query(name, Prompt(contexts_of(oracle, seed=seed)))
    assert len(encoded) == 1
    ask(oracle, pixels(oracle, seed=5), contexts_of(oracle))
    oracle.query(name, Prompt(contexts_of(oracle)))
    assert len(encoded) == 2 and len(oracle.encoded) == 1  # the other one's name is gone already
    del name
    assert kept() is None and len(oracle.encoded) == len(oracle.pixels) == 0


def test_text_is_encoded_once_for_the_same_contexts_and_classes():
    oracle = oracle_over(load_model("tiny"), names=["one", "two", "one"])
    calls, contexts = counter(oracle.model.ln_final), contexts_of(oracle)
    images = pixels(oracle)
    first = ask(oracle, images, contexts)
    ask(oracle, pixels(oracle, seed=3), contexts.clone())
    assert len(calls) == 1 and difference(first[..., 0], first[..., 2]) < 1e-5
    contexts.mul_(2)  # in place: other contexts behind the same tensor
    other = ask(oracle, images, contexts)
    assert difference(other, first) > 1e-3 and len(calls) == 2
    oracle.set_classes(["two"])
    assert difference(ask(oracle, images, contexts), other[..., 1:2]) < 1e-5 and len(calls) == 3


NO_TEXTS = [
    (["one", " \t\n"], "{}.", "no words"),
    (["one", "caf\udce9"], "{}.", r"'caf.udce9' is not a text that can be read"),
    (["one", None], "{}.", "None is not a text that can be read"),
    (["one"], "<START_OF_TEXT> {}", "token that begins or ends texts"),
    (["one"], "a photo.", "has no slot"),
    (["one", " ".join("x" * 80)], "{}.", "'x x .* x' takes 81 tokens .* 77 positions"),
]


def test_class_texts_that_say_nothing_or_too_much_are_a_sentence(loaded):
    oracle = oracle_over(loaded("tiny"))
    before = ask(oracle, pixels(oracle), contexts_of(oracle))
    for names, template, words in NO_TEXTS:
        with pytest.raises(BlackBoxError, match=words) as caught:
            oracle.set_classes(names, template)
        str(caught.value).encode("ascii")  # whatever the terminal shows, it shows this
    after = ask(oracle, pixels(oracle), contexts_of(oracle))
    assert torch.equal(after, before)  # the classes are the former ones


def test_input_that_cannot_be_answered(loaded):
    oracle, resnet = LocalOracle(loaded("tiny"), EVERYTHING), oracle_over(loaded("resnet"))
    with pytest.raises(BlackBoxError, match="is not a text that can be read"):
        oracle.embed("caf\udce9")
    with pytest.raises(BlackBoxError, match="set_classes first"):
        ask(oracle, pixels(oracle))
    oracle.set_classes(["one", " ".join("x" * 70)])
    ask(oracle, pixels(oracle), contexts_of(oracle, n=4))  # 4 + 71 + SOS + EOT = 77
    with pytest.raises(BlackBoxError, match="with 5 context tokens, SOS and EOT that is 78"):
        ask(oracle, pixels(oracle), contexts_of(oracle, n=5))
    for shape in ((2, 3, 31, 32), (2, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(BlackBoxError, match=r"takes \[B, 3, 32, 32\]"):
            oracle.upload(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\[2, 3\] candidates"):
        Prompt(torch.zeros(2, 1, 4), torch.zeros(3, 1, 4))
    with pytest.raises(BlackBoxError, match="resnet admits no image tokens"):
        ask(resnet, pixels(resnet), contexts_of(resnet), torch.zeros(2, 1, 64))


def test_the_store_asks_for_each_content_once_and_forgets_the_oldest():
    asked, images = [], torch.randn(40, 3, 4, 4)

    def encode(images):
        asked.append(len(images))
        return images.flatten(1)[:, :4]

    store = FeatureStore(limit=30 * (4 * 4 + ROW_BYTES))
    double = torch.cat([images[:20], images[:20]])
    # 40 contents for 30 places: the ten used longest ago go
    for part in (double, images[:10], images[20:], images[:10], images[10:20]):
        assert torch.equal(store.fill(part, encode), part.flatten(1)[:, :4])
    held = sum(row.untyped_storage().nbytes() for row in store.values())
    assert asked == [20, 20, 10] and len(store) == 30 and held == 30 * 16  # no row keeps its batch
    asked.clear()
    images, store, none = torch.randn(128, 3, 4, 4), FeatureStore(), FeatureStore(0)
    for known in (120, 120, 125, 127, 128):  # a few unknown ones go in company of eight
        found = store.fill(images[:known].flip(0), encode)
        assert torch.equal(found, images[:known].flip(0).flatten(1)[:, :4])
    assert asked == [120, 8, 8, 8]
    assert torch.equal(none.fill(images, encode), images.flatten(1)[:, :4]) and not none


def test_a_batch_that_another_process_kept_is_not_encoded(tmp_path):
    (images, others), encode = torch.randn(2, 9, 3, 4, 4), partial(torch.flatten, start_dim=1)
    rows = FeatureStore(folder=tmp_path).fill(images, encode)
    assert not [*tmp_path.glob("*.tmp")]
    found = FeatureStore(folder=tmp_path).fill(images, lambda few: pytest.fail("encoded anew"))
    assert torch.equal(rows, found) and torch.equal(rows, images.flatten(1))
    (file,) = tmp_path.glob("*")
    for damaged in (b"", file.read_bytes()[:-8], bytes(len(file.read_bytes()))):
        file.write_bytes(damaged)
        assert torch.equal(FeatureStore(folder=tmp_path).fill(images, encode), rows)
    store = FeatureStore(folder=tmp_path)
    store.fill(images, encode)
    store.fill(images.flip(0), encode)  # which it knows: nothing is kept twice
    assert [*tmp_path.glob("*")] == [file]
    (tmp_path / "file").touch()  # where no folder can be made, as on a disk that is full
    full = FeatureStore(folder=tmp_path / "file" / "in").fill(others, encode)
    assert torch.equal(full, others.flatten(1))


@pytest.mark.parametrize("together", [1, 700, 10**6])
def test_fingerprints_tell_images_apart_whatever_their_company(together, monkeypatch):
    monkeypatch.setattr(interface, "IN_CACHE", together)
    images = (torch.randint(0, 256, (20, 3, 8, 8)).float() / 255 - 0.5) / 0.25
    twisted = [images, -images, images.flip(-1), images.roll(1, -1), images.transpose(-1, -2)]
    twisted = torch.cat([*twisted, images + 1e-6, images * (1 + 2**-20)])
    known = FeatureStore()
    keys = known.fingerprints(twisted)
    assert len(set(keys)) == 7 * 20 and known.fingerprints(images[:0]) == []
    assert [key for image in twisted for key in known.fingerprints(image[None])] == keys
    bits, each = images[:1].repeat(192, 1, 1, 1), torch.arange(192)
    bits.view(192, -1).view(torch.int32)[each, each] ^= (1 << each % 31).int()  # one of each
    assert len(set(known.fingerprints(bits))) == 192
