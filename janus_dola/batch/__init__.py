"""Batch generation: any number of prompts into a folder, resumable, on one GPU or on many."""

from janus_dola.batch.batch_run import Summary, run_batch
from janus_dola.batch.run_settings import RunSettings
from janus_dola.compute import Compute

__all__ = ["Compute", "RunSettings", "Summary", "run_batch"]
