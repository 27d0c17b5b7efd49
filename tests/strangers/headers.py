"""Header lines of public data sets, with made-up rows, and how each is to be read.

A line is `name | columns | reading`. A column is `NAME:KIND`; KIND says what its values look like (see `value`). The
reading is a format with its columns, or `unsure` where more than one reading is sensible: a terminal asks then, and a
script stops. A third of the lines, by a hash of the name, was held back while the rule was written.
"""

from __future__ import annotations

import zlib
from typing import Any

LINES = """
ag_news | text:long label:int4 | classification text=text label=label
ag_news_csv | Class Index:int4 Title:title Description:long | classification text=Title pair=Description label=Class Index
yelp_review_full | label:stars text:long | classification text=text label=label
yelp_raw | review_id:hash user_id:hash business_id:hash stars:stars useful:count funny:count cool:count text:long date:date | classification text=text label=stars
imdb_kaggle | review:long sentiment:posneg | classification text=review label=sentiment
chnsenticorp | label:int2 review:zhlong | classification text=review label=label
waimai_10k | label:one review:zhlong | classification text=review label=label
online_shopping_10_cats | cat:zhtopic label:int2 review:zhlong | classification text=review label=label
weibo_senti_100k | label:int2 review:zhlong | classification text=review label=label
thucnews | 标签:zhtopic 正文:zhlong | classification text=正文 label=标签
zh_comments | 评论:zhlong 情感:zhpos | classification text=评论 label=情感
simplifyweibo_4_moods | label:int4 review:zhlong | classification text=review label=label
sst2 | sentence:long label:int2 idx:index | classification text=sentence label=label
sst_tsv | sentence:long label:int2 | classification text=sentence label=label
cola_named | source:code label:int2 sentence:long | classification text=sentence label=label
lcqmc | sentence1:zhq sentence2:zhq label:int2 | classification text=sentence1 pair=sentence2 label=label
lcqmc_old | text_a:zhq text_b:zhq label:int2 | classification text=text_a pair=text_b label=label
paws-x | id:index sentence1:long sentence2:long label:int2 | classification text=sentence1 pair=sentence2 label=label
snli | premise:long hypothesis:long label:int3 | classification text=premise pair=hypothesis label=label
mnli | promptID:index pairID:hash premise:long hypothesis:long genre:topic label:int3 idx:index | classification text=premise pair=hypothesis label=label
qqp | id:index qid1:index qid2:index question1:q question2:q is_duplicate:int2 | classification text=question1 pair=question2 label=is_duplicate
qnli | question:q sentence:long label:int2 idx:index | classification text=question pair=sentence label=label
boolq | question:q passage:long answer:bool | classification text=question pair=passage label=answer
cnn_dailymail | article:verylong highlights:long id:hash | alpaca instruction=article output=highlights
samsum | id:index dialogue:dialogue summary:long | alpaca instruction=dialogue output=summary
dialogsum | id:code dialogue:dialogue summary:long topic:title | alpaca instruction=dialogue output=summary
xsum | document:verylong summary:long id:index | alpaca instruction=document output=summary
gigaword | document:verylong summary:title | alpaca instruction=document output=summary
lcsts | content:zhlong summary:zhtitle | alpaca instruction=content output=summary
news_summary | headlines:title text:verylong | alpaca instruction=text output=headlines
squad | id:hash title:title context:verylong question:q answers:squad | alpaca instruction=question input=context output=answers.text.0
dolly | instruction:q context:long response:long category:topic | alpaca instruction=instruction input=context output=response
alpaca | instruction:q input:long output:long | alpaca instruction=instruction output=output
alpaca_text | instruction:q input:long output:long text:verylong | alpaca instruction=instruction output=output
belle | instruction:zhq input:empty output:zhlong | alpaca instruction=instruction output=output
firefly | kind:topic input:zhlong target:zhlong | alpaca instruction=input output=target
firefly_id | id:index kind:topic input:zhq target:zhlong | alpaca instruction=input output=target
medical_zh | department:zhtopic title:zhtitle ask:zhq answer:zhlong | alpaca instruction=ask output=answer
cmedqa | 问题:zhq 回答:zhlong | alpaca instruction=问题 output=回答
zh_instruct | 指令:zhq 输入:zhlong 输出:zhlong | alpaca instruction=指令 input=输入 output=输出
zh_qa_id | 编号:index 提问:zhq 答案:zhlong | alpaca instruction=提问 output=答案
zh_dialogue | 用户:zhq 助手:zhlong | alpaca instruction=用户 output=助手
zh_label_last | 文本:zhlong 类别:zhtopic | classification text=文本 label=类别
sms_spam | v1:hamspam v2:long | classification text=v2 label=v1
sms_spam_excel | v1:hamspam v2:long Unnamed: 2:empty Unnamed: 3:empty | classification text=v2 label=v1
clinc_oos | text:q intent:code30 | classification text=text label=intent
banking77 | text:q label:int77 label_text:code77 | classification text=text label=label_text
banking77_csv | text:q category:code77 | classification text=text label=category
disaster_tweets | id:index keyword:word location:place text:long target:int2 | classification text=text label=target
sentiment140_named | target:int2 ids:index date:date flag:constant user:word text:long | classification text=text label=target
airline_tweets | tweet_id:index airline_sentiment:posneg text:long tweet_created:date | classification text=text label=airline_sentiment
amazon_polarity | label:int2 title:title content:long | classification text=title pair=content label=label
amazon_fine_food | Id:index ProductId:hash UserId:hash Score:stars Time:count Summary:title Text:long | unsure
jigsaw | id:hash comment_text:long toxic:int2 severe_toxic:int2 obscene:int2 threat:int2 insult:int2 identity_hate:int2 | unsure
trec | text:q coarse_label:int4 fine_label:int77 | unsure
emotion | text:long label:int4 | classification text=text label=label
emotion_words | Text:long Emotion:topic | classification text=Text label=Emotion
hate_speech | count:count hate_speech:int2 offensive_language:int2 neither:int2 class:int3 tweet:long | classification text=tweet label=class
news_category | headline:title category:topic short_description:long authors:place date:date link:url | classification text=headline pair=short_description label=category
fake_news | title:title text:verylong subject:topic date:date | unsure
patent | description:verylong abstract:long | alpaca instruction=description output=abstract
arxiv | article:verylong abstract:long section_names:title | alpaca instruction=article output=abstract
gsm8k | question:q answer:long | alpaca instruction=question output=answer
math | problem:long solution:long level:level type:topic | alpaca instruction=problem output=solution
orca | id:hash system_prompt:title question:q response:long | alpaca instruction=question system=system_prompt output=response
code_alpaca | prompt:q completion:long | prompt_completion prompt=prompt completion=completion
code_instructions | instruction:q response:long | alpaca instruction=instruction output=response
wizard | query:q response:long | alpaca instruction=query output=response
faq | Question:q Answer:long | alpaca instruction=Question output=Answer
faq_plural | Questions:q Answers:long | alpaca instruction=Questions output=Answers
natural_questions | query:q answer:title | alpaca instruction=query output=answer
eli5 | q_id:hash title:q selftext:empty answer:long url:url | alpaca instruction=title output=answer
support_tickets | customer_message:long agent_reply:long | alpaca instruction=customer_message output=agent_reply
chat_turns | user:q assistant:long | alpaca instruction=user output=assistant
human_bot | human:q bot:long | alpaca instruction=human output=bot
input_target | input:long target:long | alpaca instruction=input output=target
input_label_text | input:long label:topic | classification text=input label=label
source_target | source:long target:long | alpaca instruction=source output=target
inputs_targets | inputs:long targets:long | alpaca instruction=inputs output=targets
wmt_pair | en:long de:long | alpaca instruction=en output=de
wmt_nested | translation:translation | alpaca instruction=translation.en output=translation.de
tatoeba | id:index english:long chinese:zhlong | alpaca instruction=english output=chinese
zh_en | 中文:zhlong 英文:long | alpaca instruction=中文 output=英文
commonsense_qa | id:hash question:q question_concept:word choices:choices answerKey:letter | unsure
race | article:verylong question:q options:choices answer:letter | unsure
text_to_sql | question:q query:sql db_id:topic | unsure
sql_context | question:q context:sql answer:sql | alpaca instruction=question input=context output=answer
wikitext | text:verylong | text text=text
books | title:title text:verylong | unsure
plain_content | id:index url:url content:verylong | text text=content
c4 | text:verylong timestamp:date url:url | text text=text
zh_corpus | 编号:index 内容:zhlong | text text=内容
sts | sentence1:long sentence2:long score:float | classification text=sentence1 pair=sentence2 label=score
ultrachat | prompt:q prompt_id:hash messages:messages | messages messages=messages
openai_chat | messages:messages | messages messages=messages
sharegpt | id:hash conversations:conversations | sharegpt conversations=conversations
dpo | prompt:q chosen:long rejected:long | preference prompt=prompt
kto | prompt:q completion:long label:bool | kto label=label
unknown_two | alpha:long beta:long | unsure
qa_rated | question:q answer:long rating:stars | unsure
""".strip()

