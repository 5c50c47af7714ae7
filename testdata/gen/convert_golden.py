"""Makes testdata/golden/convert: small model folders, and the GGUF files that llama.cpp's converter makes of them.

    python testdata/gen/convert_golden.py --llama-cpp DIR [--out DIR]

DIR is the source of llama.cpp 0.5.0; its converter is run as it is, with two exceptions. Settings come from config.json
alone: transformers would add its own defaults, which change with its version. And the name of the pre-tokenizer is the
one given here: the tokenizers are too small for a fingerprint. What both leave out is what a case is for.

Seeds are fixed; weights are noise.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import struct
import sys

import torch
from safetensors.torch import save_file

HIDDEN, FF, LAYERS, HEADS, KV, VOCAB = 16, 16, 2, 4, 2, 48


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def piece(text, score, kind):
    """One SentencePiece; kinds are those of sentencepiece_model.proto."""
    raw = text.encode()
    body = b"\x0a" + varint(len(raw)) + raw + b"\x15" + struct.pack("<f", score)
    if kind != 1:
        body += b"\x18" + varint(kind)
    return b"\x0a" + varint(len(body)) + body


def sentencepiece_model():
    pieces = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3)]
    pieces += [piece(t, -i - 0.5, 1) for i, t in enumerate(["\u2581the", "\u2581", "e", "t", "h", "\u00e9", "\u6211"])]
    pieces += [piece("user", -3, 4), piece("dead", -4, 5)]
    trainer = b"\x18\x02" + b"\x50\x01"  # some fields of trainer_spec, which nobody reads
    return b"".join(pieces) + b"\x12" + varint(len(trainer)) + trainer


def sentencepiece_files(**config):
    base = {
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>", "add_bos_token": True,
        "add_eos_token": False, "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True}, "1": {"content": "<s>", "special": True},
            "2": {"content": "</s>", "special": True}, "20": {"content": "<|im_start|>", "special": False},
            "21": {"content": "my\u2581word", "special": False}, "99": {"content": "far", "special": True},
        },
    }
    base.update(config)
    return {
        "tokenizer.model": sentencepiece_model(),
        "tokenizer_config.json": base,
        "added_tokens.json": {"<extra>": 22, "gone": 1000},
    }


def with_bytes():
    """A model with the 256 byte pieces, which come together with byte_fallback (field 35 of trainer_spec), and a vocabulary
    without anything added."""
    pieces = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3)]
    pieces += [piece(f"<0x{i:02X}>", 0, 6) for i in range(256)] + [piece("\u2581a", -1, 1), piece("<unused0>", -2, 1)]
    trainer = b"\x18\x02" + varint(35 << 3) + b"\x01"
    return {
        "tokenizer.model": b"".join(pieces) + b"\x12" + varint(len(trainer)) + trainer,
        "tokenizer_config.json": {"bos_token": "<s>", "add_eos_token": True, "added_tokens_decoder": {"260": {"content": "<unused0>"}}},
        "chat_template.json": {"chat_template": "from json"},
    }


def template_files(variant):
    """Post-processors and settings that contradict each other, for what is made of them."""
    files = bpe_files()
    tokenizer, settings = files["tokenizer.json"], files["tokenizer_config.json"]
    tokenizer["model"]["vocab"].update({"x": 13, " y": 14, "x y": 15, " yx": 16})
    tokenizer["model"]["merges"] = [["t", "h"], ["x", " y"], [" y", "x"]]
    for t in tokenizer["added_tokens"]:
        t["id"] += 4
    special = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}  # noqa: E731
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    ids = {f"<|{n}|>": {"id": f"<|{n}|>", "ids": [i], "tokens": [f"<|{n}|>"]} for n, i in (("endoftext", 17), ("im_start", 18), ("im_end", 19))}
    settings.clear()
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    post = None
    if variant == "pair":  # an end that the settings do not know; a separator between two texts; flags that are overruled
        start, end = special("<|im_start|>"), special("<|im_end|>")
        post = {"type": "TemplateProcessing", "single": [start, a, end], "pair": [start, a, end, b, end], "special_tokens": ids}
        settings.update({"bos_token": "<|endoftext|>", "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}, "add_bos_token": True,
                         "sep_token": "<|im_end|>", "mask_token": "<tool_call>"})
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}]}
    elif variant == "separator":  # in front of the second text, and nothing behind
        start = special("<|im_start|>")
        post = {"type": "TemplateProcessing", "single": [start, a], "pair": [start, a, special("<|im_end|>"), b], "special_tokens": ids}
        settings.update({"cls_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "add_bos_token": False})
        tokenizer["normalizer"] = {"type": "Lowercase"}
    elif variant == "other":  # a start that is neither
        start = special("<|im_start|>")
        post = {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": [start, a], "pair": [start, a, b], "special_tokens": ids}]}
        settings.update({"bos_token": "<|im_end|>", "cls_token": "<|endoftext|>", "add_prefix_space": False})
    else:
        post = {"type": "RobertaProcessing", "sep": ["<|im_end|>", 19], "cls": ["<|im_start|>", 18], "trim_offsets": True, "add_prefix_space": False}
        settings.update({"sep_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
        files["chat_template.jinja"] = "from jinja"
    tokenizer["post_processor"] = post
    return files


def bpe_files(regex=None, template=True, merges_as_pairs=False, ignore_merges=None, digits=False, **config):
    vocab = {t: i for i, t in enumerate(["!", "a", "b", "c", "t", "h", "e", "\u0120", "\u010a", "th", "the", "\u0120the", "\u0120a"])}
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("\u0120", "a")]
    added = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<tool_call>", False), ("two\u2581words", False)]
    tokens = [{"id": 13 + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": s}
              for i, (t, s) in enumerate(added)]
    pre = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex is None}
    if regex is not None:
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        pre = {"type": "Sequence", "pretokenizers": [split, pre]}
    if digits:
        pre = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, pre]}
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    post = {"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, first, b],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [13], "tokens": ["<|endoftext|>"]}}}
    merges = [list(m) for m in merges] if merges_as_pairs else [" ".join(m) for m in merges]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None, "pre_tokenizer": pre,
        "post_processor": post if template else None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges},
    }
    if ignore_merges is not None:
        tokenizer["model"]["ignore_merges"] = ignore_merges
    base = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "tokenizer_class": "PreTrainedTokenizerFast"}
    base.update(config)
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": base}


LLAMA_REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_REGEX = LLAMA_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")


def config(architecture, model_type, **more):
    base = {
        "architectures": [architecture], "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "vocab_size": VOCAB, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    }
    base.update(more)
    return {k: None if v == "null" else v for k, v in base.items() if v is not None}


def weights(dtype, head=None, biases=False, head_norms=False, experts=None, fused=False, shared=False, norms=("post_attention_layernorm",),
            tied=False, prefix="model.", kv=KV, layers=LAYERS, vocab=VOCAB, no_input_norm=False, wide_norms=False):
    head = head or HIDDEN // HEADS
    made = {}

    def put(name, *shape):
        made[name] = torch.randn(shape, generator=generator).to(dtype)

    generator = torch.Generator().manual_seed(7)
    put(prefix + "embed_tokens.weight", vocab, HIDDEN)
    put(prefix + "norm.weight", HIDDEN)
    if not tied:
        put("lm_head.weight", vocab, HIDDEN)
    for i in range(layers):
        layer = f"{prefix}layers.{i}."
        if not no_input_norm:
            put(layer + "input_layernorm.weight", HIDDEN)
        for n in norms:
            put(layer + n + ".weight", HIDDEN)
        for m, rows in (("q", HEADS * head), ("k", kv * head), ("v", kv * head)):
            put(f"{layer}self_attn.{m}_proj.weight", rows, HIDDEN)
            if biases:
                put(f"{layer}self_attn.{m}_proj.bias", rows)
        put(layer + "self_attn.o_proj.weight", HIDDEN, HEADS * head)
        if wide_norms:
            put(layer + "self_attn.q_norm.weight", HEADS * head)
            put(layer + "self_attn.k_norm.weight", kv * head)
        if head_norms:
            put(layer + "self_attn.q_norm.weight", head)
            put(layer + "self_attn.k_norm.weight", head)
        if experts is None:
            put(layer + "mlp.gate_proj.weight", FF, HIDDEN)
            put(layer + "mlp.up_proj.weight", FF, HIDDEN)
            put(layer + "mlp.down_proj.weight", HIDDEN, FF)
        elif experts == "mixtral":
            put(layer + "block_sparse_moe.gate.weight", 3, HIDDEN)
            for e in range(3):
                put(f"{layer}block_sparse_moe.experts.{e}.w1.weight", FF, HIDDEN)
                put(f"{layer}block_sparse_moe.experts.{e}.w2.weight", HIDDEN, FF)
                put(f"{layer}block_sparse_moe.experts.{e}.w3.weight", FF, HIDDEN)
        else:
            put(layer + "mlp.gate.weight", experts, HIDDEN)
            if fused:
                put(layer + "mlp.experts.gate_up_proj", experts, 2 * FF, HIDDEN)
                put(layer + "mlp.experts.down_proj", experts, HIDDEN, FF)
            else:
                for e in range(experts):
                    put(f"{layer}mlp.experts.{e}.gate_proj.weight", FF, HIDDEN)
                    put(f"{layer}mlp.experts.{e}.up_proj.weight", FF, HIDDEN)
                    put(f"{layer}mlp.experts.{e}.down_proj.weight", HIDDEN, FF)
        if shared:
            put(layer + "mlp.shared_expert_gate.weight", 1, HIDDEN)
            for m, shape in (("gate", (FF, HIDDEN)), ("up", (FF, HIDDEN)), ("down", (HIDDEN, FF))):
                put(f"{layer}mlp.shared_expert.{m}_proj.weight", *shape)
    return made


def noise(dtype, shapes):
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def phi3_weights(dtype, tied=False, layers=LAYERS):
    """Queries, keys and values in one matrix, and gates and ups."""
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for i in range(layers):
        for module, shape in (("input_layernorm", (HIDDEN,)), ("post_attention_layernorm", (HIDDEN,)), ("mlp.gate_up_proj", (2 * FF, HIDDEN)),
                              ("self_attn.qkv_proj", ((HEADS + 2 * KV) * head, HIDDEN)), ("self_attn.o_proj", (HIDDEN, HIDDEN)),
                              ("mlp.down_proj", (HIDDEN, FF))):
            shapes[f"model.layers.{i}.{module}.weight"] = shape
    return noise(dtype, shapes)


def starcoder2_weights(dtype):
    """One tied layer, with norms and matrices that have biases."""
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    layer, head = "model.layers.0.", HIDDEN // HEADS
    for module, shape in (("model.norm", (HIDDEN,)), (layer + "input_layernorm", (HIDDEN,)), (layer + "post_attention_layernorm", (HIDDEN,)),
                          (layer + "self_attn.q_proj", (HIDDEN, HIDDEN)), (layer + "self_attn.k_proj", (KV * head, HIDDEN)),
                          (layer + "self_attn.v_proj", (KV * head, HIDDEN)), (layer + "self_attn.o_proj", (HIDDEN, HIDDEN)),
                          (layer + "mlp.c_fc", (FF, HIDDEN)), (layer + "mlp.c_proj", (HIDDEN, FF))):
        shapes[module + ".weight"], shapes[module + ".bias"] = shape, shape[:1]
    return noise(dtype, shapes)


def gpt2_weights(dtype, prefix="", head=False, layers=LAYERS):
    """Matrices are stored as (in, out)."""
    shapes = {prefix + "wte.weight": (VOCAB, HIDDEN), prefix + "wpe.weight": (32, HIDDEN)}
    if head:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    modules = [(prefix + "ln_f", (HIDDEN,))]
    for i in range(layers):
        modules += [(f"{prefix}h.{i}.{m}", shape) for m, shape in (
            ("ln_1", (HIDDEN,)), ("ln_2", (HIDDEN,)), ("attn.c_attn", (HIDDEN, 3 * HIDDEN)), ("attn.c_proj", (HIDDEN, HIDDEN)),
            ("mlp.c_fc", (HIDDEN, 4 * HIDDEN)), ("mlp.c_proj", (4 * HIDDEN, HIDDEN)))]
    for module, shape in modules:
        shapes[module + ".weight"], shapes[module + ".bias"] = shape, shape[-1:]
    return noise(dtype, shapes)


def bert_weights(dtype, prefix="", norm=("weight", "bias"), head=False, layers=LAYERS):
    shapes = {f"{prefix}embeddings.{t}_embeddings.weight": (rows, HIDDEN) for t, rows in (("word", VOCAB), ("position", 32), ("token_type", 2))}
    modules = [("pooler.dense", (HIDDEN, HIDDEN))]
    norms = ["embeddings.LayerNorm"]
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        modules += [(layer + "attention." + m, (HIDDEN, HIDDEN)) for m in ("self.query", "self.key", "self.value", "output.dense")]
        modules += [(layer + "intermediate.dense", (2 * FF, HIDDEN)), (layer + "output.dense", (HIDDEN, 2 * FF))]
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
    for module, shape in modules:
        shapes[prefix + module + ".weight"], shapes[prefix + module + ".bias"] = shape, shape[:1]
    for module in norms:
        shapes |= {f"{prefix}{module}.{n}": (HIDDEN,) for n in norm}
    if head:
        shapes |= {"cls.predictions.bias": (VOCAB,), "cls.predictions.transform.dense.weight": (HIDDEN, HIDDEN),
                   "cls.predictions.transform.LayerNorm.gamma": (HIDDEN,), "cls.seq_relationship.weight": (2, HIDDEN)}
    return noise(dtype, shapes)


def phi3_files():
    """SentencePiece, and tokens added in each of the three places; the last one counts."""
    files = sentencepiece_files(chat_template="phi")
    settings = files["tokenizer_config.json"]
    del settings["added_tokens_decoder"]["99"]
    settings["tokenizer_class"] = "LlamaTokenizer"
    files["tokenizer.json"] = {"version": "1.0", "normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": [
        {"id": 2, "content": "</s>", "special": False, "normalized": False}, {"id": 21, "content": "my\u2581word", "special": True, "normalized": False},
        {"id": 30, "content": "<|end|>", "special": False, "normalized": False}]}
    return files


def fallback_files():
    """SentencePiece in the form of the tokenizers library alone, with tokens added within and behind the model's."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "the"), ("t", "he"), ("e", "e")]
    tokens += ["\u2581t", "he", "\u2581the", "the", "ee", "\u2581", "e", "t", "h", "\u00e9", "<|x|>"]
    added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (269, "<|x|>", False), (270, "<|im_start|>", True), (271, "my\u2581word", False)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": s} for i, t, s in added],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                           {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                  "byte_fallback": True, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [" ".join(m) for m in merges]},
    }
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": ["<|im_start|>"], "add_bos_token": True,
                "tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def wordpiece_files(pooling, **normalizer):
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "##b", "##s", "\u00e9", "\u6211", "!", "#", "##", "[added]"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    added = [{"id": words.index(t), "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": t in special}
             for t in special + ["[added]"]]
    cls, sep = ({"SpecialToken": {"id": t, "type_id": 0}} for t in ("[CLS]", "[SEP]"))
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True, **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [cls, a, sep], "pair": [cls, a, sep, b, sep], "special_tokens": {
            t: {"id": t, "ids": [words.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {t: i for i, t in enumerate(words)}},
    }
    settings = {t + "_token": f"[{t.upper()}]" for t in ("pad", "unk", "cls", "sep", "mask")} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings, "1_Pooling/config.json": pooling, "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]}


# Settings that only decoders with rotary embeddings have.
UNROTATED = dict(rms_norm_eps=None, rope_theta=None, num_key_value_heads=None)
GPT2 = dict(UNROTATED, hidden_size=None, intermediate_size=None, num_hidden_layers=None, num_attention_heads=None, max_position_embeddings=None,
            n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=32, n_ctx=32, n_inner="null", layer_norm_epsilon=1e-5, bos_token_id=13, eos_token_id=13)
BERT = dict(UNROTATED, max_position_embeddings=32, intermediate_size=2 * FF, layer_norm_eps=1e-12, type_vocab_size=2, hidden_act="gelu", bos_token_id=None, eos_token_id=None, pad_token_id=0)


AROUND = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
CARD = """---
license: apache-2.0
license_name:	fine
base_model: org-name/Some-Base-7B-v0.1
datasets:
- a/data-set
tags:
- chat
pipeline_tag: text-generation
language:
- en
- de
---
# A card
"""

# folder name, class, model_type, config, weights, files, file type, pre-tokenizer, sharded
CASES = [
    ("tiny-mistral-Instruct-v0.3", "MistralForCausalLM", "mistral", dict(sliding_window=64), dict(dtype=torch.bfloat16),
     {**sentencepiece_files(add_prefix_space=True, chat_template="{{ messages }}"), "README.md": CARD,
      "generation_config.json": {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True}},
     "auto", None, True),
    ("llama3-7b1-chat", "LlamaForCausalLM", "llama",
     dict(head_dim=8, rope_theta=100.0, tie_word_embeddings=True, eos_token_id=[15, 13], rope_scaling={
         "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
     dict(dtype=torch.float16, head=8, tied=True, biases=True), bpe_files(LLAMA_REGEX, merges_as_pairs=True), "auto", "llama-bpe", False),
    ("linear", "LlamaForCausalLM", "llama", dict(num_key_value_heads=HEADS, rope_scaling={"type": "linear", "factor": 2.0}),
     dict(dtype=torch.float32, kv=HEADS), sentencepiece_files(chat_template=[
         {"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}]), "f32", None, False),
    ("yarn", "Qwen2ForCausalLM", "qwen2", dict(rope_theta=None, rope_parameters={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6, "beta_fast": 16.0, "attention_factor": 0.8, "attn_factor": 0.7}),
     dict(dtype=torch.bfloat16, biases=True, tied=True), bpe_files(QWEN_REGEX, template=False, add_bos_token=False, add_prefix_space=True), "f16", "qwen2", False),
    ("qwen3", "Qwen3ForCausalLM", "qwen3", dict(head_dim=8), dict(dtype=torch.bfloat16, head=8, head_norms=True),
     bpe_files(QWEN_REGEX), "bf16", "qwen2", False),
    ("qwen2-moe", "Qwen2MoeForCausalLM", "qwen2_moe", dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=FF,
     shared_expert_intermediate_size=FF), dict(dtype=torch.bfloat16, biases=True, experts=3, shared=True), bpe_files(), "auto", "gpt-2", False),
    ("qwen3-moe", "Qwen3MoeForCausalLM", "qwen3_moe", dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=FF, head_dim=4),
     dict(dtype=torch.bfloat16, head_norms=True, experts=3, fused=True), bpe_files(QWEN_REGEX), "auto", "qwen2", False),
    ("mixtral", "MixtralForCausalLM", "mixtral", dict(num_local_experts=3, num_experts_per_tok=2),
     dict(dtype=torch.float16, experts="mixtral"), sentencepiece_files(), "bf16", None, True),
    *[(variant, "LlamaForCausalLM", "llama", dict(num_hidden_layers=1, num_key_value_heads=HEADS, is_causal=variant != "other", bos_token_id=1 if variant == "pair" else None,
       eos_token_id=None, pad_token_id=7, mask_token_id=999999), dict(dtype=torch.bfloat16, tied=True, layers=1, kv=HEADS),
       template_files(variant), "auto", "gpt-2", False) for variant in ("pair", "separator", "other", "roberta")],
    ("bytes", "MistralForCausalLM", "mistral", dict(num_hidden_layers=1, vocab_size=262, unk_token_id=5000, head_dim="null", rope_scaling="null"),
     dict(dtype=torch.bfloat16, tied=True, layers=1, vocab=262), with_bytes(), "auto", None, False),
    ("gemma", "GemmaForCausalLM", "gemma", dict(head_dim=8), dict(dtype=torch.float16, head=8), sentencepiece_files(), "auto", None, False),
    ("gemma2", "Gemma2ForCausalLM", "gemma2", dict(head_dim=8, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=16),
     dict(dtype=torch.bfloat16, head=8, norms=AROUND, tied=True), sentencepiece_files(), "auto", None, False),
    ("gemma3", "Gemma3ForCausalLM", "gemma3_text", dict(head_dim=8, rope_theta=None, sliding_window=16, rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}),
     dict(dtype=torch.bfloat16, head=8, norms=AROUND, head_norms=True, tied=True), sentencepiece_files(), "f32", None, False),
    ("smollm3", "SmolLM3ForCausalLM", "smollm3", dict(num_hidden_layers=1, no_rope_layer_interval=4), dict(dtype=torch.bfloat16, tied=True, layers=1),
     bpe_files(LLAMA_REGEX, template=False, ignore_merges=True, add_prefix_space=False), "auto", "llama-bpe", False),
    ("granite", "GraniteForCausalLM", "granite", dict(num_hidden_layers=1, head_dim=4, attention_multiplier=0.0625, embedding_multiplier=12.0,
     residual_multiplier=0.22, logits_scaling=8.0), dict(dtype=torch.bfloat16, tied=True, layers=1), bpe_files(template=False), "auto", "gpt-2", False),
    ("olmo3", "Olmo3ForCausalLM", "olmo3", dict(sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
     dict(dtype=torch.bfloat16, tied=True, norms=AROUND[::2], no_input_norm=True, wide_norms=True), bpe_files(QWEN_REGEX, template=False), "auto", "qwen2", False),
    ("starcoder2", "Starcoder2ForCausalLM", "starcoder2", dict(num_hidden_layers=1, rms_norm_eps=None, norm_epsilon=1e-5, sliding_window=64),
     starcoder2_weights(torch.bfloat16), bpe_files(digits=True, template=False), "auto", "starcoder", False),
    ("Phi-3-mini-128k-instruct", "Phi3ForCausalLM", "phi3", dict(num_hidden_layers=1, sliding_window=64, original_max_position_embeddings=32, rope_scaling={
        "type": "su", "long_factor": [1.5, 4.25], "short_factor": [1.05, 2]}), phi3_weights(torch.bfloat16, layers=1), phi3_files(), "auto", None, True),
    ("phi4", "Phi3ForCausalLM", "phi3", dict(num_hidden_layers=1, sliding_window="null", original_max_position_embeddings=128, partial_rotary_factor=0.5, rope_scaling="null"),
     phi3_weights(torch.float16, tied=True, layers=1), bpe_files(LLAMA_REGEX, tokenizer_class="GPT2Tokenizer"), "f16", "llama-bpe", False),
    ("phi3-yarn", "Phi3ForCausalLM", "phi3", dict(num_hidden_layers=1, rope_theta=None, rope_parameters={
        "rope_type": "yarn", "long_factor": [1.5], "short_factor": [1.25], "rope_theta": 5e4, "original_max_position_embeddings": 48,
        "partial_rotary_factor": 0.5}), phi3_weights(torch.bfloat16, layers=1), phi3_files(), "bf16", None, False),
    ("gpt2", "GPT2LMHeadModel", "gpt2", dict(GPT2, n_layer=1), gpt2_weights(torch.float32, layers=1), bpe_files(), "auto", "gpt-2", False),
    ("gpt2-head", "GPT2LMHeadModel", "gpt2", dict(GPT2, n_layer=1, tie_word_embeddings=False), gpt2_weights(torch.bfloat16, "transformer.", head=True, layers=1),
     bpe_files(), "auto", "gpt-2", True),
    ("bert-mean", "BertModel", "bert", dict(BERT, num_hidden_layers=1), bert_weights(torch.bfloat16, layers=1), wordpiece_files({"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}),
     "f16", "jina-v2-en", False),
    ("bert-cls", "BertForMaskedLM", "bert", dict(BERT, num_hidden_layers=1), bert_weights(torch.float16, "bert.", ("gamma", "beta"), head=True, layers=1),
     wordpiece_files({"pooling_mode": "cls"}, lowercase=False, strip_accents=False), "auto", "jina-v2-en", False),
    ("fallback", "MistralForCausalLM", "mistral", dict(num_hidden_layers=1, vocab_size=272), dict(dtype=torch.bfloat16, tied=True, layers=1, vocab=272),
     fallback_files(), "auto", None, False),
]


def write_model(folder, case):
    name, architecture, model_type, settings, made, files, _, _, sharded = case
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(architecture, model_type, **settings), indent=1))
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        else:
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1))
    tensors = weights(**made) if "dtype" in made else made
    if not sharded:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, index = sorted(tensors), {}
    for i in range(2):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        part = names[i::2]
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        index.update({n: file for n in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": index}, indent=0))


def convert(llama_cpp, folder, out, outtype, pre):
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    sys.path.insert(0, str(llama_cpp))
    import conversion.base as base
    import gguf
    from conversion import get_model_class

    def refuse(*_, **__):
        raise ValueError("settings come from config.json")

    base.AutoConfig = type("NoDefaults", (), {"from_pretrained": staticmethod(refuse)})
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    types = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "bf16": gguf.LlamaFileType.MOSTLY_BF16,
             "auto": gguf.LlamaFileType.GUESSED}
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    with torch.inference_mode():
        get_model_class(architecture)(folder, types[outtype], out).write()


MODEL_IDS = [
    "hf", "tiny-llama", "Llama-3.2-1B-Instruct", "meta-llama/Llama-2-7b-hf", "mistralai/Mixtral-8x7B-v0.1", "bloom-7b1", "Qwen2.5-0.5B",
    "./local", "a sentence of words", "some--dashes-", "gpt2", "Phi-3-mini-128k-instruct", "org/model-13B-chat-v1.5-GPTQ-fp16", "v1-model-2",
    "name-1.1b-small", "x-xl", "7B", "model-Q4_K", "yi-34b-200K", "TinyLlama-1.1B-Chat-v1.0", "model-lora-8bit", "iter5-x", "3-b",
]


def model_ids(llama_cpp):
    """What the converter reads from names, for a model of 1.5 billion parameters and for one of unknown size."""
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    from gguf import Metadata

    lines = []
    for total in (0, 1_500_000_000):
        for name in MODEL_IDS:
            parts = Metadata.get_model_id_components(name, total)
            title = Metadata.id_to_title(parts[0]) if parts[0] else ""
            lines.append("\t".join([str(total), name, title] + [p or "" for p in parts]) + "\n")
    return "".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "golden" / "convert")
    args = parser.parse_args()
    cases = []
    for case in CASES:
        folder = args.out / "models" / case[0]
        shutil.rmtree(folder, ignore_errors=True)
        write_model(folder, case)
        expected = args.out / "expected" / (case[0] + ".gguf")
        expected.parent.mkdir(exist_ok=True)
        convert(args.llama_cpp, folder, expected, case[6], case[7])
        cases.append({"name": case[0], "type": case[6], "pre": case[7] or ""})
    (args.out / "model_ids.tsv").write_text(model_ids(args.llama_cpp))
    (args.out / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
