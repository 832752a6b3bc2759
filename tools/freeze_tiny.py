"""Turns a checkpoint of `pretrain_tiny.py` into the files of `trainers/blackbox/assets/`, and
exports the embedded model for other code.

    python tools/freeze_tiny.py freeze stage2/model.pt
    python tools/freeze_tiny.py export tiny_clip.pt

`freeze` writes tiny.safetensors, tiny.json and tiny_recipe.json; `export` the full state dict, in
the layout of OpenAI's CLIP, which code that vendors OpenAI's CLIP loads unchanged. Weights are
stored as float16, and of the token embeddings only the rows that training touched: the loader fills
in the others from a seed.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dassl_blackbox.console import parser_of
from dassl_blackbox.trainers.blackbox.bank import TEMPLATES
from dassl_blackbox.trainers.blackbox.openclip.embedded import ASSETS, embedded_state_dict
from dassl_blackbox.trainers.blackbox.openclip.local import LocalOracle
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import Prompt


def freeze(source: str) -> str:
    """Write the three files; returns the SHA-256 of the weights."""
    import pretrain_tiny
    from photo.tower import PREPROCESS

    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    state, recipe = checkpoint["state_dict"], json.loads(checkpoint["recipe"])
    rows = torch.tensor(checkpoint["touched"])
    tensors = {k: v.half().contiguous() for k, v in state.items() if k != "token_embedding.weight"}
    tensors["token_embedding.touched"] = state["token_embedding.weight"][rows].half().contiguous()
    tensors["token_embedding.rows"] = rows.to(torch.int32)
    save_file(tensors, ASSETS / "tiny.safetensors")
    config = {"model_cfg": recipe.pop("model"), "preprocess_cfg": PREPROCESS}
    (ASSETS / "tiny.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    lines = map(str.strip, pretrain_tiny.__doc__.splitlines())
    recipe["commands"] = [
        " ".join(line.split()) for line in lines if line.startswith("python tools/pretrain_tiny.py")
    ]
    recipe["zero_shot"]["digits, the data set's template"] = template_accuracy()
    recipe["zero_shot_note"] = (
        "per cent, by the script's judge: digits is the training split of Digits with 'a photo of "
        "the digit {}.', photos are photographs set aside from pretraining"
    )
    recipe["sha256"] = hashlib.sha256((ASSETS / "tiny.safetensors").read_bytes()).hexdigest()
    (ASSETS / "tiny_recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return recipe["sha256"]


def template_accuracy() -> float:
    """Zero-shot accuracy in per cent of the frozen model on Digits' training split, with Digits'
    own template.
    """
    import pretrain_tiny

    images, labels = pretrain_tiny.digits_training_split()
    oracle = LocalOracle(load_model("tiny"))
    oracle.set_classes(pretrain_tiny.DIGITS, TEMPLATES["Digits"])
    logits = oracle.query(oracle.upload(images), Prompt())[0]
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def export(target: str) -> None:
    torch.save(embedded_state_dict("tiny"), target)  # plain, for any reader


if __name__ == "__main__":
    parser = parser_of("tools/freeze_tiny.py", __doc__)
    parser.add_argument("action", choices=("freeze", "export"))
    parser.add_argument("path", help="the checkpoint to freeze, or the file to write")
    arguments = parser.parse_args()
    print({"freeze": freeze, "export": export}[arguments.action](arguments.path) or "written")
