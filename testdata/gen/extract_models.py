"""Pairs of tiny models, before and after a few steps of full fine-tuning.

`PAIRS` names them; `make(name, folder)` writes `folder/base` and `folder/tuned` as transformers saves them and returns
the tuned model. Seeds are fixed by the names. Every pair stands for something that an extraction has to get right:

    llama        an untied head, more than half of the rows of the embedding changed
    llama-bf16   both sides stored as bf16
    llama-tied   a tied head
    tokens       a few rows of the embedding changed
    gpt2         layers stored (in, out), biases everywhere, a table of positions
    qwen2        biases on some layers only
    mixtral      experts that are single in files and stacked in memory, a router
    grown        a larger vocabulary
    conv         convolutions beside a linear layer, not a transformers model
"""

from __future__ import annotations

import os
import zlib

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCAB = 40
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
DECODER = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, **IDS)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(5, 7, kernel_size=3, padding=1)
        self.two = nn.Conv2d(3, 8, kernel_size=3)
        self.deep = nn.Conv1d(7, 7, kernel_size=3, groups=7, bias=False)
        self.norm = nn.LayerNorm(10)
        self.lin = nn.Linear(10, 11)

    def forward(self, seed):
        g = torch.Generator().manual_seed(seed)
        a = self.deep(self.one(torch.randn(2, 5, 9, generator=g))).flatten()
        b = self.two(torch.randn(2, 3, 6, 6, generator=g)).flatten()
        c = self.lin(self.norm(torch.randn(4, 10, generator=g))).flatten()
        return torch.cat([a, b, c])


def llama(tied: bool = False):
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **DECODER))


def new(name: str):
    torch.manual_seed(zlib.crc32(name.encode()))
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2))
    if name == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **DECODER))
    if name == "mixtral":
        return MixtralForCausalLM(MixtralConfig(tie_word_embeddings=False, num_local_experts=3, num_experts_per_tok=2,
                                                **{**DECODER, "intermediate_size": 20, "num_hidden_layers": 1}))
    if name == "conv":
        return ConvNet()
    return llama(tied=name == "llama-tied")


PAIRS = ["llama", "llama-bf16", "llama-tied", "tokens", "gpt2", "qwen2", "mixtral", "grown", "conv"]


def train(name: str, model) -> None:
    """A few steps of AdamW on everything."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for step in range(4):
        if name == "conv":
            loss = model(step).square().mean()
        else:
            ids = torch.randint(3, 10 if name == "tokens" else VOCAB, (4, 10))
            loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def save(model, folder: str) -> None:
    if isinstance(model, ConvNet):
        os.makedirs(folder, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    model.save_pretrained(folder)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)


def load(name: str, folder: str):
    """The model of a folder, in float32."""
    if name == "conv":
        from safetensors.torch import load_file
        model = ConvNet()
        model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")))
        return model.eval()
    return type(new(name)).from_pretrained(folder, dtype=torch.float32).eval()


def make(name: str, folder: str):
    model = new(name)
    if name == "llama-bf16":
        model = model.bfloat16()
    save(model, os.path.join(folder, "base"))
    model = model.float()
    if name == "grown":
        model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    train(name, model)
    if name == "llama-bf16":
        model = model.bfloat16()
    save(model, os.path.join(folder, "tuned"))
    return load(name, os.path.join(folder, "tuned"))
