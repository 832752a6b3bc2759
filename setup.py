"""The folders keep CoOp's names in a checkout and become subpackages of `dassl_blackbox` when
installed: nothing claims a top-level `trainers` or `datasets`. The rest is in pyproject.toml.
"""

from setuptools import find_packages, setup

FOLDERS = ("trainers", "datasets", "configs", "compat")
setup(
    packages=["dassl_blackbox", "dassl_blackbox.serve"]
    + [f"dassl_blackbox.{folder}" for folder in FOLDERS]
    + [f"dassl_blackbox.{folder}.{sub}" for folder in FOLDERS for sub in find_packages(folder)],
    package_dir={"": ".", **{f"dassl_blackbox.{folder}": folder for folder in FOLDERS}},
    package_data={
        "dassl_blackbox.trainers.blackbox": ["assets/*"],
        "dassl_blackbox.configs": ["datasets/*.yaml", "trainers/*/*.yaml"],
    },
)
