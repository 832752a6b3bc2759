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
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dassl_blackbox.datasets import render

MODEL = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 192, "layers": 6, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# None of the typefaces that Letters draws with (FONTS of datasets/render.py).
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
    "cmb10",
    "cmtt10",
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHARACTER_TEMPLATES = (
    "a photo of the {k} {n}.",
    "the {k} {n}.",
    "a picture of the {k} {n}.",
    "a drawing of the {k} {n}.",
    "a {k} {n}.",
    "a low resolution photo of the {k} {n}.",
    "an image of the handwritten {k} {n}.",
    "a photo of a {k} {n}.",
    "{k} {n}.",
    "a photo of the character {n}.",
    "a photo of a {n}.",
)
THING_TEMPLATES = (
    "a photo of a {n}.",
    "a {n}.",
    "a picture of a {n}.",
    "a drawing of a {n}.",
    "{n}.",
    "an image of the {n}.",
    "a low resolution photo of a {n}.",
    "a photo of the {n}.",
    "a photo of a small {n}.",
    "a photo of a large {n}.",
)
S = 48  # side of the masks and of the stored photographs; the model sees 32 px cut out of it


def build_classes(photo_names):
    """All captioned classes, in order: dicts of kind, synonyms and, for drawings, what to draw."""
    classes = [
        {"kind": "digit", "names": [w, str(i)], "glyphs": str(i)} for i, w in enumerate(DIGITS)
    ]
    classes += [
        {"kind": "letter", "names": [c], "glyphs": c.upper() + c}
        for c in "abcdefghijklmnopqrstuvwxyz"
    ]
    classes += [
        {"kind": "drawing", "names": [f"{colour} {what}"], "colour": colour, "what": what}
        for what in render.SHAPES + render.PATTERNS
        for colour in render.COLOURS
    ]
    classes += [
        {"kind": "photo", "names": [s.strip().lower() for s in name.split(",")]}
        for name in photo_names
    ]
    return classes


def caption(cls, rng):
    name = rng.choice(cls["names"])
    if cls["kind"] in ("digit", "letter"):
        return rng.choice(CHARACTER_TEMPLATES).format(
            k="number" if cls["kind"] == "digit" and rng.random() < 0.25 else cls["kind"], n=name
        )
    return rng.choice(THING_TEMPLATES).format(n=name)


def mask_bank(classes, rng):
    """Masks `[M, S, S]` uint8 and, for every drawn class, the indices of its masks (shared between
    colours).
    """
    masks, index, by_what = [], {}, {}

    def add(new):
        masks.extend(new)
        return np.arange(len(masks) - len(new), len(masks))

    for i, cls in enumerate(classes):
        if "glyphs" in cls:
            index[i] = add(
                [
                    render.character(g, f, S, h)
                    for g in cls["glyphs"]
                    for f in FONTS
                    for h in (24, 30, 36)
                ]
            )
        elif "what" in cls:
            what = cls["what"]
            if what not in by_what:
                by_what[what] = add(
                    [
                        render.pattern(what, S, rng.uniform(5, 14), rng)
                        if what in render.PATTERNS
                        else render.shape(what, S, rng.uniform(8, 18), rng)
                        for _ in range(300)
                    ]
                )
            index[i] = by_what[what]
    return torch.from_numpy(np.stack(masks)), index


def load_photos(folder):
    """Photographs `[N, 3, S, S]` uint8, labels and class names; the last 2,000 are set aside by the
    caller.
    """
    images, labels, names = [], [], []
    for path in sorted(Path(folder).glob("tiny-imagenet-pretrain-*.npz")):
        z = np.load(path)
        names = [str(n) for n in z["classnames"]]
        offsets, jpeg = z["offsets"], z["jpeg"]
        for a, b in pairwise(offsets):
            picture = (
                Image.open(io.BytesIO(jpeg[a:b].tobytes()))
                .convert("RGB")
                .resize((S, S), Image.BICUBIC)
            )
            images.append(np.asarray(picture).transpose(2, 0, 1))
        labels.append(z["labels"])
    return torch.from_numpy(np.stack(images)), np.concatenate(labels).astype(int), names


