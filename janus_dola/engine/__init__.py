"""The engine: from rows of prompt tokens to images.

To read it, begin with `jobs`, then `engine`, `slot_runner` (the loop), `decoder` (a pass) and `slots` (what is decided).
"""
