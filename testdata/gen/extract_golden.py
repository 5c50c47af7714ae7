"""Makes testdata/golden/extract: pairs of tiny models and the spectra of their differences by torch.linalg.svd.

    python testdata/gen/extract_golden.py [--out DIR]

    <pair>/base, <pair>/tuned    the two models, as transformers saves them; those of llama-fp8 by hand: the linear
                                 layers of llama-bf16 in FP8, the base's with exponents for blocks of 16 x 16, as in
                                 files of DeepSeek, the tuned model's with a float32 for each row
    <pair>/spectra.safetensors   float64: the singular values of the difference of every parameter that a LoRA pair can
                                 hold, by its name in memory. Of stacked experts one row per expert; of a convolution,
                                 of its weight as out x (in * kernel).

The differences are float64 differences of what the files hold. Regenerate with the versions of requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

import extract_models as models

HERE = os.path.dirname(os.path.abspath(__file__))
# The rest of the pairs is for the live comparison; these cover the roles.
GOLDEN = ["llama-bf16", "tokens", "gpt2", "mixtral", "conv"]


def spectra(name: str, base, tuned) -> dict[str, torch.Tensor]:
    before = dict(base.named_parameters())
    found = {}
    for key, after in tuned.named_parameters():
        w, x = before[key].detach().double(), after.detach().double()
        module = key.rsplit(".", 1)[0]
        if x.ndim < 2 or w.shape != x.shape or any(s in key for s in ("embed", "wte", "wpe", "lm_head", ".gate.", "deep")):
            continue
        d = x - w
        if isinstance(tuned.get_submodule(module), (torch.nn.Conv1d, torch.nn.Conv2d)):
            d = d.flatten(1)
        found[key] = torch.linalg.svdvals(d).contiguous()
    return found


BLOCK = 16


def by_blocks(w: torch.Tensor) -> tuple[str, torch.Tensor, torch.Tensor]:
    """The suffix of a scale's name, the scales and the same for every element: powers of two that make each block fit."""
    rows, cols = -(-w.shape[0] // BLOCK), -(-w.shape[1] // BLOCK)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK).index_put(torch.meshgrid(
        torch.arange(w.shape[0]), torch.arange(w.shape[1]), indexing="ij"), w)
    largest = padded.reshape(rows, BLOCK, cols, BLOCK).abs().amax((1, 3))
    scales = torch.exp2(torch.ceil(torch.log2(largest / 448)))
    full = scales.repeat_interleave(BLOCK, 0)[: w.shape[0]].repeat_interleave(BLOCK, 1)[:, : w.shape[1]]
    return "_scale_inv", scales.to(torch.float8_e8m0fnu), full


def by_rows(w: torch.Tensor) -> tuple[str, torch.Tensor, torch.Tensor]:
    scales = w.abs().amax(1, keepdim=True) / 448
    return "_scale", scales, scales


def to_fp8(source: str, folder: str, scales_of, config: dict) -> dict[str, torch.Tensor]:
    """Writes a model with its linear layers in FP8 and returns their weights in float64: codes times scales."""
    os.makedirs(folder)
    out, weights = {}, {}
    for key, w in load_file(os.path.join(source, "model.safetensors")).items():
        out[key] = w
        if w.ndim != 2 or "proj" not in key:
            continue
        suffix, scales, full = scales_of(w.float())
        out[key] = (w.float() / full).clamp(-448, 448).to(torch.float8_e4m3fn)
        out[key + suffix] = scales
        weights[key] = out[key].double() * full.double()
    save_file(out, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(source, "config.json")) as f:
        text = json.load(f)
    text["quantization_config"] = config
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(text, f, indent=2, sort_keys=True)
        f.write("\n")
    return weights


def make_fp8(out: str) -> None:
    source, folder = os.path.join(out, "llama-bf16"), os.path.join(out, "llama-fp8")
    blocks = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [BLOCK, BLOCK]}
    rows = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}
    base = to_fp8(os.path.join(source, "base"), os.path.join(folder, "base"), by_blocks, blocks)
    tuned = to_fp8(os.path.join(source, "tuned"), os.path.join(folder, "tuned"), by_rows, rows)
    found = {key: torch.linalg.svdvals(tuned[key] - w).contiguous() for key, w in base.items()}
    save_file(found, os.path.join(folder, "spectra.safetensors"))
    print("llama-fp8", len(found))


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--out", default=os.path.join(HERE, "..", "golden", "extract"))
    out = os.path.abspath(p.parse_args().out)
    shutil.rmtree(out, ignore_errors=True)
    for name in GOLDEN:
        folder = os.path.join(out, name)
        tuned = models.make(name, folder)
        base = models.load(name, os.path.join(folder, "base"))
        found = spectra(name, base, tuned)
        assert found, name
        save_file(found, os.path.join(folder, "spectra.safetensors"))
        print(name, len(found))
    make_fp8(out)


if __name__ == "__main__":
    main()
