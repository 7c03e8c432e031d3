"""Imported first: keeps loading bars and advice of diffusers and transformers out of our own output."""

import logging
import warnings

# peft and diffusers import torchao where it is installed: it lists each GPU kernel that this machine can't load, and
# registers enumerations in a way that torch calls deprecated.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

import transformers  # noqa: E402

warnings.filterwarnings("ignore", "The `local_dir_use_symlinks`")  # diffusers hands that to the hub's client itself
warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # RMSNorm of FLUX.2 under autocast
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

import diffusers  # noqa: E402  (it imports parts of transformers that give advice, so it comes second)

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
