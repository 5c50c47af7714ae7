"""Tiny base checkpoints: a few thousand random weights per architecture.

Every base is written the way its own library writes it (transformers' `save_pretrained`, or plain safetensors for
the custom torch modules), always under the relative path `bases/<name>` of the current directory, so that no absolute
path gets into an adapter_config.json.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from typing import Callable, Optional

import torch
from safetensors.torch import load_file, save_file
from torch import nn
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def seed_all(text: str) -> None:
    """Seed torch from a name, so that every base and case is independent of the others."""
    torch.manual_seed(zlib.crc32(text.encode()))


class ConvNet(nn.Module):
    """One layer of each kind that has its own LoRA rule, all independent."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(5, 7, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(3, 8, kernel_size=3, stride=2)
        self.point = nn.Conv2d(6, 9, kernel_size=1)
        self.conv3 = nn.Conv3d(2, 4, kernel_size=(2, 3, 2), bias=False)
        self.grouped = nn.Conv2d(6, 8, kernel_size=3, groups=2)
        self.lin = nn.Linear(10, 11)
        self.emb = nn.Embedding(13, 6)

    def forward(self, x1, x2, xp, x3, xg, xl, ids):
        outs = [self.conv1(x1), self.conv2(x2), self.point(xp), self.conv3(x3), self.grouped(xg), self.lin(xl),
                self.emb(ids)]
        return torch.cat([o.flatten() for o in outs])


