"""Compares GGUF files that loratool makes with transformers, by llama.cpp itself.

    python testdata/gen/convert_peers.py --loratool bin/loratool --llama DIR --libs LIBS

DIR is the source of llama.cpp 0.5.0, LIBS the folder of its libraries (npm's @node-llama-cpp/linux-x64 3.22.1). Needs
transformers, tokenizers, sentencepiece and g++.

For a tiny model of each family, with a tokenizer trained on a few lines in many languages: the file loads in llama.cpp,
which splits texts into the tokens that transformers finds, and computes transformers' logits, or of BERT the pooled
embedding. Files are F32. Values are sums of some hundred products: 1e-5 of the largest is far above rounding. Where an
activation is a GELU, llama.cpp takes it from a table of F16 (ggml-cpu/vec.h), where a last bit of float32 may move it by
2^-11 of itself: 2^-10 there, for it and for what its error becomes in the layers behind.

Scripts whose letters are taken apart when accents are stripped - Korean, Hindi, Thai - are split otherwise by llama.cpp
(llama-vocab.cpp: its table of decompositions lacks some, and its accents are not all marks), whatever the file says: BERT
without cases does not get them. A file whose name has phi3 in it must have the special tokens of the real one.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
LINES = """The quick brown fox jumps over the lazy dog, and they didn't think it's there; we'll see what I've told you'd said.
Größe, Straße und Übermut: die Äpfel fallen nicht weit vom Stamm. Ein Ofen für dreißig Brötchen.
L'été dernier, où étais-tu ? Ça n'a pas d'importance, déjà vu, à bientôt. Un café crème et une brioche.
El niño comió piñas en el jardín. ¿Qué más quieres? ¡Nada! La canción está aquí, mañana también.
Съешь ещё этих мягких французских булок, да выпей чаю. Нещо на български език.
我想在苹果工作。今天天气很好,我们去公园散步吧!你好,世界。日本語のテキストもあります。東京は大きい都市です。
안녕하세요 세계, 오늘은 날씨가 좋습니다. កាន់តែពិសេសអាច ไทยภาษา हिन्दी में पाठ مرحبا بالعالم שלום עולם
def f(x):\n    return x * 2 + 1  # 3 33 333 3333 33333\n\tif x == y: print("a_b", [1, 2.5, -3])
🚀 (normal) 😶 ✅ 🦙🦙 ------======= ``````""'' ......!!!!!!?????? <html><b>bold</b></html> https://example.org/a?b=c&d=e""".split("\n")
APART = "안녕하세요 ไทย हिन्दी שלום"
TEXTS = ["Hello world", "The quick brown fox", "it's I'LL we've 'told", "Größe café naïve Ångström", "12345 3.14 1,000,000 7",
         "我想在苹果工作1314天～", "Нещо на Български", "two  spaces   three\n\nlines\n\n\n\ttab \n end ", "🚀 😶 ✅🦙 é ẹ́",
         APART, "x == y; print(\"a_b\") # ----==== ......!!!", "unhappiness jumpsover thelazydog", "a"]
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
EXACT, TABLE = 1e-5, 2.0 ** -10
SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
             initializer_range=0.2)


def byte_level(folder, regex=None, bos=None):
    t = tokenizers.Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    t.pre_tokenizer = last if regex is None else pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(regex), "isolated"), last])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=600, special_tokens=["<|end|>"] + ([bos] if bos else []), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if bos:
        t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|end|>", bos_token=bos)


