"""Has drawn images scored by other models: CLIP, and GenEval's detector."""
