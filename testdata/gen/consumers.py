"""Gives what loratool extracts and resizes to the programs that serve adapters: vLLM's own loading code and llama.cpp.

    python testdata/gen/consumers.py --loratool BIN [--vllm DIR] [--llama DIR --llama-bin DIR] [--work DIR]

DIR of --vllm is the unpacked wheel of vLLM 0.33.0 (`pip download vllm==0.33.0 --no-deps`, then unzip); of --llama the
source of llama.cpp release v0.5.0 (npm's node-llama-cpp 3.22.1 carries it as llama/gitRelease.bundle), of --llama-bin
its libraries (npm's @node-llama-cpp/linux-x64 3.22.1, bins/linux-x64, without variants). Needs g++ for llama.cpp. What is not given is not
checked, and said so.

For tiny models of three families, and every way to make a plain adapter:

1. vLLM: peft_helper.py reads and accepts the config with the smallest --max-lora-rank that holds the rank, and
   lora_model.py reads the tensors; the products with its scales are PEFT's, for the same modules. These modules are
   vLLM's own, with stand-ins for what they import and do not call: loggers, layers of the GPU, environment settings.
2. llama.cpp: convert_lora_to_gguf.py converts the adapter, and the logits of the base with it are those of the merged
   model, converted by the same tool. Both are float32; logits are sums of some hundred products, so 1e-5 of the largest
   is far above rounding, and what the adapter changes must be a hundred times that. Gemma's GELU is a table of f16 in
   ggml (ggml-cpu/vec.h), where a last bit of float32 may move an activation by 2^-11 of itself: 2^-11 there.
3. What loratool warns of is so: without --alpha, llama.cpp reads ranks that differ as another adapter, and with it as
   the same; it drops saved norms and does not load GPT-2's layers. vLLM refuses saved modules and a rank above
   --max-lora-rank.
4. A plain adapter has one rank and no pattern, and neither program is warned of, whatever the rule; its padding is what
   the certificate says, and what is padded is right in both like all else.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import types

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Gemma2Config, Gemma2ForCausalLM

import extract_models as models

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENS = [3 + i * 7 % 36 for i in range(12)]
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # MaxLoRARanks of vllm/config/lora.py
BOUND = {"llama": 1e-5, "qwen2": 1e-5, "gemma2": 2**-11}

results = {"passed": 0, "failed": 0, "not checked": 0}


def report(ok: bool, name: str, text: str = "") -> None:
    results["passed" if ok else "failed"] += 1
    print(("ok   " if ok else "FAIL ") + name + (": " + text if text else ""), flush=True)


def run(binary: str, *args: str) -> dict:
    done = subprocess.run([binary, *args, "--json", "-f"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: exit {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout)


# --- the models -------------------------------------------------------------------------------------------------
def make(name: str, folder: str):
    if name != "gemma2":
        models.make(name, folder)
        return type(models.new(name))
    torch.manual_seed(5)
    model = Gemma2ForCausalLM(Gemma2Config(head_dim=6, query_pre_attn_scalar=6, sliding_window=64, **models.DECODER))
    models.save(model, os.path.join(folder, "base"))
    models.train(name, model)
    models.save(model, os.path.join(folder, "tuned"))
    return Gemma2ForCausalLM


def load(cls, folder: str):
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


# --- vLLM -------------------------------------------------------------------------------------------------------
class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules under test from the wheel and an empty one for every other of vllm."""

    REAL = {"vllm.lora.peft_helper", "vllm.lora.lora_model", "vllm.lora.lora_weights", "vllm.lora.utils"}

    def __init__(self, root: str):
        self.root = root

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "vllm":
            return None
        if name in self.REAL:
            return importlib.util.spec_from_file_location(name, os.path.join(self.root, *name.split(".")) + ".py")
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        class Empty(types.ModuleType):
            __path__: list = []

            def __getattr__(self, key):
                if key.startswith("__"):
                    raise AttributeError(key)
                if key == "PIN_MEMORY":
                    return False
                if key == "init_logger":
                    return lambda _: types.SimpleNamespace(**{k: (lambda *a, **b: None) for k in ("info_once", "warning", "info")})
                return type(key, (), {})

        return Empty(spec.name)

    def exec_module(self, module):
        pass


