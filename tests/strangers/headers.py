"""Header lines of public data sets, with content made up here, and how each is to be read.

The names of the columns are those of the data sets as they are published (Hugging Face, Kaggle, GitHub); the rows are
ours. A reading is a format and its columns, with a task before it where that is not the format's own; `|` stands
between readings that are all good, and `unsure` is a question to the user in place of a guess.

The table was written before the rule that reads it. A third of it, by a hash of the name, was held back while the rule
was written.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Any

HEADERLESS = "headerless"
"""The file has no header line, and a message has to say so."""

REVIEW = [
    "The soup was cold and nobody at the counter seemed to care about it.",
    "A lovely little place, we stayed for three hours and would have stayed longer.",
    "Battery died after two days. I sent it back the same week.",
    "Sturdy, quiet, and it fits under the desk; exactly what I was looking for.",
    "The second half drags so badly that I looked at my watch four times.",
    "My daughter laughed from the first minute to the last.",
    "Arrived with a scratch across the screen, support never answered my mail.",
    "Best headphones I have owned in this price range, the bass is warm.",
    "Too salty for me, and the portion would not have filled a cat.",
    "Friendly staff who remembered our names on the second evening.",
    "The plot makes no sense once you think about the letter.",
    "I bought one for my mother as well, she uses it every single day.",
]
REVIEW_ZH = [
    "送餐太慢了，等了一个半小时，汤都凉透了。",
    "味道很好，分量也足，下次还会再点。",
    "包装破了，酱汁洒了一袋子，体验很差。",
    "老板很热情，还多送了一份小菜。",
    "房间隔音不好，半夜一直听到走廊里的声音。",
    "位置方便，出门就是地铁，服务也周到。",
    "手机用了三天就自动关机，客服一直推脱。",
    "屏幕清晰，拍照也不错，这个价格很值。",
    "剧情拖沓，看到一半就睡着了。",
    "演员演得真好，最后一场戏看哭了。",
    "面条坨了，肉也没几块，不会再来。",
    "快递很快，衣服颜色和图片一样，很喜欢。",
]
TITLE = [
    "Harbour bridge closed for repairs",
    "City team wins after extra time",
    "Chip maker raises its forecast",
    "New species of frog described",
    "Ministers meet over water rights",
    "Rain delays the final round",
    "Bank cuts its main rate again",
    "Probe sends first pictures home",
    "Vote on the budget postponed",
    "Young goalkeeper signs for rivals",
    "Airline orders forty aircraft",
    "Old battery chemistry gets new life",
]
BODY = [
    "The bridge over the old harbour will stay closed until spring, the council said, after engineers found cracks.",
    "A late header in the second period of extra time sent the home side through to the next round on Saturday.",
    "Shares of the company rose nine percent after it said that orders for memory parts were above plan.",
    "Researchers who spent two years in the cloud forest have described a frog that is smaller than a fingernail.",
    "Ministers of the five countries along the river met on Monday to talk about a treaty from forty years ago.",
    "Heavy rain kept the players in the clubhouse for most of the day, and the final round will now end on Monday.",
    "The central bank lowered its main rate by a quarter of a point, the third such step within this year.",
    "The first pictures from the probe show a plain of ice with ridges that nobody had expected to find there.",
    "Lawmakers put off the vote on the budget for a second time because two parties could not agree on pensions.",
    "The goalkeeper, who turned nineteen in May, has signed a contract for four years with the club's rivals.",
    "The airline has placed a firm order for forty narrow-body aircraft and options for twenty more of them.",
    "A team has shown that a battery made with iron and air can be charged a thousand times without much loss.",
]
ARTICLE = [
    f"{a} {b} Officials did not answer further questions. More is expected later this week."
    for a, b in zip(BODY, reversed(BODY), strict=True)
]
SUMMARY = [
    "Bridge shut until spring because of cracks.",
    "Home side goes through with a late header.",
    "Chip maker's orders beat its plan.",
    "A tiny frog was found in a cloud forest.",
    "Five countries discuss an old river treaty.",
    "The final round moves to Monday.",
    "Main rate falls by a quarter of a point.",
    "Pictures show ridges on an icy plain.",
    "Budget vote fails over pensions.",
    "Teenage goalkeeper joins the rivals.",
    "Airline buys forty aircraft.",
    "Iron-air battery lasts a thousand charges.",
]
ARTICLE_ZH = [
    f"本报讯，{x}记者在现场看到，相关工作人员正在处理此事，市民可以通过热线了解最新进展，预计本周内会有结果公布。"
    for x in (
        "昨天下午市中心的老桥因为裂缝被临时封闭。",
        "主队在加时赛中打入制胜一球。",
        "一家芯片公司上调了全年的销售预期。",
        "科研人员在雨林中发现了一种新的小型蛙类。",
        "沿河五国的代表周一讨论了用水协议。",
        "由于大雨，决赛被推迟到下周一举行。",
        "央行再次下调了基准利率。",
        "探测器传回了第一批冰原的照片。",
        "预算案的投票被第二次推迟。",
        "十九岁的门将签下了四年合同。",
        "航空公司订购了四十架客机。",
        "铁空气电池可以充电一千次。",
    )
]
SUMMARY_ZH = [
    "老桥因裂缝封闭",
    "主队加时取胜",
    "芯片公司上调预期",
    "雨林发现新蛙种",
    "五国讨论用水",
    "决赛因雨推迟",
    "央行再次降息",
    "探测器传回照片",
    "预算投票推迟",
    "门将签约四年",
    "航空公司购机",
    "新电池可充千次",
]
QUESTION = [
    "How long should I boil an egg so that the yolk stays soft?",
    "What is the difference between a lake and a pond?",
    "Why does bread rise?",
    "Which planet has the shortest day?",
    "How do I remove ink from a cotton shirt?",
    "What makes a rainbow curved?",
    "Who looks after a lighthouse today?",
    "How many strings does a cello have?",
    "Can I freeze cooked rice?",
    "What is a tide pool?",
    "Why do cats purr?",
    "How far away is the horizon at sea level?",
]
ANSWER = [
    "About six minutes in boiling water, then put it into cold water at once.",
    "A pond is shallow enough for light to reach the bottom, a lake is not.",
    "Yeast eats sugar and gives off gas, and the dough holds the bubbles.",
    "Jupiter, which turns once in a little less than ten hours.",
    "Dab it with alcohol, rinse it with cold water, and wash it as usual.",
    "Each drop sends each color back at one angle, and equal angles make a circle around your shadow.",
    "Most run by themselves, and a technician visits them a few times a year.",
    "Four, tuned in fifths.",
    "Yes, let it cool first, and eat it within a month.",
    "Sea water that stays between rocks when the tide goes out, with animals that live in it.",
    "Often because they are content, but also when they are hurt and calm themselves.",
    "About five kilometers for a person who stands on the beach.",
]
QUESTION_ZH = [
    "鸡蛋煮多久蛋黄还是软的？",
    "湖和池塘有什么区别？",
    "面包为什么会发起来？",
    "哪颗行星的一天最短？",
    "棉布上的墨水怎么去掉？",
    "彩虹为什么是弯的？",
    "现在灯塔由谁看管？",
    "大提琴有几根弦？",
    "煮好的米饭可以冷冻吗？",
    "什么是潮池？",
    "猫为什么会打呼噜？",
    "站在海边能看多远？",
]
ANSWER_ZH = [
    "沸水里煮六分钟左右，然后马上放进冷水里。",
    "池塘很浅，阳光能照到水底，而湖泊不行。",
    "酵母吃糖产生气体，面团把气泡留住了。",
    "木星，自转一圈不到十个小时。",
    "先用酒精轻轻擦拭，再用冷水冲洗，最后正常清洗。",
    "每滴水把每种颜色按同一个角度反射回来，相同的角度围成一个圆。",
    "大多数灯塔自动运行，技术人员每年去几次。",
    "四根，按五度定弦。",
    "可以，先放凉，一个月内吃完。",
    "退潮时留在岩石之间的海水，里面住着小动物。",
    "常常是因为舒服，受伤时也会用它安慰自己。",
    "站在沙滩上的人大约能看到五公里。",
]
INSTRUCTION = [
    "Rewrite the sentence in the past tense.",
    "Name three uses for an old jar.",
    "Turn the list into a table.",
    "Write a short greeting for a neighbor.",
    "Sort the words by length.",
    "Explain the saying in one sentence.",
    "Give the text a title.",
    "Count the vowels.",
    "Suggest a name for a boat.",
    "Make the sentence polite.",
    "Find the odd one out.",
    "Continue the story with one sentence.",
]
MATERIAL = [
    "She walks to the mill.",
    "",
    "apples 3, pears 5",
    "",
    "moss, cathedral, oak, river",
    "Still waters run deep.",
    "The boat left at dawn and nobody waved.",
    "orchestra",
    "",
    "Give me the hammer.",
    "plum, cherry, carrot, peach",
    "The door was open, and the lamp was still warm.",
]
OUTPUT = [
    "She walked to the mill.",
    "Keep pencils in it, plant a herb in it, or make it a lantern.",
    "fruit | count: apples | 3, pears | 5",
    "Good morning, I hope you slept well in the new house!",
    "oak, moss, river, cathedral",
    "Quiet people may have much on their minds.",
    "Leaving without a goodbye",
    "There are four vowels.",
    "The Patient Heron",
    "Could you please hand me the hammer?",
    "Carrot, since the others are fruit.",
    "He called her name, but only the clock answered.",
]
INSTRUCTION_ZH = [
    "把这句话改成过去的说法。",
    "说出旧罐子的三种用途。",
    "把清单整理成表格。",
    "给新邻居写一句问候。",
    "按长短给词语排序。",
    "用一句话解释这个俗语。",
    "给这段文字起个标题。",
    "数一数有几个元音。",
    "给小船起个名字。",
    "把这句话说得客气一点。",
    "找出不同类的一个。",
    "续写一句话。",
]
MATERIAL_ZH = [
    "她正走去磨坊。",
    "",
    "苹果三个，梨五个",
    "",
    "苔藓，大教堂，河",
    "静水流深。",
    "小船天亮就走了，没有人挥手。",
    "orchestra",
    "",
    "把锤子给我。",
    "李子，樱桃，胡萝卜",
    "门开着，灯还是热的。",
]
OUTPUT_ZH = [
    "她昨天走去了磨坊。",
    "可以装铅笔，可以种香草，也可以做灯笼。",
    "水果和数量：苹果三，梨五。",
    "早上好，希望您在新家睡得好！",
    "河，苔藓，大教堂",
    "安静的人往往想得很深。",
    "没有告别的离开",
    "一共有四个元音。",
    "耐心的苍鹭",
    "请您把锤子递给我好吗？",
    "胡萝卜，因为其他都是水果。",
    "他叫她的名字，只有钟在回答。",
]
DIALOGUE = [
    f"Ada: {q}\nBen: {a}\nAda: Thanks, I will remember that.\nBen: Any time, see you on Sunday then."
    for q, a in zip(QUESTION, ANSWER, strict=True)
]
PREMISE = [
    "A man in a green coat is feeding ducks.",
    "Two children build a tower of sand.",
    "A woman repairs a bicycle in a yard.",
    "A dog sleeps on a red sofa.",
    "Musicians play in a square at night.",
    "A boy throws a ball over a fence.",
    "Three people wait for a bus in the snow.",
    "A chef cuts onions very fast.",
    "A girl reads on a balcony.",
    "Workers paint a tall wall.",
    "A cat looks out of a window.",
    "An old man plays chess alone.",
]
HYPOTHESIS = [
    "Somebody is near birds.",
    "The children are asleep.",
    "The bicycle belongs to her brother.",
    "An animal is resting.",
    "It is a concert at noon.",
    "The boy wants to join a team.",
    "People are outside in winter.",
    "Nobody is cooking.",
    "The girl studies for a test.",
    "A wall is being painted.",
    "The cat is swimming.",
    "The man waits for a friend.",
]
SENTENCE_ZH = [
    "花呗怎么关闭",
    "借款什么时候到账",
    "怎么修改手机号",
    "忘记密码怎么办",
    "可以提前还款吗",
    "为什么不能开通",
    "额度怎么提高",
    "退款要几天",
    "怎么绑定银行卡",
    "账单在哪里看",
    "利息怎么算",
    "还款日能改吗",
]
SENTENCE2_ZH = [
    "怎样把花呗关掉",
    "什么时候可以借款",
    "手机号如何更换",
    "密码丢了能找回吗",
    "提前还钱行不行",
    "开通需要什么条件",
    "怎么增加额度",
    "退货的地址是哪里",
    "银行卡怎么绑定",
    "账单从哪儿查",
    "利率是多少钱",
    "换一个还款日期",
]
EN = [
    "The mill stands by the river.",
    "We are late again.",
    "Please close the window.",
    "He forgot his hat.",
    "Where is the station?",
    "The tea is too hot.",
    "I have never seen snow.",
    "They sang all night.",
    "My brother repairs clocks.",
    "It rained for a week.",
    "She can read two languages.",
    "The road ends here.",
]
DE = [
    "Die Mühle steht am Fluss.",
    "Wir sind wieder zu spät.",
    "Bitte schließ das Fenster.",
    "Er hat seinen Hut vergessen.",
    "Wo ist der Bahnhof?",
    "Der Tee ist zu heiß.",
    "Ich habe noch nie Schnee gesehen.",
    "Sie sangen die ganze Nacht.",
    "Mein Bruder repariert Uhren.",
    "Es regnete eine Woche lang.",
    "Sie kann zwei Sprachen lesen.",
    "Die Straße endet hier.",
]
FR = [
    "Le moulin est au bord de la rivière.",
    "Nous sommes encore en retard.",
    "Ferme la fenêtre, s'il te plaît.",
    "Il a oublié son chapeau.",
    "Où est la gare ?",
    "Le thé est trop chaud.",
    "Je n'ai jamais vu la neige.",
    "Ils ont chanté toute la nuit.",
    "Mon frère répare des horloges.",
    "Il a plu pendant une semaine.",
    "Elle lit deux langues.",
    "La route finit ici.",
]
ZH = [
    "磨坊在河边。",
    "我们又迟到了。",
    "请把窗户关上。",
    "他忘了帽子。",
    "车站在哪里？",
    "茶太烫了。",
    "我从来没见过雪。",
    "他们唱了一整夜。",
    "我哥哥修钟表。",
    "下了一个星期的雨。",
    "她会读两种语言。",
    "路到这里就没了。",
]
UTTERANCE = [
    "my card was swallowed by the machine",
    "what is the exchange rate today",
    "please set an alarm for six",
    "why was i charged twice",
    "the card has not arrived yet",
    "wake me up at seven",
    "how much is a dollar in yen",
    "there is a payment i do not know",
    "still waiting for my new card",
    "remind me in ten minutes",
    "the atm kept my card",
    "is your rate better than the bank's",
]
INTENT = [
    "card_swallowed",
    "exchange_rate",
    "alarm",
    "wrong_charge",
    "card_arrival",
    "alarm",
    "exchange_rate",
    "wrong_charge",
    "card_arrival",
    "alarm",
    "card_swallowed",
    "exchange_rate",
]
SQL = [
    "SELECT name FROM mills WHERE wheels > 2",
    "SELECT count(*) FROM boats",
    "SELECT avg(age) FROM keepers",
    "SELECT town FROM ferries WHERE fare < 5",
    "SELECT max(depth) FROM lakes",
    "SELECT title FROM songs ORDER BY year",
    "SELECT id FROM bridges WHERE closed = 1",
    "SELECT sum(rooms) FROM inns",
    "SELECT owner FROM cats",
    "SELECT day FROM tides WHERE height > 4",
    "SELECT name FROM rivers",
    "SELECT count(*) FROM lamps WHERE lit = 1",
]
TABLES = [f"CREATE TABLE {x.split(' FROM ')[1].split()[0]} (id INTEGER, name VARCHAR, note VARCHAR)" for x in SQL]
CODE = [
    f"def solve_{n}(values):\n    total = {n}\n    for value in values:\n        total += value * {n + 1}\n    return total"
    for n in range(12)
]
NAMES = [
    "Ada Lund",
    "Ben Okoro",
    "Cleo Marsh",
    "Dev Rao",
    "Eva Stern",
    "Finn Holt",
    "Gia Moss",
    "Hal Birch",
    "Ida Voss",
    "Jon Reed",
    "Kim Dale",
    "Lea Frost",
]
WORDS = ["mill", "harbour", "soup", "frog", "budget", "rain", "rate", "probe", "vote", "goal", "fleet", "battery"]


def _turns(speaker: str, text: str, names: tuple[str, str]) -> list[Any]:
    return [[{speaker: names[0], text: q}, {speaker: names[1], text: a}] for q, a in zip(QUESTION, ANSWER, strict=True)]


def _cycle(*values: Any) -> list[Any]:
    return [values[i * 7 % len(values) if len(values) % 7 else i % len(values)] for i in range(12)]


POOLS: dict[str, list[Any]] = {
    "review": REVIEW,
    "review_zh": REVIEW_ZH,
    "title": TITLE,
    "body": BODY,
    "article": ARTICLE,
    "summary": SUMMARY,
    "article_zh": ARTICLE_ZH,
    "summary_zh": SUMMARY_ZH,
    "q": QUESTION,
    "a": ANSWER,
    "q_zh": QUESTION_ZH,
    "a_zh": ANSWER_ZH,
    "ins": INSTRUCTION,
    "mat": MATERIAL,
    "out": OUTPUT,
    "ins_zh": INSTRUCTION_ZH,
    "mat_zh": MATERIAL_ZH,
    "out_zh": OUTPUT_ZH,
    "dialogue": DIALOGUE,
    "s1": PREMISE,
    "s2": HYPOTHESIS,
    "s1_zh": SENTENCE_ZH,
    "s2_zh": SENTENCE2_ZH,
    "en": EN,
    "de": DE,
    "fr": FR,
    "zh": ZH,
    "utter": UTTERANCE,
    "intent": INTENT,
    "sql": SQL,
    "tables": TABLES,
    "code": CODE,
    "person": NAMES,
    "word": WORDS,
    "bin": [0, 1] * 6,
    "one": [1] * 12,
    "nli": [0, 1, 2] * 4,
    "class4": [2, 1, 3, 0, 2, 1, 3, 0, 2, 1, 3, 0],
    "stars": _cycle(1, 5, 2, 5, 3),
    "stars0": _cycle(0, 4, 1, 4, 2),
    "posneg": ["negative", "positive"] * 6,
    "truth": [False, True] * 6,
    "tone": ["neutral", "positive", "negative"] * 4,
    "hamspam": ["ham", "ham", "spam"] * 4,
    "nliw": ["entailment", "neutral", "contradiction"] * 4,
    "mood_zh": ["差评", "好评"] * 6,
    "class_zh": ["体育", "财经", "科技"] * 4,
    "topic": ["sports", "business", "science", "politics"] * 3,
    "score": [2.5, 3.8, 5.0, 0.0, 1.25, 4.4, 3.0, 0.6, 2.2, 4.75, 1.0, 3.4],
    "conf": [1.0, 0.35, 0.68, 0.91, 1.0, 0.52, 0.77, 1.0, 0.63, 0.84, 0.97, 0.41],
    "prob": [0.0, 0.166, 0.89, 0.0, 0.4, 0.0, 0.71, 0.2, 0.0, 0.05, 0.3, 0.0],
    "id": list(range(12)),
    "bigid": [481_000_311 + 977 * i * i for i in range(12)],
    "count": [3, 17, 4, 0, 8, 112, 5, 61, 2, 9, 23, 40],
    "hex": [hashlib.sha1(str(i).encode()).hexdigest() for i in range(12)],
    "uuid": [str(uuid.UUID(int=i * 7919 << 64 | i)) for i in range(12)],
    "key": [f"en_{7 * i + 11:07d}" for i in range(12)],
    "date": [f"2019-0{1 + i % 9}-1{i % 10}" for i in range(12)],
    "time": [f"Mon Apr 06 22:{19 + i}:45 PDT 2009" for i in range(12)],
    "url": [f"https://news.example.org/{w}/{i}" for i, w in enumerate(WORDS)],
    "lang": ["en"] * 12,
    "langs": ["en", "de", "fr"] * 4,
    "noquery": ["NO_QUERY"] * 12,
    "empty": [""] * 12,
    "split": ["train"] * 12,
    "place": ["Oslo", "", "Pune", "", "Leeds", "Turin", "", "Lima", "Oslo", "", "Cork", ""],
    "shop": ["书籍", "酒店", "水果", "酒店"] * 3,
    "system": ["You are a helpful assistant. Explain your answer.", "", "You are a teacher. Be brief."] * 4,
    "dept": ["内科", "外科", "儿科"] * 4,
    "kind": ["OpenQA", "NLI", "Summary", "OpenQA"] * 3,
    "level": ["Level 3", "Level 5", "Level 1"] * 4,
    "letter": ["C", "A", "B", "D"] * 3,
    "index": [2, 0, 1, 3] * 3,
    "choices": [[f"a {WORDS[(i + k) % 12]}" for k in range(4)] for i in range(12)],
    "choicedict": [{"label": list("ABCD"), "text": [f"a {WORDS[(i + k) % 12]}" for k in range(4)]} for i in range(12)],
    "squad": [{"text": [a.split(",")[0]], "answer_start": [3 * i]} for i, a in enumerate(ANSWER)],
    "aliases": [{"value": w, "aliases": [w, w.title()], "type": "x"} for w in WORDS],
    "alist": [[a] for a in ANSWER],
    "labels": [[i % 5, 7] if i % 3 else [i % 5] for i in range(12)],
    "tokens": [s.split() for s in EN],
    "tags": [[0] * len(s.split()) for s in EN],
    "keywords": ["bridge,repair", "", "chip", "frog,forest", "", "rain", "bank", "", "vote", "", "air", ""],
    "en_de": [{"en": e, "de": d} for e, d in zip(EN, DE, strict=True)],
    "zh_en": [{"zh": z, "en": e} for z, e in zip(ZH, EN, strict=True)],
    "messages": _turns("role", "content", ("user", "assistant")),
    "sharegpt": _turns("from", "value", ("human", "gpt")),
    "rolegpt": _turns("role", "value", ("human", "gpt")),
    "human": [[{"human": q, "assistant": a}] for q, a in zip(QUESTION, ANSWER, strict=True)],
    "strings": [[q, a] for q, a in zip(QUESTION, ANSWER, strict=True)],
    "mr": [f"name[{n.split()[1]}], food[{w}], area[riverside]" for n, w in zip(NAMES, WORDS, strict=True)],
    "ref": [f"{n.split()[1]} serves {w} by the riverside." for n, w in zip(NAMES, WORDS, strict=True)],
    "price": [7.25, 71.28, 7.92, 53.1, 8.05, 8.46, 51.86, 21.07, 11.13, 30.07, 16.7, 26.55],
    "ages": [22, 38, 26, 35, 35, 54, 2, 27, 14, 4, 58, 20],
    "sex": ["male", "female", "female"] * 4,
    "meta": [{"lang": "zh", "votes": i} for i in range(12)],
    "dict": [{"contexts": [b], "labels": ["RESULTS"]} for b in BODY],
    "lines": [[z, ZH[(i + 1) % 12]] for i, z in enumerate(ZH)],
    "yesno": ["yes", "no", "maybe"] * 4,
    "refs": [[b] for b in BODY],
}


@dataclass(frozen=True, slots=True)
class Table:
    """One data set: the kind of its file, its rows, and the readings that are right."""

    name: str
    kind: str
    rows: list[dict[str, Any]]
    readings: tuple[str, ...]

    @property
    def held_back(self) -> bool:
        """Was it out of sight while the rule was written?"""
        return hashlib.sha256(self.name.encode()).digest()[0] % 3 == 0


SETS = """
ag_news jsonl: text=body, label=class4 -> classification text=text; label=label
ag_news_kaggle csv: Class Index=class4, Title=title, Description=body -> classification text=Title; pair=Description; label=Class Index
ag_news_raw csv-: c=class4, t=title, d=body -> headerless
yelp_review_full jsonl: label=stars0, text=review -> classification text=text; label=label
imdb_kaggle csv: review=review, sentiment=posneg -> classification text=review; label=sentiment
imdb_labeled tsv: id=key, sentiment=bin, review=review -> classification text=review; label=sentiment
sst2_glue tsv: sentence=review, label=bin, idx=id -> classification text=sentence; label=label
rotten_tomatoes_kaggle tsv: PhraseId=id, SentenceId=id, Phrase=review, Sentiment=stars0 -> classification text=Phrase; label=Sentiment
emotion jsonl: text=review, label=nli -> classification text=text; label=label
emotions_kaggle csv: Text=review, Emotion=tone -> classification text=Text; label=Emotion
banking77 csv: text=utter, category=intent -> classification text=text; label=category
clinc_oos jsonl: text=utter, intent=intent -> classification text=text; label=intent
massive jsonl: id=id, locale=lang, partition=split, intent=intent, utt=utter -> classification text=utt; label=intent
snips csv: text=utter, category=intent -> classification text=text; label=category
sms_spam jsonl: sms=utter, label=hamspam -> classification text=sms; label=label
spam_kaggle csv: v1=hamspam, v2=utter, =empty, =empty, =empty -> classification text=v2; label=v1
spam_mail csv: Category=hamspam, Message=utter -> classification text=Message; label=Category
sms_collection tsv-: a=hamspam, b=utter -> headerless
disaster_tweets csv: id=id, keyword=word, location=place, text=review, target=bin -> classification text=text; label=target
airline_tweets csv: tweet_id=bigid, airline_sentiment=tone, airline_sentiment_confidence=conf, negativereason=place, airline=topic, name=person, retweet_count=count, text=review, tweet_coord=empty, tweet_created=time, user_timezone=place -> classification text=text; label=airline_sentiment | unsure
amazon_reviews_multi jsonl: review_id=key, product_id=key, reviewer_id=key, stars=stars, review_body=review, review_title=title, language=lang, product_category=topic -> classification text=review_body; label=stars | classification text=review_title; pair=review_body; label=stars
amazon_polarity jsonl: label=bin, title=title, content=review -> classification text=title; pair=content; label=label | classification text=content; label=label
amazon_fine_food csv: Id=id, ProductId=key, UserId=key, ProfileName=person, HelpfulnessNumerator=count, HelpfulnessDenominator=count, Score=stars, Time=bigid, Summary=title, Text=review -> classification text=Text; label=Score | classification text=Summary; pair=Text; label=Score | unsure
jigsaw csv: id=hex, comment_text=review, toxic=bin, severe_toxic=nli, obscene=bin, threat=bin, insult=bin, identity_hate=bin -> unsure
civil_comments jsonl: text=review, toxicity=prob, severe_toxicity=prob, obscene=prob, threat=prob, insult=prob -> unsure
hate_offensive csv: =id, count=stars, hate_speech=stars0, offensive_language=stars0, neither=nli, class=nli, tweet=review -> classification text=tweet; label=class | unsure
sentiment140 csv-: a=bin, b=bigid, c=time, d=noquery, e=person, f=review -> headerless
tweet_eval jsonl: text=review, label=nli -> classification text=text; label=label
tweet_sentiment_extraction csv: textID=hex, text=review, selected_text=word, sentiment=tone -> classification text=text; label=sentiment | unsure
trec jsonl: text=q, coarse_label=nli, fine_label=class4 -> unsure
dbpedia14 jsonl: label=class4, title=title, content=body -> classification text=title; pair=content; label=label | classification text=content; label=label
newsgroups jsonl: text=body, label=class4, label_text=topic -> classification text=text; label=label
phrasebank_kaggle csv-: a=tone, b=body -> headerless
financial_sentiment csv: Sentence=body, Sentiment=tone -> classification text=Sentence; label=Sentiment
steam_reviews csv: app_id=bigid, app_name=word, review_text=review, review_score=bin, review_votes=bin -> classification text=review_text; label=review_score | unsure
clothing_reviews csv: =id, Clothing ID=bigid, Age=ages, Title=title, Review Text=review, Rating=stars, Recommended IND=bin, Positive Feedback Count=count, Division Name=topic, Department Name=topic, Class Name=topic -> classification text=Review Text; label=Rating | classification text=Title; pair=Review Text; label=Rating | unsure
fake_news csv: id=id, title=title, author=person, text=article, label=bin -> classification text=text; label=label
true_fake csv: title=title, text=article, subject=topic, date=date -> unsure | classification text=title; pair=text; label=subject | text text=text
bbc_text csv: category=topic, text=article -> classification text=text; label=category
huffpost jsonl: link=url, headline=title, category=topic, short_description=body, authors=person, date=date -> classification text=headline; pair=short_description; label=category
stackoverflow_quality csv: Id=bigid, Title=q, Body=article, Tags=topic, CreationDate=date, Y=tone -> classification text=Title; pair=Body; label=Y | unsure
cyberbullying csv: tweet_text=review, cyberbullying_type=topic -> classification text=tweet_text; label=cyberbullying_type
medical_abstracts csv: condition_label=class4, medical_abstract=article -> classification text=medical_abstract; label=condition_label
resumes csv: ID=bigid, Resume_str=article, Category=topic -> classification text=Resume_str; label=Category
movie_genres csv: title=title, plot=article, genre=topic -> classification text=title; pair=plot; label=genre | classification text=plot; label=genre
language_identification csv: labels=langs, text=en -> classification text=text; label=labels
go_emotions jsonl: text=review, labels=labels, id=hex -> unsure
goodreads jsonl: user_id=hex, book_id=bigid, review_id=hex, rating=stars, review_text=review, date_added=time, n_votes=count -> classification text=review_text; label=rating
app_reviews jsonl: package_name=split, review=review, date=date, star=stars -> classification text=review; label=star
poem_sentiment jsonl: id=id, verse_text=en, label=nli -> classification text=verse_text; label=label
mental_health csv: =id, statement=review, status=topic -> classification text=statement; label=status
tripadvisor csv: Review=review, Rating=stars -> classification text=Review; label=Rating
twitter_entity csv-: a=bigid, b=topic, c=tone, d=review -> headerless
liar jsonl: id=key, label=nli, statement=body, subject=topic, speaker=person, context=title -> classification text=statement; label=label | unsure
boolq jsonl: question=q, passage=article, answer=truth -> classification text=question; pair=passage; label=answer | classification text=passage; pair=question; label=answer
sarcasm jsonl: is_sarcastic=bin, headline=title, article_link=url -> classification text=headline; label=is_sarcastic
clickbait csv: headline=title, clickbait=bin -> classification text=headline; label=clickbait
depression csv: =id, message to examine=review, label (depression result)=bin -> classification text=message to examine; label=label (depression result)
pii_star jsonl: stars=stars, text=review, useful=count, business_id=hex, user_id=hex, date=date -> classification text=text; label=stars
sorted_imdb csv: text=review, label=one -> classification text=text; label=label
sentiment_words csv: sentence=review, polarity=truth -> classification text=sentence; label=polarity
chnsenticorp csv: label=bin, review=review_zh -> classification text=review; label=label
chnsenticorp_paddle tsv: qid=id, label=bin, text_a=review_zh -> classification text=text_a; label=label
waimai_10k csv: label=bin, review=review_zh -> classification text=review; label=label
weibo_senti_100k csv: label=bin, review=review_zh -> classification text=review; label=label
online_shopping_10_cats csv: cat=shop, label=bin, review=review_zh -> classification text=review; label=label
dmsc_v2 csv: ID=id, Movie_Name_EN=word, Movie_Name_CN=summary_zh, Crawl_Date=date, Number=count, Username=person, Date=date, Star=stars, Comment=review_zh, Like=count -> classification text=Comment; label=Star | unsure
yf_dianping csv: userId=bigid, restId=bigid, rating=stars, rating_env=stars, rating_flavor=stars, rating_service=stars, timestamp=bigid, comment=review_zh -> classification text=comment; label=rating | unsure
tnews jsonl: label=class4, label_desc=topic, sentence=s1_zh, keywords=keywords -> classification text=sentence; label=label
thucnews tsv-: a=summary_zh, b=class4 -> headerless
comments_zh csv: 评论=review_zh, 标签=bin -> classification text=评论; label=标签
texts_zh csv: 文本=article_zh, 类别=class_zh -> classification text=文本; label=类别
feelings_zh csv: 内容=review_zh, 情感=mood_zh -> classification text=内容; label=情感
numbered_zh csv: 序号=id, 评论内容=review_zh, 情感倾向=nli -> classification text=评论内容; label=情感倾向
titles_zh csv: 标题=summary_zh, 分类=class_zh -> classification text=标题; label=分类
snli jsonl: premise=s1, hypothesis=s2, label=nli -> classification text=premise; pair=hypothesis; label=label
snli_raw csv: gold_label=nliw, sentence1=s1, sentence2=s2, captionID=key, pairID=key -> classification text=sentence1; pair=sentence2; label=gold_label
mnli jsonl: premise=s1, hypothesis=s2, label=nli, idx=id -> classification text=premise; pair=hypothesis; label=label
qqp_kaggle csv: id=id, qid1=bigid, qid2=bigid, question1=q, question2=s2, is_duplicate=bin -> classification text=question1; pair=question2; label=is_duplicate
qnli jsonl: question=q, sentence=body, label=bin, idx=id -> classification text=question; pair=sentence; label=label
paws tsv: id=id, sentence1=s1, sentence2=s2, label=bin -> classification text=sentence1; pair=sentence2; label=label
lcqmc tsv: text_a=s1_zh, text_b=s2_zh, label=bin -> classification text=text_a; pair=text_b; label=label
lcqmc_query jsonl: query1=s1_zh, query2=s2_zh, label=bin -> classification text=query1; pair=query2; label=label
lcqmc_mteb jsonl: sentence1=s1_zh, sentence2=s2_zh, score=bin -> classification text=sentence1; pair=sentence2; label=score
bq_corpus csv: sentence1=s1_zh, sentence2=s2_zh, label=bin -> classification text=sentence1; pair=sentence2; label=label
ocnli jsonl: level=nliw, sentence1=s1_zh, sentence2=s2_zh, label=nliw, genre=class_zh, prem_id=key, id=id -> classification text=sentence1; pair=sentence2; label=label
xnli jsonl: language=langs, premise=s1, hypothesis=s2, label=nliw -> classification text=premise; pair=hypothesis; label=label
sts_b jsonl: sentence1=s1, sentence2=s2, score=score -> regress/classification text=sentence1; pair=sentence2; label=score
sts_multi csv: sentence1=s1, sentence2=s2, similarity_score=score -> regress/classification text=sentence1; pair=sentence2; label=similarity_score
readability csv: id=hex, url_legal=empty, license=empty, excerpt=article, target=score, standard_error=conf -> regress/classification text=excerpt; label=target | unsure
sick tsv: pair_ID=id, sentence_A=s1, sentence_B=s2, relatedness_score=score, entailment_judgment=nliw -> classification text=sentence_A; pair=sentence_B; label=entailment_judgment | unsure
anli jsonl: uid=uuid, premise=s1, hypothesis=s2, label=nli, reason=out -> classification text=premise; pair=hypothesis; label=label
mrpc_raw tsv: Quality=bin, #1 ID=bigid, #2 ID=bigid, #1 String=s1, #2 String=s2 -> classification text=#1 String; pair=#2 String; label=Quality
pairs_zh csv: 句子1=s1_zh, 句子2=s2_zh, 标签=bin -> classification text=句子1; pair=句子2; label=标签
fever_pairs jsonl: id=id, claim=s2, evidence=body, label=nliw -> classification text=claim; pair=evidence; label=label | classification text=evidence; pair=claim; label=label
commonsense_qa jsonl: id=hex, question=q, question_concept=word, choices=choicedict, answerKey=letter -> unsure
arc jsonl: id=key, question=q, choices=choicedict, answerKey=letter -> unsure
mmlu jsonl: question=q, subject=topic, choices=choices, answer=index -> unsure
hellaswag jsonl: ind=id, activity_label=topic, ctx=body, endings=choices, split=split, label=letter -> unsure
piqa jsonl: goal=q, sol1=a, sol2=out, label=bin -> unsure
ceval csv: id=id, question=q_zh, A=word, B=word, C=word, D=word, answer=letter, explanation=empty -> unsure
race jsonl: example_id=key, article=article, answer=letter, question=q, options=choices -> unsure
squad jsonl: id=hex, title=title, context=article, question=q, answers=squad -> alpaca instruction=question; input=context; output=answers.text.0
cmrc jsonl: id=key, context=article_zh, question=q_zh, answers=squad -> alpaca instruction=question; input=context; output=answers.text.0
dolly jsonl: instruction=ins, context=mat, response=out, category=kind -> alpaca instruction=instruction; input=context; output=response
alpaca json: instruction=ins, input=mat, output=out -> alpaca instruction=instruction; input=input; output=output
belle jsonl: instruction=ins_zh, input=empty, output=out_zh -> alpaca instruction=instruction; input=input; output=output
firefly jsonl: kind=kind, input=ins_zh, target=out_zh -> prompt_completion prompt=input; completion=target
gsm8k jsonl: question=q, answer=a -> prompt_completion prompt=question; completion=answer
openorca jsonl: id=key, system_prompt=system, question=q, response=a -> alpaca instruction=question; output=response; system=system_prompt
evol_instruct json: instruction=ins, output=out -> alpaca instruction=instruction; output=output
code_alpaca json: prompt=ins, completion=code -> prompt_completion prompt=prompt; completion=completion
code_feedback jsonl: id=id, query=q, answer=code, resource=split, lang=lang -> prompt_completion prompt=query; completion=answer
magicoder jsonl: lang=lang, raw_index=bigid, index=id, problem=ins, solution=code -> prompt_completion prompt=problem; completion=solution
medical_zh csv: department=dept, title=s1_zh, ask=q_zh, answer=a_zh -> prompt_completion prompt=ask; completion=answer | alpaca instruction=title; input=ask; output=answer
huatuo_lite jsonl: id=id, question=q_zh, answer=a_zh, label=dept -> prompt_completion prompt=question; completion=answer | unsure
zhihu_kol jsonl: INSTRUCTION=q_zh, RESPONSE=a_zh, SOURCE=split, METADATA=meta -> prompt_completion prompt=INSTRUCTION; completion=RESPONSE
moss_003 jsonl: conversation_id=id, conversation=human, num_turns=one -> unsure
nq_open jsonl: question=q, answer=alist -> prompt_completion prompt=question; completion=answer.0
trivia_qa jsonl: question=q, question_id=key, question_source=url, answer=aliases -> prompt_completion prompt=question; completion=answer.value | unsure
sciq jsonl: question=q, distractor1=word, distractor2=word, distractor3=word, correct_answer=word, support=body -> unsure | alpaca instruction=question; input=support; output=correct_answer | prompt_completion prompt=question; completion=correct_answer
competition_math jsonl: problem=q, level=level, type=topic, solution=a -> prompt_completion prompt=problem; completion=solution
metamath jsonl: type=kind, query=q, original_question=q, response=a -> prompt_completion prompt=query; completion=response
numina jsonl: source=split, problem=q, solution=a, messages=messages -> messages messages=messages
ultrachat jsonl: prompt=q, prompt_id=hex, messages=messages -> messages messages=messages
ultrachat_raw jsonl: id=id, data=strings -> unsure
sharegpt jsonl: id=hex, conversations=sharegpt -> sharegpt conversations=conversations
lmsys_chat jsonl: conversation_id=hex, model=word, conversation=messages, turn=one, language=lang -> messages messages=conversation
conversations_role jsonl: conversations=messages, source=topic -> messages messages=conversations
dialogue_rolegpt jsonl: id=id, dialog=rolegpt -> sharegpt conversations=dialog; speaker=role; value=value
oasst jsonl: message_id=uuid, parent_id=uuid, text=a, role=posneg, lang=lang -> unsure | text text=text
sql_create_context jsonl: question=q, context=tables, answer=sql -> alpaca instruction=question; input=context; output=answer
spider jsonl: db_id=word, query=sql, question=q -> unsure | prompt_completion prompt=question; completion=query
text_to_sql jsonl: db_id=topic, question=q, SQL=sql -> prompt_completion prompt=question; completion=SQL
pubmed_qa jsonl: pubid=bigid, question=q, context=dict, long_answer=a, final_decision=yesno -> unsure | prompt_completion prompt=question; completion=long_answer
webglm_qa jsonl: question=q, answer=a, references=refs -> prompt_completion prompt=question; completion=answer
gpt4all jsonl: prompt=q, response=a, source=split -> prompt_completion prompt=prompt; completion=response
webqa_zh csv: 问题=q_zh, 回答=a_zh -> prompt_completion prompt=问题; completion=回答
answers_zh csv: 问题=q_zh, 答案=a_zh -> prompt_completion prompt=问题; completion=答案
instructions_zh csv: 指令=ins_zh, 输入=mat_zh, 输出=out_zh -> alpaca instruction=指令; input=输入; output=输出
faq_zh csv: 编号=id, 提问=q_zh, 回复=a_zh, 日期=date -> prompt_completion prompt=提问; completion=回复
short_zh csv: 问=q_zh, 答=a_zh -> prompt_completion prompt=问; completion=答
summaries_zh csv: 正文=article_zh, 摘要=summary_zh -> prompt_completion prompt=正文; completion=摘要
q_a csv: Q=q, A=a -> prompt_completion prompt=Q; completion=A
faq csv: Question=q, Answer=a, Category=topic -> prompt_completion prompt=Question; completion=Answer
faq_class csv: ID=id, Questions=q, Answers=a -> prompt_completion prompt=Questions; completion=Answers
medquad csv: question=q, answer=a, source=topic, focus_area=word -> prompt_completion prompt=question; completion=answer
qa_reversed csv: answer=a, question=q -> prompt_completion prompt=question; completion=answer
user_assistant jsonl: user=q, assistant=a -> prompt_completion prompt=user; completion=assistant
human_bot csv: human=q, bot=a -> prompt_completion prompt=human; completion=bot
input_output jsonl: input=q, output=a -> prompt_completion prompt=input; completion=output
query_response csv: query=q, response=a -> prompt_completion prompt=query; completion=response
input_text jsonl: input_text=q, target_text=a -> prompt_completion prompt=input_text; completion=target_text
counseling csv: Context=article, Response=a -> prompt_completion prompt=Context; completion=Response
counsel_chat csv: questionID=id, questionTitle=title, questionText=q, questionUrl=url, topic=topic, therapistName=person, answerText=a, upvotes=count, views=bigid -> prompt_completion prompt=questionText; completion=answerText | alpaca instruction=questionTitle; input=questionText; output=answerText
wiki_qa jsonl: question_id=key, question=q, document_title=word, answer=a, label=bin -> classification text=question; pair=answer; label=label | unsure
tldr_prompt_label jsonl: prompt=article, label=summary -> prompt_completion prompt=prompt; completion=label
customer_support csv: flags=intent, instruction=utter, category=topic, intent=intent, response=a -> prompt_completion prompt=instruction; completion=response
philosophy csv: category=topic, question=q, answer=a -> prompt_completion prompt=question; completion=answer
lima_like jsonl: instruction=ins, response=out, source=split -> prompt_completion prompt=instruction; completion=response
title_answer_zh jsonl: qid=key, category=class_zh, title=q_zh, desc=empty, answer=a_zh -> prompt_completion prompt=title; completion=answer
cnn_dailymail csv: id=hex, article=article, highlights=summary -> prompt_completion prompt=article; completion=highlights
xsum jsonl: document=article, summary=summary, id=bigid -> prompt_completion prompt=document; completion=summary
samsum jsonl: id=key, dialogue=dialogue, summary=summary -> prompt_completion prompt=dialogue; completion=summary
dialogsum csv: id=key, dialogue=dialogue, summary=summary, topic=word -> prompt_completion prompt=dialogue; completion=summary
dialogsum_fname jsonl: fname=key, dialogue=dialogue, summary=summary -> prompt_completion prompt=dialogue; completion=summary
billsum jsonl: text=article, summary=summary, title=title -> prompt_completion prompt=text; completion=summary
arxiv_summarization jsonl: article=article, abstract=body -> prompt_completion prompt=article; completion=abstract
lcsts jsonl: summary=summary_zh, text=article_zh -> prompt_completion prompt=text; completion=summary
csl jsonl: content=article_zh, title=summary_zh -> prompt_completion prompt=content; completion=title | unsure
xlsum jsonl: id=key, url=url, title=title, summary=summary, text=article -> prompt_completion prompt=text; completion=summary
news_summary csv: author=person, date=date, headlines=title, read_more=url, text=body, ctext=article -> unsure | prompt_completion prompt=text; completion=headlines | prompt_completion prompt=ctext; completion=text | prompt_completion prompt=ctext; completion=headlines
wmt_dict jsonl: translation=en_de -> prompt_completion prompt=translation.en; completion=translation.de
opus_dict jsonl: id=id, translation=zh_en -> prompt_completion prompt=translation.zh; completion=translation.en
en_de csv: en=en, de=de -> prompt_completion prompt=en; completion=de
wmt_zh tsv: en=en, zh=zh -> prompt_completion prompt=en; completion=zh
tatoeba_raw tsv-: a=en, b=fr -> headerless
english_chinese csv: english=en, chinese=zh -> prompt_completion prompt=english; completion=chinese
french_kaggle csv: English words/sentences=en, French words/sentences=fr -> prompt_completion prompt=English words/sentences; completion=French words/sentences
chinese_english_zh csv: 中文=zh, 英文=en -> prompt_completion prompt=中文; completion=英文
src_tgt tsv: src=en, tgt=de -> prompt_completion prompt=src; completion=tgt
source_target csv: source=en, target=fr -> prompt_completion prompt=source; completion=target
opus_lang jsonl: score=conf, en=en, fr=fr -> prompt_completion prompt=en; completion=fr
e2e_nlg jsonl: mr=mr, ref=ref -> prompt_completion prompt=mr; completion=ref | unsure
e2e_hf jsonl: meaning_representation=mr, human_reference=ref -> prompt_completion prompt=meaning_representation; completion=human_reference
paraphrases csv: input=s1, paraphrase=s2 -> prompt_completion prompt=input; completion=paraphrase
wikipedia jsonl: id=bigid, url=url, title=word, text=article -> text text=text
c4 jsonl: text=article, timestamp=time, url=url -> text text=text
lyrics csv: artist=person, song=word, link=url, text=article -> text text=text
code_content jsonl: repo_name=word, path=url, content=code, license=split, size=count -> text text=content
jokes csv: ID=id, Joke=review -> text text=Joke
one_column csv: review=review -> text text=review
poems_zh jsonl: title=summary_zh, author=person, paragraphs=lines -> unsure
title_abstract csv: TITLE=title, ABSTRACT=article -> unsure | prompt_completion prompt=TITLE; completion=ABSTRACT | prompt_completion prompt=ABSTRACT; completion=TITLE
two_unknown csv: alpha=s1, beta=s2 -> unsure
headline_body_zh csv: 标题=summary_zh, 正文=article_zh -> unsure | prompt_completion prompt=正文; completion=标题
quotes csv: quote=en, author=person, category=topic -> unsure | classification text=quote; label=category | text text=quote
conll jsonl: id=id, tokens=tokens, ner_tags=tags -> unsure
titanic csv: PassengerId=id, Survived=bin, Pclass=nli, Name=person, Sex=sex, Age=ages, Fare=price -> unsure
"""


def tables() -> list[Table]:
    """Every data set of the table."""
    return [_table(line) for line in SETS.strip().split("\n")]


def _table(line: str) -> Table:
    head, _, readings = line.rpartition(" -> ")
    start, _, columns = head.partition(": ")
    name, kind = start.split(" ")
    pairs = [pair.rsplit("=", 1) for pair in columns.split(", ")]
    empty = iter(range(100))  # csv files have columns without a name, and an object cannot have two of these
    named = [(column or f"\0{next(empty)}", POOLS[pool]) for column, pool in pairs]
    rows = [{column: pool[i] for column, pool in named} for i in range(12)]
    return Table(name, kind, rows, tuple(readings.split(" | ")))
