"""The decode engine: from rows of prompt tokens to codes.

plan      which layers are read, how a code is chosen, how a pass is run
slots     images being drawn, on the device: what is fed, what is accepted
decode    the decoder: admits images to slots, and runs passes
graphs    passes as CUDA graphs
readback  how far the images are, told to the host some passes late
schedule  images that wait, how many go together, and how many codes a pass
engine    the loop: admit, pass, hand out
"""
