"""The names of the original integration of DoLa into DeepSeek's repository, for scripts that were written for it.

Nothing else in the package uses them. Each is also found under its old name, directly in `janus_dola`:

- `janus_dola.dola_runtime`: the steps of DoLa as functions of one distribution each;
- `janus_dola.generation_inference`: `generate` and `generate_with_dola`, called as the function in DeepSeek's script is;
- `python -m janus_dola.run_batch_prompts`: `janus-dola batch` with the flags of the original.
"""
