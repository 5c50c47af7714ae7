"""Writes testdata/golden/ggml: what ggml itself makes of rows and of blocks.

Run from the repository root with numpy and npm, on Linux x86-64:

    python testdata/gen/ggml_vectors.py                     # vectors.*, and checks quants.*
    python testdata/gen/ggml_vectors.py --out DIR --seed 7 --rows 64    # more of the same, to compare live:
    go test ./quant/block -run GGMLGolden -ggml DIR

The reference is the library in the npm package named below, the release build of
llama.cpp v0.5.0 (for x86-64 without FMA); --library takes another build of it.
--gguf-py compares its decoders with those of PyPI's gguf as well.

    python testdata/gen/ggml_vectors.py --grids GGML_COMMON_H

prints the sets of quant/block/ggml_grids.go from the header of that release.

A set of vectors is NAME.json and NAME.bin; numbers in the former are places in the
latter, which holds little-endian float32 and blocks:

inputs     name: rows, cols, at
weights    name: cols, at: one number per column
quantized  type, input, weights ("" for none), at, bytes; decoded: sha256 of the float32
refused    type, input, weights: a scale comes out infinite, which the quantizer finds and refuses
decoded    type, at, bytes; numbers: where the float32 are
digests    type, kind, rows and weights of drawn rows, sha256 of all blocks: inputs that the Go test draws by itself
"""

import argparse
import base64
import ctypes
import hashlib
import json
import pathlib
import re
import subprocess
import tarfile
import tempfile

import numpy as np

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
MEMBER = "package/bins/linux-x64/libggml-base.so"
SHA256 = "6c342c8aeb20cb31a18099d6f79de4de6703814d1cfd5c4d754a8643087e486e"
OUTPUT = pathlib.Path("testdata/golden/ggml")
COLS = 512

# number: name, elements and bytes of a block
TYPES = {
    1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
NEED_WEIGHTS = [16, 17, 19]
WEIGHTED = [2, 3, 6, 7, 10, 11, 12, 13, 14, 20, 23] + NEED_WEIGHTS + [18, 21, 22, 29]
WRITTEN = [1, 30, 8, 34, 35, 39, 40, 41, 42] + WEIGHTED
# where blocks hold a binary16 scale
HALVES = {
    "Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "TQ1_0": [52], "TQ2_0": [64],
}
NO_HALF = {"F16", "BF16", "Q8_K", "IQ1_M", "MXFP4", "NVFP4"}


class Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


class Reference:
    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)

    def quantize(self, number, rows, weights):
        _, elements, size = TYPES[number]
        rows = np.ascontiguousarray(rows, np.float32)
        out = np.zeros(rows.size // elements * size, np.uint8)
        pointer = weights.ctypes.data_as(ctypes.c_void_p) if weights is not None else None
        self.lib.ggml_quantize_chunk(
            ctypes.c_int(number), rows.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0), ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]), pointer,
        )
        return out.tobytes()

    def valid(self, number, data):
        buffer = ctypes.create_string_buffer(data, len(data))
        self.lib.ggml_validate_row_data.restype = ctypes.c_bool
        return self.lib.ggml_validate_row_data(ctypes.c_int(number), buffer, ctypes.c_size_t(len(data)))

    def decode(self, number, data):
        name, elements, size = TYPES[number]
        numbers = np.zeros(len(data) // size * elements, np.float32)
        address = self.lib.ggml_get_type_traits(ctypes.c_int(number)).contents.to_float
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
            address or ("dequantize_row_q8_K", self.lib))  # not in the table of traits
        call(ctypes.cast(ctypes.create_string_buffer(data, len(data)), ctypes.c_void_p),
             numbers.ctypes.data_as(ctypes.c_void_p), numbers.size)
        return numbers


def library(path):
    if path:
        return path
    folder = pathlib.Path(tempfile.mkdtemp())
    name = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(folder / name) as archive:
        data = archive.extractfile(MEMBER).read()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{MEMBER} is another one than that of {PACKAGE} which made the vectors")
    (folder / "libggml-base.so").write_bytes(data)
    return folder / "libggml-base.so"


def blocks_of(*groups):
    return np.concatenate([np.asarray(g, np.float32).ravel() for g in groups])


