"""The keys that say where the model is, and what its owner lets in and out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .keys import SECRET, Key, Rule, distinct, is_text, make, number, one, text, whole

OURS, OPENAI, HF = "blackbox", "openai", "hf"
APIS = (OURS, OPENAI, HF)
CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
TOKEN = re.compile(r"\b(sk-|hf_|eyJ)\w")  # how keys of services begin, wherever they stand


def is_local(node: Any) -> bool:
    return not node.URL


def is_remote(node: Any) -> bool:
    return bool(node.URL)


def is_spoken_to(node: Any) -> bool:
    """Whether `API` says what is asked; a class of one's own may do without a URL."""
    return is_remote(node) or ":" in node.API


def is_service(node: Any) -> bool:
    """Whether it is another service than our own server."""
    return bool(node.URL) and node.API != OURS


def lets_out(node: Any) -> bool:
    """Whether what is let out is as `TOP_K` says: services give all that they are asked about."""
    return not is_service(node)


def speaks_openai(node: Any) -> bool:
    return is_service(node) and node.API == OPENAI


def sends_several(node: Any) -> bool:
    """Whether a call holds more than one picture or text."""
    return is_service(node) and node.API != HF


def local_keys() -> dict[str, Key]:
    """Where the model is in this process, the configuration plays its owner."""
    return {
        "PREC": Key(
            "fp32", one("fp32", "fp16", "bf16", "amp"), "precision; amp: autocast", is_local
        ),
        "GRANTS": Key(
            ("contexts", "logits"),
            distinct("contexts", "image_tokens", "logits", "features"),
            "what the model's owner lets out or in",
            is_local,
        ),
        "TOP_K": Key(
            0, whole(0), "0: logits; k: an image's k largest log-probabilities", lets_out, True
        ),
    }


def api_rule() -> Rule:
    """A wire format that is known, or a class of one's own."""
    return make(
        f"one of {', '.join(APIS)}, or module:Class",
        lambda value: is_text(value) and (value in APIS or bool(CLASS.fullmatch(value))),
        (*APIS, "my.module:Service"),
        ("Openai_", "module:", ":Class"),
        APIS,
    )


def is_url(value: Any) -> bool:
    """Whether it is the URL of a service, with no secret in it: it is written into logs."""
    try:
        parts = urlsplit(value)
        asked = f"{parts.query}&{parts.fragment}".replace(";", "&")
        queries = parse_qsl(asked, keep_blank_values=True)
        return (
            is_text(value)
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0  # whose look at it raises for one that is no number
            and not {"@", "%"} & set(parts.netloc)
            and not TOKEN.search(value)
            and not any(SECRET.search(name) for name, _ in queries)
        )
    except (AttributeError, TypeError, ValueError):
        return False


def url_rule() -> Rule:
    """Nothing, or a URL that `is_url`."""
    rule = make(
        "a URL without user, password or key (which BLACKBOX_KEY holds), http://… or https://…",
        lambda value: value == "" or is_url(value),
        ("", "http://127.0.0.1:8900", "https://models.example/@cf/v1?api-version=2024-02-01"),
        (
            "x",
            "ftp://a",
            "http://",
            "http://a:b",
            "http://u:p@a",
            "http://u%3Ap%40a",
            "https://a/v1?api_key=k",
            "https://a/v1#sk-k",
        ),
    )
    return replace(rule, hides=True)


def remote_keys() -> dict[str, Key]:
    """A model behind HTTP. The environment variable BLACKBOX_KEY holds the key."""
    return {
        "URL": Key(
            "", url_rule(), "of a service that holds the model; empty: it is in this process"
        ),
        "API": Key(OURS, api_rule(), "what it speaks: blackbox is our own server", is_spoken_to),
        "TIMEOUT": Key(60.0, number(above=0), "seconds without a byte before a new try", is_remote),
        "PATIENCE": Key(300.0, number(0), "seconds before a request is given up", is_remote),
        # for OpenAI's and OpenCLIP's CLIP models; no service tells it
        "LOGIT_SCALE": Key(100.0, number(above=0), "logits = scale x cosine", is_service, True),
        "IMAGES": Key(
            "modality", one("modality", "items", "data_uri"), "an image in JSON", speaks_openai
        ),
        "BATCH": Key(32, whole(1), "pictures or texts of one call (Infinity: 32)", sends_several),
        "THREADS": Key(8, whole(1, 100), "calls at a time, if each is about a picture", is_service),
        "PRICE": Key(0.0, number(0), "of a picture, in money; 0: no bill in money", is_service),
        "CACHE": Key(
            "~/.cache/dassl-blackbox", text(), "folder of answers; empty: none is kept", is_service
        ),
    }


WHERE = tuple(f"ORACLE.{key}" for key in (*local_keys(), *remote_keys()))
