// See pretokenizer.h. The expressions are those of the models' own tokenizer files; \s is spelled out because PCRE2
// counts U+180E as a space and the reference does not.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/pretokenizer.h"

#include <pcre2.h>
#include <string.h>

enum {
    MAX_SPLITS = 5,
    MATCH_LIMIT = 20 * 1000 * 1000, // steps of one match: bounds the time that a crafted text can cost
    HEAP_LIMIT_KB = 64 * 1024,
    JIT_STACK_SMALL = 32 * 1024,
    JIT_STACK_LARGE = 1024 * 1024,
};

#define SPACE                                                                                                          \
    "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define LETTER       "\\p{L}"
#define NUMBER       "\\p{N}"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define BLANKS       "[" SPACE "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define UPPER        "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER        "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"

#define R_GPT2                                                                                                         \
    "'s|'t|'re|'ve|'m|'ll|'d| ?" LETTER "+| ?" NUMBER "+| ?[^" SPACE LETTER NUMBER "]+|[" SPACE "]+(?![^" SPACE        \
    "])|[" SPACE "]+"
#define R_LLAMA3_WITH(digits)                                                                                          \
    CONTRACTIONS "|[^\\r\\n" LETTER NUMBER "]?" LETTER "+|" digits "| ?[^" SPACE LETTER NUMBER "]+[\\r\\n]*|" BLANKS
#define R_LLAMA3 R_LLAMA3_WITH(NUMBER "{1,3}")
#define R_QWEN2  R_LLAMA3_WITH(NUMBER)
#define R_QWEN35                                                                                                       \
    CONTRACTIONS "|[^\\r\\n" LETTER NUMBER "]?[" LETTER "\\p{M}]+|" NUMBER "| ?[^" SPACE LETTER "\\p{M}" NUMBER        \
                 "]+[\\r\\n]*|" BLANKS
#define R_CASED(suffix, digits)                                                                                        \
    "[^\\r\\n" LETTER NUMBER "]?[" UPPER "]*[" LOWER "]+" suffix "|[^\\r\\n" LETTER NUMBER "]?[" UPPER "]+[" LOWER     \
    "]*" suffix "|" digits "| ?[^" SPACE LETTER NUMBER "]+[\\r\\n/]*|" BLANKS
#define R_O200K  R_CASED(CONTRACTIONS "?", NUMBER "{1,3}")
#define R_TEKKEN R_CASED("", NUMBER)
#define R_DS3A   NUMBER "{1,3}"
#define R_DS3B   "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+"
#define R_DS3C                                                                                                         \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n" LETTER "\\p{P}\\p{S}]?[" LETTER "\\p{M}]+"        \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" BLANKS
#define R_CJK "[\\x{4E00}-\\x{9FA5}\\x{0800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"

struct rule {
    const char *names; // space separated
    bool ignore_merges;
    enum normal_form form;
    const char *splits[MAX_SPLITS]; // each works on the pieces of the one before
};

