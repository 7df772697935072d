"""Read a text tower that was written as an ONNX file: a prompt need not wait seconds until torch is imported."""

import json

import numpy as np


class PromptEncoder:
    """A text tower with its head as an ONNX file, and its tokenizer.

    folder: as written by `search.export.export_onnx`.
    """

    def __init__(self, folder):
        import onnxruntime
        from tokenizers import Tokenizer

        about = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        self.max_tokens = about["max_tokens"]

        # Both are set up once, so that threads can share them.
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.max_tokens)
        self.tokenizer.enable_padding(pad_id=about["pad_id"])
        self.uncut_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.uncut_tokenizer.no_truncation()
        self.uncut_tokenizer.no_padding()

        options = onnxruntime.SessionOptions()
        # To rearrange the weights takes longer than one prompt gains by it.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = onnxruntime.InferenceSession(
            folder / "text.onnx", options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts):
        """Return (Q, D) unit-length float32 embeddings: what `CLIP.encode_text` gives in float32, to 1e-5."""
        embeddings = []
        for start in range(0, len(texts), 128):  # in parts, for little memory
            encoded = self.tokenizer.encode_batch(list(texts[start : start + 128]))
            input_ids = np.array([text.ids for text in encoded])  # (Q, T) int64
            attention_mask = np.array([text.attention_mask for text in encoded])  # (Q, T) int64
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            embeddings.append(self.session.run(None, inputs)[0])
        return np.concatenate(embeddings)

    def remarks(self, prompt):
        """Return `remarks_on` a prompt."""
        return remarks_on(prompt, self.uncut_tokenizer, self.max_tokens)


def remarks_on(prompt, uncut_tokenizer, max_tokens):
    """Return lines that a person should read about a prompt: it is too long, or of words the model does not know."""
    token_ids = uncut_tokenizer.encode(prompt).ids
    lines = []
    if len(token_ids) > max_tokens:
        lines.append(f"the prompt is too long: its last {len(token_ids) - max_tokens} tokens are not looked at")
    added = uncut_tokenizer.get_added_tokens_decoder()  # {number: token}
    special = {number for number, token in added.items() if token.special}  # the unknown token is one of these
    if set(token_ids) <= special:
        lines.append("the text tower knows none of these words: the ranking means nothing")
    return lines
