"""Golden data of tokenizers: what the tokenizers library makes of tokenizer.Sample.

    python testdata/gen/tokenizer_golden.py

Writes testdata/golden/tokenizer: BASE.json, small tokenizers trained on the text itself, and
cases.json: each case is a base, parts that stand in place of the base's, and what each line
of the text becomes (number of ids and the first digits of the SHA-256 of the ids, written
as Python writes a list), the text as a whole with the tokens around it, and decoded again.

tokenizers 0.23.3 (Apache-2.0). Training is not seeded and needs no seed: it does not draw.
"""

import ast
import copy
import hashlib
import json
import pathlib
import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "testdata" / "golden" / "tokenizer"


def sample():
    """The text of sample.go: its string literals are those of Python too."""
    source = (ROOT / "formats/tokenizer/sample.go").read_text(encoding="utf-8")
    literals = re.findall(r'^(?:const Sample = |\t)("(?:[^"\\]|\\.)*")', source, re.M)
    return "".join(ast.literal_eval(text) for text in literals)


SAMPLE = sample()
LINES = re.split(r"(?<=\n)", SAMPLE)
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def train(model, trainer, pre=None, norm=None):
    tok = Tokenizer(model)
    if pre:
        tok.pre_tokenizer = pre
    if norm:
        tok.normalizer = norm
    tok.train_from_iterator(LINES, trainer)
    return json.loads(tok.to_str())


def bases():
    space = pre_tokenizers.Metaspace()
    words = pre_tokenizers.BertPreTokenizer()
    common = {"show_progress": False}
    yield "bytes", train(models.BPE(), trainers.BpeTrainer(vocab_size=420, special_tokens=["<s>", "</s>", "<unk>"],
                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common), pre_tokenizers.ByteLevel(add_prefix_space=False))
    yield "pieces", train(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainers.BpeTrainer(
                          vocab_size=480, special_tokens=["<unk>", "<s>", "</s>"] + BYTES, limit_alphabet=60, **common), space)
    yield "some-bytes", train(models.BPE(unk_token="<unk>", byte_fallback=True), trainers.BpeTrainer(
                              vocab_size=220, special_tokens=["<unk>"] + BYTES[128:230], limit_alphabet=50, **common), space)
    yield "plain", train(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"], limit_alphabet=50, **common), words)
    yield "prefix", train(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"), trainers.BpeTrainer(
                          vocab_size=260, special_tokens=["<unk>"], limit_alphabet=60, continuing_subword_prefix="##", **common), words)
    yield "suffix", train(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainers.BpeTrainer(
                          vocab_size=260, special_tokens=["<unk>"], limit_alphabet=60, end_of_word_suffix="</w>", **common), words, normalizers.Lowercase())
    yield "wordpiece", train(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(
                             vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], limit_alphabet=120, **common), words, normalizers.BertNormalizer())
    lines = [line for line in LINES if line.isascii()]
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = space
    tok.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>"] + BYTES, unk_token="<unk>", **common))
    yield "unigram", json.loads(tok.to_str())
    yield "words", train(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(vocab_size=120, special_tokens=["<unk>"], **common),
                         pre_tokenizers.WhitespaceSplit())


def byte_level(**more):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False, **more}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*steps, key="pretokenizers"):
    return {"type": "Sequence", key: list(steps)}


