// See recipe.h: what both sources need to fill a recipe in.
#include "data/recipe.h"

#include <string.h>

int recipe_add_normal(struct recipe *r, struct normal_step step, struct error *err) {
    if (r->n_normal == RECIPE_STEPS)
        return error_set(err, STATUS_DATA, "%s: the tokenizer has more than %d normalizers", r->file, RECIPE_STEPS);
    r->normal[r->n_normal++] = step;
    return 0;
}

int recipe_add_cut(struct recipe *r, struct cut_step step, struct error *err) {
    if (r->n_cuts == RECIPE_STEPS)
        return error_set(err, STATUS_DATA, "%s: the tokenizer has more than %d pre-tokenizers", r->file, RECIPE_STEPS);
    r->cuts[r->n_cuts++] = step;
    return 0;
}

void recipe_add_end(struct recipe *r, int32_t id) {
    for (int i = 0; i < r->n_ends; i++)
        if (r->ends[i] == id) return;
    if (id >= 0 && r->n_ends < RECIPE_ENDS) r->ends[r->n_ends++] = id;
}

int32_t recipe_find(const struct recipe *r, struct vocab_string text) {
    for (size_t i = 0; i < r->n_tokens; i++)
        if (r->uses[i] != USE_NONE && r->tokens[i].length == text.length && text.length > 0 &&
            memcmp(r->tokens[i].bytes, text.bytes, text.length) == 0)
            return (int32_t)i;
    return -1;
}

void recipe_free(struct recipe *r) {
    pool_free(&r->pool);
    *r = (struct recipe){0};
}