class AttentionNet(nn.Module):
    """nn.MultiheadAttention and a Linear."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)
        self.lin = nn.Linear(12, 14)

    def forward(self, x):
        y, _ = self.attn(x, x, x, need_weights=False)
        return self.lin(y).flatten()


@dataclass
class Base:
    """How to make, load and feed one base checkpoint."""

    name: str
    make: Callable[[], nn.Module]
    auto: type | None = AutoModelForCausalLM
    vocab: int = 40
    dtype: torch.dtype = torch.float32
    original_format: bool = True  # False: the names and fused tensors transformers uses in memory
    shard: str = "1GB"
    inputs: Optional[Callable[[], dict]] = None
    seed: str = ""  # bases with the same seed hold the same weights
    files: dict = field(default_factory=dict)


def llama_config(**kw) -> LlamaConfig:
    args = dict(vocab_size=40, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=6, max_position_embeddings=64, initializer_range=0.15,
                tie_word_embeddings=False, **IDS)
    return LlamaConfig(**{**args, **kw})


def qwen2_config() -> Qwen2Config:
    return Qwen2Config(vocab_size=42, hidden_size=18, intermediate_size=26, num_hidden_layers=2, num_attention_heads=3,
                       num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.15,
                       tie_word_embeddings=True, **IDS)


def gemma_config() -> GemmaConfig:
    return GemmaConfig(vocab_size=44, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                       num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.15, **IDS)


def gpt2_config() -> GPT2Config:
    return GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=24, n_inner=28,
                      initializer_range=0.15, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1,
                      eos_token_id=2)


def mixtral_config() -> MixtralConfig:
    return MixtralConfig(vocab_size=40, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=6, num_local_experts=3,
                         num_experts_per_tok=2, max_position_embeddings=64, initializer_range=0.15, **IDS)


def qwen3_moe_config() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(vocab_size=40, hidden_size=16, intermediate_size=22, moe_intermediate_size=10,
                          num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=6,
                          num_experts=4, num_experts_per_tok=2, decoder_sparse_step=2, max_position_embeddings=64,
                          initializer_range=0.15, **IDS)


def qwen2_moe_config() -> Qwen2MoeConfig:
    return Qwen2MoeConfig(vocab_size=40, hidden_size=16, intermediate_size=22, moe_intermediate_size=10,
                          shared_expert_intermediate_size=14, num_hidden_layers=2, num_attention_heads=2,
                          num_key_value_heads=1, num_experts=3, num_experts_per_tok=2, decoder_sparse_step=1,
                          max_position_embeddings=64, initializer_range=0.15, **IDS)


def gpt_oss_config() -> GptOssConfig:
    return GptOssConfig(vocab_size=40, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, head_dim=6, num_local_experts=3,
                        num_experts_per_tok=2, max_position_embeddings=64, initializer_range=0.15,
                        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **IDS)


def bert_config() -> BertConfig:
    return BertConfig(vocab_size=40, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2,
                      max_position_embeddings=24, initializer_range=0.15, num_labels=3, pad_token_id=0,
                      hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def token_inputs(vocab: int, bert: bool = False) -> Callable[[], dict]:
    def make():
        ids = torch.randint(3, vocab - 4, (3, 9))  # cases with a smaller vocabulary use the same inputs
        ids[:, 0] = 1
        if bert:
            return dict(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=ids % 2)
        return dict(input_ids=ids)

    return make


def conv_inputs() -> dict:
    return dict(x1=torch.randn(2, 5, 9), x2=torch.randn(2, 3, 9, 9), xp=torch.randn(2, 6, 3, 3),
                x3=torch.randn(2, 2, 4, 4, 4), xg=torch.randn(2, 6, 5, 5), xl=torch.randn(3, 10),
                ids=torch.randint(0, 13, (4, 5)))


def mha_inputs() -> dict:
    return dict(x=torch.randn(2, 5, 12))


def causal(config) -> Callable[[], nn.Module]:
    return lambda: AutoModelForCausalLM.from_config(config())


BASES = {b.name: b for b in [
    Base("llama", causal(llama_config), shard="9KB"),
    Base("llama-bf16", causal(llama_config), dtype=torch.bfloat16, seed="llama", shard="8KB"),
    Base("llama-tied", causal(lambda: llama_config(tie_word_embeddings=True))),
    Base("llama-tied-bf16", causal(lambda: llama_config(tie_word_embeddings=True)), dtype=torch.bfloat16,
         seed="llama-tied"),
    Base("qwen2", causal(qwen2_config), vocab=42),
    Base("qwen2-bf16", causal(qwen2_config), vocab=42, dtype=torch.bfloat16, seed="qwen2"),
    Base("gemma", causal(gemma_config), vocab=44),
    Base("gpt2", causal(gpt2_config)),
    Base("gpt2-bf16", causal(gpt2_config), dtype=torch.bfloat16, seed="gpt2"),
    Base("gpt2-headless", lambda: AutoModel.from_config(gpt2_config()), auto=AutoModel, seed="gpt2-headless"),
    Base("mixtral-perexpert", causal(mixtral_config), seed="mixtral"),
    Base("mixtral-fused", causal(mixtral_config), seed="mixtral", original_format=False),
    Base("mixtral-fused-bf16", causal(mixtral_config), seed="mixtral", original_format=False, dtype=torch.bfloat16),
    Base("qwen3-moe-perexpert", causal(qwen3_moe_config), seed="qwen3-moe"),
    Base("qwen3-moe-fused", causal(qwen3_moe_config), seed="qwen3-moe", original_format=False),
    Base("qwen2-moe-perexpert", causal(qwen2_moe_config), seed="qwen2-moe"),
    Base("gpt-oss", causal(gpt_oss_config)),
    Base("bert-cls", lambda: AutoModelForSequenceClassification.from_config(bert_config()),
         auto=AutoModelForSequenceClassification, inputs=token_inputs(40, bert=True)),
    Base("bert-headless", lambda: AutoModel.from_config(bert_config()), auto=AutoModel,
         inputs=token_inputs(40, bert=True)),
    Base("conv", ConvNet, auto=None, inputs=conv_inputs),
    Base("mha", AttentionNet, auto=None, inputs=mha_inputs),
]}


def _randomise_flat_parameters(model: nn.Module) -> None:
    """Norm weights start at 1 and biases at 0: give them values that a mistake would change."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))


def write_base(name: str) -> None:
    """Write bases/<name> below the current directory."""
    base = BASES[name]
    seed_all("base " + (base.seed or base.name))
    model = base.make()
    _randomise_flat_parameters(model)
    model.to(base.dtype)
    path = os.path.join("bases", name)
    shutil.rmtree(path, ignore_errors=True)
    if base.auto is None:
        os.makedirs(path)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, os.path.join(path, "model.safetensors"),
                  metadata={"format": "pt"})
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump({"model_type": "custom-" + name, "torch_dtype": "float32"}, f, indent=2)
            f.write("\n")
        return
    model.save_pretrained(path, max_shard_size=base.shard, save_original_format=base.original_format)


