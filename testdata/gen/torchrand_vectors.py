"""Writes internal/torchrand/testdata/uniform.json: numbers of torch's CPU generator.

Run from the repository root, on x86-64 with AVX2, with torch 2.15.0 and peft:

    python testdata/gen/torchrand_vectors.py

The script calls itself once per setting of ATEN_CPU_CAPABILITY. "default" is
compiled without fused multiply-add, "avx2" and "avx512" with it; the latter two
must agree.

Per generator, a list of draws made one after the other. A draw has the bits of
its first and last 16 float32 numbers in hexadecimal and the SHA-256 of all of
them, little-endian, in the order of the flattened tensor. Bounds are hexadecimal
float64. "bounds" has sqrt(3)*(sqrt(2)/sqrt(fan)) as the code of peft computes it.
"""

import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys

VERSION = "2.15.0"
OUTPUT = pathlib.Path("internal/torchrand/testdata/uniform.json")
SEEDS = [0, 1, 7, 42, 12345, 2**32 + 5, 2**64 - 1, -1, -5]
UNIT = (0.0, 1.0)
ODD = (-0.3, 0.6)  # no float32, and as float32 they are 0.90000004 apart, not 0.9
CLOSE = (1.0, 1.0 + 2.0**-22)  # many numbers round up to the bound, which is not part of the range
TINY = (-(2.0**-140), 2.0**-141)  # subnormal


def describe(tensor):
    data = tensor.contiguous().numpy().astype("<f4").tobytes()
    words = [data[i : i + 4][::-1].hex() for i in range(0, len(data), 4)]
    edge = {"first": "".join(words[:16])}
    if len(words) > 16:
        edge["last"] = "".join(words[-16:])
    return edge | {"sha256": hashlib.sha256(data).hexdigest()}


def uniform(seed, draws):
    import torch

    generator = torch.Generator(device="cpu").manual_seed(seed)
    result = []
    for count, (low, high) in draws:
        tensor = torch.empty(count).uniform_(low, high, generator=generator)
        result.append({"count": count, "from": low.hex(), "to": high.hex()} | describe(tensor))
    return {"seed": seed, "draws": result}


def bounds(fans):
    gain = math.sqrt(2)
    return {str(fan): (math.sqrt(3.0) * (gain / math.sqrt(fan))).hex() for fan in fans}


def kaiming(seed, shapes):
    import torch
    from peft.tuners.vera.model import _kaiming_init

    generator = torch.Generator(device="cpu").manual_seed(seed)
    draws = [{"rows": r, "cols": c} | describe(_kaiming_init((r, c), generator)) for r, c in shapes]
    return {"seed": seed, "draws": draws}


def vectors():
    import torch

    if torch.__version__.split("+")[0] != VERSION:
        raise SystemExit(f"torch {torch.__version__}, want {VERSION}")
    result = {"uniform": [uniform(seed, [(1000, ODD)]) for seed in SEEDS]}
    sizes = [0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 623, 625]
    result["uniform"].append(uniform(3, [(size, UNIT) for size in sizes]))
    result["uniform"].append(uniform(4, [(1000, CLOSE), (1000, TINY), (1000, (0.5, 0.5))]))
    result["kaiming"] = [kaiming(seed, [(8, 37), (50, 8)]) for seed in (0, 42)]
    return result


def run(capability):
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, __file__, "print"]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def main():
    fused = run("avx2")
    if run("avx512") != fused:
        raise SystemExit("AVX2 and AVX-512 differ")
    plain = run("default")
    if plain == fused:
        raise SystemExit("the default dispatch does not differ from AVX2")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    fans = [1, 2, 3, 7, 37, 256, 4096, 11008, 14336]
    result = {"torch": VERSION, "bounds": bounds(fans), "fused": fused, "plain": plain}
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["print"]:
        print(json.dumps(vectors()))
    else:
        main()
