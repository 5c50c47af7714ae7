"""Writes how llama.cpp splits text for every pre-tokenizer that its converter gives a name.

    python testdata/gen/pre_names.py --llama-cpp DIR > testdata/golden/convert/pre.tsv

DIR is the source of llama.cpp 0.5.0. Each line has a name of get_vocab_base_pre (conversion/base.py), whether whole words
are taken before merges ("words") and whether texts begin with a token unless the file says otherwise ("begins"), the
expressions of src/llama-vocab.cpp, and those of tokenizer.json where they stand beside them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re


def literals(text):
    """The strings of C++ source, one after another."""
    return [json.loads(f'"{s}"', strict=False) for s in re.findall(r'"((?:[^"\\]|\\.)*)"', text)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", required=True, type=pathlib.Path)
    source = parser.parse_args().llama_cpp
    names = sorted(set(re.findall(r'^            res = "([^"]+)"', (source / "conversion/base.py").read_text(), re.M)))
    vocab = (source / "src/llama-vocab.cpp").read_text()
    expressions, originals = {}, {}
    body = vocab[vocab.index("switch (vocab.get_pre_type())"):vocab.index("default regex for BPE")]
    for block in re.split(r"\n                break;\n", body):
        types = re.findall(r"case LLAMA_VOCAB_PRE_TYPE_(\w+):", block)
        lines = block.splitlines()
        code = [line for line in lines if '"' in line and not line.strip().startswith("//")]
        comments = [line.strip().removeprefix("//") for line in lines if line.strip().startswith("//") and line.count('"') >= 2 and "p{" in line]
        for t in types:
            expressions[t] = literals("\n".join(re.sub(r'",\s*//.*', '",', line) for line in code))
            originals[t] = literals("\n".join(comments))
    # Branches of the chain that turns names into types.
    chain = vocab[vocab.index('tokenizer_pre == "default"'):vocab.index("unknown pre-tokenizer type")]
    for name in names:
        branch = next((b for b in re.split(r"\} else if \(", chain) if f'"{name}"' in b), None)
        if branch is None:
            continue  # of models that are no BPE over words
        t = re.search(r"pre_type\s*=\s*LLAMA_VOCAB_PRE_TYPE_(\w+)", branch).group(1)
        flags = [w for w, setting in (("words", "ignore_merges = true"), ("begins", "add_bos = true")) if setting in branch]
        print(name, ",".join(flags), json.dumps(expressions.get(t, []), ensure_ascii=False), json.dumps(originals.get(t, []), ensure_ascii=False), sep="\t")


if __name__ == "__main__":
    main()
