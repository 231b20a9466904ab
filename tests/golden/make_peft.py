"""Write tests/golden/peft: adapters that PEFT made and saved, and PEFT's logits with them.

    pip install -e '.[parity]' && PYTHONPATH=.:tests python tests/golden/make_peft.py

The base is tests/tiny_hub.py's "qwen3-tied", whose weights are numpy's; written with peft 0.21.2.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
from tiny_hub import POSITIONS, TOKENS, transformers_logits, transformers_model, write_tiny

TARGET = Path(__file__).parent / "peft"


def main() -> None:
    """Make adapters of all seven matrices, random B included, and save what PEFT saves."""
    torch.manual_seed(0)
    base = write_tiny(Path(tempfile.mkdtemp()), "qwen3-tied")
    names = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM", use_rslora=True
    )
    model = peft.get_peft_model(transformers_model(base), config).eval()
    with torch.inference_mode():
        logits = transformers_logits(model, TOKENS, POSITIONS)
    model.save_pretrained(TARGET)
    held = json.loads((TARGET / "adapter_config.json").read_text())
    held["base_model_name_or_path"] = "the test names it"
    (TARGET / "adapter_config.json").write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    (TARGET / "README.md").unlink()
    np.savez_compressed(TARGET / "logits.npz", logits=logits)


if __name__ == "__main__":
    main()
