"""A vocabulary of word pieces, learned from captions, for a text tower that starts from scratch."""

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(captions, max_tokens, vocabulary_size=8192):
    """Train a lower-casing WordPiece vocabulary on captions; returns a transformers tokenizer.

    The trainer numbers the pieces "##x" in an order of chance, and breaks ties by it. Named beforehand, as special
    tokens, they always have the same numbers; a second tokenizer takes them over without treating them as special.
    """
    letters = set(BertNormalizer(lowercase=True).normalize_str("".join(captions)))
    pieces = sorted(f"##{letter}" for letter in letters if letter.strip())
    trained = empty_tokenizer({})
    trainer = WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=SPECIAL + pieces, show_progress=False)
    trained.train_from_iterator(captions, trainer)

    tokenizer = empty_tokenizer(trained.get_vocab())
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def empty_tokenizer(vocabulary):
    """Return a lower-casing WordPiece tokenizer with this vocabulary, which adds no start or end token."""
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer
