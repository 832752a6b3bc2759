"""The oracle: its answers equal open_clip's own, and nothing is returned that is not granted."""

import runpy
import weakref

import open_clip
import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip import blocks
from dassl_blackbox.trainers.blackbox.openclip.describe import check_model
from dassl_blackbox.trainers.blackbox.openclip.embedded import EMBEDDED
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import LoadedModel, describe, load_model
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied, Meter
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from support import REPO, Random, difference

NAMES = ["zero", "a rather long_name", "two", "Three", "four"]
EVERYTHING = ("contexts", "logits", "features", "image_tokens")
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}
SMALL = {
    "vit": (CLIP, VIT, TEXT),
    "quickgelu": (CLIP, VIT, TEXT, {"quick_gelu": True}),
    "resnet": (CLIP, {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}, TEXT),
    "custom": (CustomTextCLIP, VIT, TEXT),
    "bias": (CustomTextCLIP, VIT, {**TEXT, "proj_bias": True}, {"init_logit_bias": -3.0}),
    "not causal": (CLIP, VIT, {**TEXT, "no_causal_mask": True}),
    "last": (CustomTextCLIP, VIT, {**TEXT, "no_causal_mask": True, "pool_type": "last"}),
}


def make(kind):
    """An embedded model, or a model or an architecture of open_clip with random weights."""
    if kind in EMBEDDED:
        return load_model(kind)
    torch.manual_seed(0)
    if kind in SMALL:
        cls, vision, text, *more = SMALL[kind]
        model = cls(32, vision, text, **(more[0] if more else {}))
        set_model_preprocess_cfg(
            model, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
        )
    else:
        model = open_clip.create_model(kind)
    tower = getattr(model, "text", model)
    with (
        torch.no_grad()
    ):  # at their initial size the words hardly count, and all logits are nearly alike
        tower.token_embedding.weight *= 30
        tower.positional_embedding *= 10
    model = model.eval().requires_grad_(False)
    return LoadedModel(
        model,
        open_clip.tokenizer.SimpleTokenizer(context_length=tower.context_length),
        describe(kind, model),
        "fp32",
        torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def loaded():
    kept = {}

    def get(kind):
        if kind not in kept:
            kept[kind] = make(kind)
        return kept[kind]

    return get


def oracle_over(model, grants=EVERYTHING, names=NAMES, template="{}.", client="SomeMethod"):
    oracle = LocalOracle(model, grants, client)
    oracle.set_classes(names, template)
    return oracle


def pixels(oracle, B=3, seed=0):
    return torch.randn(
        B, 3, *oracle.description.image_size, generator=torch.Generator().manual_seed(seed)
    )


def contexts_of(oracle, P=2, n=4, seed=1):
    """Random contexts `[P, n, D]`, as long as words are."""
    size = P, n, oracle.description.width
    return (
        torch.randn(size, generator=torch.Generator().manual_seed(seed))
        * oracle.description.token_std
    )


def reference(loaded, images, texts):
    """open_clip's own logits `[B, C]` of whole texts."""
    model = loaded.model
    with torch.no_grad():
        image = F.normalize(model.encode_image(images), dim=-1)
        text = F.normalize(model.encode_text(loaded.tokenizer(texts)), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T
    return logits if model.logit_bias is None else logits + model.logit_bias


def sentences(template, names=NAMES):
    return [template.format(name.replace("_", " ")) for name in names]


def counter(module):
    """How often a module ran, as a list that grows."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


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
    with pytest.raises(BlackBoxError, match="resnet has an image tower that is convolutional"):
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


# What crosses the wall


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


def test_a_grant_that_does_not_exist(loaded):
    with pytest.raises(BlackBoxError, match="did you mean logits"):
        LocalOracle(loaded("tiny"), ("logit",))
    with pytest.raises(BlackBoxError, match="did you mean features"):
        Random().require("feature")


# Bad input


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
        ([], "{}.", "There are no classes"),
        ((), "{}.", "There are no classes"),
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


# Loading


def test_the_exported_tiny_model_loads_in_openais_format(loaded, tmp_path):
    path = tmp_path / "tiny_clip.pt"
    runpy.run_path(str(REPO / "tools" / "freeze_tiny.py"))["export"](path)
    exported, tiny = oracle_over(load_model(str(path))), oracle_over(loaded("tiny"))
    images, contexts = pixels(tiny), contexts_of(tiny)
    assert (
        difference(
            exported.query(exported.upload(images), Prompt(contexts)),
            tiny.query(tiny.upload(images), Prompt(contexts)),
        )
        < 1e-5
    )
    assert exported.description.image_size == tiny.description.image_size
    assert exported.description.mean == pytest.approx(tiny.description.mean, abs=1e-6)


@pytest.mark.parametrize(
    "name, precision, words",
    [
        ("tinny", "fp32", "Unknown backbone 'tinny' .* did you mean tiny"),
        ("ViT-B/61", "fp32", "did you mean ViT-B/16"),
        ("RN5O", "fp32", "did you mean RN50"),
        ("ViT-B-32", "fp32", "architecture:tag"),  # the tag is missing
        ("tiny", "fp23", "Unknown precision .* did you mean fp32"),
        (
            "ViT-B-23:openai",
            "fp32",
            "Unknown architecture of open_clip 'ViT-B-23': did you mean .*ViT-B-32",
        ),
        ("ViT-B-32:opena", "fp32", "did you mean openai"),
    ],
)
def test_models_that_do_not_exist(name, precision, words):
    with pytest.raises(BlackBoxError, match=words):
        load_model(name, precision)


@pytest.mark.parametrize("prefix", ["", "ViT-B-32:"])
def test_a_file_that_is_no_model(prefix, tmp_path):
    path = tmp_path / "garbage.pt"
    path.write_bytes(b"no model at all")
    with pytest.raises(BlackBoxError, match=f"{path}|garbage.pt") as caught:
        load_model(f"{prefix}{path}")
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BlackBoxError,
        match=r"(?s)ViT-B-32.*could not be loaded.*Offline, copy the file.*~/\.cache/clip",
    ) as caught:
        load_model("ViT-B/32")
    assert "\n" not in str(caught.value)


def test_a_text_tower_of_hugging_face(loaded):
    model = CLIP(32, VIT, TEXT)
    model.text = torch.nn.Linear(1, 1)  # a tower that has neither token_embedding nor BPE tokens
    with pytest.raises(BlackBoxError, match="not one of open_clip's own"):
        check_model("foreign", model, loaded("tiny").tokenizer, torch.float32)


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
