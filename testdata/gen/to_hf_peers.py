"""Checks folders that loratool makes of GGUF files against transformers.

    python testdata/gen/to_hf_peers.py --loratool BIN [--model FILE.gguf] [--work DIR] [--only FAMILY]

1. For each family a tiny model with random weights is made by transformers, with a real tokenizer trained by the
   tokenizers library on a text in several languages: BPE over bytes, or BPE of characters with bytes for what has no
   token. It is saved in F32, BIN makes a GGUF file in F32 of it, and a folder of that. Then

   - AutoModelForCausalLM loads the folder with no weight missing or left over,
   - its logits of a few texts are those of the first model, bit for bit: F32 survives both ways. Of Gemma's norms the
     weights are multiples of 2^-10, of which 1 + w is exact;
   - AutoTokenizer encodes a multilingual text that it was not trained on to the same ids.

2. A published model, if --model names one: every value, the logits and the ids of transformers' own reader of GGUF
   (from_pretrained with gguf_file), which decodes blocks by itself. It needs the package gguf.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
results = {"passed": 0, "failed": 0}

LEARNED = [
    "The quick brown fox jumps over the lazy dog, and it's 1999 or 2024 again.",
    "Größe und Übermut, déjà vu à Paris, señor Núñez; привет, мир! Добрый день.",
    "北京欢迎你。これは日本語のテキストです。안녕하세요 세계. नमस्ते दुनिया. مرحبا بالعالم",
    "def f(x):\n    return x ** 2 + 3.14  # a comment\n\n\tif x != y: pass",
]
TEXTS = [
    "Hello, world! It's 12345: don't panic.  Two spaces\tand\n\nnewlines \n at the end.  ",
    "Ünïcödé café 上海 は こんばんは 서울 пока मानक العربية 🚀👩‍👩‍👧 x^2+y_1=2.718 <b>tag</b> {return 67890;}",
    " leading space and a special <|end|> token inside<|end|>",
]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def report(ok: bool, name: str, text: str = "") -> None:
    results["passed" if ok else "failed"] += 1
    print(("ok   " if ok else "FAIL ") + name + (": " + text if text else ""), flush=True)


# --- tokenizers -------------------------------------------------------------------------------------------------
def byte_level(kind: str) -> PreTrainedTokenizerFast:
    """BPE over bytes as GPT-2, Llama 3 or Qwen split text."""
    from tokenizers import Regex

    t = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(QWEN if kind == "qwen" else LLAMA3), "isolated", False)
        t.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if kind == "qwen":
        t.normalizer = normalizers.NFC()
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|begin|>", "<|end|>"]
    )
    t.train_from_iterator(LEARNED * 3, trainer)
    if kind == "llama3":
        t.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|begin|>", eos_token="<|end|>")


def words(lowercase: bool) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it."""
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(LEARNED * 3, trainers.WordPieceTrainer(
        vocab_size=300, show_progress=False, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=t, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def pieces(folder: str, prefix: bool) -> None:
    """A SentencePiece model of BPE with bytes, as tokenizer.model and as the library reads it."""
    import sentencepiece as spm

    path = os.path.join(folder, "tokenizer")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNED * 3), model_prefix=path, vocab_size=480, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, bos_id=1, eos_id=2, unk_id=0,
    )
    os.remove(path + ".vocab")


