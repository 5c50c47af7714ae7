"""Makes testdata/golden/convert/types.tsv: what llama.cpp's converter makes of models in types of blocks, and split.

    python testdata/gen/convert_types.py --llama-cpp DIR --loratool BIN

DIR is the source of llama.cpp 0.5.0. Each line has a model, a type, the largest number of tensors and of bytes of a file
(0 for no limit), and the SHA-256 of each file. The models are those of convert_golden.py, and "wide", whose rows are 256
and more: the folder that BIN makes of golden/ggufquant/source-f16.gguf, with the tokenizer.model of the model "linear".
Needs torch, transformers and safetensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUNS = [  # model, type, tensors, bytes
    ("wide", "q8_0", 0, 0), ("wide", "tq1_0", 0, 0), ("wide", "tq2_0", 0, 0), ("wide", "q8_0", 5, 0), ("wide", "f16", 0, 100_000),
    ("qwen3", "q8_0", 0, 0), ("qwen3", "f16", 7, 0), ("mixtral", "bf16", 0, 2_000), ("bert-mean", "q8_0", 0, 0), ("gpt2", "tq2_0", 0, 0),
    ("qwen3", "f32", 100, 0),
]


def wide(binary, folder):
    subprocess.run([binary, "convert", str(GOLDEN / "ggufquant" / "source-f16.gguf"), "-o", str(folder), "--no-provenance", "-q"], check=True)
    shutil.copy(GOLDEN / "convert" / "models" / "linear" / "tokenizer.model", folder)
    return folder


def convert(folder, out, outtype, pre, tensors, size):
    import conversion.base as base
    import gguf
    from conversion import get_model_class

    def refuse(*_, **__):
        raise ValueError("settings come from config.json")

    base.AutoConfig = type("NoDefaults", (), {"from_pretrained": staticmethod(refuse)})
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    types = {"f32": "ALL_F32"}
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    with torch.inference_mode():
        kind = getattr(gguf.LlamaFileType, types.get(outtype, "MOSTLY_" + outtype.upper()))
        get_model_class(architecture)(folder, kind, out, split_max_tensors=tensors, split_max_size=size).write()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", required=True, type=pathlib.Path)
    parser.add_argument("--loratool", required=True)
    args = parser.parse_args()
    sys.path.insert(0, str(args.llama_cpp / "gguf-py"))
    sys.path.insert(0, str(args.llama_cpp))
    pres = {case["name"]: case["pre"] or None for case in json.loads((GOLDEN / "convert" / "cases.json").read_text())}
    lines = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        for i, (model, outtype, tensors, size) in enumerate(RUNS):
            folder = GOLDEN / "convert" / "models" / model
            if model == "wide":
                folder = work / "wide"
                if not folder.exists():
                    wide(args.loratool, folder)
            out = work / str(i)
            out.mkdir()
            convert(folder, out / "model.gguf", outtype, pres.get(model), tensors, size)
            digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.iterdir())]
            lines.append("\t".join([model, outtype, str(tensors), str(size)] + digests) + "\n")
    (GOLDEN / "convert" / "types.tsv").write_text("".join(lines))


if __name__ == "__main__":
    main()
