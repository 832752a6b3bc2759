"""Methods that change pictures: BlackVIP's coordinator and padding, BAR's frame."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.bar import FrameSpace
from dassl_blackbox.trainers.blackbox.prompts import (
    CoordinatorSpace,
    PaddingSpace,
    build_decoder,
)
from support import assert_same, build, difference, seeded, test_logits, trained

METHOD, ZERO_INIT = "TRAINER.BLACKVIP.METHOD", "TRAINER.BLACKVIP.ZERO_INIT"


@pytest.fixture(scope="module")
def description(data_root, tmp_path_factory):
    """Of the embedded model: 32 x 32 pixels."""
    return build("ZeroshotOracle", data_root, tmp_path_factory.mktemp("zero-shot")).description


def coordinator(description, method, size=(32, 32)):
    model = replace(description, image_size=size)
    return CoordinatorSpace(model, method, seeded(), eps=1.0, zero_init=False)


@pytest.fixture(scope="module")
def spaces(description, digits):
    """Every space that changes pictures, its encoder fitted."""
    made = {method: coordinator(description, method) for method in ("scratch", "pca")}
    for space in made.values():
        space.fit(digits.split(25))
    frames = {"frame": FrameSpace, "padding": PaddingSpace}
    return made | {name: frames[name](description, seeded()) for name in frames}


def candidates(space, count=3):
    """Candidates `[P, d]` around the start."""
    return space.origin + 0.1 * torch.randn(count, len(space.origin), generator=seeded(7))


def pictures(space, theta, pixels):
    return space(theta, pixels).pictures


def shown(description, normalised):
    """Values from 0 to 1 of what the model takes."""
    mean, std = (torch.tensor(part)[:, None, None] for part in (description.mean, description.std))
    return normalised * std + mean


@pytest.mark.parametrize("name", ["frame", "padding", "scratch", "pca"])
def test_candidates_and_pictures_together_are_they_alone(spaces, description, digits, name):
    space, theta, seen = spaces[name], candidates(spaces[name]), digits[:8]
    before = deepcopy(space.state_dict())
    for training in (True, False):
        together = pictures(space.train(training), theta, seen)
        after = deepcopy(space.state_dict())
        space.load_state_dict(before)
        alone = torch.cat([pictures(space, one[None], seen) for one in theta])
        assert together.shape == (3, 8, 3, 32, 32) and torch.equal(together, alone)
        assert_same(deepcopy(space.state_dict()), after)
        assert not torch.equal(together[0], together[1])
        space.load_state_dict(before)
    assert_same(after, before)  # in evaluation nothing is learned, and no picture knows the others
    assert torch.allclose(together[:, :3], pictures(space, theta, digits[:3]), atol=1e-5)
    values = shown(description, pictures(space, 50 * space.origin[None], seen)[0])
    assert -1e-5 < values.min() < 0.01 and 0.99 < values.max() < 1 + 1e-5  # of a picture


NUMBERS = [
    # the published decoder has 9,120 numbers; the trigger fills 32 maps of 7 x 7
    ("scratch", (224, 224), 9120),
    ("pca", (224, 224), 9120 + 32 * 49 - 98),
    ("scratch", (64, 96), 4576),
    (FrameSpace, (224, 224), 37_620),
    (FrameSpace, (32, 64), 1_440),
    (PaddingSpace, (224, 224), 69_840),
]


@pytest.mark.parametrize("kind, size, numbers", NUMBERS)
def test_the_numbers_of_a_space_follow_the_size_of_the_pictures(description, kind, size, numbers):
    if isinstance(kind, str):
        space = coordinator(description, kind, size).eval()
    else:
        space = kind(replace(description, image_size=size), seeded())
    made = pictures(space, space.origin[None], torch.randn(1, 3, *size))
    assert len(space.origin) == numbers and made.shape == (1, 1, 3, *size)


def test_the_decoder_starts_as_wide_as_the_authors(description):
    """Their 1 x 1 layers are transposed: within 1 / sqrt(channels that leave)."""
    space = coordinator(description, "scratch", (224, 224))
    mixing = [p for p in space.decoder.parameters() if p.dim() == 4 and p.shape[2:] == (1, 1)]
    for part, leaving in zip(mixing, (64, 32, 32, 16), strict=True):
        assert part.abs().max() == pytest.approx(leaving**-0.5, rel=0.02)


def test_theta_is_the_decoder(spaces, digits):
    """Against the same layers with their numbers written into them."""
    space = spaces["scratch"].eval()
    theta, decoder = candidates(space, 1)[0], build_decoder(3).eval()
    torch.nn.utils.vector_to_parameters(theta, decoder.parameters())
    with torch.no_grad():
        prompt = decoder(space.encoder(digits[:4]))
    expected = space.clipped(digits[:4] + prompt)
    assert torch.equal(pictures(space, theta[None], digits[:4])[0], expected)


def test_the_encoder_keeps_what_one_pass_gave(description, digits):
    space, parts = coordinator(description, "scratch"), (digits[:30], digits[30:])
    space.fit(parts)
    means = [space.encoder[1](space.encoder[0](part)).mean((0, 2, 3)) for part in parts]
    norm = space.encoder[2]
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    before = norm.running_mean.clone()
    pictures(space.train(), space.origin[None], digits[:8])
    assert torch.equal(norm.running_mean, before)


def test_the_principal_components(spaces, digits):
    z = spaces["pca"].encoder(digits)
    reduced = F.adaptive_avg_pool2d(digits, 16).flatten(1)
    sizes = torch.linalg.svdvals(reduced - reduced.mean(0)).square()
    assert torch.allclose(z.mean(0), torch.zeros(98), atol=1e-4)
    assert torch.allclose(z.square().sum(0)[:60], len(z) * sizes / sizes[0], atol=1e-2)
    assert not z[:, 60:].any()  # 60 pictures have no more


def test_a_last_layer_of_zeros_starts_at_zero_shot(data_root, tmp_path):
    zeroshot = test_logits(build("ZeroshotOracle", data_root, tmp_path / "zero-shot"))
    for zero in (True, False):
        trainer = build("BlackVIP", data_root, tmp_path / str(zero), ZERO_INIT, zero)
        assert (difference(test_logits(trainer), zeroshot) < 1e-5) == zero


def test_a_run_in_two_lives(data_root, budget, tmp_path):
    """Of the principal components: `scratch` is every trainer's contract."""
    ends, method = [], (METHOD, "pca")
    for out, steps in (("one", 5), ("two", 2), ("two", 5)):
        options = *budget("BlackVIP", steps), *method
        trainer = trained("BlackVIP", data_root, tmp_path / out, *options)
        ends.append((trainer.learner.state_dict(), test_logits(trainer)))
    assert_same(ends[0], ends[2])
    fresh = build("BlackVIP", data_root, tmp_path / "fresh", *method, seed=99)
    fresh.load_model(str(tmp_path / "two"))
    assert torch.equal(test_logits(fresh), ends[0][1])


