"""Draws with GLM-Image: codes by janus-dola, several per pass, by a seed for each image; pictures by diffusers."""

import torch
from diffusers import GlmImagePipeline

from janus_dola import JanusDoLa
from janus_dola.models.families.glm_image import prior_token_ids

PROMPTS = ["A red teapot on a wooden table, soft light.", "A lighthouse in a storm, oil painting."]
painter = GlmImagePipeline.from_pretrained("zai-org/GLM-Image", torch_dtype=torch.bfloat16).to("cuda")
painter.vision_language_encoder.config.target_h = painter.vision_language_encoder.config.target_w = 1024
pipe = JanusDoLa(painter.vision_language_encoder, painter.processor)  # no weight is held twice
out = pipe.generate(PROMPTS, contrast=None, temperature=0.9, top_p=0.75, seed=7, progress=True)
codes = prior_token_ids(out.tokens, pipe.image_model.raster).to("cuda")
for i, picture in enumerate(painter(PROMPTS, prior_token_ids=codes, height=1024, width=1024).images):
    picture.save(f"glm_image_{i}.png")
