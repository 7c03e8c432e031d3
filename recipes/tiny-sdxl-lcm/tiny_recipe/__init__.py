"""How the bundled two-step model is made: data, VAE, teacher, consistency distillation, export and report.

`python -m tiny_recipe --help`; docs/tiny-model.md says how to use it.
"""
