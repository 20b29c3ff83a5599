// See recipe.h: the vocabulary of a GGUF file. The file holds no pipeline: tokenizer.ggml.model and tokenizer.ggml.pre
// name one, and the table below has the regular expressions of the models' own tokenizer files.
#include "data/recipe.h"

#include <string.h>

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define BLANKS       "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER        "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER        "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"

#define R_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define R_LLAMA3_WITH(digits)                                                                                          \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" BLANKS
#define R_LLAMA3 R_LLAMA3_WITH("\\p{N}{1,3}")
#define R_QWEN2  R_LLAMA3_WITH("\\p{N}")
#define R_QWEN35                                                                                                       \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" BLANKS
#define R_CASED(suffix, digits)                                                                                        \
    "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+" suffix "|[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER "]*" suffix   \
    "|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" BLANKS
#define R_O200K  R_CASED(CONTRACTIONS "?", "\\p{N}{1,3}")
#define R_TEKKEN R_CASED("", "\\p{N}")
#define R_DS3A   "\\p{N}{1,3}"
#define R_DS3B   "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+"
#define R_DS3C                                                                                                         \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"                \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" BLANKS
#define R_CJK "[\\x{4E00}-\\x{9FA5}\\x{0800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define R_CASED_LETTERS                                                                                                \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"                    \
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}"             \
    "\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}"                    \
    "\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"                  \
    "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}"                  \
    "\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}"                             \
    "\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}"                            \
    "\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}"                  \
    "\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}"                    \
    "\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}"                             \
    "\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"                             \
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"                   \
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}"                  \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}"                                 \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}"                             \
    "\\x{1E900}-\\x{1E943}"
#define R_DS_MARKS "[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]"

enum form { FORM_NONE, FORM_NFC, FORM_UNKNOWN }; // what the model's own tokenizer does first
enum { MAX_SPLITS = 6 };

struct rule {
    const char *name, *names; // tokenizer.ggml.pre; others that mean the same, separated by spaces
    bool ignore_merges;
    enum form form;
    const char *splits[MAX_SPLITS]; // each works on the pieces of the one before
};

