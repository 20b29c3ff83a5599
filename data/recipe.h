// What a tokenizer does, as data: a vocabulary and the steps a text goes through. recipe_gguf.c makes one from the
// vocabulary of a GGUF file, recipe_json.c and recipe_folder.c from a tokenizer.json and the files beside it;
// tokenizer.c runs it and does not know where it came from. Private to data/.
#pragma once

#include "data/vocab_source.h"
#include "kernels/base.h"

// A token that is cut out of the text before words are made.
struct added_token {
    struct vocab_string text;
    int32_t id;
    bool control;     // ordinary text where the caller wants no special tokens; left out by a decoding that skips them
    bool normalized;  // looked for in the normalised text, by its own normalised text
    bool single_word; // only where no word character stands beside it
    bool lstrip, rstrip; // takes the white space beside it with it
};

enum normal_kind {
    NORMAL_NFC,           // Unicode normal form C
    NORMAL_NFC_OR_REFUSE, // whether the model wants NFC is not known: text that NFC would change is refused
    NORMAL_PREPEND,       // content in front of a piece that is not empty
    NORMAL_REPLACE,       // every pattern becomes content
    NORMAL_REPLACE_REGEX, // every match becomes content
};
struct normal_step {
    enum normal_kind kind;
    struct vocab_string pattern, content;
};

enum cut_kind {
    CUT_REGEX,        // cuts at the matches of pattern
    CUT_METASPACE,    // spaces become mark, which may be put in front, and cuts before each mark
    CUT_PREFIX_SPACE, // a space in front of a piece that has none
};
enum cut_behaviour { CUT_ISOLATED, CUT_REMOVED, CUT_CONTIGUOUS, CUT_MERGED_WITH_PREVIOUS, CUT_MERGED_WITH_NEXT };
enum cut_prepend { CUT_PREPEND_ALWAYS, CUT_PREPEND_FIRST, CUT_PREPEND_NEVER };
struct cut_step {
    enum cut_kind kind;
    struct vocab_string pattern; // regular expression in Oniguruma's Ruby syntax
    enum cut_behaviour behaviour;
    bool invert;              // the gaps count as matches
    struct vocab_string mark; // of CUT_METASPACE, like the two below
    enum cut_prepend prepend;
    bool split;
};

enum merge_rule {
    MERGE_PAIRS,  // a list of pairs: the one that stands first goes first
    MERGE_SCORES, // two neighbours that make a token: the one with the highest score goes first (SentencePiece)
};

// How a token takes part, as bits; none of them: no token has this id, or it is a filler of the embedding matrix.
enum token_use {
    USE_NONE = 0,
    USE_WORD = 1,  // words can become it
    USE_ADDED = 2, // it is an added token
};

enum { RECIPE_STEPS = 8, RECIPE_ENDS = 16, RECIPE_MAX_TOKENS = 2 << 20, RECIPE_MAX_MERGES = 4 << 20 };

struct recipe {
    const char *file;                  // for messages
    const struct vocab_string *tokens; // (n_tokens) as the vocabulary spells them; length 0 where USE_NONE
    const uint8_t *uses;               // (n_tokens) bits of enum token_use
    size_t n_tokens;
    enum merge_rule rule;
    const struct vocab_string *merges; // "left right": `merge_mark`, from the second byte on, stands between
    size_t n_merges;
    char merge_mark;
    const float *scores;          // (n_tokens) of MERGE_SCORES
    bool bytes;                   // tokens are spelled in GPT-2's alphabet of bytes, and a word is a string of bytes
    bool ignore_merges;           // a word that is a token by itself is that token
    bool byte_fallback, fuse_unk; // what becomes of characters that are no token
    bool needs_unk;               // `unk` -1 is an error where it is needed: the token is named and does not exist
    int32_t unk;                  // -1 = such characters vanish
    struct vocab_string space;    // what stands for a space in tokens; length 0 = a space
    struct added_token *added;    // (n_added)
    size_t n_added;
    struct normal_step normal[RECIPE_STEPS]; // in order
    int n_normal;
    struct cut_step cuts[RECIPE_STEPS]; // in order, each on the pieces of the one before
    int n_cuts;
    int32_t bos, eos, pad;     // -1 when there is none; pad: as the folder's files name it
    bool adds_bos;             // plain text starts with BOS
    int32_t ends[RECIPE_ENDS]; // what ends a generated text; eos first
    int n_ends;
    struct vocab_string chat_template; // length 0 when there is none
    struct pool pool;                  // of what is not borrowed from the source
};

// All refuse by name what the engine cannot do exactly. On failure there is nothing to free.
int recipe_from_gguf(const struct vocab_source *source, struct recipe *out, struct error *err);
// tokenizer.json of the folder; template, BOS, EOS and ends of turns from the files beside it.
int recipe_from_folder(const struct vocab_source *source, struct recipe *out, struct error *err);
// The first name of the i-th pipeline that tokenizer.ggml.pre can stand for; NULL behind the last.
const char *recipe_gguf_pre(size_t i);
void recipe_free(struct recipe *recipe); // zeroed struct is a no-op

// source->json, with BOS, EOS and template of the source.
int recipe_from_json(const struct vocab_source *source, struct recipe *out, struct error *err);
// A tokenizer.json alone: part of recipe_from_folder.
int recipe_read_json(const char *path, struct recipe *out, struct error *err);

// --- what both fill in; -1 when there is no room
int recipe_add_normal(struct recipe *recipe, struct normal_step step, struct error *err);
int recipe_add_cut(struct recipe *recipe, struct cut_step step, struct error *err);
void recipe_add_end(struct recipe *recipe, int32_t id); // -1 and ids that are there already are no-ops
int32_t recipe_find(const struct recipe *recipe, struct vocab_string text); // linear; -1 when no token is spelled so

static inline struct vocab_string vocab_text(const char *text, size_t length) {
    return (struct vocab_string){text, length};
}
