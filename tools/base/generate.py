"""Generated texts for the embedded base: reviews that end in a verdict, and simple statements, English and Chinese.

A review draws its leaning first, then clauses that fit it, sometimes a concession of the other leaning, and
a verdict in ordinary words. The same call gives the same texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import ModuleType

import bank_en
import bank_zh

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "the sky": "blue", "a lemon": "yellow", "blood": "red"}
COLOURS_ZH = {"草": "绿色", "雪": "白色", "煤": "黑色", "天空": "蓝色", "柠檬": "黄色", "血": "红色"}
OPPOSITES = "hot cold|big small|good bad|fast slow|day night|old new|open closed|happy sad|loud quiet|full empty"
OPPOSITES_ZH = "热 冷|大 小|好 坏|快 慢|白天 黑夜|旧 新|开 关|高兴 难过|吵闹 安静|满 空"
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DAYS_ZH = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期天"]


def body_en(rng: random.Random, good: bool) -> str:
    film = rng.random() < 0.5
    aspects = bank_en.FILM_ASPECTS if film else bank_en.PRODUCT_ASPECTS
    things = bank_en.FILM_KINDS if film else bank_en.PRODUCTS

    def clause(favourable: bool) -> str:
        words = bank_en.GOOD if favourable else bank_en.BAD
        whole = {
            (True, True): bank_en.FILM_GOOD,
            (True, False): bank_en.FILM_BAD,
            (False, True): bank_en.PRODUCT_GOOD,
            (False, False): bank_en.PRODUCT_BAD,
        }[film, favourable]
        shape = rng.randrange(8)
        if shape < 3:
            return rng.choice(whole)
        if shape == 3:
            return f"the {rng.choice(aspects)} and the {rng.choice(aspects)} are {rng.choice(words)}"
        if shape == 4:
            return f"this {rng.choice(things)} is {rng.choice(words)}"
        if shape == 5:
            return f"what a {rng.choice(things)}: {rng.choice(words)}"
        return f"the {rng.choice(aspects)} is {rng.choice(['', '', 'really ', 'so ', 'simply ', 'quite '])}{rng.choice(words)}"

    parts = [clause(good) for _ in range(rng.choice([1, 2, 2, 3]))]
    if rng.random() < 0.25:
        word = rng.choice(["but", "yet", "still,", "even so,", "however,"])
        lead = rng.choice(["", "", "although ", "sure, "])
        other = clause(not good)
        parts.insert(
            0, f"{lead}{other}, {parts.pop(0)}" if lead == "although " else f"{lead}{other}, {word} {parts.pop(0)}"
        )
    text = ""
    for number, part in enumerate(parts):
        if number == 0 and rng.random() < 0.25:
            text = f"{rng.choice(bank_en.OPENINGS)} {part}"
        elif number and rng.random() < 0.3:
            text = f"{text[:-1]} and {part}"
        else:
            text += (" " if text else "") + part[0].upper() + part[1:]
        text += rng.choice([".", ".", ".", "!"])
    return text


def body_zh(rng: random.Random, good: bool) -> str:
    film = rng.random() < 0.5
    aspects = bank_zh.FILM_ASPECTS if film else bank_zh.PRODUCT_ASPECTS
    things = bank_zh.FILM_KINDS if film else bank_zh.PRODUCTS

    def clause(favourable: bool) -> str:
        words = bank_zh.GOOD if favourable else bank_zh.BAD
        whole = {
            (True, True): bank_zh.FILM_GOOD,
            (True, False): bank_zh.FILM_BAD,
            (False, True): bank_zh.PRODUCT_GOOD,
            (False, False): bank_zh.PRODUCT_BAD,
        }[film, favourable]
        shape = rng.randrange(8)
        if shape < 3:
            return rng.choice(whole)
        if shape == 3:
            return f"{rng.choice(aspects)}和{rng.choice(aspects)}都{rng.choice(words)}"
        if shape == 4:
            return f"这{'部' if film else '个'}{rng.choice(things)}{rng.choice(words)}"
        if shape == 5:
            return f"{rng.choice(things)}的{rng.choice(aspects)}{rng.choice(words)}"
        return f"{rng.choice(aspects)}{rng.choice(['', '', '真的', '实在', '确实', '也'])}{rng.choice(words)}"

    parts = [clause(good) for _ in range(rng.choice([1, 2, 2, 3]))]
    if rng.random() < 0.25:
        lead, word = rng.choice([("虽然", "但是"), ("虽说", "不过"), ("", "但"), ("", "可是"), ("尽管", "还是觉得")])
        parts.insert(0, f"{lead}{clause(not good)}，{word}{parts.pop(0)}")
    text = rng.choice(bank_zh.OPENINGS) if rng.random() < 0.25 else ""
    text += rng.choice(["，", "，", "，", "。", "，而且"]).join(parts) + rng.choice("。。。！")
    return text


def review_en(rng: random.Random) -> str:
    good = rng.random() < 0.5
    return verdict(body_en(rng, good), bank_en, good, rng, " ")


def review_zh(rng: random.Random) -> str:
    good = rng.random() < 0.5
    return verdict(body_zh(rng, good), bank_zh, good, rng, "")


def judged_review(rng: random.Random) -> tuple[str, bool, bool]:
    """(review without a verdict, is it favourable, is it Chinese)."""
    good, chinese = rng.random() < 0.5, rng.random() < 0.65
    return (body_zh if chinese else body_en)(rng, good), good, chinese


def verdict(text: str, bank: ModuleType, good: bool, rng: random.Random, gap: str) -> str:
    """`text` with a verdict behind it, before it, or without one."""
    said = rng.choice(bank.VERDICT_GOOD if good else bank.VERDICT_BAD)
    place = rng.random()
    return f"{text}{gap}{said}" if place < 0.5 else (f"{said}{gap}{text}" if place < 0.62 else text)


def statement_en(rng: random.Random) -> str:
    shape = rng.randrange(6)
    if shape == 0:
        a, b = rng.randrange(20), rng.randrange(20)
        return f"{a} plus {b} is {a + b}."
    if shape == 1:
        thing, colour = rng.choice(list(COLOURS.items()))
        return f"What colour is {thing}? {thing.capitalize()} is {colour}."
    if shape == 2:
        one, other = rng.choice(OPPOSITES.split("|")).split()
        return f"The opposite of {one} is {other}, and the opposite of {other} is {one}."
    if shape == 3:
        day = rng.randrange(7)
        return f"After {DAYS[day]} comes {DAYS[(day + 1) % 7]}."
    if shape == 4:
        word, good = (
            (rng.choice(bank_en.GOOD), "a good thing")
            if rng.random() < 0.5
            else (rng.choice(bank_en.BAD), "a bad thing")
        )
        return f"When people call something {word}, they say {good} about it."
    return f"My {rng.choice(['mother', 'brother', 'neighbour', 'teacher', 'friend'])} bought a {rng.choice(bank_en.PRODUCTS)} on {rng.choice(DAYS)} and we watched a {rng.choice(bank_en.FILM_KINDS)} on {rng.choice(DAYS)}."


def statement_zh(rng: random.Random) -> str:
    shape = rng.randrange(6)
    if shape == 0:
        a, b = rng.randrange(20), rng.randrange(20)
        return f"{a}加{b}等于{a + b}。"
    if shape == 1:
        thing, colour = rng.choice(list(COLOURS_ZH.items()))
        return f"{thing}是什么颜色？{thing}是{colour}的。"
    if shape == 2:
        one, other = rng.choice(OPPOSITES_ZH.split("|")).split()
        return f"“{one}”的反义词是“{other}”。"
    if shape == 3:
        day = rng.randrange(7)
        return f"{DAYS_ZH[day]}的后一天是{DAYS_ZH[(day + 1) % 7]}。"
    if shape == 4:
        good = rng.random() < 0.5
        word = rng.choice(bank_zh.GOOD if good else bank_zh.BAD)
        return f"有人说“{word}”，意思是{'喜欢' if good else '不喜欢'}。"
    return f"{rng.choice(['妈妈', '哥哥', '邻居', '老师', '朋友'])}{rng.choice(DAYS_ZH)}买了一个{rng.choice(bank_zh.PRODUCTS)}，{rng.choice(DAYS_ZH)}我们看了一部{rng.choice(bank_zh.FILM_KINDS)}。"


def generated_texts(count: int, seed: int) -> Iterator[str]:
    """`count` texts: 38 % English and 50 % Chinese reviews, 12 % statements."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        make = review_en if kind < 0.38 else review_zh if kind < 0.88 else statement_en if kind < 0.92 else statement_zh
        yield make(rng)


if __name__ == "__main__":
    for sample in generated_texts(30, seed=0):
        print(sample)
