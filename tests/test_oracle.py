"""The oracle: its answers equal open_clip's own, whatever the prompt and the precision."""

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.errors import BlackBoxError
from dassl_blackbox.trainers.blackbox.openclip import blocks
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Meter
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import SMALL, contexts_of, oracle_over, pixels, reference, sentences
from support import difference

# Equal to open_clip's own


@pytest.mark.parametrize("kind", [*EMBEDDED, *SMALL, "ViT-B-32", "RN50"])
def test_logits_are_open_clips(loaded, kind):
    oracle = oracle_over(loaded(kind))
    images, words = pixels(oracle), oracle.embed("a photo of a")
    assert words.shape == (4, oracle.description.width)
    expected = reference(loaded(kind), images, sentences("a photo of a {}."))
    assert expected.std(1).min() > 1e-3 * expected.abs().max()  # the names matter
    logits = oracle.query(oracle.upload(images), Prompt(words[None]))
    assert logits.shape == (1, 3, 5) and logits.dtype == torch.float32
    assert difference(logits[0], expected) < 1e-5
    other = oracle.query(oracle.upload(images), Prompt(1.5 * words[None]))[0]
    assert difference(other, expected) > 1e-3  # and so does the context


@pytest.mark.parametrize(
    "template",
    ["{}.", "a photo of the digit {}.", "{} texture.", "a photo of a {}, a type of pet."],
)
@pytest.mark.parametrize("kind", ["tiny", "not causal"])
def test_without_context_the_text_is_the_template(loaded, kind, template):
    oracle = oracle_over(loaded(kind), template=template)
    images = pixels(oracle)
    logits = oracle.query(
        oracle.upload(images), Prompt(torch.zeros(1, 0, oracle.description.width))
    )
    assert difference(logits[0], reference(loaded(kind), images, sentences(template))) < 1e-5


@pytest.mark.parametrize("chunk", [1, 40, 2**15])
@pytest.mark.parametrize("n", [0, 1, 6])
@pytest.mark.parametrize("kind", ["tiny", "vit", "custom"])
def test_the_short_text_path_equals_the_plain_one(loaded, kind, n, chunk, monkeypatch):
    oracle = oracle_over(loaded(kind))
    assert oracle.text.short
    monkeypatch.setattr(blocks, "CPU_POSITIONS", chunk)
    contexts = contexts_of(oracle, P=3, n=n)
    with torch.no_grad():
        short, plain = oracle.text.encode_short(contexts), oracle.text.encode_plain(contexts)
    assert short.shape == (3, 5, oracle.description.embed_dim)
    assert difference(short, plain) < 1e-5


@pytest.mark.parametrize("kind", ["tiny", "resnet", "not causal"])
def test_a_batch_of_candidates_equals_them_one_by_one(loaded, kind):
    oracle = oracle_over(loaded(kind))
    images, contexts = oracle.upload(pixels(oracle, 4)), contexts_of(oracle, P=5)
    together = oracle.query(images, Prompt(contexts))
    assert together.shape == (5, 4, 5)
    assert (
        difference(together, torch.cat([oracle.query(images, Prompt(c[None])) for c in contexts]))
        < 1e-5
    )
    assert difference(together[:1], together[1:2]) > 1e-3


def test_a_large_upload_equals_its_parts(loaded):
    oracle = oracle_over(loaded("vit"))
    images, contexts = pixels(oracle, 150), contexts_of(oracle)
    parts = torch.cat(
        [oracle.query(oracle.upload(part), Prompt(contexts)) for part in images.split(50)], dim=1
    )
    assert difference(oracle.query(oracle.upload(images), Prompt(contexts)), parts) < 1e-5


def test_classes_of_the_same_name_and_a_single_class(loaded):
    oracle = oracle_over(loaded("tiny"), names=["one", "two", "one"])
    images = oracle.upload(pixels(oracle))
    logits = oracle.query(images, Prompt(contexts_of(oracle)))
    assert torch.allclose(logits[..., 0], logits[..., 2], rtol=1e-5) and not torch.allclose(
        logits[..., 0], logits[..., 1], rtol=1e-3
    )
    oracle.set_classes(["two"])
    assert difference(oracle.query(images, Prompt(contexts_of(oracle))), logits[..., 1:2]) < 1e-5


def test_features_are_those_of_the_logits(loaded):
    oracle = oracle_over(loaded("tiny"))
    images, contexts = oracle.upload(pixels(oracle)), contexts_of(oracle)
    image, text = oracle.image_features(images), oracle.text_features(Prompt(contexts))
    assert torch.allclose(image.norm(dim=-1), torch.ones(3)) and torch.allclose(
        text.norm(dim=-1), torch.ones(2, 5)
    )
    scale = loaded("tiny").model.logit_scale.exp()
    assert (
        difference(scale * image @ text.transpose(1, 2), oracle.query(images, Prompt(contexts)))
        < 1e-5
    )


