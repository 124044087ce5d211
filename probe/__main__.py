"""`python -m probe` is the `probe` command."""

from probe.commands.main import main

raise SystemExit(main())
