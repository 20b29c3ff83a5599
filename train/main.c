// graft: fine-tunes open-weight language models with LoRA and QLoRA. See command.h for what it can do.
#include "train/command.h"
#include "train/version.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>

const struct command command_table[] = {
    {"train", "CONFIG.yml [key=value ...]", "train an adapter", command_train,
     "  --resume      continue the newest verified checkpoint of output_dir\n"
     "  --overwrite   replace what an earlier run left in output_dir\n"},
    {"plan", "CONFIG.yml [key=value ...]", "memory by class, FLOPs, predicted time; reads no weights", command_plan,
     "base_model may be a config.json alone (configs/shapes has those of public models): then the base is counted too, "
     "by\n"
     "format, the data is not read, and no time is predicted.\n"
     "  --json        one JSON object\n"},
    {"check", "CONFIG.yml [key=value ...]", "render rows token by token, lint the whole dataset", command_check,
     "  --row N       show row N (default: the first three)\n"
     "  --json        one JSON object per row: row, text, ids, trained, dropped\n"},
    {"inspect", "PATH", "what a file, base, adapter, checkpoint or run holds", command_inspect,
     "PATH: a GGUF or safetensors file, config.json, run.json, log.jsonl, the folder of a base, adapter, checkpoint "
     "or\n"
     "run, or a name in the local Hugging Face cache.\n"
     "  --revision R  of a name: branch, tag or commit, main if not given\n"
     "  --json        one JSON object\n"
     "  --tensors     list every tensor\n"},
    {"eval", "CONFIG.yml [key=value ...]", "loss, perplexity, valid JSON and exact match", command_eval,
     "  --adapter A   PEFT folder, run folder, checkpoint or adapter.gguf; without it the base alone\n"
     "  --data F      this file instead of test_datasets or the held-out part\n"
     "  --logprobs F  write the log-probability of every token to F (JSONL)\n"
     "  --no-generate loss only, no answers\n"
     "  --answers F   write prompt, reference and answer of every row to F (JSONL)\n"
     "  --rows N      generate answers to the first N rows only\n"
     "  --json        one JSON object\n"},
    {"chat", "", "generate with a base and adapters, swapping while it runs", command_chat,
     "  --base B          GGUF file; without it, the base that run.json beside the first adapter names\n"
     "  --adapter A       PATH or NAME=PATH (the name is else the last part of the path); may be given several times\n"
     "  --prompt TEXT     answer this and leave; without it every line of standard input is one turn\n"
     "  --system TEXT     system message\n"
     "  --max-tokens N    default 512\n"
     "  --temperature X   0 = greedy (default)\n"
     "  --top-p X  --seed N  --threads N  --stats\n"
     "In a session: /adapter NAME|none switches, /adapter lists, /reset forgets the conversation, /help, /quit.\n"
     "A turn that cannot be sent (too long for the context, bad UTF-8) is told, and the session goes on.\n"},
    {"export", "ADAPTER", "write an adapter in another form", command_export,
     "  --to peft|gguf|mlx|merged\n"
     "  --base B      the base it was trained on\n"
     "  --out PATH    where to (default: beside the adapter)\n"
     "  --type T      merged, from a GGUF: f32, f16 (default), bf16 or q8_0 for what the adapter changes\n"
     "merged gives one GGUF of a base in GGUF, and of one in safetensors a folder that transformers loads.\n"},
    {"verify", "ADAPTER", "reload every file and compare with the trainer's log-probabilities", command_verify,
     "  --base B      the GGUF it was trained on\n"
     "  --json        one JSON object\n"},
    {"publish", "ADAPTER", "hot-load into a running server", NULL, ""},
    {"quantize", "BASE --to T --out PATH", "a smaller base: a folder as bitsandbytes packs it, or a GGUF",
     command_quantize,
     "  --to nf4|fp4|int8   a new folder that transformers, PEFT and this program load, from safetensors; embeddings,\n"
     "                      norms, routers and the head stay as they are\n"
     "  --to q8_0|q6_k|q5_1|q5_0|q4_1|q4_0|q4_k|f16|bf16|f32\n"
     "                      one GGUF file for llama.cpp and this program, from safetensors or a GGUF: every matrix "
     "has\n"
     "                      this type, but the head (with types below q6_k: q6_k) and rows that fill none of its\n"
     "                      blocks (q5_0 in place of q4_k, q8_0 of q6_k, else f16); norms and routers stay floats\n"
     "  --out PATH          where to; must not exist\n"
     "  --pure              GGUF: the head, too, has the type itself\n"
     "  --blocksize N       nf4, fp4: numbers that share a scale, 64 if not given\n"
     "  --no-double-quant   nf4, fp4: scales stay floats, 4.5 bits a weight in place of 4.13\n"
     "  --revision R        of a base named as on its hub\n"},
    {"tokenize", "TOKENIZER", "text to token ids", NULL, ""},
    {"render", "TOKENIZER ROWS.jsonl", "messages to text", NULL, ""},
    {"fetch", "ORG/NAME", "download a base", NULL, ""},
    {"doctor", "[PATH]", "this machine, or whether what lies at PATH is whole", command_doctor,
     "Without PATH: CPU and kernels, threads, memory, disk, libraries, GPU.\n"
     "With PATH, one line per part; 80 when a hash does not match:\n"
     "  a checkpoint  every file against manifest.json\n"
     "  a run         the adapter against run.json, its numbers, every checkpoint\n"
     "  an adapter    its configuration, and that all numbers in its files are finite\n"
     "  a file        GGUF, safetensors, run.json or log.jsonl\n"},
    {"help", "[COMMAND|KEY]", "this text, a command, or a configuration key", command_help,
     "  --markdown    all keys as docs/config.md\n"},
};
const int command_count = (int)COUNT_OF(command_table);

int main(int argc, char **argv) {
    struct error err = {0};
    setlocale(LC_NUMERIC, "C"); // numbers in files have a point wherever the machine stands
    const char *name = argc > 1 ? argv[1] : "help";
    if (strcmp(name, "--version") == 0) {
        puts("graft " GRAFT_VERSION);
        return 0;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    const struct command *command = NULL;
    for (int i = 0; i < command_count; i++) {
        if (strcmp(command_table[i].name, name) == 0) command = &command_table[i];
    }
    for (int i = 2; i < argc && command; i++) { // graft train --help
        if (strcmp(argv[i], "--help") == 0) {
            char *topic = argv[1];
            return command_help(1, &topic, &err) ? err.code : 0;
        }
    }
    int failed;
    if (!command)
        failed = error_set(&err, STATUS_USAGE, "'%s' is not a command; `graft help` lists them", name);
    else if (!command->run)
        failed = error_set(&err, STATUS_USAGE, "%s: not in this version", name);
    else
        failed = command->run(argc > 2 ? argc - 2 : 0, argv + 2, &err);
    if (!failed) return 0;
    fprintf(stderr, "graft: %s\n", err.text);
    return err.code ? err.code : STATUS_INTERNAL;
}
