"""`python -m treadle.cli` is `treadle`."""

from treadle.cli import main

if __name__ == "__main__":
    main(prog_name="treadle")
