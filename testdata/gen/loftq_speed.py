"""Times `loratool quantize` beside bitsandbytes and PEFT on the same weight: one thread each, CPU seconds.

    python testdata/gen/loftq_speed.py --loratool BIN [--size 4096] [--rank 64] [--rounds 3]

1. NF4 of SIZE x SIZE: bitsandbytes' CPU quantizer on a tensor in memory, and BIN from a bf16 file to a folder, all of
   its time: starting, reading, writing.
2. LoftQ, NF4, five iterations: PEFT's loftq_init on the float32 tensor, and BIN from the file to both folders. PEFT
   asks for a GPU by name; the name is the one word of it that is changed.

The runs of both sides are interleaved; the medians are printed, with the relative errors that both reach.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bitsandbytes as bnb
import torch
from peft.utils import loftq_utils
from safetensors.torch import load_file, save_file


def on_cpu():
    """loftq_init that quantizes on the CPU."""
    source = inspect.getsource(loftq_utils)
    assert source.count('"cuda"') > 0
    module: dict = {"__name__": "peft.utils.loftq_utils", "__package__": "peft.utils"}
    exec(compile(source.replace('"cuda"', '"cpu"').replace("torch.cuda.is_available()", "True"), "loftq_utils.py", "exec"), module)
    return module["loftq_init"]


def ours(binary: str, *args: str) -> tuple[float, dict]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([binary, "quantize", *args, "--jobs", "1", "--force", "--json"], capture_output=True, text=True,
                          env={**os.environ, "GOMAXPROCS": "1"}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(done.stdout)


def theirs(work) -> tuple[float, object]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--loratool", required=True)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peft-rounds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    weight = torch.randn(args.size, args.size).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as work:
        base, q, a = (os.path.join(work, x) for x in ("base", "q", "a"))
        os.mkdir(base)
        save_file({"layer.weight": weight}, os.path.join(base, "model.safetensors"))
        with open(os.path.join(base, "config.json"), "w") as f:
            json.dump({"model_type": "llama"}, f)
        plain, mine = [], []
        for _ in range(args.rounds):
            seconds, (codes, state) = theirs(lambda: bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
            plain.append(seconds)
            mine.append(ours(args.loratool, base, "-o", q, "--type", "nf4")[0])
        stored = load_file(os.path.join(q, "model.safetensors"))
        same = (stored["layer.weight"] == codes).float().mean().item()
        print(f"NF4 of {args.size}²: bitsandbytes {statistics.median(plain):.3f} s, file to file {statistics.median(mine):.3f} s, "
              f"{statistics.median(plain) / statistics.median(mine):.2f} times; {same:.6f} of the bytes equal", flush=True)
        shutil.rmtree(q)

        init = on_cpu()
        slow, fast = [], []
        for _ in range(args.peft_rounds):
            seconds, (new, lora_a, lora_b) = theirs(lambda: init(weight.float(), 4, args.rank, num_iter=5))
            slow.append(seconds)
        for _ in range(args.rounds):
            seconds, said = ours(args.loratool, base, "-o", q, "--type", "nf4", "--loftq", "--rank", str(args.rank), "--adapter-out", a)
            fast.append(seconds)
        w = weight.double()
        left = ((w - new.double() - lora_b.double() @ lora_a.double()).norm() / w.norm()).item()
        print(f"LoftQ of {args.size}², rank {args.rank}, 5 iterations: loftq_init {statistics.median(slow):.1f} s, error {left:.6f}; "
              f"file to file {statistics.median(fast):.2f} s, error {said['summary']['relative_error']:.6f}; "
              f"{statistics.median(slow) / statistics.median(fast):.1f} times")


if __name__ == "__main__":
    main()
