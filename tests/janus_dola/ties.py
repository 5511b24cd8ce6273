"""Codes drawn in two ways whose products round differently: the same, but where two codes are all but equally good."""

from janus_dola.kernels.philox import gumbel_noise

# Of F / T + noise; float32 logits of one model differ by about 1e-4 between ways, and guidance multiplies that.
TIE = 2e-3


def assert_same_but_for_ties(pipe, prompts, tokens, expected, **settings):
    """At an image's first other code, the codes before it given, both codes have the same score with noise.

    What comes after is another image. `expected` is a `GenerationOutput`, drawn with these settings.
    """
    differs = tokens != expected.tokens
    if not differs.any():
        return
    scores = pipe.scores(prompts, expected.tokens, **settings)
    for prompt, k in differs.any(-1).nonzero().tolist():
        t = int(differs[prompt, k].int().argmax())
        noise = gumbel_noise(expected.seeds[prompt, k][None].cpu(), t, scores.scores.shape[-1])[0]
        noisy = scores.scores[prompt, k, t] / scores.temperature + noise
        ours, theirs = (noisy[each[prompt, k, t].item()] for each in (tokens, expected.tokens))
        assert abs(ours - theirs) <= TIE, (prompt, k, t)
