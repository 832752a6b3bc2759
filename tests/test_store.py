"""The store of features: images are known again by what they show, within a bound."""

import torch
from dassl_blackbox.trainers.blackbox.oracle.models import load_model
from dassl_blackbox.trainers.blackbox.oracle.store import FeatureStore
from test_oracle import contexts_of, counter, oracle_over, pixels


def test_images_are_known_again_by_their_content():
    oracle = oracle_over(load_model("tiny"), ("logits",))
    encoded = counter(oracle.model.visual.ln_post)
    images = pixels(oracle, B=20)
    first = oracle.query(oracle.upload(images), contexts_of(oracle))
    again = oracle.query(oracle.upload(images.flip(0).clone()), contexts_of(oracle))
    assert len(encoded) == 1 and torch.equal(again.flip(1), first)
    images[:10, 0, 0, 0] += 1e-3  # one pixel of every second one
    mixed = oracle.query(oracle.upload(images), contexts_of(oracle))
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
    store = FeatureStore(limit=30 * 4 * 4)
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
