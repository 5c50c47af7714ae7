"""Makes testdata/golden/extract: pairs of tiny models and the spectra of their differences by torch.linalg.svd.

    python testdata/gen/extract_golden.py [--out DIR]

    <pair>/base, <pair>/tuned    the two models, as transformers saves them
    <pair>/spectra.safetensors   float64: the singular values of the difference of every parameter that a LoRA pair can
                                 hold, by its name in memory. Of stacked experts one row per expert; of a convolution,
                                 of its weight as out x (in * kernel).

The differences are float64 differences of what the files hold. Regenerate with the versions of requirements.txt.
"""

from __future__ import annotations

import argparse
import os
import shutil

import torch
from safetensors.torch import save_file

import extract_models as models

HERE = os.path.dirname(os.path.abspath(__file__))
# The rest of the pairs is for the live comparison; these cover the roles.
GOLDEN = ["llama-bf16", "tokens", "gpt2", "mixtral", "conv"]


def spectra(name: str, base, tuned) -> dict[str, torch.Tensor]:
    before = dict(base.named_parameters())
    found = {}
    for key, after in tuned.named_parameters():
        w, x = before[key].detach().double(), after.detach().double()
        module = key.rsplit(".", 1)[0]
        if x.ndim < 2 or w.shape != x.shape or any(s in key for s in ("embed", "wte", "wpe", "lm_head", ".gate.", "deep")):
            continue
        d = x - w
        if isinstance(tuned.get_submodule(module), (torch.nn.Conv1d, torch.nn.Conv2d)):
            d = d.flatten(1)
        found[key] = torch.linalg.svdvals(d).contiguous()
    return found


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--out", default=os.path.join(HERE, "..", "golden", "extract"))
    out = os.path.abspath(p.parse_args().out)
    shutil.rmtree(out, ignore_errors=True)
    for name in GOLDEN:
        folder = os.path.join(out, name)
        tuned = models.make(name, folder)
        base = models.load(name, os.path.join(folder, "base"))
        found = spectra(name, base, tuned)
        assert found, name
        save_file(found, os.path.join(folder, "spectra.safetensors"))
        print(name, len(found))


if __name__ == "__main__":
    main()
