"""The engine: from rows of prompt tokens to images.

jobs         images to draw, in a queue
engine       lends runners, keeps a decoder between calls, knows how many images fit
plan         what a pass is compiled for
slot_runner  the loop: admit, pass, hand out
decoder      admits images to slots, and runs passes
slots        images being drawn, on the device: what is fed, what is accepted
graphs       passes as CUDA graphs
readback     progress, read by the host some passes late
capacity     how many images and positions, and how many codes per pass
images       from jobs to images in order
pixels       from codes to pixels
progress     a bar and a callback
scoring      distributions that given codes were drawn from
profiling    one pass under torch.profiler
devices      what a device can do
"""