static const struct rule rules[] = {
    {"smollm starcoder refact codeshell", false, NORMAL_NONE, {NUMBER, R_GPT2}},
    {"exaone minerva-7b mellum2", false, NORMAL_UNKNOWN, {NUMBER, R_GPT2}},
    {"command-r", false, NORMAL_NFC, {NUMBER, R_GPT2}},
    {"gpt-2 phi-2", false, NORMAL_NONE, {R_GPT2}},
    {"olmo mpt", false, NORMAL_NFC, {R_GPT2}},
    {"jais exaone4 trillion granite-docling gigachat mellum modern-bert", false, NORMAL_UNKNOWN, {R_GPT2}},
    {"llama-bpe llama3 llama-v3", true, NORMAL_NONE, {R_LLAMA3}},
    {"falcon3 pixtral lfm2", true, NORMAL_UNKNOWN, {R_LLAMA3}},
    {"dbrx smaug-bpe", false, NORMAL_NONE, {R_LLAMA3}},
    {"chatglm-bpe", false, NORMAL_UNKNOWN, {R_LLAMA3}},
    {"glm4 glm5", true, NORMAL_UNKNOWN, {R_LLAMA3}},
    {"qwen2", false, NORMAL_NFC, {R_QWEN2}},
    {"deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2", false, NORMAL_UNKNOWN, {R_QWEN2}},
    {"qwen35", false, NORMAL_NFC, {R_QWEN35}},
    {"tekken", true, NORMAL_NONE, {R_TEKKEN}},
    {"gpt-4o llama4", false, NORMAL_NONE, {R_O200K}},
    {"kanana2 talkie minimax-m2", false, NORMAL_UNKNOWN, {R_O200K}},
    {"falcon", false, NORMAL_UNKNOWN, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", R_GPT2, "[0-9][0-9][0-9]"}},
    {"minicpm5", true, NORMAL_UNKNOWN, {NUMBER "{1,3}", R_LLAMA3_WITH(NUMBER "+")}},
    {"deepseek-v3", false, NORMAL_NONE, {R_DS3A, R_DS3B, R_DS3C}},
    {"hunyuan-dense joyai-llm hy_v4", false, NORMAL_UNKNOWN, {R_DS3A, R_DS3B, R_DS3C}},
    {"deepseek-coder",
     false,
     NORMAL_UNKNOWN,
     {"[\\r\\n]", "[" SPACE "]?" LETTER "+", "[" SPACE "]?\\p{P}+", R_CJK, NUMBER}},
};

struct pretokenizer {
    const struct rule *rule;
    pcre2_code *splits[MAX_SPLITS];
    bool jit[MAX_SPLITS];
    int n_splits;
};

struct pretokenizer_scratch {
    pcre2_match_data *data[MAX_SPLITS]; // one per level: levels are nested
    pcre2_match_context *context;
    pcre2_jit_stack *stack; // NULL: the machine's
};

// PCRE2's memory is ours too, so that the tests can fail it.
static void *allocate(PCRE2_SIZE bytes, void *unused) {
    (void)unused;
    return mem_alloc(bytes);
}
static void release(void *block, void *unused) {
    (void)unused;
    mem_free(block);
}

static bool name_in(const char *names, const char *name) {
    size_t length = strlen(name);
    for (const char *at = names; length > 0 && (at = strstr(at, name)); at += length)
        if ((at == names || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return true;
    return false;
}

static int compile(struct pretokenizer *p, const char *pattern, pcre2_compile_context *context, struct error *err) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *split = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, context);
    if (!split) {
        if (code == PCRE2_ERROR_HEAP_FAILED) return error_memory(err, "the pre-tokenizer", strlen(pattern));
        return error_set(err, STATUS_INTERNAL, "pre-tokenizer expression: PCRE2 error %d at %zu", code, at);
    }
    p->splits[p->n_splits] = split;
    p->jit[p->n_splits++] = pcre2_jit_compile(split, PCRE2_JIT_COMPLETE) == 0; // the interpreter gives the same answer
    return 0;
}

static int compile_all(struct pretokenizer *p, struct error *err) {
    pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    int status = context ? 0 : error_memory(err, "the pre-tokenizer", sizeof *p);
    if (context) pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    for (int i = 0; i < MAX_SPLITS && p->rule->splits[i] && status == 0; i++)
        status = compile(p, p->rule->splits[i], context, err);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    return status;
}

struct pretokenizer *pretokenizer_open(const char *pre, const char *file, struct error *err) {
    const struct rule *rule = NULL;
    for (size_t i = 0; i < COUNT_OF(rules) && pre && !strchr(pre, ' '); i++)
        if (name_in(rules[i].names, pre)) rule = &rules[i];
    if (!rule) {
        error_set(err, STATUS_DATA, "%s: the pre-tokenizer \"%.64s\" is not known in this version", file,
                  pre ? pre : "(missing tokenizer.ggml.pre)");
        return NULL;
    }
    struct pretokenizer *p = mem_zalloc(1, sizeof *p);
    if (!p) {
        error_memory(err, "the pre-tokenizer", sizeof *p);
        return NULL;
    }
    p->rule = rule;
    if (compile_all(p, err) == 0) return p;
    pretokenizer_close(p);
    return NULL;
}

void pretokenizer_close(struct pretokenizer *p) {
    if (!p) return;
    for (int i = 0; i < p->n_splits; i++) pcre2_code_free(p->splits[i]);
    mem_free(p);
}

bool pretokenizer_ignores_merges(const struct pretokenizer *p) {
    return p->rule->ignore_merges;
}
enum normal_form pretokenizer_normal_form(const struct pretokenizer *p) {
    return p->rule->form;
}

struct pretokenizer_scratch *pretokenizer_scratch_open(const struct pretokenizer *p) {
    struct pretokenizer_scratch *s = mem_zalloc(1, sizeof *s);
    pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
    bool failed = !s || !general;
    if (!failed) {
        s->context = pcre2_match_context_create(general);
        for (int i = 0; i < p->n_splits; i++) {
            s->data[i] = pcre2_match_data_create(1, general);
            failed |= !s->data[i];
        }
        s->stack = pcre2_jit_stack_create(JIT_STACK_SMALL, JIT_STACK_LARGE, general);
        failed |= !s->context;
    }
    if (failed) {
        pretokenizer_scratch_close(s);
        s = NULL;
    } else {
        pcre2_set_match_limit(s->context, MATCH_LIMIT);
        pcre2_set_depth_limit(s->context, MATCH_LIMIT);
        pcre2_set_heap_limit(s->context, HEAP_LIMIT_KB);
        if (s->stack) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    }
    pcre2_general_context_free(general);
    return s;
}

void pretokenizer_scratch_close(struct pretokenizer_scratch *s) {
    if (!s) return;
    for (size_t i = 0; i < COUNT_OF(s->data); i++) pcre2_match_data_free(s->data[i]);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    mem_free(s);
}

struct walk {
    const struct pretokenizer *p;
    struct pretokenizer_scratch *scratch;
    const char *text;
    word_function *word;
    void *context;
    struct error *err;
};

static int find(const struct walk *w, int level, const char *piece, size_t length, size_t at) {
    const pcre2_code *code = w->p->splits[level];
    pcre2_match_data *data = w->scratch->data[level];
    PCRE2_SPTR subject = (PCRE2_SPTR)piece;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (w->p->jit[level]) rc = pcre2_jit_match(code, subject, length, at, 0, data, w->scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, subject, length, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, w->scratch->context);
    return rc;
}

// Cuts one piece at the matches of a level; matches and the gaps between them go on to the next level.
static int split(const struct walk *w, int level, size_t begin, size_t end) {
    if (begin == end) return 0;
    if (level == w->p->n_splits) return w->word(w->context, begin, end) ? -1 : 0;
    const char *piece = w->text + begin;
    size_t length = end - begin, at = 0;
    while (at < length) {
        int rc = find(w, level, piece, length, at);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT)
            return error_memory(w->err, "the pre-tokenizer", HEAP_LIMIT_KB * 1024);
        if (rc < 0)
            return error_set(w->err, STATUS_DATA, "byte %zu: the pre-tokenizer gave up on this text (PCRE2 error %d)",
                             begin + at, rc);
        const PCRE2_SIZE *match = pcre2_get_ovector_pointer(w->scratch->data[level]);
        size_t from = match[0], to = match[1];
        if (from < at || to <= from || to > length)
            return error_set(w->err, STATUS_INTERNAL, "pre-tokenizer: a match of [%zu, %zu)", from, to);
        if (split(w, level + 1, begin + at, begin + from) < 0 || split(w, level + 1, begin + from, begin + to) < 0)
            return -1;
        at = to;
    }
    return split(w, level + 1, begin + at, end);
}

int pretokenizer_split(const struct pretokenizer *p, struct pretokenizer_scratch *scratch, const char *text,
                       size_t length, word_function *word, void *context, struct error *err) {
    struct walk w = {p, scratch, text, word, context, err};
    return split(&w, 0, 0, length);
}