@pytest.mark.parametrize("kind", ["tiny", "vit", "resnet"])
def test_the_description_is_the_models(loaded, kind):
    told, model = loaded(kind).description, loaded(kind).model
    assert (told.width, told.context_length) == (
        model.token_embedding.embedding_dim,
        model.context_length,
    )
    assert told.embed_dim == model.encode_image(torch.zeros(1, 3, *told.image_size)).shape[1]
    assert told.token_std == pytest.approx(model.token_embedding.weight.std().item())
    if kind == "resnet":
        assert told.image_width is told.patch_mean is told.patch_std is None
    else:
        patches = model.visual.conv1.weight
        assert told.image_width == len(patches)
        assert (told.patch_mean, told.patch_std) == pytest.approx(
            (patches.mean().item(), patches.std().item())
        )


# Image tokens


def forward_with_tokens(visual, images, tokens):
    """A ViT by hand; the tokens `[n_V, W]` follow the patches, after the position embedding and
    before ln_pre.
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = (
        torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        + visual.positional_embedding
    )
    x = visual.ln_pre(torch.cat([x, tokens.expand(len(images), -1, -1)], dim=1))
    return visual.ln_post(visual.transformer(x)[:, 0]) @ visual.proj


@pytest.mark.parametrize("kind", ["tiny", "vit", "custom"])
def test_image_tokens_equal_a_forward_by_hand(loaded, kind):
    oracle, visual = oracle_over(loaded(kind)), loaded(kind).model.visual
    images, contexts = pixels(oracle), contexts_of(oracle, P=2)
    tokens = torch.randn(
        2, 3, oracle.description.image_width, generator=torch.Generator().manual_seed(2)
    )
    logits = oracle.query(oracle.upload(images), Prompt(contexts, tokens))
    with torch.no_grad():
        image = F.normalize(
            torch.stack([forward_with_tokens(visual, images, t) for t in tokens]), dim=-1
        )
    expected = (
        loaded(kind).model.logit_scale.exp()
        * image
        @ oracle.text_features(Prompt(contexts)).transpose(1, 2)
    )
    assert difference(logits, expected) < 1e-5
    assert (
        difference(oracle.query(oracle.upload(images), Prompt(contexts)), expected) > 1e-3
    )  # and no hook stays behind


def test_no_image_tokens_are_the_same_as_none(loaded):
    oracle = oracle_over(loaded("tiny"))
    images, contexts = oracle.upload(pixels(oracle)), contexts_of(oracle)
    nothing = torch.zeros(2, 0, oracle.description.image_width)
    assert (
        difference(
            oracle.query(images, Prompt(contexts, nothing)), oracle.query(images, Prompt(contexts))
        )
        < 1e-5
    )


def test_a_resnet_admits_no_image_tokens(loaded):
    oracle = oracle_over(loaded("resnet"))
    with pytest.raises(BlackBoxError, match="resnet admits no image tokens"):
        oracle.query(
            oracle.upload(pixels(oracle)), Prompt(contexts_of(oracle), torch.zeros(2, 1, 64))
        )


# Precision


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(
    "precision, tolerance", [("fp32", 1e-3), ("fp16", 0.02), ("bf16", 0.1), ("amp", 0.1)]
)
def test_precisions_agree(loaded, digits, precision, tolerance, device):
    exact, oracle = oracle_over(loaded("tiny")), oracle_over(load_model("tiny", precision, device))
    words = exact.embed("a photo of the digit")[None]
    expected = exact.query(exact.upload(digits), Prompt(words))[0]
    logits = oracle.query(oracle.upload(digits), Prompt(words))[0].cpu()
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
    assert difference(logits, expected) < tolerance
    first, second = expected.topk(2).values.T
    clear = first - second > 2 * tolerance * expected.abs().max()
    assert clear.sum() > 5 and torch.equal(logits.argmax(1)[clear], expected.argmax(1)[clear])


# Prompts


def test_without_a_context_the_class_texts_are_asked_about_alone(loaded):
    oracle = oracle_over(loaded("tiny"), ("logits",))
    images = oracle.upload(pixels(oracle))
    empty = torch.zeros(1, 0, oracle.description.width)
    assert torch.equal(oracle.query(images, Prompt()), oracle.query(images, Prompt(empty)))


def test_changed_pictures_are_scored_in_place_of_the_images_and_not_kept(loaded):
    oracle = Meter(oracle_over(loaded("tiny")))
    images, contexts = pixels(oracle), contexts_of(oracle)
    changed = torch.stack([images, images.flip(-1)])
    answer = oracle.query(oracle.upload(images), Prompt(contexts, pictures=changed))
    assert len(oracle.inner.store) == 0
    assert oracle.counts["training"] == {"queries": 2, "image_queries": 2 * len(images)}
    for candidate, context, picture in zip(answer, contexts, changed, strict=True):
        expected = oracle.query(oracle.upload(picture.clone()), Prompt(context[None]))[0]
        assert difference(candidate, expected) < 1e-5


def test_the_parts_of_a_prompt_are_of_one_number_of_candidates():
    with pytest.raises(ValueError, match=r"\[2, 3\] candidates"):
        Prompt(torch.zeros(2, 1, 4), torch.zeros(3, 1, 4))
