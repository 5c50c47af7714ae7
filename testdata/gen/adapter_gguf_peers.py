"""Checks adapters that loratool converts between PEFT and GGUF against PEFT and the runtime of llama.cpp.

    python testdata/gen/adapter_gguf_peers.py --loratool BIN --llama SOURCE --libs DIR [--only FAMILY]

For each family a tiny model with random weights (of to_hf_peers.py) becomes GGUF in F32, and adapters with noise in both
factors, saved by PEFT, become GGUF for it: plain, rank-stabilised, with ranks and alphas of modules, of the embedding and the
head, of stacked experts. Then

1. llama.cpp's logits of model and adapter are those of PeftModel within what its float32 allows (of the largest logit 1e-5,
   and 2^-11 for each of the two layers where it takes GELU from a table in F16), which the adapter moves by a hundred times that;
2. the adapter brought back to PEFT loads and gives PeftModel's logits as they were, to 1e-6 of the largest: a scale may
   have moved from a formula into factors;
3. what convert_lora_to_gguf.py makes of the same adapter is printed beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from transformers import AutoModelForCausalLM

import consumers
import to_hf_peers as models

warnings.filterwarnings("ignore")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TABLES = ["embed_tokens", "lm_head"]
FAMILIES = {
    "llama": LINEAR, "mistral": LINEAR, "qwen2": LINEAR, "qwen3": LINEAR, "gemma": LINEAR, "gemma2": LINEAR,
    "gpt2": ["c_attn", "c_proj", "c_fc"], "qwen3moe": ["q_proj", "k_proj", "v_proj", "o_proj"], "mixtral": ["q_proj", "v_proj"],
}
GELU = {"gemma", "gemma2", "gpt2"}
EXPERTS = {"qwen3moe": "mlp.experts", "mixtral": "mlp.experts"}


def adapters(family: str) -> dict[str, dict]:
    modules = FAMILIES[family]
    first, last = modules[0], modules[-1]
    cases = {
        "plain": dict(r=4, lora_alpha=8),
        "rank-stabilised": dict(r=4, lora_alpha=8, use_rslora=True),
        "patterns": dict(r=4, lora_alpha=8, rank_pattern={first: 2}, alpha_pattern={last: 3, f"layers.0.self_attn.{first}": 16}),
    }
    if family in ("llama", "qwen2"):
        cases["tables"] = dict(r=4, lora_alpha=8, target_modules=modules + TABLES)
    if family in EXPERTS:
        at = EXPERTS[family]
        cases["experts"] = dict(r=2, lora_alpha=8, target_parameters=[f"{at}.gate_up_proj", f"{at}.down_proj"])
    return {name: dict(dict(target_modules=list(modules)), **c) for name, c in cases.items()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([consumers.TOKENS])).logits[0].float()


def load(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check(family: str, binary: str, llama: consumers.Llama, work: str) -> None:
    folder, file = os.path.join(work, family), os.path.join(work, family + ".gguf")
    models.make(family, folder)
    models.run(binary, "convert", folder, "-o", file, "--dtype", "f32")
    base = logits(load(folder))
    for name, settings in adapters(family).items():
        torch.manual_seed(7)
        pair = peft.get_peft_model(load(folder), peft.LoraConfig(**settings))
        with torch.no_grad():
            for key, p in pair.named_parameters():
                if "lora_" in key:
                    p.normal_(0, 0.2)
        at = os.path.join(work, f"{family}-{name}")
        pair.save_pretrained(at)
        want = logits(pair)
        largest, bound = want.abs().max().item(), 2 * 2**-11 if family in GELU else 1e-5
        made = at + ".gguf"
        models.run(binary, "convert", at, "--base", file, "-o", made)
        off = (llama.logits(file, made) - want).abs().max().item() / largest
        moved = (base - want).abs().max().item() / largest
        theirs = "it fails"
        try:
            theirs = f"{(llama.logits(file, llama.convert_adapter(folder, at)) - want).abs().max().item() / largest:.1e}"
        except RuntimeError:
            pass
        consumers.report(off <= bound and moved >= 100 * bound, f"{family}, {name}: llama.cpp",
                         f"logits within {off:.1e}, which the adapter moves by {moved:.1e}; by convert_lora_to_gguf.py: {theirs}")
        if name == "experts":
            continue  # single experts come back, which this version of transformers has no modules for
        models.run(binary, "convert", made, "--base", folder, "-o", at + "-back")
        again = logits(peft.PeftModel.from_pretrained(load(folder), at + "-back"))
        off = (again - want).abs().max().item() / largest
        consumers.report(off <= 1e-6, f"{family}, {name}: back", f"logits within {off:.1e}")


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--loratool", required=True)
    flags.add_argument("--llama", required=True)
    flags.add_argument("--libs", required=True)
    flags.add_argument("--only")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as work:
        llama = consumers.Llama(args.llama, args.libs, work)
        for family in FAMILIES:
            if args.only in (None, family):
                check(family, args.loratool, llama, work)
    print(f"{consumers.results['passed']} passed, {consumers.results['failed']} failed")
    sys.exit(consumers.results["failed"] > 0)


if __name__ == "__main__":
    main()
