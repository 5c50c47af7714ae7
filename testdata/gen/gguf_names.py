"""Writes what llama.cpp calls the tensors of model families, for formats/arch.

    python testdata/gen/gguf_names.py --gguf-py LLAMA_CPP/gguf-py > testdata/golden/convert/names.tsv

LLAMA_CPP is the source of llama.cpp 0.5.0. Each line has an architecture of config.json, a tensor of Hugging Face and
its name in GGUF. Experts are renamed by the converter's code before the table is asked: the name it asks for is given
here beside the tensor's.
"""

from __future__ import annotations

import argparse
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--gguf-py", required=True)
sys.path.insert(0, parser.parse_args().gguf_py)

import gguf  # noqa: E402

LAYER = "model.layers.3."


def put(architecture, arch, names):
    table = gguf.get_tensor_name_map(arch, 4)
    for name in names:
        tensor, asked = name if isinstance(name, tuple) else (name, name)
        mapped = table.get_name(asked, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            sys.exit(f"{architecture}: no name for {asked}")
        print(architecture, tensor, mapped, sep="\t")


def layer(*modules):
    return [LAYER + m + ".weight" for m in modules]


A = gguf.MODEL_ARCH
EDGES = ["model.embed_tokens.weight", "model.norm.weight"]
HEAD = ["lm_head.weight"]
ATTENTION = layer("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
BIASES = [LAYER + "self_attn." + m + ".bias" for m in ("q_proj", "k_proj", "v_proj")]
GATED = layer("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
AFTER = layer("post_attention_layernorm")
AROUND = layer("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
HEAD_NORMS = layer("self_attn.q_norm", "self_attn.k_norm")
MIXTRAL = layer("block_sparse_moe.gate") + [
    (f"{LAYER}block_sparse_moe.experts.2.{w}.weight", f"layers.3.feed_forward.experts.{w}.weight") for w in ("w1", "w2", "w3")
]
QWEN_EXPERTS = layer("mlp.gate") + [
    (f"{LAYER}mlp.experts.2.{w}.weight", f"{LAYER}mlp.experts.{w}.weight") for w in ("gate_proj", "up_proj", "down_proj")
] + [(f"{LAYER}mlp.experts.down_proj", f"{LAYER}mlp.experts.down_proj.weight")]
SHARED = layer("mlp.shared_expert_gate", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj")

put("LlamaForCausalLM", A.LLAMA, EDGES + HEAD + ATTENTION + BIASES + GATED + AFTER + MIXTRAL)
put("Qwen2ForCausalLM", A.QWEN2, EDGES + HEAD + ATTENTION + BIASES + GATED + AFTER)
put("Qwen2MoeForCausalLM", A.QWEN2MOE, EDGES + HEAD + ATTENTION + BIASES + AFTER + QWEN_EXPERTS + SHARED)
put("Qwen3ForCausalLM", A.QWEN3, EDGES + HEAD + ATTENTION + GATED + AFTER + HEAD_NORMS)
put("Qwen3MoeForCausalLM", A.QWEN3MOE, EDGES + HEAD + ATTENTION + AFTER + HEAD_NORMS + QWEN_EXPERTS)
put("GemmaForCausalLM", A.GEMMA, EDGES + ATTENTION + GATED + AFTER)
put("Gemma2ForCausalLM", A.GEMMA2, EDGES + ATTENTION + GATED + AROUND)
put("Gemma3ForCausalLM", A.GEMMA3, EDGES + HEAD + ATTENTION + GATED + AROUND + HEAD_NORMS)
put("Phi3ForCausalLM", A.PHI3, EDGES + HEAD + AFTER + layer("input_layernorm", "self_attn.qkv_proj", "self_attn.o_proj",
    "mlp.gate_up_proj", "mlp.down_proj"))
both = (".weight", ".bias")
put("SmolLM3ForCausalLM", A.SMOLLM3, EDGES + HEAD + ATTENTION + BIASES + GATED + AFTER)
put("GraniteForCausalLM", A.GRANITE, EDGES + HEAD + ATTENTION + BIASES + GATED + AFTER)
put("Olmo2ForCausalLM", A.OLMO2, EDGES + HEAD + ATTENTION[1:] + GATED + HEAD_NORMS + layer("post_attention_layernorm", "post_feedforward_layernorm"))
put("Starcoder2ForCausalLM", A.STARCODER2, EDGES + HEAD + ATTENTION + BIASES + AFTER + layer("mlp.c_fc", "mlp.c_proj") + [LAYER + "mlp.c_fc.bias"])
put("GPT2LMHeadModel", A.GPT2, HEAD + ["transformer.wte.weight", "transformer.wpe.weight"] + ["transformer.ln_f" + s for s in both] + [
    f"transformer.h.3.{m}{s}" for m in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj") for s in both
])
put("BertModel", A.BERT, ["embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight",
    "embeddings.position_embeddings.weight"] + ["embeddings.LayerNorm" + s for s in both] + [
    f"encoder.layer.3.{m}{s}" for m in ("attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    for s in both
])
