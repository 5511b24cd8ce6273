import logging

for name in ("torchao", "torch.utils._pytree"):  # what this machine lacks for them, said when transformers imports them
    logging.getLogger(name).setLevel(logging.ERROR)
