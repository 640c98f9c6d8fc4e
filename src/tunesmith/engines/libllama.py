"""llama.cpp's C interface, as much of it as it takes to ask a model for its logits. Used in the child process alone.

llama.cpp's server answers prompts and gives log-probabilities of what it says itself, none of what it is given, and never
whole distributions. Parity and scoring need both. The shared object of ``xllamacpp`` exports the C functions of the library
that the server stands on, so they are called here through ctypes, on the very build that answers elsewhere.

The parameter structures change from build to build. They are taken from the library with its own defaults, as blocks of bytes
larger than any of them: a structure above 16 bytes is passed and returned through memory, on x86-64 and on arm64, so what lies
behind its end is not looked at. A few numbers at the beginning are set, and the library is asked afterwards what it understood:
a build with another layout is an error, never a guess. Flash attention, types of the KV cache, repacking of weights and use of
a GPU are llama.cpp's defaults: what a user gets.

Refused: ``llama-cpp-python``, a second llama.cpp that ten minutes of compiling would bring, and that is not the one which
answers; ``llama-perplexity``'s logits file, which no wheel offers.

The cost: one forward pass a prompt, in batches of ``BATCH`` tokens, so that the logits of a vocabulary of 262,144 take 0.27 GB
at most in here. The KV cache is emptied between prompts; of given texts that are scored one
after another, what they begin with alike stays in it.

Source: ``llama.h`` (build b10605): ``llama_context_params``, ``llama_batch``; ``tools/server/server-common.cpp``
(``tokenize_input_prompts``) and ``common/chat.cpp`` (``common_chat_template_direct_apply``) for how the server tokenises a
rendered conversation.

Shape suffixes: V vocabulary; here: B tokens of a batch whose logits are wanted.
"""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ExportError
from tunesmith.kernels.llama_cpp import open_shared_object

BATCH, MICRO_BATCH = 256, 128  # two numbers, so that the library cannot have taken the one for the other
PAGE = 256  # llama.cpp rounds the context up to a multiple of so many tokens
BPE = 2  # byte-level, of enum llama_vocab_type
HINT = "install the xllamacpp that constraints.txt names"


class _Parameters(ctypes.Structure):
    """Parameters of a model or a context: 136 bytes in b10605, the numbers that are set in front."""

    _fields_ = [("numbers", ctypes.c_uint32 * 128)]


# Places of context parameters, counted in 4 bytes.
_N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ_MAX, _N_RS_SEQ, _N_OUTPUTS_MAX, _N_OUTPUTS_MAX_PER_SEQ = range(7)


class _Batch(ctypes.Structure):
    """``llama_batch``. Null for positions and sequences: those that follow, of sequence 0."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, its functions told what they take."""
    handle, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    tokens, flag = ctypes.POINTER(ctypes.c_int32), ctypes.c_bool

    def declare(function: Any, result: Any, *arguments: Any) -> None:
        function.restype, function.argtypes = result, arguments

    declare(library.llama_backend_init, None)
    declare(library.llama_model_default_params, _Parameters)
    declare(library.llama_context_default_params, _Parameters)
    declare(library.llama_model_load_from_file, handle, text, _Parameters)
    declare(library.llama_init_from_model, handle, handle, _Parameters)
    declare(library.llama_model_get_vocab, handle, handle)
    declare(library.llama_get_memory, handle, handle)
    declare(library.llama_memory_clear, None, handle, flag)
    declare(library.llama_memory_seq_rm, flag, handle, number, number, number)
    declare(library.llama_memory_seq_pos_min, number, handle, number)
    declare(library.llama_set_n_threads, None, handle, number, number)
    for getter in (library.llama_n_ctx, library.llama_n_batch, library.llama_n_ubatch, library.llama_n_seq_max):
        declare(getter, ctypes.c_uint32, handle)
    declare(library.llama_n_rs_seq, ctypes.c_uint32, handle)
    declare(library.llama_vocab_n_tokens, number, handle)
    declare(library.llama_vocab_type, number, handle)
    declare(library.llama_vocab_bos, number, handle)
    declare(library.llama_vocab_get_text, text, handle, number)
    declare(library.llama_vocab_get_add_bos, flag, handle)
    declare(library.llama_vocab_is_control, flag, handle, number)
    declare(library.llama_tokenize, number, handle, text, number, tokens, number, flag, flag)
    declare(library.llama_detokenize, number, handle, tokens, number, ctypes.c_void_p, number, flag, flag)
    declare(library.llama_decode, number, handle, _Batch)
    declare(library.llama_get_logits_ith, ctypes.POINTER(ctypes.c_float), handle, number)
    declare(library.llama_adapter_lora_init, handle, handle, text)
    declare(
        library.llama_set_adapters_lora, number, handle, ctypes.POINTER(handle), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)
    )
    return library


