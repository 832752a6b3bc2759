"""WordNet's nouns, read from the files of its database."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

# Lexicographer files of nouns whose referents can be photographed (lexnames(5WN)).
PICTURED = {5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 20: "plant"}


@dataclass(frozen=True)
class Synset:
    """A meaning: the words that have it, the meanings above it, and its definition."""

    category: int
    words: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str


def entries(path: Path) -> list[str]:
    """The lines of a database file without the licence at its head."""
    lines = path.read_text(encoding="latin-1").splitlines()
    return [line for line in lines if line and not line.startswith(" ")]


class WordNet:
    """Synsets by their offset in `data.noun`, and the offsets of every word, commonest first.

    Args:
        folder: with `data.noun`, `index.noun` and `cntlist.rev`, as Debian's package
            `wordnet-base` installs them in /usr/share/wordnet.
    """

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        self.senses: dict[str, list[str]] = {}
        self.counts: dict[tuple[str, int], int] = {}
        for line in entries(folder / "data.noun"):
            self.add_synset(line)
        for line in entries(folder / "index.noun"):
            fields = line.split()
            self.senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        for line in entries(folder / "cntlist.rev"):
            key, number, count = line.split()
            word, _, rest = key.partition("%")
            if rest.startswith("1:"):  # a noun
                self.counts[word.replace("_", " "), int(number)] = int(count)

    def add_synset(self, line: str) -> None:
        """A line of data.noun: offset, category, words, pointers, and the gloss after " | "."""
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(w.replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
        rest = fields[4 + 2 * count :]
        pointers = zip(rest[1::4], rest[2::4], strict=False)
        parents = tuple(offset for kind, offset in pointers if kind in ("@", "@i"))
        definition = gloss.strip().split('; "')[0]  # without the examples
        self.synsets[fields[0]] = Synset(int(fields[1]), words, parents, definition)

    def chain(self, offset: str, length: int) -> list[str]:
        """The first word of up to `length` meanings above, the nearest first."""
        words: list[str] = []
        while self.synsets[offset].parents and len(words) < length:
            offset = self.synsets[offset].parents[0]
            words.append(self.synsets[offset].words[0])
        return words

    @functools.cache  # noqa: B019 - one WordNet a process
    def above(self, offset: str) -> frozenset[str]:
        """The meaning itself and all above it."""
        return frozenset({offset}).union(*map(self.above, self.synsets[offset].parents))

    def shares(self, word: str, pictured: set[str]) -> dict[str, float]:
        """How often a word has each of its meanings that can be photographed; they sum to one."""
        counted = {
            offset: self.counts.get((word.lower(), number), 0) + 0.5
            for number, offset in enumerate(self.senses.get(word.lower(), ()), start=1)
            if offset in pictured
        }
        total = sum(counted.values())
        return {offset: count / total for offset, count in counted.items()}
