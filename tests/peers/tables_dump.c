// Decodes and quantises for tests/peers/tables.py: a case (tests/table_cases.h) a line from standard input, its answer
// a line on standard output. {"do": "maps"} asks for the code maps.
#include "tests/table_cases.h"

#include <stdio.h>

int main(void) {
    struct error err = {0};
    struct text answer = {0};
    char *line = NULL;
    size_t room = 0;
    for (ssize_t n; (n = getline(&line, &room, stdin)) > 0;) {
        struct json_document doc;
        if (json_parse(line, (size_t)n, NULL, &doc, &err) < 0) {
            fprintf(stderr, "tables_dump: %s\n", err.text);
            return 1;
        }
        text_clear(&answer);
        case_answer(doc.root, &answer);
        puts(text_str(&answer));
        json_free(&doc);
    }
    free(line);
    text_free(&answer);
    return 0;
}
