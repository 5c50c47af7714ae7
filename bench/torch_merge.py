"""Merges one bf16 tensor with torch, as often as the lines on standard input ask.

Arguments: size, rank, scale. Standard input begins with the bytes of W (size x size), B
(size x rank) and A (rank x size) in bf16; then each line "FORM THREADS REPEAT" runs a
form of the merge and is answered with wall and CPU seconds. "result 1 1" is answered
with the bytes of one merge in float32, before anything has changed W.
"""

import sys
import time

import torch

SIZE, RANK, SCALE = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


def read(rows, cols):
    data = bytearray(2 * rows * cols)
    view = memoryview(data)
    while view:
        count = sys.stdin.buffer.readinto(view)
        if not count:
            sys.exit("input ended within a tensor")
        view = view[count:]
    return torch.frombuffer(data, dtype=torch.bfloat16).reshape(rows, cols)


def in_bf16(w, b, a):
    w += (b @ a) * SCALE


def as_peft(w, b, a):
    """peft/tuners/lora/layer.py, get_delta_weight and merge, on a CPU."""
    w += ((b.float() @ a.float()) * SCALE).to(w.dtype)


def main():
    w, b, a = read(SIZE, SIZE), read(SIZE, RANK), read(RANK, SIZE)
    print(torch.__version__, flush=True)
    for line in iter(sys.stdin.buffer.readline, b""):
        form, threads, repeat = line.decode().split()
        if form == "result":
            result = w.clone()
            as_peft(result, b, a)
            sys.stdout.buffer.write(result.view(torch.uint8).numpy().tobytes())
            sys.stdout.buffer.flush()
            continue
        merge = {"bf16": in_bf16, "peft": as_peft}[form]
        torch.set_num_threads(int(threads))
        with torch.no_grad():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(int(repeat)):
                merge(w, b, a)
            print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


main()
