"""Writes the embedded model as a directory that `transformers` and its servers load.

    python tools/transformers_clip.py FOLDER

Such a directory is what Infinity and other servers of embeddings are pointed at; its answers are
those of the model here. Vocabulary and merges are written from open_clip's file.
"""

import gzip
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # that OpenAI's tokenizer reads of its file
NAMES = {  # of open_clip's blocks, in those of transformers
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
PLACES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}


def converted(state):
    """The state dict of open_clip's CLIP under the names of `CLIPModel`."""
    found = {
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
    }
    for name, tensor in state.items():
        whole, _, last = name.rpartition(".")
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            found |= of_block(f"{tower}.encoder.layers.{block[2]}.", block[3], tensor)
        elif name in PLACES:
            found[PLACES[name]] = tensor
        elif whole in PLACES:
            found[f"{PLACES[whole]}.{last}"] = tensor
    return found


def of_block(place, name, tensor):
    """One tensor of a block; what makes queries, keys and values is cut in three."""
    part, _, last = name.rpartition(".")
    if part in NAMES:
        return {f"{place}{NAMES[part]}.{last}": tensor}
    kind = name.removeprefix("attn.in_proj_")
    cut = zip("qkv", tensor.chunk(3), strict=True)
    return {f"{place}self_attn.{letter}_proj.{kind}": third.clone() for letter, third in cut}


def configuration(model):
    """The model's configuration in the keys of `CLIPConfig`."""
    text, vision = model["text_cfg"], model["vision_cfg"]
    activation = "quick_gelu" if model["quick_gelu"] else "gelu"
    both = {"hidden_act": activation, "projection_dim": model["embed_dim"]}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model["embed_dim"],
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "clip_text_model",
            **both,
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
            "pad_token_id": text["vocab_size"] - 1,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **both,
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "num_hidden_layers": vision["layers"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
    }


def preprocessing(size, given):
    """Resize the shorter side, cut out the middle, normalise."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": given["mean"],
        "image_std": given["std"],
        "do_convert_rgb": True,
    }


def tokenizer_files():
    """`vocab.json` and `merges.txt` of OpenAI's tokenizer."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    content = gzip.decompress(path.read_bytes()).decode("utf-8")
    merges = content.split("\n")[1 : MERGES + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges] + [SOT, EOT]
    vocabulary = json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False)
    return vocabulary, "\n".join(["#version: 0.2", *merges]) + "\n"


def write(folder):
    """All files of the directory."""
    from dassl_blackbox.trainers.blackbox.openclip.embedded import (
        embedded_config,
        embedded_state_dict,
    )
    from safetensors.torch import save_file

    folder, config = Path(folder), embedded_config("tiny")
    folder.mkdir(parents=True, exist_ok=True)
    state = converted(embedded_state_dict("tiny"))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    special = {"bos_token": SOT, "eos_token": EOT, "unk_token": EOT, "pad_token": EOT}
    model = configuration(config["model_cfg"])
    length = config["model_cfg"]["text_cfg"]["context_length"]
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    for name, content in {
        "config.json": model,
        "preprocessor_config.json": preprocessing(size, config["preprocess_cfg"]),
        "tokenizer_config.json": {**tokenizer, "do_lower_case": True},
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    vocabulary, merges = tokenizer_files()
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


if __name__ == "__main__":
    write(*sys.argv[1:])
