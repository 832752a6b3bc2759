"""Servers on loopback with the wire shapes of real services, and what is asked of them."""

import base64
import io
import json
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import build_oracle
from PIL import Image
from support import defaults
from torchvision.transforms import functional as T

MOST = 32  # pictures of one request to Infinity
KEY = "key-of-a-test-8c1f"
DATA = "data:image/png;base64,"
NAMES = ["zero", "one_two", "three"]
TEXTS = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]


@cache
def tiny():
    return load_model("tiny", "fp32", torch.device("cpu"))


SCALE = tiny().description.logit_scale


@cache
@torch.no_grad()
def embedded(*texts):
    return tiny().model.encode_text(tiny().tokenizer(list(texts)))


def embed_texts(texts):
    return embedded(*texts)


@torch.no_grad()
def embed_images(coded):
    pictures = [Image.open(io.BytesIO(base64.b64decode(code, validate=True))) for code in coded]
    assert {(picture.format, picture.mode, picture.size) for picture in pictures} == {
        ("PNG", "RGB", (32, 32))
    }
    about = tiny().description
    pixels = [T.normalize(T.to_tensor(picture), about.mean, about.std) for picture in pictures]
    return tiny().model.encode_image(torch.stack(pixels))


class Served:
    """A server of `answer(service, path, body) -> (status, headers, content)`, which answers
    `faults` first, or `always` one. `requests` are decoded bodies, also of what met a fault;
    `pictures` and `texts` were sent in requests that were answered; `keys` in `Authorization`.
    """

    def __init__(self, answer):
        self.faults, self.requests, self.keys, self.always = [], [], set(), None
        self.pictures = self.texts = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                service.keys.add(self.headers.get("Authorization"))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append(body)
                if service.always or service.faults:
                    given = service.always or service.faults.pop(0)
                else:
                    given = answer(service, self.path, body)
                status, headers, content = given
                written = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(written), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(written)
                self.close_connection = int(headers.get("Content-Length", 0)) > len(written)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def openai(spelling, scale=1.0):
    """Embeddings, out of order, with pictures in one `spelling` (ORACLE.IMAGES); features are
    `scale` long, in base64 where that is asked for.
    """

    def answer(service, path, body):
        if path != "/embeddings":
            return 404, {}, {"detail": "Not Found"}
        items, pictures, texts = body["input"], [], []
        if spelling == "items":
            pictures = [item["image"] for item in items if "image" in item]
            texts = [item["text"] for item in items if "text" in item]
            assert "modality" not in body and "encoding_format" not in body
        elif all(item.startswith(DATA) for item in items):
            pictures = [item.removeprefix(DATA) for item in items]
        else:
            texts = items
        if spelling == "modality":
            assert body["modality"] == ("image" if pictures else "text")
        if len(pictures) > MOST:  # FastAPI says all of a list that is too long
            told = f"List should have at most {MOST} items after validation, not {len(items)}"
            place = {"type": "too_long", "loc": ["body", "image", "input"]}
            return 422, {}, {"detail": [{**place, "msg": told, "input": items}]}
        rows = F.normalize(embed_images(pictures) if pictures else embed_texts(texts), dim=-1)
        service.pictures += len(pictures)
        service.texts += len(texts)
        found = [row.tolist() for row in rows * scale]
        if body.get("encoding_format") == "base64":
            found = [base64.b64encode(row.numpy().tobytes()).decode() for row in rows * scale]
        data = [
            {"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(found)
        ]
        told = {"usage": {"total_tokens": 7 * len(items)}} if spelling == "items" else {}
        return 200, {}, {"object": "list", "data": data[::-1], "model": "m", **told}

    return Served(answer)


def zero_shot(scale):
    """Scores of the task zero-shot-image-classification, sorted, one picture a request."""

    def answer(service, path, body):
        labels = body["parameters"]["candidate_labels"]
        template = body["parameters"]["hypothesis_template"]
        image = F.normalize(embed_images([body["inputs"]]), dim=-1)
        text = F.normalize(embed_texts([template.format(label) for label in labels]), dim=-1)
        scores = (scale * image @ text.T)[0].softmax(-1)
        service.pictures += 1
        service.texts += len(labels)
        found = [{"score": s, "label": label} for s, label in zip(scores.tolist(), labels)]
        return 200, {}, sorted(found, key=lambda entry: -entry["score"])

    return Served(answer)


def at(server, cache="", api="openai", **more):
    """Options of a run over a server."""
    given = {"URL": server.url, "API": api, "CACHE": cache, "LOGIT_SCALE": SCALE, "PATIENCE": 5.0}
    given |= more
    oracle = [part for key, value in given.items() for part in (f"ORACLE.{key}", str(value))]
    return [*oracle, "INPUT.SIZE", "(32, 32)", "INPUT.INTERPOLATION", "bicubic"]


def oracle_at(server, classes=NAMES, **more):
    """An oracle with classes, its pictures normalised as the model's are."""
    cfg, about = defaults(), tiny().description
    cfg.merge_from_list([*at(server, **more), "MODEL.BACKBONE.NAME", "tiny"])
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(about.mean), list(about.std)
    oracle = build_oracle(cfg, "cpu", "a test")
    oracle.set_classes(classes, "a photo of a {}.")
    return oracle


def local_logits(pixels, texts):
    model = tiny()
    with torch.no_grad():
        image = model.model.encode_image(pixels)
        text = model.model.encode_text(model.tokenizer(texts))
    return SCALE * torch.cosine_similarity(image[:, None], text[None], dim=-1)
