"""The list of golden cases: which adapter on which base, and what is special about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional

from peft import (AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PrefixTuningConfig, PromptEncoderConfig,
                  PromptTuningConfig, VeraConfig)
from peft.tuners.lora.config import KasaConfig
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from special_cases import (EDITS, allocate, drop_initial, fp8_truth, kasa_truth, mutating_config, old_experts_truth,
                           olora_truth, residual_truth, save_initial, save_projection, train_fp8, write_old_mixtral,
                           write_old_qwen3)


@dataclass
class Case:
    """One golden case. `adapters` are dicts: path, config (function), weight, auto, prepare, steps, lr, save ..."""

    name: str
    about: str
    base: str
    adapters: list = field(default_factory=list)
    args: list = field(default_factory=list)
    note: str = ""
    refused: str = ""
    bf16: bool = False
    only_base_names: bool = False  # the adapter's class has tensors that are not part of the base
    write: Optional[Callable] = None  # writes a hand-made adapter
    truth: Optional[Callable] = None  # computes the truth when PEFT's merge cannot
    finish: Optional[Callable] = None  # edits the adapter folder at the end


CASES: list[Case] = []


def add(name: str, base: str, about: str, config: Callable, **kw) -> None:
    """A case with one adapter; adapter keys may be given with the case's keys."""
    adapter_keys = ("auto", "prepare", "steps", "lr", "save", "after_init", "perturb", "after_backward", "needs_model")
    adapter = {"path": "adapter", "config": config}
    adapter.update({k: kw.pop(k) for k in adapter_keys if k in kw})
    CASES.append(Case(name, about, base, [adapter], **kw))


def lora(r: int, alpha: int, targets, **kw) -> Callable:
    return lambda: LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, **kw)


ALL = "all-linear"

# --- LoRA on Linear ---------------------------------------------------------------------------------------------
add("lora-llama-linear", "llama", "LoRA on every Linear but the head", lora(4, 10, ALL, task_type="CAUSAL_LM"))
add("lora-llama-linear-bf16", "llama-bf16", "the same on a bf16 base", lora(4, 10, ALL, task_type="CAUSAL_LM"),
    bf16=True)
add("lora-llama-rslora", "llama", "rank-stabilised scaling alpha/sqrt(r)",
    lora(5, 3, ["q_proj", "v_proj", "down_proj"], use_rslora=True))
add("lora-llama-patterns", "llama", "rank_pattern and alpha_pattern with overlapping keys: the first match wins",
    lora(3, 7, ["q_proj", "k_proj", "o_proj", "up_proj"],
         rank_pattern={"layers.1.self_attn.q_proj": 6, "q_proj": 2, r"self_attn\..*": 5, "up_proj": 4},
         alpha_pattern={"k_proj": 13, r"layers\.\d+\.self_attn\.(q|k)_proj": 11, "o_proj": 1}),
    note="PEFT writes adapter_config.json with sorted keys, so the order the patterns had in training is lost; here it "
         "equals the sorted order")
add("lora-llama-rslora-patterns", "llama", "rsLoRA together with patterns",
    lora(4, 5, ["q_proj", "gate_proj"], use_rslora=True, rank_pattern={"gate_proj": 7},
         alpha_pattern={"^model.layers.0.self_attn.q_proj": 9}))
add("lora-llama-regex-layers", "llama", "target_modules as a regex, one layer only",
    lora(4, 9, r".*\.1\.(self_attn|mlp)\.(v_proj|gate_proj)"))
add("lora-llama-layers-to-transform", "llama", "layers_to_transform",
    lora(6, 4, ["k_proj", "down_proj"], layers_to_transform=[1]))
add("lora-llama-dora", "llama", "DoRA on every Linear", lora(4, 10, ALL, use_dora=True))
add("lora-qwen2-linear", "qwen2", "LoRA on a model with biases and a tied head", lora(3, 8, ALL))
add("lora-qwen2-linear-bf16", "qwen2-bf16", "the same on a bf16 base", lora(3, 8, ALL), bf16=True)
add("lora-qwen2-lora-bias", "qwen2", "lora_bias: bias += s * lora_B.bias",
    lora(4, 6, ["q_proj", "k_proj", "v_proj"], lora_bias=True))
