"""Golden data of tokenizers in GGUF files: what llama.cpp makes of tokenizer.Sample.

    python testdata/gen/llama_tokens.py LLAMA.CPP BINS

LLAMA.CPP is its source at v0.5.0, BINS its libraries (npm's @node-llama-cpp/linux-x64 3.22.1,
bins/linux-x64). Needs g++, numpy and tokenizers 0.23.3. Writes testdata/golden/tokenizer/llama.json:
small vocabularies as GGUF has them, every name of a pre-tokenizer in the source with what each
line of the text becomes, and digests of the characters' classes. Digests are the first digits of
the SHA-256 of the ids, with a blank between two, without and (after a |) with the tokens around.
Training breaks ties by chance: vocabularies that the file has already are kept.
"""

import argparse
import ast
import hashlib
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "testdata/golden/tokenizer"
SOURCE = (ROOT / "formats/tokenizer/sample.go").read_text(encoding="utf-8")
SAMPLE = "".join(ast.literal_eval(t) for t in re.findall(r'^(?:const Sample = |\t)("(?:[^"\\]|\\.)*")', SOURCE, re.M))
LINES = re.split(r"(?<=\n)", SAMPLE)[:-1]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": USER, "[MASK]": USER, "ing": USER}


def trained(text, size, pre=None, **more):
    """Merges of a text without words: they go over every place that a splitter could cut at."""
    tok = Tokenizer(models.BPE())
    if pre:
        tok.pre_tokenizer = pre
    tok.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=12, **more))
    model = json.loads(tok.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].get), merges


