"""Write formats/safetensors/testdata/*.safetensors with the Python package.

Usage: python testdata/gen/safetensors_vectors.py [FOLDER]

Needs safetensors 0.8 and torch. The bytes do not depend on the machine: data
are counted up, and metadata has at most one key, because the package writes
several in random order.
"""

import ctypes
import os
import sys

import safetensors
import torch
from safetensors.torch import save_file

assert safetensors.__version__.startswith("0.8."), safetensors.__version__

TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn,
    torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32,
    torch.uint32, torch.float32, torch.complex64, torch.float64, torch.int64,
    torch.uint64,
]


def count(dtype, *shape):
    """Return a tensor whose bytes count 0, 1, 2, ... (0, 1, 0, ... for bool)."""
    empty = torch.empty(shape, dtype=dtype)
    size = empty.numel() * empty.element_size()
    step = 2 if dtype == torch.bool else 251
    raw = torch.tensor([i % step for i in range(size)], dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if size else empty


def all_dtypes():
    """One tensor of each dtype torch has, named against the order of dtypes."""
    names = [f"t{len(TORCH_DTYPES) - i:02}" for i in range(len(TORCH_DTYPES))]
    return {name: count(d, 3) for name, d in zip(names, TORCH_DTYPES)}


def names():
    """Names that need escapes, and some that must not get any."""
    odd = ["b", "a", "", "quote\"back\\slash", "tab\tline\nfeed\rreturn",
           "\b\f\x00\x01\x1f\x7f", "../../etc/passwd", "слой.вес", "重み",
           "\U0001f600", "\u2028\u202e", "a.b", "a-b", "B", "é"]
    return {name: count(torch.float16, i % 3) for i, name in enumerate(odd)}


def shapes():
    return {
        "scalar": count(torch.float32),
        "empty": count(torch.float32, 0),
        "empty.first": count(torch.int64, 0, 4),
        "empty.inner": count(torch.bfloat16, 2, 0, 5),
        "vector": count(torch.bfloat16, 7),
        "matrix": count(torch.bfloat16, 3, 5),
        "cube": count(torch.uint8, 2, 3, 4),
        "six": count(torch.float32, 1, 2, 1, 2, 1, 1),
    }


def subbyte(path):
    """F4 and F6, for which torch has no whole-element dtype."""
    spec = {}
    keep = []
    for name, dtype, shape, size in [
        ("packed4", "float4_e2m1fn_x2", [3, 2], 6),
    ]:
        buffer = (ctypes.c_uint8 * size)(*range(size))
        keep.append(buffer)
        spec[name] = safetensors.TensorSpec(
            dtype=dtype, shape=shape, data_ptr=ctypes.addressof(buffer), data_len=size)
    buffer = (ctypes.c_uint8 * 3)(9, 8, 7)
    keep.append(buffer)
    spec["bytes"] = safetensors.TensorSpec(
        dtype="uint8", shape=[3], data_ptr=ctypes.addressof(buffer), data_len=3)
    safetensors.serialize_file(spec, path, metadata=None)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    path = lambda name: os.path.join(folder, name + ".safetensors")
    save_file(all_dtypes(), path("dtypes"), metadata={"format": "pt"})
    save_file(names(), path("names"))
    save_file(shapes(), path("shapes"), metadata={"кey \"1\"\n": "tab\tü \x01 / \u2028"})
    save_file({}, path("empty"))
    # Not a vector but a bug: with neither tensors nor pairs, safetensors 0.8
    # writes {},"__metadata__":{}} which is not JSON. Readers must refuse it.
    save_file({}, path("broken_empty_metadata"), metadata={})
    for n in range(8):  # every amount of padding
        save_file({"x" * (n + 1): count(torch.int8, 1)}, path(f"padding{n}"), metadata={})
    subbyte(path("subbyte"))


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    main(sys.argv[1] if len(sys.argv) > 1
         else os.path.join(here, "..", "..", "formats", "safetensors", "testdata"))
