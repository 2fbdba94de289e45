import sys

from chatwright.cli import main

sys.exit(main())
