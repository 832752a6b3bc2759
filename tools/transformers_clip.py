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

import open_clip
from open_clip.tokenizer import bytes_to_unicode
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dassl_blackbox.trainers.blackbox.openclip.embedded import embedded_config, embedded_state_dict

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # that OpenAI's tokenizer reads of its file
NAMES = (  # of open_clip's tensors, in those of transformers
    (r"^(visual\.)?transformer\.resblocks", lambda m: f"{m[1] or ''}encoder.layers"),
    (r"ln_(\d)", r"layer_norm\1"),
    (r"mlp\.c_fc", "mlp.fc1"),
    (r"mlp\.c_proj", "mlp.fc2"),
    (r"attn\.", "self_attn."),
    (r"^(token_embedding\.weight)", r"embeddings.\1"),
    (r"^(visual\.)?(positional_embedding)$", r"\1embeddings.position_embedding.weight"),
    (r"^ln_final", "final_layer_norm"),
    (r"^visual\.class_embedding", "visual.embeddings.class_embedding"),
    (r"^visual\.conv1", "visual.embeddings.patch_embedding"),
    (r"^visual\.ln_pre", "visual.pre_layrnorm"),
    (r"^visual\.ln_post", "visual.post_layernorm"),
    (r"^(visual\.)?", lambda m: "vision_model." if m[1] else "text_model."),
)


def converted(state):
    """The state dict of open_clip's CLIP under the names of `CLIPModel`."""
    found = {
        "logit_scale": state.pop("logit_scale"),
        "text_projection.weight": state.pop("text_projection").T.contiguous(),
        "visual_projection.weight": state.pop("visual.proj").T.contiguous(),
    }
    for name, tensor in state.items():
        for pattern, other in NAMES:
            name = re.sub(pattern, other, name)
        before, joint, kind = name.partition("in_proj_")  # of queries, keys and values
        if joint:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{before}{letter}_proj.{kind}"] = third.clone()
        else:
            found[name] = tensor
    return found


def configuration(model):
    """The model's configuration in the keys of `CLIPConfig`, whose defaults are OpenAI's."""
    text, vision = model["text_cfg"], model["vision_cfg"]
    both = {"projection_dim": model["embed_dim"]}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **both,
        "text_config": {
            **both,
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
            "eos_token_id": text["vocab_size"] - 1,
        },
        "vision_config": {
            **both,
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "num_hidden_layers": vision["layers"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
    }


def tokenizer_files():
    """`vocab.json` and `merges.txt` of OpenAI's tokenizer."""
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges] + [SOT, EOT]
    vocabulary = json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False)
    return {"vocab.json": vocabulary, "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n"}


def write(folder):
    """All files of the directory."""
    folder, config = Path(folder), embedded_config("tiny")
    folder.mkdir(parents=True, exist_ok=True)
    state = converted(embedded_state_dict("tiny"))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    special = {"bos_token": SOT, "eos_token": EOT, "unk_token": EOT, "pad_token": EOT}
    pictures = {  # resized, cut and normalised as OpenAI's are
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    for name, content in {
        "config.json": configuration(config["model_cfg"]),
        "preprocessor_config.json": pictures,
        "tokenizer_config.json": tokenizer,
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, text in tokenizer_files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(*sys.argv[1:])
