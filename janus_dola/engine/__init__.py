"""The decode engine: from rows of prompt tokens to the codes of images.

plan      which layers are read, and how a token is chosen
backbone  the language model with its keys and values: prompts once, then one token at a time
decode    the loop: draw a code, feed it back, nothing read by the host until the images are done
"""