def edges(rng):
    """Rows that are unlike weights: one kind of trouble each."""
    signs = rng.choice([-1, 1], COLS)
    ramp = np.linspace(-1, 1, COLS)
    rows = [
        # zeros of both signs, then one nonzero per group of 32
        blocks_of(np.zeros(128), -np.zeros(64), np.where(signs[:64] > 0, 0.0, -0.0),
                  [v for g in range(8) for v in np.eye(32)[rng.integers(32)] * (g - 3.5)]),
        # constants, one sign and the other, whole groups
        blocks_of(*[np.full(16, c) for c in (1, -1, 0.1, -0.1, 3, -3, 1e-3, -1e-3)] * 4),
        # one-sided groups: all positive, all negative, far from zero
        blocks_of(rng.random(128) + 0.5, -rng.random(128) - 0.5, 100 + rng.random(128), -100 - rng.random(128)),
        # ties of roundings: halves and quarters of a step
        blocks_of(rng.integers(-16, 17, 128) / 2, rng.integers(-62, 63, 128) / 4, rng.integers(-254, 255, 128) / 2,
                  rng.integers(-30, 31, 128) / 4),
        # subnormal numbers of all sizes
        np.ldexp(signs * rng.random(COLS), rng.integers(-149, -125, COLS)),
        # subnormal groups of 32, each of one size
        np.ldexp(signs * (1 + rng.random(COLS)), np.arange(-148, -132).repeat(32)),
        # about where a group counts as zero, 1e-15, and where scales are subnormal in binary16
        signs * rng.random(COLS) * np.repeat(10.0 ** -np.array([16, 15, 14.7, 14, 13, 12, 10, 9, 8, 7, 6.5, 6, 5.5, 5, 4.5, 4]), 32),
        # as large as every type can hold
        signs * rng.random(COLS) * np.repeat([6e4, 3e4, 1e4, 1e3], 128),
        # all exponents in one group
        np.ldexp(signs * (1 + rng.random(COLS)), rng.integers(-30, 15, COLS)),
        # a single large element per group
        np.where(np.arange(COLS) % 32 == 7, signs * 10, signs * 0.01 * rng.random(COLS)),
        # one large element per 256
        np.where(np.arange(COLS) % 256 == 100, signs * 500.0, signs * 0.1 * rng.random(COLS)),
        # ramps, and steps of a few values
        blocks_of(ramp[:256], np.round(ramp[256:] * 4) / 4),
        # largest elements on both sides of a power of two, where a logarithm rounds up
        blocks_of(*[near_power(k, s, rng) for k, s in zip(
            [1, 2, 3, 5, 9, 13, -1, -2, -3, -5, -9, -13, 0, 15, -15, 4], [1, 1, 1, 2, 5, 5, 0, 1, 1, 2, 5, 6, 0, 5, 5, 1])]),
        # scales of NVFP4 at the ends of their range, and about their ties
        blocks_of(*[np.append(rng.random(15) * m, m) for m in 6 * np.ldexp(
            1 + (np.arange(32) % 8 + rng.choice([0.4999, 0.5, 0.5001], 32)) / 8, np.arange(32) // 2 - 9)]),
        # two values, and the same with small noise
        blocks_of(signs[:256] * 0.25, signs[256:] * 0.25 + rng.standard_normal(256) * 1e-4),
        # mostly zeros
        rng.standard_normal(COLS) * (rng.random(COLS) < 0.05),
    ]
    return np.array(rows, np.float32)


def near_power(k, s, rng):
    """32 numbers, the largest 2^k less s of the steps below it."""
    largest = np.ldexp(1 - s * 2.0**-24, k)
    return np.append(rng.random(31) * largest * 0.99, largest)


def flipped():
    """Of eight numbers one is negative, small, and counts so much that with its sign flipped a scale comes out negative."""
    column = np.arange(COLS)
    heavy = column % 8 == 3
    return np.where(heavy, -1e-6, 1 + (column * 7 % 5) / 4).reshape(1, COLS), np.where(heavy, 1e10, 1 + column % 3)


def rows_of(kind, count, rng):
    shape = (count, COLS)
    if kind == "normal":
        return rng.standard_normal(shape) * 0.02
    if kind == "heavy":
        return rng.standard_t(2, shape) * 0.01
    if kind == "offset":
        return rng.standard_normal(shape) * 0.01 + rng.standard_normal((count, COLS // 32)).repeat(32, 1) * 0.02
    if kind == "scaled":  # groups of 16 of very different size
        return rng.standard_normal(shape) * np.exp(rng.standard_normal((count, COLS // 16)) * 4).repeat(16, 1) * 1e-2
    if kind == "coarse":  # few values, many ties
        return rng.integers(-9, 10, shape) * 2.0 ** rng.integers(-12, 4, (count, 1))
    if kind == "wild":
        return np.clip(np.ldexp(rng.choice([-1, 1], shape) * (1 + rng.random(shape)), rng.integers(-60, 14, shape)), -6e4, 6e4)
    raise ValueError(kind)


KINDS = ["normal", "heavy", "offset", "scaled", "coarse", "wild"]


def weights_of(rng):
    return {
        "mild": rng.random(COLS) + 0.1,
        "holes": rng.random(COLS) ** 8 * (rng.random(COLS) < 0.6),
        "extreme": 10.0 ** rng.uniform(-25, 12, COLS),
        "one": np.where(np.arange(COLS) % 32 == 5, 1e6, 1e-12),
        "zero": np.zeros(COLS),
    }


DRAWN_ROWS = 32
# more rows for searches whose last sweep seldom changes a thing
DRAWN_LONG = {("Q3_K", "bell", ""), ("Q3_K", "offset", ""), ("Q2_K", "heavy", "spikes")}
LONG_ROWS = 1024
DRAWN_KINDS = ["bell", "heavy", "offset", "scaled", "few", "wild", "sparse", "tiny", "large", "huge"]
DRAWN_WEIGHTS = ["", "mild", "holes", "extreme", "spikes"]


def draw(stream, count):
    """Random 64-bit numbers (splitmix64)."""
    z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def bell(z):
    """Sums of four 16-bit numbers, about zero, up to 2^-4: exact in float32."""
    total = sum((z >> np.uint64(16 * i) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4))
    return np.ldexp(total - 131070.0, -21)


def low(z, n):
    """Numbers from 0 to n-1 from the lowest 16 bits."""
    return ((z & np.uint64(0xFFFF)) % np.uint64(n)).astype(np.int64)


def trailing_zeros(z):
    return np.array([min((int(v) & -int(v)).bit_length() - 1, 12) for v in z])


def drawn_rows(kind, rows):
    """Rows that are simple integers times powers of two, for another language to draw too."""
    count = rows * COLS
    z, second = draw(1, count), draw(2, count)
    group16, group32 = draw(3, count // 16).repeat(16), draw(4, count // 32).repeat(32)
    row = np.arange(rows).repeat(COLS)
    x = {
        "bell": lambda: bell(z),
        "heavy": lambda: np.ldexp(bell(z), trailing_zeros(second)),
        "offset": lambda: bell(z) + 2 * bell(group32),
        "scaled": lambda: np.ldexp(bell(z), low(group16, 24) - 12),
        "few": lambda: np.ldexp(low(z, 19) - 9.0, -(row % 12)),
        "wild": lambda: np.ldexp(np.where(z >> np.uint64(63), -1.0, 1.0) * (1 + low(second, 1 << 16) * 2.0**-16), low(z, 58) - 45),
        "sparse": lambda: np.where(low(second, 16) == 0, bell(z), 0),
        "tiny": lambda: np.ldexp(bell(z), -30 - row),
        "large": lambda: np.ldexp(bell(z), 19),
        "huge": lambda: np.ldexp(bell(z), 21),  # beyond some types
    }[kind]()
    return x.reshape(rows, COLS).astype(np.float32)


def drawn_weights(kind):
    z = draw(5, COLS)
    column = np.arange(COLS)
    return {
        "mild": lambda: 1 + low(z, 1024) / 256,
        "holes": lambda: np.where(z >> np.uint64(63), low(z, 1024) / 256, 0),
        "extreme": lambda: np.ldexp(1 + low(z, 1024) / 1024, (z >> np.uint64(16)).astype(np.int64) % 100 - 60),
        "spikes": lambda: np.where(column % 32 == 5, 2.0**20, 2.0**-40),
    }[kind]().astype(np.float32)


def overflows(number, rows, weights):
    """Whether squares of sums overflow in IQ1: ggml loses such groups without a word, and loratool refuses them."""
    group = {19: 32, 29: 16}.get(number)
    if group is None:
        return False
    x = np.asarray(rows, np.float64).reshape(-1, 256)
    w = x**2
    if weights is not None:
        w = np.tile(np.asarray(weights, np.float64), rows.shape[0]).reshape(-1, 256) * np.sqrt(2 * np.mean(x**2, 1, keepdims=True) + x**2)
    total = np.abs(w * x).reshape(-1, group).sum(1)
    return bool((2 * total**2 > np.finfo(np.float32).max).any())


class Set:
    def __init__(self, reference):
        self.reference, self.blob = reference, bytearray()
        self.index = {"reference": f"llama.cpp v0.5.0, {PACKAGE}", "inputs": {}, "weights": {}, "quantized": [], "refused": [], "decoded": [],
                      "digests": []}
        self.arrays = {}

    def put(self, data):
        at = len(self.blob)
        self.blob += data
        return at

    def add_input(self, name, rows):
        rows = np.ascontiguousarray(rows, np.float32)
        self.arrays[name] = rows
        self.index["inputs"][name] = {"rows": rows.shape[0], "cols": rows.shape[1], "at": self.put(rows.tobytes())}

    def add_weights(self, name, numbers):
        numbers = np.ascontiguousarray(numbers, np.float32)
        self.arrays[name] = numbers
        self.index["weights"][name] = {"cols": numbers.size, "at": self.put(numbers.tobytes())}

    def quantize(self, number, source, weights=""):
        rows, w = self.arrays[source], self.arrays[weights] if weights else None
        data = self.reference.quantize(number, rows, w)
        if not self.reference.valid(number, data) or overflows(number, rows, w):
            self.index["refused"].append({"type": TYPES[number][0], "input": source, "weights": weights})
            return
        digest = hashlib.sha256(self.reference.decode(number, data).tobytes()).hexdigest()
        self.index["quantized"].append({
            "type": TYPES[number][0], "input": source, "weights": weights, "at": self.put(data), "bytes": len(data),
            "decoded": digest})

    def digest(self, number, kind, weights):
        count = LONG_ROWS if (TYPES[number][0], kind, weights) in DRAWN_LONG else DRAWN_ROWS
        rows, w = drawn_rows(kind, count), drawn_weights(weights) if weights else None
        data = self.reference.quantize(number, rows, w)
        refused = not self.reference.valid(number, data) or overflows(number, rows, w)
        digest = "refused" if refused else hashlib.sha256(data).hexdigest()
        self.index["digests"].append({"type": TYPES[number][0], "kind": kind, "rows": count, "weights": weights, "sha256": digest})

    def decode(self, number, data):
        numbers = self.reference.decode(number, data)
        self.index["decoded"].append({
            "type": TYPES[number][0], "at": self.put(data), "bytes": len(data), "numbers": self.put(numbers.tobytes())})

    def write(self, folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        sections = []
        for key, value in self.index.items():
            if isinstance(value, list):
                text = "[\n  " + ",\n  ".join(json.dumps(v) for v in value) + "\n ]"
            elif isinstance(value, dict):
                text = "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
            else:
                text = json.dumps(value)
            sections.append(f" {json.dumps(key)}: {text}")
        (folder / f"{name}.json").write_text("{\n" + ",\n".join(sections) + "\n}\n")
        (folder / f"{name}.bin").write_bytes(self.blob)


def random_blocks(number, count, rng):
    """Any bytes, with finite scales."""
    name, _, size = TYPES[number]
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    if name == "IQ1_M":
        blocks[:, 55] &= 0x3F  # the top nibble of the last word is that of the scale
    elif name == "Q8_K":
        blocks[:, :4] = np.exp(rng.standard_normal(count)).astype(np.float32).view(np.uint8).reshape(count, 4)
    elif name not in NO_HALF:
        for at in HALVES.get(name, [0]):
            blocks[:, at + 1] &= 0xBF  # an exponent of less than 16
    elif name in ("F16", "BF16"):
        blocks[:, 1] &= 0xBF
    return blocks.tobytes()


def write_vectors(reference, out, rows, seed, blocks):
    rng = np.random.default_rng(seed)
    vectors = Set(reference)
    vectors.add_input("edges", edges(rng))
    for kind in KINDS:
        vectors.add_input(kind, rows_of(kind, rows, rng))
    for name, numbers in weights_of(rng).items():
        vectors.add_weights(name, numbers)
    for number in WRITTEN:
        for source in ["edges"] + KINDS:
            if number not in NEED_WEIGHTS:
                vectors.quantize(number, source)
            if number in WEIGHTED:
                for weights in ["mild", "holes", "extreme", "one", "zero"] if rows > 1 else ["mild"]:
                    vectors.quantize(number, source, weights)
        if number in WEIGHTED and rows == 1:
            for weights in ["holes", "extreme", "one", "zero"]:
                vectors.quantize(number, "scaled", weights)
    for number in TYPES:
        if TYPES[number][0] != "Q8_1":  # ggml has no decoder of it
            vectors.decode(number, random_blocks(number, max(1, blocks // TYPES[number][1]), rng))
    rows, weights = flipped()
    vectors.add_input("flipped", rows)
    vectors.add_weights("few", weights)
    for number in [16, 17, 18]:
        vectors.quantize(number, "flipped", "few")
    for number in WRITTEN:
        for kind in DRAWN_KINDS:
            for weights in DRAWN_WEIGHTS if number in WEIGHTED else [""]:
                if weights or number not in NEED_WEIGHTS:
                    vectors.digest(number, kind, weights)
    vectors.write(out, "vectors")


def check(reference, path):
    """Computes a set again from its inputs."""
    index, blob = json.loads(path.read_text()), path.with_suffix(".bin").read_bytes()
    array = lambda v, n: np.frombuffer(blob, np.float32, n, v["at"])
    for case in index["quantized"]:
        if case.get("decode_only"):
            continue  # not of the quantizer
        number, source = NUMBERS[case["type"]], index["inputs"][case["input"]]
        rows = array(source, source["rows"] * source["cols"]).reshape(source["rows"], source["cols"])
        weights = None
        if case["weights"]:
            entry = index["weights"][case["weights"]]
            weights = array(entry, entry["cols"]).copy()
        data = reference.quantize(number, rows, weights)
        digest = hashlib.sha256(reference.decode(number, data).tobytes()).hexdigest()
        if data != blob[case["at"] :][: case["bytes"]] or digest != case["decoded"]:
            raise SystemExit(f"{path}: {case} differs")
    for case in index["decoded"]:
        numbers = reference.decode(NUMBERS[case["type"]], blob[case["at"] :][: case["bytes"]])
        if numbers.tobytes() != blob[case["numbers"] :][: numbers.nbytes]:
            raise SystemExit(f"{path}: {case} differs")
    print(f"{path}: {len(index['quantized'])} quantized and {len(index['decoded'])} decoded as before")


def check_gguf_py(reference, rng):
    """Compares the reference's decoders with the numpy ones of gguf."""
    import gguf

    for number, (name, _, size) in TYPES.items():
        if name in ("Q8_1", "Q8_K", "F16", "BF16", "Q1_0", "Q2_0"):
            continue  # not in gguf 0.19.0
        data = random_blocks(number, 8, rng)
        ours = reference.decode(number, data)
        blocks = np.frombuffer(data, np.uint8).reshape(8, size)
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number)).ravel()
        equal = ours.tobytes() == theirs.astype(np.float32).tobytes()
        print(f"{name}: {'equal' if equal else 'DIFFERENT, largest %g' % np.abs(ours - theirs).max()}")


def print_grids(header):
    text = pathlib.Path(header).read_text()
    for name, width, values in [
        ("iq1s_grid", 8, [255, 0, 1]), ("iq2xxs_grid", 8, [8, 25, 43]), ("iq2xs_grid", 8, [8, 25, 43]),
        ("iq2s_grid", 8, [8, 25, 43]), ("iq3xxs_grid", 4, [4, 12, 20, 28, 36, 44, 52, 62]),
        ("iq3s_grid", 4, [1, 3, 5, 7, 9, 11, 13, 15]),
    ]:
        table = re.search(r"GGML_TABLE_BEGIN\(\w+, " + name + r", [^)]*\)(.*?)GGML_TABLE_END", text, re.S).group(1)
        numbers = []
        for entry in re.findall(r"0x[0-9a-fA-F]+", table):
            digits = int(entry, 16).to_bytes(width, "little")
            numbers.append(sum(values.index(d) * len(values) ** i for i, d in enumerate(digits)))
        if numbers != sorted(set(numbers)):
            raise SystemExit(f"{name} is not in ascending order")
        bitmap = bytearray((len(values) ** width + 7) // 8)
        for n in numbers:
            bitmap[n // 8] |= 1 << n % 8
        print(name, base64.b64encode(bitmap).decode().rstrip("="))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--gguf-py", action="store_true")
    parser.add_argument("--grids")
    args = parser.parse_args()
    if args.grids:
        return print_grids(args.grids)
    np.seterr(over="ignore")  # integers wrap in draw
    reference = Reference(library(args.library))
    if args.gguf_py:
        check_gguf_py(reference, np.random.default_rng(args.seed))
    write_vectors(reference, args.out or OUTPUT, args.rows, args.seed, 256 if args.rows == 1 else 4096)
    if not args.out and (OUTPUT / "quants.json").exists():
        check(reference, OUTPUT / "quants.json")


if __name__ == "__main__":
    main()
