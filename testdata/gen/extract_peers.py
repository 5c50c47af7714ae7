"""Compares loratool's extraction and resizing with PEFT, transformers and torch, live.

    python testdata/gen/extract_peers.py --loratool BIN [--work DIR]

For every pair of `extract_models.py`:

1. At full rank the adapter, loaded by PEFT on the base, gives the tuned model's outputs; nothing of it is missing or
   unknown to PEFT.
2. At growing rank the gap to the tuned model closes: the squared distance of the weights, merged by PEFT, never grows,
   and equals what the certificate says.
3. The residual of every module is torch.linalg.svd's optimum within the certified excess.
4. An adapter resized to a lower rank merges, by PEFT, to the truncated SVD of the product.

The bounds: logits are sums of some hundred products of float32 numbers near one, so 1e-5 of the largest is far above
rounding and far below any real difference; weights and residuals are float32 quantities of norms, 2e-6 of the norm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import extract_models as models

results = {"passed": 0, "failed": 0}


def report(ok: bool, name: str, text: str = "") -> None:
    results["passed" if ok else "failed"] += 1
    print(("ok   " if ok else "FAIL ") + name + (": " + text if text else ""), flush=True)


def run(binary: str, *args: str) -> dict:
    done = subprocess.run([binary, *args, "--json", "-f"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: exit {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def outputs(name: str, model) -> torch.Tensor:
    with torch.no_grad():
        if name == "conv":
            return model(99)
        return model(torch.arange(3, 3 + 2 * 12).reshape(2, 12)).logits


def on_base(name: str, folder: str, adapter: str):
    """The base with an adapter, and what PEFT has to say against it."""
    base = models.load(name, os.path.join(folder, "base"))
    if name == "grown":
        base.resize_token_embeddings(models.VOCAB + 3, mean_resizing=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, adapter).eval()
    against = [str(w.message) for w in said if "missing" in str(w.message) or "unexpected" in str(w.message)]
    return model, against


def distance(model, tuned) -> float:
    """Squared distance of the weights of two models."""
    theirs = dict(tuned.named_parameters())
    if hasattr(tuned, "get_output_embeddings"):
        theirs.setdefault("lm_head.weight", tuned.get_output_embeddings().weight)  # once in a tied model
    return sum((p.detach().double() - theirs[k].detach().double()).square().sum().item() for k, p in model.named_parameters())


def check_extraction(binary: str, name: str, work: str) -> None:
    folder = os.path.join(work, name)
    tuned = models.make(name, folder)
    args = ["extract", "--base", os.path.join(folder, "base"), "--tuned", os.path.join(folder, "tuned")]
    want = outputs(name, tuned)
    plain = models.load(name, os.path.join(folder, "base"))
    before = dict(plain.named_parameters())
    last = None
    for rank in (1, 2, 4, 8, 16, 100):
        out = os.path.join(folder, f"lora{rank}")
        doc = run(binary, *args, "-o", out, "--rank", str(rank))
        model, against = on_base(name, folder, out)
        if rank == 100:
            off = (outputs(name, model) - want).abs().max().item() / want.abs().max().item()
            report(off <= 1e-5 and not against, f"{name}, full rank", f"outputs within {off:.1e} {' '.join(against)[:200]}")
        merged = model.merge_and_unload()
        left = distance(merged, tuned)
        report(last is None or left <= last * (1 + 1e-6) + 1e-12, f"{name}, rank {rank}", f"squared distance {left:.3e}")
        last = left
        if name not in ("grown", "llama-tied", "gpt2"):  # tied weights and new rows count once here, twice there
            norm = doc["certificate"]["delta_norm"]
            said = (doc["certificate"]["residual"] * norm) ** 2
            report(abs(left**0.5 - said**0.5) <= 2e-6 * norm + 1e-6, f"{name}, rank {rank}, certificate", f"says {said:.3e}")
        worst = 0.0
        for m in doc["certificate"]["modules"]:
            if m["form"] != "lora" or m["name"] not in before:
                continue
            d = dict(tuned.named_parameters())[m["name"]].detach().double() - before[m["name"]].detach().double()
            d = d.flatten(1) if m["role"] == "conv" else d
            s = torch.linalg.svdvals(d)
            best = (s[..., m["rank"]:].square().sum() / d.square().sum()).sqrt().item()
            worst = max(worst, abs(m["residual"] - best) - m["excess"] * best)
        report(worst <= 2e-6, f"{name}, rank {rank}, optimum", f"off by {worst:.1e}")


def check_resize(binary: str, work: str) -> None:
    for rslora, alpha in ((False, 5), (True, 11)):
        name = f"resize{' rslora' if rslora else ''}"
        torch.manual_seed(3)
        base = models.new("llama").eval()
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=alpha, use_rslora=rslora, init_lora_weights=False,
                                                target_modules=["q_proj", "down_proj"], rank_pattern={} if rslora else {"down_proj": 5}))
        folder = os.path.join(work, "resize-in")
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        deltas = {k: m.get_delta_weight("default").detach().double() for k, m in model.named_modules() if hasattr(m, "get_delta_weight")}
        for rank in (2, 5, 8):
            out = os.path.join(work, "resize-out")
            run(binary, "resize", folder, "-o", out, "--rank", str(rank))
            again = PeftModel.from_pretrained(models.new("llama"), out)
            worst = 0.0
            for k, m in again.named_modules():
                if not hasattr(m, "get_delta_weight"):
                    continue
                u, s, v = torch.linalg.svd(deltas[k], full_matrices=False)
                best = u[:, :rank] * s[:rank] @ v[:rank]
                worst = max(worst, ((m.get_delta_weight("default").double() - best).norm() / deltas[k].norm()).item())
            report(worst <= 2e-6, f"{name}, rank {rank}", f"off by {worst:.1e}")


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--loratool", required=True)
    p.add_argument("--work")
    args = p.parse_args()
    binary = os.path.abspath(args.loratool)
    work = args.work or tempfile.mkdtemp()
    for name in models.PAIRS:
        try:
            check_extraction(binary, name, work)
        except Exception as e:  # one pair that fails must not hide the others
            report(False, name, f"{type(e).__name__}: {e}"[:600])
    check_resize(binary, work)
    print(results)
    sys.exit(1 if results["failed"] else 0)


if __name__ == "__main__":
    main()
