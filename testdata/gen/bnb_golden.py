"""Makes testdata/golden/bnb: what bitsandbytes stores and what it reads back.

    python testdata/gen/bnb_golden.py [--out testdata/golden/bnb]

vectors.safetensors   one input, quantized with every block size. Three makers: "cpu" is bitsandbytes itself on this
                      machine; "cuda" is the text of csrc/kernels.cu (kQuantizeBlockwise, dQuantizeNF4, dQuantizeFP4,
                      dQuantize, kInt8VectorQuant) in numpy, one IEEE operation at a time; where they must agree the
                      script checks that they do, and says where they do not.
<model>/              a model of a few thousand parameters, quantized and saved by transformers with bitsandbytes
<model>.values.safetensors   its linear weights as bitsandbytes dequantizes them

Seeds are fixed. Other versions of torch may make other weights; `--check` compares instead of writing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import warnings
from fractions import Fraction

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as dequantize_4bit_compute
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM)
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

HERE = os.path.dirname(os.path.abspath(__file__))
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def single(digits: str) -> np.float32:
    """What a C compiler makes of a literal with an f behind it: the nearest float32. By way of float64, as Python
    would go, four of NF4's thresholds end up one step away: they lie in the middle of two float32, nearly."""
    near = np.float32(digits)
    around = [np.nextafter(near, np.float32(-9)), near, np.nextafter(near, np.float32(9))]
    return min(around, key=lambda v: abs(Fraction(float(v)) - Fraction(digits)))


NF4_THRESHOLDS = np.array([single(digits) for digits in """
    -0.8480964004993439 -0.6106329262256622 -0.4599952697753906 -0.33967943489551544 -0.23460740596055984
    -0.13791173323988914 -0.045525018125772476 0.03979014977812767 0.1202552504837513 0.2035212516784668
    0.2920137718319893 0.3893125355243683 0.5016634166240692 0.6427869200706482 0.8614784181118011""".split()])
FP4_THRESHOLDS = np.array([single(digits) for digits in
                           "0.00260417 0.0859375 0.20833333 0.29166667 0.4166667 0.583333 0.8333333".split()])
FP4_ORDER = np.array([0, 1, 6, 7, 4, 5, 2, 3], np.uint8)


# --- csrc/kernels.cu in numpy -----------------------------------------------------------------------------------
def cuda_codes(kind: str, x: np.ndarray) -> np.ndarray:
    """The tree of comparisons: how many thresholds are below. A NaN is above none."""
    if kind == "nf4":
        return (x[:, None] > NF4_THRESHOLDS).sum(1).astype(np.uint8)
    return FP4_ORDER[(np.abs(x)[:, None] > FP4_THRESHOLDS).sum(1)] | ((x < 0).astype(np.uint8) << 3)


