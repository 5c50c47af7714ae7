"""Golden data for quant/mix: which tensor gets which type, told by llama.cpp's quantizer.

    python testdata/gen/ggufmix_golden.py --quantize BIN [--only MODEL]

BIN is llama-quantize of llama.cpp release v0.5.0. (The npm package node-llama-cpp 3.22.1 carries the source as
llama/gitRelease.bundle, and @node-llama-cpp/linux-x64 3.22.1 the libraries: tools/quantize/{quantize,main}.cpp
compiled against libllama-common, libllama, libggml and libggml-base is enough.) Writes, below
testdata/golden/ggufmix:

    mixes.json      models x file types x options: the type of every tensor (--dry-run)
    runs.json       real runs on small models: refused or done, and then the types and keys of the file
    patterns.json   which names a pattern of --tensor-type finds

How types are written: every kind of tensor of a model (a name with * for the number of the block) has one word, the
words are separated by spaces; a word is a letter for the type, or several with how often each stands in a row,
in the order of blocks: "m" or "4o24m4o". Letters are a-z and A-Q by the number of the type: a is F32, b F16.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import string
import struct
import subprocess
import sys
import tempfile

from gguf_golden import ARR, BOOL, F32, NUMBERS, STR, U32, array, entry, file, pair

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent / "golden" / "ggufmix"
TYPES = json.loads((HERE.parent / "golden" / "gguf" / "types.json").read_text())
NUMBER = {t["name"]: i for i, t in enumerate(TYPES) if t["type_size"]}
LETTERS = string.ascii_lowercase + string.ascii_uppercase

FILE_TYPES = """Q1_0 Q2_0 Q4_0 Q4_1 MXFP4_MOE Q5_0 Q5_1 IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ1_S IQ1_M TQ1_0 TQ2_0 Q2_K Q2_K_S
    IQ3_XXS IQ3_S IQ3_M IQ3_XS Q3_K_S Q3_K_M Q3_K_L IQ4_NL IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0 F16 BF16 F32
    COPY""".split()


class Model:
    """A model: its keys and its kinds of tensors, as (name, sizes, type, blocks), sizes with the row first."""

    def __init__(self, name, arch, kv, kinds):
        self.name, self.kinds = name, kinds
        self.kv = {"general.architecture": arch}
        self.kv.update({k if k.startswith("general.") else f"{arch}.{k}": v for k, v in kv.items()})

    def tensors(self):
        """Yields kind, name, sizes and type: blocks one after the other, as converters write them."""
        alone = [k for k in self.kinds if not k[3]]
        for k in alone:
            yield k[0], k[0], k[1], k[2]
        count = max((b + 1 for k in self.kinds for b in k[3]), default=0)
        for b in range(count):
            for k in self.kinds:
                if b in k[3]:
                    yield k[0], k[0].replace("*", str(b)), k[1], k[2]

    def write(self, path, values=False):
        keys = []
        for key, v in self.kv.items():
            if isinstance(v, list):
                keys.append(array(key, U32, v))
            else:
                keys.append(pair(key, {str: STR, float: F32, bool: BOOL, int: U32}[type(v)], v))
        entries, offset = [], 0
        for _, name, sizes, t in self.tensors():
            entries.append(entry(name, sizes, NUMBER[t], offset))
            n = TYPES[NUMBER[t]]["type_size"]
            for s in sizes:
                n *= s
            offset += -(-n // TYPES[NUMBER[t]]["block_size"] // 32) * 32
        head = file(keys, entries)
        path.write_bytes(head)
        if not values:
            os.truncate(path, len(head) + offset)  # zeros
            return
        # No NaN or infinity in any type, and nothing that overflows binary16: bytes from 0x20 to 0x3f, with and
        # without the highest bit, which in MXFP4 is not always a sign.
        rng = random.Random(1)
        top = 1 if any(k[2] == "mxfp4" for k in self.kinds) else 2
        with open(path, "ab") as f:
            f.write(bytes(rng.randrange(32, 64) | rng.randrange(top) << 7 for _ in range(offset)))

    def json(self):
        kinds = [[n, list(s), t] + ([blocks_text(b)] if b else []) for n, s, t, b in self.kinds]
        order = [name for _, name, _, _ in self.tensors()]
        return {"name": self.name, "kv": list(self.kv.items()), "kinds": kinds, "tensors": len(order)}


def blocks_text(blocks):
    """range(0, 4) is "0-3"; any other set is a list."""
    blocks = list(blocks)
    if blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}-{blocks[-1]}"
    return ",".join(map(str, blocks))


def base(n_embd, n_ff, layers, heads, kv, **more):
    """The keys that all architectures need."""
    keys = {"context_length": 64, "embedding_length": n_embd, "block_count": layers, "feed_forward_length": n_ff,
            "attention.head_count": heads, "attention.head_count_kv": kv, "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5}
    keys.update({k.replace("__", "."): v for k, v in more.items()})
    return keys


def dense(n_embd, n_ff, layers, tied=False, gate=True, fused=False, t="f16", embd=None, kv=64, shape3=None):
    """The tensors of a decoder; shape3 is the number of experts if the feed-forward network is stacked."""
    b = range(layers)
    ffn = (lambda rows, cols: [rows, cols, shape3]) if shape3 else (lambda rows, cols: [rows, cols])
    tail = "_exps.weight" if shape3 else ".weight"
    kinds = [("token_embd.weight", [n_embd, 128], embd or t, ()), ("output_norm.weight", [n_embd], "f32", ())]
    if not tied:
        kinds.append(("output.weight", [n_embd, 128], t, ()))
    kinds += [("blk.*.attn_norm.weight", [n_embd], "f32", b), ("blk.*.attn_output.weight", [n_embd, n_embd], t, b)]
    if fused:
        kinds += [("blk.*.attn_qkv.weight", [n_embd, n_embd + 2 * kv], t, b), ("blk.*.attn_qkv.bias", [n_embd + 2 * kv], "f32", b)]
    else:
        kinds += [(f"blk.*.attn_{p}.weight", [n_embd, n_embd if p == "q" else kv], t, b) for p in "qkv"]
    if shape3:
        kinds.append(("blk.*.ffn_gate_inp.weight", [n_embd, shape3], "f32", b))
    if gate:
        kinds.append((f"blk.*.ffn_gate{tail}", ffn(n_embd, n_ff), t, b))
    kinds += [(f"blk.*.ffn_up{tail}", ffn(n_embd, n_ff), t, b), (f"blk.*.ffn_down{tail}", ffn(n_ff, n_embd), t, b)]
    return kinds


def odd_names():
    """Names and shapes that rules about names look at, and those that they nearly do."""
    protected = """blk.0.ffn_gate_inp.weight blk.0.ffn_gate_tid2eid.weight blk.0.altup_proj.weight blk.0.laurel_l.weight
        per_layer_model_proj.weight position_embd.weight token_types.weight blk.0.ssm_conv1d.weight blk.0.ssm_conv1d_q.weight
        blk.0.shortconv.conv.weight blk.0.indexer.k_proj.weight blk.0.indexer.q_proj.weight blk.0.attn_rel_b.weight
        v.position_embd.weight v.sam.pos_embd.weight v.sam.neck.0.weight v.sam.net_2.weight v.blk.0.rel_pos_h.weight
        v.patch_embd.weight mm.patch_merger.weight a.rvq.codebook.weight mm.a.code_embd.weight blk.0.attn_q_norm.weight
        """.split()
    mixes = "first w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2 decay_w1 decay_w2 lerp_fused".split()
    protected += [f"blk.0.time_mix_{m}.weight" for m in mixes]
    near = """blk.0.time_mix_key.weight blk.0.time_mix_w3.weight blk.0.ffn_gate_inp_shexp.weight blk.0.ssm_in.weight
        blk.0.shortconv.in_proj.weight blk.0.indexer.attn_k.weight blk.0.attn_norm_2.weight xposition_embd.weight
        position_embd_2.weight token_types2.weight v.token_types.weight norm.weight blk.0.rel_position.weight
        sam_neck.weight patch_embd.weight blk.0.attn_q.weight blk.0.attn_q.bias blk.0.attn_q.weight_scale
        blk.0.attn_q.weight.weight blk.0.attn_qkv.weight blk.0.attn_kv_b.weight blk.0.attn_kv_a_mqa.weight blk.0.attn_k_b.weight
        blk.0.attn_v_b.weight blk.0.attn_output.weight blk.0.attn_output_2.weight blk.0.attn_out.weight
        blk.0.ffn_gate_up_exps.weight blk.0.ffn_up_gate.weight blk.0.ffn_down_gate.weight blk.0.ffn_down_shexp.weight
        blk.0.ffn_gated.weight v.blk.0.attn_v.weight xoutput.weight output.weight2 outputs.weight output_2.weight
        token_embd2.weight per_layer_token_embd.weight dec.token_embd.weight cls.weight weight aweight abcde abcd abcdef
        weigh weightx.y q weight.bias x.weight.weigh""".split()
    kinds = [("token_embd.weight", [256, 32], "f16", ()), ("output.weight", [256, 32], "f16", ())]
    kinds += [(n, [256, 32], "f16", ()) for n in protected + near]
    shapes = {"vec.weight": [256], "row.weight": [256, 1], "flat.weight": [256, 1, 1], "mid.weight": [256, 1, 2],
              "deep.weight": [256, 1, 1, 2], "cube.weight": [256, 2, 3], "one.weight": [1, 256], "hyper.weight": [256, 2, 2, 2]}
    kinds += [(f"shape.{n}", s, "f16", ()) for n, s in shapes.items()]
    return kinds


def odd_order():
    """Names whose place in the file depends on how a number is read."""
    names = """blk.0.a.weight blk.1.a.weight blk.10.a.weight blk.2.a.weight blk.02.b.weight blk.+3.a.weight blk.-1.a.weight blk.-7.a.weight
        blk.5 blk.5x.a.weight blk..a.weight blk.x.a.weight blkk.1.a.weight Blk.1.a.weight blk.4294967297.a.weight
        blk.2147483648.a.weight blk.99999999999999999999.a.weight blk.-99999999999999999999.a.weight zzz.weight aaa.weight
        blk.1.B.weight blk.1.a_b.weight blk.1.a.bias blk.1.a.weight2 blk.+.a.weight blk.-.a.weight blk.0x1.a.weight
        blk.3.a.weight blk.-0.a.weight blk.1 blk.""".split() + ["blk. 4.a.weight", "blk.\t4.b.weight"]
    return [(n, [32, 2], "f16", ()) for n in names]


def sample(name, arch, n_embd, n_ff, layers, heads, kv, tied=False, gate=True, fused=False, shape3=None, **more):
    """A decoder with norms before both halves of a block and heads of one size."""
    kinds = dense(n_embd, n_ff, layers, tied, gate, fused, shape3=shape3, kv=kv * n_embd // heads)
    kinds.append(("blk.*.ffn_norm.weight", [n_embd], "f32", range(layers)))
    return Model(name, arch, base(n_embd, n_ff, layers, heads, kv, **more), kinds)


def models():
    yield sample("llama-gqa4-28", "llama", 512, 1024, 28, 8, 2)
    yield sample("llama-mha-13", "llama", 512, 1024, 13, 8, 8)
    yield sample("llama-gqa-80", "llama", 512, 768, 80, 8, 1)
    yield sample("mixtral-8x-6", "llama", 512, 512, 6, 8, 2, shape3=8, expert_count=8, expert_used_count=2)
    yield sample("qwen2-896-11-tied", "qwen2", 896, 4864, 11, 14, 2, tied=True)
    yield sample("gpt2-7", "gpt2", 512, 2048, 7, 8, 8, tied=True, gate=False, fused=True)
    yield Model("llama-17", "llama", base(256, 512, 17, 4, 1), dense(256, 512, 17))
    yield Model("llama-tied-32", "llama", base(256, 512, 32, 8, 4), dense(256, 512, 32, tied=True))
    yield Model("llama-80", "llama", base(256, 512, 80, 8, 2), dense(256, 512, 80))
    yield Model("llama-80-mha", "llama", base(256, 512, 80, 8, 8), dense(256, 512, 80))
    yield Model("llama-81-nextn", "llama", base(256, 512, 81, 8, 1, nextn_predict_layers=1), dense(256, 512, 81))
    yield Model("llama-1", "llama", base(256, 256, 1, 4, 4), dense(256, 256, 1))
    yield Model("llama-shared-by-3", "llama", base(384, 384, 9, 6, 2), dense(384, 512, 9, kv=128))
    yield Model("llama-heads-per-block", "llama", base(256, 512, 4, [4, 8, 8, 8], [1, 8, 8, 8]), dense(256, 512, 4))
    yield Model("llama-no-kv-heads", "llama", base(256, 512, 4, [0, 8, 8, 8], [0, 2, 2, 2]), dense(256, 512, 4))
    yield Model("llama-embed-80", "llama-embed", base(256, 256, 80, 8, 2), dense(256, 256, 80))
    yield Model("qwen2-80", "qwen2", base(256, 512, 80, 8, 8), dense(256, 512, 80))
    yield Model("deci-80", "deci", base(256, 512, 80, 8, 8), dense(256, 512, 80))
    yield Model("olmo-80", "olmo", base(256, 256, 80, 8, 8), dense(256, 256, 80))
    yield Model("jais2-68", "jais2", base(256, 256, 68, 8, 8), dense(256, 256, 68, gate=False))
    yield Model("nanbeige-6x3", "nanbeige", base(256, 256, 6, 4, 4, num_loops=3), dense(256, 256, 6))
    moe = {"expert_count": 8, "expert_used_count": 2}
    yield Model("mixtral-24", "llama", base(256, 512, 24, 8, 2, **moe), dense(256, 512, 24, shape3=8))
    yield Model("mixtral-80", "llama", base(256, 256, 80, 8, 2, **moe), dense(256, 256, 80, shape3=8))
    split = [k for k in dense(256, 256, 10) if "ffn" not in k[0]]
    split += [(f"blk.*.ffn_{p}.{e}.weight", [256, 256], "f16", range(10)) for e in range(8) for p in ("gate", "up", "down")]
    yield Model("mixtral-split-10", "llama", base(256, 256, 10, 4, 4, **moe), split)
    four = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 512}
    shared = [(f"blk.*.ffn_{p}_shexp.weight", [512, 256] if p == "down" else [256, 512], "f16", range(11)) for p in ("gate", "up", "down")]
    shared.append(("blk.*.ffn_gate_inp_shexp.weight", [256], "f32", range(11)))
    yield Model("qwen2moe-11", "qwen2moe", base(256, 512, 11, 4, 2, **four), dense(256, 512, 11, shape3=4) + shared)
    yield Model("falcon-35", "falcon", base(256, 1024, 35, 8, 1), dense(256, 1024, 35, gate=False, fused=True))
    yield Model("falcon-tied-9-moe", "falcon", base(256, 512, 9, 8, 8, **moe), dense(256, 512, 9, tied=True, gate=False, shape3=8))
    wpe = [("position_embd.weight", [256, 64], "f16", ())]
    yield Model("gpt2-12", "gpt2", base(256, 1024, 12, 4, 4), dense(256, 1024, 12, tied=True, gate=False, fused=True) + wpe)
    types = [("token_types.weight", [256, 2], "f16", ()), ("blk.*.layer_output_norm.weight", [256], "f32", range(6))]
    yield Model("bert-6", "bert", base(256, 1024, 6, 4, 4, attention__causal=False), dense(256, 1024, 6, tied=True, gate=False) + wpe + types)
    yield Model("phi3-21", "phi3", base(256, 512, 21, 4, 4), dense(256, 512, 21, gate=False, fused=True))
    gemma = [("blk.*.post_ffw_norm.weight", [256], "f32", range(18))]
    yield Model("gemma-18-tied", "gemma", base(256, 2048, 18, 8, 1), dense(256, 2048, 18, tied=True, t="bf16") + gemma)
    mla = [("blk.*.attn_kv_b.weight", [256, 256], "f16", range(13)), ("blk.*.attn_kv_a_mqa.weight", [256, 96], "f16", range(13)),
           ("blk.*.attn_k_b.weight", [64, 256, 4], "f16", range(13)), ("blk.*.attn_v_b.weight", [256, 64, 4], "f16", range(13))]
    deepseek = base(256, 512, 13, 4, 1, expert_count=16, expert_used_count=4, expert_feed_forward_length=256,
                    leading_dense_block_count=1, attention__kv_lora_rank=256, attention__q_lora_rank=64, expert_shared_count=1, expert_weights_scale=1.0)
    experts = [k for k in dense(256, 256, 13, shape3=16) if "attn_v" not in k[0] and "attn_k" not in k[0]]
    yield Model("deepseek2-13", "deepseek2", deepseek, experts + mla)
    ling = dict(deepseek, **base(256, 512, 7, 4, 2, attention__key_length_mla=64, attention__value_length_mla=64, ssm__conv_kernel=4,
                                 kda__head_dim=64, kda__gate_lower_bound=-5.0, expert_gating_func=2))
    yield Model("bailingmoe3-7", "bailingmoe3", ling, dense(256, 256, 7, shape3=16) + [(n, s, t, range(7)) for n, s, t, _ in mla])
    switch = base(256, 256, 23, 4, 1, logit_scale=1.0, adapters__count=1, adapters__lora_rank=8,
                  adapters__token_ids_activate=[1], adapters__token_ids_substitute=[2])
    yield Model("graniteswitch-23", "graniteswitch", switch, dense(256, 256, 23))
    yield Model("clip-5", "clip", {"clip.vision.block_count": 5, "general.type": "mmproj"},
                [("v.blk.*.ffn_down.weight", [512, 256], "f16", range(5)), ("v.blk.*.ffn_up.weight", [256, 512], "f16", range(5)),
                 ("v.blk.*.attn_q.weight", [256, 256], "f16", range(5)), ("v.blk.*.attn_out.weight", [256, 256], "f16", range(5)),
                 ("v.patch_embd.weight", [16, 16, 3, 256], "f16", ()), ("v.position_embd.weight", [256, 64], "f16", ())])
    # Rows that are not whole blocks: 288 of 32 but not 64, 320 of 64, 384 of 128, 100 of none.
    rows = [(f"blk.*.{part}.weight", [n, 64], "f16", range(9))
            for part, n in (("attn_q", 288), ("attn_k", 320), ("attn_v", 384), ("attn_output", 100), ("ffn_down", 352), ("ffn_up", 96),
                            ("ffn_gate", 512), ("attn_kv_b", 100))]
    yield Model("rows-9", "llama", base(288, 352, 9, 4, 2), rows + [("token_embd.weight", [288, 64], "f16", ()), ("output.weight", [320, 64], "f16", ())])
    yield Model("rows-tied-9", "llama", base(384, 352, 9, 8, 1), rows + [("token_embd.weight", [384, 64], "f16", ())])
    yield Model("rows-odd", "llama", base(50, 352, 9, 4, 2), rows + [("token_embd.weight", [50, 64], "f16", ()), ("output.weight", [33, 64], "f16", ())])
    sources = "f32 bf16 q4_0 q8_0 q4_K q6_K iq4_nl f16 q2_K".split()
    mixed = [("token_embd.weight", [256, 64], "q8_0", ()), ("output.weight", [256, 64], "q6_K", ())]
    mixed += [(f"blk.*.{part}.weight", [256, 64], sources[i], range(4)) for i, part in
              enumerate(["attn_q", "attn_k", "attn_v", "attn_output", "ffn_down", "ffn_up", "ffn_gate", "ffn_x", "attn_y"])]
    yield Model("quantized-4", "llama", base(256, 64, 4, 4, 2), mixed)
    yield Model("odd-names", "llama", base(256, 512, 1, 4, 4), odd_names())
    yield Model("odd-names-moe", "llama", base(256, 512, 4, 4, 4, **four),
                [("blk.*.ffn_down.weight", [256, 32], "f16", (0, 3)), ("blk.+1.ffn_up.weight", [256, 32], "f16", ()),
                 ("blk.2x.ffn_gate.weight", [256, 32], "f16", ()), ("blk.4294967297.ffn_down.weight", [256, 32], "f16", ())])
    for name in ("ffn_up.weight", "blk.4.ffn_down.weight", "blk.-1.ffn_gate.weight", "v.blk.0.ffn_up.weight"):
        yield Model(f"bad-layer {name}", "llama", base(256, 512, 4, 4, 4, **four), [(name, [256, 32], "f16", ())])
    altup = [("per_layer_token_embd.weight", [512, 64], "f16", ()), ("per_layer_model_proj.weight", [256, 512], "f16", ()),
             ("blk.*.laurel_l.weight", [256, 64], "f16", range(5)), ("blk.*.inp_gate.weight", [256, 64], "f16", range(5))]
    yield Model("per-layer-table-5", "llama", base(256, 512, 5, 4, 2), dense(256, 512, 5, tied=True) + altup)
    yield Model("per-layer-table-untied", "llama", base(256, 512, 5, 4, 2), dense(256, 512, 5) + altup)
    yield Model("odd-order", "llama", base(32, 32, 8, 4, 4), odd_order())


OPTIONS = [
    "--pure", "--leave-output-tensor", "--output-tensor-type q8_0", "--output-tensor-type f16", "--token-embedding-type q3_K",
    "--token-embedding-type bf16 --output-tensor-type q5_1", "--pure --output-tensor-type q8_0", "--pure --token-embedding-type q8_0",
    "--leave-output-tensor --output-tensor-type q4_0", "--tensor-type attn_v=q8_0", "--tensor-type blk\\.[0-3]\\.attn_v=q5_0",
    "--tensor-type blk\\.[1-9]?[02468]\\.ffn_down=q2_K --tensor-type ffn_=iq4_nl", "--tensor-type .*=q6_K", "--tensor-type _norm=q8_0",
    "--tensor-type output=q2_K --output-tensor-type q8_0", "--tensor-type token_embd=q4_1 --token-embedding-type q8_0",
    "--tensor-type ^token_embd=q4_1", "--tensor-type per_layer=q5_0 --token-embedding-type q8_0", "--pure --tensor-type ATTN_K=f16",
    "--tensor-type exps=mxfp4 --tensor-type blk\\.(1|3)\\.=nvfp4", "--tensor-type attn_(q|k)=q1_0", "--tensor-type ffn_up=q4_K",
    "--tensor-type ffn_up=f32 --tensor-type ffn_gate=bf16", "--tensor-type attn_q=iq2_xxs", "--token-embedding-type q1_0",
]
SAMPLE_OPTIONS = ["--pure", "--leave-output-tensor", "--output-tensor-type q8_0 --token-embedding-type f16",
                  "--tensor-type attn_v=q8_0 --tensor-type ffn_down=q5_0", "--tensor-type blk\\.[0-3]\\.ffn_up=q3_K"]
SAMPLES = ["llama-gqa4-28", "llama-mha-13", "llama-gqa-80", "mixtral-8x-6", "qwen2-896-11-tied", "gpt2-7"]
OPTION_TYPES = ["Q4_K_M", "Q3_K_M", "IQ2_M", "F16", "MXFP4_MOE", "Q4_0"]
OPTION_MODELS = ["llama-17", "llama-tied-32", "mixtral-24", "rows-9", "per-layer-table-5", "per-layer-table-untied", "falcon-35"]


def run(binary, model_path, file_type, args, imatrix=None, out=None):
    """Runs the tool and returns its exit code and what it printed."""
    command = [binary, *args.split()]
    if imatrix:
        command += ["--imatrix", imatrix]
    command += [model_path, out, file_type, "1"] if out else ["--dry-run", model_path, file_type]
    done = subprocess.run(list(map(str, command)), capture_output=True, env={**os.environ, "GGML_NO_BACKTRACE": "1"})
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


LINE = re.compile(r"^\[ *\d+/ *\d+\] (.*?) +- \[.*type = +(\S+), size = .*?(?:\((\S+)\))?$")


def dry_run(binary, model, path, file_type, args="", imatrix=None):
    """Returns the types by kind as text, or None if the tool refuses, and the names in the tool's order."""
    code, text = run(binary, path, file_type, args, imatrix)
    if code != 0:
        return None, None
    types, order = {}, []
    for line in text.splitlines():
        if m := LINE.match(line):
            types[m[1]] = m[3] or m[2]
            order.append(m[1])
    names = {}
    for kind, name, _, _ in model.tensors():
        names.setdefault(kind, []).append(name)
    words = []
    assert len(order) == sum(map(len, names.values())), (model.name, file_type, args, len(order), text[-2000:])
    for kind in (k[0] for k in model.kinds):
        letters = "".join(LETTERS[NUMBER[types[n]]] for n in names[kind])
        runs = [(m[0][0], len(m[0])) for m in re.finditer(r"(.)\1*", letters)]
        words.append(runs[0][0] if len(runs) == 1 else "".join(f"{n}{c}" for c, n in runs))
    return " ".join(words), order


