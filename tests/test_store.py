"""The store of features: images are known again by what they show, within a bound."""

import os
import resource
from pathlib import Path

import pytest
import torch
from dassl_blackbox.trainers.blackbox.openclip.local import ROW_BYTES, FeatureStore
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.oracle import interface
from dassl_blackbox.trainers.blackbox.oracle.prompt import Prompt
from oracles import contexts_of, counter, oracle_over, pixels


def test_images_are_known_again_by_their_content():
    oracle = oracle_over(load_model("tiny"), ("contexts", "logits"))
    encoded = counter(oracle.model.visual.ln_post)
    images = pixels(oracle, B=20)
    first = oracle.query(oracle.upload(images), Prompt(contexts_of(oracle)))
    again = oracle.query(oracle.upload(images.flip(0).clone()), Prompt(contexts_of(oracle)))
    assert len(encoded) == 1 and torch.equal(again.flip(1), first)
    images[:10, 0, 0, 0] += 1e-3  # one pixel of every second one
    mixed = oracle.query(oracle.upload(images), Prompt(contexts_of(oracle)))
    assert (
        len(encoded) == 2
        and torch.equal(mixed[:, 10:], first[:, 10:])
        and not torch.equal(mixed[:, :10], first[:, :10])
    )


def test_the_store_asks_for_each_content_once_and_forgets_the_oldest():
    asked = []

    def encode(images):
        asked.append(len(images))
        return images.flatten(1)[:, :4]

    images = torch.randn(40, 3, 4, 4)
    store = FeatureStore(limit=30 * (4 * 4 + ROW_BYTES))
    double = torch.cat([images[:20], images[:20]])
    assert torch.equal(store.fill(double, encode), encode(double)) and asked == [20, 40]
    store.fill(images[:10], encode)
    store.fill(
        images[20:], encode
    )  # 40 contents for 30 places: the ten that were used longest ago go
    assert asked == [20, 40, 20] and len(store) == 30
    store.fill(images[:10], encode)
    assert asked == [20, 40, 20]
    assert torch.equal(
        store.fill(images[10:20], encode), images[10:20].flatten(1)[:, :4]
    ) and asked == [20, 40, 20, 10]


def test_a_few_unknown_images_are_encoded_in_company_of_eight():
    asked, store = [], FeatureStore()

    def encode(images):
        asked.append(len(images))
        return images.flatten(1)[:, :4]

    images = torch.randn(128, 3, 4, 4)
    store.fill(images[:120], encode)
    for known in (120, 125, 127, 128):
        assert torch.equal(
            store.fill(images[:known].flip(0), encode), images[:known].flip(0).flatten(1)[:, :4]
        )
    assert asked == [120, 8, 8, 8]


def test_fingerprints_tell_images_apart():
    images = (torch.randint(0, 256, (200, 3, 8, 8)).float() / 255 - 0.5) / 0.25
    twisted = [
        images,
        -images,
        images.flip(-1),
        images.roll(1, -1),
        images.transpose(-1, -2),
        images + 1e-6,
        images * (1 + 2**-20),
    ]
    keys = FeatureStore().fingerprints(torch.cat(twisted))
    assert len(set(keys)) == 7 * 200
    one_bit = images[:1].repeat(192, 1, 1, 1)
    one_bit.view(192, -1).view(torch.int32)[torch.arange(192), torch.arange(192)] ^= torch.tensor(
        [1 << (i % 31) for i in range(192)], dtype=torch.int32
    )
    assert len(set(FeatureStore().fingerprints(one_bit))) == 192


@pytest.mark.parametrize("together", [1, 700, 10**6])
def test_a_fingerprint_does_not_depend_on_the_company(together, monkeypatch):
    monkeypatch.setattr(interface, "IN_CACHE", together)
    images, known = torch.randn(11, 3, 8, 8), FeatureStore()
    keys = [key for image in images for key in known.fingerprints(image[None])]
    assert known.fingerprints(images) == keys and known.fingerprints(images[:0]) == []


def held(store):
    """Bytes of the storages behind the store's rows."""
    return sum(row.untyped_storage().nbytes() for row in store.values())


@pytest.mark.parametrize("E", [16, 128, 512])
def test_rows_stay_within_the_bound(E):
    """Under eviction and with repeated contents, and what is found again is the same to the bit."""
    limit, given = 2**20, {}
    store, drawn = FeatureStore(limit), torch.Generator().manual_seed(0)
    contents = torch.randn(6000, 3, 2, 2, generator=drawn)

    def encode(images):
        features = torch.randn(len(images), E)
        given.update(zip((image.numpy().tobytes() for image in images), features))
        return features

    for step in range(100):
        fresh = contents[60 * step : 60 * step + 60]
        old = contents[torch.randint(0, 60 * step + 60, (40,), generator=drawn)]
        images = torch.cat([fresh, old, fresh[:28]])
        found = store.fill(images, encode)
        expected = [given[image.numpy().tobytes()] for image in images]
        assert torch.equal(found, torch.stack(expected))
        assert held(store) + ROW_BYTES * len(store) <= limit
    assert len(store) == limit // (4 * E + ROW_BYTES)  # and the bound is made use of


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_a_row_costs_what_is_counted():
    """Beside its numbers, of all memory of the process."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    features, store, before = torch.randn(100, 16), FeatureStore(), resident()
    for _ in range(1000):
        keys = [os.urandom(16) for _ in range(100)]
        store.named(keys, lambda rows: features[rows], lambda rows: rows)
    taken = resident() - before
    assert len(store) == 100_000 and taken / len(store) - 64 < ROW_BYTES


def test_a_row_that_stays_keeps_nothing_else_alive():
    """One image of each of 300 batches: their features were views of the batches'."""
    store = FeatureStore(limit=300 * (512 + ROW_BYTES))
    kept = torch.randn(300, 3, 2, 2)
    for i in range(300):
        batch = torch.cat([kept[i : i + 1], torch.randn(39, 3, 2, 2)])
        store.fill(batch, lambda images: torch.randn(len(images), 128))
        store.fill(kept[: i + 1], lambda images: torch.randn(len(images), 128))
    assert len(store) == 300 and held(store) <= 300 * 512


def test_a_batch_that_does_not_fit_is_answered_all_the_same():
    images, asked = torch.randn(20, 3, 4, 4), []

    def encode(images):
        asked.append(len(images))
        return images.flatten(1)[:, :4]

    for limit, places in ((0, 0), (5 * (16 + ROW_BYTES), 5)):
        store = FeatureStore(limit)
        for _ in range(2):
            assert torch.equal(store.fill(images, encode), encode(images))
        assert len(store) == places and held(store) <= limit
        assert torch.equal(
            store.fill(images[-places or -1 :], encode), encode(images)[-places or -1 :]
        )
