import os

import torch

if not torch.cuda.is_available():  # before anything imports triton: it reads this once
    os.environ.setdefault('TRITON_INTERPRET', '1')
