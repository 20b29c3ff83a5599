#!/usr/bin/env python3
"""Runs llama.cpp's converter of adapters over folders of tests/oracle/families.py.

    lora_gguf.py LLAMA_CPP OUT NAME...      writes OUT/NAME/theirs.gguf; the last line says what went wrong for each, as JSON
"""
import contextlib, io, json, logging, os, runpy, sys, tempfile
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../oracle"))
import gguf_families


def main():
    source, out, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    sys.path[:0] = [source, os.path.join(source, "gguf-py")]
    os.environ["NO_LOCAL_GGUF"] = "1"
    logging.disable(logging.CRITICAL)
    problems = {}
    for name in names:
        problems[name] = None
        with tempfile.TemporaryDirectory() as base, contextlib.redirect_stderr(io.StringIO()):
            gguf_families.released(out / name, Path(base))
            sys.argv = ["convert", "--base", base, str(out / name / "adapter"), "--outfile", str(out / name / "theirs.gguf"), "--outtype", "f32"]
            try:
                runpy.run_path(os.path.join(source, "convert_lora_to_gguf.py"), run_name="__main__")
            except (Exception, SystemExit) as e:
                problems[name] = f"{type(e).__name__} {e}"[:200]
    print(json.dumps(problems))


main()
