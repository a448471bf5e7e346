"""`loopcoder generate RUN`: continue a prompt, token by token, until the document ends."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from data_pipeline.tokenizer import Tokenizer
from loopcoder_train.config import UserError
from loopcoder_train.config.commands import GenerateOptions
from loopcoder_train.evaluation.load import LoadedRun, load_run
from loopcoder_train.evaluation.sampling import TextStream, choose_token
from loopcoder_train.finetune.chat import ChatFormat
from loopcoder_train.finetune.plan import PLAN_FOLDER, TEMPLATE_FILE, Plan
from loopcoder_train.model import PLT
from loopcoder_train.model.decode import Decoder


def generate_text(options: GenerateOptions, stream: TextIO | None = None) -> str:
    """Print the prompt and its continuation to `stream` (standard output) as it grows; returns the continuation.

    A message to a tuned run is put into its chat template, and the answer alone is printed. Stops at the end of the
    document or of the assistant's turn, after `max_new_tokens`, or when the model's longest document is full. UserError
    for an empty, unreadable or over-long prompt, and whatever `load_run` raises.
    """
    stream = sys.stdout if stream is None else stream
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal may know fewer characters than the model
    prompt = None if options.message is not None else read_prompt(options)
    run = load_run(
        options.run_dir, step=options.step, num_loops=None, device=options.device, num_threads=options.num_threads
    )
    tokenizer = run.corpus.tokenizer
    most = run.config.model.max_position_embeddings
    end_of_turn_id = None
    if prompt is None:
        chat = chat_format(run)
        prompt_ids = check_length(chat.prompt([{"role": "user", "content": options.message}]), most)
        end_of_turn_id = chat.end_token_id
    else:
        prompt_ids = encode_prompt(tokenizer, prompt, most)
    text = TextStream(tokenizer.decode)
    pieces = []
    stream.write(prompt or "")
    for token in continue_prompt(run.model, tokenizer, prompt_ids, options, run.device, end_of_turn_id):
        pieces.append(text.add(token))
        stream.write(pieces[-1])
        stream.flush()
    pieces.append(text.finish())
    stream.write(pieces[-1] + "\n")
    stream.flush()
    return "".join(pieces)


def read_prompt(options: GenerateOptions) -> str:
    """The prompt as text; UserError when it is empty or its file cannot be read."""
    if options.prompt_file is None:
        prompt, where = options.prompt or "", "prompt"
    else:
        where = f"prompt_file={options.prompt_file}"
        try:
            prompt = Path(options.prompt_file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: is not UTF-8 text") from error
    if not prompt:
        raise UserError(f"{where}: is empty; give at least one character")
    try:
        prompt.encode()  # the command line may bring bytes that are no UTF-8, as lone surrogates
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: is not UTF-8 text") from error
    return prompt


def encode_prompt(tokenizer: Tokenizer, prompt: str, max_tokens: int) -> list[int]:
    """Token ids of `prompt`; UserError when there are none or more than `max_tokens`."""
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("prompt: has no tokens; give some text")
    return check_length(ids, max_tokens)


def check_length(ids: list[int], max_tokens: int) -> list[int]:
    """The ids; UserError when there are more than `max_tokens`."""
    if len(ids) > max_tokens:
        raise UserError(
            f"prompt: has {len(ids)} tokens, the model's longest document is model.max_position_embeddings="
            f"{max_tokens}; shorten it"
        )
    return ids


def chat_format(run: LoadedRun) -> ChatFormat:
    """The chat template that the run was tuned with. UserError when it was not tuned on conversations."""
    finetune = run.config.finetune
    if finetune is None:
        raise UserError(f"message: {run.run_dir} was not tuned on conversations; give prompt, or a tuned run")
    template = Plan.open(run.run_dir).template
    where, tokenizer = f"{run.run_dir}/{PLAN_FOLDER}/{TEMPLATE_FILE}", run.corpus.tokenizer
    return ChatFormat(template, where, tokenizer, finetune.end_token, thinking=finetune.thinking)


def continue_prompt(
    model: PLT,
    tokenizer: Tokenizer,
    prompt_ids: list[int],
    options: GenerateOptions,
    device: torch.device,
    end_of_turn_id: int | None = None,
) -> Iterator[int]:
    """New tokens one by one, without the end-of-document or end-of-turn token that ends them."""
    generator = torch.Generator().manual_seed(options.seed)
    decoder = Decoder(model)
    logits = decoder.prefill(torch.tensor([prompt_ids], device=device))
    room = model.config.max_position_embeddings - len(prompt_ids)
    for count in range(1, min(options.max_new_tokens, room) + 1):
        token = choose_token(
            logits[0, : tokenizer.vocab_size],  # rows beyond it exist for even layouts and were never trained
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            generator=generator,
        )
        if token in (tokenizer.end_of_document_id, end_of_turn_id):
            return
        yield token
        if count < options.max_new_tokens and count < room:
            logits = decoder.step(torch.tensor([token], device=device))
