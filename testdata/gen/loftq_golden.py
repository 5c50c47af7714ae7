"""Writes testdata/golden/loftq: what the published LoftQ code makes of given weights.

Run from the repository root, with the versions of requirements.txt, and besides
scipy 1.17.1 and bitsandbytes 0.50.2:

    python testdata/gen/loftq_golden.py --peft017 FILE --glue FILE

--peft017 is src/peft/utils/loftq_utils.py of PEFT 0.17.1, which still has quantizers of
its own; they run on any CPU. --glue is glue/utils_qaunt.py of
github.com/yxli2123/LoftQ at ae33fd4. Both are checked by hash and executed as they are;
no other file of theirs is needed.

The installed PEFT quantizes with bitsandbytes, but on a GPU only: the name of the
device is the one word of it that is changed.

Weights are integers of a fixed generator times a power of two (see weight), so
the tests make the same ones and no weight is stored. golden.json has

    quantizers  what the quantizers make of one small weight with ties, zeros, numbers
                far apart and subnormals; float32, little-endian, hexadecimal
    runs        loftq_init, by quantizer, weight, rank and iterations: SHA-256 of Q as
                float32, and ||W-Q||/||W|| and ||W-Q-BA||/||W|| in float64
    pair        Q, A and B of one small run as PEFT leaves them, and the error when
                they are applied with scales 1 and 1/4
"""

import argparse
import contextlib
import hashlib
import io
import json
import pathlib
import types

import numpy as np
import torch

OUTPUT = pathlib.Path("testdata/golden/loftq")
PEFT017 = "b6f6c426e1d877f9497a8b1d01530889f3ac9b30e0e37207243dde0d85f95614"
GLUE = "f4d98410302ec0e497ed83b3c9a1427843d4d755cc254c2ddba10dc5ba4f337b"
PEFT = "0.21.2"
SHAPE = (384, 320)
DIRECTIONS = 40


def splitmix(seed, count):
    """The first numbers of linalgtest.Source."""
    with np.errstate(over="ignore"):
        gamma = np.uint64(0x9E3779B97F4A7C15)
        z = np.uint64(seed) * gamma + np.arange(1, count + 1, dtype=np.uint64) * gamma
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return z ^ z >> np.uint64(31)


def fields(words, bits):
    """Cuts words into numbers of so many bits, the lowest first."""
    shifts = np.arange(0, 64, bits, dtype=np.uint64)
    parts = words[:, None] >> shifts & np.uint64(2**bits - 1)
    return parts.reshape(-1).astype(np.int64)


