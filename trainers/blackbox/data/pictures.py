"""The training pictures, read and decoded once a run."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

TOGETHER = 256  # pictures that are read ahead
DECODED = 0.75  # share of the bound for decoded pictures; the rest holds files as they are, for those that found no room


def as_it_is(image):
    return image


class Pictures:
    """Keeps RGB pictures of the files in `paths` within a bound of bytes: decoded while there is room, then as the file's bytes, then not at all.

    Args:
        limit: the bound.
        hold: what is kept of a decoded picture, and given out.
    """

    def __init__(self, limit, hold=as_it_is):
        self.paths, self.decoded, self.files, self.hold = set(), {}, {}, hold
        self.epoch = 0  # of the run, for the turns of INPUT.VIEWS
        self.room = {"decoded": int(limit * DECODED), "files": int(limit * (1 - DECODED))}

    def open(self, path):
        """The picture of any file; what is kept must not be changed in place."""
        if path in self.decoded:
            return self.decoded[path]
        if path in self.files:
            return self.hold(decode(self.files[path]))
        if path not in self.paths:
            return self.hold(Image.open(path).convert("RGB"))
        return self.keep(path, *read(path))

    def keep(self, path, data, image):
        """Keep a picture in the form for which there is room; returns what `hold` makes of it."""
        held = self.hold(image)
        if self.fits("decoded", image.width * image.height * 4):  # Pillow keeps four bytes a pixel
            self.decoded[path] = held
        elif self.fits("files", len(data)):
            self.files[path] = data
        else:
            self.paths.discard(path)
        return held

    def fits(self, kind, size):
        if size > self.room[kind]:
            return False
        self.room[kind] -= size
        return True

    def load(self, workers):
        """Read them now, so that processes that are forked from this one find them. A broken file is left to who asks for it."""
        paths = sorted(self.paths)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, len(paths), TOGETHER):
                part = paths[start : start + TOGETHER]
                for path, found in zip(part, pool.map(read_if_sound, part)):
                    if found is not None:
                        self.keep(path, *found)
                if part[-1] not in self.paths:
                    return  # no room for more


def decode(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def read(path):
    """(the file's bytes, its picture)."""
    data = Path(path).read_bytes()
    return data, decode(data)


def read_if_sound(path):
    try:
        return read(path)
    except (OSError, SyntaxError, ValueError):  # Pillow raises any of them on a broken file
        return None
