# Sourced by venv.sh and base.sh.
#
# pip_run PYTHON ARGUMENTS...: runs pip. When it fails the script ends: with exit code 77 if the package index cannot be
# reached at all (the caller counts a skip), with 1 in every other case.
pip_run() {
    local python=$1 probe
    shift
    "$python" -m pip --disable-pip-version-check "$@" && return 0
    probe=$(mktemp -d)
    # One small package without cache: only a connection that never came about is "unreachable". pip names the reason
    # of a failed connection only when it retries.
    if ! "$python" -m pip --disable-pip-version-check --no-cache-dir --retries 1 --timeout 20 \
        download --quiet --no-deps -d "$probe" filelock==4.2.11 >"$probe/log" 2>&1 &&
        grep -Eqi 'NewConnectionError|NameResolutionError|ConnectTimeout|ConnectionError|ReadTimeout|ProxyError|timed out|refused|unreachable' "$probe/log"; then
        rm -rf "$probe"
        echo "$0: the package index cannot be reached" >&2
        exit 77
    fi
    rm -rf "$probe"
    echo "$0: pip failed although the package index answers" >&2
    exit 1
}
