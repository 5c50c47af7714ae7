"""Extracts the same pair of models with loratool and with mergekit and compares residual, time and memory.

    python testdata/gen/extract_mergekit.py --loratool BIN --mergekit PATH/mergekit-extract-lora [--work DIR] [--rank 32]

The pair is one decoder layer with the sizes of Llama 3 8B (4096 wide, 14336 in the feed-forward part) and a small
vocabulary, stored as bf16; the change has a spectrum that falls like 1/k, as fine-tunes have. mergekit and loratool run
one after the other on one thread each, with everything but the linear layers left out. The residual of both is measured
here, in float64, from what they wrote: ||D - s B A|| / ||D|| for every module.

Needs mergekit (measured with 0.1.5), torch and safetensors; the numbers in docs/performance.md are made by it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

HIDDEN, FEED, KV, VOCAB = 4096, 14336, 1024, 1024
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FEED, HIDDEN), "mlp.up_proj": (FEED, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED),
}


def make_pair(work: str) -> None:
    torch.manual_seed(1)
    base, tuned = {}, {}
    for name, shape in SHAPES.items():
        w = torch.randn(shape) * 0.02
        rank = 256
        u, v = torch.randn(shape[0], rank), torch.randn(rank, shape[1])
        d = (u / torch.arange(1, rank + 1)) @ v
        d += 0.05 * d.norm() / (shape[0] * shape[1]) ** 0.5 * torch.randn(shape)
        d *= 0.1 * w.norm() / d.norm()
        key = f"model.layers.0.{name}.weight"
        base[key] = w.bfloat16()
        tuned[key] = (base[key].float() + d).bfloat16()
    for key, shape in {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN),
                       "model.norm.weight": (HIDDEN,), "model.layers.0.input_layernorm.weight": (HIDDEN,),
                       "model.layers.0.post_attention_layernorm.weight": (HIDDEN,)}.items():
        base[key] = tuned[key] = (torch.randn(shape) * 0.02).bfloat16()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FEED,
        "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    }
    for name, tensors in (("base", base), ("tuned", tuned)):
        folder = os.path.join(work, name)
        os.makedirs(folder)
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(config, f)


def measure(args: list[str], env: dict) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and the largest resident set in MiB of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    watcher = subprocess.Popen(
        [sys.executable, "-c", "import resource,subprocess,sys;r=subprocess.run(sys.argv[1:]);"
         "print('PEAK',resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(r.returncode)", *args],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = watcher.communicate()
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if watcher.returncode:
        sys.exit(f"{args[0]}: {err[-2000:]}")
    peak = [int(x.split()[1]) for x in out.splitlines() if x.startswith("PEAK")][-1]
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak / 1024


def residuals(work: str, adapter: str) -> dict[str, float]:
    base = load_file(os.path.join(work, "base", "model.safetensors"))
    tuned = load_file(os.path.join(work, "tuned", "model.safetensors"))
    factors = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    with open(os.path.join(adapter, "adapter_config.json")) as f:
        config = json.load(f)
    found = {}
    for name in SHAPES:
        key = f"model.layers.0.{name}"
        a = factors[f"base_model.model.{key}.lora_A.weight"].double()
        b = factors[f"base_model.model.{key}.lora_B.weight"].double()
        d = tuned[key + ".weight"].double() - base[key + ".weight"].double()
        scale = config["lora_alpha"] / config["r"]
        found[name] = ((d - scale * b @ a).norm() / d.norm()).item()
    return found


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--loratool", required=True)
    p.add_argument("--mergekit", required=True)
    p.add_argument("--work")
    p.add_argument("--rank", type=int, default=32)
    args = p.parse_args()
    work = args.work or tempfile.mkdtemp()
    if not os.path.exists(os.path.join(work, "tuned", "config.json")):
        make_pair(work)
    env = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    base, tuned = os.path.join(work, "base"), os.path.join(work, "tuned")
    ours, theirs = os.path.join(work, "ours"), os.path.join(work, "theirs")
    for folder in (ours, theirs):
        shutil.rmtree(folder, ignore_errors=True)
    mine = measure([args.loratool, "extract", "--base", base, "--tuned", tuned, "-o", ours, "--rank", str(args.rank),
                    "--jobs", "1", "-q"], dict(env, GOMAXPROCS="1"))
    other = measure([args.mergekit, "--model", tuned, "--base-model", base, "--out-path", theirs, "--max-rank", str(args.rank),
                     "--exclude-regex", "embed_tokens|lm_head|norm"], env)
    mine_left, other_left = residuals(work, ours), residuals(work, theirs)
    print(f"{'module':20} {'loratool':>10} {'mergekit':>10}   residual at rank {args.rank}")
    worst = 0.0
    for name in SHAPES:
        worst = max(worst, mine_left[name] / other_left[name])
        print(f"{name:20} {mine_left[name]:10.6f} {other_left[name]:10.6f}")
    for what, a, b in zip(("wall s", "CPU s", "peak MiB"), mine, other):
        print(f"{what:20} {a:10.1f} {b:10.1f}   {b / a:.1f} times")
    ok = worst <= 1 + 5e-4  # the excess that the iteration is allowed (linalg.Options)
    print("ok" if ok else "FAIL", f"residual at most {worst:.6f} times mergekit's")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