add("lora-qwen2-bias-all", "qwen2", "bias='all': every bias of the model is replaced",
    lora(4, 6, ["q_proj", "down_proj"], bias="all"))
add("lora-qwen2-bias-lora-only", "qwen2", "bias='lora_only': biases of the adapted modules are replaced",
    lora(4, 6, ["q_proj", "v_proj"], bias="lora_only"))
add("lora-gemma-linear", "gemma", "LoRA on Gemma (always tied)", lora(4, 12, ALL))

# --- Conv1D (gpt2) ----------------------------------------------------------------------------------------------
GPT2 = ["c_attn", "c_proj", "c_fc"]
add("lora-gpt2-linear", "gpt2", "Conv1D weights are (in, out); attn.c_proj is square",
    lora(4, 10, GPT2, fan_in_fan_out=True))
add("lora-gpt2-linear-bf16", "gpt2-bf16", "the same on a bf16 base", lora(4, 10, GPT2, fan_in_fan_out=True), bf16=True)
add("lora-gpt2-wrong-flag", "gpt2", "fan_in_fan_out left false: PEFT corrects it by the layer class",
    lora(3, 5, ["c_attn", "c_proj"]))
add("lora-gpt2-dora", "gpt2", "DoRA on Conv1D", lora(4, 10, GPT2, fan_in_fan_out=True, use_dora=True))
add("lora-gpt2-bias-all", "gpt2", "bias='all' also replaces the biases of LayerNorm",
    lora(3, 4, ["c_attn"], fan_in_fan_out=True, bias="all"))
add("lora-gpt2-wte", "gpt2", "LoRA on wte of a tied model: the head keeps the base embedding, so the model is untied",
    lora(4, 7, ["wte", "c_attn"], fan_in_fan_out=True))
add("lora-gpt2-wte-dora", "gpt2", "DoRA on wte and wpe: the norm runs over the vocabulary",
    lora(4, 7, ["wte", "wpe"], use_dora=True))

# --- embeddings and heads ---------------------------------------------------------------------------------------
add("lora-llama-embed", "llama", "LoRA on embed_tokens, untied", lora(4, 9, ["embed_tokens", "q_proj"]))
add("lora-llama-head", "llama", "LoRA on lm_head, untied", lora(4, 9, ["lm_head", "q_proj"]))
add("lora-llama-embed-head", "llama", "LoRA on embed_tokens and lm_head, untied",
    lora(3, 5, ["embed_tokens", "lm_head", "o_proj"]))
add("lora-llama-embed-dora", "llama", "DoRA on embed_tokens", lora(3, 5, ["embed_tokens"], use_dora=True))
add("lora-tied-linear", "llama-tied", "a tied base whose embedding is not touched", lora(5, 3, ALL))
add("lora-tied-embed", "llama-tied", "LoRA on embed_tokens of a tied base: only the embedding was adapted",
    lora(4, 9, ["embed_tokens", "q_proj"]))
add("lora-tied-embed-bf16", "llama-tied-bf16", "the same on a bf16 base", lora(4, 9, ["embed_tokens", "q_proj"]))
add("lora-tied-head", "llama-tied", "LoRA on lm_head of a tied base: only the head was adapted",
    lora(4, 9, ["lm_head", "q_proj"]))
add("lora-tied-head-bf16", "llama-tied-bf16", "the same on a bf16 base", lora(4, 9, ["lm_head", "q_proj"]))
add("lora-tied-embed-head", "llama-tied", "LoRA on both ends of a tied base: two different matrices",
    lora(4, 9, ["embed_tokens", "lm_head"]))
add("lora-tied-linear-bf16", "llama-tied-bf16", "tied bf16 base, embedding untouched", lora(5, 3, ALL), bf16=True)
add("lora-tied-ensure-targets", "llama-tied", "ensure_weight_tying with LoRA on both ends: stays tied",
    lora(4, 9, ["embed_tokens", "lm_head", "q_proj"], ensure_weight_tying=True))
