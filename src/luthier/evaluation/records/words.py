"""Words for ROUGE and BLEU, also where a language writes no spaces between them.

rouge-score keeps nothing but a-z and 0-9, so equal Chinese texts score 0; sacrebleu's default takes a Chinese sentence
for one word. Here a Chinese or Japanese character is a word of its own, as in sacrebleu's `zh`; for text in ASCII the
words are those of rouge-score's default tokenizer.
"""

import re
from collections.abc import Iterable

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
THAI = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # with Lao, Burmese and Khmer: no spaces either
_WORD = re.compile(rf"[{HAN}{KANA}{THAI}]|[^\W_{HAN}{KANA}{THAI}]+")
_HAN, _KANA, _THAI = (re.compile(f"[{letters}]") for letters in (HAN, KANA, THAI))


def words(text: str) -> list[str]:
    """Lower-case words of letters and digits; each character of a script without spaces is one."""
    return _WORD.findall(text.lower())


def bleu_tokenizer(references: Iterable[str]) -> str:
    """Sacrebleu's tokenizer for these texts: `zh` for Chinese, `char` for Japanese and Thai and their kin, else `13a`.

    One for the whole set, by the references alone, so that base and tuned model are counted alike.
    """
    text = "".join(references)
    letters = max(1, sum(character.isalpha() for character in text))
    if (len(_KANA.findall(text)) + len(_THAI.findall(text))) / letters > 0.1:
        return "char"
    return "zh" if len(_HAN.findall(text)) / letters > 0.3 else "13a"
