"""Cases PEFT's merge_and_unload cannot give the truth for: formulas in float64, and adapters made by hand."""

from __future__ import annotations

import json
import os
import shutil

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tiny_bases import BASES, FP8, base_inputs, base_tensors, load_base, seed_all

PREFIX = "base_model.model."


def double_tensors(base: str) -> dict:
    return {k: v.double() if v.is_floating_point() else v for k, v in base_tensors(base).items()}


def read_adapter(path: str) -> tuple[dict, dict]:
    """(config, tensors in float64 without 'base_model.model.') of an adapter folder."""
    with open(os.path.join(path, "adapter_config.json")) as f:
        config = json.load(f)
    tensors = load_file(os.path.join(path, "adapter_model.safetensors"))
    return config, {k.removeprefix(PREFIX): v.double() for k, v in tensors.items()}


def lora_pairs(path: str) -> list[tuple[str, float, torch.Tensor, torch.Tensor]]:
    """(module, scale, A, B) for every module of a LoRA without patterns."""
    config, tensors = read_adapter(path)
    assert not config["rank_pattern"] and not config["alpha_pattern"] and not config["use_rslora"]
    out = []
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            out.append((module, config["lora_alpha"] / config["r"], a, tensors[module + ".lora_B.weight"]))
    return out


def check_forward(case, tensors: dict, trained: list) -> list[str]:
    """Compare the outputs of the trained model (single precision) with those of the tensors."""
    if not trained or trained[0] is None:
        return []
    from peft_golden import deviation, double_output
    seed_all(f"case {case.name} adapter")
    model = load_base(case.base, dtype=torch.float32).double()
    model.load_state_dict(tensors, strict=True)
    off = deviation(trained[0], double_output(model, base_inputs(case.base)))
    print(f"  {case.name}: single-precision trained model against the truth: {off:.1e}")
    return [] if off < 1e-4 else [f"the trained model differs from the truth by {off:.1e}"]


LLAMA_CONFIG = {"vocab_size": 40, "num_hidden_layers": 2, "tie_word_embeddings": False}


# --- initialisations that change the base -----------------------------------------------------------------------
def mutating_config(init: str, r: int, alpha: int):
    """A LoraConfig whose initialisation changes the base; corda and lora_ga look at the model first."""

    def make(model) -> LoraConfig:
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=["q_proj", "v_proj", "up_proj"],
                            init_lora_weights=init)
        inputs = base_inputs("llama")
        if init == "corda":
            config.corda_config = CordaConfig(corda_method="kpm")
            preprocess_corda(model, config, run_model=lambda: [model(input_ids=torch.randint(3, 36, (1, 24))) for _ in range(6)])
        if init == "lora_ga":
            config.lora_ga_config = LoraGAConfig()
            preprocess_loraga(model, config, lambda: model(**inputs, labels=inputs["input_ids"]).loss.backward())
        return config

    return make


def save_initial(model, folder: str) -> None:
    """The initial adapter as PEFT's examples save it: with init_lora_weights set to True."""
    from peft_golden import save_adapter
    config = model.peft_config["default"]
    init, config.init_lora_weights = config.init_lora_weights, True
    save_adapter(model, os.path.join(folder, "init"))
    config.init_lora_weights = init


def drop_initial(adapter: str) -> None:
    shutil.rmtree(os.path.join(os.path.dirname(adapter), "init"))


def residual_truth(case, folder: str, trained: list) -> tuple[dict, dict, list]:
    """W + s*(B@A - B0@A0)."""
    total = double_tensors(case.base)
    for module, s, a, b in lora_pairs(os.path.join(folder, "adapter")):
        total[module + ".weight"] = total[module + ".weight"] + s * (b @ a)
    for module, s, a, b in lora_pairs(os.path.join(folder, "init")):
        total[module + ".weight"] = total[module + ".weight"] - s * (b @ a)
    return total, dict(LLAMA_CONFIG), check_forward(case, total, trained)


