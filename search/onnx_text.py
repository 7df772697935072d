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

        # set up once, so that threads can share it
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(about["max_tokens"])
        self.tokenizer.enable_padding(pad_id=about["pad_id"])

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
