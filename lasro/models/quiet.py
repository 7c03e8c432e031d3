"""Imported first: keeps loading bars and advice of diffusers and transformers out of our own output."""

import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

import diffusers  # noqa: E402  (it imports parts of transformers that give advice, so it comes second)

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
