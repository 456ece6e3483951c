import sys

from jobs.figures.job import main

sys.exit(main(sys.argv[1:]))
