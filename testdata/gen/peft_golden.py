"""Writes testdata/golden/peft: tiny bases, PEFT adapters trained on them, and the tensors a correct merge gives.

    python testdata/gen/peft_golden.py [--only CASE] [--out DIR] [--keep-adapters] [--list]

Everything is seeded by name. With --keep-adapters, bases and adapters that exist in the output folder are used as
they are and only the truth is computed again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import warnings
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from peft_cases import CASES, Case
from tiny_bases import (BASES, FP8, base_inputs, base_tensors, file_tensors, load_base, seed_all, write_base,
                        write_fp8_base)

warnings.filterwarnings("ignore")
HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT_OUT = os.path.join(HERE, "..", "golden", "peft")
PARITY = 1e-9


@contextlib.contextmanager
def all_double():
    """Model code casts to float32 in norms and softmax: in here those casts go to float64 instead."""
    to_float = torch.Tensor.float
    with mock.patch.object(torch, "float32", torch.float64), mock.patch.object(
            torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else to_float(t)):
        yield


def output(model: nn.Module, inputs: dict) -> torch.Tensor:
    """The forward result as one flat tensor."""
    out = model(**inputs)
    if isinstance(out, torch.Tensor):
        return out.flatten()
    parts = [getattr(out, key, None) for key in ("logits", "last_hidden_state", "pooler_output")]
    return torch.cat([p.flatten() for p in parts if p is not None])


def double_output(model: nn.Module, inputs: dict) -> torch.Tensor:
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad(), all_double():
        return output(model, inputs)


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)).item()


def train(model: nn.Module, inputs: dict, steps: int, lr: float, after_backward=None) -> None:
    """A few AdamW steps towards a random target."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=lr)
    target = None
    for step in range(steps):
        out = output(model, inputs).float()
        if target is None:
            target = out.detach() + torch.randn_like(out)
        optimiser.zero_grad()
        ((out - target) ** 2).mean().backward()
        optimiser.step()
        if after_backward:
            after_backward(model, step)


def untie(model: nn.Module) -> None:
    """Give every module its own copy of parameters that are shared, so that merging one does not change another."""
    seen = set()
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is None or p.numel() == 0:
                continue
            key = p.data_ptr()
            if key in seen:
                module._parameters[name] = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
            seen.add(key)


def prepared_base(case: Case, adapter: dict, dtype=None) -> nn.Module:
    model = load_base(case.base, auto=adapter.get("auto"), dtype=dtype)
    if adapter.get("prepare"):
        adapter["prepare"](model)
    return model


def save_adapter(model: PeftModel, path: str, **kw) -> None:
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path, **kw)
    readme = os.path.join(path, "README.md")
    if os.path.exists(readme):
        os.remove(readme)


def make_adapter(case: Case, adapter: dict, folder: str) -> torch.Tensor:
    """Train one adapter and save it; returns the output of the trained model in its training precision."""
    seed_all(f"case {case.name} {adapter['path']}")
    model = prepared_base(case, adapter)
    inputs = base_inputs(case.base)
    config = adapter["config"](model) if adapter.get("needs_model") else adapter["config"]()
    model = get_peft_model(model, config)
    model.eval()
    if adapter.get("after_init"):
        adapter["after_init"](model, folder)
    if adapter.get("perturb"):
        adapter["perturb"](model)
    train(model, inputs, adapter.get("steps", 4), adapter.get("lr", 0.03), adapter.get("after_backward"))
    with torch.no_grad():
        out = output(model, inputs)
    save_adapter(model, os.path.join(folder, adapter["path"]), **(adapter.get("save") or {}))
    return out


def load_double(case: Case, adapter: dict, path: str) -> nn.Module:
    seed_all(f"case {case.name} {adapter['path']}")  # new rows and heads start as they did in training
    model = prepared_base(case, adapter, torch.float32).double()
    model = PeftModel.from_pretrained(model, path).double().eval()
    for name, t in list(model.named_parameters()) + list(model.named_buffers()):
        if t.is_floating_point() and "inv_freq" not in name:
            assert t.dtype == torch.float64, (name, t.dtype)
    return model


