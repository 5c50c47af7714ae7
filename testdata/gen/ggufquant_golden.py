"""Golden data for `loratool quantize` of GGUF models: digests of the files that llama.cpp's quantizer makes.

    python testdata/gen/ggufquant_golden.py --quantize BIN [--only MODEL]

BIN is llama-quantize of llama.cpp release v0.5.0 (see ggufmix_golden.py). Writes testdata/golden/ggufquant/files.json:
models, and for each a list of runs: arguments, the digest of every file that came out, or that the tool refused.

The models are not stored. Their numbers are made of SHA-256: the i-th 32-bit word of the stream of a name is taken from
sha256(name + "/" + block number), 8 words a block, little endian. A number has the word's sign, its low 23 bits as
mantissa and 116 + (word >> 23 & 7) as exponent, in f32; f16 and bf16 keep the upper bits of the mantissa. That
is 2^-11 to 2^-3, so that blocks have outliers. Weights of an importance matrix are the same without their sign.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import subprocess
import tempfile

import numpy as np

from gguf_golden import BOOL, F32, STR, U32, array, entry, file, pair
from gguf_golden import I32 as KEY_I32
from gguf_golden import U16 as KEY_U16

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent / "golden" / "ggufquant"
TYPES = {"f32": 0, "f16": 1, "bf16": 30}


def words(name, n):
    blocks = (hashlib.sha256(f"{name}/{i}".encode()).digest() for i in range(-(-n // 8)))
    return np.frombuffer(b"".join(blocks), "<u4")[:n]


def numbers(name, n, kind):
    w = words(name, n)
    f32 = w & 0x807FFFFF | 116 + (w >> 23 & 7) << 23
    if kind == "f32":
        return f32.astype("<u4").tobytes()
    if kind == "bf16":
        return (f32 >> 16).astype("<u2").tobytes()
    return (w >> 16 & 0x8000 | (f32 >> 23 & 255) - 112 << 10 | f32 >> 13 & 0x3FF).astype("<u2").tobytes()


def weights(name, n):
    return (words(name, n) & 0x7FFFFF | 116 + (words(name, n) >> 23 & 7) << 23).astype("<u4").tobytes()


def size(shape):
    n = 1
    for s in shape:
        n *= s
    return n


def padded(b, align=32):
    return b + bytes(-len(b) % align)


def decoder(width, ffn, layers, heads, kv, kind="f16", experts=0, tied=False, order=None, vocab=64):
    """Keys and tensors, sizes with the row first."""
    keys = [["general.architecture", "str", "llama"], ["general.name", "str", "digest"], ["general.file_type", "u32", 1],
            ["llama.context_length", "u32", 64], ["llama.embedding_length", "u32", width], ["llama.block_count", "u32", layers],
            ["llama.feed_forward_length", "u32", ffn], ["llama.attention.head_count", "u32", heads],
            ["llama.attention.head_count_kv", "u32", kv], ["general.quantization_version", "u32", 2],
            ["llama.attention.layer_norm_rms_epsilon", "f32", 0.0078125]]
    if experts:
        keys += [["llama.expert_count", "u32", experts], ["llama.expert_used_count", "u32", 2]]
    tensors = [["token_embd.weight", [width, vocab], kind], ["output_norm.weight", [width], "f32"]]
    if not tied:
        tensors.append(["output.weight", [width, vocab], kind])
    for b in order or range(layers):
        name = lambda part: f"blk.{b}.{part}.weight"
        small = width // heads * kv
        tensors += [[name("attn_q"), [width, width], kind], [name("attn_k"), [width, small], kind], [name("attn_v"), [width, small], kind],
                    [name("attn_output"), [width, width], kind], [name("attn_norm"), [width], "f32"], [name("ffn_norm"), [width], "f32"]]
        end = [experts] if experts else []
        tail = "_exps" if experts else ""
        if experts:
            tensors.append([name("ffn_gate_inp"), [width, experts], "f32"])
        tensors += [[name("ffn_gate" + tail), [width, ffn] + end, kind], [name("ffn_up" + tail), [width, ffn] + end, kind],
                    [name("ffn_down" + tail), [ffn, width] + end, kind]]
    return {"keys": keys, "tensors": tensors}


def all_shapes():
    """Shapes at the edges: rows of one block, one row, a dimension of 1 in front and behind, no blocks. (Of no rows the
    tool writes one without data, which readers refuse.)"""
    m = decoder(256, 256, 1, 4, 4, vocab=1)
    m["tensors"] += [["one.weight", [256, 1, 1], "f16"], ["cube.weight", [512, 3, 5], "f32"], ["vector.weight", [33], "f32"],
                     ["odd.weight", [96, 7], "f16"], ["odder.weight", [50, 3], "f16"], ["long.weight", [17408, 3], "f16"],
                     ["wide.weight", [16384, 2], "f32"], ["number", [], "f32"]]
    return m


MODELS = {
    "dense": decoder(256, 512, 2, 4, 2),
    "float": decoder(256, 512, 1, 4, 4, kind="f32", tied=True),
    "brain": decoder(512, 256, 11, 8, 8, kind="bf16", order=[10, 2, 0, 1, 9, 3, 8, 4, 7, 5, 6]),
    "experts": decoder(256, 256, 2, 4, 1, experts=4),
    "shapes": all_shapes(),
}
# Names in this matrix; the third number is that of experts, of which the second was never asked.
MATRIX = {
    "dense": [[t[0], t[1][0], 1] for t in MODELS["dense"]["tensors"] if len(t[1]) == 2 and t[0] != "output.weight"],
    "experts": [[t[0], t[1][0], t[1][2] if len(t[1]) > 2 else 1] for t in MODELS["experts"]["tensors"] if len(t[1]) > 1],
    "shapes": [["cube.weight", 512, 5], ["long.weight", 17408, 1], ["blk.0.attn_q.weight", 256, 1], ["token_embd.weight", 8, 1]],
}

FILE_TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 MXFP4_MOE Q5_0 Q5_1 TQ1_0 TQ2_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L IQ4_NL IQ4_XS Q4_K_S Q4_K_M
    Q5_K_S Q5_K_M Q6_K Q8_0 F16 BF16 F32 COPY IQ3_XXS IQ2_M IQ1_S""".split()

