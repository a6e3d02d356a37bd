"""`python -m fastq`."""

import sys

from fastq.cli import main

if __name__ == "__main__":
    sys.exit(main())
