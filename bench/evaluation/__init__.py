"""`python -m bench.evaluation`: what DoLa does to pictures, measured on a grid of settings.

grid       which cells there are: layers, alpha, guidance, temperature
task       what is drawn and who judges it: the mini model's captions and checker, or prompts in GenEval's format
measure    draws one cell and keeps what its images scored
sharpness  the distributions that codes were drawn from: their entropy
matching   the baseline temperature whose entropy is that of a DoLa cell
metrics    what is measured, with units; means and paired bootstrap intervals
run        all cells of a grid into a folder, finished ones kept
report     tables in Markdown
figures    figures (matplotlib)
pairs      differences between two cells that the tables do not have
"""
