"""python -m mindplm is the command mindplm."""

from mindplm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
