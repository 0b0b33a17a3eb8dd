import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is first imported; no test waits for a network
if not torch.cuda.is_available():  # before Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
