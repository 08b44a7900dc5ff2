"""Which path an operator takes: plain, eager, compiled by inductor, or a Triton kernel."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("repertory")

BACKENDS = ("auto", "reference", "eager", "compiled", "triton")
Function = TypeVar("Function", bound=Callable[..., object])


def check(backend: str) -> str:
    """``backend`` itself; ``ValueError`` where it is not one."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    return backend


def _compiler(*names: str | None) -> str | None:
    """Where the first of the compilers ``names`` is that can be found."""
    return next((place for name in names if name and (place := shutil.which(name))), None)


@functools.cache
def compiler_found() -> bool:
    """Whether inductor finds a C++ compiler for its CPU kernels."""
    return _compiler(os.environ.get("CXX"), "g++", "clang++") is not None


@functools.cache
def triton_found() -> bool:
    """Whether Triton can be imported and a CUDA device is there to run it."""
    if not torch.cuda.is_available():
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def being_traced() -> bool:
    """Whether a caller compiles or exports: then an operator shows its plain eager form and compiles nothing itself."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def needs_triton(backend: str, tensor: Tensor) -> bool:
    """Whether ``backend`` means the Triton path for ``tensor``; ``ValueError`` where it is forced and cannot run."""
    possible = tensor.is_cuda and triton_found()
    if backend == "triton" and not possible:
        raise ValueError(f"backend is 'triton', which needs a CUDA tensor and Triton; the tensor is on {tensor.device}")
    return backend == "triton" or (backend == "auto" and possible and not being_traced())


@functools.cache
def compiles(name: str, device_type: str) -> bool:
    """Whether inductor can make kernels for ``device_type``; where not, one log line says that of operator ``name``."""
    possible = device_type != "cpu" or compiler_found()
    if not possible:
        log.warning("no C++ compiler found: %s runs uncompiled, more slowly", name)
    return possible


@functools.cache
def native(name: str) -> ctypes.CDLL | None:
    """``name``.c beside this module, compiled for this machine and loaded; None, and one log line, where it cannot be.

    It is compiled anew, within a second, by every process that asks for it, into a folder that is removed at once: a
    library made for the processor of one machine must not be found on another.
    """
    source = Path(__file__).with_name(f"{name}.c")
    compiler = _compiler(os.environ.get("CC", "cc"), "gcc", "clang")
    if compiler is None:
        log.warning("no C compiler found: %s runs uncompiled, more slowly", name)
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, f"{name}.so")
        for flags in (["-march=native", "-fopenmp"], ["-march=native"], []):  # Apple's compiler has no OpenMP
            command = [compiler, "-O3", *flags, "-shared", "-fPIC", "-o", str(made), str(source)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                return ctypes.CDLL(str(made))
    log.warning("%s cannot compile %s, which runs uncompiled, more slowly: %s", compiler, name, result.stderr.strip())
    return None


def compiled(function: Function, dynamic: bool | None = None, options: dict[str, Any] | None = None) -> Function:
    """``function`` compiled by inductor when first called; itself, with one log line, where no compiler is found.

    ``dynamic`` and ``options`` are those of ``torch.compile``.

    Inductor keeps what it compiled on disk, so a later process finds it there.
    """
    name = getattr(function, "__name__", "an operator")

    @functools.cache
    def path(device_type: str) -> Callable[..., object]:
        return torch.compile(function, dynamic=dynamic, options=options) if compiles(name, device_type) else function

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        first = next((a for a in args if isinstance(a, Tensor)), None)
        return path(first.device.type if first is not None else "cpu")(*args, **kwargs)

    return call  # type: ignore[return-value]