static const struct rule rules[] = {
    {"smollm", "starcoder refact codeshell", false, FORM_NONE, {"\\p{N}", R_GPT2}},
    {"exaone", "minerva-7b mellum2", false, FORM_UNKNOWN, {"\\p{N}", R_GPT2}},
    {"command-r", "", false, FORM_NFC, {"\\p{N}", R_GPT2}},
    {"gpt-2", "phi-2", false, FORM_NONE, {R_GPT2}},
    {"olmo", "mpt", false, FORM_NFC, {R_GPT2}},
    {"jais", "exaone4 trillion granite-docling gigachat mellum modern-bert", false, FORM_UNKNOWN, {R_GPT2}},
    {"llama-bpe", "llama3 llama-v3", true, FORM_NONE, {R_LLAMA3}},
    {"falcon3", "pixtral lfm2", true, FORM_UNKNOWN, {R_LLAMA3}},
    {"dbrx", "smaug-bpe", false, FORM_NONE, {R_LLAMA3}},
    {"chatglm-bpe", "", false, FORM_UNKNOWN, {R_LLAMA3}},
    {"glm4", "glm5", true, FORM_UNKNOWN, {R_LLAMA3}},
    {"qwen2", "", false, FORM_NFC, {R_QWEN2}},
    {"deepseek-r1-qwen", "megrez stablelm2 hunyuan solar-open grok-2", false, FORM_UNKNOWN, {R_QWEN2}},
    {"qwen35", "", false, FORM_NFC, {R_QWEN35}},
    {"tekken", "", true, FORM_NONE, {R_TEKKEN}},
    {"gpt-4o", "llama4", false, FORM_NONE, {R_O200K}},
    {"kanana2", "talkie minimax-m2", false, FORM_UNKNOWN, {R_O200K}},
    {"falcon", "", false, FORM_UNKNOWN, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", R_GPT2, "[0-9][0-9][0-9]"}},
    {"minicpm5", "", true, FORM_UNKNOWN, {"\\p{N}{1,3}", R_LLAMA3_WITH("\\p{N}+")}},
    {"deepseek-v3", "", false, FORM_NONE, {R_DS3A, R_DS3B, R_DS3C}},
    {"hunyuan-dense", "joyai-llm hy_v4", false, FORM_UNKNOWN, {R_DS3A, R_DS3B, R_DS3C}},
    {"deepseek-coder", "", false, FORM_UNKNOWN, {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", R_CJK, "\\p{N}"}},
    {"deepseek-llm",
     "",
     false,
     FORM_UNKNOWN,
     {"[\\r\\n]", "\\s?[" R_CASED_LETTERS "]+", "\\s?" R_DS_MARKS "+", "\\s+$", R_CJK, "\\p{N}+"}},
};

static const struct vocab_string space_mark = {"\xE2\x96\x81", 3}; // U+2581

static bool name_in(const char *names, const char *name) {
    size_t length = strlen(name);
    for (const char *at = names; length > 0 && (at = strstr(at, name)); at += length)
        if ((at == names || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return true;
    return false;
}

const char *recipe_gguf_pre(size_t i) {
    return i < COUNT_OF(rules) ? rules[i].name : NULL;
}

static int byte_level(const struct vocab_source *s, struct recipe *r, struct error *err) {
    const struct rule *rule = NULL;
    for (size_t i = 0; i < COUNT_OF(rules) && s->pre && !strchr(s->pre, ' '); i++)
        if (strcmp(rules[i].name, s->pre) == 0 || name_in(rules[i].names, s->pre)) rule = &rules[i];
    if (!rule)
        return error_set(err, STATUS_DATA, "%s: the pre-tokenizer \"%.64s\" is not known in this version", s->file,
                         s->pre ? s->pre : "(missing tokenizer.ggml.pre)");
    r->bytes = true;
    r->ignore_merges = rule->ignore_merges;
    struct normal_step form = {.kind = rule->form == FORM_NFC ? NORMAL_NFC : NORMAL_NFC_OR_REFUSE};
    if (rule->form != FORM_NONE && recipe_add_normal(r, form, err) < 0) return -1;
    for (int i = 0; i < MAX_SPLITS && rule->splits[i]; i++) {
        struct cut_step cut = {.kind = CUT_REGEX, .pattern = vocab_text(rule->splits[i], strlen(rule->splits[i]))};
        if (recipe_add_cut(r, cut, err) < 0) return -1;
    }
    return 0;
}

// Spaces become U+2581, characters that are no token their bytes.
static int characters(const struct vocab_source *s, struct recipe *r, struct error *err) {
    struct normal_step prefix = {.kind = NORMAL_PREPEND, .content = space_mark};
    struct normal_step spaces = {.kind = NORMAL_REPLACE, .pattern = vocab_text(" ", 1), .content = space_mark};
    r->byte_fallback = true;
    r->space = space_mark;
    if (s->add_space_prefix && recipe_add_normal(r, prefix, err) < 0) return -1;
    return recipe_add_normal(r, spaces, err);
}

static int sentence_piece(const struct vocab_source *s, struct recipe *r, struct error *err) {
    if (!s->scores)
        return error_set(err, STATUS_DATA,
                         "%s: key 'tokenizer.ggml.scores' is missing, a \"llama\" vocabulary needs it", s->file);
    r->rule = MERGE_SCORES;
    r->scores = s->scores;
    return characters(s, r, err);
}

static int gemma4(const struct vocab_source *s, struct recipe *r, struct error *err) {
    static const char lines[] = "[^\\n]+|[\\n]+";
    struct cut_step cut = {.kind = CUT_REGEX, .pattern = vocab_text(lines, sizeof lines - 1)};
    return characters(s, r, err) < 0 || recipe_add_cut(r, cut, err) < 0 ? -1 : 0;
}

static int check_id(const struct vocab_source *s, const char *what, int32_t id, struct error *err) {
    if (id >= -1 && (id < 0 || (size_t)id < s->n_tokens)) return 0;
    return error_set(err, STATUS_DATA, "%s: the %s token %d is outside the vocabulary of %zu", s->file, what, id,
                     s->n_tokens);
}

static bool strips(const struct vocab_source *s, struct vocab_string text) {
    static const char *const never[] = {"<unk>", "<s>", "<|endoftext|>"};
    if (!s->strips_after_special) return false;
    for (size_t i = 0; i < COUNT_OF(never); i++)
        if (text.length == strlen(never[i]) && memcmp(text.bytes, never[i], text.length) == 0) return false;
    return true;
}

// Control, user-defined and unknown tokens are cut out of the text. Elsewhere than in byte-level BPE words can become
// them too: the reference looks texts up in one table.
static int take_tokens(const struct vocab_source *s, struct recipe *r, struct error *err) {
    uint8_t *uses = pool_array(&r->pool, s->n_tokens + 1, 1);
    size_t n = 0;
    for (size_t i = 0; i < s->n_tokens && s->types; i++)
        n += s->types[i] == TOKEN_CONTROL || s->types[i] == TOKEN_USER_DEFINED || s->types[i] == TOKEN_UNKNOWN;
    r->added = pool_array(&r->pool, n + 1, sizeof *r->added);
    if (!uses || !r->added) return error_memory(err, "the vocabulary", s->n_tokens);
    for (size_t i = 0; i < s->n_tokens; i++) {
        int type = s->types ? s->types[i] : TOKEN_NORMAL;
        if (type < TOKEN_UNDEFINED || type > TOKEN_BYTE)
            return error_set(err, STATUS_DATA, "%s: token %zu has the unknown type %d", s->file, i, type);
        bool cut = type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED || type == TOKEN_UNKNOWN;
        if (type == TOKEN_UNUSED) continue; // padding of the embedding matrix: never in a text
        uses[i] = (uint8_t)(cut ? USE_ADDED | (r->bytes ? 0 : USE_WORD) : USE_WORD);
        if (!cut || s->tokens[i].length == 0) continue;
        bool strip = strips(s, s->tokens[i]) && type == TOKEN_CONTROL;
        r->added[r->n_added++] = (struct added_token){
            .text = s->tokens[i], .id = (int32_t)i, .control = type != TOKEN_USER_DEFINED, .rstrip = strip};
    }
    r->uses = uses;
    return 0;
}

static int load(const struct vocab_source *s, struct recipe *r, struct error *err) {
    int status;
    if (!s->model || strcmp(s->model, "none") == 0)
        return error_set(err, STATUS_NOINPUT, "%s: the base has no tokenizer (key 'tokenizer.ggml.model' is %s)",
                         s->file, s->model ? "\"none\"" : "missing");
    if (strcmp(s->model, "gpt2") == 0)
        status = byte_level(s, r, err);
    else if (strcmp(s->model, "llama") == 0)
        status = sentence_piece(s, r, err);
    else if (strcmp(s->model, "gemma4") == 0)
        status = gemma4(s, r, err);
    else
        status = error_set(err, STATUS_DATA,
                           "%s: the tokenizer model \"%.64s\" is not in this version; \"gpt2\" (byte-level BPE), "
                           "\"llama\" (SentencePiece) and \"gemma4\" are",
                           s->file, s->model);
    if (status < 0 || take_tokens(s, r, err) < 0) return -1;
    if (check_id(s, "BOS", s->bos, err) < 0 || check_id(s, "EOS", s->eos, err) < 0) return -1;
    if (check_id(s, "EOT", s->eot, err) < 0 || check_id(s, "unknown", s->unk, err) < 0) return -1;
    if (check_id(s, "padding", s->pad, err) < 0) return -1;
    recipe_add_end(r, s->eos);
    recipe_add_end(r, s->eot);
    return 0;
}

int recipe_from_gguf(const struct vocab_source *s, struct recipe *out, struct error *err) {
    *out = (struct recipe){.file = s->file,
                           .tokens = s->tokens,
                           .n_tokens = s->n_tokens,
                           .merges = s->merges,
                           .n_merges = s->n_merges,
                           .merge_mark = ' ',
                           .unk = -1,
                           .bos = s->bos,
                           .eos = s->eos,
                           .pad = s->pad,
                           .adds_bos = s->add_bos && s->bos >= 0,
                           .chat_template = s->chat_template};
    if (load(s, out, err) == 0) return 0;
    recipe_free(out);
    return -1;
}
