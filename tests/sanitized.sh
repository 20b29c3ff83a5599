#!/usr/bin/env bash
# The suites of hostile input, the seeds of the fuzz targets, and the program on bad input, under AddressSanitizer and UndefinedBehaviorSanitizer.
set -u
B=${BUILD:-build}
passed=0 failed=0 skipped=0
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
"$B"/asan/replay_seeds "$seeds"
for suite in "$B"/asan/tests/test_* "$B"/asan/replay/* program shapes inspect; do
    case $suite in
    *.d | *.dSYM) continue ;;
    program) out=$(for part in wrong_ truncated hostile bad_rows output_ chat_keeps chat_goes doctor_of_files inspect_; do
        BUILD=$B/asan python3 tests/test_program.py "$part"
    done 2>&1) ;;
    inspect) out=$(BUILD=$B/asan python3 tests/test_inspect.py 2>&1) ;;
    shapes) out=$(BUILD=$B/asan python3 tests/test_shapes.py four_bits packed_checkpoints lists_of_what_is_not_packed by_its_name_on_the_hub a_folder_with_only_a_config what_is_refused \
        as_planned_from_the_files deepseek-v2-lite gpt-oss-20b 2>&1) ;;
    */replay/*) # every committed seed of the fuzz target, and those that seeds.c makes
        name=$(basename "$suite") folders=()
        for folder in "tests/fuzz/$name" "$seeds/$name"; do [ -d "$folder" ] && folders+=("$folder"); done
        [ "$name" = shapes ] && folders+=(configs/shapes)
        [ "$name" = config ] && folders+=(configs/recipes)
        out=$("$suite" "${folders[@]}" 2>&1 && [ ${#folders[@]} -gt 0 ] && echo "1 passed, 0 failed, 0 skipped") ;;
    *) out=$("$suite" 2>&1) ;;
    esac
    status=$?
    while read -r p f s; do
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    done < <(echo "$out" | sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    if [ "$status" -ne 0 ] || ! echo "$out" | grep -qE '^[0-9]+ passed, 0 failed'; then
        echo "$out" | tail -n 60
        [ "$status" -eq 0 ] || failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