def vocabularies():
    tokens, merges = trained([SAMPLE], 1000, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), initial_alphabet=ALPHABET)
    tokens += [t for t in ("Ġfox", "ĠSTRASSE", "Ġ12", "\n\n") if t not in tokens]
    yield "bytes", ({**SPECIAL, **{t: NORMAL for t in tokens if t not in SPECIAL}}, merges, None)
    tokens, merges = trained([line.strip("\n").replace(" ", "▁") for line in LINES], 700, limit_alphabet=90)
    raw = {**SPECIAL, **{b: BYTE for b in BYTES}, **{t: NORMAL for t in [*tokens, "\n\n"] if t not in SPECIAL}}
    yield "raw", (raw, merges, None)
    yield "pieces", (raw, None, [-float(i // 3) for i in range(len(raw))])  # every score three times
    words = json.loads((OUT / "wordpiece.json").read_text(encoding="utf-8"))["model"]["vocab"]
    special = {"[UNK]": UNKNOWN, "[CLS]": CONTROL, "[SEP]": CONTROL, "[MASK]": CONTROL}
    words = [t for t in sorted(words, key=words.get) if t not in special]
    words = [t[2:] if t.startswith("##") else "▁" + t for t in words]
    yield "words", ({**special, **{t: NORMAL for t in words}}, None, None)


def kept():
    """The vocabularies of the file, or new ones."""
    path = OUT / "llama.json"
    if not path.exists():
        return dict(vocabularies())
    known = json.loads(path.read_text(encoding="utf-8"))["vocabularies"]
    return {name: (dict(zip(v["tokens"], v["types"])), v["merges"] or None, v["scores"] or None) for name, v in known.items()}


def cases(source):
    spm = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    for name in ["", *re.findall(r'tokenizer_pre == "([^"]+)"', source)]:
        raw = name in ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")
        yield {"vocabulary": "raw" if raw else "bytes", "model": "whitespace" if name == "whitespace" else "gpt2", "pre": name,
               "ids": {"bos_token_id": 1, "eos_token_id": 2}, "flags": {}}
    yield {"vocabulary": "raw", "model": "whitespace", "pre": "whitespace", "ids": {}, "flags": {"normalizer.lowercase": True}}
    yield {"vocabulary": "raw", "model": "gemma4", "pre": "", "ids": spm, "flags": {"add_bos_token": False, "add_eos_token": True}}
    yield {"vocabulary": "bytes", "model": "gpt2", "pre": "gpt-2", "ids": {}, "flags": {"add_bos_token": True, "add_eos_token": True}}
    yield {"vocabulary": "bytes", "model": "gpt2", "pre": "llama-bpe", "ids": spm, "flags": {"add_bos_token": False}}
    for flags in ({}, {"add_space_prefix": False, "add_eos_token": True}, {"add_bos_token": False}):
        yield {"vocabulary": "pieces", "model": "llama", "pre": "default", "ids": spm, "flags": flags}
    yield {"vocabulary": "pieces", "model": "llama", "pre": "default", "ids": spm, "flags": {}, "name": "Phi-3-mini", "add": ["<|endoftext|>"]}
    cls = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    for flags in ({}, {"normalizer.lowercase": False}, {"normalizer.strip_accents": False}):
        yield {"vocabulary": "words", "model": "bert", "pre": "bert-bge", "ids": cls, "flags": flags}


def write(path, case, vocabulary):
    import gguf  # of LLAMA.CPP

    types, merges, scores = vocabulary
    add = case.get("add", [])
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(case.get("name", "none"))
    w.add_tokenizer_model(case["model"])
    if case["pre"]:
        w.add_tokenizer_pre(case["pre"])
    w.add_token_list([*types, *add])
    w.add_token_types([*types.values(), *[CONTROL] * len(add)])
    if merges:
        w.add_token_merges(merges)
    if scores:
        w.add_token_scores([*scores, *[0.0] * len(add)])
    for key, value in case["ids"].items():
        w.add_uint32("tokenizer.ggml." + key, value)
    for key, value in case["flags"].items():
        w.add_bool("tokenizer.ggml." + key, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def digest(text, digits):
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def run(program, path):
    """Lines and text of the sample as llama.cpp has them, both ways of asking joined."""
    texts = [t.encode() for t in [*LINES, SAMPLE]]
    data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    lines = subprocess.run([program, path], input=data, stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")
    return [a + "|" + b for a, b in zip(lines[0:-1:2], lines[1::2])]


def classes(program):
    """A digest of every 4096 characters: class, lower case, first of the decomposition."""
    other = 0x1 | 0x8  # not assigned and separators, which nothing tells apart
    lines = []
    for line in subprocess.run([program], stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")[:-1]:
        flags, lower, first = line.split()
        lines.append(f"{int(flags) & 0x1FF & ~other} {lower} {first}")
    return [digest("\n".join(lines[i:i + 4096]), 8) for i in range(0, len(lines), 4096)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("llama", type=pathlib.Path)
    parser.add_argument("bins", type=pathlib.Path)
    args = parser.parse_args()
    sys.path.insert(0, str(args.llama / "gguf-py"))
    all_vocabularies = kept()
    source = (args.llama / "src/llama-vocab.cpp").read_text()
    golden = {"vocabularies": {}, "cases": []}
    for name, (types, merges, scores) in all_vocabularies.items():
        golden["vocabularies"][name] = {"tokens": list(types), "types": list(types.values()), "merges": merges or [], "scores": scores or []}
    with tempfile.TemporaryDirectory() as folder:
        program, here = folder + "/tokens", pathlib.Path(__file__).parent
        unicode = [args.llama / "src/unicode.cpp", args.llama / "src/unicode-data.cpp"]
        subprocess.run(["g++", "-O1", "-std=c++17", *(f"-I{args.llama / d}" for d in ("include", "ggml/include", "src")), here / "llama_tokens.cpp",
                        *unicode, "-o", program, *(args.bins / f for f in ("libllama.v0.5.0.so", "libggml.v0.5.0.so", "libggml-base.so")),
                        f"-Wl,-rpath,{args.bins}"], check=True)
        golden["classes"] = classes(program)
        for case in cases(source):
            write(folder + "/vocabulary.gguf", case, all_vocabularies[case["vocabulary"]])
            got = run(program, folder + "/vocabulary.gguf")
            golden["cases"].append({**case, "lines": "".join(digest(g, 4) for g in got[:-1]), "whole": digest(got[-1], 8)})
    text = ",\n".join(json.dumps(c, ensure_ascii=False) for c in golden.pop("cases"))
    rest = json.dumps(golden, ensure_ascii=False)[:-1]
    (OUT / "llama.json").write_text(f'{rest},\n"cases": [\n{text}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
