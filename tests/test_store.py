"""The store of features: images are known again by what they show, within a bound."""

import gc
import os
import tracemalloc

import pytest
import torch
from dassl_blackbox.trainers.blackbox import parts
from dassl_blackbox.trainers.blackbox.openclip import store as storing
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.openclip.store import KEY_BYTES, FeatureStore
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
    store = FeatureStore(limit=30 * (4 * 4 + KEY_BYTES))
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
    monkeypatch.setattr(parts, "IN_CACHE", together)
    images, known = torch.randn(11, 3, 8, 8), FeatureStore()
    keys = [key for image in images for key in known.fingerprints(image[None])]
    assert known.fingerprints(images) == keys and known.fingerprints(images[:0]) == []


def held(store):
    """Bytes of the storages behind the store's rows."""
    storages = {
        block.untyped_storage().data_ptr(): block.untyped_storage() for block in store.blocks
    }
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("rows", [100, 4096])
@pytest.mark.parametrize("E", [16, 128, 512])
def test_rows_keys_and_their_order_stay_within_the_bound(E, rows, monkeypatch):
    """Under eviction and with repeated contents, and what is found again is the same to the bit."""
    monkeypatch.setattr(storing, "BLOCK_ROWS", rows)
    limit, given = 2**20, {}
    store, drawn = FeatureStore(limit), torch.Generator().manual_seed(0)
    contents = torch.randn(6000, 3, 2, 2, generator=drawn)

    def encode(images):
        features = torch.randn(len(images), E)
        given.update(zip((image.numpy().tobytes() for image in images), features))
        return features

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(100):
        fresh = contents[60 * step : 60 * step + 60]
        old = contents[torch.randint(0, 60 * step + 60, (40,), generator=drawn)]
        images = torch.cat([fresh, old, fresh[:28]])
        found = store.fill(images, encode)
        expected = [given[image.numpy().tobytes()] for image in images]
        assert torch.equal(found, torch.stack(expected))
        assert held(store) + KEY_BYTES * len(store) <= limit
    del fresh, old, images, found, expected
    given.clear()
    gc.collect()
    keys = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert keys <= KEY_BYTES * len(store) + 20_000
    assert len(store) == limit // (4 * E + KEY_BYTES)  # and the bound is made use of


@pytest.mark.parametrize("n", [171, 2_731, 43_691])
def test_a_key_costs_what_is_counted_where_it_costs_most(n):
    """Just after the dictionary has grown, and with it and its successor in memory."""
    tracemalloc.start()
    store = FeatureStore()
    for i in range(2 * n):
        slot = store.slots.popitem(last=False)[1] if i >= n else i
        store.slots[os.urandom(16)] = slot
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 100 * n < peak < KEY_BYTES * n + 2_000


def test_a_row_that_stays_keeps_nothing_else_alive():
    """One image of each of 300 batches: their features were views of the batches'."""
    store = FeatureStore(limit=300 * (512 + KEY_BYTES))
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

    for limit, places in ((0, 0), (5 * (16 + KEY_BYTES), 5)):
        store = FeatureStore(limit)
        for _ in range(2):
            assert torch.equal(store.fill(images, encode), encode(images))
        assert len(store) == places and held(store) <= limit
        assert torch.equal(
            store.fill(images[-places or -1 :], encode), encode(images)[-places or -1 :]
        )
