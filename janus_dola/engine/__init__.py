"""The decode engine: from rows of prompt tokens to pictures.

plan      which layers are read, how a token is chosen, how the step is run
schedule  packs images of all prompts into full batches
backbone  the language model with its keys and values: prompts once, then one token at a time
decode    the step: feed the last codes back, draw the next, all on the device
compiled  its blocks under torch.compile
graphs    the whole step as a CUDA graph
engine    the loop, and the choice between these
pictures  the image decoder
"""
