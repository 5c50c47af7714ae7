"""Golden data for formats/gguf, judged and made by llama.cpp itself.

    python testdata/gen/gguf_golden.py --llama DIR [--build DIR]

DIR is a source tree of llama.cpp release v0.5.0 (the npm package node-llama-cpp 3.22.1 carries it as
llama/gitRelease.bundle: `git clone gitRelease.bundle DIR`). Needs cmake, g++ and numpy. Writes, below
testdata/golden/gguf:

    types.json      every tensor type: name, elements and bytes of a block
    cases.json      small files, each odd in one point, with the reader's verdict and message
    splits.json     digests of what gguf-split makes of models/llama/expected-f16.gguf
    python/*.gguf   files of the Python writer

The judge is left in the build folder: `go test ./formats/gguf -run Judge -judge BUILD/judge` asks it about
thousands of mutated files.
"""

import argparse
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "gguf"

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
NUMBERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def build(llama, out):
    """Builds the judge, the splitter and the type lister, and returns their folder."""
    off = ["BUILD_SHARED_LIBS", "GGML_NATIVE", "GGML_OPENMP", "LLAMA_CURL"]
    off += [f"LLAMA_BUILD_{part}" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER")]
    configure = ["cmake", "-S", llama, "-B", out / "lib", "-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", out / "lib", "--target", "ggml-base", "-j2"], check=True, stdout=subprocess.DEVNULL)
    library = next((out / "lib").rglob("libggml-base.a"))
    source = (llama / "src" / "llama.cpp").read_text()
    start, end = source.index("int32_t llama_split_path("), source.index("int32_t llama_split_prefix(")
    end = source.index("\n}\n", end) + 3
    (out / "names.inc").write_text(source[start:end])
    (out / "types.cpp").write_text(
        '#include "ggml.h"\n#include <cstdio>\nint main() { for (int i = 0; i < GGML_TYPE_COUNT; i++) printf("%d %zu %s\\n", '
        "(int) ggml_blck_size((ggml_type) i), ggml_type_size((ggml_type) i), ggml_type_name((ggml_type) i)); }\n"
    )
    flags = ["-O1", "-std=c++17", *(f"-I{llama / d}" for d in ("include", "ggml/include", "ggml/src", "common"))]
    splitter = [llama / "tools/gguf-split/gguf-split.cpp", HERE / "gguf_split_names.cpp", f'-DNAMES="{out / "names.inc"}"']
    for name, sources in {"judge": [HERE / "gguf_judge.cpp"], "types": [out / "types.cpp"], "split": splitter}.items():
        subprocess.run(["g++", *flags, *sources, library, "-lpthread", "-o", out / name], check=True)


def string(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(b)) + b


def scalar(t, v):
    return string(v) if t == STR else struct.pack("<" + NUMBERS[t], v)


def pair(key, t, v):
    return string(key) + struct.pack("<I", t) + scalar(t, v)


def array(key, t, values):
    return string(key) + struct.pack("<IIQ", ARR, t, len(values)) + b"".join(scalar(t, v) for v in values)


def entry(name, dims, t, offset):
    return string(name) + struct.pack(f"<I{len(dims)}qIQ", len(dims), *dims, t, offset)


def file(pairs=(), entries=(), data=b"", version=3, magic=b"GGUF", counts=None, align=32, pad=True):
    tensors, keys = counts or (len(entries), len(pairs))
    b = magic + struct.pack("<IqQ", version, tensors, keys & 2**64 - 1) + b"".join(pairs) + b"".join(entries)
    if pad:
        b += b"\0" * (-len(b) % align)
    return b + data


ARCH = pair("general.architecture", STR, "llama")
ONE = entry("a", [8], 0, 0)  # 8 numbers of F32 take 32 bytes


def tensors(*entries, data=64, **more):
    return file([ARCH], entries, bytes(data), **more)