def write_matrix(path, tensors):
    """An importance matrix with ones: weights per tensor as (name, columns, experts)."""
    keys = [pair("general.type", STR, "imatrix"), array("imatrix.datasets", STR, ["text"]), pair("imatrix.chunk_count", U32, 1),
            pair("imatrix.chunk_size", U32, 1)]
    entries, data = [], b""
    for name, columns, experts in tensors:
        for suffix, sizes in ((".in_sum2", [columns, experts]), (".counts", [1, experts])):
            entries.append(entry(name + suffix, sizes, NUMBER["f32"], len(data)))
            numbers = struct.pack("<f", 1.0) * (sizes[0] * sizes[1])
            data += numbers + bytes(-len(numbers) % 32)
    path.write_bytes(file(keys, entries, data))


def write_mixes(binary, only, folder):
    matrix = folder / "any.imatrix.gguf"
    write_matrix(matrix, [("of another model", 1, 1)])
    rows = []
    for model in models():
        if only and model.name != only:
            continue
        path = folder / "model.gguf"
        model.write(path)
        row, runs = model.json(), {}
        for t in FILE_TYPES:
            types, order = dry_run(binary, model, path, t)
            if order:
                row["order"] = order if model.name == "odd-order" else hashlib.sha256("\n".join(order).encode()).hexdigest()
            runs[t] = types
            weighed, _ = dry_run(binary, model, path, t, imatrix=matrix)
            if weighed != types:
                runs[t + " --imatrix"] = weighed
        if model.name in OPTION_MODELS:
            for options in OPTIONS:
                for t in OPTION_TYPES:
                    runs[f"{t} {options}"] = dry_run(binary, model, path, t, options)[0]
        row["runs"] = runs
        if model.name in SAMPLES:
            for options in SAMPLE_OPTIONS:
                runs[f"Q4_K_M {options}"] = dry_run(binary, model, path, "Q4_K_M", options)[0]
        refused = sum(v is None for v in runs.values())
        assert "order" in row or model.name.startswith("bad-"), f"{model.name} is always refused"
        print(model.name, len(runs), "runs,", refused, "refused")
        rows.append(row)
    if only:
        print(json.dumps(rows))
        return
    write_json("mixes.json", {"oracle": "llama-quantize --dry-run, release v0.5.0", "models": rows}, "models")


