"""llama.cpp through llama-cpp-python, on the same weights in bf16; every answer has all its tokens.

Its own quantizer turns the GGUF that the checkpoint was made of into bf16.
"""

from argparse import Namespace
from itertools import islice
from pathlib import Path

import llama_cpp
import pieces


def converted(given: Namespace) -> Path:
    path = given.data / "bf16.gguf"
    if not path.exists():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, True
        part = path.with_suffix(".part")
        if llama_cpp.llama_model_quantize(bytes(given.data / "packaged.gguf"), bytes(part), settings):
            raise SystemExit("llama.cpp could not write the weights as bf16")
        part.rename(path)
    return path


if __name__ == "__main__":
    given = pieces.arguments()
    model = llama_cpp.Llama(
        str(converted(given)), n_ctx=1024, n_threads=given.threads, n_threads_batch=given.threads, verbose=False
    )
    prompt = pieces.rows(given.data / "prompts.jsonl")[0]["tokens"]
    talk = pieces.Pieces(f"llama-cpp-python {llama_cpp.__version__}")
    while True:
        talk.begin()
        answer = model.generate(prompt, temp=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
        talk.end(len(list(islice(answer, pieces.NEW_TOKENS))))