def warp(images, scale, turn, shear, bend, generator):
    """Random zoom, rotation, shear, shift and smooth bending of `[B, C, S, S]` floats; returns `[B,
    C, 32, 32]`.
    """
    n = len(images)

    def u(low, high):
        return low + (high - low) * torch.rand(n, generator=generator)

    zoom_x = torch.exp(u(*scale))
    zoom_y = zoom_x * torch.exp(u(-0.2, 0.2))
    angle, slant = u(-turn, turn), u(-shear, shear)
    c, s = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([c / zoom_x, (slant * c - s) / zoom_x, u(-0.15, 0.15)], 1),
            torch.stack([s / zoom_y, (slant * s + c) / zoom_y, u(-0.15, 0.15)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    if bend:
        field = torch.randn(n, 2, 4, 4, generator=generator) * (
            bend * torch.rand(n, 1, 1, 1, generator=generator)
        )
        grid = grid + F.interpolate(field, (32, 32), mode="bicubic", align_corners=False).permute(
            0, 2, 3, 1
        )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def paint(masks, colours, generator):
    """Ink of the given colours (NaN: any) on a contrasting background, `[B, 1, 32, 32]` -> `[B, 3,
    32, 32]` in 0..1.
    """
    n = len(masks)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    free = torch.isnan(colours[:, :1])
    grey = rand(n, 1).expand(n, 3)
    ink = torch.where(
        free, torch.where(rand(n, 1) < 0.6, grey, rand(n, 3)), colours + 0.12 * (rand(n, 3) - 0.5)
    )
    choices = torch.where(rand(n, 8, 1) < 0.6, rand(n, 8, 1).expand(n, 8, 3), rand(n, 8, 3))
    contrast = (choices - ink[:, None]).norm(dim=-1) > 0.6
    ground = choices[torch.arange(n), contrast.float().argmax(1)]
    # white on black, as scans often are, for a quarter of the free ones
    scan = free & (rand(n, 1) < 0.25)
    ink, ground = (
        torch.where(scan, torch.ones_like(ink), ink),
        torch.where(scan, torch.zeros_like(ground), ground),
    )
    shade = 1 + 0.3 * (rand(n, 1, 1, 1) - 0.5) * torch.linspace(-1, 1, 32)[None, None, None]
    return (ground[:, :, None, None] * shade + masks * (ink - ground)[:, :, None, None]).clamp(0, 1)


def degrade(images, generator):
    """Low resolution for a third of the images, noise for all; then the model's normalisation."""
    n = len(images)
    pick = torch.rand(n, generator=generator)
    for side, low, high in ((8, 0.0, 0.15), (12, 0.15, 0.33)):
        rows = (pick >= low) & (pick < high)
        if rows.any():
            small = F.interpolate(images[rows], (side, side), mode="area")
            images[rows] = F.interpolate(small, (32, 32), mode="bicubic", align_corners=False)
    noise = (
        0.08
        * torch.rand(n, 1, 1, 1, generator=generator)
        * torch.randn(images.shape, generator=generator)
    )
    images = (images + noise).clamp(0, 1)
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def thicken(masks, generator):
    """Bolder strokes for a part of the characters: handwriting is thicker than type."""
    pick = torch.rand(len(masks), generator=generator)
    for kernel, low, high in ((3, 0.0, 0.3), (5, 0.3, 0.5)):
        rows = (pick >= low) & (pick < high)
        if rows.any():
            masks[rows] = F.max_pool2d(masks[rows], kernel, 1, kernel // 2)
    return masks


def draw_batch(ids, classes, masks, index, rng, generator):
    """Drawn images of the given classes, normalised, `[B, 3, 32, 32]`."""
    picked = torch.stack([masks[rng.choice(index[i])] for i in ids])[:, None].float() / 255
    character = torch.tensor(["glyphs" in classes[i] for i in ids])
    colours = torch.tensor(
        [
            [math.nan] * 3
            if "glyphs" in classes[i]
            else [v / 255 for v in render.COLOURS[classes[i]["colour"]]]
            for i in ids
        ]
    )
    out = torch.empty(len(ids), 1, 32, 32)
    if character.any():
        out[character] = warp(
            thicken(picked[character], generator), (-0.1, 0.55), 0.25, 0.35, 0.09, generator
        )
    if (~character).any():
        out[~character] = warp(picked[~character], (-0.2, 0.3), 0.15, 0.1, 0.0, generator)
    return degrade(paint(out, colours, generator), generator)


def photo_batch(images, generator, train=True):
    images = images.float() / 255
    if train:
        flip = torch.rand(len(images), generator=generator) < 0.5
        images[flip] = images[flip].flip(-1)
        images = warp(images, (0.0, 0.5), 0.1, 0.05, 0.0, generator)
    else:
        images = F.interpolate(images, (32, 32), mode="area")
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def text_features(model, tokens):
    """Normalised features `[T, E]`; the causal tower need not see the padding, so tokens are cut at
    the longest caption.
    """
    length = int(tokens.argmax(1).max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)]
    return F.normalize((x @ model.text_projection).float(), dim=-1)


@torch.no_grad()
def judge(model, tokenizer, digits, photos):
    """Zero-shot accuracy on Digits' training split and on the photographs set aside."""

    def accuracy(images, labels, captions):
        text = text_features(model, tokenizer(captions))
        found = torch.cat(
            [model.encode_image(b, normalize=True) @ text.T for b in images.split(500)]
        ).argmax(1)
        return 100 * (found == labels).float().mean().item()

    result = {"digits": accuracy(*digits, [f"a photo of the digit {w}." for w in DIGITS])}
    if photos is not None:
        images, labels, captions = photos
        result["photos"] = accuracy(photo_batch(images, None, train=False), labels, captions)
    return result


def digits_training_split():
    """Images and labels of Digits' training split alone, through the same resize as evaluation."""
    from dassl_blackbox.datasets.digits import split_indices
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = split_indices(source.target)["train"]
    images = [
        Image.fromarray((source.images[r] * 255 / 16).round().astype(np.uint8)).resize(
            (32, 32), Image.BICUBIC
        )
        for r in rows
    ]
    x = torch.from_numpy(np.stack(images)).float()[:, None].expand(-1, 3, -1, -1) / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ], torch.from_numpy(source.target[rows])


def main(args):
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(args.seed)
    rng, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    photos = load_photos(args.photos) if args.photos else (None, np.zeros(0, int), [])
    used = sorted(set(photos[1].tolist()))
    classes = build_classes([photos[2][k] for k in used])
    first_photo = len(classes) - len(used)
    photo_ids = np.array([first_photo + used.index(k) for k in photos[1]], dtype=int)
    order = np.random.default_rng(args.seed).permutation(len(photo_ids))
    aside, pool = order[:2000], order[2000:]
    masks, index = mask_bank(classes, rng)
    groups = [
        [i for i, c in enumerate(classes) if c["kind"] == k] for k in ("digit", "letter", "drawing")
    ]
    print(f"{len(classes)} classes, {len(masks)} masks, {len(pool)} photographs", flush=True)

    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    judged_photos = None
    if len(aside):
        captions = [f"a photo of a {c['names'][0]}." for c in classes[first_photo:]]
        judged_photos = (
            photos[0][aside],
            torch.from_numpy(photo_ids[aside] - first_photo),
            captions,
        )
    digits = digits_training_split()

    model, touched = CLIP(**MODEL).to(device), set()
    if args.init:
        earlier = torch.load(args.init, map_location=device, weights_only=True)
        model.load_state_dict(earlier["state_dict"])
        touched.update(earlier["touched"])
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optim = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    steps = args.images // args.batch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optim,
        lambda k: (
            min(1, (k + 1) / (100 if args.init else 500))
            * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, k / steps))))
        ),
    )
    last = min(steps, args.stop or steps)
    start = time.time()
    for step in range(last):
        # Characters and shapes first and well, photographs with what is left. Digits are rare among
        # the characters: strokes are learned from letters, and what Digits leaves to tuning is then
        # the alignment, not the features.
        n_photo = (
            int(args.batch * (0.15 if step < 0.4 * steps and not args.init else 0.35))
            if len(pool)
            else 0
        )
        n_drawn = args.batch - n_photo
        ids = [
            rng.choice(groups[rng.choices((0, 1, 2), (0.03, 0.52, 0.45))[0]])
            for _ in range(n_drawn)
        ]
        images = draw_batch(ids, classes, masks, index, rng, generator)
        if n_photo:
            rows = pool[torch.randint(len(pool), (n_photo,), generator=generator).numpy()]
            images = torch.cat([images, photo_batch(photos[0][rows], generator)])
            ids = ids + photo_ids[rows].tolist()
        tokens = tokenizer([caption(c, rng) for c in classes])
        touched.update(tokens.unique().tolist())
        with torch.autocast(device, dtype=torch.bfloat16):
            image = model.visual(images.to(device))
            text = text_features(model, tokens.to(device))
        logits = model.logit_scale.exp() * F.normalize(image.float(), dim=-1) @ text.T
        loss = F.cross_entropy(logits, torch.tensor(ids, device=device))
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 0:
            rate = (step + 1) * args.batch / (time.time() - start)
            print(
                f"step {step}/{steps} loss {loss.item():.3f} scale "
                f"{model.logit_scale.exp().item():.1f} {rate:.0f} images/s",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step + 1 == last:
            scores = judge(model.cpu().eval(), tokenizer, digits, judged_photos)
            model.to(device).train()
            print(
                f"step {step + 1} " + " ".join(f"{k} {v:.1f}%" for k, v in scores.items()),
                flush=True,
            )
            recipe = {
                "seed": args.seed,
                "images": args.images,
                "batch": args.batch,
                "lr": args.lr,
                "step": step + 1,
                "init": Path(args.init).name if args.init else None,
                "model": MODEL,
                "zero_shot": scores,
                "photo_classes": [c["names"][0] for c in classes[first_photo:]],
            }
            torch.save(
                {
                    "state_dict": model.state_dict(),
                    "touched": sorted(touched),
                    "recipe": json.dumps(recipe),
                },
                out / "model.tmp",
            )
            (out / "model.tmp").replace(out / "model.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", default="", help="folder of tiny-imagenet-pretrain-*.npz; empty: drawings alone"
    )
    parser.add_argument("--images", type=int, default=1_200_000, help="training images in all")
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    parser.add_argument(
        "--stop",
        type=int,
        default=0,
        help="stop after so many steps of the schedule that --images sets; 0: at its end",
    )
    parser.add_argument("--init", default="", help="checkpoint whose weights to begin with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, help="folder for the checkpoint")
    main(parser.parse_args())
