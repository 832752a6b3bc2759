"""Trains the embedded tiny CLIP from characters, shapes, patterns and (where at hand) photographs.

    python tools/pretrain_tiny.py --photos "$PHOTOS" --images 1200000 --stop 2000 --output stage1
    python tools/pretrain_tiny.py --photos "$PHOTOS" --images 153600 --init stage1/model.pt \
        --lr 6e-4 --output stage2

`--photos` names a folder with `tiny-imagenet-pretrain-*.npz` (keys jpeg, offsets, labels,
classnames); without it the model is trained on drawings alone. The loss is supervised-contrastive:
every image against one caption of every class, template and synonym drawn anew at each step. Digits
are rare among the characters, the first stage stops early, and the second lets the learning rate
down: a stand-in that read Digits too well would leave nothing to tuning. Progress is judged on the
*training* split of Digits and on photographs set aside; test splits are never read here.
`tools/freeze_tiny.py` turns the result into the files of `trainers/blackbox/assets/`.
"""

import argparse
import io
import json
import math
import random
import sys
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.constants import OPENAI_DATASET_MEAN as MEAN
from open_clip.constants import OPENAI_DATASET_STD as STD
from open_clip.model import CLIP
from PIL import Image
from torchvision.transforms.functional import normalize
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dassl_blackbox.console import parser_of
from dassl_blackbox.datasets import render
from dassl_blackbox.datasets.generated import DIGITS, digits
from photo.tower import text_features

MODEL = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}
SET_ASIDE = 2000  # photographs, for the judge
KINDS = ("digit", "letter", "drawing")
# Digits are rare among the characters: strokes are learned from letters, and what Digits leaves to
# tuning is then the alignment, not the features.
SHARES = (0.03, 0.52, 0.45)
JUDGED_EVERY = 500  # steps
CHARACTER_TEMPLATES = (
    *("a photo of the {k} {n}.", "the {k} {n}.", "a picture of the {k} {n}."),
    *("a drawing of the {k} {n}.", "a {k} {n}.", "a low resolution photo of the {k} {n}."),
    *("an image of the handwritten {k} {n}.", "a photo of a {k} {n}.", "{k} {n}."),
    *("a photo of the character {n}.", "a photo of a {n}."),
)
THING_TEMPLATES = (
    *("a photo of a {n}.", "a {n}.", "a picture of a {n}.", "a drawing of a {n}.", "{n}."),
    *("an image of the {n}.", "a low resolution photo of a {n}.", "a photo of the {n}."),
    *("a photo of a small {n}.", "a photo of a large {n}."),
)
# None of the typefaces that Letters draws with (FONTS of datasets/render.py).
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral", "STIXGeneralBol"),
    *("cmr10", "cmb10", "cmtt10"),
)
S = 48  # side of the masks and of the stored photographs; the model sees 32 px cut out of it


def build_classes(photo_names: list[str]) -> list[dict]:
    """All captioned classes, in order: dicts of kind, synonyms and, for drawings, what to draw."""
    classes = []
    for i, word in enumerate(DIGITS):
        classes.append({"kind": "digit", "names": [word, str(i)], "glyphs": str(i)})
    for c in "abcdefghijklmnopqrstuvwxyz":
        classes.append({"kind": "letter", "names": [c], "glyphs": c.upper() + c})
    for what, colour in product(render.SHAPES + render.PATTERNS, render.COLOURS):
        names = [f"{colour} {what}"]
        classes.append({"kind": "drawing", "names": names, "colour": colour, "what": what})
    for name in photo_names:
        names = [synonym.strip().lower() for synonym in name.split(",")]
        classes.append({"kind": "photo", "names": names})
    return classes


def caption(cls: dict, rng: random.Random) -> str:
    """One of a class's names in one of the templates of its kind."""
    name, kind = rng.choice(cls["names"]), cls["kind"]
    if kind not in ("digit", "letter"):
        return rng.choice(THING_TEMPLATES).format(n=name)
    template = rng.choice(CHARACTER_TEMPLATES)
    return template.format(k="number" if kind == "digit" and rng.random() < 0.25 else kind, n=name)


