"""Scores of drawn images by other models: CLIP and GenEval."""
