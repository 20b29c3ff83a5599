// report.html and the README's curve: right numbers, well-formed, escaped, self-contained, whole or absent.
#include "kernels/base.h"
#include "tests/harness.h"
#include "train/report.h"
#include "train/report_svg.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *at(const char *name) {
    static char buffers[4][512];
    static int next;
    char *buffer = buffers[next++ % 4];
    snprintf(buffer, 512, "%s/%s", test_folder(), name);
    return buffer;
}

static void put(const char *name, const char *text) {
    struct error err = {0};
    CHECK_MSG(file_replace(at(name), text, strlen(text), &err) == 0, "%s", err.text);
}

// Every tag is closed in order, every attribute quoted, every & an entity we write. The subset of XML that we write.
static const char *malformed(const char *s) {
    static char why[200];
    char stack[64][16];
    int depth = 0;
    for (; *s; s++) {
        if (*s == '&' && strncmp(s, "&amp;", 5) && strncmp(s, "&lt;", 4) && strncmp(s, "&gt;", 4) &&
            strncmp(s, "&quot;", 6) && strncmp(s, "&#39;", 5))
            return snprintf(why, sizeof why, "bare & at '%.40s'", s), why;
        if ((unsigned char)*s < 0x20 && *s != '\n' && *s != '\t') return "control character";
        if (*s == '>') return snprintf(why, sizeof why, "bare > at '%.40s'", s), why;
        if (*s != '<') continue;
        if (strncmp(s, "<!doctype html>", 15) == 0) {
            s += 14;
            continue;
        }
        bool closing = s[1] == '/';
        char name[16] = "";
        if (sscanf(s + 1 + closing, "%15[a-z0-9]", name) != 1)
            return snprintf(why, sizeof why, "bare < at '%.40s'", s), why;
        bool quoted = false;
        const char *end = s;
        for (; *end && (*end != '>' || quoted); end++) {
            if (*end == '"') quoted = !quoted;
            if (quoted && *end == '<') return "< in an attribute";
        }
        if (!*end) return "tag without end";
        if (closing) {
            if (depth == 0 || strcmp(stack[--depth], name))
                return snprintf(why, sizeof why, "</%s> closes %.15s", name, stack[depth]), why;
        } else if (end[-1] != '/' && strcmp(name, "meta") != 0) {
            if (depth == 64) return "too deep";
            strcpy(stack[depth++], name);
        }
        s = end;
        if (!closing && strcmp(name, "style") == 0) s = strstr(s, "</style>") - 1;
    }
    return depth ? snprintf(why, sizeof why, "<%.15s> is not closed", stack[depth - 1]), why : NULL;
}

static size_t count(const char *text, const char *what) {
    size_t n = 0;
    for (const char *s = text; (s = strstr(s, what)); s += strlen(what)) n++;
    return n;
}

static struct text page_of(const struct report *report) {
    struct text page = {0};
    struct error err = {0};
    CHECK_MSG(report_write(at("report.html"), report, &err) == 0, "%s", err.text);
    CHECK_MSG(file_read(at("report.html"), 1 << 24, &page, &err) == 0, "%s", err.text);
    const char *why = malformed(text_str(&page));
    CHECK_MSG(why == NULL, "%s", why);
    return page;
}

#define STEP(n, loss, lr, norm, speed)                                                                                 \
    "{\"step\": " #n ", \"epoch\": 0.1, \"loss\": " #loss ", \"grad_norm\": " #norm ", \"lr\": " #lr                   \
    ", \"tokens_per_second\": " #speed ", \"peak_bytes\": 1048576}\n"