def merged_truth(case: Case, adapter: dict, folder: str, trained: torch.Tensor | None) -> tuple[dict, dict, list]:
    """Merge with PEFT in float64: (tensors under file names, config values, notes)."""
    path = os.path.join(folder, adapter["path"])
    seed_all(f"inputs {case.name}")
    inputs = base_inputs(case.base)
    notes = []

    model = load_double(case, adapter, path)
    before = double_output(model, inputs)
    if trained is not None:  # the reloaded adapter must be the trained one
        seed_all(f"case {case.name} {adapter['path']}")
        prepared_base(case, adapter)
        same = double_output(model, base_inputs(case.base))
        off = deviation(trained, same)
        limit = 0.3 if BASES[case.base].dtype == torch.bfloat16 else 1e-4
        if off > limit:
            notes.append(f"the reloaded adapter differs from the trained model by {off:.1e}")
    untie(model)
    merged = model.merge_and_unload()
    after = double_output(merged, inputs)
    off = deviation(after, before)
    if off > PARITY:
        notes.append(f"trained forward and merged model differ by {off:.2e}")

    plain = load_double(case, adapter, path).merge_and_unload()
    off = deviation(double_output(plain, inputs), before)
    if off > PARITY:
        notes.append("PEFT's own merge_and_unload (without giving shared weights their own copies first) differs from "
                     f"the trained forward by {off:.2e}; the expected tensors follow the trained forward")
    config = {}
    if hasattr(merged, "config"):
        for key in ("vocab_size", "num_hidden_layers"):
            if hasattr(merged.config, key):
                config[key] = getattr(merged.config, key)
        config["tie_word_embeddings"] = base_is_tied(case.base)  # settle_tied_head corrects it
    return file_tensors(merged, case.base), config, notes


def base_names(tensors: dict, base: dict, case: Case) -> dict:
    """Rename by the prefix of the bare model where the adapter's class has another prefix than the base's files."""
    if any(k in base for k in tensors):
        return tensors
    prefix = {"bert": "bert."}.get(case.base.split("-")[0]) or ("transformer." if "gpt2" in case.base else "model.")
    if any(prefix + k in base for k in tensors):
        return {prefix + k: v for k, v in tensors.items()}
    return {k.removeprefix(prefix): v for k, v in tensors.items()}


def base_is_tied(name: str) -> bool:
    with open(os.path.join("bases", name, "config.json")) as f:
        return bool(json.load(f).get("tie_word_embeddings", False))


