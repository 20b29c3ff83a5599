#!/usr/bin/env bash
# The live comparisons with transformers + PEFT and a llama.cpp server: `make test-peers` calls this after building
# build/graft and build/tests/peers/*.  Closes with "N passed, N failed, N skipped".  Without the package index, and
# with nothing installed from an earlier time, every suite counts as skipped.
set -uo pipefail
cd "$(dirname "$0")/../.."
export GRAFT_VENV=${GRAFT_VENV:-build/venv}
suites=("$@")
test ${#suites[@]} -gt 0 || suites=(quants tables quantized quantize_gguf merged families experts shapes tokens templates peft_oracle dora_dropout trained_parts hot_swap quickstart)
passed=0 failed=0 skipped=0
times=""

# Adds up the closing line of a suite; a suite that ends without one has failed.
count() {
    local name=$1 code=$2 log=$3 start=$4 line
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -1)
    if test -n "$line"; then
        read -r p _ f _ s _ <<<"$line"
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + ${s:-0}))
        test "$code" = 0 || test "$f" != 0 || failed=$((failed + 1))
    else
        failed=$((failed + 1)) # what it said is on the screen
    fi
    times+=$(printf '%6d s  %s' $((SECONDS - start)) "$name")$'\n'
}

for script in venv base llama_cpp; do
    start=$SECONDS
    bash "tests/peers/$script.sh"
    code=$?
    times+=$(printf '%6d s  %s' $((SECONDS - start)) "$script")$'\n'
    if test $code = 77; then
        echo "skipped: ${suites[*]}"
        echo "0 passed, 0 failed, ${#suites[@]} skipped"
        exit 0
    elif test $code != 0; then
        echo "FAIL tests/peers/$script.sh: exit code $code"
        echo "0 passed, 1 failed, ${#suites[@]} skipped"
        exit 1
    fi
done

dumps=${BUILD:-build}/tests/peers
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for suite in "${suites[@]}"; do
    echo "--- $suite"
    start=$SECONDS
    script=tests/peers/$suite.py arguments=()
    case $suite in
    quants) arguments=(--dump "$dumps/quants_dump") ;;
    tokens) arguments=(--dump "$dumps/tokens_dump" --gguf cache/SmolLM2-135M-Instruct.Q4_1.gguf --count 3000 --folders 60) ;;
    templates) arguments=(--dump "$dumps/templates_dump" --count 3000) ;;
    merged | quantized | experts) arguments=(--graft "${BUILD:-build}/graft") ;;
    quantize_gguf) arguments=(--graft "${BUILD:-build}/graft" --llama-cpp cache/llama.cpp-9993) ;;
    families) arguments=(--dump "$dumps/families_dump" --llama-cpp cache/llama.cpp-9993) ;;
    tables) arguments=(--dump "$dumps/tables_dump") ;;
    shapes) script=tests/oracle/shapes.py arguments=(--check tests/fixtures/shapes.json 4) ;;
    esac
    "$GRAFT_VENV/bin/python" "$script" "${arguments[@]}" 2>&1 | tee "$log"
    count "$suite" "${PIPESTATUS[0]}" "$log" "$start"
done
printf '%s' "$times"
echo "$passed passed, $failed failed, $skipped skipped"
test "$failed" = 0
