"""Writes testdata/demo: a tiny bf16 Llama with a tokenizer (base/) and a LoRA trained on it (adapter/).

    python testdata/gen/demo.py [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = [
    "The adapter is small and the base is large, so the merge reads the base once and writes it once.",
    "A low-rank update adds the product of two thin matrices to every weight that was trained.",
    "The quick brown fox jumps over the lazy dog while the dog dreams of merging checkpoints.",
    "Two plus two is four, four plus four is eight, and eight plus eight is sixteen.",
    "Once the weights are merged, the model runs without any adapter code at all.",
]

TUNE = [
    "The quick brown fox reads the merge code once and runs.",
    "A small adapter dreams of a large model that was trained once.",
    "Four thin matrices plus two thin matrices is six thin matrices.",
    "The lazy dog writes every weight twice, so the base is at rest.",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>", "<pad>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   pad_token="<pad>")


def train(model, batch: dict, steps: int, lr: float) -> float:
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=lr)
    loss = None
    for _ in range(steps):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=os.path.join(HERE, "..", "demo"))
    out = ap.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.makedirs(out, exist_ok=True)
    os.chdir(out)
    for name in ("base", "adapter"):
        shutil.rmtree(name, ignore_errors=True)

    tok = make_tokenizer()
    config = LlamaConfig(vocab_size=len(tok), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
                         bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    model = LlamaForCausalLM(config)
    tok.padding_side = "right"

    def batch(texts: list[str]) -> dict:
        return dict(tok(["<s>" + t + "</s>" for t in texts], return_tensors="pt", padding=True,
                        return_token_type_ids=False))

    print("base loss", round(train(model, batch(TEXT), 60, 5e-3), 3))
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                                               pad_token_id=tok.pad_token_id, do_sample=True, temperature=0.8)
    model.save_pretrained("base", max_shard_size="90KB")
    tok.save_pretrained("base")

    model = LlamaForCausalLM.from_pretrained("base", dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    print("adapter loss", round(train(model, batch(TUNE), 1, 1e-2), 3), "->",
          round(train(model, batch(TUNE), 30, 1e-2), 3))
    model.save_pretrained("adapter")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    main()