class VLLM:
    def __init__(self, root: str):
        if not os.path.exists(os.path.join(root, "vllm", "lora", "lora_model.py")):
            sys.exit(f"{root}: no vllm/lora/lora_model.py")
        sys.meta_path.insert(0, StandIns(root))
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper
        self.helper, self.model = PEFTHelper, LoRAModel

    def read(self, adapter: str, max_rank: int | None = None):
        helper = self.helper.from_local_dir(adapter, 4096)
        most = max([helper.r, *helper.rank_pattern.values()])
        limit = max_rank or next((r for r in RANKS if r >= most), RANKS[-1])
        helper.validate_legal(types.SimpleNamespace(max_lora_rank=limit))
        return self.model.from_local_checkpoint(adapter, MODULES, helper, device="cpu", dtype=torch.float32)

    def check(self, name: str, adapter: str, peft) -> None:
        lora = self.read(adapter)
        worst, ours = 0.0, {}
        for module, m in peft.named_modules():
            if hasattr(m, "get_delta_weight") and "default" in getattr(m, "lora_A", {}):
                ours[module.removeprefix("base_model.model.")] = m.get_delta_weight("default").detach()
        for module, weights in lora.loras.items():
            if module in ours:
                weights = weights.optimize()
                delta = weights.lora_b @ weights.lora_a
                worst = max(worst, ((delta - ours[module]).norm() / ours[module].norm().clamp_min(1e-30)).item())
        same = set(ours) == set(lora.loras)
        report(same and worst <= 1e-6, f"{name}, vLLM", f"{len(lora.loras)} modules, products within {worst:.1e}")

    def refuses(self, name: str, adapter: str, max_rank: int | None = None) -> None:
        try:
            self.read(adapter, max_rank)
            said = ""
        except ValueError as e:
            said = str(e)
        report(bool(said), f"{name}, refused by vLLM", said[:150])


# --- llama.cpp --------------------------------------------------------------------------------------------------
class Llama:
    def __init__(self, source: str, libraries: str, work: str):
        self.source, self.libraries, self.program = source, libraries, os.path.join(work, "lora_logits")
        subprocess.run(["g++", "-O1", "-std=c++17", f"-I{source}/include", f"-I{source}/ggml/include",
                        os.path.join(HERE, "lora_logits.cpp"), os.path.join(libraries, "libllama.v0.5.0.so"),
                        os.path.join(libraries, "libggml.v0.5.0.so"), os.path.join(libraries, "libggml-base.so"),
                        f"-Wl,-rpath,{libraries}", "-o", self.program], check=True)

    def convert(self, folder: str) -> str:
        """convert_hf_to_gguf.py's own class for the model, but for the tokenizer, which these have not."""
        out = os.path.join(folder, "model.gguf")
        code = """
import sys, torch
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import gguf
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
folder = Path(sys.argv[2])
hparams = ModelBase.load_hparams(folder, False)
family = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
class Model(family):
    model_arch = family.model_arch
    def set_vocab(self):
        self._set_vocab_none()
    def set_gguf_parameters(self):
        super().set_gguf_parameters()
        if not any("vocab_size" in k for table in self.gguf_writer.kv_data for k in table):
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
with torch.inference_mode():
    Model(folder, gguf.LlamaFileType.ALL_F32, Path(sys.argv[3]), hparams=hparams).write()
"""
        self.python("-c", code, self.source, folder, out)
        return out

    def python(self, *args: str) -> None:
        done = subprocess.run([sys.executable, *args], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-600:])

    def convert_adapter(self, base: str, adapter: str) -> str:
        out = os.path.join(adapter, "adapter.gguf")
        self.python(os.path.join(self.source, "convert_lora_to_gguf.py"), "--base", base, "--outtype", "f32", "--outfile", out, adapter)
        return out

    def logits(self, model: str, adapter: str = "-") -> torch.Tensor:
        done = subprocess.run([self.program, self.libraries, model, adapter, *map(str, TOKENS)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-600:])
        return torch.tensor([[float(v) for v in line.split()] for line in done.stdout.splitlines()])

    def compare(self, base: str, adapter: str, merged: str) -> tuple[float, float]:
        """How far the base with the adapter is from the merged model, and the base alone, of the largest logit."""
        plain = self.logits(os.path.join(base, "model.gguf"))
        with_adapter = self.logits(os.path.join(base, "model.gguf"), self.convert_adapter(base, adapter))
        want = self.logits(self.convert(merged))
        largest = want.abs().max().item()
        return (with_adapter - want).abs().max().item() / largest, (plain - want).abs().max().item() / largest

    def check(self, name: str, base: str, adapter: str, merged: str) -> None:
        bound = BOUND[name.split(",")[0]]
        off, moved = self.compare(base, adapter, merged)
        report(off <= bound and moved >= 100 * bound, f"{name}, llama.cpp", f"logits within {off:.1e}, which the adapter moves by {moved:.1e}")

    def refuses(self, name: str, base: str, adapter: str) -> None:
        try:
            self.logits(os.path.join(base, "model.gguf"), self.convert_adapter(base, adapter))
            said = ""
        except RuntimeError as e:
            said = str(e).strip()
        report(bool(said), f"{name}, refused by llama.cpp", said.splitlines()[-1][:150] if said else "")


