"""The filters for prose: the rules of Gopher (arXiv 2112.11446, tables A1 and text), run by datatrove's own filters.

Words are what stands between white space, but each character of a script without spaces is one word; where such
characters are more than 10% of the letters, `min_mean_word_length` says nothing and is not asked.
"""

import functools
import re
from typing import TYPE_CHECKING, Any

from data_pipeline.prepare.shingles import UNSPACED_CHARACTERS, split_unspaced

if TYPE_CHECKING:
    from data_pipeline.prepare.filters import Rules

UNSPACED_FRACTION = 0.1
_UNSPACED = re.compile(f"[{UNSPACED_CHARACTERS}]+")

# datatrove's reason -> ours, with the rule that decides
_WORD_REASONS = {
    "gopher_short_doc": ("fewer than {} words", "min_words"),
    "gopher_long_doc": ("more than {} words", "max_words"),
    "gopher_below_avg_threshold": ("mean word under {} characters", "min_mean_word_length"),
    "gopher_above_avg_threshold": ("mean word over {} characters", "max_mean_word_length"),
    "gopher_too_many_hashes": ("over {} '#' per word", "max_symbol_word_ratio"),
    "gopher_too_many_ellipsis": ("over {} '...' per word", "max_symbol_word_ratio"),
    "gopher_too_many_bullets": ("over {} of lines are bullets", "max_bullet_line_fraction"),
    "gopher_too_many_end_ellipsis": ("over {} of lines end in '...'", "max_ellipsis_line_fraction"),
    "gopher_below_alpha_threshold": ("under {} of words have a letter", "min_alphabetic_word_fraction"),
    "gopher_enough_stop_words": ("fewer than {} English stop words", "min_stop_words"),
}
_REPEAT_REASONS = {
    "dup_line_frac": ("over {} of lines are repeated", "max_duplicate_line_fraction"),
    "dup_line_char_frac": ("over {} of characters are in repeated lines", "max_duplicate_line_character_fraction"),
    "dup_para_frac": ("over {} of paragraphs are repeated", "max_duplicate_paragraph_fraction"),
    "dup_para_char_frac": (
        "over {} of characters are in repeated paragraphs",
        "max_duplicate_paragraph_character_fraction",
    ),
}


def reason(text: str, name: str, rules: "Rules") -> str | None:
    """The first objection of the rules for prose, None without one."""
    for filters, reasons in _filters(rules, _is_unspaced(text)):
        verdict = filters.filter(_document(text))
        if verdict is not True:
            phrase, rule = reasons[verdict[1]]
            return phrase.format(getattr(rules, rule) or 1)
    return None


def _document(text: str) -> Any:
    from datatrove.data import Document

    return Document(text=text, id="")


def _is_unspaced(text: str) -> bool:
    if text.isascii():
        return False
    characters = sum(map(len, _UNSPACED.findall(text)))
    return characters > UNSPACED_FRACTION * sum(map(str.isalpha, text))


@functools.cache
def _filters(rules: "Rules", unspaced: bool) -> list[tuple[Any, dict[str, tuple[str, str]]]]:
    """datatrove's filters for these rules, those that have a rule on, with their reasons."""
    chosen = []
    if any(getattr(rules, rule) is not None for _, rule in _WORD_REASONS.values()):
        chosen.append((_word_filter(rules, unspaced), _WORD_REASONS))
    if any(getattr(rules, rule) is not None for _, rule in _REPEAT_REASONS.values()):
        chosen.append((_repeat_filter(rules), _REPEAT_REASONS))
    return chosen


def _word_filter(rules: "Rules", unspaced: bool) -> Any:
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter

    return GopherQualityFilter(
        min_doc_words=rules.min_words or 1,  # the other rules divide by the number of words
        max_doc_words=rules.max_words,
        min_avg_word_length=None if unspaced else rules.min_mean_word_length,
        max_avg_word_length=rules.max_mean_word_length,
        max_symbol_word_ratio=rules.max_symbol_word_ratio,
        max_bullet_lines_ratio=rules.max_bullet_line_fraction,
        max_ellipsis_lines_ratio=rules.max_ellipsis_line_fraction,
        max_non_alpha_words_ratio=rules.min_alphabetic_word_fraction,
        min_stop_words=rules.min_stop_words,
        language=_words(),
    )


def _repeat_filter(rules: "Rules") -> Any:
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    return GopherRepetitionFilter(
        dup_line_frac=rules.max_duplicate_line_fraction,
        dup_para_frac=rules.max_duplicate_paragraph_fraction,
        dup_line_char_frac=rules.max_duplicate_line_character_fraction,
        dup_para_char_frac=rules.max_duplicate_paragraph_character_fraction,
        top_n_grams=(),
        dup_n_grams=(),
        language=_words(),
    )


@functools.cache
def _words() -> Any:
    """A word tokenizer for datatrove; its own need spaCy or a download."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class BetweenSpaces(WordTokenizer):
        """Words between white space; sentences are never asked for."""

        def word_tokenize(self, text: str) -> list[str]:
            return split_unspaced(text).split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    return BetweenSpaces()
