"""Renders chat templates with transformers' own renderer and with ours; every text must be equal byte by byte, and what we
do not support must be refused, never rendered differently.

    templates.py --dump BUILD/tests/peers/templates_dump [--count 20000] [--seed 1] [--golden FILE]

Sources: ChatML in the spellings that models ship, and random damage to them. --golden writes the fixture of
tests/test_chat_template.c. Needs the Python package transformers.
"""
import argparse
import json
import random
import subprocess
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

LOOP = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
GENERATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
DEFAULT = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}"
           "{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}")
SMOLLM2 = (DEFAULT + GENERATE).replace("SYSTEM", "You are a helpful AI assistant named SmolLM, trained by Hugging Face").replace("\\n", "\n")
SUPPORTED = {
    "smollm2": SMOLLM2,
    "chatml": LOOP + GENERATE,
    "chatml, no generation prompt": LOOP,
    "qwen2": (DEFAULT + GENERATE).replace("SYSTEM", "You are a helpful assistant."),
    "prelude": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}" + LOOP + GENERATE,
    "prelude after the loop": LOOP + "{% if add_generation_prompt is not defined %}\n {% set add_generation_prompt = False %}\n{% endif %}" + GENERATE,
    "dots and double quotes": LOOP.replace("message['role']", "message.role").replace("message['content']", 'message["content"]').replace("'", '"') + GENERATE,
    "tilde and joined literals": "{% for m in messages %}{{ '<|im_' 'start|>' ~ m.role ~ '\\n' ~ m.content ~ ('<|im_end|>' + '\\n') }}{% endfor %}" + GENERATE,
    "default before the loop": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}" + LOOP + GENERATE,
    "default as text": "{%- if messages[0].role != 'system' -%}\n<|im_start|>system\nBe brief.<|im_end|>\n{% endif -%}\n" + LOOP + GENERATE,
    "text outside of prints": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}" + GENERATE,
    "several lines": ("{% for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' -}}\n    {{ message.content }}\n"
                      "    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"),
    "newlines that trim_blocks leaves": "{% for message in messages %}\n{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'}}\n{% endfor %}\n" + GENERATE + "\n",
    "indented, lstrip_blocks": "  {% for message in messages %}\n  {{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'}}\n  {% endfor %}\n" + GENERATE,
    "comments": "{# ChatML #}\n" + LOOP + "{#- nothing -#}\n " + GENERATE,
    "carriage returns": (LOOP + "\n" + GENERATE).replace("\\n", "\r\n"),
    "other markers": "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + ' </s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}",
    "escapes": LOOP.replace("<|im_end|>", "\\x3c|im_end|\\u003e\\t\\q\\'\\\"\\\\") + GENERATE,
    "index0": DEFAULT.replace("loop.first", "loop.index0 == 0") + GENERATE,
    "first last": DEFAULT.replace("loop.first and messages[0]['role'] != 'system'", "messages[0]['role'] != 'system' and loop.first") + GENERATE,
}
REFUSED = {
    "qwen1.5, no end of turn for the last answer": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "bos": "{{ bos_token }}" + LOOP + GENERATE,
    "trim": LOOP.replace("message['content']", "message['content'] | trim") + GENERATE,
    "roles": "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] }}{% endif %}{% endfor %}",
    "content twice": LOOP.replace("message['content']", "message['content'] + message['content']"),
    "no end of turn": "{% for message in messages %}{{ message['role'] + message['content'] }}{% endfor %}",
    "raise": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LOOP,
    "text after": LOOP + GENERATE + "x",
    "wrong list": LOOP.replace("in messages", "in messages[1:]"),
    "raw": "{% raw %}x{% endraw %}" + LOOP,
    "filter": LOOP.replace("message['role']", "message['role'] | upper"),
    "set": "{% set x = 'a' %}" + LOOP,
    "empty": "",
    "unclosed tag": LOOP[:-3],
    "unclosed string": "{{ 'abc }}",
    "octal escape": LOOP.replace("'\\n'", "'\\12'"),
}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "S"}, {"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"}],
    [{"role": "user", "content": "U1"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "\n \n"}, {"role": "assistant", "content": " A2 \n"}],
    [{"role": "user", "content": "Grüße 😀 {{ x }} {% if %}"}, {"role": "assistant", "content": "<|im_end|>\n<|im_start|>"}, {"role": "tool", "content": "{\"a\": 1}"}],
]