# --- models -----------------------------------------------------------------------------------------------------
COMMON = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, bos_token_id=0, eos_token_id=1, pad_token_id=None,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
LLAMA3_ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
GEMMA = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
CASES = {
    "llama": ("LlamaConfig", dict(attention_bias=True), "llama3"),
    "llama3 scaled, tied": ("LlamaConfig", dict(rope_scaling=LLAMA3_ROPE, tie_word_embeddings=True, rope_theta=500000.0), "llama3"),
    "llama linear": ("LlamaConfig", dict(rope_scaling=dict(rope_type="linear", factor=2.0)), "pieces with a space in front"),
    "mistral": ("MistralConfig", dict(sliding_window=None), "pieces with a space in front"),
    "mixtral": ("MixtralConfig", dict(num_local_experts=4, num_experts_per_tok=2), "pieces with a space in front"),
    "qwen2": ("Qwen2Config", dict(), "qwen"),
    "qwen2moe": ("Qwen2MoeConfig", dict(shared_expert_intermediate_size=40, **EXPERTS), "qwen"),
    "qwen3": ("Qwen3Config", dict(head_dim=16), "qwen"),
    "qwen3moe": ("Qwen3MoeConfig", dict(head_dim=16, norm_topk_prob=True, **EXPERTS), "qwen"),
    "gemma": ("GemmaConfig", dict(head_dim=16), "pieces"),
    "gemma2": ("Gemma2Config", GEMMA, "pieces"),
    "gemma3": ("Gemma3TextConfig", dict(GEMMA, num_hidden_layers=7, rope_theta=1e6), "pieces"),
    "gpt2": ("GPT2Config", None, "gpt2"),
    "phi3": ("Phi3Config", dict(max_position_embeddings=64, original_max_position_embeddings=64, sliding_window=None), "pieces with a space in front"),
    # Long and short factors, of which the longer texts below need the first; a factor for attention of its own; a part of each head rotated.
    "phi3 long": ("Phi3Config", dict(max_position_embeddings=256, original_max_position_embeddings=32, rope_scaling=dict(
        rope_type="longrope", short_factor=[1.0, 1.25, 1.5, 2.0], long_factor=[1.0, 2.5, 4.0, 9.0])), "pieces with a space in front"),
    "phi4": ("Phi3Config", dict(max_position_embeddings=256, original_max_position_embeddings=32, partial_rotary_factor=0.75, hidden_size=64,
        sliding_window=None, tie_word_embeddings=True, rope_scaling=dict(rope_type="longrope", attention_factor=1.5, short_factor=[1.0] * 6,
        long_factor=[1.0, 2.5, 4.0, 9.0, 11.0, 12.5])), "llama3"),
    "smollm3": ("SmolLM3Config", dict(num_hidden_layers=5, attention_bias=True, mlp_bias=True), "llama3"),
    "granite": ("GraniteConfig", dict(attention_multiplier=0.2, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=4.0), "llama3"),
    "olmo2": ("Olmo2Config", dict(attention_bias=False), "llama3"),
    "olmo3": ("Olmo3Config", dict(num_hidden_layers=5, sliding_window=8), "llama3"),
    # The layers with a window are not scaled; a base that is not the usual one.
    "olmo3 scaled": ("Olmo3Config", dict(num_hidden_layers=5, sliding_window=8, rope_theta=None, rope_parameters=dict(
        sliding_attention=dict(rope_type="default", rope_theta=20000.0),
        full_attention=dict(rope_type="yarn", rope_theta=20000.0, factor=4.0, original_max_position_embeddings=64, attention_factor=1.2,
                            beta_fast=32.0, beta_slow=1.0))), "llama3"),
    "starcoder2": ("Starcoder2Config", dict(norm_epsilon=1e-4, use_bias=True), "gpt2"),
    "starcoder2 without biases": ("Starcoder2Config", dict(norm_epsilon=1e-4, use_bias=False, tie_word_embeddings=False), "gpt2"),
    "bert": ("BertConfig", dict(rms_norm_eps=None, rope_theta=None, num_key_value_heads=None, bos_token_id=None, eos_token_id=None, pad_token_id=0), "words"),
    "bert cased": ("BertConfig", dict(rms_norm_eps=None, rope_theta=None, num_key_value_heads=None, bos_token_id=None, eos_token_id=None,
                                      pad_token_id=0, layer_norm_eps=1e-7, type_vocab_size=3), "words, cased"),
}


def class_of(name: str) -> type:
    return AutoModel if name.startswith("bert") else AutoModelForCausalLM


def outputs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    out = model(ids)
    return out.logits if "logits" in out else out.last_hidden_state


def make(name: str, folder: str) -> tuple[torch.nn.Module, int]:
    """Saves the model and the tokenizer of a case."""
    kind, extra, tokens = CASES[name]
    os.makedirs(folder)
    if tokens.startswith("pieces"):
        pieces(folder, "space" in tokens)
        from sentencepiece import SentencePieceProcessor

        count = SentencePieceProcessor(os.path.join(folder, "tokenizer.model")).vocab_size()
    else:
        tokenizer = words("cased" not in tokens) if tokens.startswith("words") else byte_level(tokens)
        tokenizer.save_pretrained(folder)
        count = len(tokenizer)
    if extra is None:
        config = dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=1)
    else:
        config = {k: v for k, v in dict(COMMON, **extra).items() if k == "pad_token_id" or v is not None or k not in extra or k == "sliding_window"}
    if tokens.startswith("pieces"):
        config.update(bos_token_id=1, eos_token_id=2)
    torch.manual_seed(list(CASES).index(name))
    config = getattr(transformers, kind)(vocab_size=count, **config)
    model = class_of(name).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_(torch.randint(-256, 257, p.shape) / 1024 + (0 if "gemma" in name else 1 if "norm" in key else 0))
            else:
                p.normal_(0, 0.2)
    model.save_pretrained(folder)
    return model, count


