"""Every yacs default of the project, in one place."""

from yacs.config import CfgNode as CN


def extend_cfg(cfg):
    """Add our nodes to a Dassl configuration, in place. Calling it twice changes nothing.

    Defaults of `TRAINER.ZIP` are those of the paper's few-shot scripts (ICLR 2025); of `TRAINER.WHITEBOX`, CoOp's (IJCV 2022).
    """
    if "ORACLE" in cfg:
        return

    # CoOp's key: which classes of a data set are used (all, base or new)
    if "SUBSAMPLE_CLASSES" not in cfg.DATASET:
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"

    cfg.INPUT.CACHE_MB = (
        2048  # memory for the training pictures, which are decoded once; 0 = read them each time
    )
    cfg.INPUT.CROP_ON_DEVICE = False  # keep the training pictures (CACHE_MB of them; others are decoded at every use) on the device that encodes, and crop them there
    cfg.INPUT.VIEWS = 0  # augmented views of a training image, which take turns by epoch: once all were met nothing is encoded again; 0 = ever new ones

    cfg.ORACLE = CN()
    cfg.ORACLE.PREC = "fp32"  # precision of the model's answers: fp32, fp16, bf16 or amp (autocast)
    cfg.ORACLE.GRANTS = (
        "logits",
    )  # what the model's owner lets out or in: logits, features, image_tokens
    cfg.ORACLE.TOP_K = 0  # 0: logits; k: only the k largest log-probabilities of an image come back, as from a service
    cfg.ORACLE.MAX_QUERIES = 5000  # training budget in queries (one candidate on one batch of at most 128 images); 0 = no limit
    cfg.ORACLE.MAX_IMAGE_QUERIES = (
        0  # training budget in image queries (candidate x image); 0 = no limit
    )
    cfg.ORACLE.SAVE_EVERY = (
        500  # write a checkpoint for resuming after so many training queries; 0 = only at the end
    )

    cfg.ORACLE.VAL_EVERY = (
        0  # look at val after so many training queries and write val_curve.csv; 0 = never
    )

    cfg.TRAINER.ZIP = CN()
    cfg.TRAINER.ZIP.N_CTX = 8  # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.ZIP.CTX_INIT = ""  # words to start from; empty: random, N(0, 0.02^2)
    cfg.TRAINER.ZIP.SPACE = "lowrank"  # prompt space: context, lowrank or projection
    cfg.TRAINER.ZIP.ID = 500  # intrinsic dimension; each token gets m = ID // n numbers
    cfg.TRAINER.ZIP.RANK = 5  # rank r of the low-rank part
    cfg.TRAINER.ZIP.RULE = "spsa-clip"  # update rule: spsa-clip, spsa-gc or spsa
    cfg.TRAINER.ZIP.SP_AVG = 5  # perturbations averaged in a step, two queries each
    cfg.TRAINER.ZIP.O = 1.0  # step size a_k = A / (k + O) ** ALPHA
    cfg.TRAINER.ZIP.C = 0.01  # perturbation scale c_k = C / k ** GAMMA
    cfg.TRAINER.ZIP.A = 0.01
    cfg.TRAINER.ZIP.ALPHA = 0.4
    cfg.TRAINER.ZIP.GAMMA = 0.1
    cfg.TRAINER.ZIP.BETA = 0.8  # momentum of spsa-gc

    cfg.TRAINER.CBBT = CN()
    cfg.TRAINER.CBBT.N_CTX = 1  # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.CBBT.CTX_INIT = "a"  # words to start from
    cfg.TRAINER.CBBT.SPACE = "context"  # prompt space: context, lowrank or projection
    cfg.TRAINER.CBBT.Q = 256  # random directions of a step, which costs Q + 1 queries
    cfg.TRAINER.CBBT.CLIP = 5.0  # largest norm of the gradient estimate
    cfg.TRAINER.CBBT.ADAPTER = False  # train an adapter on image features too (grant features)
    cfg.TRAINER.CBBT.ADAPTER_RATIO = 0.2  # share of the adapter's output in the feature
    cfg.TRAINER.CBBT.ADAPTER_WIDTH = 0.25  # width of its hidden layer, as a share of the feature's
    cfg.TRAINER.CBBT.ADAPTER_EPOCH = 10  # epochs of the prompt alone before the adapter joins

    cfg.TRAINER.CRAFT = CN()
    cfg.TRAINER.CRAFT.N_CTX = 4  # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.CRAFT.CTX_INIT = "a photo of a"  # words to start from
    cfg.TRAINER.CRAFT.SPACE = "projection"  # prompt space: context, lowrank or projection
    cfg.TRAINER.CRAFT.DIM = 512  # length of the vector z that is projected
    cfg.TRAINER.CRAFT.STD = 0.2  # deviation of the projection's entries
    cfg.TRAINER.CRAFT.SIGMA = 1.0  # step size that CMA-ES starts with
    cfg.TRAINER.CRAFT.BOUND = 5.0  # bounds of z, plus and minus; 0 = none
    cfg.TRAINER.CRAFT.POPULATION = 40  # candidates of a generation
    cfg.TRAINER.CRAFT.LAMBDA = 0.1  # weight of the KL terms
    cfg.TRAINER.CRAFT.KL_PART = (
        4  # the head's KL term is on for the first 1 / KL_PART of the budget
    )
    cfg.TRAINER.CRAFT.HEAD = True  # train the prediction refinement
    cfg.TRAINER.CRAFT.HEAD_WIDTH = 256  # its hidden width
    cfg.TRAINER.CRAFT.HEAD_LR = 1e-3  # its learning rate (Adam)
    cfg.TRAINER.CRAFT.HEAD_BATCH = 256  # its batch
    cfg.TRAINER.CRAFT.COVARIANCE = "full"  # model of the covariance: full, diagonal, vd or vkd
    cfg.TRAINER.CRAFT.CMA_OPTIONS = []  # further options of pycma, [key, value, ...]

    cfg.TRAINER.BPTVLM = CN()
    cfg.TRAINER.BPTVLM.N_CTX = 8  # text tokens n_L (ignored where CTX_INIT gives words)
    cfg.TRAINER.BPTVLM.CTX_INIT = (
        ""  # words that the projection is added to; empty: zeros, as published
    )
    cfg.TRAINER.BPTVLM.N_IMAGE = 5  # image tokens n_V (grant image_tokens); 0 = text alone
    cfg.TRAINER.BPTVLM.DIM_TEXT = 500  # d_L
    cfg.TRAINER.BPTVLM.DIM_IMAGE = 500  # d_V
    cfg.TRAINER.BPTVLM.SIGMA = 1.0  # step size that CMA-ES starts with
    cfg.TRAINER.BPTVLM.POPULATION = 30  # candidates of a generation
    cfg.TRAINER.BPTVLM.LOSS = "ce"  # ce, or focal with gamma 2
    cfg.TRAINER.BPTVLM.COVARIANCE = "full"  # model of the covariance: full, diagonal, vd or vkd
    cfg.TRAINER.BPTVLM.CMA_OPTIONS = []  # further options of pycma, [key, value, ...]

    cfg.TRAINER.JOLT = CN()
    cfg.TRAINER.JOLT.N_CTX = 4  # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.JOLT.CTX_INIT = "a photo of a"  # words to start from; empty: random, N(0, 0.02^2)
    cfg.TRAINER.JOLT.SPACE = (
        "context"  # prompt space: context, lowrank (sizes: ZIP's) or projection (sizes: CRAFT's)
    )
    cfg.TRAINER.JOLT.DIRECTIONS = 64  # directions m of a step's subspace
    cfg.TRAINER.JOLT.DAMPINGS = (
        0.1,
        1.0,
        10.0,
    )  # factors of the damping, a proposal each; a step costs 1 + their number + m queries
    cfg.TRAINER.JOLT.DAMPING = 1.0  # damping to begin with, in units of the mean curvature
    cfg.TRAINER.JOLT.MEMORY = False  # remember the Jacobian, on the whole un-augmented training set or of granted FEATURES: for small problems, without a head
    cfg.TRAINER.JOLT.FEATURES = False  # ask for features (grant features), from which logits are made here: a candidate costs one query and no image query
    cfg.TRAINER.JOLT.DECAY = 0.01  # weight of half the squared distance from the start
    cfg.TRAINER.JOLT.HEAD = True  # train a residual head on the logits that come back
    cfg.TRAINER.JOLT.HEAD_FOLDS = 4  # MLPs of the head, each checked on the share of the training images that it does not learn from; 1: one that is not checked
    cfg.TRAINER.JOLT.HEAD_WIDTH = 256  # their hidden width
    cfg.TRAINER.JOLT.HEAD_DROPOUT = (
        0.5  # share of the hidden layers that is left out while they learn
    )
    cfg.TRAINER.JOLT.HEAD_LR = 1e-3  # their learning rate (AdamW)
    cfg.TRAINER.JOLT.HEAD_DECAY = 0.01  # their weight decay
    cfg.TRAINER.JOLT.HEAD_STEPS = (
        8  # their steps after every step of the prompt, on what is remembered
    )
    cfg.TRAINER.JOLT.HEAD_MEMORY = 1024  # logits of so many crops are remembered, the latest

    cfg.TRAINER.ZEROSHOT = CN()
    cfg.TRAINER.ZEROSHOT.TEMPLATE = (
        ""  # text with a slot {} for the class name; empty: the data set's own
    )

    cfg.TRAINER.WHITEBOX = CN()
    cfg.TRAINER.WHITEBOX.N_CTX = 8  # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.WHITEBOX.CTX_INIT = ""  # words to start from; empty: random, N(0, 0.02^2)
