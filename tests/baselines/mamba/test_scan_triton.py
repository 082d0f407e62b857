"""The Triton kernels without a GPU: interpreted against the reference, and compiled for real architectures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (pip install triton, or the extra `gpu`)")
ROOT = Path(__file__).parents[3]


def test_interpreted_kernels_equal_the_float64_reference() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("interpreted_scan.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_there(capability: int, tmp_path: Path, monkeypatch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from baselines.mamba import scan_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"length", "channels", "entries", "chunks"}
    for kernel in (scan_triton._forward, scan_triton._backward):
        constants = {"EVERY": 16, "GATED": True, "SAVE": True, "BLOCK_E": scan_triton.BLOCK, "BLOCK_N": 16}
        names = kernel.arg_names
        constants = {name: value for name, value in constants.items() if name in names}
        signature = {name: "constexpr" if name in constants else "i32" if name in sizes else "*fp32" for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