# --- the adapters -----------------------------------------------------------------------------------------------
NO_TABLES = ["--exclude", "*embed*", "--exclude", "lm_head"]
PLAIN = {
    "rank 4": ["--rank", "4"], "full rank": ["--rank", "24"], "energy": ["--energy", "0.8"], "budget": ["--params", "5000"],
    "error": ["--error", "0.4", "--max-rank", "12"], "size": ["--size", "30KB", "--alpha", "3"],
    "alpha": ["--rank", "3", "--alpha", "7"], "bf16": ["--rank", "8", "--dtype", "bf16"],
}


def check_plain(name: str, adapter: str, doc: dict) -> None:
    """The file itself: one rank in config and tensors, and as many zeros as certified."""
    with open(os.path.join(adapter, "adapter_config.json")) as f:
        config = json.load(f)
    zeros = 0
    tensors = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    ranks = {config["r"]}
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            b = tensors[key.replace("lora_A", "lora_B")]
            ranks |= {a.shape[0], b.shape[1]}
            zeros += int((~(a.any(1) | b.any(0))).sum()) * (a.shape[1] + b.shape[0])
    said = {d["code"] for d in doc["decisions"]} & {"llama-alpha-pattern"}
    certified = doc["certificate"]
    ok = len(ranks) == 1 and not config["rank_pattern"] and not config["alpha_pattern"] and not said
    ok = ok and zeros == certified["padding"] and sum(t.numel() for t in tensors.values()) == certified["parameters"]
    report(ok, f"{name}, one rank", f"{ranks}, {zeros} zeros of {certified['parameters']}")


def check_family(name: str, binary: str, vllm: VLLM | None, llama: Llama | None, work: str) -> None:
    folder = os.path.join(work, name)
    base, tuned = os.path.join(folder, "base"), os.path.join(folder, "tuned")
    cls = make(name, folder)
    if llama:
        gguf = llama.convert(base)
        torch_logits = load(cls, base)(torch.tensor([TOKENS])).logits[0].detach()
        off = (llama.logits(gguf) - torch_logits).abs().max().item() / torch_logits.abs().max().item()
        report(off <= BOUND[name], f"{name}, llama.cpp and torch on the base", f"logits within {off:.1e}")

    def check(label: str, adapter: str) -> None:
        if vllm:
            vllm.check(f"{name}, {label}", adapter, PeftModel.from_pretrained(load(cls, base), adapter).eval())
        if llama:
            merged = adapter + "-merged"
            run(binary, "merge", "--base", base, "--adapter", adapter, "-o", merged, "--dtype", "f32")
            llama.check(f"{name}, {label}", base, adapter, merged)

    for label, rule in PLAIN.items():
        adapter = os.path.join(folder, label.replace(" ", ""))
        doc = run(binary, "extract", "--base", base, "--tuned", tuned, "-o", adapter, "--plain", *rule)
        check_plain(f"{name}, extract --plain, {label}", adapter, doc)
        check(f"extract --plain, {label}", adapter)
    resized = os.path.join(folder, "resized")
    run(binary, "resize", os.path.join(folder, "fullrank"), "-o", resized, "--rank", "5")
    check("resize", resized)
    for label, rule in {"energy": ["--energy", "0.8"], "budget": ["--params", "5000", "--alpha", "5"]}.items():
        resized = os.path.join(folder, "resized" + label)
        doc = run(binary, "resize", os.path.join(folder, "fullrank"), "-o", resized, "--plain", *rule)
        check_plain(f"{name}, resize --plain, {label}", resized, doc)
        check(f"resize --plain, {label}", resized)