def word_pieces(folder, lowercase=True):
    t = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def pieces(folder, keep=True, front=True):
    """A SentencePiece model with bytes, and what transformers makes of it."""
    text = os.path.join(folder, "text")
    pathlib.Path(text).write_text("\n".join(LINES))
    sentencepiece.SentencePieceTrainer.train(input=text, model_prefix=os.path.join(folder, "tokenizer"), vocab_size=700, model_type="bpe", byte_fallback=True,
                                             character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=front,
                                             split_digits=True, minloglevel=2, num_threads=1)
    m = sentencepiece.SentencePieceProcessor(os.path.join(folder, "tokenizer.model"))
    vocab = {m.id_to_piece(i): i for i in range(m.get_piece_size())}
    order = {p: -m.get_score(i) for p, i in vocab.items() if not (m.is_unknown(i) or m.is_control(i) or m.is_byte(i))}
    merges = sorted((order[p], len(p[:k]), p[:k], p[k:]) for p in order for k in range(1, len(p)) if p[:k] in order and p[k:] in order)
    t = tokenizers.Tokenizer(models.BPE(vocab, [m[2:] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * front + [normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    os.remove(text)
    os.remove(os.path.join(folder, "tokenizer.vocab"))
    if not keep:
        os.remove(os.path.join(folder, "tokenizer.model"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True)


# name, configuration, model, tokenizer, error
CASES = [
    ("llama", transformers.LlamaConfig, dict(SIZES), "LlamaForCausalLM", pieces, EXACT),
    ("llama-fallback", transformers.LlamaConfig, dict(SIZES, tie_word_embeddings=True), "LlamaForCausalLM", lambda f: pieces(f, keep=False), EXACT),
    ("llama3", transformers.LlamaConfig, dict(SIZES, rope_theta=500000.0, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 64}), "LlamaForCausalLM", lambda f: byte_level(f, LLAMA3, "<|begin|>"), EXACT),
    ("phi4-tokens", transformers.LlamaConfig, dict(SIZES), "LlamaForCausalLM", lambda f: byte_level(f, LLAMA3), EXACT),
    ("mistral", transformers.MistralConfig, dict(SIZES, head_dim=32, sliding_window=None), "MistralForCausalLM", pieces, EXACT),
    ("mixtral", transformers.MixtralConfig, dict(SIZES, num_local_experts=4, num_experts_per_tok=2), "MixtralForCausalLM", pieces, EXACT),
    ("qwen2", transformers.Qwen2Config, dict(SIZES), "Qwen2ForCausalLM", lambda f: byte_level(f, QWEN), EXACT),
    ("qwen3", transformers.Qwen3Config, dict(SIZES, head_dim=32, tie_word_embeddings=True), "Qwen3ForCausalLM", lambda f: byte_level(f, QWEN), EXACT),
    ("qwen2-moe", transformers.Qwen2MoeConfig, dict(SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
     shared_expert_intermediate_size=96), "Qwen2MoeForCausalLM", lambda f: byte_level(f, QWEN), EXACT),
    ("qwen3-moe", transformers.Qwen3MoeConfig, dict(SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True),
     "Qwen3MoeForCausalLM", lambda f: byte_level(f, QWEN), EXACT),
    ("gemma", transformers.GemmaConfig, dict(SIZES, head_dim=16), "GemmaForCausalLM", lambda f: pieces(f, front=False), TABLE),
    ("gemma2", transformers.Gemma2Config, dict(SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=600, attn_implementation="eager"),
     "Gemma2ForCausalLM", lambda f: pieces(f, front=False), TABLE),
    ("gemma3", transformers.Gemma3TextConfig, dict(SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=600), "Gemma3ForCausalLM",
     lambda f: pieces(f, front=False), TABLE),
    ("smollm3", transformers.SmolLM3Config, dict(SIZES, num_hidden_layers=4, pad_token_id=0, use_sliding_window=False), "SmolLM3ForCausalLM",
     lambda f: byte_level(f, LLAMA3), EXACT),
    ("granite", transformers.GraniteConfig, dict(SIZES, attention_multiplier=0.0625, embedding_multiplier=12.0, residual_multiplier=0.22,
     logits_scaling=8.0), "GraniteForCausalLM", byte_level, EXACT),
    ("olmo2", transformers.Olmo2Config, dict(SIZES, pad_token_id=0), "Olmo2ForCausalLM", lambda f: byte_level(f, QWEN), EXACT),
    ("olmo3", transformers.Olmo3Config, dict(SIZES, num_hidden_layers=4, pad_token_id=0, sliding_window=8, attn_implementation="eager"), "Olmo3ForCausalLM",
     lambda f: byte_level(f, QWEN), EXACT),
    ("starcoder2", transformers.Starcoder2Config, dict(SIZES, sliding_window=None), "Starcoder2ForCausalLM", byte_level, TABLE),
    ("longrope", transformers.Phi3Config, dict(SIZES, max_position_embeddings=2048, original_max_position_embeddings=1024, sliding_window=600, pad_token_id=0,
     rope_scaling={"type": "longrope", "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}), "Phi3ForCausalLM",
     pieces, EXACT),
    ("gpt2", transformers.GPT2Config, dict(n_embd=64, n_layer=2, n_head=4, n_positions=512, n_ctx=512, initializer_range=0.2), "GPT2LMHeadModel", byte_level, TABLE),
    ("bert", transformers.BertConfig, dict(SIZES, num_key_value_heads=None, hidden_act="gelu_new"), "BertModel", word_pieces, TABLE),
    ("bert-cased", transformers.BertConfig, dict(SIZES, num_key_value_heads=None, hidden_act="gelu_new"), "BertModel", lambda f: word_pieces(f, False), TABLE),
]


class Llama:
    def __init__(self, source, libraries, folder):
        self.libraries, self.program = libraries, os.path.join(folder, "llama_outputs")
        subprocess.run(["g++", "-O1", "-std=c++17", f"-I{source}/include", f"-I{source}/ggml/include", os.path.join(HERE, "llama_outputs.cpp"),
                        os.path.join(libraries, "libllama.v0.5.0.so"), os.path.join(libraries, "libggml.v0.5.0.so"),
                        os.path.join(libraries, "libggml-base.so"), f"-Wl,-rpath,{libraries}", "-o", self.program], check=True)

    def outputs(self, model, text, what):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="") as f:
            f.write(text)
            f.flush()
            done = subprocess.run([self.program, self.libraries, model, f.name, what], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{model}: llama.cpp: {done.stderr}")
        tokens, *values = done.stdout.splitlines()
        return [int(t) for t in tokens.split()], torch.tensor([[float(v) for v in line.split()] for line in values])


def make(folder, case):
    name, config, settings, model, tokenizer, _ = case
    os.makedirs(folder)
    made = tokenizer(folder)
    made.save_pretrained(folder)
    torch.manual_seed(3)
    settings = {k: v for k, v in settings.items() if v is not None or k == "sliding_window"}
    settings = dict(vocab_size=len(made), bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id) | settings
    net = getattr(transformers, model)(config(**settings)).eval()
    net.save_pretrained(folder)
    if model == "BertModel":
        os.makedirs(os.path.join(folder, "1_Pooling"))
        types = "sentence_transformers.models."
        modules = [{"idx": 0, "name": "0", "path": "", "type": types + "Transformer"}, {"idx": 1, "name": "1", "path": "1_Pooling", "type": types + "Pooling"}]
        pathlib.Path(folder, "modules.json").write_text(json.dumps(modules))
        pathlib.Path(folder, "1_Pooling", "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return made, net


def compare(case, folder, llama, loratool):
    name, _, _, model, _, most = case
    tokenizer, net = make(folder, case)
    file = folder + ".gguf"
    subprocess.run([loratool, "convert", folder, "-o", file, "--dtype", "f32"], check=True, capture_output=True)
    worst = 0.0
    texts = [t for t in TEXTS if t != APART or name != "bert"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        tokens, values = llama.outputs(file, text, "embed" if model == "BertModel" else "logits")
        if tokens != ids:
            raise SystemExit(f"{name}: {text!r}: llama.cpp finds {tokens}, transformers {ids}")
        with torch.inference_mode():
            out = net(torch.tensor([ids]))
        want = out.last_hidden_state.mean(1) if model == "BertModel" else out.logits[0]
        worst = max(worst, ((values - want).abs().max() / want.abs().max()).item())
    if worst > most:
        raise SystemExit(f"{name}: llama.cpp's values are {worst:.2g} of the largest from transformers', at most {most:.2g} is rounding")
    print(f"{name}: {len(texts)} texts, {worst:.2g} of the largest value apart")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--loratool", required=True, type=os.path.abspath)
    parser.add_argument("--llama", required=True, type=os.path.abspath)
    parser.add_argument("--libs", required=True, type=os.path.abspath)
    parser.add_argument("--only")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        llama = Llama(args.llama, args.libs, folder)
        for case in CASES:
            if args.only in (None, case[0]):
                compare(case, os.path.join(folder, case[0]), llama, args.loratool)


if __name__ == "__main__":
    main()