def olora_truth(case, folder: str, trained: list) -> tuple[dict, dict, list]:
    """W - s*Q[:, :r]@R[:r] + s*B@A."""
    total = double_tensors(case.base)
    for module, s, a, b in lora_pairs(os.path.join(folder, "adapter")):
        w = total[module + ".weight"]
        q, r = torch.linalg.qr(w)
        rank = a.shape[0]
        total[module + ".weight"] = w - s * (q[:, :rank] @ r[:rank]) + s * (b @ a)
    return total, dict(LLAMA_CONFIG), check_forward(case, total, trained)


def kasa_truth(case, folder: str, trained: list) -> tuple[dict, dict, list]:
    """W without its r smallest singular values, + s*(B*diag)@A."""
    total = double_tensors(case.base)
    _, tensors = read_adapter(os.path.join(folder, "adapter"))
    for module, s, a, b in lora_pairs(os.path.join(folder, "adapter")):
        u, sv, vh = torch.linalg.svd(total[module + ".weight"], full_matrices=False)
        keep = sv.shape[0] - a.shape[0]
        diag = tensors[module + ".lora_diag"]
        total[module + ".weight"] = (u[:, :keep] * sv[:keep]) @ vh[:keep] + s * ((b * diag) @ a)
    return total, dict(LLAMA_CONFIG), check_forward(case, total, trained)


# --- hooks ------------------------------------------------------------------------------------------------------
def allocate(model, step: int) -> None:
    model.base_model.update_and_allocate(step)


def save_projection(model, folder: str) -> None:
    """The projections VeRA made from its seed, to check another generator against."""
    save_file({"vera_A": model.base_model.vera_A["default"].contiguous(),
               "vera_B": model.base_model.vera_B["default"].contiguous()}, os.path.join(folder, "projection.safetensors"))


