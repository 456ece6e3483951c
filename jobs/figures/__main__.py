import sys

from jobs.figures import main

sys.exit(main(sys.argv[1:]))
