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

    cfg.ORACLE = CN()
    cfg.ORACLE.PREC = "fp32"            # precision of the model's answers: fp32, fp16, bf16 or amp (autocast)
    cfg.ORACLE.GRANTS = ("logits",)     # what the model's owner lets out or in: logits, features, image_tokens
    cfg.ORACLE.MAX_QUERIES = 5000       # training budget in queries (one candidate on one batch of at most 128 images); 0 = no limit
    cfg.ORACLE.MAX_IMAGE_QUERIES = 0    # training budget in image queries (candidate x image); 0 = no limit
    cfg.ORACLE.SAVE_EVERY = 500         # write a checkpoint for resuming after so many training queries; 0 = only at the end

    cfg.TRAINER.ZIP = CN()
    cfg.TRAINER.ZIP.N_CTX = 8           # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.ZIP.CTX_INIT = ""       # words to start from; empty: random, N(0, 0.02^2)
    cfg.TRAINER.ZIP.ID = 500            # intrinsic dimension; each token gets m = ID // n numbers
    cfg.TRAINER.ZIP.RANK = 5            # rank r of the low-rank part
    cfg.TRAINER.ZIP.RULE = "spsa-clip"  # update rule: spsa-clip, spsa-gc or spsa
    cfg.TRAINER.ZIP.SP_AVG = 5          # perturbations averaged in a step, two queries each
    cfg.TRAINER.ZIP.O = 1.0             # step size a_k = A / (k + O) ** ALPHA
    cfg.TRAINER.ZIP.C = 0.01            # perturbation scale c_k = C / k ** GAMMA
    cfg.TRAINER.ZIP.A = 0.01
    cfg.TRAINER.ZIP.ALPHA = 0.4
    cfg.TRAINER.ZIP.GAMMA = 0.1
    cfg.TRAINER.ZIP.BETA = 0.8          # momentum of spsa-gc

    cfg.TRAINER.ZEROSHOT = CN()
    cfg.TRAINER.ZEROSHOT.TEMPLATE = ""  # text with a slot {} for the class name; empty: the data set's own

    cfg.TRAINER.WHITEBOX = CN()
    cfg.TRAINER.WHITEBOX.N_CTX = 8      # context tokens n (ignored where CTX_INIT gives words)
    cfg.TRAINER.WHITEBOX.CTX_INIT = ""  # words to start from; empty: random, N(0, 0.02^2)
