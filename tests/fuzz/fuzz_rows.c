// Fuzz target of the row reader: the first byte chooses kind and policies, the rest is the data file. What is accepted
// must have a ledger that adds up, ids inside the vocabulary, and text that its tokens spell; every refusal names a
// reason.
#include "data/lint.h"
#include "tests/fuzz/fuzz.h"
#include "tests/vocabularies.h"

static struct {
    struct pool pool;
    struct vocab_source source;
    struct tokenizer *tokenizer;
    struct chat_template *chat;
} world;

static void open_world(void) {
    if (world.tokenizer) return;
    world.source = vocabulary_make(&world.pool, "qwen2");
    world.tokenizer = tokenizer_open(&world.source, NULL);
    world.chat = chat_template_open("chatml", NULL, 0, NULL);
    EXPECT(world.tokenizer && world.chat);
}

static void check_sample(const struct dataset_options *o, const struct sample *s) {
    EXPECT(s->count >= 2 && s->trained >= 1 && s->count <= o->sequence_len && s->ids && s->why);
    for (int32_t i = 0; i < s->count; i++) {
        EXPECT(s->ids[i] >= 0 && (uint32_t)s->ids[i] < o->vocab_size && s->why[i] < WHY_COUNT);
        EXPECT(!s->positions || s->positions[i] >= 0);
    }
    EXPECT(!s->prompt_ids || (s->prompt_count >= 1 && s->reference));
    EXPECT(o->kind != DATASET_CHAT || s->rendered);
}

static void check_dataset(const struct dataset_options *o, const struct dataset *d) {
    uint64_t kept = 0, tokens = 0, dropped = 0;
    for (size_t i = 0; i < d->count; i++) {
        if (d->samples[i].dropped != DROP_NONE) continue;
        check_sample(o, &d->samples[i]);
        kept++;
        tokens += (uint64_t)d->samples[i].count;
    }
    for (int i = 1; i < DROP_REASONS; i++) dropped += d->dropped[i];
    EXPECT(kept + dropped == d->count && tokens == d->tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    open_world();
    if (size < 1) return 0;
    struct dataset_options o = {.path = "fuzz.jsonl", .sequence_len = 64, .min_sample_len = 2};
    o.vocab_size = (uint32_t)world.source.n_tokens;
    o.kind = (enum dataset_kind)(data[0] % 3);
    o.excess = data[0] & 4 ? EXCESS_TRUNCATE : EXCESS_DROP;
    o.skip_bad_rows = data[0] & 8;
    o.train_on_eot = (enum train_on)(data[0] >> 4 & 3);
    o.train_on_inputs = data[0] & 64;
    struct dataset d;
    struct error err = {0};
    if (dataset_parse(&o, data + 1, size - 1, world.tokenizer, world.chat, &d, &err) == 0) {
        struct lint_report report = {0};
        check_dataset(&o, &d);
        EXPECT(lint_dataset(&d, world.tokenizer, o.vocab_size, &report, &err) == 0);
        dataset_free(&d);
    } else
        EXPECT(err.code != 0 && err.text[0] != 0);
    return 0;
}
