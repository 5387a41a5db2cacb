"""How the libraries behave in a process that nobody watches."""

import warnings

import transformers


def quiet() -> None:
    """No progress bars and no advice on standard error: a worker's log is read by people."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|bitsandbytes|torch)\b")
