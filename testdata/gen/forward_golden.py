"""Makes testdata/golden/forward: tiny decoders of each family, and the logits that transformers computes from them.

    python testdata/gen/forward_golden.py [--out DIR]

Weights are noise in bfloat16 from a fixed seed, norms and biases too, so that nothing is left out without a trace. The
logits are computed in float32 with eager attention, for two sequences of different lengths, one after the other.
Made with transformers 5.23 and torch on a CPU.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=32,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
CASES = {
    "llama": ("Llama", dict(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5)),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3, head_dim=8, tie_word_embeddings=True)),
    "llama-linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=4.0))),
    "mistral": ("Mistral", dict(sliding_window=5)),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "gemma": ("Gemma", dict(head_dim=8)),
    "gemma2": ("Gemma2", dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=12, attn_logit_softcapping=3.0, final_logit_softcapping=5.0)),
    "gemma3": ("Gemma3Text", dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=12, num_hidden_layers=3,
                                  layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
}
SEQUENCES = [[1, 5, 9, 30, 7, 7, 2, 19, 4, 11, 23, 8, 31, 3], [1, 17, 6, 28, 12]]


def make(out: pathlib.Path, name: str) -> None:
    family, extra = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    config = getattr(transformers, family + "Config")(**{**SIZES, **extra})
    config._attn_implementation = "eager"
    model = getattr(transformers, family.removesuffix("Text") + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            centre = p.mean() if p.dim() == 1 else 0.0
            p.copy_((centre + 0.25 * torch.randn_like(p)).bfloat16().float())
        logits = [model(torch.tensor([ids])).logits[0] for ids in SEQUENCES]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.bfloat16().contiguous() for k, v in model.state_dict().items() if not (k == "lm_head.weight" and config.tie_word_embeddings)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = config.to_diff_dict()
    settings.update(architectures=[family.removesuffix("Text") + "ForCausalLM"], dtype="bfloat16")
    settings.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    save_file({"logits": torch.cat(logits).contiguous()}, folder / "logits.safetensors")
    (folder / "ids.json").write_text(json.dumps(SEQUENCES) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "golden" / "forward")
    args = parser.parse_args()
    for case in CASES:
        make(args.out, case)
