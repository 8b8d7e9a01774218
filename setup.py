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
FLAGS = {
    "cxx": ["-O3", "-g0", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi", STABLE],
    "nvcc": ["-O3", "-DUSE_CUDA", STABLE],
}


def use_toolkit() -> str:
    """Point torch at the CUDA toolkit; return "" or the reason why there is none to use."""
    if not torch.version.cuda or os.environ.get("CRGAN_CUDA") == "0":
        return f"torch {torch.__version__} has no CUDA" if not torch.version.cuda else "CRGAN_CUDA=0"
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(os.path.join(home, "bin", "nvcc") if home else "nvcc")
    if not nvcc:
        return "no nvcc at CUDA_HOME" if home else "no nvcc on the PATH"
    # The nvcc on the PATH may be a wrapper that lives elsewhere, so ask for the toolkit's root.
    asked = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    version, steps = (subprocess.run(command, capture_output=True, text=True) for command in ([nvcc, "-V"], asked))
    release, top = re.search(r"release (\d+)\.(\d+)", version.stdout), re.search(r"TOP=(.+)", steps.stderr)
    if not release or release[1] != torch.version.cuda.split(".")[0]:
        return f"{nvcc} is CUDA {release and release[0]}, torch {torch.__version__} is CUDA {torch.version.cuda}"
    os.environ.setdefault("CUDA_HOME", os.path.realpath(top[1] if top else os.path.join(nvcc, "../..")))
    blackwell = ";10.0" if (int(release[1]), int(release[2])) >= (12, 8) else ""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"8.0;9.0{blackwell}+PTX")
    return ""


missing = use_toolkit()  # before torch looks for the toolkit, on import of the next module
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

if missing and os.environ.get("CRGAN_CUDA") == "1":
    raise SystemExit(f"CRGAN_CUDA=1, but the CUDA extension cannot be built: {missing}")
built = {"py_limited_api": True, "extra_compile_args": FLAGS}
extensions = [CppExtension("_crgan_C", ["csrc/group_votes.cpp"], **built)]
if not missing:
    extensions.append(CUDAExtension("_crgan_cuda", ["csrc/group_votes.cu"], **built))
cuda = f"not built: {missing}" if missing else f"built for {os.environ['TORCH_CUDA_ARCH_LIST']}"
print(f"crgan: extension against torch {torch.__version__}: CPU module built; CUDA module {cuda}")

setup(
    packages=[*find_packages(include=["crgan", "crgan.*"]), "_crgan_kernels"],
    package_dir={"_crgan_kernels": "kernels"},  # "kernels" itself is another project's import name
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