def cases():
    """Yields names and files. The name says which rule it is about; the verdict is the reader's."""
    good = tensors(ONE, entry("b", [4, 2], 0, 32))
    yield "plain", good
    yield "plain v2", tensors(ONE, version=2)
    for n in (0, 1, 3, 4, 8, 16, 23, 24, 25, 40, len(good) - 65, len(good) - 64, len(good) - 33, len(good) - 1):
        yield f"cut to {n} bytes", good[:n]
    yield "trailing bytes", good + b"more"
    yield "data not padded", tensors(ONE, entry("b", [3], 0, 32), data=44)
    yield "data padded", tensors(ONE, entry("b", [3], 0, 32), data=64)
    for magic in (b"gguf", b"GGUG", b"FUGG", b"\0\0\0\0", b"GGML"):
        yield f"magic {magic!r}", file(magic=magic)
    for version in (0, 1, 2, 3, 4, 5, 65536, 65537, 65539, 0x02000000, 0x03000000, 0x01000000, 2**31, 2**32 - 1):
        yield f"version {version}", file(version=version)
    for n in (-1, 1, 2, 2**31, 2**32, 2**40, 2**61, 2**63 - 1, -(2**63)):
        yield f"{n} tensors in an empty file", file(counts=(n, 0))
        yield f"{n} keys in an empty file", file(counts=(0, n))
    yield "empty, not padded", file(pad=False)
    yield "keys only, not padded", file([ARCH], pad=False)

    yield "key empty", file([pair("", U8, 1)])
    yield "key of one byte", file([pair("k", U8, 1)])
    yield "key with NUL", file([pair("a\0b", U8, 1)])
    yield "alignment key with NUL", file([pair("general.alignment\0", U32, 33)])
    yield "key not UTF-8", file([pair(b"\xff\xfe", U8, 1)])
    yield "key of 65535 bytes", file([pair("k" * 65535, U8, 1)])
    yield "key of 65536 bytes", file([pair("k" * 65536, U8, 1)])
    yield "key twice", file([ARCH, pair("k", U8, 1), ARCH])
    yield "key twice, other type", file([pair("k", U8, 1), pair("k", STR, "x")])
    yield "keys differ in case", file([pair("k", U8, 1), pair("K", U8, 1)])
    for n in (2**30, 2**30 + 1, 2**40, 2**63, 2**64 - 1, 200):
        yield f"key length {n}", file([struct.pack("<Q", n) + b"key", ARCH])
        yield f"string length {n}", file([string("k") + struct.pack("<IQ", STR, n) + b"text", ARCH])
        yield f"string length {n} in array", file([string("k") + struct.pack("<IIQQ", ARR, STR, 1, n) + b"text", ARCH])
    for t in (13, 14, 99, 2**31, 2**32 - 1):
        yield f"value type {t}", file([string("k") + struct.pack("<IQ", t, 0), ARCH])
        yield f"element type {t}", file([string("k") + struct.pack("<IIQQ", ARR, t, 1, 0), ARCH])
    yield "array of arrays", file([string("k") + struct.pack("<IIQIQB", ARR, ARR, 1, U8, 1, 7), ARCH])
    yield "array of no arrays", file([string("k") + struct.pack("<IIQ", ARR, ARR, 0), ARCH])
    for t, code in NUMBERS.items():
        value = 1 if t != BOOL else True
        yield f"value of type {t}", file([pair("k", t, value)])
        yield f"array of type {t}", file([array("k", t, [value, value, 0])])
        yield f"empty array of type {t}", file([array("k", t, [])])
        size = struct.calcsize("<" + code)
        for n in sorted({10, 2**30, 2**30 + 1, 2**32 // size, 2**63 // size, 2**64 // size, 2**64 // size + 1}):
            yield f"array of {n} of type {t}", file([string("k") + struct.pack("<IIQ", ARR, t, n % 2**64)], pad=False)
    yield "value of type 8", file([pair("k", STR, "text")])
    yield "empty string", file([pair("k", STR, "")])
    yield "string not UTF-8", file([pair("k", STR, b"\xff\xfe")])
    yield "string with NUL", file([pair("k", STR, "a\0b")])
    yield "array of type 8", file([array("k", STR, ["a", "", "bcd"])])
    yield "empty array of type 8", file([array("k", STR, [])])
    for n in (1, 2, 4, 2**30, 2**61, 2**61 + 1, 2**64 - 1):
        yield f"array of {n} of type 8", file([string("k") + struct.pack("<IIQ", ARR, STR, n) + b"\0" * 16], pad=False)
    for n in (2, 255):
        yield f"boolean {n}", file([string("k") + struct.pack("<IB", BOOL, n)])
        yield f"boolean {n} in array", file([string("k") + struct.pack("<IIQBB", ARR, BOOL, 2, 1, n)])

    for n in (0, 1, 2, 4, 8, 16, 24, 31, 32, 33, 48, 64, 4096, 2**31, 2**32 - 1):
        keys = [ARCH, pair("general.alignment", U32, n)]
        yield f"alignment {n}, no tensors", file(keys)
        align = n if n & (n - 1) == 0 and 0 < n <= 4096 else 32
        yield f"alignment {n}", file(keys, [ONE], bytes(max(32, align)), align=align)
    for t in (U8, I8, U16, I16, I32, U64, I64):
        yield f"alignment of type {t}", file([ARCH, pair("general.alignment", t, 32)], [ONE], bytes(32))
    yield "alignment is a string", file([ARCH, pair("general.alignment", STR, "32")], [ONE], bytes(32))
    yield "alignment is an array", file([ARCH, array("general.alignment", U32, [32])], [ONE], bytes(32))
    yield "alignment 64, laid out with 32", file([pair("general.alignment", U32, 64)], [ONE, entry("b", [8], 0, 32)], bytes(128), align=64)
    yield "alignment 32, laid out with 64", file([pair("general.alignment", U32, 32)], [ONE, entry("b", [8], 0, 64)], bytes(128))

    for n in (0, 1, 62, 63, 64, 65, 100):
        yield f"name of {n} bytes", tensors(entry("n" * n, [8], 0, 0))
    yield "name with NUL", tensors(entry("a\0b", [8], 0, 0))
    yield "names equal up to NUL", tensors(entry("a\0b", [8], 0, 0), entry("a\0c", [8], 0, 32))
    yield "name not UTF-8", tensors(entry(b"\xff", [8], 0, 0))
    yield "name of 2 to the 40 bytes", tensors(struct.pack("<Q", 2**40) + ONE)
    yield "tensor twice", tensors(ONE, entry("a", [8], 0, 32))
    yield "tensor twice, other shape", tensors(ONE, entry("a", [2, 4], 1, 32))
    for n in range(5):
        yield f"{n} dimensions", tensors(entry("a", [2] * n, 0, 0))
    for n in (5, 6, 255, 2**31, 2**32 - 1):
        yield f"{n} dimensions", tensors(string("a") + struct.pack("<I", n) + struct.pack("<5qIQ", 1, 1, 1, 1, 1, 0, 0))
    huge = 2**62
    for dims in ([-1], [8, -1], [-8, -1], [-(2**63)], [0, -1], [0], [0, 4], [4, 0], [0, 0, 0, 0], [2**63 - 1], [huge],
                 [huge, 2], [huge, 2, 0], [0, huge, 2], [2**32, 2**32], [2**32, 2**32, 2**32, 2**32], [2**31, 2**32],
                 [2**31, 2**31], [2**31, 2**31, 2, 2], [2**16, 2**16, 2**16, 2**16], [3074457345618258602, 3],
                 [3, 3074457345618258602], [2**61], [2**60], [2**61, 0], [2**32, 2**32, 0], [0, 2**32, 2**32], [1, huge]):
        for t in (0, 24):
            yield f"dimensions {dims} of type {t}", tensors(entry("a", dims, t, 0))
    for t in range(43):
        for n in (32, 64, 128, 256, 1, 0):
            yield f"row of {n} of type {t}", tensors(entry("a", [n], t, 0), data=2048)
    for t in (43, 44, 100, 2**31, 2**32 - 1):
        yield f"type {t}", tensors(entry("a", [256], t, 0), data=1024)
    yield "quantized scalar", tensors(entry("a", [], 2, 0))
    yield "rows not whole blocks, product is", tensors(entry("a", [16, 2], 8, 0))
    yield "size overflows", tensors(entry("a", [2**31, 2**31], 27, 0))
    yield "padded size overflows", tensors(entry("a", [2**61 - 1], 27, 0), entry("b", [8], 0, 2**64 - 8))
    yield "sum of sizes overflows", tensors(entry("a", [2**63 - 64], 24, 0), entry("b", [2**63 - 64], 24, 2**63 - 64))
    for offset in (1, 31, 32, 64, 2**62, 2**63, 2**64 - 32):
        yield f"first offset {offset}", tensors(entry("a", [8], 0, offset), data=128)
        yield f"second offset {offset}", tensors(ONE, entry("b", [8], 0, offset), data=128)
    yield "swapped offsets", tensors(entry("a", [8], 0, 32), entry("b", [8], 0, 0))
    yield "empty tensors in one place", tensors(entry("a", [0], 0, 0), entry("b", [0], 0, 0), entry("c", [8], 0, 0))
    yield "empty tensor at the end", tensors(ONE, entry("b", [0], 0, 32), data=32)
    yield "empty tensor behind the end", tensors(entry("a", [3], 0, 0), entry("b", [0], 0, 32), data=12)
    yield "data one byte short", tensors(ONE, data=31)
    yield "no data", tensors(ONE, data=0)
    yield "no padding before the data", tensors(ONE, data=0, pad=False)


def judge(build_dir, files):
    """Returns the lines of the judge: verdict on the header, on the whole, message."""
    records = b"".join(struct.pack("<I", len(f)) + f for f in files)
    out = subprocess.run([build_dir / "judge"], input=records, capture_output=True, check=True).stdout
    lines = [line.split("\t") for line in out.decode("ascii").splitlines()]
    assert len(lines) == len(files), (len(lines), len(files))
    return lines


def write_cases(build_dir):
    listed = list(cases())
    assert len({name for name, _ in listed}) == len(listed), "names must differ"
    with open(GOLDEN / "cases.json", "w") as f:
        f.write('{"oracle": "gguf_init_from_buffer of llama.cpp release v0.5.0", "cases": [\n')
        for i, ((name, data), (header, whole, message)) in enumerate(zip(listed, judge(build_dir, [d for _, d in listed]))):
            text = fold(data)
            row = {"name": name, "header": header, "whole": whole, "message": message, "data": text}
            f.write(json.dumps(row) + ("\n" if i == len(listed) - 1 else ",\n"))
        f.write("]}\n")


def fold(data):
    """Hex digits; eight and more equal bytes in a row become "(6b*65535)"."""
    out, i = [], 0
    while i < len(data):
        j = i
        while j < len(data) and data[j] == data[i]:
            j += 1
        n = j - i
        out.append(f"({data[i]:02x}*{n})" if n >= 8 else f"{data[i]:02x}" * n)
        i = j
    return "".join(out)


def write_types(build_dir):
    lines = subprocess.run([build_dir / "types"], capture_output=True, check=True, text=True).stdout.splitlines()
    rows = []
    for line in lines:
        block, size, name = line.split(" ", 2)
        rows.append({"name": name, "block_size": int(block), "type_size": int(size)})
    with open(GOLDEN / "types.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


def write_splits(build_dir):
    """Splits one model in several ways and keeps the digests of the files."""
    source = GOLDEN / "models" / "llama" / "expected-f16.gguf"
    ways = {
        "": {},
        "--split-max-tensors 1": {"max_tensors": 1},
        "--split-max-tensors 5": {"max_tensors": 5},
        "--split-max-tensors 7 --no-tensor-first-split": {"max_tensors": 7, "first_empty": True},
        "--split-max-tensors 1000": {"max_tensors": 1000},
        "--no-tensor-first-split": {"first_empty": True},
    }
    made = []
    for args, options in ways.items():
        made.append(split(build_dir, source, args, options))
    # Limits of whole megabytes would leave the small model in one piece: larger ones of zeros are made for them.
    small_first = [[256, 700], [256, 3000], [64], [256, 1], [256, 900], [256, 976], [256, 977], [32], [256, 3900], [64]]
    large_first = [[256, 3000], [64], [256, 900]]
    with tempfile.TemporaryDirectory() as folder:
        for shapes in (small_first, large_first):
            large = pathlib.Path(folder) / "large.gguf"
            large.write_bytes(zeros(shapes))
            for size in (1, 2, 3, 4):
                for first in (False, True):
                    args = f"--split-max-size {size}M" + (" --no-tensor-first-split" if first else "")
                    options = {"max_bytes": size * 1000 * 1000, "first_empty": first}
                    made.append({**split(build_dir, large, args, options), "shapes": shapes})
    with open(GOLDEN / "splits.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(m) for m in made) + "\n]\n")


def zeros(shapes):
    """A model of F32 zeros: a string, then tensors t0, t1, ... of the given dimensions, fastest first."""
    entries, offset = [], 0
    for i, dims in enumerate(shapes):
        n = 4
        for d in dims:
            n *= d
        entries.append(entry(f"t{i}", dims, 0, offset))
        offset += n + -n % 32
    return file([ARCH], entries) + bytes(offset)


def split(build_dir, source, args, options):
    with tempfile.TemporaryDirectory() as folder:
        command = [build_dir / "split", "--split", *args.split(), source, pathlib.Path(folder) / "m"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return {"args": args, "options": options, "refused": done.stderr.strip().splitlines()[-1]}
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(pathlib.Path(folder).iterdir())}
    return {"args": args, "options": options, "files": files}


def write_python(llama):
    """Files of the Python writer, whose ways are not all those of the C writer."""
    sys.path.insert(0, str(llama / "gguf-py"))
    import gguf
    import numpy as np

    (GOLDEN / "python").mkdir(exist_ok=True)
    w = gguf.GGUFWriter(GOLDEN / "python" / "values.gguf", "llama")
    w.add_uint8("v.u8", 200)
    w.add_int8("v.i8", -100)
    w.add_uint16("v.u16", 60000)
    w.add_int16("v.i16", -30000)
    w.add_uint32("v.u32", 4_000_000_000)
    w.add_int32("v.i32", -2_000_000_000)
    w.add_float32("v.f32", 1 / 3)
    w.add_bool("v.true", True)
    w.add_bool("v.false", False)
    w.add_string("v.text", "größer → 更大")
    w.add_uint64("v.u64", 2**64 - 1)
    w.add_int64("v.i64", -(2**63))
    w.add_float64("v.f64", 1 / 3)
    w.add_array("a.i32", [1, -2, 3])
    w.add_array("a.f32", [0.5, -1.5])
    w.add_array("a.bool", [True, False, True])
    w.add_array("a.text", ["", "<s>", "▁the", "\n"] + [f"token {i}" for i in range(100)])
    finish(w)

    w = gguf.GGUFWriter(GOLDEN / "python" / "tensors.gguf", "llama")
    w.add_custom_alignment(64)
    for name, shape, dtype in [("vector", (5,), np.float32), ("matrix", (3, 4), np.float16), ("one.expert", (1, 2, 3), np.float32),
                               ("rank4", (2, 1, 2, 3), np.float64), ("i8", (7,), np.int8), ("i16", (2, 3), np.int16),
                               ("i32", (1, 1), np.int32), ("i64", (1,), np.int64)]:
        n = int(np.prod(shape))
        w.add_tensor(name, (np.arange(n) - 2).astype(dtype).reshape(shape))
    for t in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[t]
        if block > 1:
            data = (np.arange(3 * size) * 7 % 256).astype(np.uint8).reshape(3, size)
            w.add_tensor(f"blocks.{t.name}", data, raw_dtype=t)
    finish(w)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path)
    args = parser.parse_args()
    llama = args.llama.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        out = (args.build or pathlib.Path(scratch)).resolve()
        os.makedirs(out, exist_ok=True)
        build(llama, out)
        write_types(out)
        write_cases(out)
        write_splits(out)
        write_python(llama)


if __name__ == "__main__":
    main()
