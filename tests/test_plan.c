// The memory plan: recording, packing, replay.
#include "kernels/plan.h"
#include "tests/harness.h"

#include "kernels/base.h"

#include <string.h>

enum { MAX = 400 };

struct span {
    size_t offset, bytes;
    unsigned first, last;
};

// A random program: requests that live for random stretches of calls. Returns their places when replaying.
static unsigned program(struct plan *plan, unsigned seed, unsigned calls, struct span *spans, struct error *err) {
    uint32_t ids[MAX];
    unsigned until[MAX], n = 0;
    for (unsigned call = 0; call < calls; call++) {
        for (unsigned k = 0; k < 2 && n < MAX; k++) {
            size_t bytes = (size_t)(1 + 5000 * (test_random(seed, 4 * n) + 1)), offset = 0;
            ids[n] = plan_request(plan, PLAN_ACTIVATION, bytes, &offset, err);
            CHECK_MSG(ids[n] != 0, "request %u: %s", n, err->text);
            until[n] = call + (unsigned)(6 * (test_random(seed, 4 * n + 1) + 1));
            spans[n] = (struct span){offset, bytes, call, until[n] < calls ? until[n] : calls - 1};
            n++;
        }
        for (unsigned i = 0; i < n; i++) {
            if (until[i] >= call) plan_touch(plan, &ids[i], 1);
        }
        plan_call(plan);
    }
    return n;
}

TEST(places_never_overlap_while_both_live) {
    static struct span spans[MAX];
    for (unsigned seed = 1; seed <= 20; seed++) {
        struct error err = {0};
        struct plan *plan = plan_new(&err);
        size_t offset;
        CHECK(plan_request(plan, PLAN_ADAPTER, 1000, &offset, &err) != 0);
        CHECK(plan_begin(plan, "p", &err) == 0);
        program(plan, seed, 60, spans, &err);
        CHECK(plan_end(plan, &err) == 0 && plan_seal(plan, &err) == 0);
        CHECK(plan_request(plan, PLAN_ADAPTER, 1000, &offset, &err) != 0);
        CHECK_INT(offset, 0);
        CHECK(plan_begin(plan, "p", &err) == 0);
        unsigned n = program(plan, seed, 60, spans, &err);
        CHECK_MSG(plan_end(plan, &err) == 0, "%s", err.text);
        size_t live_most = 0;
        for (unsigned t = 0; t < 60; t++) {
            size_t live = 0;
            for (unsigned i = 0; i < n; i++) {
                if (spans[i].first <= t && t <= spans[i].last) live += (spans[i].bytes + 63) / 64 * 64;
            }
            if (live > live_most) live_most = live;
        }
        for (unsigned i = 0; i < n; i++) {
            CHECK(spans[i].offset % 64 == 0 && spans[i].offset >= 1024 &&
                  spans[i].offset + spans[i].bytes <= plan_arena_bytes(plan));
            for (unsigned k = 0; k < i; k++) {
                bool together = spans[i].first <= spans[k].last && spans[k].first <= spans[i].last;
                bool apart = spans[i].offset + spans[i].bytes <= spans[k].offset ||
                             spans[k].offset + spans[k].bytes <= spans[i].offset;
                CHECK_MSG(!together || apart, "seed %u: requests %u and %u share bytes", seed, i, k);
            }
        }
        double waste = (double)(plan_arena_bytes(plan) - 1024) / (double)live_most;
        CHECK_MSG(waste < 1.15, "seed %u: the arena is %.2f times what lives at once", seed, waste);
        plan_free(plan);
    }
}

TEST(replay_refuses_another_program) {
    struct error err = {0};
    struct plan *plan = plan_new(&err);
    size_t offset;
    CHECK(plan_begin(plan, "a", &err) == 0 && plan_request(plan, PLAN_BATCH, 100, &offset, &err) &&
          plan_end(plan, &err) == 0);
    CHECK(plan_begin(plan, "a", &err) != 0 && strstr(err.text, "twice"));
    err = (struct error){0};
    CHECK(plan_seal(plan, &err) == 0);
    CHECK(plan_begin(plan, "b", &err) != 0 && strstr(err.text, "not planned"));
    err = (struct error){0};
    CHECK(plan_begin(plan, "a", &err) == 0);
    CHECK(plan_request(plan, PLAN_BATCH, 200, &offset, &err) == 0 && strstr(err.text, "planned"));
    err = (struct error){0};
    CHECK(plan_end(plan, &err) != 0); // one request too few
    err = (struct error){0};
    CHECK(plan_begin(plan, "a", &err) == 0 && plan_request(plan, PLAN_BATCH, 100, &offset, &err) != 0);
    CHECK(plan_request(plan, PLAN_BATCH, 100, &offset, &err) == 0 && strstr(err.text, "more than"));
    plan_free(plan);
}

TEST(dead_ranges_are_told_once_after_the_last_use) {
    struct error err = {0};
    struct plan *plan = plan_new(&err);
    size_t offset, dead_offset, dead_bytes;
    uint32_t a, b;
    for (int pass = 0; pass < 2; pass++) {
        CHECK(plan_begin(plan, "p", &err) == 0);
        a = plan_request(plan, PLAN_WORKSPACE, 64, &offset, &err);
        b = plan_request(plan, PLAN_ACTIVATION, 128, &offset, &err);
        plan_touch(plan, (uint32_t[]){a, b}, 2);
        plan_call(plan);
        if (pass) {
            CHECK(plan_next_dead(plan, &dead_offset, &dead_bytes));
            CHECK_INT(dead_bytes, 64);
            CHECK(!plan_next_dead(plan, &dead_offset, &dead_bytes));
        }
        plan_touch(plan, &b, 1);
        plan_call(plan);
        if (pass) {
            CHECK(plan_next_dead(plan, &dead_offset, &dead_bytes));
            CHECK_INT(dead_bytes, 128);
            CHECK(!plan_next_dead(plan, &dead_offset, &dead_bytes));
        }
        CHECK(plan_end(plan, &err) == 0);
        if (!pass) CHECK(plan_seal(plan, &err) == 0);
    }
    plan_free(plan);
}

TEST_MAIN(CASE(places_never_overlap_while_both_live), CASE(replay_refuses_another_program),
          CASE(dead_ranges_are_told_once_after_the_last_use))
