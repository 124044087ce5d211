"""The `probe` command, one file per subcommand: parse, call, print. No science lives here."""