def weight(kind, out, cols, seed):
    """Sums of twelve uniform numbers; "decay" adds directions whose sizes fall like 1/k.

    All sums are below 2^24, and so are exact in float32.
    """
    noise = fields(splitmix(seed, 3 * out * cols), 16).reshape(out * cols, 12).sum(1) - 6 * 65535
    total = noise.reshape(out, cols)
    if kind == "decay":
        left = fields(splitmix(seed + 1, DIRECTIONS * out // 16), 4).reshape(DIRECTIONS, out) - 8
        right = fields(splitmix(seed + 2, DIRECTIONS * cols // 16), 4).reshape(DIRECTIONS, cols) - 8
        sizes = 16 * (256 // np.arange(1, DIRECTIONS + 1))
        total = total + (left * sizes[:, None]).T @ right
    assert abs(total).max() < 2**24
    return torch.from_numpy(np.ldexp(total.astype(np.float32), -21))


def hard():
    """A weight of 16 x 64 whose blocks are the cases that quantizers differ in."""
    w = weight("noise", 16, 64, 90)
    levels = torch.linspace(-1, 1, 64)
    w[1] = 0  # nothing to scale by
    w[2] = levels * 2.0**-130  # subnormal
    w[3] = levels * 2.0**100
    w[4] = torch.round(levels * 8) / 8  # ties of uniform levels
    w[5, ::2] = -w[5, 1::2]
    w[6] = 1.5
    w[7] = -1.5
    w[8, 1:] = 0
    w[9] *= torch.logspace(-30, 0, 64)
    for bits, row in ((2, 10), (3, 11), (4, 12)):  # middles between levels, and their neighbours
        table = torch.tensor(TABLES[bits])
        middles = (table[1:] + table[:-1]) / 2
        up, down = torch.nextafter(middles, torch.tensor(2.0)), torch.nextafter(middles, torch.tensor(-2.0))
        values = torch.cat([torch.tensor([1.0]), middles, up, down])[:64]
        w[row] = 0
        w[row, : len(values)] = values
    return w


TABLES = {}


def published(path, digest):
    source = pathlib.Path(path).read_text()
    found = hashlib.sha256(source.encode()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path} is another version: {found}")
    return module(source)


def module(source):
    m = types.ModuleType("published")
    exec(compile(source, "published", "exec"), m.__dict__)
    return m


def installed():
    import peft
    from peft.utils import loftq_utils

    assert peft.__version__ == PEFT, peft.__version__
    source = pathlib.Path(loftq_utils.__file__).read_text()
    assert source.count('else "cuda"') == 2
    return module(source.replace('else "cuda"', 'else "cpu"'))


def hexadecimal(t):
    return t.contiguous().numpy().astype("<f4").tobytes().hex()


def digest(t):
    return hashlib.sha256(t.contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def error(w, q, product):
    w, q = w.double(), q.double()
    return float((w - q - product).norm() / w.norm())


def blocks(quantizer, w):
    """PEFT's functions for whole tensors, block by block: those for blocks pack no 3 bits."""
    flat = w.reshape(-1, 64)
    return torch.stack([quantizer.dequantize_tensor(*quantizer.quantize_tensor(b)) for b in flat]).reshape(w.shape)


def quiet(f, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        return f(*args, **kwargs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peft017", required=True)
    parser.add_argument("--glue", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    old, glue, new = published(args.peft017, PEFT017), published(args.glue, GLUE), installed()
    old.is_bnb_4bit_available = lambda: False

    golden = {"levels": {}, "quantizers": [], "runs": []}
    for bits in (2, 3, 4):
        TABLES[bits] = old.NFQuantizer(num_bits=bits, device="cpu").norm_lookup_table.tolist()
        golden["levels"][bits] = hexadecimal(torch.tensor(TABLES[bits]))
    w = hard()
    golden["hard"] = {"rows": w.shape[0], "cols": w.shape[1], "data": hexadecimal(w)}
    for bits in (2, 3, 4):
        q = blocks(old.NFQuantizer(num_bits=bits, device="cpu"), w)
        golden["quantizers"].append({"name": f"nf{bits}", "weight": "hard", "data": hexadecimal(q)})
    plain = weight("noise", 16, 64, 90)
    for bits in (2, 3, 4):
        q = quiet(glue.weight_quant_fn, plain, num_bits=bits, quant_method="uniform")
        golden["quantizers"].append({"name": f"uniform{bits}", "weight": "noise", "data": hexadecimal(q)})

    for kind in ("noise", "decay"):
        w = weight(kind, *SHAPE, 7)
        for name, code, bits in (("bnb-nf4", new, 4), ("nf4", old, 4), ("nf2", old, 2)):
            for rank in (16, 64):
                for iterations in (1, 2, 5):
                    q, a, b = code.loftq_init(w, bits, rank, iterations)
                    golden["runs"].append(
                        {
                            "quantizer": name, "kind": kind, "rank": rank, "iterations": iterations,
                            "weight": digest(w), "q": digest(q),
                            "baseline": error(w, q, 0), "error": error(w, q, b.double() @ a.double()),
                        }
                    )  # fmt: skip
    w = weight("decay", 48, 64, 8)
    q, a, b = new.loftq_init(w, 4, 8, 1)
    product = b.double() @ a.double()
    golden["pair"] = {
        "q": hexadecimal(q), "a": hexadecimal(a), "b": hexadecimal(b),
        "baseline": error(w, q, 0), "error": error(w, q, product), "quarter": error(w, q, product / 4),
    }  # fmt: skip
    OUTPUT.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(golden, indent=1)
    (OUTPUT / "golden.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