def write_json(name, content, rows_key):
    """One row per line, so that changes can be read."""
    rows = content.pop(rows_key)
    with open(OUT / name, "w") as f:
        f.write(json.dumps(content)[:-1] + f', "{rows_key}": [\n')
        f.write(",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]}\n")


def tiny(t="f16", extra=(), kv=None, **types):
    """A model of one block for real runs."""
    kinds = [(n, s, types.get(k, t), ()) for k, n, s in (
        ("embd", "token_embd.weight", [256, 8]), ("out", "output.weight", [256, 8]), ("norm", "output_norm.weight", [256]),
        ("q", "blk.0.attn_q.weight", [256, 8]), ("v", "blk.0.attn_v.weight", [256, 8]), ("down", "blk.0.ffn_down.weight", [256, 8]),
        ("up", "blk.0.ffn_up.weight", [256, 8])) if types.get(k, t)]
    needed = ("context_length", "embedding_length", "block_count", "attention.head_count", "attention.layer_norm_rms_epsilon")
    keys = {k: v for k, v in base(256, 256, 1, 4, 4).items() if k in needed}
    return Model("tiny", "llama", {**keys, **(kv or {})}, kinds + list(extra))


def real_runs():
    """Yields model, file type, options and the importance matrix as (name, columns, experts), or None."""
    full = [(n, 256, 1) for n in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight",
                                  "blk.0.ffn_down.weight", "blk.0.ffn_up.weight")]
    body = full[2:]
    for t in FILE_TYPES:
        yield tiny(norm="f32"), t, "", None
        yield tiny(norm="f32"), t, "", body
    yield tiny(norm="f32"), "IQ2_XS", "", full
    yield tiny(norm="f32"), "IQ2_XS", "", full[:1]
    for missing in range(4):
        yield tiny(norm="f32"), "IQ2_XXS", "", body[:missing] + body[missing + 1:]
        yield tiny(norm="f32"), "Q2_K_S", "", body[:missing] + body[missing + 1:]
    for t in ("iq2_xxs", "iq2_xs", "iq1_s", "iq2_s", "iq1_m", "iq3_xxs", "q2_K"):
        for option in ("--token-embedding-type", "--output-tensor-type"):
            yield tiny(norm="f32"), "Q4_K_M", f"{option} {t}", None
            yield tiny(norm="f32"), "Q4_K_M", f"{option} {t}", body
            yield tiny(norm="f32"), "Q4_K_M", f"{option} {t}", full
        yield tiny(norm="f32"), "Q4_K_M", f"--tensor-type attn_q={t}", None
        yield tiny(norm="f32"), "Q4_K_M", f"--tensor-type attn_q={t}", body
        yield tiny(norm="f32", q=t), "Q4_K_M", f"--tensor-type attn_q={t}", None  # would only be copied
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight"):
        for columns, experts in ((128, 1), (256, 2), (512, 1), (128, 2)):
            changed = [e for e in full if e[0] != name] + [(name, columns, experts)]
            for t in ("Q4_K_M", "F16", "IQ2_XS"):
                yield tiny(norm="f32", t="f32"), t, "", changed
    yield tiny(norm="f32"), "F16", "", [(n, 1, 1) for n, _, _ in full]  # nothing is converted, nothing is compared
    stack = [("blk.0.ffn_up_exps.weight", [256, 8, 3], "f16", ())]
    moe = {"expert_count": 3, "expert_used_count": 1}
    for columns, experts in ((256, 3), (768, 1), (256, 1), (256, 8), (3, 256)):
        yield tiny(norm="f32", kv=moe, extra=stack), "Q4_K_M", "", body + [("blk.0.ffn_up_exps.weight", columns, experts)]
    for t in ("q4_0", "q4_K", "q8_0", "iq4_nl", "tq1_0", "mxfp4", "q8_1", "q8_K", "i8", "i32", "i64", "f64", "bf16", "f32"):
        for options in ("", "--allow-requantize"):
            yield tiny(norm="f32", q=t), "Q5_K_M", options, None
            yield tiny(norm="f32", q=t), "F16", options, None
        yield tiny(norm="f32", q=t), "COPY", "", None
        if t not in ("q8_1", "q8_K", "i8", "i32", "i64", "f64"):  # are refused as options here
            yield tiny(norm="f32", q=t), "Q5_K_M", f"--tensor-type attn_q={t}", None
    yield tiny(norm="f32", t="q4_0"), "Q4_0", "", None
    yield tiny(norm="f32", t="q4_0", out="q6_K"), "Q4_0", "", None
    yield tiny(norm="f32", t="q4_0"), "Q4_0", "--leave-output-tensor", None
    yield tiny(norm="q4_0"), "Q4_0", "", None
    rows = [("blk.0.attn_k.weight", [96, 8], "f16", ()), ("blk.0.attn_output.weight", [100, 8], "f16", ())]
    for options in ("", "--pure", "--tensor-type attn_k=q4_0", "--tensor-type attn_k=nvfp4", "--tensor-type attn_k=q1_0",
                    "--tensor-type attn_output=q8_0", "--tensor-type attn_output=f32"):
        yield tiny(norm="f32", extra=rows), "Q4_K_M", options, None
    for n in (96, 100, 128):
        for t in ("q4_0", "q4_K", "f16", "q1_0"):
            table = [("token_embd.weight", [n, 8], "f16", ()), ("output.weight", [n, 8], "f16", ())]
            for option in ("--token-embedding-type", "--output-tensor-type"):
                yield tiny(norm="f32", embd="", out="", extra=table), "Q5_0", f"{option} {t}", None
                yield tiny(norm="f32", embd="", out="", extra=table[:1]), "Q5_0", f"{option} {t}", None
    yield tiny(norm="f32", extra=[("blk.0.x.weight", [256, 2, 2, 2], "f16", ())]), "Q4_K_M", "", None
    yield tiny(norm="f32", extra=[("blk.0.x.weight", [256, 2, 2, 2], "f16", ())]), "COPY", "", None
    for t in ("Q4_K_M", "COPY"):
        for kv in ({"general.file_type": 1}, {"general.file_type": 15, "general.quantization_version": 2}, {"general.file_type": 4711}):
            yield tiny(norm="f32", kv=kv), t, "", None
    for t in TYPES:
        if t["type_size"]:
            yield tiny(t=t["name"], norm="f32"), "COPY", "", None
    half = {"embd": "q4_0", "out": "q4_0", "q": "q8_0", "v": "q8_0"}
    yield tiny(t="f32", norm="f32", **half), "COPY", "", None
    yield tiny(t="", embd="q8_0", out="q4_0"), "COPY", "", None
    yield tiny(t="", embd="q4_0", out="q8_0"), "COPY", "", None


