"""Log-probabilities of prompts by vLLM, run by the Python of an environment that has it.

Takes a model's folder and a JSON file of prompts (lists of ids). Writes the log-probability of each id given those
before it, and those of the whole vocabulary after the last, to a second JSON file.
"""

import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def main(folder: str, prompts_path: str, out: str) -> None:
    from vllm import LLM, SamplingParams

    with open(prompts_path) as file:
        prompts = json.load(file)
    with open(os.path.join(folder, "config.json")) as file:
        vocabulary = json.load(file)["vocab_size"]
    engine = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_logprobs=vocabulary)
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, logprobs=vocabulary)
    found = []
    answers = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)
    for prompt, answer in zip(prompts, answers, strict=True):
        given = [known[token].logprob for known, token in zip(answer.prompt_logprobs[1:], prompt[1:], strict=True)]
        after = answer.outputs[0].logprobs[0]
        found.append({"given": given, "after": [after[token].logprob for token in range(vocabulary)]})
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
