"""Checks `loratool quantize --loftq` against transformers, bitsandbytes and PEFT.

    python testdata/gen/loftq_peers.py --loratool BIN [--work DIR]

Small models with random weights (a Llama, a GPT-2, a BERT classifier, float32) are quantized by BIN to every kind of
type, with a pair of rank 16 and several scales, and once plainly.

1. transformers loads the quantized model, PEFT the adapter on top of it: every factor of the file is in the model, and
   no layer has a pair that is not in the file.
2. For every layer, the weight that is left - the original minus what bitsandbytes dequantizes minus PEFT's own
   get_delta_weight - has the relative error that BIN reports: to 2^-20, since reported and recomputed differences are
   float32 sums of a few products. Q alone and the pair at another scale do not have it.
3. The outputs are nearer to the original's than those of the plain quantization, in the Euclidean norm over all
   positions; those of the plain one equal those of transformers' own quantization of the same model, bit for bit, as
   the codes do (types of 4 bits; bnb_peers.py has the exceptions).
4. Training goes on from there: PEFT finds the pairs trainable, five steps of gradient descent on the factors lower the
   loss at each step, and nothing but the factors moves.
"""

from __future__ import annotations

import argparse
import json
import logging as python_logging
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
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig
from transformers.utils import logging

from bnb_peers import values_of

python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)
logging.set_verbosity_error()
logging.disable_progress_bar()

LLAMA = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=256, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
MODELS = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**LLAMA)),
    "gpt2": ("GPT2LMHeadModel", transformers.GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab_size=256, n_positions=64,
                                                       bos_token_id=1, eos_token_id=2, resid_pdrop=0, embd_pdrop=0,
                                                       attn_pdrop=0)),
    "bert": ("BertForSequenceClassification", transformers.BertConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=256,
        max_position_embeddings=64, hidden_dropout_prob=0, attention_probs_dropout_prob=0)),
}
KINDS = {
    "nf4": ["--type", "nf4"],
    "nf4-double": ["--type", "nf4", "--double-quant", "--alpha", "8"],
    "nf4-svd-first": ["--type", "nf4", "--order", "svd-first", "--rslora"],
    "fp4": ["--type", "fp4", "--alpha", "4"],
    "int8": ["--type", "int8", "--alpha", "32"],
    "nf2": ["--type", "nf2", "--alpha", "32"],
    "uniform3": ["--type", "uniform3"],
    "mixed": ["--type", "nf4", "--bits", "0:4,1:2"],
}
PLAIN = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "nf4-double": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                       bnb_4bit_compute_dtype=torch.float32),
}
RANK = 16
results = {"passed": 0, "failed": 0}


def report(ok: bool, name: str, text: str = "") -> None:
    results["passed" if ok else "failed"] += 1
    print(("ok   " if ok else "FAIL ") + name + (": " + text if text else ""), flush=True)


def batch(model) -> dict:
    ids = (torch.arange(4 * 24).reshape(4, 24) * 37) % 250 + 3
    labels = torch.tensor([0, 1, 0, 1]) if model.config.model_type == "bert" else ids
    return {"input_ids": ids, "labels": labels}


def outputs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch(model)["input_ids"]).logits.double()


def run(binary: str, *args: str) -> dict:
    done = subprocess.run([binary, "quantize", *args, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:])
    return json.loads(done.stdout)


def pairs(model) -> dict:
    """The layers with a pair, by their names in the model."""
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}