WORDS = [
    "river",
    "window",
    "teacher",
    "market",
    "garden",
    "engine",
    "letter",
    "holiday",
    "kitchen",
    "mountain",
    "ticket",
    "camera",
]
ZH = ["天气", "音乐", "城市", "老师", "厨房", "火车", "电影", "孩子", "花园", "书店", "手机", "医院"]


def value(kind: str, row: int) -> Any:
    """A value of a kind in one row."""
    a, b, c = (WORDS[(row * step + 1) % 12] for step in (1, 5, 7))
    x, y = ZH[row % 12], ZH[(row * 5 + 1) % 12]
    if kind.startswith("int"):
        return row * 7 % int(kind[3:])
    if kind.startswith("code") and kind != "code":
        return f"{a}_{WORDS[row * 7 % int(kind[4:]) % 12]}"
    made: dict[str, Any] = {
        "long": f"The {a} near the {b} was {('lovely', 'broken', 'slow')[row % 3]}, and number {row} of the {c} came late.",
        "verylong": f"On day {row} the {a} closed early. " + f"Everyone near the {b} waited for the {c} again. " * 6,
        "title": f"{a.title()} and {b} {row}", "q": f"Where can I find the {a} of the {b}, and who pays for {row}?",
        "dialogue": f"Ann: Did you see the {a}?\nBob: Yes, beside the {b}.\nAnn: I will bring {row}.",
        "zhlong": f"第{row}次去的时候{x}旁边的{y}很好，服务人员非常热情，下次还会再来。", "zhq": f"请问{x}附近的{y}应该怎么走，需要{row}分钟吗？",
        "zhtitle": f"{x}与{y}第{row}期", "zhtopic": ("体育", "财经", "娱乐")[row % 3], "zhpos": ("正面", "负面")[row % 2],
        "posneg": ("positive", "negative")[row % 2], "hamspam": ("ham", "ham", "spam")[row % 3], "bool": row % 3 == 0,
        "topic": ("sports", "politics", "science")[row % 3], "level": f"Level {row % 5 + 1}", "letter": "ABCDE"[row * 3 % 5],
        "stars": row * 2 % 5 + 1, "one": 1, "count": row * row * 13 % 97, "index": row + 100, "float": round(row * 0.37 % 5, 2),
        "hash": f"{zlib.crc32(str(row).encode()):08x}{row:04x}", "url": f"https://example.org/{a}/{row}", "empty": "",
        "date": f"2024-03-{row + 1:02d} 10:{row:02d}:00", "word": a, "place": f"{b.title()} City", "code": f"g{row % 4}j{row:02d}",
        "constant": "NO_QUERY", "squad": {"text": [f"the {a} of number {row}"], "answer_start": [row]},
        "translation": {"en": f"The {a} is near the {b} today.", "de": f"Das Haus {row} steht bei der Brücke {a}."},
        "choices": [f"{a}", f"{b}", f"{c}"], "sql": f"SELECT {a} FROM {b} WHERE {c} = {row}",
        "messages": [{"role": "user", "content": f"Where is the {a}?"}, {"role": "assistant", "content": f"By the {b}."}],
        "conversations": [{"from": "human", "value": f"Where is the {a}?"}, {"from": "gpt", "value": f"By the {b}."}],
    }  # fmt: skip
    return made[kind]


def table() -> list[tuple[str, list[dict[str, Any]], str, bool]]:
    """(name, 18 rows, how they are to be read, whether the line was held back) of each data set."""
    found = []
    for line in LINES.splitlines():
        name, columns, reading = (part.strip() for part in line.split(" | "))
        kinds: dict[str, str] = {}
        header = ""
        for word in columns.split(" "):  # a column's name may have spaces
            header = f"{header} {word}".strip()
            before, colon, kind = header.rpartition(":")
            if colon and kind and kind[0].isalpha():
                kinds[before], header = kind, ""
        rows = [{column: value(kind, row) for column, kind in kinds.items()} for row in range(18)]
        found.append((name, rows, reading, zlib.crc32(name.encode()) % 3 == 0))
    return found