OPTIONS = [
    ["--pure", "Q4_K_M"], ["--leave-output-tensor", "Q3_K_L"], ["--output-tensor-type", "q5_1", "--token-embedding-type", "q2_K", "Q6_K"],
    ["--tensor-type", "attn_(q|k)=nvfp4", "--tensor-type", "ffn_down=mxfp4", "Q5_K_S"], ["--tensor-type", "ffn_up=bf16", "Q8_0"],
    ["--override-kv", "general.name=str:another", "--override-kv", "llama.rope.freq_base=float:10000.5", "--override-kv", "a.flag=bool:true",
     "--override-kv", "a.number=int:-7", "Q4_0"],
    ["--override-kv", "general.file_type=int:3", "Q4_0"], ["15"], ["q5_k"],
]


def header_keys(keys):
    kinds = {"str": STR, "u32": U32, "f32": F32, "bool": BOOL, "u16": KEY_U16, "i32": KEY_I32}
    return [pair(k, kinds[t], v) for k, t, v in keys]


def write(path, model, tensors=None, extra=()):
    entries, data = [], b""
    for name, shape, kind in model["tensors"] if tensors is None else tensors:
        entries.append(entry(name, shape, TYPES[kind], len(data)))
        data += padded(numbers(name, size(shape), kind))
    keys = model["keys"] + list(extra)
    path.write_bytes(file(header_keys(keys), entries, data))


def write_split(prefix, model, counts):
    left, names = list(model["tensors"]), []
    for i, n in enumerate(counts):
        extra = [["split.no", "u16", i], ["split.count", "u16", len(counts)], ["split.tensors.count", "i32", len(model["tensors"])]]
        path = prefix.parent / f"{prefix.name}-{i + 1:05d}-of-{len(counts):05d}.gguf"
        write(path, model if i == 0 else {"keys": []}, left[:n], extra)
        left, names = left[n:], names + [path.name]
    return names