def token(content, id, special=False, normalized=True, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special, **flags}


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
EXPRESSIONS = {
    "llama": CONTRACTIONS + "|" + LETTERS + r"\p{L}+|\p{N}{1,3}" + REST,
    "possessive": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "cases": f"{LETTERS}[{UPPER}]*[{LOWER}]+{CONTRACTIONS}?|{LETTERS}[{UPPER}]+[{LOWER}]*{CONTRACTIONS}?" + r"|\p{N}{1,3}" + REST,
    "sets": r"[\p{Han}]+|" + f"{LETTERS}[{UPPER}" + r"&&[^\p{Han}]]*" + f"[{LOWER}" + r"&&[^\p{Han}]]+" + r"|\p{N}{1,3}" + REST,
    "nested": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "punctuation": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+""",
    "thousands": r"\d{1,3}(?=(?:\d{3})*\b)",
    "word": r"\w+", "word-set": r"[\w]+|[\W\d]", "no-word": r"[^\W\d_]+", "hex": r"\h+", "border": r"\b", "no-border": r"\B.", "line": r"^.*$", "begin": "^",
    "case": r"(?i:kx|k|s|i|ǆ|å|ς|[a-c]x)", "codes": r"\x{4e16}|\u754c|\x41", "negated": r"\p{^L}+|\P{N}\p{Lu}", "scripts": r"\p{Greek}+|\p{Cyrillic}{2,}?",
    "spaces": r"[^\S\n]+", "behind": r"(?<=\d)(?=(?:\d{3})+\b)|(?<!x)y", "times": r"(?:a|l){2}+c{,3}|x{y|o{1,2}?",
}


def cases():
    regular = {"decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
    for name, expression in EXPRESSIONS.items():
        yield name, "bytes", {**regular, "pre_tokenizer": sequence(split(expression), byte_level())}
    for behavior in ["Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for name in ["llama", "border", "word"]:
            yield f"{name}-{behavior}", "bytes", {"pre_tokenizer": sequence(split(EXPRESSIONS[name], behavior, name == "word"), byte_level())}
    yield "gpt2", "bytes", {**regular, "pre_tokenizer": byte_level(use_regex=True)}
    yield "text", "bytes", {"pre_tokenizer": sequence({"type": "Split", "pattern": {"String": "a."}, "behavior": "Removed", "invert": False}, byte_level())}
    yield "digits", "bytes", {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))}
    yield "number", "bytes", {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, byte_level(add_prefix_space=True))}
    yield "whole-words", "bytes", {"pre_tokenizer": byte_level(use_regex=True), "model": {"ignore_merges": True}}
    for kind in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]:
        pre = None if kind == "ByteLevel" else byte_level(use_regex=True)
        yield "normalized-" + kind, "bytes", {"normalizer": {"type": kind}, "pre_tokenizer": pre}
    yield "normalized", "bytes", {"normalizer": sequence({"type": "Strip", "strip_left": True, "strip_right": False}, {"type": "Replace",
        "pattern": {"Regex": r"\s{2,}"}, "content": "_"}, {"type": "Prepend", "prepend": "x"}, key="normalizers"), "pre_tokenizer": byte_level(use_regex=True)}
    added = [token("lazy", 420, single_word=True), token("fox", 421, lstrip=True), token("dog", 422, rstrip=True), token("<|endoftext|>", 423, True, False),
             token("<|im_start|>", 424, True, False, lstrip=True, rstrip=True), token("IT", 425), token("ÉTÉ", 426), token("a l", 427, normalized=False),
             token("  ", 428, normalized=False), token("    ", 429, normalized=False), token("line", 430, normalized=False, single_word=True), token("世", 431, single_word=True)]
    around = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "</s>", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
              "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [1, 2], "tokens": ["</s>", "<unk>"]}}}
    yield "added", "bytes", {**regular, "added_tokens": added, "pre_tokenizer": byte_level(use_regex=True), "post_processor": around}
    yield "added-lower", "bytes", {"added_tokens": added, "normalizer": {"type": "Lowercase"}, "pre_tokenizer": byte_level(use_regex=True),
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": False}}
    pieces = sequence({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                      {"type": "Strip", "content": " ", "start": 1, "stop": 0}, key="decoders")
    yield "llama2", "pieces", {"normalizer": sequence({"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        key="normalizers"), "pre_tokenizer": None, "decoder": pieces}
    for scheme in ["always", "first", "never"]:
        space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": scheme != "never"}
        yield "metaspace-" + scheme, "pieces", {"pre_tokenizer": space, "decoder": space}
        yield "unigram-" + scheme, "unigram", {"pre_tokenizer": space, "decoder": space}
        yield "some-bytes-" + scheme, "some-bytes", {"pre_tokenizer": space}
    yield "stripped-first", "pieces", {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}}
    yield "unigram-bytes", "unigram", {"model": {"byte_fallback": True}}
    yield "unknown", "plain", {}
    yield "unknown-fused", "plain", {"model": {"fuse_unk": True}}
    yield "unknown-dropped", "plain", {"model": {"unk_token": None}}
    yield "prefix", "prefix", {}
    yield "suffix", "suffix", {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}
    pieces = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    yield "bert", "wordpiece", {"decoder": pieces, "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False}
    yield "bert-cased", "wordpiece", {"normalizer": bert, "model": {"max_input_chars_per_word": 12}, "decoder": {**pieces, "cleanup": False}}
    yield "bert-accents", "wordpiece", {"normalizer": {**bert, "clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": True}}
    yield "words", "words", {}
    yield "whitespace", "words", {"pre_tokenizer": {"type": "Whitespace"}}
    yield "punctuated", "words", {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Contiguous"}, {"type": "CharDelimiterSplit", "delimiter": "e"})}
    yield "fixed", "words", {"pre_tokenizer": {"type": "FixedLength", "length": 2}}


def digest(value):
    return hashlib.sha256(str(value).encode()).hexdigest()[:8]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    files = dict(bases())
    for name, root in files.items():
        root["added_tokens"] = [t for t in root["added_tokens"] if not t["content"].startswith("<0x")]
        (OUT / f"{name}.json").write_text(json.dumps(root, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    out = []
    for name, base, parts in cases():
        root = copy.deepcopy(files[base])
        for key, value in parts.items():
            root[key] = {**root[key], **value} if key == "model" else value
        tok = Tokenizer.from_str(json.dumps(root))
        whole = tok.encode(SAMPLE).ids
        lines = [tok.encode(line, add_special_tokens=False).ids for line in LINES]
        out.append({"name": name, "base": base, "parts": parts, "lines": " ".join(digest(ids) for ids in lines), "first": lines[1],
                    "whole": digest(whole), "decoded": digest(tok.decode(whole, skip_special_tokens=True))})
    text = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in out)
    (OUT / "cases.json").write_text("[\n" + text + "\n]\n", encoding="utf-8")


main()
