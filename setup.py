"""Package definition: `multicoco` and, one level down in kernels/, `multicoco_kernels`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="multicoco",
    version="0.1.0",
    description="Training engine for latent reasoning (Coconut) in vision-language models, on DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[*find_packages(include=["multicoco", "multicoco.*"]), "multicoco_kernels"],
    package_dir={"multicoco_kernels": "kernels/multicoco_kernels"},
    install_requires=[
        "torch>=2.8",
        "deepspeed>=0.19",
        "transformers>=5.20",
        "tokenizers",
        "safetensors",
        "pydantic>=2.11",
        "pyyaml",
        "pillow",
        "numpy",
        "torchdata>=0.11",
        "tqdm",
        "jinja2",
        "ninja",
        "wandb>=0.31",
    ],
    extras_require={
        "test": ["pytest", "hypothesis", "ruff"],
    },
    entry_points={"console_scripts": ["multicoco = multicoco.cli:main"]},
)