TEST(numbers_of_the_log) {
    put("log.jsonl", STEP(1, 4.0, 1e-4, 2, 100)
                         STEP(2, 3.0, 2e-4, 1, 300) "{\"step\": 2, \"eval_loss\": 3.25}\n" STEP(3, 9.0, 2e-4, 1, 200)
                             STEP(4, 8.0, 2e-4, 1, 200)
        // resumed at 2: steps 3 and 4 once more
        STEP(3, 2.5, 2e-4, 1, 1234)
            STEP(4, 2.0, 1e-4, 1,
                 200) "{\"note\": \"not a step\"}\n\n"
                      "{\"step\": 4, \"eval_loss\": 3.5}\n{\"step\": 5, \"loss\": 1.0, \"gr"); // killed while writing
    struct text page = page_of(&(struct report){.title = "run", .log_path = at("log.jsonl")});
    const char *p = text_str(&page);
    CHECK(strstr(p, "<b>2.00</b><span>training loss, from 4.00</span>") != NULL);
    CHECK(strstr(p, "<b>3.25</b><span>best held-out loss</span>") != NULL);
    CHECK(strstr(p, "<b>4</b><span>steps</span>") != NULL);
    CHECK(strstr(p, "<b>300</b><span>tokens per second</span>") != NULL); // median of 100 300 1234 200
    CHECK(strstr(p, "<b>1 MiB</b><span>peak memory</span>") != NULL);
    CHECK_INT(count(p, "<circle"), 4 + 2 + 2);           // few points: training as marks too; two in the legend
    CHECK(strstr(p, "training 9.00 at step 3") == NULL); // overwritten by the resumed run
    CHECK(strstr(p, "training 2.50 at step 3") != NULL);
    CHECK(strstr(p, "held out 3.50 at step 4") != NULL);
    text_free(&page);
}

TEST(chart_coordinates_by_hand) {
    // Left 52, top 8, right 320 - 14, bottom 200 - 42; x 0..10, y 0..10.
    const double x[] = {0, 5, 10}, y[] = {0, 5, 10}, gap[] = {0, NAN, 10};
    struct svg_series series = {.class = "s1", .x = x, .y = y, .count = 3};
    struct svg_chart chart = {.title = "t",
                              .x_label = "step",
                              .width = 320,
                              .height = 200,
                              .from_zero = true,
                              .series = &series,
                              .n_series = 1};
    struct text out = {0};
    svg_chart_write(&out, &chart);
    CHECK(strstr(text_str(&out), "M52.0 158.0L179.0 83.0L306.0 8.0\"") != NULL);
    CHECK(strstr(text_str(&out), ">2.5</text>") != NULL && strstr(text_str(&out), ">10.0</text>") != NULL);
    CHECK(malformed(text_str(&out)) == NULL);
    text_clear(&out);
    series.y = gap;
    svg_chart_write(&out, &chart);
    CHECK(strstr(text_str(&out), "M52.0 158.0M306.0 8.0\"") != NULL); // a gap, not a line over it
    text_free(&out);
}

TEST(numbers_for_people) {
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0"},         {2e-4, "2e-4"}, {1.5e-5, "1.5e-5"}, {0.3337, "0.334"}, {2.5, "2.50"},
                 {12.34, "12.3"},  {123.4, "123"}, {1234, "1234"},     {12345, "12.35k"}, {4880000, "4.88M"},
                 {-0.5, "-0.500"}, {NAN, "-"},     {9.999e-4, "1e-3"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[32];
        svg_number(text, cases[i].value);
        CHECK_STR(text, cases[i].text);
    }
}

TEST(everything_is_escaped) {
    put("log.jsonl", STEP(1, 4.0, 1e-4, 2, 100));
    static const char evil[] = "<script>alert('1')</script>&\"\x01\x1b[31m\xff\xe2\x80\xae\xef\xbf\xbf";
    struct card_pair pair[] = {{evil, evil}};
    struct card_sample sample[] = {{evil, evil, evil, evil}, {"p", "a<b", "a>b & c", "<b>"}};
    struct text page = page_of(&(struct report){.title = evil,
                                                .log_path = at("log.jsonl"),
                                                .facts = pair,
                                                .n_facts = 1,
                                                .memory = pair,
                                                .n_memory = 1,
                                                .results = pair,
                                                .n_results = 1,
                                                .samples = sample,
                                                .n_samples = 2});
    const char *p = text_str(&page);
    CHECK(strstr(p, "<script") == NULL);
    CHECK(strstr(p, "\xe2\x80\xae") == NULL && strstr(p, "\xff") == NULL && strstr(p, "\x1b") == NULL);
    CHECK(count(p, "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\xEF\xBF\xBD\xEF\xBF\xBD[31m") >= 12);
    // Nothing is fetched from anywhere, and nothing runs.
    static const char *const banned[] = {
        "http:", "https:", "//", "src=", "href=", "url(", "@import", "javascript", "onload", "<script"};
    for (size_t i = 0; i < COUNT_OF(banned); i++)
        CHECK_MSG(strstr(p, banned[i]) == NULL, "the page holds %s", banned[i]);
    CHECK(strstr(p, "default-src 'none'") != NULL && strstr(p, "prefers-color-scheme:dark") != NULL);
    text_free(&page);
}

