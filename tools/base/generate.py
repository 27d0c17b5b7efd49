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


def body_en(dice: random.Random, good: bool) -> str:
    film = dice.random() < 0.5
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
        shape = dice.randrange(8)
        if shape < 3:
            return dice.choice(whole)
        if shape == 3:
            return f"the {dice.choice(aspects)} and the {dice.choice(aspects)} are {dice.choice(words)}"
        if shape == 4:
            return f"this {dice.choice(things)} is {dice.choice(words)}"
        if shape == 5:
            return f"what a {dice.choice(things)}: {dice.choice(words)}"
        return f"the {dice.choice(aspects)} is {dice.choice(['', '', 'really ', 'so ', 'simply ', 'quite '])}{dice.choice(words)}"

    parts = [clause(good) for _ in range(dice.choice([1, 2, 2, 3]))]
    if dice.random() < 0.25:
        word = dice.choice(["but", "yet", "still,", "even so,", "however,"])
        lead = dice.choice(["", "", "although ", "sure, "])
        other = clause(not good)
        parts.insert(
            0, f"{lead}{other}, {parts.pop(0)}" if lead == "although " else f"{lead}{other}, {word} {parts.pop(0)}"
        )
    text = ""
    for number, part in enumerate(parts):
        if number == 0 and dice.random() < 0.25:
            text = f"{dice.choice(bank_en.OPENINGS)} {part}"
        elif number and dice.random() < 0.3:
            text = f"{text[:-1]} and {part}"
        else:
            text += (" " if text else "") + part[0].upper() + part[1:]
        text += dice.choice([".", ".", ".", "!"])
    return text


def body_zh(dice: random.Random, good: bool) -> str:
    film = dice.random() < 0.5
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
        shape = dice.randrange(8)
        if shape < 3:
            return dice.choice(whole)
        if shape == 3:
            return f"{dice.choice(aspects)}和{dice.choice(aspects)}都{dice.choice(words)}"
        if shape == 4:
            return f"这{'部' if film else '个'}{dice.choice(things)}{dice.choice(words)}"
        if shape == 5:
            return f"{dice.choice(things)}的{dice.choice(aspects)}{dice.choice(words)}"
        return f"{dice.choice(aspects)}{dice.choice(['', '', '真的', '实在', '确实', '也'])}{dice.choice(words)}"

    parts = [clause(good) for _ in range(dice.choice([1, 2, 2, 3]))]
    if dice.random() < 0.25:
        lead, word = dice.choice([("虽然", "但是"), ("虽说", "不过"), ("", "但"), ("", "可是"), ("尽管", "还是觉得")])
        parts.insert(0, f"{lead}{clause(not good)}，{word}{parts.pop(0)}")
    text = dice.choice(bank_zh.OPENINGS) if dice.random() < 0.25 else ""
    text += dice.choice(["，", "，", "，", "。", "，而且"]).join(parts) + dice.choice("。。。！")
    return text


def review_en(dice: random.Random) -> str:
    good = dice.random() < 0.5
    return verdict(body_en(dice, good), bank_en, good, dice, " ")


def review_zh(dice: random.Random) -> str:
    good = dice.random() < 0.5
    return verdict(body_zh(dice, good), bank_zh, good, dice, "")


def judged_review(dice: random.Random) -> tuple[str, bool, bool]:
    """(review without a verdict, is it favourable, is it Chinese)."""
    good, chinese = dice.random() < 0.5, dice.random() < 0.65
    return (body_zh if chinese else body_en)(dice, good), good, chinese


def verdict(text: str, bank: ModuleType, good: bool, dice: random.Random, gap: str) -> str:
    """`text` with a verdict behind it, before it, or without one."""
    said = dice.choice(bank.VERDICT_GOOD if good else bank.VERDICT_BAD)
    place = dice.random()
    return f"{text}{gap}{said}" if place < 0.5 else (f"{said}{gap}{text}" if place < 0.62 else text)


def statement_en(dice: random.Random) -> str:
    shape = dice.randrange(6)
    if shape == 0:
        a, b = dice.randrange(20), dice.randrange(20)
        return f"{a} plus {b} is {a + b}."
    if shape == 1:
        thing, colour = dice.choice(list(COLOURS.items()))
        return f"What colour is {thing}? {thing.capitalize()} is {colour}."
    if shape == 2:
        one, other = dice.choice(OPPOSITES.split("|")).split()
        return f"The opposite of {one} is {other}, and the opposite of {other} is {one}."
    if shape == 3:
        day = dice.randrange(7)
        return f"After {DAYS[day]} comes {DAYS[(day + 1) % 7]}."
    if shape == 4:
        word, good = (
            (dice.choice(bank_en.GOOD), "a good thing")
            if dice.random() < 0.5
            else (dice.choice(bank_en.BAD), "a bad thing")
        )
        return f"When people call something {word}, they say {good} about it."
    return f"My {dice.choice(['mother', 'brother', 'neighbour', 'teacher', 'friend'])} bought a {dice.choice(bank_en.PRODUCTS)} on {dice.choice(DAYS)} and we watched a {dice.choice(bank_en.FILM_KINDS)} on {dice.choice(DAYS)}."


def statement_zh(dice: random.Random) -> str:
    shape = dice.randrange(6)
    if shape == 0:
        a, b = dice.randrange(20), dice.randrange(20)
        return f"{a}加{b}等于{a + b}。"
    if shape == 1:
        thing, colour = dice.choice(list(COLOURS_ZH.items()))
        return f"{thing}是什么颜色？{thing}是{colour}的。"
    if shape == 2:
        one, other = dice.choice(OPPOSITES_ZH.split("|")).split()
        return f"“{one}”的反义词是“{other}”。"
    if shape == 3:
        day = dice.randrange(7)
        return f"{DAYS_ZH[day]}的后一天是{DAYS_ZH[(day + 1) % 7]}。"
    if shape == 4:
        good = dice.random() < 0.5
        word = dice.choice(bank_zh.GOOD if good else bank_zh.BAD)
        return f"有人说“{word}”，意思是{'喜欢' if good else '不喜欢'}。"
    return f"{dice.choice(['妈妈', '哥哥', '邻居', '老师', '朋友'])}{dice.choice(DAYS_ZH)}买了一个{dice.choice(bank_zh.PRODUCTS)}，{dice.choice(DAYS_ZH)}我们看了一部{dice.choice(bank_zh.FILM_KINDS)}。"


def generated_texts(count: int, seed: int) -> Iterator[str]:
    """`count` texts: 38 % English and 50 % Chinese reviews, 12 % statements."""
    dice = random.Random(seed)
    for _ in range(count):
        kind = dice.random()
        make = review_en if kind < 0.38 else review_zh if kind < 0.88 else statement_en if kind < 0.92 else statement_zh
        yield make(dice)


if __name__ == "__main__":
    for sample in generated_texts(30, seed=0):
        print(sample)
