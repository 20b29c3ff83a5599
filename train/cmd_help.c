// graft help.
#include "configs/keys.h"
#include "train/command.h"
#include "train/version.h"

#include <stdio.h>
#include <string.h>

static void overview(struct text *out) {
    text_add(out, "graft " GRAFT_VERSION ": fine-tunes open-weight language models with LoRA and QLoRA\n\n");
    for (int i = 0; i < command_count; i++) {
        const struct command *c = &command_table[i];
        text_printf(out, "  graft %-9s %-28s %s%s\n", c->name, c->arguments, c->summary,
                    c->run ? "" : " (not in this version)");
    }
    text_add(
        out,
        "\n`graft help COMMAND` shows its options, `graft help KEY` explains a key of the configuration, `graft help "
        "keys`\n"
        "lists them all. Exit codes: 0 done, 64 usage, 65 data, 66 input missing, 71 out of memory, 73 output not\n"
        "creatable or locked, 74 I/O, 75 stopped and resumable, 77 permission, 78 configuration, 79 numerical stop, "
        "80\n"
        "integrity.\n");
}

int command_help(int argc, char **argv, struct error *err) {
    struct option options[] = {{.name = "--markdown"}};
    if (options_parse(&argc, argv, options, 1, err)) return -1;
    struct text out = {0};
    int failed = 0;
    const struct command *command = NULL;
    for (int i = 0; argc > 0 && i < command_count; i++) {
        if (strcmp(command_table[i].name, argv[0]) == 0) command = &command_table[i];
    }
    if (option_flag(options, "--markdown"))
        config_write_docs(&out);
    else if (argc == 0)
        overview(&out);
    else if (command) {
        text_printf(&out, "graft %s %s\n  %s\n\n%s", command->name, command->arguments, command->summary,
                    command->help);
        if (!command->run) text_add(&out, "  not in this version\n");
    } else
        failed = config_help(strcmp(argv[0], "keys") == 0 ? NULL : argv[0], &out, err);
    if (!failed) failed = print_result(&out, err);
    text_free(&out);
    return failed;
}
