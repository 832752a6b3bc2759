"""Methods equal their definitions and cost what was published; spaces that change pictures."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.bar import FrameSpace
from dassl_blackbox.trainers.blackbox.prompts import (
    CoordinatorSpace,
    Fastfood,
    LowRankSpace,
    PaddingSpace,
    build_decoder,
)
from dassl_blackbox.trainers.craft import PredictionRefinement, divergence
from scipy.linalg import hadamard
from support import assert_same, build, d64, difference, own, seeded, test_logits, trained
from threadpoolctl import threadpool_info, threadpool_limits

close = torch.testing.assert_close


@pytest.mark.parametrize("n, m, D", [(3, 5, 12), (2, 62, 512), (2, 1, 1)])
def test_fastfood_is_the_product_of_its_matrices(n, m, D):
    transform = Fastfood(n, m, D, seeded()).double()
    L = 2 ** math.ceil(math.log2(D))
    x = torch.randn(4, n, m, dtype=d64, generator=seeded(1))
    H = torch.from_numpy(hadamard(L)).double()
    for i in range(n):
        B, G = torch.diag(transform.signs[i]), torch.diag(transform.gaussian[i])
        permutation = torch.eye(L, dtype=d64)[transform.permutation[i]]
        divisor = math.sqrt(L * transform.gaussian[i].square().sum()) * math.sqrt(D / L)
        matrix = (H @ G @ permutation @ H @ B)[:D, :m] / divisor
        close(transform(x)[:, i], x[:, i] @ matrix.T, atol=1e-10, rtol=0)


def test_w_is_its_formula():
    """W_ij = sum_q U_iq s_q V_jq + v_j."""
    n, m, r, P = 4, 7, 3, 5
    s = LowRankSpace(torch.randn(n, 24, generator=seeded(5)), 30, r, seeded(6)).double()
    theta = torch.randn(P, len(s.origin), dtype=d64, generator=seeded())
    U, scale, V, v = theta.split([n * r, r, m * r, m], dim=1)
    W = torch.einsum("pnr,pr,pmr->pnm", U.view(P, n, r), scale, V.view(P, m, r)) + v[:, None]
    close(s(theta).contexts, s.start + s.projection(W), atol=1e-12, rtol=0)


def test_craft_losses_by_hand(data_root, tmp_path):
    """Two classes; the head is made to add (0, ln 3), so that raw (0, 0) becomes probabilities
    (1/4, 3/4).
    """
    trainer = build("CraFT", data_root, tmp_path, *own("CraFT", LAMBDA=0.1))
    teacher = trainer.recipe.teacher
    teacher.head = head = PredictionRefinement(2, 4)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        head.mlp[2].bias.copy_(torch.tensor([0.0, math.log(3)]))
    raw, labels = torch.zeros(1, 2, 2), torch.tensor([0, 1])
    # fitness: CE(raw) = ln 2; KL(refined ‖ raw) = ln(1/2)/4 + 3 ln(3/2)/4
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert trainer.recipe.fitness(raw, labels).item() == pytest.approx(math.log(2) + 0.1 * kl)
    # head: CE(refined) = (ln 4 + ln(4/3)) / 2; KL(raw ‖ refined) = ln(2)/2 + ln(2/3)/2, on in the
    # first part of the budget alone
    ce, kl = 0.5 * math.log(4) + 0.5 * math.log(4 / 3), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert divergence(raw[0, 0], torch.tensor([0.0, math.log(3)])).item() == pytest.approx(kl)
    for steps_done, expected in ((0, ce + 0.1 * kl), (49, ce + 0.1 * kl), (50, ce)):
        teacher.begin(0, steps_done, 200)
        teacher.read(raw[0], labels)  # whose steps are the other head's
        assert teacher.last == pytest.approx(expected)


def test_cma_es_goes_on_by_the_one_thread_of_its_training(data_root, tmp_path, monkeypatch):
    """It computes anew what it computed: several threads would round otherwise."""
    options = *own("CraFT", HEAD=False), "ORACLE.MAX_QUERIES"
    trained("CraFT", data_root, tmp_path, *options, 8)
    trainer, threads = build("CraFT", data_root, tmp_path, *options, 12), set()
    load = trainer.optim.load_state_dict

    def loaded(state):
        threads.update(pool["num_threads"] for pool in threadpool_info())
        load(state)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # a user's own stays
    monkeypatch.setattr(trainer.optim, "load_state_dict", loaded)
    with threadpool_limits(2):
        trainer.resume_model_if_exist(str(tmp_path))
    assert threads == {1} and len(trainer.optim.history) == 2


# 160 images are two batches of at most 128; CraFT's head takes them in one of 256: two queries
COSTS = [
    ("ZIP", {"SP_AVG": 5}, 10, 10 * 128),
    ("CBBT", {"Q": 256}, 257, 257 * 128),
    ("CraFT", {"POPULATION": 40, "HEAD_BATCH": 256}, 40 * 2 + 2, 40 * 160 + 160),
    ("BPTVLM", {"POPULATION": 30}, 30 * 2, 30 * 160),
]


@pytest.mark.parametrize("name, settings, queries, images", COSTS)
def test_the_published_cost_of_a_step(name, settings, queries, images, data_root, tmp_path):
    batches = "DATASET.NUM_SHOTS", 16, "DATALOADER.TRAIN_X.BATCH_SIZE", 128
    trainer = build(name, data_root, tmp_path, *batches, *own(name, **settings))
    assert tuple(trainer.plan.step(0)) == (queries, images)
    if name == "ZIP":
        assert trainer.describe_cost() == (
            "500 steps of 10 queries: 5,000 training queries, 640,000 image queries; "
            "2 evaluation queries, 61 image queries"
        )


# Pictures that are changed: BlackVIP's coordinator and padding, BAR's frame


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
    if numbers == 9120:  # the authors' 1 x 1 layers start within 1 / sqrt(channels that leave)
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


def test_the_principal_components(spaces, description, digits):
    z, fresh = spaces["pca"].encoder(digits), coordinator(description, "pca")
    reduced = F.adaptive_avg_pool2d(digits, 16).flatten(1)
    sizes = torch.linalg.svdvals(reduced - reduced.mean(0)).square()
    assert torch.allclose(z.mean(0), torch.zeros(98), atol=1e-4)
    assert torch.allclose(z.square().sum(0)[:60], len(z) * sizes / sizes[0], atol=1e-2)
    assert not z[:, 60:].any()  # 60 pictures have no more
    fresh.load_state_dict(spaces["pca"].state_dict())  # a checkpoint has all of it
    assert torch.equal(fresh.encoder(digits), z)


def test_a_last_layer_of_zeros_starts_at_zero_shot(data_root, tmp_path):
    zeroshot = test_logits(build("ZeroshotOracle", data_root, tmp_path / "zero-shot"))
    for zero in (True, False):
        options = own("BlackVIP", ZERO_INIT=zero)
        trainer = build("BlackVIP", data_root, tmp_path / str(zero), *options)
        assert (difference(test_logits(trainer), zeroshot) < 1e-5) == zero


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
    W, steps, thetas = trainer.optim.theta.clone(), [], []
    fitness, tell = trainer.recipe.fitness, trainer.optim.tell

    def asked(*answer):
        steps.append([*answer, trainer.optim.u.clone()])
        return fitness(*answer)

    def told(losses):
        tell(losses)
        thetas.append(trainer.optim.theta.clone())

    trainer.recipe.fitness, trainer.optim.tell = asked, told
    trainer.train()
    assert len(steps) == len(thetas) == 4
    for k, ((logits, labels, drawn), after) in enumerate(zip(steps, thetas), 1):
        before, g, q = W, torch.zeros_like(W), len(drawn)
        for u, asked in zip(drawn, logits[1:]):
            assert u.norm().item() == pytest.approx(1, abs=1e-5)
            g += 720 / q * u * (focal(asked, labels) - focal(logits[0], labels)) / 0.01
        left = 1 - min(k, 3.6) / 3.6
        W = W - (9.9 * left**0.9 + 0.1) * g
        # the losses are float32, and so is what is left of their differences
        assert (after - W).norm() < 0.02 * (after - before).norm()
        W = after