def stored(layer) -> torch.Tensor:
    """What the quantized layer stands for, as (out, in)."""
    base = layer.get_base_layer()
    if isinstance(base, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
        return values_of(base)
    weight = base.weight.detach()
    return weight.T if isinstance(base, transformers.pytorch_utils.Conv1D) else weight


def product(layer) -> torch.Tensor:
    """scale·B·A, as PEFT applies it."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return layer.scaling["default"] * (b.detach().double() @ a.detach().double())


def original(model) -> dict:
    weights = {}
    for name, m in model.named_modules():
        if isinstance(m, torch.nn.Linear):
            weights[name] = m.weight.detach().double()
        elif isinstance(m, transformers.pytorch_utils.Conv1D):
            weights[name] = m.weight.detach().double().T
    return weights


def check_layers(label: str, model, folder: str, said: dict, weights: dict) -> None:
    factors = load_file(os.path.join(folder, "adapter_model.safetensors"))
    layers = pairs(model)
    wrong = []
    for name, layer in layers.items():
        for side, part in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            key = f"base_model.model.{name}.{side}.weight"
            if key not in factors or not torch.equal(factors.pop(key), part["default"].weight.detach()):
                wrong.append(key)
    report(not wrong and not factors and len(layers) == len(said), label + ", loading", f"{len(layers)} pairs {wrong or ''}")

    worst = 0.0
    for name, layer in layers.items():
        w, q, p = weights[name], stored(layer).double(), product(layer)
        figures = said[name]
        error = ((w - q - p).norm() / w.norm()).item()
        worst = max(worst, abs(error / figures["relative_error"] - 1))
        others = [((w - q - f * p).norm() / w.norm()).item() for f in (0, 0.5, 2)]
        if min(others) <= error or error >= figures["relative_error_plain"]:
            wrong.append(f"{name}: {error} of {figures['relative_error_plain']}, at other scales {others}")
    report(not wrong and worst < 2**-20, label + ", weights", f"errors as reported to {worst:.1e} {wrong or ''}")


def check_training(label: str, model) -> None:
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(6):
        loss = model(**batch(model)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    falls = all(a > b for a, b in zip(losses, losses[1:]))
    moved = [n for n, p in model.named_parameters() if n in frozen and not torch.equal(frozen[n], p)]
    report(falls and not moved and all(".lora_" in n for n in trained), label + ", training",
           f"loss {losses[0]:.5f} to {losses[-1]:.5f} {moved or ''}")


def check(binary: str, name: str, kind: str, base: str, original_model, work: str) -> None:
    label = f"{name} {kind}"
    cls = getattr(transformers, MODELS[name][0])
    folder, adapter, plain = (os.path.join(work, f"{name}-{kind}-{x}") for x in ("q", "a", "plain"))
    try:
        said = run(binary, base, "-o", folder, "--loftq", "--rank", str(RANK), "--adapter-out", adapter, *KINDS[kind])
    except RuntimeError as err:
        report(False, label, str(err))
        return
    prefix = "" if name != "bert" else "bert."
    figures = {t["tensor"].removesuffix(".weight"): t for t in said["tensors"]}
    assert all(n.startswith(prefix) for n in figures), list(figures)[:2]
    load = dict(dtype=torch.float32)
    quantized = cls.from_pretrained(folder, **load)
    model = PeftModel.from_pretrained(quantized, adapter, is_trainable=True)
    model.eval()
    check_layers(label, model, adapter, figures, original(original_model))

    want, got = outputs(original_model), outputs(model)
    if kind in PLAIN:
        flags = [f for f in KINDS[kind] if f in ("--type", "nf4", "--double-quant")]
        run(binary, base, "-o", plain, *flags)
        ours = outputs(cls.from_pretrained(plain, **load).eval())
        skip = json.load(open(os.path.join(plain, "config.json")))["quantization_config"]["llm_int8_skip_modules"]
        config = BitsAndBytesConfig(**PLAIN[kind], llm_int8_skip_modules=skip)
        theirs = outputs(cls.from_pretrained(base, quantization_config=config, **load).eval())
        near = ((got - want).norm() / (ours - want).norm()).item()
        report(near < 1, label + ", outputs", f"{near:.3f} times as far from the original as {kind} alone")
        if kind == "nf4":  # the CPU code of double quantization picks other codes for scales, see numerics.md
            report(torch.equal(ours, theirs), label + ", plain outputs", "those of transformers' own quantization")
    # From the files again: what has run without training has its codes packed for the CPU, and no gradient.
    model = PeftModel.from_pretrained(cls.from_pretrained(folder, **load), adapter, is_trainable=True)
    check_training(label, model.train())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--loratool", required=True)
    parser.add_argument("--work")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or temporary
        os.makedirs(work, exist_ok=True)
        for name, (cls, config) in MODELS.items():
            torch.manual_seed(7)
            model = getattr(transformers, cls)(config).float().eval()
            base = os.path.join(work, name)
            model.save_pretrained(base)
            for kind in KINDS:
                if args.only in f"{name} {kind}":
                    check(os.path.abspath(args.loratool), name, kind, base, model, work)
    print(f"{results['passed']} passed, {results['failed']} failed")
    sys.exit(results["failed"] > 0)


if __name__ == "__main__":
    main()
