// See card.h.
#include "adapters/card.h"

#include "data/json.h"
#include "data/utf8.h"

#include <string.h>

// --- Escaping, one function per place a string may stand in

static bool is_printable(uint32_t c) {
    return c >= 0x20 && (c < 0x7F || c >= 0xA0) && !(c >= 0x202A && c <= 0x202E) && !(c >= 0x2066 && c <= 0x2069);
}

// Bad UTF-8, control characters and those that reorder text become U+FFFD; line ends and tabs a space unless kept.
static void add_clean(struct text *out, const char *s, bool keep_lines) {
    for (size_t left = strlen(s), n; left > 0; s += n, left -= n) {
        uint32_t c = utf8_read(s, left, &n);
        bool blank = n == 1 && (c == '\n' || c == '\r' || c == '\t');
        if (blank && !(keep_lines && c != '\r'))
            text_char(out, ' ');
        else if (n == 0 || !(blank || is_printable(c)))
            text_add(out, "\xEF\xBF\xBD");
        else
            text_append(out, s, n);
        if (n == 0) n = 1;
    }
}

static void add_markdown(struct text *out, const char *s) {
    struct text clean = {0};
    add_clean(&clean, s, false);
    for (const char *c = text_str(&clean); *c; c++) {
        if (*c == '<')
            text_add(out, "&lt;");
        else if (*c == '&')
            text_add(out, "&amp;");
        else {
            if (strchr("\\`*_{}[]()#+!|~>", *c)) text_char(out, '\\');
            text_char(out, *c);
        }
    }
    if (text_failed(&clean)) out->failed = true;
    text_free(&clean);
}

// As `code`, which has no escapes: backticks become apostrophes.
static void add_code(struct text *out, const char *s) {
    text_char(out, '`');
    size_t begin = out->length;
    add_clean(out, s, false);
    for (size_t i = begin; i < out->length; i++)
        if (out->data[i] == '`') out->data[i] = '\'';
    text_char(out, '`');
}

static void add_json_string(struct text *out, const char *s) { // also a YAML double-quoted and a Python string
    struct json_writer w = {.out = out, .style = JSON_COMPACT};
    json_put_string(&w, s);
}

// One word of a shell command.
static void add_shell(struct text *out, const char *s) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=,@%+-";
    if (*s && *s != '-' && s[strspn(s, safe)] == '\0') {
        text_add(out, s);
        return;
    }
    struct text clean = {0};
    add_clean(&clean, s, false);
    text_char(out, '\'');
    for (const char *c = text_str(&clean); *c; c++) {
        if (*c == '\'')
            text_add(out, "'\\''");
        else
            text_char(out, *c);
    }
    text_char(out, '\'');
    if (text_failed(&clean)) out->failed = true;
    text_free(&clean);
}

// A block of text as it is, in a fence longer than any run of backticks in it.
static void add_block(struct text *out, const char *s) {
    size_t longest = 2, run = 0;
    for (const char *c = s; *c; c++) {
        run = *c == '`' ? run + 1 : 0;
        if (run > longest) longest = run;
    }
    for (size_t i = 0; i <= longest; i++) text_char(out, '`');
    text_add(out, "text\n");
    add_clean(out, s, true);
    text_char(out, '\n');
    for (size_t i = 0; i <= longest; i++) text_char(out, '`');
    text_char(out, '\n');
}

// --- Parts

// "org/name", as the hub has it.
static bool is_on_hub(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    size_t org = strspn(name, allowed), repo = name[org] == '/' ? strspn(name + org + 1, allowed) : 0;
    return org > 0 && repo > 0 && name[0] != '.' && name[org + 1 + repo] == '\0';
}