def read_header(path):
    """Returns the keys with their values, in order, and the types of the tensors by name."""
    data, at = path.read_bytes(), 24
    tensors, keys = struct.unpack_from("<QQ", data, 8)

    def number(code):
        nonlocal at
        at += struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, data, at - struct.calcsize("<" + code))[0]

    def text():
        nonlocal at
        n = number("Q")
        at += n
        return data[at - n:at].decode()

    def value(t):
        if t == ARR:
            t, n = number("I"), number("Q")
            return [value(t) for _ in range(n)]
        return text() if t == STR else number(NUMBERS[t])

    values = {}
    for _ in range(keys):
        key = text()
        values[key] = value(number("I"))
    types = {}
    for _ in range(tensors):
        name = text()
        for _ in range(number("I")):
            number("Q")
        types[name] = number("I")
        number("Q")
    return values, types


# The keys that the tool sets, which then are the last ones.
ENDS = ["general.quantization_version", "general.file_type"]


def write_runs(binary, folder):
    rows, models, matrices = [], [], []  # most runs are with the same few
    for model, file_type, options, matrix in real_runs():
        path, out, weights = folder / "model.gguf", folder / "out.gguf", folder / "weights.gguf"
        model.write(path, values=True)
        if matrix:
            write_matrix(weights, matrix)
        code, text = run(binary, path, file_type, options, weights if matrix else None, out)
        described = {k: v for k, v in model.json().items() if k != "name"}
        if described not in models:
            models.append(described)
        row = {"model": models.index(described), "type": file_type}
        if options:
            row["options"] = options
        if matrix:
            weights_of = {n: c * e for n, c, e in matrix}
            if weights_of not in matrices:
                matrices.append(weights_of)
            row["matrix"] = matrices.index(weights_of)
        if code != 0:
            row["refused"] = refusal(code, text)
            if m := re.search(r"offending tensor: (\S+)|Missing importance matrix for tensor (\S+)|tensor size \d+ for (\S+)", text):
                row["tensor"] = m[1] or m[2] or m[3]
        else:
            values, types = read_header(out)
            row["types"] = "".join(LETTERS[types[name]] for name, *_ in model.kinds)
            row["file_type"] = values["general.file_type"]
            assert values["general.quantization_version"] == 2
            keys = [k for k in values if not k.startswith("quantize.imatrix.")]  # set behind the two that count
            usual = [k for k in model.kv if k not in ENDS] + ENDS
            assert keys == usual, (keys, usual)
            if run(binary, out, "COPY", "")[0] != 0:  # types are checked against rows in debug builds only
                row["refused"] = "unreadable"
        rows.append(row)
    print(len(rows), "runs,", sum("refused" in r for r in rows), "refused,", sum(r.get("refused") == "abort" for r in rows), "of them by abort")
    content = {"oracle": "llama-quantize, release v0.5.0", "last_keys": ENDS, "models": models, "matrices": matrices, "runs": rows}
    write_json("runs.json", content, "runs")


