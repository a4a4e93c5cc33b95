"""The demonstration: crawl a site, kill the crawler with -9 in the middle, start it again, see it finish.

    python demo.py

Three processes of this folder's programs take part: pydoc as the site, the crawler that is killed, and the same
command once more. At the end the store is asked whether the outcome of any page was lost or recorded twice.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from server import PydocServer
from store_facts import ask, faults, pages_done, recorded

HERE = Path(__file__).resolve().parent
STORE = HERE / ".treadle" / "demo.db"
RUN = "linkcheck"
# A third of what there is.
KILL_AT = 200
SECONDS = 300.0


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def shown(command: list[str]) -> str:
    """A command as one would type it here."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(str(Path(word).relative_to(HERE)) if word.startswith(str(HERE)) else word for word in words)


def crawl_and_kill(command: list[str]) -> int:
    """Start the crawler and kill it with -9 when enough pages are done; returns how many were."""
    crawler = subprocess.Popen(command)
    end = time.monotonic() + SECONDS
    try:
        while pages_done(STORE, RUN) < KILL_AT:
            if crawler.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the crawler ended (exit code {crawler.poll()}) before it could be killed")
            time.sleep(0.05)
    finally:
        # On POSIX this is SIGKILL: no handler, no `finally`, no last words.
        crawler.kill()
        crawler.wait()
    return pages_done(STORE, RUN)


def main() -> int:
    shutil.rmtree(STORE.parent, ignore_errors=True)
    STORE.parent.mkdir()
    started = time.monotonic()
    with PydocServer() as site:
        say(f"pydoc serves the standard library's documentation at {site.url}")
        command = [sys.executable, str(HERE / "linkcheck.py"), site.url, "--store", str(STORE), "--id", RUN]
        say(f"$ {shown(command)}")
        done = crawl_and_kill(command)
        before = recorded(STORE, RUN)
        cut = ask(STORE, "SELECT count(*) FROM v_attempts WHERE run = ? AND outcome = 'running'", RUN)[0][0]
        say(f"killed with -9: {done} pages are recorded, {cut} were being fetched. The same command again:")
        say(f"$ {shown(command)}")
        finished = subprocess.run(command, check=False)
    if finished.returncode:
        say(f"the second crawler failed with exit code {finished.returncode}")
        return 1
    wrong = faults(STORE, RUN, before)
    if wrong:
        say(f"{len(wrong)} faults in the store:")
        print("\n".join(wrong[:20]))
        return 1
    after = len(recorded(STORE, RUN))
    lost = ask(STORE, "SELECT count(*) FROM v_attempts WHERE run = ? AND outcome = 'lost'", RUN)[0][0]
    say("asked of the store, with plain SQL:")
    print(f"  {after} pages have an outcome, each of them exactly one")
    print(f"  {len(before)} were recorded before the kill; none of them was fetched again")
    print(f"  {lost} attempts died with the killed process and were made again")
    where = STORE.relative_to(Path.cwd()) if STORE.is_relative_to(Path.cwd()) else STORE
    say(f"done in {time.monotonic() - started:.0f} s. Look around: treadle show {RUN} --store {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
