"""Methods that change pictures: BlackVIP's coordinator and padding, BAR's frame."""

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
from support import assert_same, build, difference, seeded, test_logits

METHODS = "scratch", "pca", "padding"
METHOD, ZERO_INIT = "TRAINER.BLACKVIP.METHOD", "TRAINER.BLACKVIP.ZERO_INIT"


@pytest.fixture(scope="module")
def description(data_root, tmp_path_factory):
    """Of the embedded model: 32 x 32 pixels."""
    return build("ZeroshotOracle", data_root, tmp_path_factory.mktemp("zero-shot")).description


@pytest.fixture(scope="module")
def spaces(description, digits):
    """Every space that changes pictures, its encoder fitted."""
    made = {
        "frame": FrameSpace(description, seeded()),
        "padding": PaddingSpace(description, seeded()),
        "scratch": coordinator(description, "scratch"),
        "pca": coordinator(description, "pca"),
    }
    for name in ("scratch", "pca"):
        made[name].fit(digits.split(25))
    return made


def coordinator(description, method, size=(32, 32)):
    model = replace(description, image_size=size)
    return CoordinatorSpace(model, method, seeded(), eps=1.0, zero_init=False)


NAMES = pytest.mark.parametrize("name", ["frame", "padding", "scratch", "pca"])


def candidates(space, count=3):
    """Candidates `[P, d]` around the start."""
    return space.origin + 0.1 * torch.randn(count, len(space.origin), generator=seeded(7))


def pictures(space, theta, pixels):
    return space(theta, pixels).pictures


# All spaces


@NAMES
@pytest.mark.parametrize("mode", [True, False])
def test_candidates_together_are_candidates_alone(spaces, digits, name, mode):
    space, theta = spaces[name].train(mode), candidates(spaces[name])
    before = {key: value.clone() for key, value in space.state_dict().items()}
    together = pictures(space, theta, digits[:8])
    after = {key: value.clone() for key, value in space.state_dict().items()}
    space.load_state_dict(before)
    alone = torch.cat([pictures(space, one[None], digits[:8]) for one in theta])
    assert together.shape == (3, 8, 3, 32, 32) and torch.equal(together, alone)
    assert_same(dict(space.state_dict()), after)
    assert not torch.equal(together[0], together[1])
    space.load_state_dict(before)


@NAMES
def test_pictures_stay_within_what_a_picture_can_show(spaces, description, digits, name):
    space = spaces[name].eval()
    bright = pictures(space, 50 * space.origin[None], digits[:8])[0]
    mean, std = (torch.tensor(part)[:, None, None] for part in (description.mean, description.std))
    values = bright * std + mean
    assert values.min() > -1e-5 and values.max() < 1 + 1e-5
    assert values.min() < 0.01 and values.max() > 0.99


@NAMES
def test_in_evaluation_a_picture_does_not_depend_on_its_batch(spaces, digits, name):
    space = spaces[name].eval()
    theta, before = candidates(space, 1), dict(space.state_dict())
    whole = pictures(space, theta, digits[:8])
    assert torch.allclose(whole[:, :3], pictures(space, theta, digits[:3]), atol=1e-5)
    assert_same(dict(space.state_dict()), before)


# The coordinator


@pytest.mark.parametrize(
    "method, size, side, tuned",
    [
        # the published decoder has 9,120 numbers; the trigger fills 32 maps of 7 x 7
        ("scratch", (224, 224), (7, 7), 9120),
        ("pca", (224, 224), (7, 7), 9120 + 32 * 49 - 98),
        ("scratch", (160, 160), (5, 5), 9120),
        ("scratch", (336, 336), (11, 11), 9120),
        ("scratch", (32, 32), (4, 4), 2144),
        ("scratch", (64, 96), (4, 6), 4576),
    ],
)
def test_the_decoder_follows_the_size_of_the_pictures(description, method, size, side, tuned):
    space = coordinator(description, method, size)
    assert tuple(space.side) == side and len(space.origin) == tuned
    made = pictures(space.eval(), space.origin[None], torch.randn(1, 3, *size))
    assert made.shape == (1, 1, 3, *size)
    assert 0 <= space.origin[: space.triggers].min() if space.triggers else method == "scratch"


def test_fewer_stages_are_the_last_of_five():
    shapes = [[tuple(part.shape) for part in build_decoder(s).parameters()] for s in (5, 3)]
    assert shapes[1][-6:] == shapes[0][-6:]


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


def test_running_statistics_follow_every_candidate(description, digits):
    space = coordinator(description, "scratch").train()
    theta, norm = candidates(space), space.decoder[2]
    z = space.encoder.eval()(digits[:8])
    expected = norm.running_mean.clone()
    for one in theta:
        weights = one[: 32 * 5].split([128, 32])  # 32 -> 32 by twos, and its bias
        mixed = one[160 : 160 + 32 * 32].view(32, 32, 1, 1)
        maps = F.conv_transpose2d(z, weights[0].view(32, 1, 2, 2), weights[1], 2, groups=32)
        mean = F.conv_transpose2d(maps, mixed).mean((0, 2, 3))
        expected = 0.9 * expected + 0.1 * mean
    space(theta, digits[:8])
    assert torch.allclose(norm.running_mean, expected, atol=1e-5)


