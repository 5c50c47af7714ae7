"""Checks the figures of 'loratool verify --end-to-end' on a real model against transformers and PEFT.

    python testdata/gen/forward_peers.py --loratool BIN --model FILE.gguf [--work DIR]

FILE.gguf, a decoder of the Llama family, is made a folder in bfloat16 by BIN. On a text of TEXT's tokens

1. the folder against itself in NF4, as BIN quantizes it: transformers runs both in float32, the second from the weights
   that BIN decodes (other scripts compare these with bitsandbytes);
2. a merge in bfloat16 that PEFT made of the folder and a LoRA adapter with noise in both factors, against PeftModel, which
   applies the pair at run time.

Divergence, first tokens and the distance of the logits must be those that BIN prints. Both sides compute in float32 and
differ by noise n of their own; as it has nothing to do with the distance d of the models, d and the square root of
the divergence become larger by (n/d)^2/2 of themselves: for n = 2e-3, d = 0.05 that is 8e-4. A relative 2e-3 is allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
failed = 0

TEXT = """Merging an adapter adds the product of two thin matrices to a wide one. Nothing is lost if the sum is
exact, and a little if it is rounded; what a model says then changes less than it does when its weights go into four bits.
def scale(alpha, rank): return alpha / rank  # or by the square root
Die Summe wird gerundet, und 16 Bits reichen fast immer."""


def report(ok: bool, name: str, text: str) -> None:
    global failed
    failed += not ok
    print(("ok   " if ok else "FAIL ") + f"{name}: {text}", flush=True)


def run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(args)}: exit {done.returncode}: {done.stderr}")
    return done.stdout


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def figures(p: torch.Tensor, q: torch.Tensor) -> dict[str, float]:
    lp, lq = p.log_softmax(-1), q.log_softmax(-1)
    kl = (lp.exp() * (lp - lq)).sum(-1)
    return dict(kl_mean=kl.mean().item(), kl_max=kl.max().item(), top1_agreement=(p.argmax(-1) == q.argmax(-1)).double().mean().item(),
                distance=(p - q).pow(2).mean().sqrt().item())


def compare(name: str, ours: dict, theirs: dict[str, float], positions: int) -> None:
    for key, want in theirs.items():
        got = ours[key]
        # A first token that is as good as the second may fall to either side.
        ok = abs(got - want) <= (1.0 / positions if key == "top1_agreement" else 2e-3 * abs(want))
        report(ok, name, f"{key} {got:.6g}, transformers {want:.6g}")


def load(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--loratool", required=True)
    flags.add_argument("--model", required=True)
    flags.add_argument("--work")
    args = flags.parse_args()
    work = args.work or tempfile.mkdtemp()
    at = lambda name: os.path.join(work, name)
    base, tokens, binary = at("base"), at("ids.json"), args.loratool
    run(binary, "convert", args.model, "-o", base, "--dtype", "bf16")
    ids = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    with open(tokens, "w") as f:
        json.dump(ids, f)
    model = load(base)
    reference = logits(model, ids)

    run(binary, "quantize", base, "-o", at("nf4"), "--type", "nf4")
    run(binary, "convert", at("nf4"), "-o", at("plain"), "--dtype", "f32")
    ours = json.loads(run(binary, "verify", "--base", base, "--quantized", at("nf4"), "--end-to-end", "--tokens", tokens, "--json"))
    compare("nf4", ours["summary"]["end_to_end"]["model"], figures(reference, logits(load(at("plain")), ids)), len(ids))

    torch.manual_seed(0)
    pair = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, p in pair.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.02)
    pair.save_pretrained(at("adapter"))
    exact = logits(pair.eval(), ids)
    pair.merge_and_unload().bfloat16().save_pretrained(at("merged"))
    ours = json.loads(run(binary, "verify", "--base", base, "--adapter", at("adapter"), "--merged", at("merged"), "--end-to-end", "--tokens", tokens, "--json"))
    report(ours["ok"], "merge", f"{len(ours['findings'])} findings: " + ", ".join(f["code"] for f in ours["findings"]))
    compare("merge", ours["summary"]["end_to_end"]["model"], figures(exact, logits(load(at("merged")), ids)), len(ids))
    compare("base alone", ours["summary"]["end_to_end"]["base"], figures(exact, reference), len(ids))
    print(f"{len(ids)} tokens, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
