#!/usr/bin/env bash
# Runs every suite given on the command line and closes with "N passed, N failed, N skipped". A suite is a program that
# closes with such a line itself; one that crashes, or ends without it, counts as one failure. Then a table of times.
set -u
passed=0 failed=0 skipped=0 table="" log=$(mktemp)
trap 'rm -f "$log"' EXIT
for suite in "$@"; do
    name=$(basename "$suite") begin=$(date +%s.%N)
    echo "== $name"
    "$suite" >"$log" 2>&1
    status=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    read -r p f s <<<"$(echo "${line:-0 passed, 0 failed, 0 skipped}" | tr -dc '0-9 ')"
    if [ -z "$line" ] || { [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; }; then
        f=$((f + 1))
        echo "   $name ended with status $status${line:+ although it counted no failure}"
    fi
    if [ "$f" -gt 0 ]; then cat "$log"; else grep -E '^skip|^ *skipped:' "$log"; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    seconds=$(echo "$(date +%s.%N) $begin" | awk '{printf "%.1f", $1 - $2}')
    echo "   $p passed, $f failed, $s skipped in $seconds s"
    table+=$(printf '%-28s %6s s  %4d %4d %4d' "$name" "$seconds" "$p" "$f" "$s")$'\n'
done
printf '\n%-28s %8s  %4s %4s %4s\n%s' suite time pass fail skip "$table"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
