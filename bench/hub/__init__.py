"""Folders for the Hugging Face Hub, written from the package: a kernel, and a decoding function for transformers."""
