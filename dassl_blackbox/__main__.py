"""What can be run; each tells its options with --help.

dassl-blackbox fit, predict        a classifier of your own pictures
python -m dassl_blackbox.results   tables of finished runs
python -m dassl_blackbox.plots     their plots
python -m dassl_blackbox.datasets  which data sets are there, and whole
python -m dassl_blackbox.configs   copies the YAMLs of data sets and trainers
python -m dassl_blackbox.serve     lets others query a model over HTTP

In a checkout:
bash scripts/quickstart.sh         a first look; downloads no data
bash scripts/main.sh               one method on one data set, all seeds
python train.py                    one run, with CoOp's flags
python parse_test_res.py           CoOp's summary of several seeds
python interpret_prompt.py         the words nearest to a learned prompt
python scripts/compare.py          all methods on one data set, under one budget
python scripts/sweep.py            a grid of methods, data sets, shots and seeds
"""

import sys

from .commands import main

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main())
    print((__doc__ or "").strip())