class Libllama:
    """A GGUF file and a context for one sequence. It lives as long as the process.

    Args:
        gguf: the model file.
        context: tokens that a prompt may have.
        threads: for computing.
        lora: adapter GGUF, applied at scale 1.

    Attributes:
        bos: text of the token that the tokenizer puts in front of a prompt; empty where it puts none.

    Raises:
        ExportError: a file that llama.cpp does not load, or a build whose parameters lie elsewhere.
        MissingPackage: llama.cpp is not installed.
    """

    def __init__(self, gguf: Path, context: int, threads: int, lora: Path | None = None):
        self._path, self._context_tokens = gguf, context
        self._library = library = _declared(open_shared_object())
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(str(gguf).encode(), library.llama_model_default_params())
        if not self._model:
            raise ExportError(f"{gguf}: llama.cpp cannot run it", "run: tunesmith export RUN")
        self._vocab = library.llama_model_get_vocab(self._model)
        self._tokens = library.llama_vocab_n_tokens(self._vocab)
        self._context = self._new_context(context)
        self._memory = library.llama_get_memory(self._context)
        self._read: list[int] = []  # the tokens in the cache
        library.llama_set_n_threads(self._context, threads, threads)
        begins = library.llama_vocab_get_add_bos(self._vocab)
        self.bos: str = self._text(library.llama_vocab_bos(self._vocab)) if begins else ""
        if lora is not None:
            self._apply(lora)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, as the server makes them: control tokens parsed, BOS in front where the file asks.

        A BOS that the template wrote already is not doubled: the server takes it off before it tokenises.
        """
        return self._tokenize(text.removeprefix(self.bos), special=True)

    def answer_ids(self, text: str, prompt: list[int]) -> list[int]:
        """Token ids of an answer to a prompt, encoded apart from it and as plain text.

        A SentencePiece vocabulary puts a space in front of a text, and has none behind a prompt that ends in plain text:
        there the answer is encoded behind a line break, whose tokens are taken off.

        Raises:
            ExportError: the line break has no token of its own.
        """
        library = self._library
        if library.llama_vocab_type(self._vocab) == BPE or library.llama_vocab_is_control(self._vocab, prompt[-1]):
            return self._tokenize(text, special=False)
        before, whole = self._tokenize("\n", special=False), self._tokenize(f"\n{text}", special=False)
        if whole[: len(before)] != before:
            raise ExportError(f"{self._path}: {text[:60]!r} joins with the line break before it", "score the merged model")
        return whole[len(before) :]

    def detokenize(self, ids: list[int]) -> str:
        """Text of token ids, control tokens as they are written."""
        buffer = (ctypes.c_int32 * len(ids))(*ids)
        size = 64
        while True:
            room = ctypes.create_string_buffer(size)
            count = self._library.llama_detokenize(self._vocab, buffer, len(ids), room, size, False, True)
            if count >= 0:
                return room.raw[:count].decode(errors="replace")
            size = -count

    def logits(self, ids: list[int], first: int = 0, keep: bool = False) -> Iterator[NDArray[np.float32]]:
        """Logits of what follows ``ids[: first + 1]``, ``ids[: first + 2]``, ... and all of ``ids``, batch by batch.

        Args:
            keep: what ``ids`` and the tokens of the last pass begin with is not computed again.

        Returns:
            Arrays of shape (B, V), ``len(ids) - first`` rows in all; each is the caller's own.

        Raises:
            ExportError: no token, one that is not in the vocabulary, more tokens than the context has, or a failed pass.
        """
        self._check(ids, first)
        known = self._known(ids[:first]) if keep else 0
        if not known:
            self._library.llama_memory_clear(self._memory, True)
        self._read = []
        for start in range(known, len(ids), BATCH):
            part = ids[start : start + BATCH]
            is_output = [start + place >= first for place in range(len(part))]
            batch = _Batch(
                n_tokens=len(part),
                token=(ctypes.c_int32 * len(part))(*part),
                logits=(ctypes.c_int8 * len(part))(*is_output),
            )
            failed = self._library.llama_decode(self._context, batch)
            if failed:
                raise ExportError(f"{self._path}: llama.cpp's forward pass of {len(ids)} tokens gave {failed}", "")
            rows = [self._row(place) for place, output in enumerate(is_output) if output]
            if rows:
                yield np.stack(rows)
        self._read = ids

    def _known(self, ids: list[int]) -> int:
        """How many of the tokens lie in the cache, which is cut behind them.

        None where the cache cannot go back: a sliding window has let go of the first tokens, a recurrent state holds the last.
        """
        shared = next((n for n, (old, new) in enumerate(zip(self._read, ids, strict=False)) if old != new), None)
        known = min(len(self._read), len(ids)) if shared is None else shared
        library, memory = self._library, self._memory
        if not known or library.llama_memory_seq_pos_min(memory, 0) != 0:
            return 0
        return known if library.llama_memory_seq_rm(memory, 0, known, -1) else 0

    def score(self, prompt: list[int], answer: list[int], keep: bool = False) -> tuple[float, bool]:
        """Log-probability of the tokens ``answer`` behind ``prompt`` (nats, summed in fp64), and whether they are greedy.

        Args:
            keep: as of ``logits``.

        Raises:
            ExportError: see ``logits``.
        """
        if not answer:
            return 0.0, True
        total, greedy, place = 0.0, True, 0
        for logits_BV in self.logits(prompt + answer[:-1], len(prompt) - 1, keep):
            target_B = np.array(answer[place : place + len(logits_BV)])
            place += len(target_B)
            top_B1 = logits_BV.max(-1, keepdims=True)
            normalizer_B = np.exp(logits_BV - top_B1, dtype=np.float64).sum(-1)
            own_B = logits_BV[np.arange(len(target_B)), target_B].astype(np.float64)
            total += float((own_B - top_B1[:, 0] - np.log(normalizer_B)).sum())
            greedy = greedy and bool((logits_BV.argmax(-1) == target_B).all())
        return total, greedy

    def _new_context(self, context: int) -> int:
        """A context, whose parameters are looked at once it is there.

        Outputs are counted in tokens; left alone, one a sequence is all that there is room for.
        """
        library = self._library
        parameters = library.llama_context_default_params()
        length = -(-context // PAGE) * PAGE
        numbers = parameters.numbers
        numbers[_N_CTX], numbers[_N_BATCH], numbers[_N_UBATCH], numbers[_N_SEQ_MAX] = length, BATCH, MICRO_BATCH, 1
        numbers[_N_RS_SEQ], numbers[_N_OUTPUTS_MAX], numbers[_N_OUTPUTS_MAX_PER_SEQ] = 0, BATCH, BATCH
        handle = library.llama_init_from_model(self._model, parameters)
        if not handle:
            raise ExportError(f"{self._path}: llama.cpp has no room for a context of {length} tokens", "shorten the prompts")
        settings: dict[str, tuple[Callable[[int], int], int]] = {
            "n_ctx": (library.llama_n_ctx, length),
            "n_batch": (library.llama_n_batch, BATCH),
            "n_ubatch": (library.llama_n_ubatch, MICRO_BATCH),
            "n_seq_max": (library.llama_n_seq_max, 1),
            "n_rs_seq": (library.llama_n_rs_seq, 0),
        }
        for name, (function, expected) in settings.items():
            actual = function(handle)
            if actual != expected:
                raise ExportError(f"llama.cpp took {name} for {actual} and not {expected}: its parameters lie elsewhere", HINT)
        return handle

    def _apply(self, lora: Path) -> None:
        adapter = self._library.llama_adapter_lora_init(self._model, str(lora).encode())
        if not adapter:
            raise ExportError(f"{lora}: llama.cpp cannot apply it to {self._path}", "is this the adapter's base model?")
        adapters, scales = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if self._library.llama_set_adapters_lora(self._context, adapters, 1, scales):
            raise ExportError(f"{lora}: llama.cpp refused to apply it to {self._path}", "is this the adapter's base model?")

    def _text(self, token: int) -> str:
        return self._library.llama_vocab_get_text(self._vocab, token).decode(errors="replace")

    def _tokenize(self, text: str, special: bool) -> list[int]:
        buffer = text.encode()
        size = len(buffer) + 2
        room = (ctypes.c_int32 * size)()
        count = self._library.llama_tokenize(self._vocab, buffer, len(buffer), room, size, special, special)
        assert count >= 0, f"{-count} tokens for {len(buffer)} bytes"
        return room[:count]

    def _row(self, place: int) -> NDArray[np.float32]:
        pointer = self._library.llama_get_logits_ith(self._context, place)
        if not pointer:
            raise ExportError(f"llama.cpp gave no logits at place {place} of a batch: its parameters lie elsewhere", HINT)
        return np.ctypeslib.as_array(pointer, (self._tokens,))

    def _check(self, ids: list[int], first: int) -> None:
        if not ids or not 0 <= first < len(ids):
            raise ExportError(f"{len(ids)} tokens have no place {first} to predict from", "give at least one token")
        strange = [token for token in ids if not 0 <= token < self._tokens]
        if strange:
            raise ExportError(f"{self._path}: no token {strange[0]} in a vocabulary of {self._tokens}", "another tokenizer?")
        if len(ids) > self._context_tokens:
            raise ExportError(
                f"{self._path}: a prompt of {len(ids)} tokens exceeds the context of {self._context_tokens}",
                "is the context large enough?",
            )