def check_warnings(binary: str, vllm: VLLM | None, llama: Llama | None, work: str) -> None:
    """What is not plain, and what is and still not for everyone. The models are those of check_family."""

    def extract(name: str, label: str, *rule: str) -> tuple[str, str, set]:
        base, out = os.path.join(work, name, "base"), os.path.join(work, name, label)
        doc = run(binary, "extract", "--base", base, "--tuned", os.path.join(work, name, "tuned"), "-o", out, *rule)
        return base, out, {d["code"] for d in doc["decisions"]}

    def compare(base: str, adapter: str) -> tuple[float, float]:
        merged = adapter + "-merged"
        run(binary, "merge", "--base", base, "--adapter", adapter, "-o", merged, "--dtype", "f32")
        return llama.compare(base, adapter, merged)

    differ = ["--energy", "0.8", "--exclude", "*norm*", *NO_TABLES]
    base, out, codes = extract("llama", "differ", *differ)
    said = "llama-alpha-pattern" in codes
    if llama:
        off, moved = compare(base, out)
        report(said and off > 0.1 * moved, "ranks that differ, another adapter in llama.cpp", f"logits off by {off:.1e} of {moved:.1e}")
    base, out, codes = extract("llama", "alpha8", *differ, "--alpha", "8")
    if llama:
        off, moved = compare(base, out)
        report("llama-alpha-pattern" not in codes and off <= BOUND["llama"], "ranks that differ under one alpha, llama.cpp", f"logits within {off:.1e}")
    base, out, _ = extract("llama", "norms", "--rank", "4", *NO_TABLES)
    if vllm:
        vllm.refuses("saved norms", out)
    if llama:
        off, moved = compare(base, out)
        report(off > 100 * BOUND["llama"], "saved norms, dropped by llama.cpp", f"logits off by {off:.1e} of {moved:.1e}")
    _, out, codes = extract("llama", "rank24", "--rank", "24", "--plain")
    if vllm:
        report("vllm-rank" in codes, "rank 24, --max-lora-rank is said")
        vllm.refuses("rank 24 with the default", out, 16)
    if llama:
        models.make("gpt2", os.path.join(work, "gpt2"))
        config = os.path.join(work, "gpt2", "base", "config.json")
        with open(config) as f:
            text = json.load(f)
        text["n_ctx"] = text["n_positions"]  # which the converter reads and transformers no longer writes
        with open(config, "w") as f:
            json.dump(text, f)
        base, out, codes = extract("gpt2", "plain", "--rank", "4", "--plain")
        llama.convert(base)
        report("llama-conv1d" in codes, "GPT-2, it is said")
        llama.refuses("GPT-2's layers", base, out)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--loratool", required=True)
    p.add_argument("--vllm", default="")
    p.add_argument("--llama", default="")
    p.add_argument("--llama-bin", default="")
    p.add_argument("--work")
    args = p.parse_args()
    work = args.work or tempfile.mkdtemp()
    os.makedirs(work, exist_ok=True)
    vllm = VLLM(args.vllm) if args.vllm else None
    llama = Llama(os.path.abspath(args.llama), os.path.abspath(args.llama_bin), work) if args.llama and args.llama_bin else None
    for what, given in (("vLLM", vllm), ("llama.cpp", llama)):
        if not given:
            results["not checked"] += 1
            print(f"NOT CHECKED: {what}, which was not given", flush=True)
    binary = os.path.abspath(args.loratool)
    checks = {name: lambda name=name: check_family(name, binary, vllm, llama, work) for name in BOUND}
    checks["warnings"] = lambda: check_warnings(binary, vllm, llama, work)
    for name, check in checks.items():
        try:
            check()
        except Exception as e:  # one that fails must not hide the others
            report(False, name, f"{type(e).__name__}: {e}"[:900])
    print(results)
    sys.exit(1 if results["failed"] else 0)


if __name__ == "__main__":
    main()