def reference(source, messages, generate):
    try:
        return _compile_jinja_template(source).render(messages=messages, tools=None, documents=None, add_generation_prompt=generate)
    except Exception as e:  # any failure of theirs is a failure
        return e


def damage(rng, source):
    s = list(source)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(s) + 1)
        kind = rng.randrange(5)
        if kind == 0 and s:
            del s[at % len(s)]
        elif kind == 1:
            s.insert(at, rng.choice(["-", "+", " ", "\n", "\t", "'", "(", ")", "~", "|", ".", "{", "}", "%", "#", "\\", "not ", "x", "\u00a0"]))
        elif kind == 2:
            s.insert(at, rng.choice(["{# c #}", "{{ '' }}", "{%- if false %}", "{% endif %}", "{{- 'x' -}}", "{{ message.role }}", "  {% endfor %}", "\r\n"]))
        else:  # white space control in a tag
            text = "".join(s)
            places = [i for i in range(len(text) - 1) if text[i:i + 2] in ("{%", "{{", "%}", "}}")]
            if places:
                i = rng.choice(places)
                s.insert(i + 2 if text[i] == "{" else i, rng.choice("-+" if "%" in text[i:i + 2] else "-"))
                s[i:i] = list(rng.choice(["", "", "\n", "  ", " \n  "]))
    return "".join(s)


def check(got, want, messages):
    """None, or what is wrong."""
    if isinstance(want, Exception):
        return None if "error" in got else f"we render what the reference refuses ({want})"
    if "error" in got:
        return None
    if got["text"] != want:
        return f"ours {got['text']!r}, reference {want!r}"
    data, at = want.encode(), 0
    for begin, end, kind, message in got["spans"]:
        if begin != at:
            return "the spans do not cover the text"
        at = end
        if kind == 1 and data[begin:end] != messages[message]["content"].encode():
            return "a content span is not the content"
        if kind == 2 and data[begin:end] != got["eot"].encode():
            return "an end-of-turn span is not the end of a turn"
    return None if at == len(data) else "the spans do not cover the text"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--dump", required=True)
    p.add_argument("--count", type=int, default=20000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--golden")
    a = p.parse_args()
    rng = random.Random(a.seed)
    cases = [(n, s, c, g) for kind in (SUPPORTED, REFUSED) for n, s in kind.items() for c in CONVERSATIONS for g in (False, True)]
    fixed = len(cases)
    for _ in range(a.count):
        name = rng.choice(list(SUPPORTED))
        cases.append((None, damage(rng, SUPPORTED[name]), rng.choice(CONVERSATIONS), rng.random() < 0.5))
    lines = "".join(json.dumps({"source": s, "messages": c, "generate": g}) + "\n" for _, s, c, g in cases)
    out = subprocess.run([a.dump], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    answers = [json.loads(line) for line in out.splitlines()]
    bad = rendered = 0
    for (name, source, messages, generate), got in zip(cases, answers):
        want = reference(source, messages, generate)
        wrong = check(got, want, messages)
        if name in SUPPORTED and "error" in got:
            wrong = got["error"]
        if name in REFUSED and "error" not in got:
            wrong = "rendered, although it is not supported"
        rendered += "error" not in got
        if wrong:
            bad += 1
            if bad <= 5:
                print(f"  {name}: {source!r} generate={generate}: {wrong}", file=sys.stderr)
    print(f"{len(cases)} renderings ({fixed} of known templates), {rendered} by both, {len(cases) - rendered} refused, {bad} wrong")
    if a.golden:
        golden = {"supported": [{"name": n, "source": s, "texts": [[reference(s, c, g) for g in (False, True)] for c in CONVERSATIONS]}
                                for n, s in SUPPORTED.items()],
                  "refused": [{"name": n, "source": s} for n, s in REFUSED.items()], "conversations": CONVERSATIONS}
        with open(a.golden, "w", encoding="utf-8") as f:
            json.dump(golden, f, ensure_ascii=False, indent=0)
            f.write("\n")
    print(f"{int(bad == 0)} passed, {int(bad > 0)} failed")
    return 1 if bad or len(answers) != len(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