static void add_front_matter(struct text *out, const struct card *card) {
    bool on_hub = is_on_hub(card->base_name);
    text_add(out, "---\n");
    if (on_hub) text_printf(out, "base_model: %s\n", card->base_name);
    text_add(out, "library_name: peft\npipeline_tag: text-generation\ntags:\n");
    if (on_hub) text_printf(out, "- base_model:adapter:%s\n", card->base_name);
    text_add(out, "- lora\n- transformers\n");
    if (card->has_gguf) text_add(out, "- llama.cpp\n- gguf\n");
    text_add(out, "---\n\n# ");
    add_markdown(out, card->name);
    text_add(out, "\n\nA LoRA adapter for ");
    if (on_hub)
        text_printf(out, "[%s](https://huggingface.co/%s)", card->base_name, card->base_name);
    else
        add_markdown(out, card->base_name);
    if (card->base_file) {
        text_add(out, ", trained on the quantised weights of ");
        add_code(out, card->base_file);
    }
    text_add(out, ".\n");
}

static size_t stem_length(const char *key, const char *ending) {
    size_t length = strlen(key), n = strlen(ending);
    return length > n && strcmp(key + length - n, ending) == 0 ? length - n : 0;
}

// The partner of "x before" (ending " after") or of "x after" (ending " before"), -1 when there is none.
static int partner(const struct card_pair *pairs, int n, int index, const char *own, const char *other) {
    size_t stem = stem_length(pairs[index].key, own);
    for (int i = 0; i < n && stem; i++)
        if (stem_length(pairs[i].key, other) == stem && !memcmp(pairs[i].key, pairs[index].key, stem)) return i;
    return -1;
}

static void add_results(struct text *out, const struct card *card) {
    const struct card_pair *p = card->results;
    int n = card->n_results;
    if (n == 0) return;
    text_add(out, "\n## Results\n\n");
    if (card->curve) text_printf(out, "![loss](%s)\n\n", card->curve);
    text_add(out, "| | before | after |\n|---|---:|---:|\n");
    for (int i = 0; i < n; i++) {
        int after = partner(p, n, i, " before", " after");
        if (partner(p, n, i, " after", " before") >= 0) continue; // stands in the other's row
        char *stem = after >= 0 ? mem_strndup(p[i].key, stem_length(p[i].key, " before")) : mem_strdup(p[i].key);
        if (!stem) out->failed = true;
        text_add(out, "| ");
        add_markdown(out, stem ? stem : "");
        text_add(out, " | ");
        if (after >= 0) add_markdown(out, p[i].value);
        text_add(out, " | ");
        add_markdown(out, after >= 0 ? p[after].value : p[i].value);
        text_add(out, " |\n");
        mem_free(stem);
    }
}

static void add_table(struct text *out, const char *title, const struct card_pair *pairs, int n) {
    if (n == 0) return;
    text_printf(out, "\n## %s\n\n| | |\n|---|---|\n", title);
    for (int i = 0; i < n; i++) {
        text_add(out, "| ");
        add_markdown(out, pairs[i].key);
        text_add(out, " | ");
        add_markdown(out, pairs[i].value);
        text_add(out, " |\n");
    }
}

static void add_samples(struct text *out, const struct card *card) {
    if (card->n_samples == 0) return;
    text_add(out, "\n## Examples\n");
    for (int i = 0; i < card->n_samples; i++) {
        const struct card_sample *s = &card->samples[i];
        const struct card_pair parts[] = {
            {"Prompt", s->prompt}, {"Expected", s->expected}, {"Before", s->before}, {"After", s->after}};
        for (size_t k = 0; k < COUNT_OF(parts); k++) {
            if (!parts[k].value) continue;
            text_printf(out, "\n%s:\n\n", parts[k].key);
            add_block(out, parts[k].value);
        }
        if (i + 1 < card->n_samples) text_add(out, "\n---\n");
    }
}

// --- Serving