def cuda_quantize(kind: str, x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = -(-len(x) // size)
    full = np.zeros(blocks * size, np.float32)
    full[:len(x)] = x  # what lies behind the end is loaded as zero
    full = full.reshape(blocks, size)
    absmax = np.abs(full).max(1).astype(np.float32)
    with np.errstate(all="ignore"):
        scaled = (full * (np.float32(1) / absmax)[:, None]).astype(np.float32)
    codes = cuda_codes(kind, scaled.reshape(-1))[:len(x) + len(x) % 2]
    return codes[::2] << 4 | codes[1::2], absmax


def cuda_nearest(table: np.ndarray, x: np.float32) -> int:
    """dQuantize, line by line."""
    pivot, upper_pivot, lower_pivot = 127, 255, 0
    val, i = table[127], 64
    lower, upper = np.float32(-1), np.float32(1)
    while i > 0:
        if x > val:
            lower_pivot, lower = pivot, val
            pivot += i
        else:
            upper_pivot, upper = pivot, val
            pivot -= i
        val = table[pivot]
        i >>= 1
    if upper_pivot == 255:
        upper = table[255]
    if lower_pivot == 0:
        lower = table[0]
    half = np.float32(0.5)
    if x > val:
        return upper_pivot if x > (upper + val) * half else pivot
    return lower_pivot if x < (lower + val) * half else pivot


def cuda_nested(absmax: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    offset = np.float32(absmax.astype(np.float64).mean())
    rest = (absmax - offset).astype(np.float32)
    codes, scales = np.zeros(len(rest), np.uint8), []
    for start in range(0, len(rest), 256):
        part = rest[start:start + 256]
        largest = np.abs(part).max()
        with np.errstate(all="ignore"):
            scaled = (part * (np.float32(1) / largest)).astype(np.float32)
        codes[start:start + 256] = [cuda_nearest(table, v) for v in scaled]
        scales.append(largest)
    return codes, np.array(scales, np.float32), offset


def cuda_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x is float16; a row of zeros gives NaN products, which the conversion turns into 0."""
    x = x.astype(np.float32)
    absmax = np.abs(x).max(1)
    with np.errstate(all="ignore"):
        scale = np.float32(127) * (np.float32(1) / absmax)  # div.approx is a product with the reciprocal
        q = np.rint((x * scale[:, None]).astype(np.float32))
    return np.nan_to_num(q).astype(np.int8), absmax.astype(np.float32)


# --- vectors ----------------------------------------------------------------------------------------------------
def make_input(rng: np.random.Generator) -> np.ndarray:
    """Ordinary weights, then blocks of 32 that are odd: thresholds and their neighbours, zeros, one value, tiny and
    huge ones; and an odd end."""
    parts = [rng.standard_normal(2 * 4096).astype(np.float32) * np.float32(0.02)]
    for thresholds in (NF4_THRESHOLDS, FP4_THRESHOLDS, -FP4_THRESHOLDS):
        around = np.concatenate([thresholds, np.nextafter(thresholds, np.float32(2)), np.nextafter(thresholds, np.float32(-2))])
        for scale in (1, 2.0**-20, 2.0**30):
            block = np.resize(around, 4 * 32).astype(np.float32)
            block[::32] = 1
            parts.append(block * np.float32(scale))
    parts += [np.zeros(64, np.float32), np.full(32, -0.0, np.float32), np.full(32, -3, np.float32),
              rng.standard_normal(64).astype(np.float32) * np.float32(1e-39),
              rng.standard_normal(64).astype(np.float32) * np.float32(1e37),
              rng.standard_normal(37).astype(np.float32)]
    return np.concatenate(parts)


def one_zero(kind: str, codes: np.ndarray) -> np.ndarray:
    """FP4 has two zeros, 0 and 8. The CPU sorts its values, and which zero it takes is a matter of that sort."""
    if kind == "nf4":
        return codes
    high, low = codes >> 4, codes & 15
    return np.where(high == 8, 0, high) << 4 | np.where(low == 8, 0, low)


def make_vectors() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(7)
    x = make_input(rng)
    table = F.create_dynamic_map().numpy()
    out = {"x": x, "map": table}
    ordinary = 2 * 4096  # elements on which everybody agrees
    for kind in ("nf4", "fp4"):
        out[f"{kind}.map"] = F.get_4bit_type(kind, device="cpu").numpy()
        for size in BLOCK_SIZES:
            codes, absmax = cuda_quantize(kind, x, size)
            cpu, state = F.quantize_4bit(torch.from_numpy(x.copy()), blocksize=size, quant_type=kind)
            cpu = cpu.numpy().reshape(-1)
            assert (one_zero(kind, cpu)[:ordinary // 2] == one_zero(kind, codes)[:ordinary // 2]).all(), (kind, size)
            assert (state.absmax.numpy()[:ordinary // size] == absmax[:ordinary // size]).all()
            out |= {f"{kind}.{size}.codes": codes, f"{kind}.{size}.absmax": absmax}
            if size in (64, 4096):
                out |= {f"{kind}.{size}.cpu": cpu, f"{kind}.{size}.cpu_absmax": state.absmax.numpy()}
        codes, absmax = cuda_quantize(kind, x[:2048], 64)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            state = F.QuantState(torch.from_numpy(absmax), torch.Size([32, 64]), torch.from_numpy(out[f"{kind}.map"]), 64, kind, dtype)
            out[f"{kind}.values.{str(dtype)[6:]}"] = F.dequantize_4bit(torch.from_numpy(codes)[:, None], state)
    middles = ((table[:-1] + table[1:]) * np.float32(0.5)).astype(np.float32)
    for count in (1, 255, 256, 257, 700, "ties"):
        if count == "ties":
            pairs = np.stack([middles, -middles], 1).reshape(-1)
            absmax = np.concatenate([np.append(np.float32([1, -1]), pairs[i:i + 254]) for i in range(0, len(pairs), 254)])
        else:
            absmax = np.abs(rng.standard_normal(count) * 0.02 + 0.05).astype(np.float32)
        if count == 700:
            absmax[256:512] = absmax.mean()
        codes, scales, offset = cuda_nested(absmax, table)
        out |= {f"nested.{count}.x": absmax, f"nested.{count}.codes": codes, f"nested.{count}.absmax": scales,
                f"nested.{count}.offset": np.array([offset])}
        cpu, state = F.quantize_blockwise(torch.from_numpy(absmax - offset), blocksize=256)
        assert (state.absmax.numpy() == scales).all()
        out[f"nested.{count}.cpu"] = cpu.numpy()
        out[f"nested.{count}.values"] = F.dequantize_blockwise(torch.from_numpy(codes), F.QuantState(
            torch.from_numpy(scales), code=torch.from_numpy(table), blocksize=256, dtype=torch.float32)).numpy() + offset
    w = (rng.standard_normal((40, 77)) * 0.02).astype(np.float16)
    w[20:] = (w[20:] * 512).round() / 512  # many ties
    w[3], w[4], w[5, ::2] = 0, 6e-8, 65504
    w[6, :64] = (np.arange(64) + 0.5) / 127  # ties, as far as float16 has them
    w[6, 64] = 1
    codes, scales = cuda_int8(w)
    cpu, cpu_scales, _ = F.int8_vectorwise_quant(torch.from_numpy(w.copy()))
    rows = [i for i in range(40) if i != 3]
    assert (cpu.numpy()[rows] == codes[rows]).all() and (cpu_scales.numpy() == scales).all()
    out |= {"int8.x": w, "int8.codes": codes, "int8.scb": scales,
            "int8.values": F.int8_vectorwise_dequant(torch.from_numpy(codes), torch.from_numpy(scales)).numpy()}
    return {k: v if isinstance(v, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(v)) for k, v in out.items()}


# --- folders ----------------------------------------------------------------------------------------------------
FOUR = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
MODELS = {
    "llama-nf4": ("llama", FOUR),
    "llama-nf4-double": ("llama", FOUR | dict(bnb_4bit_use_double_quant=True)),
    "llama-fp4-storage": ("llama", FOUR | dict(bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage=torch.bfloat16)),
    "llama-int8": ("llama", dict(load_in_8bit=True)),
    "gpt2-nf4": ("gpt2", FOUR),
    "gpt2-int8": ("gpt2", dict(load_in_8bit=True)),
}


def make_base(family: str, path: str) -> None:
    torch.manual_seed(11)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=40, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False))
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, n_positions=16,
                                           bos_token_id=1, eos_token_id=2))
    model.to(torch.bfloat16).save_pretrained(path)


def dequantize(weight: bnb.nn.Params4bit) -> torch.Tensor:
    """By the torch code of bitsandbytes. Its AVX-512 code (csrc/cpu_ops.cpp, 0.50.2) takes absmax of the wrong block
    when the rows are no multiple of the block size: a relative error of 0.38 instead of 0.09 for a 32x48 matrix."""
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:
        absmax = F.dequantize_blockwise(absmax, state.state2) + state.offset
    return dequantize_4bit_compute(weight.data.view(torch.uint8).reshape(-1), absmax, state.code, state.blocksize,
                                   state.shape, state.dtype)


def make_models(out: str) -> None:
    for family in ("llama", "gpt2"):
        make_base(family, os.path.join(out, family))
    for name, (family, config) in MODELS.items():
        model = AutoModelForCausalLM.from_pretrained(
            os.path.join(out, family), quantization_config=BitsAndBytesConfig(**config), dtype=torch.bfloat16)
        model.save_pretrained(os.path.join(out, name))
        values = {}
        for module_name, module in model.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                values[module_name + ".weight"] = dequantize(module.weight)
            elif isinstance(module, bnb.nn.Linear8bitLt):
                values[module_name + ".weight"] = F.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
        # In the orientation that the family stores.
        if family == "gpt2":
            values = {k: v.T for k, v in values.items()}
        save_file({k: v.contiguous() for k, v in values.items()}, os.path.join(out, name + ".values.safetensors"))


def make(out: str) -> None:
    os.makedirs(out, exist_ok=True)
    save_file(make_vectors(), os.path.join(out, "vectors.safetensors"))
    make_models(out)
    for folder, _, files in os.walk(out):
        for file in files:
            if file == "generation_config.json":
                os.remove(os.path.join(folder, file))


def check(golden: str) -> int:
    """Makes everything again and names what differs. Different bits of the weights are a matter of torch's version."""
    bad = 0
    with tempfile.TemporaryDirectory() as made:
        make(made)
        for folder, _, files in os.walk(golden):
            for file in files:
                path = os.path.join(folder, file)
                other = os.path.join(made, os.path.relpath(path, golden))
                if file.endswith(".json"):
                    with open(path) as f, open(other) as g:
                        same = json.load(f) == json.load(g)
                else:
                    a, b = load_file(path), load_file(other)
                    same = a.keys() == b.keys() and all(
                        a[k].dtype == b[k].dtype and torch.equal(a[k].view(torch.uint8) if a[k].ndim else a[k],
                                                                 b[k].view(torch.uint8) if b[k].ndim else b[k]) for k in a)
                bad += not same
                print(("ok   " if same else "FAIL ") + os.path.relpath(path, golden))
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.path.join(HERE, "..", "golden", "bnb"))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        raise SystemExit(check(args.out) > 0)
    shutil.rmtree(args.out, ignore_errors=True)
    make(args.out)