def run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(args)}: exit {done.returncode}: {done.stderr}")
    return done.stderr


def expected_ids(folder: str, name: str) -> list[list[int]]:
    """What the first tokenizer makes of the texts. Of pieces it is the SentencePiece library, which adds no tokens."""
    if not os.path.exists(os.path.join(folder, "tokenizer.model")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return [tokenizer(text)["input_ids"] for text in TEXTS]
    from sentencepiece import SentencePieceProcessor

    tokenizer = SentencePieceProcessor(os.path.join(folder, "tokenizer.model"))
    return [[1] + tokenizer.encode(text) for text in TEXTS]


def check(name: str, binary: str, work: str) -> None:
    first, file, folder = (os.path.join(work, name.replace(" ", "-") + end) for end in ("-first", ".gguf", "-folder"))
    model, count = make(name, first)
    run(binary, "convert", first, "-o", file, "--dtype", "f32")
    run(binary, "convert", file, "-o", folder, "--verify")
    back, info = class_of(name).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") if info.get(k)]
    if name.startswith("bert"):  # the pooler has no place in GGUF
        lost = [k for k in lost if k != "missing_keys" or set(info[k]) != {"pooler.dense.weight", "pooler.dense.bias"}]
    report(not lost, f"{name}: loads", ", ".join(f"{k} {info[k]}" for k in lost))
    same = True
    with torch.no_grad():
        for seed in range(3):
            ids = torch.randint(0, count, (1, 40), generator=torch.Generator().manual_seed(seed))
            a, b = outputs(model, ids), outputs(back.eval(), ids)
            same = same and torch.equal(a, b) and bool(a.std() > 0)
    report(same, f"{name}: logits", "" if same else f"differ by up to {(a - b).abs().max().item():.3g}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, want in zip(TEXTS, expected_ids(first, name)):
        got = tokenizer(text)["input_ids"]
        report(got == want, f"{name}: ids of {text[:20]!r}", "" if got == want else f"{got} want {want}")
    if name.startswith("bert"):
        got, want = (dict(t(TEXTS[0], TEXTS[1])) for t in (tokenizer, AutoTokenizer.from_pretrained(first)))
        report(got == want, f"{name}: a pair of texts")


# --- a published model ------------------------------------------------------------------------------------------
def check_published(path: str, binary: str, work: str) -> None:
    folder, (where, file) = os.path.join(work, "published"), os.path.split(os.path.abspath(path))
    run(binary, "convert", path, "-o", folder, "--dtype", "f32")
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32).eval()
    a, b = ours.state_dict(), theirs.state_dict()
    other = sorted(set(a) ^ set(b)) + [k for k in a if k in b and not torch.equal(a[k], b[k])]
    report(not other, f"{file}: {len(a)} tensors", ", ".join(other[:5]))
    x, y = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(where, gguf_file=file)
    for text in TEXTS:
        got, want = x(text)["input_ids"], y(text)["input_ids"]
        report(got == want, f"{file}: ids of {text[:20]!r}", "" if got == want else f"{got} want {want}")
    with torch.no_grad():
        ids = torch.tensor([x(TEXTS[0])["input_ids"]])
        report(torch.equal(ours(ids).logits, theirs(ids).logits), f"{file}: logits")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loratool", required=True)
    parser.add_argument("--model")
    parser.add_argument("--work")
    parser.add_argument("--only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for name in CASES:
            if args.only and args.only != name:
                continue
            try:
                check(name, args.loratool, work)
            except Exception as err:  # one case that fails must not hide the others
                report(False, name, f"{type(err).__name__}: {err}")
        if args.model:
            check_published(args.model, args.loratool, work)
    print(f"{results['passed']} passed, {results['failed']} failed")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
