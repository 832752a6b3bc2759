from pathlib import Path

from setuptools import find_packages, setup

# The folders keep CoOp's names in the checkout and become subpackages of `dassl_blackbox` when installed: nothing claims a top-level
# `trainers` or `datasets`. `compat/dassl` travels as data and is put on the path only where no Dassl is installed.
FOLDERS = {f"dassl_blackbox.{name}": name for name in ("trainers", "datasets")}
packages = ["dassl_blackbox"]
for package, folder in FOLDERS.items():
    packages += [package] + [f"{package}.{sub}" for sub in find_packages(folder)]
packages += ["dassl_blackbox.compat"] + [
    f"dassl_blackbox.compat.{sub}" for sub in find_packages("compat")
]

setup(
    name="dassl-blackbox",
    version="0.1.0",
    description="Dassl trainers that adapt a vision-language model which can only be queried",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=packages,
    package_dir={"": ".", **FOLDERS, "dassl_blackbox.compat": "compat"},
    package_data={"dassl_blackbox.trainers.blackbox": ["assets/*"]},
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "open_clip_torch>=3.0",
        "yacs",
        "cma>=4.5,<4.6",  # other versions adapt the step size otherwise
        "numpy",
        "pillow",
        "safetensors",
        "scikit-learn",
        "tabulate",
        "tqdm",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={"test": ["pytest", "pytest-xdist"]},
)
