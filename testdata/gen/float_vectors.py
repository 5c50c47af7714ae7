"""Writes quant/block/testdata/torch_float.json: conversions as torch does them.

Run from the repository root with torch 2.15.0 and numpy:

    python testdata/gen/float_vectors.py

Every entry is "input>output", both the bits in hexadecimal.

encode32  float32 -> format, by Tensor.to
decode32  format -> float32, by Tensor.to; all codes of the 8-bit formats
encode64  float64 -> f16 and bf16, rounded once. torch rounds to float32 on the
          way, which is wrong now and then, so these are computed exactly, from
          fractions; f16 is checked against numpy, which rounds once. Entries
          where torch differs are in torch_rounds_twice as well.

Signs and payloads of NaN differ between torch's scalar and vector paths and CPU
dispatches. They are written as found, to be compared as NaN only.
"""

import json
import pathlib
import random
from fractions import Fraction

import numpy as np
import torch

VERSION = "2.15.0"
OUTPUT = pathlib.Path("quant/block/testdata/torch_float.json")

# name: torch type, bits, bits of fraction, exponent bias, code of the largest number
FORMATS = {
    "f16": (torch.float16, 16, 10, 15, 0x7BFF),
    "bf16": (torch.bfloat16, 16, 7, 127, 0x7F7F),
    "f8_e4m3": (torch.float8_e4m3fn, 8, 3, 7, 0x7E),
    "f8_e5m2": (torch.float8_e5m2, 8, 2, 15, 0x7B),
}


def value(code, frac, bias):
    """The number that a code without sign bit stands for, exactly."""
    exponent, fraction = code >> frac, code & ((1 << frac) - 1)
    if exponent == 0:
        return Fraction(fraction) * Fraction(2) ** (1 - bias - frac)
    return (Fraction(fraction) + (1 << frac)) * Fraction(2) ** (exponent - bias - frac)


def round_once(x, name):
    """The code nearest to the float64 x, ties to the even code."""
    _, bits, frac, bias, largest = FORMATS[name]
    sign = (1 << (bits - 1)) if np.signbit(x) else 0
    if not np.isfinite(x):
        raise ValueError("finite numbers only")
    magnitude = abs(Fraction(float(x)))
    low, high = 0, largest + 1  # the code after the largest is infinity
    while low < high:  # the last code whose value is <= magnitude
        middle = (low + high + 1) // 2
        if value(middle, frac, bias) <= magnitude:
            low = middle
        else:
            high = middle - 1
    if low > largest:
        return sign | largest + 1
    below, above = value(low, frac, bias), value(low + 1, frac, bias)
    if magnitude - below > above - magnitude or (magnitude - below == above - magnitude and low % 2):
        low += 1
    return sign | low


def interesting(name, rng):
    """float64 numbers around the codes where rounding can go wrong."""
    _, bits, frac, bias, largest = FORMATS[name]
    codes = {0, 1, 2, 3, (1 << frac) - 1, 1 << frac, (1 << frac) + 1, bias << frac, largest - 1, largest}
    codes |= {rng.randrange(largest) for _ in range(2)}
    for code in sorted(codes):
        exact, following = float(value(code, frac, bias)), float(value(code + 1, frac, bias))
        yield exact
        yield (exact + following) / 2
    yield from (2.0**120, 2.0**-126, 2.0**-149)


def float32_inputs(name, rng):
    bits = set()
    for x in interesting(name, rng):
        with np.errstate(over="ignore"):
            tie = int(np.float32(x).view(np.uint32))
        bits |= {tie, max(tie, 1) - 1, tie + 1}
    bits |= {0x7F7FFFFF, 0x7F800000}
    signed = [b if i % 2 else b | 1 << 31 for i, b in enumerate(sorted(bits))]
    signed += [0, 1 << 31, 0xFF800000, 0x7F800001, 0x7FC00000, 0xFFC12345, 0x7FFFFFFF]
    return signed


def float64_inputs(name, rng):
    bits = set()
    for x in interesting(name, rng):
        tie = int(np.float64(x).view(np.uint64))
        bits |= {tie, max(tie, 1) - 1, tie + 1}
    return [b if i % 2 else b | 1 << 63 for i, b in enumerate(sorted(bits))]


def encode32(inputs, name):
    dtype, bits = FORMATS[name][:2]
    view = torch.uint8 if bits == 8 else torch.uint16
    source = torch.from_numpy(np.array(inputs, dtype=np.uint32).view(np.float32))
    vector = source.to(dtype).view(view).tolist()
    single = [source[i : i + 1].to(dtype).view(view).item() for i in range(len(inputs))]
    if vector != single:
        raise SystemExit(f"{name}: torch's vector and scalar paths differ")
    return vector


def decode32(codes, name):
    dtype, bits = FORMATS[name][:2]
    numpy_type = np.uint8 if bits == 8 else np.uint16
    source = torch.from_numpy(np.array(codes, dtype=numpy_type)).view(dtype)
    return source.to(torch.float32).view(torch.uint32).tolist()


def pairs(inputs, input_bits, outputs, output_bits):
    return [f"{i:0{input_bits // 4}x}>{o:0{output_bits // 4}x}" for i, o in zip(inputs, outputs, strict=True)]


def main():
    if torch.__version__.split("+")[0] != VERSION:
        raise SystemExit(f"torch {torch.__version__}, want {VERSION}")
    rng = random.Random(1)
    result = {"torch": VERSION, "encode32": {}, "decode32": {}, "encode64": {}, "torch_rounds_twice": {}}
    for name, (dtype, bits, frac, bias, largest) in FORMATS.items():
        inputs = float32_inputs(name, rng)
        result["encode32"][name] = pairs(inputs, 32, encode32(inputs, name), bits)
        codes = range(256)
        if bits == 16:
            codes = [0, 1, 0x8001, (1 << frac) - 1, 1 << frac, bias << frac, largest, largest + 1]
            codes += [0x8000 | largest, 0x8000 | largest + 1, largest + 2, 0x7FFF, 0xFFFF]
            codes += [rng.randrange(1 << 16) for _ in range(6)]
        result["decode32"][name] = pairs(codes, bits, decode32(codes, name), 32)
        if bits == 8:
            continue
        inputs = float64_inputs(name, rng)
        numbers = np.array(inputs, dtype=np.uint64).view(np.float64)
        once = [round_once(x, name) for x in numbers]
        if name == "f16":
            with np.errstate(over="ignore"):
                if numbers.astype(np.float16).view(np.uint16).tolist() != once:
                    raise SystemExit("numpy disagrees on float64 -> f16")
        twice = torch.from_numpy(numbers).to(dtype).view(torch.uint16).tolist()
        result["encode64"][name] = pairs(inputs, 64, once, bits)
        differ = [i for i, (a, b) in enumerate(zip(once, twice, strict=True)) if a != b]
        if not differ:
            raise SystemExit(f"{name}: no input that torch rounds twice")
        result["torch_rounds_twice"][name] = [result["encode64"][name][i] for i in differ]
    lines = []
    for section, content in result.items():
        if isinstance(content, dict):
            formats = [f'  "{name}": "{" ".join(entries)}"' for name, entries in content.items()]
            lines.append(f' "{section}": {{\n' + ",\n".join(formats) + "\n }")
        else:
            lines.append(f' "{section}": {json.dumps(content)}')
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