TEST(answers_are_judged) {
    put("log.jsonl", STEP(1, 4.0, 1e-4, 2, 100));
    struct card_sample samples[] = {
        {"p", "{\"a\": 1, \"b\": 2}", "{\"a\": 1, \"b\": 3}", " {\"a\": 1, \"b\": 2}\n"},
        {"p", "{\"a\": 1, \"b\": 2}", "{\"b\":2,\"a\":1}", "{\"b\":2,\"a\":1"},
        {"p", "J\xc3\xb6rg", "J\xc3\xb8rg", ""},
        {"p", "abab", "ab", "ababab"},
        {"p", NULL, "free text", NULL},
    };
    struct text page =
        page_of(&(struct report){.title = "t", .log_path = at("log.jsonl"), .samples = samples, .n_samples = 5});
    const char *p = text_str(&page);
    CHECK_INT(count(p, "\xE2\x9C\x93 right"), 1);
    CHECK_INT(count(p, "\xE2\x9C\x93 same JSON"), 1);
    CHECK_INT(count(p, "\xE2\x9C\x97 wrong"), 6);
    CHECK(strstr(p, "&quot;b&quot;: <mark>3</mark>}") != NULL);
    CHECK(strstr(p, "J<mark>\xc3\xb8</mark>rg") != NULL); // not half a character
    CHECK(strstr(p, "abab<mark>ab</mark>") != NULL);
    CHECK(strstr(p, "(empty)") != NULL);
    CHECK(strstr(p, "free text</pre>") != NULL);
    text_free(&page);
}

TEST(before_and_after_share_a_row) {
    put("log.jsonl", "");
    struct card_pair results[] = {
        {"exact before", "0 %"}, {"exact after", "85 %"}, {"rows", "20"}, {"loss after", "1"}};
    struct card_pair memory[] = {{"adapter", "10 MiB"}, {"workspace", "40960 KiB"}, {"odd", "much"}};
    struct text page = page_of(&(struct report){.title = "t",
                                                .log_path = at("log.jsonl"),
                                                .results = results,
                                                .n_results = 4,
                                                .memory = memory,
                                                .n_memory = 3});
    const char *p = text_str(&page);
    CHECK(strstr(p, "<th>exact</th><td class=\"n\">0 %</td><td class=\"n after\">85 %</td>") != NULL);
    CHECK_INT(count(p, ">85 %<"), 1);
    CHECK(strstr(p, "<th>rows</th><td></td><td class=\"n\">20</td>") != NULL);
    CHECK(strstr(p, "<th>loss after</th>") != NULL);
    CHECK(strstr(p, "width:25.0%") != NULL && strstr(p, "width:100.0%") != NULL);
    CHECK_INT(count(p, "class=\"bar\""), 2);
    CHECK(strstr(p, "nothing was logged") != NULL);
    text_free(&page);
}