def load_base(name: str, auto: type | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Load bases/<name> (in its own dtype unless told), with another Auto class if given."""
    base = BASES[name]
    path = os.path.join("bases", name)
    if base.auto is None:
        model = base.make()
        model.load_state_dict(load_file(os.path.join(path, "model.safetensors")))
        return model.to(dtype or torch.float32).eval()
    kw = {}
    if "moe" in name or "mixtral" in name or "gpt-oss" in name:
        kw["experts_implementation"] = "eager"
    return (auto or base.auto).from_pretrained(path, dtype=dtype or base.dtype, attn_implementation="eager",
                                               **kw).eval()


def base_inputs(name: str) -> dict:
    base = BASES[name]
    return (base.inputs or token_inputs(base.vocab))()


def base_tensors(name: str) -> dict[str, torch.Tensor]:
    """All tensors of the files of bases/<name>."""
    return folder_tensors(os.path.join("bases", name))


def folder_tensors(path: str) -> dict[str, torch.Tensor]:
    out = {}
    for file in sorted(os.listdir(path)):
        if file.endswith(".safetensors"):
            out.update(load_file(os.path.join(path, file)))
    return out


def file_tensors(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a model under the names its files would have, tied copies included."""
    base = BASES[name]
    if base.auto is None:
        return {k: v.detach().clone() for k, v in model.state_dict().items()}
    tmp = os.path.join("bases", ".tmp-save")
    shutil.rmtree(tmp, ignore_errors=True)
    model.save_pretrained(tmp, save_original_format=base.original_format)
    out = folder_tensors(tmp)
    shutil.rmtree(tmp)
    return out


@dataclass
class Fp8Base:
    """An FP8 checkpoint written by hand. `scheme` is block, tensor or channel."""

    scheme: str
    config: Callable[[], LlamaConfig]
    lora: tuple[int, int]


def small_llama(hidden: int, heads: int, head_dim: int, inter: int) -> Callable[[], LlamaConfig]:
    return lambda: llama_config(vocab_size=32, hidden_size=hidden, num_attention_heads=heads, head_dim=head_dim,
                                num_key_value_heads=1, intermediate_size=inter, num_hidden_layers=1,
                                architectures=["LlamaForCausalLM"])


FP8 = {
    "fp8-block": Fp8Base("block", small_llama(136, 8, 18, 12), (4, 10)),
    "fp8-tensor": Fp8Base("tensor", small_llama(24, 3, 6, 20), (3, 5)),
    "fp8-channel": Fp8Base("channel", small_llama(24, 3, 6, 20), (2, 7)),
}
QUANT_CONFIG = {
    "block": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
              "modules_to_not_convert": ["lm_head", "model.layers.0.self_attn.o_proj"]},
    "tensor": {"quant_method": "fp8", "activation_scheme": "dynamic",
               "modules_to_not_convert": ["lm_head", "model.layers.0.self_attn.o_proj"]},
    "channel": {"quant_method": "compressed-tensors", "format": "float-quantized",
                "ignore": ["lm_head", "model.layers.0.self_attn.o_proj"], "quantization_status": "compressed",
                "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "weights": {
                    "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}}}},
}


def write_fp8_base(name: str) -> None:
    """Quantise a random Llama to F8_E4M3, all Linear weights but o_proj and lm_head; the rest is bf16."""
    base = FP8[name]
    seed_all("base " + name)
    config = base.config()
    model = AutoModelForCausalLM.from_config(config)
    _randomise_flat_parameters(model)
    out = {}
    for key, w in model.state_dict().items():
        if w.ndim != 2 or "proj" not in key or "o_proj" in key:
            out[key] = w.to(torch.bfloat16)
            continue
        if base.scheme == "block":
            rows, cols = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
            scale = torch.empty(rows, cols)
            for i in range(rows):
                for j in range(cols):
                    scale[i, j] = w[i * 128:(i + 1) * 128, j * 128:(j + 1) * 128].abs().max() / 448
            full = scale.repeat_interleave(128, 0)[: w.shape[0]].repeat_interleave(128, 1)[:, : w.shape[1]]
            out[key + "_scale_inv"] = scale
        elif base.scheme == "tensor":
            full = scale = w.abs().max() / 448
            out[key + "_scale"] = scale.reshape([1] if "mlp" in key else [])
        else:
            full = scale = w.abs().amax(1, keepdim=True) / 448
            out[key + "_scale"] = scale.to(torch.bfloat16) if "mlp" in key else scale
            full = out[key + "_scale"].float()
        out[key] = (w / full).clamp(-448, 448).to(torch.float8_e4m3fn)
    path = os.path.join("bases", name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    save_file({k: out[k].contiguous() for k in sorted(out)}, os.path.join(path, "model.safetensors"),
              metadata={"format": "pt"})
    config.dtype = torch.bfloat16
    config.save_pretrained(path)
    file = os.path.join(path, "config.json")
    with open(file) as f:
        text = json.load(f)
    text["quantization_config"] = QUANT_CONFIG[base.scheme]
    with open(file, "w") as f:
        json.dump(text, f, indent=2)
        f.write("\n")
