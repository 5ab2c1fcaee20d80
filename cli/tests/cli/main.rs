//! The command line tool, as a user runs it.