# --- per-expert adapters of transformers v4 ---------------------------------------------------------------------
def _write_hand_made(path: str, config: LoraConfig, tensors: dict, base: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    config.base_model_name_or_path = "bases/" + base
    config.inference_mode = True
    config.save_pretrained(path)
    save_file({k: tensors[k] for k in sorted(tensors)}, os.path.join(path, "adapter_model.safetensors"),
              metadata={"format": "pt"})


def _old_expert_adapter(case, folder: str, names: tuple, router: bool, r: int, alpha: int) -> None:
    """Random factors under the v4 names; the perexpert and the fused case get the same adapter."""
    perexpert = base_tensors(case.base.replace("fused", "perexpert"))
    seed_all(case.name.replace("fused", "perexpert"))
    tensors = {}
    targets = ["q_proj", *names] + (["gate"] if router else [])
    for key, w in perexpert.items():
        module = key.removesuffix(".weight")
        if w.ndim == 2 and module.split(".")[-1] in targets:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(r, w.shape[1]) * 0.2
            tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(w.shape[0], r) * 0.2
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    _write_hand_made(os.path.join(folder, "adapter"), config, tensors, case.base)


def write_old_mixtral(case, folder: str) -> None:
    _old_expert_adapter(case, folder, ("w1", "w2", "w3"), router=True, r=2, alpha=5)


def write_old_qwen3(case, folder: str) -> None:
    _old_expert_adapter(case, folder, ("gate_proj", "up_proj", "down_proj"), router=False, r=3, alpha=4)


def _fuse(tensors: dict) -> dict:
    """Per-expert tensors to the fused ones of transformers v5."""
    out, experts = {}, {}
    for key, t in tensors.items():
        key = key.replace(".block_sparse_moe.", ".mlp.")
        if ".experts." in key:
            layer, rest = key.split(".experts.")
            index, name, _ = rest.split(".")
            experts.setdefault(layer, {})[int(index), name] = t
        else:
            out[key] = t
    for layer, parts in experts.items():
        n = 1 + max(i for i, _ in parts)
        gate, up, down = ("w1", "w3", "w2") if (0, "w1") in parts else ("gate_proj", "up_proj", "down_proj")
        out[layer + ".experts.gate_up_proj"] = torch.stack(
            [torch.cat([parts[i, gate], parts[i, up]]) for i in range(n)])
        out[layer + ".experts.down_proj"] = torch.stack([parts[i, down] for i in range(n)])
    return out


def old_experts_truth(case, folder: str, trained: list) -> tuple[dict, dict, list]:
    """W + s*B@A per expert matrix; fused afterwards for a fused base. PEFT's own conversion is compared with it."""
    total = double_tensors(case.base.replace("fused", "perexpert"))
    for module, s, a, b in lora_pairs(os.path.join(folder, "adapter")):
        total[module + ".weight"] = total[module + ".weight"] + s * (b @ a)
    if case.base.endswith("fused"):
        total = _fuse(total)
    notes = []
    try:
        from peft_golden import merged_truth
        merged, _, _ = merged_truth(case, {"path": "adapter"}, folder, None)
        off = {k: (merged[k] - total[k]).abs().max().item() for k in total}
        bad = sorted(k for k, v in off.items() if v > 1e-9)
        if bad:
            notes.append(f"PEFT's own conversion of this adapter gives other values for {len(bad)} tensors: "
                         + ", ".join(bad[:4]))
    except Exception as e:
        notes.append(f"PEFT cannot load this adapter: {type(e).__name__}: {str(e).splitlines()[0][:160]}")
    return total, dict(LLAMA_CONFIG), notes


# --- FP8 bases --------------------------------------------------------------------------------------------------
def train_fp8(case, folder: str) -> None:
    """A LoRA trained on the dequantised weights of an FP8 base."""
    from peft_golden import save_adapter, train
    model = LlamaForCausalLM(FP8[case.base].config())
    model.load_state_dict({k: v.float() for k, v in dequantised(case.base).items()})
    model.config.name_or_path = model.name_or_path = "bases/" + case.base
    r, alpha = FP8[case.base].lora
    model = get_peft_model(model.eval(), LoraConfig(
        r=r, lora_alpha=alpha, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"]))
    train(model, dict(input_ids=torch.randint(3, 32, (3, 9))), 4, 0.03)
    save_adapter(model, os.path.join(folder, "adapter"))


def dequantised(base: str) -> dict:
    """Every weight of an FP8 base in float64: codes times scales."""
    tensors = base_tensors(base)
    out = {}
    for key, t in tensors.items():
        if key.endswith((".weight_scale", ".weight_scale_inv")):
            continue
        t64 = t.double()
        if t.dtype == torch.float8_e4m3fn:
            if key + "_scale_inv" in tensors:
                s = tensors[key + "_scale_inv"].double()
                s = s.repeat_interleave(128, 0)[: t.shape[0]].repeat_interleave(128, 1)[:, : t.shape[1]]
            else:
                s = tensors[key + "_scale"].double()
            t64 = t64 * s
        out[key] = t64
    return out


def fp8_truth(case, folder: str, trained: list) -> tuple[dict, dict, list]:
    total = dequantised(case.base)
    for module, s, a, b in lora_pairs(os.path.join(folder, "adapter")):
        total[module + ".weight"] = total[module + ".weight"] + s * (b @ a)
    return total, {"quantization_config": None, "tie_word_embeddings": False}, []


# --- adapters that must be refused ------------------------------------------------------------------------------
def _edit_config(**changes):
    def edit(adapter: str) -> None:
        path = os.path.join(adapter, "adapter_config.json")
        with open(path) as f:
            config = json.load(f)
        config.update(changes)
        with open(path, "w") as f:
            json.dump(config, f, indent=2, sort_keys=True)

    return edit


EDITS = {
    "xlora": _edit_config(peft_type="XLORA", hidden_size=16, adapters={"0": "a", "1": "b"}, xlora_depth=1,
                          layerwise_scalings=False, softmax_temperature=1.0),
    "arrow": _edit_config(arrow_config={"arrow_expert_num": 2, "router_temperature": 1.0, "top_k": 1, "use_gks": False}),
    "loftq": _edit_config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1}),
}
