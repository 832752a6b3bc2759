"""What this project relies on in the configuration of Dassl 0.6.3: every default.

All of `test_dassl_*.py` is asked of whichever `dassl` is importable: the real one or
`compat/dassl`.
"""

import ast

import dassl
from contract import COMPAT
from dassl.config import clean_cfg, get_cfg_default

DEFAULTS = """
: VERSION=1; OUTPUT_DIR='./output'; RESUME=''; SEED=-1; USE_CUDA=True; VERBOSE=True
INPUT: SIZE=(224, 224); INTERPOLATION='bilinear'; TRANSFORMS=(); NO_TRANSFORM=False; CROP_PADDING=4
INPUT: RRCROP_SCALE=(0.08, 1.0)
INPUT: PIXEL_MEAN=[0.485, 0.456, 0.406]; PIXEL_STD=[0.229, 0.224, 0.225]; CUTOUT_N=1; CUTOUT_LEN=16
INPUT: GN_MEAN=0.0; GN_STD=0.15
INPUT: RANDAUGMENT_N=2; RANDAUGMENT_M=10; COLORJITTER_B=0.4; COLORJITTER_C=0.4; COLORJITTER_S=0.4
INPUT: COLORJITTER_H=0.1; RGS_P=0.2
INPUT: GB_P=0.5; GB_K=21
DATASET: ROOT=''; NAME=''; SOURCE_DOMAINS=(); TARGET_DOMAINS=(); NUM_LABELED=-1; NUM_SHOTS=-1
DATASET: VAL_PERCENT=0.1; STL10_FOLD=-1
DATASET: CIFAR_C_TYPE=''; CIFAR_C_LEVEL=1; ALL_AS_UNLABELED=False
DATALOADER: NUM_WORKERS=4; K_TRANSFORMS=1; RETURN_IMG0=False; TEST.SAMPLER='SequentialSampler'
DATALOADER: TEST.BATCH_SIZE=32
DATALOADER.TRAIN_X: SAMPLER='RandomSampler'; BATCH_SIZE=32; N_DOMAIN=0; N_INS=16
DATALOADER.TRAIN_U: SAME_AS_X=True; SAMPLER='RandomSampler'; BATCH_SIZE=32; N_DOMAIN=0; N_INS=16
MODEL: INIT_WEIGHTS=''; BACKBONE.NAME=''; BACKBONE.PRETRAINED=True
MODEL.HEAD: NAME=''; HIDDEN_LAYERS=(); ACTIVATION='relu'; BN=True; DROPOUT=0.0
OPTIM: NAME='adam'; LR=0.0003; WEIGHT_DECAY=0.0005; MOMENTUM=0.9; SGD_DAMPNING=0; SGD_NESTEROV=False
OPTIM: RMSPROP_ALPHA=0.99
OPTIM: ADAM_BETA1=0.9; ADAM_BETA2=0.999; STAGED_LR=False; NEW_LAYERS=(); BASE_LR_MULT=0.1
OPTIM: LR_SCHEDULER='single_step'
OPTIM: STEPSIZE=(-1,); GAMMA=0.1; MAX_EPOCH=10; WARMUP_EPOCH=-1; WARMUP_TYPE='linear'
OPTIM: WARMUP_CONS_LR=1e-05
OPTIM: WARMUP_MIN_LR=1e-05; WARMUP_RECOUNT=True
TRAIN: CHECKPOINT_FREQ=0; PRINT_FREQ=10; COUNT_ITER='train_x'
TEST: EVALUATOR='Classification'; PER_CLASS_RESULT=False; COMPUTE_CMAT=False; NO_TEST=False
TEST: SPLIT='test'; FINAL_MODEL='last_step'
TRAINER: NAME=''; MCD.N_STEP_F=4; MME.LMDA=0.1; M3SDA.LMDA=0.5; M3SDA.N_STEP_F=4; ENTMIN.LMDA=0.001
TRAINER: SE.EMA_ALPHA=0.999; SE.CONF_THRE=0.95; SE.RAMPUP=300; DOMAINMIX.TYPE='crossdomain'
TRAINER: DOMAINMIX.ALPHA=1.0
TRAINER: DOMAINMIX.BETA=1.0; MEANTEACHER.WEIGHT_U=1.0; MEANTEACHER.EMA_ALPHA=0.999
TRAINER: MEANTEACHER.RAMPUP=5
TRAINER.CDAC: CLASS_LR_MULTI=10; RAMPUP_COEF=30; RAMPUP_ITRS=1000; TOPK_MATCH=5; P_THRESH=0.95
TRAINER.CDAC: STRONG_TRANSFORMS=()
TRAINER: DAEL.WEIGHT_U=0.5; DAEL.CONF_THRE=0.95; DAEL.STRONG_TRANSFORMS=(); DAELDG.WEIGHT_U=0.5
TRAINER: DAELDG.CONF_THRE=0.95
TRAINER: DAELDG.STRONG_TRANSFORMS=(); FIXMATCH.WEIGHT_U=1.0; FIXMATCH.CONF_THRE=0.95
TRAINER: FIXMATCH.STRONG_TRANSFORMS=()
TRAINER: CROSSGRAD.EPS_F=1.0; CROSSGRAD.EPS_D=1.0; CROSSGRAD.ALPHA_F=0.5; CROSSGRAD.ALPHA_D=0.5
TRAINER.DDAIG: G_ARCH=''; LMDA=0.3; CLAMP=False; CLAMP_MIN=-1.0; CLAMP_MAX=1.0; WARMUP=0; ALPHA=0.5
TRAINER.MIXMATCH: WEIGHT_U=100.0; TEMP=2.0; MIXUP_BETA=0.75; RAMPUP=20000
"""


def test_which_dassl():
    print(
        f"\ncontract tests ran against {'compat/dassl' if COMPAT else 'the REAL Dassl'} "
        f"{dassl.__version__}: {dassl.__file__}"
    )
    assert dassl.__version__ == "0.6.3"


def test_every_default_by_value():
    expected = {}
    for line in DEFAULTS.strip().splitlines():
        node, pairs = line.split(": ")
        for key, value in (pair.split("=") for pair in pairs.split("; ")):
            expected[f"{node}.{key}".lstrip(".")] = ast.literal_eval(value)

    def flat(node, path=""):
        for key, value in node.items():
            yield from (
                flat(value, f"{path}{key}.") if isinstance(value, dict) else [(path + key, value)]
            )

    found = dict(flat(get_cfg_default()))
    assert found == expected
    assert {k: type(v) for k, v in found.items()} == {
        k: type(v) for k, v in expected.items()
    }  # yacs merges by type


def test_config_copies_and_clean_cfg():
    cfg = get_cfg_default()
    cfg.INPUT.PIXEL_MEAN[0] = cfg.OPTIM.LR = 7
    assert get_cfg_default().INPUT.PIXEL_MEAN[0] == 0.485 and get_cfg_default().OPTIM.LR == 0.0003
    clean_cfg(cfg, "MixMatch")
    assert list(cfg.TRAINER) == ["NAME", "MIXMATCH"]