def write_matrix(path, entries, datasets, chunks):
    keys = [pair("general.type", STR, "imatrix"), array("imatrix.datasets", STR, datasets), pair("imatrix.chunk_count", U32, chunks),
            pair("imatrix.chunk_size", U32, 512)]
    out, data = [], b""
    for name, columns, experts in entries:
        counts = struct.pack(f"<{experts}f", *(0 if e == 1 else 37.0 + e for e in range(experts)))
        for suffix, sizes, values in ((".in_sum2", [columns, experts], weights("matrix " + name, columns * experts)), (".counts", [1, experts], counts)):
            out.append(entry(name + suffix, sizes, 0, len(data)))
            data += padded(values)
    path.write_bytes(file(keys, out, data))


def write_legacy(path, entries, dataset, chunks):
    b = struct.pack("<i", len(entries))
    for i, (name, columns, experts) in enumerate(entries):
        b += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", i % 3 * 5, columns * experts)
        b += weights("matrix " + name, columns * experts)
    if dataset is not None:
        b += struct.pack("<ii", chunks, len(dataset)) + dataset.encode()
    path.write_bytes(b)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Runner:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder

    def run(self, source, args):
        """One run: arguments end with the type; what is in the file is told by its digest."""
        *options, file_type = args
        split = "--keep-split" in options
        out = "out" if split else "out.gguf"
        for old in self.folder.glob("out*"):
            old.unlink()
        done = subprocess.run([self.binary, *options, source, out, file_type, "2"], cwd=self.folder, capture_output=True)
        made = sorted(self.folder.glob("out*"))
        row = {"source": source, "args": args}
        if done.returncode != 0:
            row["refused"] = True
        else:
            row["files"] = [digest(p) for p in made]
        return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quantize", required=True, type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--only")
    args = parser.parse_args()
    old = {m["name"]: m for m in json.loads((OUT / "files.json").read_text())} if args.only else {}
    doc = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        runner = Runner(args.quantize, folder)
        for name, model in MODELS.items():
            if args.only not in (None, name):
                doc.append(old[name])
                continue
            source = f"{name}.gguf"
            write(folder / source, model)
            item = {"name": name, **model, "sha256": digest(folder / source), "matrix": MATRIX.get(name, []), "runs": []}
            runs = item["runs"]
            for file_type in FILE_TYPES:
                runs.append(runner.run(source, [file_type]))
            for options in OPTIONS:
                runs.append(runner.run(source, options))
            if name in MATRIX:
                write_matrix(folder / "m.gguf", MATRIX[name], ["d" * 140, "second"], 3)
                write_legacy(folder / "m.dat", MATRIX[name], "wiki", 7)
                item["matrices"] = {"m.gguf": digest(folder / "m.gguf"), "m.dat": digest(folder / "m.dat")}
                for file_type in FILE_TYPES:
                    for matrix in ("m.gguf", "m.dat"):
                        runs.append(runner.run(source, ["--imatrix", matrix, file_type]))
            if name == "dense":
                again = runner.run(source, ["Q8_0"])
                (folder / "out.gguf").rename(folder / "q8.gguf")
                item["requantized"] = {"file": "q8.gguf", "args": again["args"]}
                for options in (["Q4_K_M"], ["COPY"], ["Q8_0"], ["--allow-requantize", "Q4_K_M"], ["--allow-requantize", "F16"],
                                ["--allow-requantize", "--imatrix", "m.gguf", "Q2_K"]):
                    runs.append(runner.run("q8.gguf", options))
                counts = [4, 9, len(model["tensors"]) - 13]
                names = write_split(folder / "parts", model, counts)
                item["split"] = {"counts": counts, "sha256": [digest(folder / n) for n in names]}
                for options in (["--keep-split", "Q4_K_M"], ["--keep-split", "Q2_K"], ["Q4_K_M"], ["--keep-split", "COPY"],
                                ["--keep-split", "--imatrix", "m.gguf", "Q5_K_M"]):
                    runs.append(runner.run(names[0], options))
            doc.append(item)
            print(name, len(runs), sum("refused" in r for r in runs), "refused")
    OUT.mkdir(parents=True, exist_ok=True)
    text = ",\n".join("{" + ",\n ".join(f"{json.dumps(k)}: " + (
        "[\n  " + ",\n  ".join(json.dumps(r) for r in v) + "]" if k in ("runs", "tensors") else json.dumps(v)) for k, v in m.items()) + "}" for m in doc)
    (OUT / "files.json").write_text("[" + text + "]\n")


if __name__ == "__main__":
    main()