def settle_tied_head(tensors: dict, base: dict, config: dict) -> None:
    """A head equal to the embedding stays tied (no tensor of its own); a different one unties the model."""
    if not config.get("tie_word_embeddings"):
        return
    head = next((k for k in tensors if k.endswith("lm_head.weight")), None)
    embed = next((k for k in tensors if k.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if head is None or head in base:
        return
    if (tensors[head] - tensors[embed]).abs().max() <= 1e-12:
        del tensors[head]
    else:
        config["tie_word_embeddings"] = False


def ordinary_merge(case: Case, adapter: dict, folder: str) -> dict:
    """PEFT's everyday merge, in the dtype of the base."""
    model = PeftModel.from_pretrained(prepared_base(case, adapter), os.path.join(folder, adapter["path"])).eval()
    return file_tensors(model.merge_and_unload(), case.base)


def contiguous(tensors: dict) -> dict:
    return {k: tensors[k].detach().clone().contiguous() for k in sorted(tensors)}


def build(case: Case, keep_adapters: bool) -> str:
    """Write cases/<name>; returns a line for the log."""
    folder = os.path.join("cases", case.name)
    if not keep_adapters:
        shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    info = {"about": case.about, "base": case.base,
            "adapters": [{"path": a["path"], "weight": a.get("weight", 1.0)} for a in case.adapters]}
    info["args"] = case.args
    base = {k: v.double() if v.is_floating_point() else v for k, v in base_tensors(case.base).items()}
    notes = [case.note] if case.note else []
    config: dict = {}

    if case.write:  # cases made by hand
        if not keep_adapters:
            seed_all("case " + case.name)
            case.write(case, folder)
    trained = []
    for a in case.adapters:
        if a.get("config") and not keep_adapters:
            trained.append(make_adapter(case, a, folder))
        else:
            trained.append(None)

    if case.finish and not keep_adapters:
        case.finish(os.path.join(folder, "adapter"))
    if case.refused:
        info["refused"] = case.refused
    else:
        total = None
        if case.truth:
            total, config, more = case.truth(case, folder, trained)
            notes += more
        else:
            for a, t in zip(case.adapters, trained):
                tensors, config, more = merged_truth(case, a, folder, t)
                tensors = base_names(tensors, base, case)
                settle_tied_head(tensors, base, config)
                notes += more
                w = a.get("weight", 1.0)
                if len(case.adapters) == 1 and w == 1.0:
                    total = tensors
                else:
                    assert tensors.keys() == base.keys()
                    total = total or {k: v.clone() for k, v in base.items()}
                    for k in total:
                        total[k] = total[k] + w * (tensors[k] - base[k])
        total = base_names(total, base, case)
        if any(a.get("auto") for a in case.adapters):  # the adapter's class may lack the head of the base
            total = {**base, **total}
        if case.only_base_names:
            total = {k: v for k, v in total.items() if k in base}
        changed = {k: v for k, v in total.items()
                   if k not in base or base[k].shape != v.shape or not torch.equal(base[k], v)}
        assert all(v.dtype == torch.float64 for v in changed.values())
        info["changed"] = len(changed)
        info["unchanged"] = sum(1 for k in base if k in total and k not in changed)
        info["removed"] = sorted(k for k in base if k not in total)
        info["config"] = config
        save_file(contiguous(changed), os.path.join(folder, "expected.safetensors"))
        if case.bf16:
            bf16 = ordinary_merge(case, case.adapters[0], folder)
            bf16 = {k: v for k, v in bf16.items() if k in changed}
            save_file(contiguous(bf16), os.path.join(folder, "expected_bf16.safetensors"))
    if notes:
        info["note"] = "; ".join(notes)
    info.update(peft=peft.__version__, transformers=transformers.__version__, torch=torch.__version__.split("+")[0])
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(info, f, indent=2)
        f.write("\n")
    return f"{case.name}: {info.get('refused') or str(info['changed']) + ' changed'} {'; '.join(notes)}"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--only", action="append", help="case to build (may be repeated)")
    ap.add_argument("--out", default=DEFAULT_OUT)
    ap.add_argument("--keep-adapters", action="store_true")
    ap.add_argument("--list", action="store_true")
    args = ap.parse_args()
    if args.list:
        for case in CASES:
            print(case.name, "-", case.about)
        return
    os.makedirs(args.out, exist_ok=True)
    os.chdir(args.out)
    failed = []
    for name in [*BASES, *FP8]:
        wanted = not args.only or any(c.base == name for c in CASES if c.name in args.only)
        if wanted and not (args.keep_adapters and os.path.isdir(os.path.join("bases", name))):
            (write_fp8_base if name in FP8 else write_base)(name)
    if not args.only:  # cases that no longer exist
        for name in set(os.listdir("cases") if os.path.isdir("cases") else []) - {c.name for c in CASES}:
            shutil.rmtree(os.path.join("cases", name))
    for case in CASES:
        if args.only and case.name not in args.only:
            continue
        try:
            print(build(case, args.keep_adapters), flush=True)
        except Exception as e:  # report all, fail at the end
            if args.only:
                raise
            failed.append(case.name)
            print(f"{case.name}: FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    if failed:
        sys.exit("failed: " + " ".join(failed))


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT writes sets in hash order: fix it for stable files
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    main()
