"""`python -m rag_factory.template` is the command `rag-factory`."""

import sys

from rag_factory.template.main import main

sys.exit(main())