static void add_request(struct text *out, const char *port, const char *model, const char *prompt) {
    struct text body = {0};
    struct json_writer w = {.out = &body, .style = JSON_SPACED};
    json_begin_object(&w);
    if (model) {
        json_put_key(&w, "model");
        json_put_string(&w, model);
    }
    json_put_key(&w, "messages");
    json_begin_array(&w);
    json_begin_object(&w);
    json_put_key(&w, "role");
    json_put_string(&w, "user");
    json_put_key(&w, "content");
    json_put_string(&w, prompt);
    json_end_object(&w);
    json_end_array(&w);
    json_end_object(&w);
    text_printf(out, "curl http://127.0.0.1:%s/v1/chat/completions -H 'Content-Type: application/json' \\\n  -d ",
                port);
    add_shell(out, text_str(&body));
    text_char(out, '\n');
    if (text_failed(&body)) out->failed = true;
    text_free(&body);
}

static void add_llama_server(struct text *out, const struct card *card, const char *prompt) {
    text_add(out, "\n### llama.cpp\n\n```sh\nllama-server -m ");
    add_shell(out, card->base_file ? card->base_file : "base.gguf");
    text_add(out, " --lora adapter.gguf --port 8080\n");
    add_request(out, "8080", NULL, prompt);
    text_add(
        out,
        "```\n\nWithout a restart: `curl http://127.0.0.1:8080/lora-adapters -H 'Content-Type: application/json' -d "
        "'[{\"id\": 0, \"scale\": 0}]'` switches it off, `\"scale\": 1` on.\n");
}

static void add_vllm(struct text *out, const struct card *card, const char *prompt) {
    static const int sizes[] = {8, 16, 32, 64, 128, 256, 320, 512}; // what --max-lora-rank accepts
    int rank = sizes[COUNT_OF(sizes) - 1];
    for (size_t i = COUNT_OF(sizes); i-- > 0;)
        if (sizes[i] >= card->r) rank = sizes[i];
    struct text module = {0};
    text_printf(&module, "%s=.", card->name);
    text_add(out, "\n### vLLM\n\n```sh\nvllm serve ");
    add_shell(out, card->base_name);
    text_printf(out, " --enable-lora --max-lora-rank %d --lora-modules ", rank);
    add_shell(out, text_str(&module));
    text_char(out, '\n');
    add_request(out, "8000", card->name, prompt);
    text_add(out, "```\n");
    if (text_failed(&module)) out->failed = true;
    text_free(&module);
}

static void add_peft(struct text *out, const struct card *card, const char *prompt) {
    text_add(out, "\n### PEFT\n\n```python\nfrom peft import PeftModel\n"
                  "from transformers import AutoModelForCausalLM, AutoTokenizer\n\nbase = ");
    add_json_string(out, card->base_name);
    text_add(out, "\ntokenizer = AutoTokenizer.from_pretrained(base)\n"
                  "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), \".\")\n"
                  "messages = [{\"role\": \"user\", \"content\": ");
    add_json_string(out, prompt);
    text_add(out,
             "}]\n"
             "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors=\"pt\", "
             "return_dict=True)\n"
             "output = model.generate(**inputs, max_new_tokens=256)\n"
             "print(tokenizer.decode(output[0, inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))\n```\n");
}

static void add_serving(struct text *out, const struct card *card) {
    const char *prompt = card->prompt ? card->prompt : "Hello!";
    text_add(out, "\n## Use\n\nIn this folder:\n");
    if (card->has_gguf) add_llama_server(out, card, prompt);
    if (is_on_hub(card->base_name)) {
        add_vllm(out, card, prompt);
        add_peft(out, card, prompt);
    } else {
        text_add(out, "\nThe folder is a PEFT adapter as well (`adapter_config.json`, `adapter_model.safetensors`). "
                      "The name of its "
                      "base on the hub is not known: set `base_model_name_or_path` in `adapter_config.json`.\n");
    }
}

int card_write(const char *path, const struct card *card, struct error *err) {
    struct text out = {0};
    add_front_matter(&out, card);
    add_results(&out, card);
    add_serving(&out, card);
    add_table(&out, "Data", card->data, card->n_data);
    add_table(&out, "Training", card->settings, card->n_settings);
    add_samples(&out, card);
    int status =
        text_failed(&out) ? error_memory(err, path, out.length) : file_replace(path, out.data, out.length, err);
    text_free(&out);
    return status;
}