def test_a_frame_around_a_smaller_picture(spaces, description, digits):
    space = spaces["frame"]
    theta = candidates(space, 2)
    made = pictures(space, theta, digits[:4])
    smaller = F.interpolate(digits[:4], (28, 28), mode=description.interpolation, antialias=True)
    inside = made[..., 2:30, 2:30]
    assert torch.equal(inside[0], space.clipped(smaller)) and torch.equal(inside[1], inside[0])
    border = torch.ones(3, 32, 32, dtype=torch.bool)
    border[:, 2:30, 2:30] = False  # channel by channel, row by row
    numbers = shown(description, made)[..., border]
    assert torch.allclose(numbers, theta.sigmoid()[:, None].expand(-1, 4, -1), atol=1e-5)


def test_padding_is_added(spaces, digits):
    space = spaces["padding"]
    made = pictures(space, 0.1 * space.origin[None], 0.1 * digits[:4])[0]
    added = made - 0.1 * digits[:4]
    assert added[..., 4:28, 4:28].abs().max() < 1e-6
    numbers = added[:, :, space.outside].flatten(1)
    assert torch.allclose(numbers, 0.1 * space.origin.expand(4, -1), atol=1e-5)


def focal(logits, labels):
    p = logits.softmax(-1)[range(len(labels)), labels]
    return -((1 - p) ** 2 * p.log()).mean()


def test_bar_is_its_definition(data_root, budget, tmp_path):
    """Four steps of a run, from the logits that came back, in an explicit loop."""
    trainer = build("BAR", data_root, tmp_path, *budget("BAR", 4))
    W, steps = trainer.optim.theta.clone(), []
    fitness, tell = trainer.recipe.fitness, trainer.optim.tell

    def asked(*answer):
        steps.append([*answer, trainer.optim.u.clone()])
        return fitness(*answer)

    def told(losses):
        tell(losses)
        steps[-1].append(trainer.optim.theta.clone())

    trainer.recipe.fitness, trainer.optim.tell = asked, told
    trainer.train()
    assert len(steps) == 4
    for k, (logits, labels, drawn, after) in enumerate(steps, 1):
        before, g, q = W, torch.zeros_like(W), len(drawn)
        for u, asked in zip(drawn, logits[1:]):
            assert u.norm().item() == pytest.approx(1, abs=1e-5)
            g += 720 / q * u * (focal(asked, labels) - focal(logits[0], labels)) / 0.01
        left = 1 - min(k, 3.6) / 3.6
        W = W - (9.9 * left**0.9 + 0.1) * g
        # the losses are float32, and so is what is left of their differences
        assert (after - W).norm() < 0.02 * (after - before).norm()
        W = after