def mask_bank(
    classes: list[dict], rng: random.Random
) -> tuple[torch.Tensor, dict[int, np.ndarray]]:
    """Masks `[M, S, S]` uint8 and, for every drawn class, the indices of its masks (shared between
    colours).
    """
    masks, index, by_what = [], {}, {}

    def add(new: list[np.ndarray]) -> np.ndarray:
        masks.extend(new)
        return np.arange(len(masks) - len(new), len(masks))

    def drawing(what: str) -> np.ndarray:
        if what in render.PATTERNS:
            return render.pattern(what, S, rng.uniform(5, 14), rng)
        return render.shape(what, S, rng.uniform(8, 18), rng)

    for i, cls in enumerate(classes):
        if "glyphs" in cls:
            kinds = product(cls["glyphs"], FONTS, (24, 30, 36))
            index[i] = add([render.character(g, font, S, height) for g, font, height in kinds])
        elif "what" in cls:
            if cls["what"] not in by_what:
                by_what[cls["what"]] = add([drawing(cls["what"]) for _ in range(300)])
            index[i] = by_what[cls["what"]]
    return torch.from_numpy(np.stack(masks)), index


def load_photos(folder: str) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """Photographs `[N, 3, S, S]` uint8, labels `[N]` and class names."""
    images, labels, names = [], [], []
    for path in sorted(Path(folder).glob("tiny-imagenet-pretrain-*.npz")):
        archive = np.load(path)
        names, jpeg = [str(name) for name in archive["classnames"]], archive["jpeg"]
        for start, stop in pairwise(archive["offsets"]):
            picture = Image.open(io.BytesIO(jpeg[start:stop].tobytes())).convert("RGB")
            images.append(np.asarray(picture.resize((S, S), Image.BICUBIC)).transpose(2, 0, 1))
        labels.append(archive["labels"])
    return torch.from_numpy(np.stack(images)), np.concatenate(labels).astype(int), names


