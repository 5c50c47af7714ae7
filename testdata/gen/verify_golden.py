"""Merges of testdata/demo made by PEFT in the ways that round more than once.

    python3 testdata/gen/verify_golden.py

Writes testdata/golden/verify/NAME.safetensors with the changed tensors only:

    safe   merge_and_unload(safe_merge=True) in bf16: the change is rounded, then the sum
    half   the adapter is made bf16 too (autocast_adapter_dtype=False, model.to): its
           factors are rounded, then as above, since PEFT rounds the change to their type
    plain  the ordinary way: one rounding

Versions as in requirements.txt; there is nothing random.
"""

import pathlib

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE, ADAPTER, OUT = ROOT / "demo/base", ROOT / "demo/adapter", ROOT / "golden/verify"


def merged(safe_merge, half):
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, ADAPTER)
    if half:
        model = model.to(torch.bfloat16)
    return model.merge_and_unload(safe_merge=safe_merge).state_dict()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    base = {}
    for shard in BASE.glob("*.safetensors"):
        base |= load_file(shard)
    for name, (safe_merge, half) in {"plain": (False, False), "safe": (True, False), "half": (False, True)}.items():
        changed = {k: v.contiguous() for k, v in merged(safe_merge, half).items() if not torch.equal(v, base[k])}
        save_file(changed, OUT / f"{name}.safetensors", {"format": "pt"})
        print(name, len(changed))


if __name__ == "__main__":
    main()
