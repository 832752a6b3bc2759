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
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny
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
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
JUDGED_EVERY = 500  # steps


class Material:
    """What is trained on: classes, drawings of theirs, and photographs.

    `numbers` `[N]` are those of the photographs' classes; `pool` has the rows of those that are
    trained on, `judged` images, labels and captions of the others.
    """

    def __init__(self, folder: str, seed: int, rng: random.Random):
        photos, labels, names = tiny.load_photos(folder) if folder else (None, np.zeros(0, int), [])
        used = sorted(set(labels.tolist()))
        self.photos, self.classes = photos, tiny.build_classes([names[k] for k in used])
        self.masks, self.index = tiny.mask_bank(self.classes, rng)
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
            self.judged = tiny.photo_batch(photos[aside], None), truth, captions

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
        images = tiny.draw_batch([self.classes[i] for i in numbers], masks, generator)
        if photographed:
            drawn = torch.randint(len(self.pool), (photographed,), generator=generator)
            rows = self.pool[drawn.numpy()]
            images = torch.cat([images, tiny.photo_batch(self.photos[rows], generator)])
            numbers += self.numbers[rows].tolist()
        return images, numbers


def optimiser(
    model: CLIP, rate: float, steps: int, warm_up: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and half a cosine of its rate after a linear warm-up, down to 1 %."""
    decay = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY}
    rest = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    optim = torch.optim.AdamW([decay, rest], lr=rate, betas=BETAS)

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
    captions = [f"a photo of the digit {word}." for word in tiny.DIGITS]
    judged = {"digits": (*tiny.digits_training_split(), captions), "photos": material.judged}
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
        tokens = tokenizer([tiny.caption(cls, rng) for cls in material.classes])
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
            scores = {
                k: tiny.judge(model, tokenizer, *given) for k, given in judged.items() if given
            }
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
