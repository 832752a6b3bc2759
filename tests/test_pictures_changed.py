"""Methods that change pictures: BAR's frame and estimator, BlackVIP's coordinator and padding."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.models import load_model
from dassl_blackbox.trainers.blackbox.optimizers.estimators import OneSided
from dassl_blackbox.trainers.blackbox.prompts.coordinator import CoordinatorSpace
from dassl_blackbox.trainers.blackbox.prompts.frame import FrameSpace, PaddingSpace
from dassl_blackbox.trainers.blackbox.run.errors import BlackBoxError
from support import bill, build, seeded, test_logits, trained


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny").description


def of_side(description, side):
    return replace(description, image_size=(side, side))


SPACES = {
    "frame": lambda d: FrameSpace(d, seeded()),
    "padding": lambda d: PaddingSpace(d, seeded()),
    "scratch": lambda d: CoordinatorSpace(d, "scratch", seeded()),
    "pca": lambda d: CoordinatorSpace(d, "pca", seeded()),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("side", [32, 48])
def test_candidates_together_are_those_one_by_one_and_are_pictures(name, side, tiny):
    space, pixels = SPACES[name](of_side(tiny, side)), torch.randn(5, 3, side, side)
    pixels = space.clipped(pixels)
    if isinstance(space, CoordinatorSpace):
        space.fit([pixels])
    theta = space.origin + torch.randn(3, len(space.origin), generator=seeded(1))
    space.eval()
    together = space(theta, pixels).pictures
    assert together.shape == (3, 5, 3, side, side) and space.grants == ()
    alone = torch.cat([space(row[None], pixels).pictures for row in theta])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    levels = together * space.std + space.mean
    assert levels.min() > -1e-5 and levels.max() < 1 + 1e-5
    assert (together - pixels).abs().max() > 0.1


def test_a_frame_holds_the_picture_made_smaller(tiny):
    space = FrameSpace(of_side(tiny, 224), seeded())
    assert len(space.origin) == 3 * (224**2 - 194**2) == 37_620
    pixels = space.clipped(torch.randn(2, 3, 224, 224))
    picture = space(space.origin[None], pixels).pictures[0]
    small = F.interpolate(pixels, (194, 194), mode=tiny.interpolation, antialias=True)
    assert torch.equal(picture[..., 15:209, 15:209], space.clipped(small))
    frame = (picture[0] * space.std + space.mean)[:, space.outside]
    torch.testing.assert_close(frame, space.origin.sigmoid().view(3, -1), atol=1e-5, rtol=0)


def test_bars_estimate_is_its_definition():
    g = seeded()
    weight, theta = torch.randn(40, generator=g), torch.randn(40, generator=g)

    def loss(rows):
        return (rows @ weight).sin()

    estimator = OneSided(5, 0.01, scale=40, seed=3)
    candidates = estimator.ask(theta, 1)
    assert len(candidates) == 6 and torch.equal(candidates[0], theta)
    found = estimator.estimate(loss(candidates))
    wanted = torch.zeros(40)
    for row in candidates[1:]:
        u = (row - theta) / 0.01
        assert abs(u.norm() - 1) < 1e-3
        wanted += 40 / 5 * u * (loss(row) - loss(theta)) / 0.01
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_the_decoder_has_the_published_size(tiny):
    assert len(CoordinatorSpace(of_side(tiny, 224), "scratch", seeded()).origin) == 9_120
    pca = CoordinatorSpace(of_side(tiny, 224), "pca", seeded())
    assert len(pca.origin) == 9_120 + 32 * 49 - 98


def test_a_zero_last_layer_starts_at_zero_shot(tiny):
    space = CoordinatorSpace(tiny, "scratch", seeded(), zero_init=True)
    pixels = space.clipped(torch.randn(4, 3, 32, 32))
    assert torch.equal(space(space.origin[None], pixels).pictures[0], pixels)


def test_the_encoder_is_fitted_once_and_its_statistics_do_not_depend_on_a_batch(tiny):
    space = CoordinatorSpace(tiny, "scratch", seeded())
    batches = [space.clipped(torch.randn(8, 3, 32, 32)) for _ in range(2)]
    space.fit(batches)
    space.train()
    z = space.encoder(batches[0])
    assert torch.equal(space.encoder(batches[0][:3]), z[:3]) and not space.encoder.training


def test_pictures_that_are_too_small_for_the_encoder_are_refused(tiny):
    with pytest.raises(BlackBoxError, match="METHOD pca"):
        CoordinatorSpace(of_side(tiny, 2), "pca", seeded())


@pytest.mark.parametrize(
    "name, options",
    [
        ("BAR", ()),
        ("BlackVIP", ()),
        ("BlackVIP", ("TRAINER.BLACKVIP.METHOD", "pca")),
        ("BlackVIP", ("TRAINER.BLACKVIP.METHOD", "padding")),
    ],
)
def test_a_checkpoint_is_evaluated_as_it_was(name, options, data_root, budget, tmp_path):
    trainer = trained(name, data_root, tmp_path, *budget(name, 4), *options)
    cost = trainer.plan.step(0)
    assert tuple(cost) == (trainer.optim.population, 8 * trainer.optim.population)
    assert bill(tmp_path)["training"]["queries"] == 4 * cost.queries
    fresh = build(name, data_root, tmp_path / "other", *options, seed=9)
    fresh.load_model(str(tmp_path))
    fresh.set_model_mode("eval")
    trainer.set_model_mode("eval")
    assert torch.equal(test_logits(fresh), test_logits(trainer))
