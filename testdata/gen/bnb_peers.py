"""Checks `loratool quantize` against transformers with bitsandbytes.

    python testdata/gen/bnb_peers.py --loratool BIN [--work DIR]

Small models with random weights (a Llama, one with a tied head, a GPT-2, a Mixtral, a T5, a BERT classifier) are
quantized by BIN to every type and loaded by transformers as they are.

1. No tensor is missing, unexpected or of another shape, and the layers that became Linear4bit or Linear8bitLt are
   those that BIN says it has quantized.
2. What bitsandbytes dequantizes is what `loratool merge` reads from the folder (an adapter of zeros is merged), bit
   for bit.
3. The outputs equal those of the model with the dequantized weights: same arithmetic in another order, so within 2^-6
   of the largest output for bf16 layers (8 bits; sums of up to 2^2 roundings of 2^-8 in a model of one layer), and
   2^-4 for LLM.int8, which rounds activations to 8 bits too.
4. Codes and scales are those of transformers' own quantization of the same model, but for the known differences of
   its CPU code: the other zero of FP4, and FP4's thresholds, which have as few as 6 digits in the CUDA code.
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
warnings.filterwarnings("ignore")

import bitsandbytes as bnb
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils import logging

from bnb_golden import dequantize

logging.set_verbosity_error()
logging.disable_progress_bar()

LLAMA = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=128, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
MODELS = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "llama-tied": ("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": ("GPT2LMHeadModel", transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=128, n_positions=64,
                                                       bos_token_id=1, eos_token_id=2)),
    "mixtral": ("MixtralForCausalLM", transformers.MixtralConfig(**LLAMA, num_local_experts=4)),
    "t5": ("T5ForConditionalGeneration", transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4,
                                                              vocab_size=128, decoder_start_token_id=0)),
    "bert": ("BertForSequenceClassification", transformers.BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=128,
        max_position_embeddings=64)),
}
KINDS = {
    "nf4": (["--type", "nf4"], dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "nf4-double": (["--type", "nf4", "--double-quant"],
                   dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
    "fp4-storage": (["--type", "fp4", "--quant-storage", "bf16"],
                    dict(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16)),
    "int8": (["--type", "int8"], dict(load_in_8bit=True)),
}
results = {"passed": 0, "failed": 0}


def report(ok: bool, name: str, text: str = "") -> None:
    results["passed" if ok else "failed"] += 1
    print(("ok   " if ok else "FAIL ") + name + (": " + text if text else ""), flush=True)


def outputs(model) -> torch.Tensor:
    ids = torch.arange(3, 19)[None]
    kwargs = {"decoder_input_ids": ids} if model.config.model_type == "t5" else {}
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits.float()


def quantized_layers(model) -> dict:
    return {n: m for n, m in model.named_modules() if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))}


def values_of(layer) -> torch.Tensor:
    if isinstance(layer, bnb.nn.Linear4bit):
        return dequantize(layer.weight)
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return bnb.functional.int8_vectorwise_dequant(layer.weight.data, scales)


def zero_adapter(path: str, config: dict) -> None:
    """An adapter that changes nothing: one pair of zeros. Merging it writes what the base stands for."""
    os.makedirs(path, exist_ok=True)
    save_file(config["tensors"], os.path.join(path, "adapter_model.safetensors"))
    with open(os.path.join(path, "adapter_config.json"), "w") as f:
        json.dump({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [config["module"]]}, f)


def check(binary: str, name: str, kind: str, work: str) -> None:
    label = f"{name} {kind}"
    cls, _ = MODELS[name]
    args, theirs = KINDS[kind]
    base, out = os.path.join(work, name), os.path.join(work, f"{name}-{kind}")
    run = subprocess.run([binary, "quantize", base, "-o", out, *args, "--json"], capture_output=True, text=True)
    if run.returncode:
        report(False, label, run.stderr.strip()[-300:])
        return
    said = {t["tensor"].removesuffix(".weight") for t in json.loads(run.stdout)["tensors"]}
    model, info = getattr(transformers, cls).from_pretrained(out, output_loading_info=True, dtype=torch.bfloat16)
    missing = {k: v for k, v in info.items() if v}
    layers = quantized_layers(model)
    # Names in files may lack the prefix of the model in memory.
    match = {n: s for n in layers for s in said if n == s or n.endswith("." + s)}
    report(not missing and len(match) == len(layers) == len(said), label + ", loading",
           f"{len(said)} written, {len(layers)} loaded {missing or ''}")

    # 3: the dequantized weights in plain layers.
    # Before the model runs: its layers pack their codes anew for the CPU then.
    values = {n: values_of(layer) for n, layer in layers.items()}
    codes = {n: layer.weight.data.clone() for n, layer in layers.items()}
    shapes = {n: layer.weight.quant_state.shape if kind != "int8" else layer.weight.shape for n, layer in layers.items()}
    got = outputs(model)
    with torch.no_grad():
        plain = getattr(transformers, cls).from_pretrained(base, dtype=torch.bfloat16)
        for n, w in values.items():
            w = w.to(torch.bfloat16)
            target = plain.get_submodule(n)
            target.weight.copy_(w.T if isinstance(target, transformers.pytorch_utils.Conv1D) else w)
        want = outputs(plain)
    off = ((got - want).abs().max() / want.abs().max()).item()
    report(off <= (2.0**-4 if kind == "int8" else 2.0**-6), label + ", outputs", f"differ by {off:.1e} of the largest")

    # 2: what loratool reads.
    first = next(iter(layers))
    side = os.path.join(work, "zero")
    shape = shapes[first]
    module = match[first]
    zero_adapter(side, {"module": module.rsplit(".", 1)[-1], "tensors": {
        f"base_model.model.{first}.lora_A.weight": torch.zeros(1, shape[1]),
        f"base_model.model.{first}.lora_B.weight": torch.zeros(shape[0], 1)}})
    merged = os.path.join(work, f"{name}-{kind}-merged")
    run = subprocess.run([binary, "merge", "--base", out, "--adapter", side, "-o", merged], capture_output=True, text=True)
    if run.returncode:
        report(False, label + ", reading", run.stderr.strip()[-300:])
        return
    read = load_file(os.path.join(merged, "model.safetensors"))
    bad = []
    for n, w in values.items():
        w = w.to(torch.bfloat16)
        r = read[match[n] + ".weight"]
        if name == "gpt2":
            r = r.T
        if not torch.equal(w, r):
            bad.append(n)
    with open(os.path.join(merged, "config.json")) as f:
        if "quantization_config" in json.load(f):
            bad.append("config.json")
    report(not bad, label + ", reading", " ".join(bad[:3]))
    again = getattr(transformers, cls).from_pretrained(merged, dtype=torch.bfloat16)
    report(torch.equal(outputs(again), want), label + ", merged outputs")

    # 4: their own quantization.
    own = getattr(transformers, cls).from_pretrained(base, quantization_config=BitsAndBytesConfig(**theirs), dtype=torch.bfloat16)
    bad = []
    for n, layer in quantized_layers(own).items():
        if n not in layers:
            continue  # a layer that BIN keeps on purpose
        a, b = layer.weight.data.view(torch.uint8).reshape(-1), codes[n].view(torch.uint8).reshape(-1)
        if kind.startswith("fp4"):
            a, b = (torch.where(v >> 4 == 8, v & 15, v) for v in (a, b))
            a, b = (torch.where(v & 15 == 8, v & 0xF0, v) for v in (a, b))
        # A handful lies between the two thresholds: ratios of bf16 numbers meet 1/4 and 7/12 exactly.
        allowed = a.numel() // 100 if kind.startswith("fp4") else 0
        if (a != b).sum().item() > allowed:
            bad.append(f"{n}: {(a != b).sum().item()} of {a.numel()} codes")
    report(not bad, label + ", codes", "; ".join(bad[:3]))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loratool", required=True)
    parser.add_argument("--work")
    parser.add_argument("--only", action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        work = args.work or temp
        for name, (cls, config) in MODELS.items():
            if args.only and name not in args.only:
                continue
            torch.manual_seed(5)
            model = getattr(transformers, cls)(config).to(torch.bfloat16)
            model.save_pretrained(os.path.join(work, name))
            for kind in KINDS:
                check(os.path.abspath(args.loratool), name, kind, work)
    print(f"{results['passed']} passed, {results['failed']} failed")
    return results["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
