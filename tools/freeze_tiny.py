"""Turns a checkpoint of `pretrain_tiny.py` into the files of `trainers/blackbox/assets/`, and
exports the embedded model for other code.

    python tools/freeze_tiny.py freeze stage2/model.pt
    python tools/freeze_tiny.py export tiny_clip.pt

`freeze` writes tiny.safetensors, tiny.json and tiny_recipe.json; `export` the full state
dict, in the layout of OpenAI's CLIP.

Weights are stored as float16, and of the token embeddings only the rows that training touched: the
loader fills in the others from a seed. The exported file loads unchanged into code that vendors
OpenAI's CLIP.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def freeze(source: str) -> str:
    """Write the three files; returns the SHA-256 of the weights."""
    import pretrain_tiny as pretraining
    from dassl_blackbox.trainers.blackbox.openclip.embedded import ASSETS
    from safetensors.torch import save_file
    from tiny.judge import digits_training_split

    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    state, recipe = checkpoint["state_dict"], json.loads(checkpoint["recipe"])
    rows = torch.tensor(checkpoint["touched"])
    tensors = {k: v.half().contiguous() for k, v in state.items() if k != "token_embedding.weight"}
    tensors["token_embedding.touched"] = state["token_embedding.weight"][rows].half().contiguous()
    tensors["token_embedding.rows"] = rows.to(torch.int32)
    ASSETS.mkdir(parents=True, exist_ok=True)
    save_file(tensors, ASSETS / "tiny.safetensors")
    preprocess = {
        "mean": OPENAI_DATASET_MEAN,
        "std": OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": recipe.pop("model"), "preprocess_cfg": preprocess}
    (ASSETS / "tiny.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    recipe["commands"] = [
        " ".join(line.split())
        for line in pretraining.__doc__.splitlines()
        if line.strip().startswith("python tools/pretrain_tiny.py")
    ]
    recipe["zero_shot"]["digits, the data set's template"] = template_accuracy(
        digits_training_split()
    )
    recipe["zero_shot_note"] = (
        "per cent, by the script's judge: digits is the training split of Digits with 'a photo of "
        "the digit {}.', photos are photographs set aside from pretraining"
    )
    recipe["sha256"] = hashlib.sha256((ASSETS / "tiny.safetensors").read_bytes()).hexdigest()
    (ASSETS / "tiny_recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return recipe["sha256"]


def template_accuracy(digits: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Zero-shot accuracy in per cent of the frozen model on images `[N, 3, 32, 32]` and labels,
    with Digits' own template.
    """
    from dassl_blackbox.trainers.blackbox.config import TEMPLATES
    from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
    from dassl_blackbox.trainers.blackbox.openclip.models import load_model
    from tiny.captions import DIGITS

    images, labels = digits
    oracle = LocalOracle(load_model("tiny"))
    oracle.set_classes(DIGITS, TEMPLATES["Digits"])
    logits = oracle.query(oracle.upload(images), torch.zeros(1, 0, oracle.description.width))[0]
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def export(target: str) -> None:
    from dassl_blackbox.trainers.blackbox.files import write_atomically
    from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_state_dict

    state = embedded_state_dict("tiny")
    write_atomically(target, lambda f: torch.save(state, f))  # plain, for any reader


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("freeze", "export"))
    parser.add_argument("path", help="the checkpoint to freeze, or the file to write")
    arguments = parser.parse_args()
    print(
        freeze(arguments.path)
        if arguments.action == "freeze"
        else f"{arguments.path}: {export(arguments.path) or 'written'}"
    )
