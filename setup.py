"""seg_ext: semantic, instance and panoptic segmentation on detectron2."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "seg_ext" / "__init__.py").read_text(encoding="utf-8"), re.M)[1]

# detectron2 is not on the package index under its own name: `seg-ext install-detectron2` puts it in place where
# `import detectron2` finds nothing. What its Python part needs is listed here.
DETECTRON2_NEEDS = [
    "cloudpickle",
    "fvcore",
    "hydra-core>=1.1",
    "iopath",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "Pillow",
    "pycocotools",
    "tabulate",
    "tensorboard",
    "termcolor",
    "torch",
    "torchvision",
    "tqdm",
    "yacs",
]

setup(
    name="seg-ext",
    version=VERSION,
    description="Any semantic decoder on any backbone, alone or beside Mask R-CNN, as a detectron2 extension",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["seg_ext", "seg_ext.*"]), "seg_ext.configs"],
    package_dir={"seg_ext.configs": "configs"},
    package_data={"seg_ext": ["py.typed"], "seg_ext.configs": ["**/*.yaml"]},
    install_requires=[
        *DETECTRON2_NEEDS,
        "hotcoco",
        "opencv-python-headless",
        "PyYAML",
        "safetensors",
        "scipy",
        "tifffile",
    ],
    extras_require={  # `make` installs dev, timm and export; the tests need no other
        "timm": ["timm"],
        "schedulefree": ["schedulefree"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "geo": ["rasterio"],
        "demo": ["anyio", "fastapi", "gradio>=6", "pydantic", "starlette", "uvicorn"],
        "bench": ["segmentation-models-pytorch", "torchmetrics"],
        "dev": [
            "fastapi",
            "httpx",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "segmentation-models-pytorch",
            "setuptools",
        ],
    },
    entry_points={"console_scripts": ["seg-ext = seg_ext.cli.main:main"]},
)