add("lora-tied-ensure-save", "llama-tied", "ensure_weight_tying with modules_to_save: stays tied",
    lora(4, 9, ["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True))
add("lora-tied-ensure-save-head", "llama-tied", "ensure_weight_tying with modules_to_save lm_head: stays tied",
    lora(4, 9, ["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True))
add("lora-tied-ensure-tokens", "llama-tied", "ensure_weight_tying with trainable tokens: stays tied",
    lora(4, 9, ["q_proj"], trainable_token_indices=[3, 7, 11], ensure_weight_tying=True))
add("lora-llama-save-head", "llama", "modules_to_save lm_head", lora(3, 4, ["q_proj"], modules_to_save=["lm_head"]))
add("lora-llama-save-embed-head", "llama", "modules_to_save embed_tokens and lm_head",
    lora(3, 4, ["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
add("lora-tied-save-embed-head", "llama-tied", "modules_to_save of both ends of a tied base: two different matrices",
    lora(3, 4, ["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
add("lora-tied-save-head", "llama-tied", "modules_to_save lm_head of a tied base",
    lora(3, 4, ["q_proj"], modules_to_save=["lm_head"]))
add("lora-tied-save-embed", "llama-tied", "modules_to_save embed_tokens of a tied base",
    lora(3, 4, ["q_proj"], modules_to_save=["embed_tokens"]))
add("lora-llama-save-norm", "llama", "modules_to_save with norms",
    lora(3, 4, ["q_proj"], modules_to_save=["input_layernorm", "norm"]))
add("lora-llama-tokens", "llama", "trainable_token_indices as a list",
    lora(3, 4, ["q_proj"], trainable_token_indices=[4, 1, 9]))
add("lora-llama-tokens-dict", "llama", "trainable_token_indices as a dict, embedding and head",
    lora(3, 4, ["q_proj"], trainable_token_indices={"embed_tokens": [2, 5], "lm_head": [8, 6, 7]}))
add("lora-tied-tokens", "llama-tied", "trainable_token_indices on a tied base",
    lora(3, 4, ["q_proj"], trainable_token_indices=[4, 1, 9]))


def resize(n: int) -> Callable:
    return lambda model: model.resize_token_embeddings(n, mean_resizing=False)


add("lora-llama-resized", "llama", "vocabulary resized 40 -> 43: the whole tables are in the adapter",
    lora(3, 4, ["q_proj"]), prepare=resize(43))
add("lora-llama-resized-smaller", "llama", "vocabulary resized 40 -> 37", lora(3, 4, ["q_proj"]), prepare=resize(37))
add("lora-llama-resized-embed-head", "llama", "resized, and LoRA on embed_tokens and lm_head",
    lora(4, 9, ["embed_tokens", "lm_head", "v_proj"]), prepare=resize(43))
add("lora-llama-resized-save", "llama", "resized, embed_tokens and lm_head in modules_to_save",
    lora(4, 9, ["v_proj"], modules_to_save=["embed_tokens", "lm_head"]), prepare=resize(45))
add("lora-tied-resized", "llama-tied", "a tied base resized", lora(4, 9, ["v_proj"]), prepare=resize(43))
add("lora-tied-resized-tokens", "llama-tied", "a tied base resized, new rows as trainable tokens",
    lora(4, 9, ["v_proj"], trainable_token_indices=[40, 41, 42]), prepare=resize(43))
add("lora-llama-saved-embeddings", "llama", "save_embedding_layers=True without a resize: tables equal to the base",
    lora(3, 4, ["q_proj"]), save={"save_embedding_layers": True})
add("lora-llama-replication", "llama", "layer_replication [[0,2],[0,2],[1,2]]: five layers from two",
    lora(3, 4, ["q_proj", "up_proj"], layer_replication=[[0, 2], [0, 2], [1, 2]]))

# --- classes and prefixes ---------------------------------------------------------------------------------------
add("lora-llama-headless-adapter", "llama", "trained on AutoModel: keys lack the prefix 'model.'",
    lora(4, 6, ["q_proj", "down_proj"]), auto=AutoModel)
add("lora-gpt2-headless-adapter", "gpt2", "trained on AutoModel: keys lack the prefix 'transformer.'",
    lora(4, 6, ["c_attn"], fan_in_fan_out=True), auto=AutoModel)
add("lora-bert-cls", "bert-cls", "sequence classification: the classifier is in modules_to_save",
    lora(4, 6, ["query", "value", "dense"], task_type="SEQ_CLS"))
add("lora-bert-cls-bias-all", "bert-cls", "bias='all' on BERT, without a task type",
    lora(4, 6, ["query"], bias="all"))
add("lora-bert-headless", "bert-headless", "plain BertModel, files without the prefix 'bert.'",
    lora(5, 4, ["key", "dense"]))
add("lora-bert-headful-adapter", "bert-headless", "trained on a class with a head: keys have 'bert.', the base has not",
    lora(3, 4, ["query", "value"]), auto=AutoModelForSequenceClassification, only_base_names=True)
add("lora-gpt2-headful-adapter", "gpt2-headless", "trained on the class with a head, the base files are headless",
    lora(4, 6, ["c_attn"], fan_in_fan_out=True), auto=AutoModelForCausalLM)
add("lora-bert-headless-adapter", "bert-cls", "trained on AutoModel: keys lack the prefix 'bert.'",
    lora(3, 4, ["query", "value"]), auto=AutoModel)

# --- convolutions and attention ---------------------------------------------------------------------------------
CONVS = ["conv1", "conv2", "point", "conv3"]
add("lora-conv", "conv", "Conv1d, Conv2d (3x3 and 1x1), Conv3d, Linear and Embedding", lora(4, 10, CONVS + ["lin", "emb"]))
add("lora-conv-dora", "conv", "DoRA on all of them", lora(3, 7, CONVS + ["lin", "emb"], use_dora=True))
add("lora-conv-bias", "conv", "lora_bias on convolutions", lora(3, 7, ["conv1", "conv2", "lin"], lora_bias=True))
add("lora-mha", "mha", "nn.MultiheadAttention (in_proj and out_proj) and a Linear", lora(4, 10, ["attn", "lin"]),
    note="PEFT adds the delta of out_proj twice, in the trained forward pass as in the merge: W + 2*s*B@A; in_proj_weight "
         "gets it once")

# --- mixture of experts: target_parameters ----------------------------------------------------------------------
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
for form in ("perexpert", "fused"):
    add(f"lora-mixtral-experts-{form}", f"mixtral-{form}", "gate_up_proj and down_proj by target_parameters",
        lora(2, 5, ["q_proj"], target_parameters=[GATE_UP, DOWN]))
    add(f"lora-mixtral-down-{form}", f"mixtral-{form}", "only down_proj by target_parameters",
        lora(3, 5, [], target_parameters=[DOWN]))
    add(f"lora-qwen3-moe-experts-{form}", f"qwen3-moe-{form}", "gate_up_proj and down_proj; layer 0 is dense",
        lora(3, 4, ["k_proj", "o_proj"], target_parameters=[GATE_UP, DOWN]))
    add(f"lora-mixtral-v4-names-{form}", f"mixtral-{form}",
        "trained by this version with the old module names w1, w2, w3: converted to target_parameters and rank_pattern",
        lora(2, 5, ["q_proj", "w1", "w2", "w3"]))
    CASES.append(Case(f"lora-mixtral-old-experts-{form}",
                      "an adapter of transformers v4: one LoRA per expert and matrix (w1, w2, w3), and the router",
                      f"mixtral-{form}", [{"path": "adapter"}], write=write_old_mixtral, truth=old_experts_truth))
    CASES.append(Case(f"lora-qwen3-moe-old-experts-{form}",
                      "an adapter of transformers v4: one LoRA per expert and matrix (gate_proj, up_proj, down_proj)",
                      f"qwen3-moe-{form}", [{"path": "adapter"}], write=write_old_qwen3, truth=old_experts_truth))
add("lora-mixtral-experts-fused-bf16", "mixtral-fused-bf16", "target_parameters on a bf16 base",
    lora(2, 5, ["q_proj"], target_parameters=[GATE_UP, DOWN]), bf16=True,
    note="PEFT casts the delta of a target_parameters adapter to bf16 before adding it: expected_bf16 is rounded twice")
add("lora-mixtral-gate-up", "mixtral-fused", "only gate_up_proj by target_parameters",
    lora(3, 5, [], target_parameters=[GATE_UP]))
add("lora-mixtral-rank-pattern", "mixtral-fused", "different ranks for the two parameters, and rsLoRA",
    lora(3, 5, [], target_parameters=[GATE_UP, DOWN], use_rslora=True, rank_pattern={"experts.down_proj": 2}))
add("lora-mixtral-router", "mixtral-perexpert", "the router weight (2-D) by target_parameters",
    lora(2, 5, ["v_proj"], target_parameters=["mlp.gate.weight"]))
add("lora-qwen2-moe-experts", "qwen2-moe-perexpert", "experts by target_parameters, shared expert by target_modules",
    lora(3, 4, ["shared_expert.up_proj", "k_proj"], target_parameters=[GATE_UP, DOWN]))
add("lora-gpt-oss-experts", "gpt-oss", "experts stored (experts, in, out): is_transposed",
    lora(3, 4, ["q_proj", "o_proj"], target_parameters=[GATE_UP, DOWN]))
add("lora-gpt-oss-down", "gpt-oss", "only down_proj, stored (experts, in, out)",
    lora(2, 7, [], target_parameters=[DOWN]))

# --- initialisations that change the base -----------------------------------------------------------------------
INIT_ARGS = ["--init-adapter", "init"]
for init, r, alpha in (("pissa", 4, 10), ("pissa_niter_2", 3, 7), ("olora", 4, 10), ("corda", 4, 6), ("lora_ga", 2, 5)):
    name = init.replace("_", "-")
    add(f"lora-llama-{name}", "llama", f"init_lora_weights={init!r}, with the initial adapter",
        mutating_config(init, r, alpha), needs_model=True, after_init=save_initial, args=INIT_ARGS,
        truth=residual_truth, note=f"at init PEFT replaces the base weight by W - s*B0@A0, computed in float32 ({init}) "
        "and rounded to the dtype of W; the truth here is W + s*(B@A - B0@A0) in float64 from the two adapter files")
add("lora-llama-olora-alone", "llama", "init_lora_weights='olora' without the initial adapter: recomputed from the base",
    mutating_config("olora", 3, 7), needs_model=True, truth=olora_truth,
    note="PEFT: Q, R = qr(W as float32); B0 = Q[:, :r], A0 = R[:r]; W -= s*B0@A0 (with the scale, although B0@A0 was "
         "made without it). The truth repeats this in float64")
add("lora-llama-pissa-converted", "llama", "pissa converted by PEFT when saving: rank and alpha doubled",
    mutating_config("pissa", 4, 10), needs_model=True, after_init=save_initial, finish=drop_initial,
    save={"path_initial_model_for_weight_conversion": "cases/lora-llama-pissa-converted/init"})
add("lora-llama-kasa", "llama", "KaSA: the r smallest singular values of W are dropped, then s*(B*diag)@A is added",
    lambda: LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "gate_proj"], kasa_config=KasaConfig()),
    truth=kasa_truth, note="PEFT: svd(W as float32), W = (U*S)[:, :k-r] @ Vh[:k-r] with k = min(in, out), rounded to the "
    "dtype of W, already when the adapter is attached. The truth repeats this in float64")
add("lora-llama-orthogonal", "llama", "init_lora_weights='orthogonal': neither factor is zero, the base stays",
    lora(4, 10, ["q_proj", "up_proj"], init_lora_weights="orthogonal"))

# --- several adapters -------------------------------------------------------------------------------------------
CASES.append(Case("two-lora", "two adapters with weights 0.7 and -0.3: W + sum of weight times delta", "llama", [
    {"path": "adapter", "config": lora(4, 10, ["q_proj", "down_proj"]), "weight": 0.7},
    {"path": "adapter2", "config": lora(3, 5, ["q_proj", "k_proj", "lm_head"]), "weight": -0.3}]))
CASES.append(Case("two-lora-dora", "two adapters, the second is DoRA: its delta is (merged alone) minus W", "llama", [
    {"path": "adapter", "config": lora(4, 10, ["q_proj", "down_proj"]), "weight": 0.7},
    {"path": "adapter2", "config": lora(3, 5, ["q_proj", "k_proj"], use_dora=True), "weight": 0.5}]))
CASES.append(Case("two-lora-ia3", "LoRA and IA3 on the same base", "qwen2", [
    {"path": "adapter", "config": lora(4, 10, ["q_proj", "down_proj"]), "weight": 1.0},
    {"path": "adapter2", "config": lambda: IA3Config(target_modules=["q_proj", "v_proj"], feedforward_modules=[]),
     "weight": 1.0}]))

# --- other kinds ------------------------------------------------------------------------------------------------
add("vera-llama", "llama", "VeRA with its projections in the file",
    lambda: VeraConfig(r=6, target_modules=["q_proj", "v_proj", "down_proj"], d_initial=0.2))
add("vera-llama-regenerated", "llama", "VeRA without its projections: regenerated from projection_prng_key 7",
    lambda: VeraConfig(r=5, target_modules=["q_proj", "v_proj", "down_proj"], save_projection=False,
                       projection_prng_key=7, d_initial=0.2), after_init=save_projection)
add("vera-gpt2-regenerated", "gpt2", "VeRA on Conv1D, regenerated from the default key 0",
    lambda: VeraConfig(r=16, target_modules=["c_attn", "mlp.c_proj"], save_projection=False, d_initial=0.2),
    after_init=save_projection)
add("vera-bert-bias-only", "bert-headless", "VeRA with bias='vera_only'",
    lambda: VeraConfig(r=6, target_modules=["query", "value"], bias="vera_only", d_initial=0.2))


def adalora(targets, steps: int, **kw) -> Callable:
    return lambda: AdaLoraConfig(target_modules=targets, total_step=steps, **kw)


add("adalora-llama", "llama", "AdaLoRA pruned from rank 6 to an average of 3: masks in rank_pattern",
    adalora(["q_proj", "v_proj", "up_proj"], 14, init_r=6, target_r=3, tinit=2, tfinal=4, deltaT=1, lora_alpha=10),
    steps=14, after_backward=allocate,
    note="the saved tensors hold only the kept ranks; the scale is lora_alpha / (init_r + 1e-5), whatever was pruned; "
         "q_proj of layer 1 was pruned to rank 0")
add("adalora-llama-unpruned", "llama", "AdaLoRA saved before any pruning",
    adalora(["q_proj", "v_proj"], 100, init_r=5, target_r=2, tinit=50, tfinal=10, lora_alpha=7), steps=5)
add("adalora-gpt2", "gpt2", "AdaLoRA on Conv1D, pruned",
    adalora(["c_attn"], 10, init_r=6, target_r=2, tinit=1, tfinal=3, deltaT=1, lora_alpha=9, fan_in_fan_out=True),
    steps=10, after_backward=allocate)
add("adalora-conv", "conv", "AdaLoRA on Conv2d",
    adalora(["conv2", "lin"], 100, init_r=4, target_r=2, tinit=50, tfinal=10, lora_alpha=6), steps=5)

add("loha-llama", "llama", "LoHa on Linear", lambda: LoHaConfig(r=4, alpha=10, target_modules=["q_proj", "down_proj"]))
add("loha-llama-patterns", "llama", "LoHa with rank_pattern and alpha_pattern", lambda: LoHaConfig(
    r=4, alpha=6, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2}, alpha_pattern={"q_proj": 5}))
add("loha-conv", "conv", "LoHa on convolutions, flattened",
    lambda: LoHaConfig(r=4, alpha=10, target_modules=["conv1", "conv2", "point", "lin"]))
add("loha-conv-effective", "conv", "LoHa on convolutions with use_effective_conv2d (hada_t1, hada_t2)",
    lambda: LoHaConfig(r=4, alpha=10, target_modules=["conv1", "conv2", "point", "lin"], use_effective_conv2d=True))
add("lokr-llama-full", "llama", "LoKr, both factors full",
    lambda: LoKrConfig(r=32, alpha=10, target_modules=["q_proj", "down_proj"]))
add("lokr-llama-lowrank", "llama", "LoKr, w2 low-rank",
    lambda: LoKrConfig(r=1, alpha=3, target_modules=["q_proj", "down_proj"]))
add("lokr-llama-both", "llama", "LoKr with decompose_both: w1 and w2 low-rank",
    lambda: LoKrConfig(r=1, alpha=3, target_modules=["q_proj", "gate_proj"], decompose_both=True))
add("lokr-llama-factor", "llama", "LoKr with decompose_factor 2 and patterns",
    lambda: LoKrConfig(r=2, alpha=3, target_modules=["q_proj", "gate_proj"], decompose_factor=2,
                       rank_pattern={"gate_proj": 3}, alpha_pattern={"q_proj": 5}))
add("lokr-conv", "conv", "LoKr on convolutions, low-rank",
    lambda: LoKrConfig(r=1, alpha=3, target_modules=["conv1", "conv2", "point", "lin"]))
add("lokr-conv-effective", "conv", "LoKr on convolutions with use_effective_conv2d (lokr_t2)",
    lambda: LoKrConfig(r=1, alpha=3, target_modules=["conv1", "conv2", "point", "lin"], use_effective_conv2d=True))
add("ia3-llama", "llama", "IA3 on attention and feed-forward",
    lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
add("ia3-qwen2", "qwen2", "IA3 on modules with a bias: the bias is scaled too, except for feed-forward",
    lambda: IA3Config(target_modules=["k_proj", "v_proj", "q_proj"], feedforward_modules=["q_proj"]))
add("ia3-gpt2", "gpt2", "IA3 on Conv1D",
    lambda: IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True))
add("ia3-conv", "conv", "IA3 on Conv2d, Conv3d and a grouped Conv2d",
    lambda: IA3Config(target_modules=["conv2", "conv3", "grouped", "lin"], feedforward_modules=["conv3", "grouped"]))
add("ia3-bert-save", "bert-cls", "IA3 with modules_to_save",
    lambda: IA3Config(target_modules=["key", "value"], feedforward_modules=[], modules_to_save=["classifier"]))

# --- adapters that must be refused ------------------------------------------------------------------------------


def refuse(name: str, reason: str, config: Callable, base: str = "llama", **kw) -> None:
    add("refuse-" + name, base, "must be refused: " + reason, config, refused=reason, **kw)


refuse("alora", "aLoRA acts only after its invocation tokens",
       lora(4, 10, ["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6]))
refuse("prompt-tuning", "PROMPT_TUNING has no weights to merge",
       lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
refuse("prefix-tuning", "PREFIX_TUNING has no weights to merge",
       lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), steps=0)
refuse("p-tuning", "P_TUNING has no weights to merge",
       lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8))
refuse("pissa-alone", "pissa changed the base and the initial adapter is not given",
       mutating_config("pissa", 4, 10), needs_model=True)
refuse("grouped-conv", "LoRA on a grouped convolution mixes the groups: no grouped weight computes the same",
       lora(4, 10, ["grouped"]), base="conv")
refuse("resized-incomplete", "the vocabulary was resized, but only the embedding is in the file, not the head",
       lora(4, 9, ["embed_tokens"]), prepare=resize(43))
refuse("pattern-order", "rank_pattern contradicts the tensors: PEFT sorted its keys when saving (PEFT cannot load it)",
       lora(3, 7, ["q_proj", "k_proj"], rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 6}))
for hand_made in ("xlora", "arrow", "loftq"):
    reason = {"xlora": "X-LoRA mixes adapters by the input", "arrow": "Arrow routes adapters by the input",
              "loftq": "LoftQ: the adapter belongs to a quantized base"}[hand_made]
    CASES.append(Case("refuse-" + hand_made, "must be refused: " + reason, "llama",
                      [{"path": "adapter", "config": lora(3, 4, ["q_proj"])}], refused=reason,
                      finish=EDITS[hand_made]))

# --- FP8 bases --------------------------------------------------------------------------------------------------
for scheme, how in (("block", "weight_scale_inv per 128x128 block, partial blocks at the edges"),
                    ("tensor", "one weight_scale per tensor, shapes [] and [1]"),
                    ("channel", "weight_scale (out, 1), float32 and bfloat16, as compressed-tensors writes it")):
    CASES.append(Case(f"lora-fp8-{scheme}", f"F8_E4M3 base with {how}: dequantised, then merged", f"fp8-{scheme}",
                      [{"path": "adapter"}], write=train_fp8, truth=fp8_truth))