def warp(
    images: torch.Tensor,
    scale: tuple[float, float],
    turn: float,
    shear: float,
    bend: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Random zoom, rotation, shear, shift and smooth bending.

    Args:
        images: `[B, C, S, S]` floats; the result is `[B, C, 32, 32]`.
        scale: bounds of the zoom's logarithm.
        turn, shear, bend: the largest angle in radians, slant, and shift in halves of a side.
    """
    n = len(images)

    def u(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    zoom_x = torch.exp(u(*scale))
    zoom_y = zoom_x * torch.exp(u(-0.2, 0.2))
    angle, slant = u(-turn, turn), u(-shear, shear)
    c, s = angle.cos(), angle.sin()
    first = torch.stack([c / zoom_x, (slant * c - s) / zoom_x, u(-0.15, 0.15)], 1)
    second = torch.stack([s / zoom_y, (slant * s + c) / zoom_y, u(-0.15, 0.15)], 1)
    theta = torch.stack([first, second], 1)
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    if bend:
        field = torch.randn(n, 2, 4, 4, generator=generator)
        field *= bend * torch.rand(n, 1, 1, 1, generator=generator)
        shift = F.interpolate(field, (32, 32), mode="bicubic", align_corners=False)
        grid = grid + shift.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def paint(masks: torch.Tensor, colours: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Ink on a contrasting background, in 0..1: `[B, 1, 32, 32]` -> `[B, 3, 32, 32]`.

    Args:
        colours: `[B, 3]` of the ink; NaN: any.
    """
    n = len(masks)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    free = torch.isnan(colours[:, :1])
    grey = rand(n, 1).expand(n, 3)
    any_ink = torch.where(rand(n, 1) < 0.6, grey, rand(n, 3))
    ink = torch.where(free, any_ink, colours + 0.12 * (rand(n, 3) - 0.5))
    choices = torch.where(rand(n, 8, 1) < 0.6, rand(n, 8, 1).expand(n, 8, 3), rand(n, 8, 3))
    contrast = (choices - ink[:, None]).norm(dim=-1) > 0.6
    ground = choices[torch.arange(n), contrast.float().argmax(1)]
    # white on black, as scans often are, for a quarter of the free ones
    scan = free & (rand(n, 1) < 0.25)
    ink = torch.where(scan, torch.ones_like(ink), ink)
    ground = torch.where(scan, torch.zeros_like(ground), ground)
    shade = 1 + 0.3 * (rand(n, 1, 1, 1) - 0.5) * torch.linspace(-1, 1, 32)[None, None, None]
    return (ground[:, :, None, None] * shade + masks * (ink - ground)[:, :, None, None]).clamp(0, 1)


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Low resolution for a third of the images, noise for all; then the model's normalisation."""
    n = len(images)
    pick = torch.rand(n, generator=generator)
    for side, low, high in ((8, 0.0, 0.15), (12, 0.15, 0.33)):
        rows = (pick >= low) & (pick < high)
        if rows.any():
            small = F.interpolate(images[rows], (side, side), mode="area")
            images[rows] = F.interpolate(small, (32, 32), mode="bicubic", align_corners=False)
    deviation = 0.08 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = deviation * torch.randn(images.shape, generator=generator)
    return normalize((images + noise).clamp(0, 1), MEAN, STD)


def thicken(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Bolder strokes for a part of the characters: handwriting is thicker than type."""
    pick = torch.rand(len(masks), generator=generator)
    for kernel, low, high in ((3, 0.0, 0.3), (5, 0.3, 0.5)):
        rows = (pick >= low) & (pick < high)
        if rows.any():
            masks[rows] = F.max_pool2d(masks[rows], kernel, 1, kernel // 2)
    return masks


def draw_batch(
    chosen: list[dict], picked: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Drawn images of the given classes through masks `[B, S, S]`, normalised, `[B, 3, 32, 32]`."""
    masks = picked[:, None].float() / 255
    character = torch.tensor(["glyphs" in cls for cls in chosen])
    inks = [render.COLOURS[cls["colour"]] if "what" in cls else [math.nan] * 3 for cls in chosen]
    out = torch.empty(len(chosen), 1, 32, 32)
    if character.any():
        bold = thicken(masks[character], generator)
        out[character] = warp(bold, (-0.1, 0.55), 0.25, 0.35, 0.09, generator)
    if (~character).any():
        out[~character] = warp(masks[~character], (-0.2, 0.3), 0.15, 0.1, 0.0, generator)
    colours = torch.from_numpy((np.array(inks) / 255).astype(np.float32))
    return degrade(paint(out, colours, generator), generator)


def photo_batch(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """`[B, 3, S, S]` uint8, normalised to `[B, 3, 32, 32]`; without a generator unchanged."""
    images = images.float() / 255
    if generator is not None:
        flip = torch.rand(len(images), generator=generator) < 0.5
        images[flip] = images[flip].flip(-1)
        images = warp(images, (0.0, 0.5), 0.1, 0.05, 0.0, generator)
    else:
        images = F.interpolate(images, (32, 32), mode="area")
    return normalize(images, MEAN, STD)


@torch.no_grad()
def judge(
    model: CLIP, tokenizer: SimpleTokenizer, images: torch.Tensor, labels: torch.Tensor, texts: list
) -> float:
    """Zero-shot accuracy in per cent on normalised images, with a caption of every class."""
    text = text_features(model, tokenizer(texts))
    parts = [model.encode_image(b, normalize=True) @ text.T for b in images.split(500)]
    return 100 * (torch.cat(parts).argmax(1) == labels).float().mean().item()


def digits_training_split() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of Digits' training split alone, through the same resize as evaluation."""
    found = [(image, label) for part, label, _, image in digits() if part == "train"]
    x = torch.from_numpy(np.stack([np.asarray(image) for image, _ in found])).float() / 255
    labels = torch.tensor([label for _, label in found])
    return normalize(x[:, None].expand(-1, 3, -1, -1), MEAN, STD), labels


class Material:
    """What is trained on: classes, drawings of theirs, and photographs.

    `numbers` `[N]` are those of the photographs' classes; `pool` has the rows of those that are
    trained on, `judged` images, labels and captions of the others.
    """

    def __init__(self, folder: str, seed: int, rng: random.Random):
        photos, labels, names = load_photos(folder) if folder else (None, np.zeros(0, int), [])
        used = sorted(set(labels.tolist()))
        self.photos, self.classes = photos, build_classes([names[k] for k in used])
        self.masks, self.index = mask_bank(self.classes, rng)
        kinds = [cls["kind"] for cls in self.classes]
        self.groups = [[i for i, kind in enumerate(kinds) if kind == one] for one in KINDS]
        first = len(self.classes) - len(used)
        self.photo_names = [cls["names"][0] for cls in self.classes[first:]]
        self.numbers = np.array([first + used.index(k) for k in labels], dtype=int)
        order = np.random.default_rng(seed).permutation(len(self.numbers))
        aside, self.pool = order[:SET_ASIDE], order[SET_ASIDE:]
        self.judged = None
        if photos is not None:
            captions = [f"a photo of a {name}." for name in self.photo_names]
            truth = torch.from_numpy(self.numbers[aside] - first)
            self.judged = photo_batch(photos[aside], None), truth, captions

    def batch(
        self, size: int, photo_share: float, rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, list[int]]:
        """Images `[size, 3, 32, 32]` and the numbers of their classes: drawings, then photos."""
        photographed = int(size * photo_share) if len(self.pool) else 0
        numbers = [
            rng.choice(self.groups[rng.choices(range(len(KINDS)), SHARES)[0]])
            for _ in range(size - photographed)
        ]
        masks = torch.stack([self.masks[rng.choice(self.index[i])] for i in numbers])
        images = draw_batch([self.classes[i] for i in numbers], masks, generator)
        if photographed:
            drawn = torch.randint(len(self.pool), (photographed,), generator=generator)
            rows = self.pool[drawn.numpy()]
            images = torch.cat([images, photo_batch(self.photos[rows], generator)])
            numbers += self.numbers[rows].tolist()
        return images, numbers


def optimiser(
    model: CLIP, rate: float, steps: int, warm_up: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and half a cosine of its rate after a linear warm-up, down to 1 %."""
    decay = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05}
    rest = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    optim = torch.optim.AdamW([decay, rest], lr=rate, betas=(0.9, 0.98))

    def share(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
        return min(1, (step + 1) / warm_up) * (0.01 + 0.99 * cosine)

    return optim, torch.optim.lr_scheduler.LambdaLR(optim, share)


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    material = Material(args.photos, args.seed, rng)
    captions = [f"a photo of the digit {word}." for word in DIGITS]
    judged = {"digits": (*digits_training_split(), captions), "photos": material.judged}
    tokenizer, model, touched = SimpleTokenizer(), CLIP(**MODEL).to(device), set()
    if args.init:
        earlier = torch.load(args.init, map_location=device, weights_only=True)
        model.load_state_dict(earlier["state_dict"])
        touched.update(earlier["touched"])
    steps = args.images // args.batch
    optim, schedule = optimiser(model, args.lr, steps, 100 if args.init else 500)
    last = min(steps, args.stop or steps)
    progress = tqdm(range(1, last + 1), unit="step")
    for step in progress:
        # characters and shapes first and well, photographs with what is left
        photo_share = 0.15 if step - 1 < 0.4 * steps and not args.init else 0.35
        images, numbers = material.batch(args.batch, photo_share, rng, generator)
        tokens = tokenizer([caption(cls, rng) for cls in material.classes])
        touched.update(tokens.unique().tolist())
        with torch.autocast(device, dtype=torch.bfloat16):
            image = model.visual(images.to(device))
            text = text_features(model, tokens.to(device))
        logits = model.logit_scale.exp() * F.normalize(image.float(), dim=-1) @ text.T
        loss = F.cross_entropy(logits, torch.tensor(numbers, device=device))
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % JUDGED_EVERY == 0 or step == last:
            model.cpu().eval()
            scores = {k: judge(model, tokenizer, *given) for k, given in judged.items() if given}
            progress.write(f"step {step} " + " ".join(f"{k} {v:.1f}%" for k, v in scores.items()))
            recipe = {
                **{key: getattr(args, key) for key in ("seed", "images", "batch", "lr")},
                "step": step,
                "init": Path(args.init).name if args.init else None,
                "model": MODEL,
                "zero_shot": scores,
                "photo_classes": material.photo_names,
            }
            content = {"touched": sorted(touched), "recipe": json.dumps(recipe)}
            torch.save({"state_dict": model.state_dict(), **content}, out / "model.tmp")
            (out / "model.tmp").replace(out / "model.pt")
            model.to(device).train()


if __name__ == "__main__":
    parser = parser_of("tools/pretrain_tiny.py", __doc__)
    add = parser.add_argument
    add("--photos", default="", help="folder of tiny-imagenet-pretrain-*.npz; empty: drawings only")
    add("--images", type=int, default=1_200_000, help="training images in all")
    add("--batch", type=int, default=256, help="images a step")
    add("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    add("--stop", type=int, default=0, help="step of the schedule to stop after; 0: at its end")
    add("--init", default="", help="checkpoint whose weights to begin with")
    add("--seed", type=int, default=1)
    add("--output", required=True, help="folder for the checkpoint")
    main(parser.parse_args())
