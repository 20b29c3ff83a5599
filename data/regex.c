// See regex.h.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/regex.h"

#include <pcre2.h>

enum {
    LONGEST_PATTERN = 64 * 1024,
    MATCH_LIMIT = 20 * 1000 * 1000, // steps of one match: bounds the time that a crafted text can cost
    HEAP_LIMIT_KB = 64 * 1024,
    JIT_STACK_SMALL = 32 * 1024,
    JIT_STACK_LARGE = 1024 * 1024,
};

struct regex {
    pcre2_code *code;
    bool jit;
};

struct regex_scratch {
    pcre2_match_data *data;
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

static int compile(struct regex *regex, const struct text *pattern, const char *file, struct error *err) {
    pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    int code = PCRE2_ERROR_HEAP_FAILED;
    PCRE2_SIZE at = 0;
    if (context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        regex->code = pcre2_compile((PCRE2_SPTR)text_str(pattern), pattern->length,
                                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, context);
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    if (regex->code) {
        regex->jit = pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE) == 0; // the interpreter gives the same answer
        return 0;
    }
    if (code == PCRE2_ERROR_HEAP_FAILED) return error_memory(err, "a regular expression", pattern->length);
    PCRE2_UCHAR why[120] = "";
    pcre2_get_error_message(code, why, sizeof why);
    return error_set(err, STATUS_DATA, "%s: the regular expression \"%.300s\": %s", file, text_str(pattern),
                     (const char *)why);
}

struct regex *regex_open(const char *pattern, size_t length, const char *file, struct error *err) {
    struct text translated = {0};
    const char *problem = "more than 65536 bytes";
    size_t at = 0;
    struct regex *regex = NULL;
    int shown = (int)(length < 300 ? length : 300);
    if (length > LONGEST_PATTERN || regex_translate(pattern, length, &translated, &problem, &at) < 0) {
        error_set(err, STATUS_DATA,
                  "%s: the regular expression \"%.*s\" has %s at byte %zu, which this version cannot do exactly", file,
                  shown, pattern, problem, at);
    } else if (text_failed(&translated) || !(regex = mem_zalloc(1, sizeof *regex))) {
        error_memory(err, "a regular expression", translated.length);
    } else if (compile(regex, &translated, file, err) < 0) {
        mem_free(regex);
        regex = NULL;
    }
    text_free(&translated);
    return regex;
}

void regex_close(struct regex *regex) {
    if (!regex) return;
    pcre2_code_free(regex->code);
    mem_free(regex);
}

struct regex_scratch *regex_scratch_open(void) {
    struct regex_scratch *s = mem_zalloc(1, sizeof *s);
    pcre2_general_context *general = s ? pcre2_general_context_create(allocate, release, NULL) : NULL;
    if (general) {
        s->context = pcre2_match_context_create(general);
        s->data = pcre2_match_data_create(1, general);
        s->stack = pcre2_jit_stack_create(JIT_STACK_SMALL, JIT_STACK_LARGE, general);
    }
    pcre2_general_context_free(general);
    if (!s || !s->context || !s->data) {
        regex_scratch_close(s);
        return NULL;
    }
    pcre2_set_match_limit(s->context, MATCH_LIMIT);
    pcre2_set_depth_limit(s->context, MATCH_LIMIT);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KB);
    if (s->stack) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return s;
}

void regex_scratch_close(struct regex_scratch *s) {
    if (!s) return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    mem_free(s);
}

int regex_find(const struct regex *regex, struct regex_scratch *scratch, const char *text, size_t length, size_t from,
               size_t *begin, size_t *end, struct error *err) {
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (regex->jit) rc = pcre2_jit_match(regex->code, subject, length, from, 0, scratch->data, scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(regex->code, subject, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->data,
                         scratch->context);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc == PCRE2_ERROR_NOMEMORY) return error_memory(err, "the pre-tokenizer", length);
    if (rc < 0)
        return error_set(err, STATUS_DATA, "byte %zu: the pre-tokenizer gave up on this text (PCRE2 error %d)", from,
                         rc);
    const PCRE2_SIZE *match = pcre2_get_ovector_pointer(scratch->data);
    if (match[0] < from || match[1] < match[0] || match[1] > length)
        return error_set(err, STATUS_INTERNAL, "pre-tokenizer: a match of [%zu, %zu)", match[0], match[1]);
    *begin = match[0];
    *end = match[1];
    return 1;
}

int regex_next(const struct regex *regex, struct regex_scratch *scratch, const char *text, size_t length,
               struct regex_walk *walk, size_t *begin, size_t *end, struct error *err) {
    while (walk->at <= length) {
        int found = regex_find(regex, scratch, text, length, walk->at, begin, end, err);
        if (found <= 0) return found;
        if (*begin < *end || !walk->any || walk->last != *end) {
            *walk = (struct regex_walk){*end, *end, true};
            return 1;
        }
        do walk->at++;
        while (walk->at < length && ((uint8_t)text[walk->at] & 0xC0) == 0x80);
    }
    return 0;
}
