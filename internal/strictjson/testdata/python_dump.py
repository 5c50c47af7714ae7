"""Write python_indent.json and python_line.json, next to this file."""

import json
import os

VALUE = {
    "r": 16,
    "lora_alpha": 32.0,
    "tiny": 1e-05,
    "big": 1e16,
    "huge": 1.7976931348623157e308,
    "negative": -0.0,
    "long": 123456789012345678901234567890,
    "inference_mode": True,
    "use_dora": False,
    "base_model_name_or_path": None,
    "empty_object": {},
    "empty_array": [],
    "empty_string": "",
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"z.last": 4, "a.first": 8, "^m": 2},
    "nested": [[1, [2, []]], {"a": [{}]}, [{"b": {"c": None}}]],
    "escapes": "quote\" back\\ slash/ \b\f\n\r\t \x00\x01\x1f\x7f",
    "слой": "重み \U0001f600 \u2028 \u00e9",
}

here = os.path.dirname(os.path.abspath(__file__))
for name, indent in ("python_indent.json", 2), ("python_line.json", None):
    with open(os.path.join(here, name), "w", encoding="utf-8") as f:
        json.dump(VALUE, f, indent=indent, ensure_ascii=False)
