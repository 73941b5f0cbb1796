"""dcpo-async: asynchronous DCPO training of language models on math with verifiable rewards."""

__version__ = "0.1.0"