def test_the_encoder_keeps_what_one_pass_gave(description, digits):
    space, expected = coordinator(description, "scratch"), []
    space.fit([digits[:30], digits[30:]])
    for part in (digits[:30], digits[30:]):
        expected.append(space.encoder[1](space.encoder[0](part)).mean((0, 2, 3)))
    norm = space.encoder[2]
    assert torch.allclose(norm.running_mean, torch.stack(expected).mean(0), atol=1e-5)
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
    zeroshot = build("ZeroshotOracle", data_root, tmp_path / "zero-shot")
    for zero in (True, False):
        trainer = build("BlackVIP", data_root, tmp_path / str(zero), ZERO_INIT, zero)
        trainer.set_model_mode("eval")
        apart = difference(test_logits(trainer), test_logits(zeroshot))
        assert (apart < 1e-5) == zero


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_two_lives(method, data_root, budget, tmp_path):
    for out, steps in (("one", 5), ("two", 2), ("two", 5)):
        trainer = build(
            "BlackVIP", data_root, tmp_path / out, *budget("BlackVIP", steps), METHOD, method
        )
        trainer.train()
        if out == "one":
            whole, logits = trainer, test_logits(trainer)
    assert_same(trainer.learner.state_dict(), whole.learner.state_dict())
    assert torch.equal(test_logits(trainer), logits)
    fresh = build("BlackVIP", data_root, tmp_path / "fresh", METHOD, method, seed=99)
    fresh.load_model(str(tmp_path / "two"))
    fresh.set_model_mode("eval")
    assert torch.equal(test_logits(fresh), logits)


# Borders


@pytest.mark.parametrize("size, live", [((224, 224), 37_620), ((32, 32), 720), ((32, 64), 1_440)])
def test_the_numbers_of_a_frame(description, size, live):
    space = FrameSpace(replace(description, image_size=size), seeded())
    assert len(space.origin) == live


def test_the_numbers_of_a_padding(description):
    space = PaddingSpace(replace(description, image_size=(224, 224)), seeded())
    assert len(space.origin) == 69_840


def test_a_frame_around_a_smaller_picture(spaces, description, digits):
    space = spaces["frame"]
    theta = candidates(space, 2)
    made = pictures(space, theta, digits[:4])
    smaller = F.interpolate(digits[:4], (28, 28), mode=description.interpolation, antialias=True)
    assert torch.equal(made[0, :, :, 2:30, 2:30], space.clipped(smaller))
    assert torch.equal(made[1, :, :, 2:30, 2:30], made[0, :, :, 2:30, 2:30])
    for p in range(2):
        numbers = iter(theta[p].sigmoid().tolist())
        for channel in range(3):
            mean, std = description.mean[channel], description.std[channel]
            for row in range(32):
                for column in range(32):
                    if row in range(2, 30) and column in range(2, 30):
                        continue
                    expected = (next(numbers) - mean) / std
                    shown = made[p, :, channel, row, column]
                    assert shown.tolist() == pytest.approx([expected] * 4, abs=1e-5)
        assert next(numbers, None) is None


def test_padding_is_added(spaces, digits):
    space = spaces["padding"]
    made = pictures(space, 0.1 * space.origin[None], 0.1 * digits[:4])[0]
    added = made - 0.1 * digits[:4]
    assert added[..., 4:28, 4:28].abs().max() < 1e-6
    numbers = added[:, :, space.outside].flatten(1)
    assert torch.allclose(numbers, 0.1 * space.origin.expand(4, -1), atol=1e-5)


# BAR's search


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


@pytest.mark.parametrize(
    "options, steps",
    [
        (("ORACLE.MAX_QUERIES", 60), 20),
        (("ORACLE.MAX_QUERIES", 0, "OPTIM.MAX_EPOCH", 5), 15),
        (("ORACLE.MAX_QUERIES", 60, "OPTIM.MAX_EPOCH", 5), 15),
        (("ORACLE.MAX_QUERIES", 0, "ORACLE.MAX_IMAGE_QUERIES", 240), 10),
    ],
)
def test_the_decay_of_bar_ends_with_nine_tenths_of_the_run(data_root, tmp_path, options, steps):
    """Three queries and 24 image queries a step, three steps an epoch."""
    trainer = build("BAR", data_root, tmp_path, *options)
    assert trainer.steps_total() == steps
    sizes, left = [], 1 - 1 / (0.9 * steps)
    for trainer.optim.k in range(1, steps + 1):
        sizes.append(trainer.optim.rate())
    assert sizes[0] == pytest.approx(9.9 * left**0.9 + 0.1)
    reached = [k for k, size in enumerate(sizes, 1) if size == 0.1]
    assert reached == [k for k in range(1, steps + 1) if k >= 0.9 * steps]