def refusal(code, text):
    """Returns the tool's own words, or "abort" if it was ended by an assertion."""
    if code < 0:
        return "abort"
    return next((line.split("failed to quantize: ")[1].strip() for line in text.splitlines() if "failed to quantize: " in line), "usage")


PATTERN_NAMES = """token_embd.weight output.weight output_norm.weight blk.0.attn_q.weight blk.1.attn_k.weight blk.10.attn_v.weight
    blk.11.ffn_down.weight blk.12.ffn_up_exps.weight blk.2.ffn_gate_shexp.weight blk.21.attn_qkv.weight a.b-c.weight a_b+c.weight
    blk.3.x{2}.weight blk.4.[x].weight aab.weight abab.weight q.weight blk.5.d.weight blk.6.\\d.weight z.weight Ab.weight""".split()

PATTERNS = r"""attn_v attn_. ^attn ^blk output output$ weight$ ^output\.weight$ \.attn_[qk]\. attn_(q|k|v)\.weight blk\.[0-9]\.
    blk\.1[0-9]\. blk\.(1|2)\d?\. blk\.\d{2}\. blk\.\d{1,2}\.attn blk\.\d{3} ffn_(up|down)(_exps)? ffn_(?:up|gate) .* .+ x* a+b (ab)+\.
    (ab){2} a{2}b a{3} ^.{8}$ ^.{17}$ \bq\b \battn \w+_exps [[:digit:]][[:digit:]] [[:alpha:]]_[[:alpha:]] [^a-z._]+ [a-c-]c [\w]-
    [.]b [+] \+ \- - _ \_ \. \{ \[x\] \] [\]] [a\]] { } a{ a| |z (z|) ^ $ ^$ (^z|^q) z.*|q\. z+? z?? ATTN_V BLK\.0 Ab AB \d \s \w \b
    \D \S \W \B \A \z \Q \E \pN \x41 \x7a \u007a \cA \0 \1 (z)\1 \a \e \y \_w (?i)z (?=z)z (?!z) (?<n>z) (?P<n>z) [] [^] []z] [^]z] [z
    z] (z z) ( ) * + ? a** a*+ a{1,2}{2} a{2,1} a{1001} a{,2} [z-a] [a-] [-a] [a-c-e] [[:word:]] [[:foo:]] [[=a=]] [[.a.]] [:alpha:]
    [a[:digit:]] [[:digit:]{] [[:digit:](?] [[:digit:]^a] \\ \/ / , ; \, # ! @ % & ~ < > " ' ` \" z\ é""".split()


