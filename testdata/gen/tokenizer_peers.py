"""Compares the encoder of formats/tokenizer with the tokenizers library, on more than the golden data has.

    python testdata/gen/tokenizer_peers.py [TOKENIZER.json ...]

The cases of testdata/golden/tokenizer, and any published tokenizer.json that is named, encode the lines of
tokenizer.Sample, pieces cut out of it anywhere, and characters of it drawn at random. What the library makes of them
goes to a folder that `go test ./formats/tokenizer -run TestEncodePeers` reads: ids with and without the tokens around
a text, the text decoded again, and the fingerprint of llama.cpp's check text.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "testdata" / "golden" / "tokenizer"
TEXTS = 300


def literals(name, start, end):
    """A text of Go source: its string literals are those of Python too."""
    source = (ROOT / "formats/tokenizer" / name).read_text(encoding="utf-8")
    body = source[source.index(start):]
    return "".join(ast.literal_eval(s) for s in re.findall(r'"(?:[^"\\]|\\.)*"', body[:body.index(end)] if end else body))


def texts():
    sample = literals("sample.go", "const Sample", None)
    draw = random.Random(7)
    letters = sorted(set(sample))
    yield from re.split(r"(?<=\n)", sample)
    for _ in range(TEXTS):
        start = draw.randrange(len(sample))
        yield sample[start:start + draw.randrange(1, 40)]
        yield "".join(draw.choice(letters) for _ in range(draw.randrange(1, 25)))


def golden():
    """The tokenizers of the golden cases."""
    for case in json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8")):
        root = json.loads((GOLDEN / f"{case['base']}.json").read_text(encoding="utf-8"))
        for key, part in case["parts"].items():
            root[key] = {**root[key], **part} if key == "model" else part
        yield case["name"], json.dumps(root)


def expected(tok, text):
    tok.no_truncation()
    tok.no_padding()
    plain = tok.encode(text, add_special_tokens=False).ids
    return {"text": text, "whole": tok.encode(text).ids, "plain": plain, "decoded": tok.decode(plain, skip_special_tokens=False)}


def main():
    check = literals("fingerprint.go", "const CheckText", "// Fingerprint returns")
    corpus = list(texts())
    files = list(golden()) + [(f"file-{i}", pathlib.Path(path).read_text(encoding="utf-8")) for i, path in enumerate(sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:
        for name, root in files:
            tok = Tokenizer.from_str(root)
            all_ids = [expected(tok, text) for text in corpus]
            print_of = hashlib.sha256(str(tok.encode(check).ids).encode()).hexdigest()
            out = pathlib.Path(folder)
            (out / f"{name}.json").write_text(root, encoding="utf-8")
            (out / f"{name}.expected").write_text(json.dumps({"fingerprint": print_of, "texts": all_ids}), encoding="utf-8")
        command = ["go", "test", "-count=1", "-v", "-run", "TestEncodePeers", "./formats/tokenizer"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TOKENIZER_PEERS": folder}, capture_output=True, text=True)
    passed = done.stdout.count("    --- PASS: ")
    if done.returncode or passed != len(files):
        print(done.stdout, done.stderr)
    print(f"{passed} of {len(files)} tokenizers encode {len(corpus)} texts as the library does")
    sys.exit(passed != len(files))


main()
