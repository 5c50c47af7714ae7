"""Makes testdata/golden/half: products of matrices and vectors as torch computes them in 16 bits.

    python testdata/gen/half_matmul_golden.py [--out DIR]

W (rows, n), X (inputs, n) and Y = X·W^T (inputs, rows) in float16 and bfloat16 on a CPU, with the sums that torch takes there,
for widths that fill the lanes of vectors and such that do not. Noise from a fixed seed. Made with torch 2.15.
"""

from __future__ import annotations

import argparse
import pathlib

import torch
from safetensors.torch import save_file


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--out", default="testdata/golden/half")
    out = pathlib.Path(flags.parse_args().out)
    out.mkdir(parents=True, exist_ok=True)
    for dtype in (torch.float16, torch.bfloat16):
        torch.manual_seed(16)
        tensors = {}
        for n in (3, 64, 200, 1000):
            w, x = torch.randn(9, n).to(dtype), torch.randn(2, n).to(dtype)
            tensors |= {f"{n}.w": w, f"{n}.x": x, f"{n}.y": torch.nn.functional.linear(x, w).contiguous()}
        save_file(tensors, out / f"{str(dtype).removeprefix('torch.')}.safetensors")


if __name__ == "__main__":
    main()
