// Sample answers while a run goes on. See trainer.h.
#include "train/trainer.h"

#include "adapters/card.h"
#include "data/json.h"

#include <stdio.h>
#include <string.h>

// The prompt of a sample: up to its last answer, or the first part of a row that has none.
static void make_job(const struct trainer *t, const struct sample *s, struct generation *job) {
    double part = t->config->generation_prompt_ratio * s->count;
    *job = (struct generation){.prompt = s->prompt_ids ? s->prompt_ids : s->ids,
                               .prompt_count = s->prompt_ids ? s->prompt_count
                                               : part < 1    ? 1
                                                             : (int32_t)part,
                               .max_new = (int32_t)t->config->generation_max_new_tokens,
                               .adapter = t->lora.number};
}

static int say(struct trainer *t, struct json_writer *w, const struct sample *s, const struct generation *job,
               struct error *err) {
    struct text prompt = {0}, answer = {0};
    const struct tokenizer *tokenizer = t->session.tokenizer;
    int failed = tokenizer_decode(tokenizer, job->prompt, (size_t)job->prompt_count, true, &prompt, err) ||
                 tokenizer_decode(tokenizer, job->out.data, job->out.count, true, &answer, err);
    if (!failed) {
        runlog_say(&t->log, "sample of row %u: %s", s->row, text_str(&answer));
        json_begin_object(w);
        json_put_key(w, "row");
        json_put_int(w, s->row);
        json_put_key(w, "prompt");
        json_put_bytes(w, text_str(&prompt), prompt.length);
        json_put_key(w, "answer");
        json_put_bytes(w, text_str(&answer), answer.length);
        if (s->reference) {
            json_put_key(w, "reference");
            json_put_string(w, s->reference);
        }
        json_end_object(w);
    }
    text_free(&prompt);
    text_free(&answer);
    return failed ? -1 : 0;
}

int trainer_generate_samples(struct trainer *t, struct error *err) {
    const struct run_config *c = t->config;
    size_t most = (size_t)c->num_generation_samples, n = 0;
    struct generation *jobs = mem_zalloc(most + 1, sizeof *jobs);
    const struct sample **samples = mem_zalloc(most + 1, sizeof *samples);
    struct text line = {0};
    struct json_writer w = {.out = &line, .style = JSON_SPACED};
    int32_t stop[MAX_STOP_TOKENS];
    int n_stop = stop_tokens(&t->session, stop);
    int failed = jobs && samples ? 0 : error_memory(err, "samples", most * sizeof *jobs);
    for (size_t i = 0; !failed && i < t->held_out.count && n < most; i++) {
        const struct sample *s = &t->held_out.samples[i];
        if (s->dropped) continue;
        make_job(t, s, &jobs[n]);
        samples[n++] = s;
    }
    struct sampling sampling = {.temperature = c->generation_do_sample ? c->generation_temperature : 0,
                                .top_p = c->generation_top_p == CONFIG_UNSET ? 1 : c->generation_top_p,
                                .top_k = c->generation_top_k == CONFIG_UNSET ? 0 : (int)c->generation_top_k,
                                .seed = c->seed + (uint64_t)t->state.step};
    if (!failed) failed = generator_run(&t->session.generator, jobs, (int)n, &sampling, stop, n_stop, NULL, NULL, err);
    json_begin_object(&w);
    json_put_key(&w, "step");
    json_put_int(&w, t->state.step);
    json_put_key(&w, "samples");
    json_begin_array(&w);
    for (size_t i = 0; i < n; i++) {
        if (!failed) failed = say(t, &w, samples[i], &jobs[i], err);
        ids_free(&jobs[i].out);
    }
    json_end_array(&w);
    json_end_object(&w);
    if (!failed)
        failed = text_failed(&line) ? error_memory(err, "samples", line.length) : runlog_line(&t->log, line.data, err);
    text_free(&line);
    mem_free(jobs);
    mem_free(samples);
    return failed ? -1 : 0;
}

// The answers of one log line, added to the samples of their place.
static int add_answers(const struct json *list, bool first, struct card_sample *out, int most, struct pool *pool) {
    int n = 0;
    for (const struct json *s = json_child(list); s && n < most; s = json_next(s), n++) {
        const char *answer = json_string(json_get(s, "answer"), NULL);
        if (answer) answer = pool_strdup(pool, answer);
        if (!first) {
            out[n].after = answer;
            continue;
        }
        const char *prompt = json_string(json_get(s, "prompt"), NULL);
        const char *reference = json_string(json_get(s, "reference"), NULL);
        out[n] = (struct card_sample){.prompt = prompt ? pool_strdup(pool, prompt) : "",
                                      .expected = reference ? pool_strdup(pool, reference) : NULL,
                                      .before = answer};
    }
    return n;
}

int trainer_read_samples(const char *log_path, struct card_sample *out, int most, struct pool *pool) {
    struct text log = {0};
    int n = 0;
    if (file_read(log_path, (size_t)1 << 32, &log, NULL)) return 0;
    for (const char *line = text_str(&log), *end; *line; line = end) {
        end = strchr(line, '\n');
        end = end ? end + 1 : line + strlen(line);
        struct json_document document;
        if (!strstr(line, "\"samples\"") || json_parse(line, (size_t)(end - line), NULL, &document, NULL)) continue;
        const struct json *list = json_get(document.root, "samples");
        if (list && n == 0)
            n = add_answers(list, true, out, most, pool);
        else if (list)
            add_answers(list, false, out, n, pool);
        json_free(&document);
    }
    text_free(&log);
    return n;
}
