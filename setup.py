"""Builds the compiled extension against LibTorch's stable ABI: one binary for every torch >= 2.11, Python >= 3.10.

`_crgan_C` (CPU) is always built. `_crgan_cuda` is built where torch has CUDA and a matching nvcc is found; the
variable CRGAN_CUDA=0 leaves it out, CRGAN_CUDA=1 fails where it cannot be built.
"""

import os
import re
import shutil
import subprocess

import setuptools
import torch
from setuptools import find_packages, setup

if int(setuptools.__version__.split(".")[0]) < 77:  # without build isolation: Python 3.10 and 3.11 come with 65
    raise SystemExit(f"crgan needs another setuptools than {setuptools.__version__}: pip install 'setuptools>=77'")

STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11
CXX = ["-O3", "-g0", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi", STABLE]
NVCC = ["-O3", "-DUSE_CUDA", STABLE]
ARCHS = {"80": "8.0", "90": "9.0", "100": "10.0"}


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


def use_toolkit() -> str:
    """Points torch at the CUDA toolkit; returns "" or the reason why there is none to use."""
    if os.environ.get("CRGAN_CUDA") == "0":
        return "CRGAN_CUDA=0"
    if not torch.version.cuda:
        return f"torch {torch.__version__} has no CUDA"
    home = os.environ.get("CUDA_HOME")
    nvcc = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc")
    if not nvcc or not os.path.exists(nvcc):
        return f"no nvcc at {nvcc}" if nvcc else "no nvcc on the PATH"
    version = re.search(r"release (\d+)\.(\d+)", ask(nvcc, "--version"))
    if not version or version[1] != torch.version.cuda.split(".")[0]:
        return f"{nvcc} is CUDA {version and version[0]}, torch {torch.__version__} is CUDA {torch.version.cuda}"
    if not home:  # the nvcc on the PATH may be a wrapper that lives elsewhere: ask for the toolkit's root
        steps = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = re.search(r"TOP=(.+)", steps.stderr)
        os.environ["CUDA_HOME"] = os.path.realpath(top[1] if top else os.path.join(os.path.dirname(nvcc), ".."))
    known = [arch for number, arch in ARCHS.items() if f"compute_{number}\n" in ask(nvcc, "--list-gpu-arch")]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(known) + "+PTX")
    return ""


missing = use_toolkit()  # before torch looks for the toolkit, on import of the next module
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

if missing and os.environ.get("CRGAN_CUDA") == "1":
    raise SystemExit(f"CRGAN_CUDA=1, but the CUDA extension cannot be built: {missing}")
extensions = [CppExtension("_crgan_C", ["csrc/group_votes.cpp"], py_limited_api=True, extra_compile_args={"cxx": CXX})]
if not missing:
    extensions.append(
        CUDAExtension(
            "_crgan_cuda",
            ["csrc/group_votes.cu"],
            py_limited_api=True,
            extra_compile_args={"cxx": CXX, "nvcc": NVCC},
        )
    )
cuda = f"not built: {missing}" if missing else f"built for {os.environ['TORCH_CUDA_ARCH_LIST']}"
print(f"crgan: extension against torch {torch.__version__}: CPU module built; CUDA module {cuda}")

setup(
    packages=[*find_packages(include=["crgan", "crgan.*"]), "_crgan_kernels"],
    package_dir={"_crgan_kernels": "kernels"},  # "kernels" itself is another project's import name
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
