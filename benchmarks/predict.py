"""Pictures a second that `ScoreClassifier.predict` labels, beside open_clip's own zero-shot loop:

    python benchmarks/predict.py --model tiny --pictures 10000

The loop decodes each picture, encodes it and scores it on the class texts, in batches of 128; the
classifier does so too, with a head on 16 pictures a class. Both are given the same files, digits
that are drawn for it, in turns. Memory is the largest that the process had, after a tenth of the
pictures and after all.
"""

import resource
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import torch
from common import parser, show
from dassl_blackbox import ScoreClassifier, listed
from dassl_blackbox.commands import draw
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from PIL import Image
from torch.nn.functional import normalize
from torchvision import transforms as T


@torch.no_grad()
def zero_shot(loaded, paths, names):
    """The labels of open_clip's loop over files."""
    model, about = loaded.model, loaded.description
    size = about.image_size
    steps = [T.Resize(size, T.InterpolationMode(about.interpolation)), T.CenterCrop(size)]
    steps += [T.ToTensor(), T.Normalize(about.mean, about.std)]
    preprocess = T.Compose(steps)
    texts = loaded.tokenizer([f"a scan of a handwritten {name}." for name in names])
    text = normalize(model.encode_text(texts), dim=-1)
    found = []
    for first in range(0, len(paths), 128):
        pictures = [Image.open(path).convert("RGB") for path in paths[first : first + 128]]
        image = normalize(model.encode_image(torch.stack(list(map(preprocess, pictures)))), dim=-1)
        found += (image @ text.mT).argmax(1).tolist()
    return found


def memory():
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--model", default="tiny")
    made.add_argument("--pictures", type=int, default=10_000)
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw(Namespace(folder=folder, shots=16))
        scans = [Image.open(path).convert("RGB") for path in listed(f"{folder}/new")]
        paths = [str(Path(folder, f"{number:06}.png")) for number in range(args.pictures)]
        for number, path in enumerate(paths):  # each of other contents
            picture = scans[number % len(scans)].copy()
            picture.putpixel((number % 32, 0), (number % 256, number // 256 % 256, 0))
            picture.save(path)
        clf = ScoreClassifier(args.model, flip=False, progress=False).fit(f"{folder}/train")
        loaded, rows = load_model(args.model, "fp32", torch.device("cpu")), []
        tenth = len(paths) // 10
        for what, run in (
            ("open_clip's zero-shot loop", lambda part: zero_shot(loaded, part, clf.classes_)),
            ("ScoreClassifier.predict", clf.predict),
        ):
            run(paths[:tenth])
            early, start = memory(), time.perf_counter()
            run(paths[tenth:])
            seconds = time.perf_counter() - start
            rows.append([what, f"{(len(paths) - tenth) / seconds:,.0f}", early, memory()])
        show(["", "pictures a second", "memory after a tenth", "after all"], rows)