def write_patterns(binary, folder):
    """Every pattern on one model: found are the names that get its type instead of the file's."""
    model = Model("names", "llama", base(64, 64, 1, 4, 4), [(n, [64, 2], "f16", ()) for n in PATTERN_NAMES])
    path = folder / "model.gguf"
    model.write(path)
    rows = []
    for pattern in PATTERNS:
        command = [binary, "--pure", "--tensor-type", pattern + "=q5_0", "--dry-run", path, "Q4_0"]
        done = subprocess.run(list(map(str, command)), capture_output=True)
        row = {"pattern": pattern}
        if done.returncode == 0:
            types = [m for line in done.stdout.decode().splitlines() + done.stderr.decode().splitlines() if (m := LINE.match(line))]
            found = {m[1] for m in types if m[3] == "q5_0"}
            row["found"] = "".join("01"[n in found] for n in PATTERN_NAMES)
        rows.append(row)
    oracle = "llama-quantize --tensor-type, release v0.5.0 (GNU C++ library)"
    write_json("patterns.json", {"oracle": oracle, "names": PATTERN_NAMES, "patterns": rows}, "patterns")
    print(len(rows), "patterns,", sum("found" not in r for r in rows), "refused")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--quantize", type=pathlib.Path, required=True)
    p.add_argument("--only", help="mixes, runs, patterns, or a model of mixes.json, which is only printed")
    args = p.parse_args()
    binary = args.quantize.resolve()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if args.only not in ("runs", "patterns"):
            write_mixes(binary, args.only if args.only != "mixes" else None, folder)
        if args.only in (None, "runs"):
            write_runs(binary, folder)
        if args.only in (None, "patterns"):
            write_patterns(binary, folder)


if __name__ == "__main__":
    sys.exit(main())
