"""ZIP, CBBT, CraFT and BPT-VLM equal their definitions, cost what they should on a data set whose
last batch is partial, and take any prompt space.
"""

import math

import pytest
import torch
from dassl_blackbox.trainers.blackbox.oracle import AccessDenied
from dassl_blackbox.trainers.blackbox.prompts import Fastfood, LowRankSpace
from dassl_blackbox.trainers.craft import PredictionRefinement, divergence
from support import bill, build, d64, own, seeded, trained
from threadpoolctl import threadpool_info, threadpool_limits

close = torch.testing.assert_close
GRANTED = "ORACLE.GRANTS", "('contexts', 'logits', 'features')"


def hadamard(length):
    """Sylvester's matrix: H_2L = [[H, H], [H, -H]]."""
    H = torch.ones(1, 1, dtype=d64)
    while len(H) < length:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)], 0)
    return H


@pytest.mark.parametrize("n, m, D", [(3, 5, 12), (1, 16, 16), (2, 62, 512), (2, 1, 1)])
def test_fastfood_is_the_product_of_its_matrices(n, m, D):
    transform = Fastfood(n, m, D, seeded()).double()
    L = 2 ** math.ceil(math.log2(D))
    x = torch.randn(4, n, m, dtype=d64, generator=seeded(1))
    for i in range(n):
        B, G = torch.diag(transform.signs[i]), torch.diag(transform.gaussian[i])
        permutation, H = torch.eye(L, dtype=d64)[transform.permutation[i]], hadamard(L)
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
    assert s(theta).image_tokens is None


def test_zips_published_run(data_root, tmp_path):
    options = "DATASET.NUM_SHOTS", 16, "DATALOADER.TRAIN_X.BATCH_SIZE", 128
    trainer = build("ZIP", data_root, tmp_path, *options)
    assert trainer.describe_cost() == (
        "500 steps of 10 queries: 5,000 training queries, 640,000 image queries; "
        "2 evaluation queries, 61 image queries"
    )
    published = {"N_CTX": 8, "ID": 500, "RANK": 5, "SP_AVG": 5, "RULE": "spsa-clip", "O": 1.0}
    published |= {"C": 0.01, "A": 0.01, "ALPHA": 0.4, "GAMMA": 0.1, "BETA": 0.8}
    assert published.items() <= dict(trainer.cfg.TRAINER.ZIP).items()


def test_adapter_trains_from_its_epoch_on_and_is_evaluated(data_root, tmp_path):
    options = *GRANTED, *own("CBBT", ADAPTER=True, ADAPTER_EPOCH=1), "ORACLE.MAX_QUERIES", 0
    options = *options, "OPTIM.LR", 0.01, "OPTIM.MAX_EPOCH"
    assert not trained("CBBT", data_root, tmp_path / "a", *options, 1).head.active
    both = build("CBBT", data_root, tmp_path / "b", *options, 2)
    first = [p.detach().clone() for p in both.head.parameters()]
    both.train()
    assert both.head.active
    assert any(not torch.equal(a, b) for a, b in zip(first, both.head.parameters()))
    queries, images = both.plan.step(0)
    assert (queries, images) == (both.optim.q + 2, 8)
    assert bill(tmp_path / "b")["training"] == {"queries": 6 * queries, "image_queries": 6 * images}


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


def test_focal_loss_by_hand(data_root, tmp_path):
    trainer = build("BPTVLM", data_root, tmp_path, *own("BPTVLM", LOSS="focal"))
    logits = torch.log(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
    expected = (0.75**2 * math.log(4) + 0.5**2 * math.log(2)) / 2
    assert trainer.recipe.fitness(logits, torch.tensor([0, 1])).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "name, per_step, images",
    [
        ("CBBT", 257, 257 * 128),  # one mini-batch of 128
        # 160 images are two batches, the second of 32; the head's batch of 256 takes them at once:
        # 2 queries
        ("CraFT", 40 * 2 + 2, 40 * 160 + 160),
        ("BPTVLM", 30 * 2, 30 * 160),
    ],
)
def test_published_costs_with_a_partial_last_batch(name, per_step, images, data_root, tmp_path):
    options = (
        *("DATASET.NUM_SHOTS", 16, "DATALOADER.TRAIN_X.BATCH_SIZE", 128, "TEST.NO_TEST", True),
        *own("CBBT", Q=256),
        *own("CraFT", POPULATION=40, HEAD_BATCH=256),
        *own("BPTVLM", POPULATION=30),
        *("ORACLE.MAX_QUERIES", per_step + per_step // 2),
    )
    trained(name, data_root, tmp_path, *options)
    assert bill(tmp_path)["training"] == {"queries": per_step, "image_queries": images}


@pytest.mark.parametrize("name, switch", [("CBBT", "ADAPTER"), ("JOLT", "FEATURES")])
def test_features_of_more_images_than_a_query_takes(name, switch, data_root, tmp_path):
    """160 images are two queries where their features come back, and the texts' features are one a
    candidate all the same.
    """
    with pytest.raises(AccessDenied, match=f"{name} asked for 'features'"):
        build(name, data_root, tmp_path, *own(name, **{switch: True}))
    batch = "DATASET.NUM_SHOTS", 16, "DATALOADER.TRAIN_X.BATCH_SIZE", 160, "OPTIM.MAX_EPOCH", 1
    trainer = trained(name, data_root, tmp_path, *GRANTED, *own(name, **{switch: True}), *batch)
    queries = trainer.optim.population + 2
    assert bill(tmp_path)["training"] == {"queries": queries, "image_queries": 160}