TEST(curve_is_a_picture_of_its_own) {
    struct text log = {0}, svg = {0};
    for (int i = 1; i <= 50000; i++) text_printf(&log, "{\"step\": %d, \"loss\": %g, \"lr\": 1e-4}\n", i, 3.0 / i);
    put("log.jsonl", text_str(&log));
    text_free(&log);
    struct error err = {0};
    double start = clock_now();
    CHECK_INT(report_curve(at("curve.svg"), at("log.jsonl"), "Loss <of> a run", &err), 0);
    CHECK(clock_now() - start < 10);
    CHECK_INT(file_read(at("curve.svg"), 1 << 20, &svg, &err), 0); // however long the run is
    const char *p = text_str(&svg);
    CHECK(strncmp(p, "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 40) == 0);
    CHECK(malformed(p) == NULL);
    CHECK(strstr(p, "Loss &lt;of&gt; a run</text>") != NULL && strstr(p, "prefers-color-scheme:dark") != NULL);
    CHECK(strstr(p, "nan") == NULL && strstr(p, "inf") == NULL);
    text_free(&svg);
    CHECK_INT(report_curve(at("curve2.svg"), at("missing.jsonl"), "t", &err), -1);
    CHECK_INT(err.code, STATUS_NOINPUT);
    CHECK(!file_exists(at("curve2.svg")));
}

TEST(absurd_numbers) {
    put("log.jsonl",
        STEP(0, 1e308, 1e-308, -1e308, 5e-324)
            STEP(1, -1e308, 0, 1e308, 0) "{\"step\": 1e300, \"loss\": 0}\n"
                                         "{\"step\": 1.5e300, \"loss\": null}\n{\"step\": \"x\", \"loss\": "
                                         "1}\n[1]\n3\n{\"step\": 2e300, \"eval_loss\": 1e308}\n");
    struct text page = page_of(&(struct report){.title = "t", .log_path = at("log.jsonl")});
    text_free(&page);
    put("log.jsonl", STEP(7, 1.5, 0, 0, 0) STEP(8, 1.5, 0, 0, 0)); // constant curves
    page = page_of(&(struct report){.title = "t", .log_path = at("log.jsonl")});
    CHECK(strstr(text_str(&page), "nan") == NULL);
    text_free(&page);
}

TEST(faults) {
    put("log.jsonl", STEP(1, 4.0, 1e-4, 2, 100) STEP(2, 3.0, 1e-4, 2, 100) "{\"step\": 2, \"eval_loss\": 3.25}\n");
    struct card_pair pair[] = {{"a before", "1 MiB"}, {"a after", "2 MiB"}};
    struct card_sample sample[] = {{"p", "{\"a\": 1}", "{\"a\": 2}", "{\"a\":1}"}};
    struct report report = {.title = "t",
                            .log_path = "",
                            .facts = pair,
                            .n_facts = 2,
                            .memory = pair,
                            .n_memory = 2,
                            .results = pair,
                            .n_results = 2,
                            .samples = sample,
                            .n_samples = 1};
    char log_path[512], page_path[512];
    snprintf(log_path, sizeof log_path, "%s", at("log.jsonl"));
    snprintf(page_path, sizeof page_path, "%s", at("faults.html"));
    report.log_path = log_path;
    CHECK_INT(file_replace(page_path, "old", 3, NULL), 0);
    for (int kind = 0; kind < 2; kind++) {
        for (uint64_t k = 1;; k++) {
            struct error err = {0};
            if (kind)
                file_fail_at(k, EIO, 0);
            else
                mem_fail_at(k, 0);
            int status = report_write(page_path, &report, &err);
            uint64_t calls = kind ? file_fail_at(0, 0, 0) : mem_fail_at(0, 0);
            CHECK(status == 0 || err.code == (kind ? STATUS_IO : STATUS_MEMORY));
            struct text text = {0};
            CHECK_INT(file_read(page_path, 1 << 20, &text, NULL), 0);
            CHECK(strcmp(text_str(&text), "old") == 0 || malformed(text_str(&text)) == NULL);
            text_free(&text);
            if (k > calls) break;
        }
    }
}

TEST_MAIN(CASE(numbers_of_the_log), CASE(chart_coordinates_by_hand), CASE(numbers_for_people),
          CASE(everything_is_escaped), CASE(answers_are_judged), CASE(before_and_after_share_a_row),
          CASE(curve_is_a_picture_of_its_own), CASE(absurd_numbers), CASE(faults))
